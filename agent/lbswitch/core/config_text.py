"""From the text of a configuration file to `Config`, with every problem at once, each with its line.

The sections (agent, balancer, each service) are read one by one, so that an error in one hides none in another; those
that are right are then checked against each other.
"""

from __future__ import annotations

from typing import Any

from lbswitch.core.alert_config import AlertsConfig
from lbswitch.core.config import AgentConfig, BalancerConfig, Config, ServiceConfig
from lbswitch.core.config_checks import cross_check, notes
from lbswitch.core.config_problems import Location, Section, dotted, read_section, show_node, unknown_key
from lbswitch.core.durations import format_duration
from lbswitch.core.source_config import SOURCE_KINDS, SourceConfig
from lbswitch.core.values import service_name, source_name
from lbswitch.core.yaml_tree import Entry, Node, NotYaml, locate, read_tree
from lbswitch.errors import ConfigError, Problem

__all__ = ["notes", "parse", "schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_MOST_SERVICES = 10_000


def parse(text: str, source: str) -> Config:
    """Read a configuration; `source` names the file in messages. `${...}` and the like mean nothing special.

    Raises: ConfigError with everything that is wrong, in the order of the file.
    """
    try:
        root, problems = read_tree(text)
    except NotYaml as error:
        raise ConfigError(source, [error.problem]) from None
    reading = _Reading(root, problems)
    config = reading.config()
    if config is None or reading.problems:
        raise ConfigError(source, sorted(reading.problems, key=lambda problem: problem.line))
    return config


class _Reading:
    """One pass over a tree; `problems` grows."""

    def __init__(self, root: Node, problems: list[Problem]) -> None:
        self.problems = list(problems)
        self._root = Entry(root.line, root)
        self._sections = root.value if isinstance(root.value, dict) else {}

    def config(self) -> Config | None:
        """The whole, or None when a part of it is wrong."""
        if not isinstance(self._root.node.value, dict):
            known = ", ".join(Config.model_fields)
            self._problem((), f"is {show_node(self._root.node)}, but a mapping with these keys is needed: {known}")
            return None
        self._known_keys()
        agent = self._section(AgentConfig, "agent") if "agent" in self._sections else AgentConfig()
        balancer = self._section(BalancerConfig, "balancer")
        services = self._services()
        sources = self._sources()
        alerts = self._section(AlertsConfig, "alerts") if "alerts" in self._sections else AlertsConfig()
        for at, message in cross_check(agent, balancer, services, self._source_names()):
            self._problem(at, message)
        if agent is None or balancer is None or alerts is None or self.problems:
            return None
        return Config(agent=agent, balancer=balancer, services=services, alerts=alerts, sources=sources)

    def _known_keys(self) -> None:
        for key in self._sections:
            if key not in Config.model_fields:
                self._problem((key,), unknown_key(key, Config.model_fields), on_key=True)

    def _section(self, model: type[Section], name: str) -> Section | None:
        entry = self._sections.get(name)
        if entry is None:
            self._problem((name,), f"is missing. {Config.model_fields[name].description}")
            return None
        section, problems = read_section(model, entry, name)
        self.problems.extend(problems)
        return section

    def _services(self) -> dict[str, ServiceConfig]:
        entry = self._sections.get("services")
        what = Config.model_fields["services"].description
        if entry is None:
            self._problem(("services",), f"is missing. {what}")
            return {}
        entries = entry.node.value
        if not isinstance(entries, dict) or not entries:
            written = "empty" if entries == {} else show_node(entry.node)
            self._problem(("services",), f"is {written}, but a mapping is needed. {what}", on_key=True)
            return {}
        if len(entries) > _MOST_SERVICES:
            self._problem(("services",), f"holds {len(entries)} services, {_MOST_SERVICES} at most are supported")
        found = {name: self._service(name, each) for name, each in entries.items()}
        return {name: service for name, service in found.items() if service is not None}

    def _service(self, name: str, entry: Entry) -> ServiceConfig | None:
        """The service, or None when something is wrong with it or with its name."""
        service, problems = read_section(ServiceConfig, entry, dotted("services", name))
        self.problems.extend(problems)
        try:
            service_name(name)
        except ValueError as error:
            self._problem(("services", name), f"the name {error}", on_key=True)
            return None
        return service

    def _sources(self) -> dict[str, SourceConfig]:
        entry = self._sections.get("sources")
        if entry is None:
            return {}
        if not isinstance(entry.node.value, dict):
            words = f"is {show_node(entry.node)}, but a mapping is needed. {Config.model_fields['sources'].description}"
            self._problem(("sources",), words, on_key=True)
            return {}
        found = {name: self._source(name, each) for name, each in entry.node.value.items()}
        return {name: source for name, source in found.items() if source is not None}

    def _source(self, name: str, entry: Entry) -> SourceConfig | None:
        """The source, or None when something is wrong with it or with its name; its kind says which keys there are."""
        try:
            source_name(name)
        except ValueError as error:
            self._problem(("sources", name), f"the name {error}", on_key=True)
        model = self._source_model(name, entry)
        if model is None:
            return None
        source, problems = read_section(model, entry, dotted("sources", name))
        self.problems.extend(problems)
        return source

    def _source_model(self, name: str, entry: Entry) -> type[SourceConfig] | None:
        known = ", ".join(SOURCE_KINDS)
        if not isinstance(entry.node.value, dict):
            words = f"is {show_node(entry.node)}, but a mapping is needed, such as {{kind: prometheus, ...}}"
            self._problem(("sources", name), words)
            return None
        kind = entry.node.value.get("kind")
        if kind is None:
            self._problem(("sources", name, "kind"), f"is missing. One of {known}")
            return None
        model = SOURCE_KINDS.get(kind.node.value) if isinstance(kind.node.value, str) else None
        if model is None:
            self._problem(("sources", name, "kind"), f"is {show_node(kind.node)}, which is none of {known}")
        return model

    def _source_names(self) -> list[str]:
        """Also of those with which something is wrong: whoever names one of them is right."""
        entry = self._sections.get("sources")
        return list(entry.node.value) if entry is not None and isinstance(entry.node.value, dict) else []

    def _problem(self, at: Location, message: str, *, on_key: bool = False) -> None:
        """Add a problem; `on_key` when it is the key that is wrong and not its value."""
        line = locate(self._root, at)[1]
        if on_key:
            parent = locate(self._root, at[:-1])[0]
            line = parent.value[str(at[-1])].line if isinstance(parent.value, dict) else line
        self.problems.append(Problem(message, dotted(*at), line))


def schema() -> dict[str, Any]:
    """The JSON Schema of the file (draft 2020-12). What depends on several settings together it can't say."""
    document = Config.model_json_schema()
    _write_durations(document)
    for section in ("services", "sources"):
        _write_names(document["properties"][section])
    return {"$schema": _DIALECT, **document, "title": "lbswitch", "description": "lbswitch.yaml"}


def _write_names(section: dict[str, Any]) -> None:
    """Refuse other names than those of the pattern."""
    patterns = section.pop("patternProperties", None)
    if patterns is not None:
        section["propertyNames"] = {"pattern": next(iter(patterns))}
        section["additionalProperties"] = next(iter(patterns.values()))


def _write_durations(part: Any) -> None:
    """Write defaults as the file would: `1s`, not 1.0."""
    if isinstance(part, list):
        for item in part:
            _write_durations(item)
    elif isinstance(part, dict):
        if part.get("type") == "string" and isinstance(part.get("default"), int | float):
            part["default"] = format_duration(part["default"])
        for item in part.values():
            _write_durations(item)
