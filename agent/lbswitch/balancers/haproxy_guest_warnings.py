"""What the owner of a HAProxy should write or change, as sentences with the exact lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from lbswitch.balancers.control import Control
from lbswitch.balancers.haproxy_lines import lines
from lbswitch.balancers.haproxy_master import socket_option
from lbswitch.balancers.haproxy_owner import Loaded, Owner, Section
from lbswitch.core.config import Config
from lbswitch.core.config import Control as Kind
from lbswitch.errors import CheckFailed


@dataclass(frozen=True, slots=True)
class Use:
    """A line of the owner's that sends requests to the backends of a service, and where it stands."""

    section: Section
    line: str
    service: str


class GuestWarnings:
    """Looks at the owner's files anew each time."""

    def __init__(
        self, config: Config, control: Control, owner: Owner, ours: Path, seen: Callable[[Path], Path]
    ) -> None:
        """`ours` is the path under which our file is loaded, as this host has it."""
        self._config = config
        self._control = control
        self._owner = owner
        self._ours = ours
        self._seen = seen

    def all(self) -> list[str]:
        """Empty when the files are as they should be, or can't be looked at."""
        try:
            loaded = self._owner.look()
            sections = self._owner.sections(loaded)
            uses = list(_uses(sections))
            return [
                *self._not_loaded(loaded),
                *self._not_used(sections, uses),
                *self._left_behind(uses),
                *self._settings(sections, uses),
            ]
        except CheckFailed as error:
            return [str(error)]

    def why_not_weighted(self, service: str) -> str | None:
        """What has to be written before this service can be split, with the lines; None when nothing."""
        if self._config.services[service].weights is None:
            return (
                f"{service} has no weights: section, without which the owner's frontend can't split its traffic; add "
                f"`weights: {{sticky: none}}` to services.{service}, and to the frontend, in place of its use_backend "
                f"line:\n{_block(self._with_weights(service))}"
            )
        sections = self._owner.sections(self._owner.look())
        map_file = str(self._seen(Path(self._config.balancer.output_dir or "/") / "weights.map"))
        reads = [section for section in sections if any(_weighs(line, service, map_file) for line in section.lines)]
        if reads or not any(section.kind for section in sections):
            return None
        return (
            f"no frontend of the owner's looks up the weight of {service}; put these lines in place of its use_backend "
            f"line, and reload:\n{_block(lines(self._config, service, self._seen))}"
        )

    def _with_weights(self, service: str) -> list[str]:
        document = self._config.model_dump(mode="json", exclude_unset=True)
        document["services"][service]["weights"] = {}
        return lines(Config.model_validate(document), service, self._seen)

    # -- the three steps of the owner --------------------------------------------------------------------------

    def _not_loaded(self, loaded: Loaded) -> Iterator[str]:
        if loaded.ours:
            return
        ours = self._seen(self._ours)
        what = f"HAProxy does not load {ours}"
        directory = next((path for path in loaded.command.files if path not in loaded.files), None)
        if directory is not None:
            where = ", by paths of the container" if self._control.kind is Kind.DOCKER else ""
            yield f"{what}: ln -s {ours} {directory}/lbswitch.cfg{where}, then {self._control.how_to('reload')}"
            return
        if self._control.kind is Kind.DOCKER:
            yield f"{what}: add -f {ours} to the command of its container"
            return
        options = f"-S {socket_option(self._config.balancer.master_socket)} -f {ours}"
        yield (
            f"{what}: give it another -f on its command line (Debian and Ubuntu: in /etc/default/haproxy write "
            f'EXTRAOPTS="{options}"), then {self._control.how_to("restart")}'
        )

    def _not_used(self, sections: list[Section], uses: list[Use]) -> Iterator[str]:
        if not any(section.kind for section in sections):
            return  # the owner's files can't be read
        first = {use.service: use for use in reversed(uses)}
        choices = {name for section in sections for line in section.lines for name in self._choices(line)}
        for service in self._config.services:
            wanted = f"\n{_block(lines(self._config, service, self._seen))}"
            if service not in first:
                yield f"no frontend of the owner's uses the backends of {service}; write into it:{wanted}"
            elif service not in choices:
                yield (
                    f"{service}: the line `{first[service].line}` does not look into {self._live_map()}, so that no "
                    f"switch moves it; write instead:{wanted}"
                )

    def _choices(self, line: str) -> list[str]:
        """The services whose color this line looks up."""
        return re.findall(rf"str\(([a-z0-9_-]+)\),map\({re.escape(self._live_map())}\b", line)

    def _left_behind(self, uses: list[Use]) -> Iterator[str]:
        """Lines of services that are gone: HAProxy answers 503, or goes on with the next line, and says nothing."""
        for use in uses:
            if use.service not in self._config.services:
                yield (
                    f"{use.section.kind} {use.section.name}: the line `{use.line}` sends requests to backends of a "
                    f"service {use.service} that is not in lbswitch.yaml: take the line out, or configure the service"
                )

    def refuse_in_use(self, gone: Collection[str]) -> None:
        """Refuse to take away backends that a line of the owner's leads to, which HAProxy's checker can't see.

        Raises: CheckFailed.
        """
        sections = self._owner.sections(self._owner.look()) if gone else []
        used = [use for use in _uses(sections) if use.service in gone]
        if used:
            names = ", ".join(sorted({use.service for use in used}))
            listed = "\n".join(f"{use.section.kind} {use.section.name}: {use.line}" for use in used)
            raise CheckFailed(
                f"the new file has no backends for {names}, to which the owner still sends requests; nothing was "
                f"changed. Take these lines out first, and reload HAProxy:\n{listed}"
            )

    def _live_map(self) -> str:
        return str(self._seen(Path(self._config.balancer.output_dir or "/") / "live.map"))

    # -- settings that make reloads harmless ---------------------------------------------------------------------

    def _settings(self, sections: list[Section], uses: list[Use]) -> Iterator[str]:
        if not any(section.kind == "global" for section in sections):
            return
        everywhere = [section for section in sections if section.kind == "defaults"]
        places = [*everywhere, *(use.section for use in uses)]
        if uses and not any(section.has("option idle-close-on-response") for section in places):
            yield (
                "a reload of HAProxy closes idle keep-alive connections, which loses requests that are on their way: "
                "write `option idle-close-on-response` into its defaults or into the frontend"
            )
        settings = [section for section in sections if section.kind == "global"]
        if not any(section.has("hard-stop-after") for section in settings):
            yield (
                "a worker that a reload replaced lives as long as its longest connection: write `hard-stop-after 30m` "
                "into HAProxy's global section"
            )


_USE = re.compile(r"(?:use|default)_backend lbswitch_(?P<service>[a-z][a-z0-9_-]*)_(?:%\[|blue\b|green\b)")


def _uses(sections: list[Section]) -> Iterator[Use]:
    """Every line that leads to backends of lbswitch's."""
    for section in sections:
        for line in section.lines:
            match = _USE.match(line)
            if match:
                yield Use(section, line, match["service"])


def _weighs(line: str, service: str, weights_map: str) -> bool:
    return f"str({service}),map_str_int({weights_map}" in line


def _block(found: list[str]) -> str:
    return "\n".join(f"    {line}" for line in found)
