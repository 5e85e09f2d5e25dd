"""lbswitch.yaml: a new one, or an existing one with a service more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from lbswitch.errors import InvalidRequest

_PLAIN = re.compile(
    r"(?!(?:true|false|null|~)$)[A-Za-z/][A-Za-z0-9_./:@+~-]*(?<!:)|[0-9]+\.[0-9.]+:[0-9]+", re.IGNORECASE
)
_HEAD = "# Written by lbswitch init, and yours to edit: `lbswitch check` judges it before the agent takes it.\n"


def new(document: Mapping[str, Any]) -> str:
    """The text of a new file. Of the sections, `services` has one more level."""
    return _HEAD + "\n".join(_lines(document, "")) + "\n"


def _lines(document: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Blocks for sections and services, everything below that on one line."""
    for key, value in document.items():
        is_block = isinstance(value, Mapping) and (not indent or any(isinstance(v, Mapping) for v in value.values()))
        if is_block:
            yield f"{indent}{key}:"
            yield from _lines(value, f"{indent}  ")
        else:
            yield f"{indent}{key}: {_flow(value)}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else json.dumps(value)  # YAML reads JSON's strings
    return json.dumps(value)


def with_service(text: str, source: str, name: str, service: Mapping[str, Any]) -> str:
    """The text with one more service at the end of `services`; nothing else is touched. Raises: InvalidRequest."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    services = _value(root, "services")
    if not isinstance(services, yaml.MappingNode) or services.flow_style or not services.value:
        raise InvalidRequest(
            f"{source}: `services` is not written as lines of a block, so nothing can be added by itself; add this "
            f"service by hand:\n{chr(10).join(_lines({name: service}, '  '))}"
        )
    indent = " " * services.value[0][0].start_mark.column
    lines = text.splitlines(keepends=True)
    place = _last_line(services) + 1
    added = "".join(f"{line}\n" for line in _lines({name: service}, indent))
    if lines and not lines[place - 1].endswith("\n"):
        lines[place - 1] += "\n"
    return "".join([*lines[:place], added, *lines[place:]])


def _value(root: yaml.Node | None, key: str) -> yaml.Node | None:
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return next((value for name, value in pairs if name.value == key), None)


def _last_line(node: yaml.Node) -> int:
    """The line, from 0, on which the last word of a node is."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return _last_line(node.value[-1][1])
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return _last_line(node.value[-1])
    return node.end_mark.line if node.end_mark.column else node.end_mark.line - 1
