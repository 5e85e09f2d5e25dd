"""One section of the configuration, from its YAML tree to its model, and what is wrong with it in plain words."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from lbswitch.core.yaml_tree import Entry, Node, locate
from lbswitch.errors import Problem

Section = TypeVar("Section", bound=BaseModel)
Location = tuple[str | int, ...]

_LONGEST_SHOWN = 60
_TYPES = {
    "bool_type": "is neither true nor false",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "string_type": "is not text: put it in quotes",
    "enum": "is none of {expected}",
    "literal_error": "is none of {expected}",
    "greater_than_equal": "is less than {ge}",
    "greater_than": "is not more than {gt}",
    "less_than_equal": "is more than {le}",
    "less_than": "is not less than {lt}",
}


def read_section(model: type[Section], entry: Entry, path: str) -> tuple[Section | None, list[Problem]]:
    """The model that `entry` describes, or None with everything that is wrong in it."""
    if not isinstance(entry.node.value, dict):
        return None, [Problem(_not_a_mapping(entry.node, model), path, entry.line)]
    text = json.dumps(entry.node.plain())
    try:
        return model.model_validate_json(text, strict=True), []
    except ValidationError as error:
        explain = _Explanation(model, entry, path)
        errors = _without_consequences(error.errors(include_url=False))
        return None, [problem for found in errors for problem in explain.problems(found)]


def _without_consequences(errors: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A list whose items are refused counts as too short as well, which nobody needs to hear."""
    places = [tuple(error["loc"]) for error in errors]
    return [
        error
        for error, place in zip(errors, places, strict=True)
        if error["type"] != "too_short" or not any(other[: len(place)] == place != other for other in places)
    ]


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message for a key that means nothing here."""
    names = list(known)
    close = difflib.get_close_matches(key, names, 1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    return f"unknown key {show(key)}:{hint} known: {', '.join(names)}"


def dotted(*parts: str | int) -> str:
    """The path of a key: `services.shop.health.interval`; what could deceive the eye is escaped."""
    texts = [str(part) for part in parts if part != ""]
    return ".".join(text if text.isascii() and text.isprintable() else show(text) for text in texts)


def show(value: object) -> str:
    """A value as a message shows it: text quoted, look-alikes and control characters escaped, long ones cut."""
    if isinstance(value, str):
        return ascii(value if len(value) <= _LONGEST_SHOWN else value[:_LONGEST_SHOWN] + "...")
    return str(value)


def show_node(node: Node) -> str:
    """A value as it was written."""
    if isinstance(node.value, dict):
        return "a mapping"
    if isinstance(node.value, list):
        return "a list"
    if node.value is None:
        return "empty"
    return show(node.value) if isinstance(node.value, str) else node.text[:_LONGEST_SHOWN]


def _not_a_mapping(node: Node, model: type[BaseModel]) -> str:
    return f"is {show_node(node)}, but a mapping with these keys is needed: {', '.join(_keys(model))}"


class _Explanation:
    """Turns pydantic's errors about one section into problems of the file."""

    def __init__(self, model: type[BaseModel], entry: Entry, path: str) -> None:
        self._model, self._entry, self._path = model, entry, path

    def problems(self, error: Mapping[str, Any]) -> Iterator[Problem]:
        """All that one error says; only misfits are several."""
        location: Location = tuple(error["loc"])
        context: Mapping[str, Any] = error.get("ctx") or {}
        if error["type"] == "misfits":
            for at, message in context["misfits"]:
                yield self._problem((*location, *at), message)
        elif error["type"] == "extra_forbidden":
            yield self._unknown_key(location)
        elif error["type"] == "missing":
            yield self._problem(location, f"is missing. {self._description(location)}".rstrip())
        else:
            yield self._problem(location, self._wrong_value(error["type"], location, context))

    def _unknown_key(self, location: Location) -> Problem:
        key = str(location[-1])
        model = self._model_at(location[:-1])
        return self._problem(location, unknown_key(key, _keys(model) if model else ()))

    def _wrong_value(self, kind: str, location: Location, context: Mapping[str, Any]) -> str:
        node = locate(self._entry, location)[0]
        if kind in ("model_type", "dict_type", "model_attributes_type"):
            model = self._model_at(location)
            return _not_a_mapping(node, model) if model else f"is {show_node(node)}, but a mapping is needed"
        if kind in ("tuple_type", "list_type"):
            field = self._field(location)
            hint = f": {field.description}" if field and field.description else ""
            return f"is {show_node(node)}, but a list is needed{hint}"
        return self._sentence(node, self._words(kind, context))

    def _words(self, kind: str, context: Mapping[str, Any]) -> str:
        if kind == "value_error":
            return str(context["error"])
        if kind in ("too_short", "string_too_short"):
            least = context["min_length"]
            return "is empty" if least == 1 else f"is shorter than {least}"
        if kind in ("too_long", "string_too_long"):
            return f"is longer than {context['max_length']}"
        if kind in _TYPES:
            return _TYPES[kind].format_map({name: _expected(value) for name, value in context.items()})
        return "is not allowed here"

    def _sentence(self, node: Node, words: str) -> str:
        """`is 'red', which is none of blue, green`."""
        if not words.startswith("is ") or isinstance(node.value, dict | list):
            return words
        if words == "is empty":
            return "is empty"
        return f"is {show_node(node)}, which {words}"

    def _problem(self, location: Location, message: str) -> Problem:
        return Problem(message, dotted(self._path, *location), locate(self._entry, location)[1])

    def _field(self, location: Location) -> FieldInfo | None:
        model = self._model_at(location[:-1])
        return _keys(model).get(str(location[-1])) if model else None

    def _description(self, location: Location) -> str:
        field = self._field(location)
        return (field.description if field else None) or ""

    def _model_at(self, location: Location) -> type[BaseModel] | None:
        annotation: Any = self._model
        for part in location:
            annotation = _inside(annotation, str(part))
        return _model_in(annotation)


def _keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields by what they are called in the file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _inside(annotation: Any, key: str) -> Any:
    """What is below this key of a section, or of a mapping whose keys are names."""
    model = _model_in(annotation)
    if model is not None:
        field = _keys(model).get(key)
        return None if field is None else field.annotation
    candidates: Sequence[Any] = [annotation, *get_args(annotation)]
    candidates = [*candidates, *(inner for item in candidates for inner in get_args(item))]
    mapping = next((item for item in candidates if get_origin(item) is dict), None)
    return None if mapping is None else get_args(mapping)[1]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    candidates: Sequence[Any] = [annotation, *get_args(annotation)]
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)


def _expected(value: Any) -> str:
    """Pydantic's "'blue' or 'green'" as `blue, green`; numbers as they are."""
    return value.replace("'", "").replace(" or ", ", ") if isinstance(value, str) else str(value)
