"""What happened, in one line a person reads."""

from __future__ import annotations

from typing import Any

from lbswitch.core.text import paragraph, printable

_CAN_BE_FORCED = ("health", "freeze", "clients", "pools", "rendering")
_OTHER = {"blue": "green", "green": "blue"}


def operation_sentence(operation: dict[str, Any]) -> str:
    """How an Operation document ended, such as `shop: green is live (generation 43, verified in 2.1 ms)`."""
    tell = _BY_STATE.get(operation["state"], _open)
    rehearsal = "dry run: " if operation.get("dry_run") else ""
    return f"{printable(operation['service'])}: {rehearsal}{tell(operation)}"


def route(operation: dict[str, Any]) -> str:
    """What the operation asks for: `green is live` or `green gets 10%, blue 90%`."""
    target, weight = operation["to"], operation["weight"]
    if weight in (0, 100):
        return f"{target if weight == 100 else _OTHER[target]} is live"
    return f"{target} gets {weight}%, {_OTHER[target]} {100 - weight}%"


def change(operation: dict[str, Any]) -> str:
    """What the operation moves: `green -> blue`, or who gets how much: `blue 90% / green 10%`."""
    target, weight = operation["to"], operation["weight"]
    if weight == 100 and operation["kind"] != "weight":
        return f"{operation['from']} -> {target}"
    shares = {target: weight, _OTHER[target]: 100 - weight}
    return f"blue {shares['blue']}% / green {shares['green']}%"


def drain_sentence(drain: dict[str, Any] | None, indent: str = "") -> str:
    """How far an operation's drain is; further lines for the workers and the note."""
    if drain is None:
        return ""
    closed = f", {drain['closed']} closed" if drain["closed"] else ""
    took = "" if drain["drained_ms"] is None else f" after {drain['drained_ms'] / 1000:.1f} s"
    left = "" if drain["open"] in (None, 0) else f", {drain['open']} open"
    workers = [
        f"worker {'unknown' if each['pid'] is None else each['pid']}{' (old)' if each['old'] else ''}: {each['open']}"
        for each in drain["workers"]
    ]
    notes = [paragraph(drain["note"], indent)] if drain.get("note") else []
    return f"\n{indent}".join([f"{drain['color']} {drain['state']}{took}{left}{closed}", *workers, *notes])


def _done(operation: dict[str, Any]) -> str:
    if operation.get("dry_run"):
        notes = "".join(f"; {paragraph(note, '    ')}" for note in operation.get("notes", ()))
        return f"all gates pass, {operation['kind']} would end with: {route(operation)}{notes}; nothing was changed"
    back = {"rollback": "rolled back, ", "restore": "restored, "}.get(operation["kind"], "")
    return f"{back}{route(operation)} ({_facts(operation)})"


def _facts(operation: dict[str, Any]) -> str:
    facts = [f"generation {operation['generation']}", f"verified in {operation['timings_ms']['verify']:.1f} ms"]
    if operation.get("answers"):
        facts.append(f"{operation['answers']} answers")
    return ", ".join(facts)


def _already(operation: dict[str, Any]) -> str:
    return f"{_already_route(operation)} (generation {operation['generation']})"


def _already_route(operation: dict[str, Any]) -> str:
    return route(operation).replace(" is live", " is already live", 1).replace(" gets ", " already gets ", 1)


def _refused(operation: dict[str, Any]) -> str:
    gate = operation.get("gate") or {"name": "a gate", "message": operation.get("error") or "no reason was given"}
    said = f"refused by {gate['name']}: {paragraph(gate['message'])}"
    if gate["name"] in _CAN_BE_FORCED:
        does = "restores" if operation["kind"] == "restore" else "switches"
        return f"{said}\n  nothing was changed; --force {does} all the same"
    return f"{said}\n  nothing was changed"


def _reverted(operation: dict[str, Any]) -> str:
    error = paragraph(operation.get("error") or "no reason was given")
    if operation.get("dry_run"):
        return f"{operation['kind']} to {operation['to']} would fail: {error}"
    return f"{operation['kind']} to {operation['to']} failed and was reverted: {error}"


def _failed(operation: dict[str, Any]) -> str:
    error = paragraph(operation.get("error") or "no reason was given")
    return f"{operation['kind']} to {operation['to']} failed: {error}"


def _open(operation: dict[str, Any]) -> str:
    return f"{operation['kind']} to {operation['to']} is {operation['state']}"


_BY_STATE = {"done": _done, "already": _already, "refused": _refused, "reverted": _reverted, "failed": _failed}
