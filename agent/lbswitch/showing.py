"""Snapshots as documents, the same with and without an agent. What is secret is never in them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from lbswitch.core.model import Intent
from lbswitch.errors import NotAllowed
from lbswitch.ports import Snapshot
from lbswitch.snapshots import Archive, File, Kept


def listing(snapshots: Iterable[Snapshot]) -> dict[str, Any]:
    """The newest first."""
    return {"snapshots": [_line(snapshot) for snapshot in snapshots]}


def _line(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "id": snapshot.id,
        "at": snapshot.at,
        "purpose": snapshot.purpose,
        "operations": list(snapshot.operations),
        "restores": snapshot.restores,
        "digest": snapshot.digest,
    }


def document(kept: Kept) -> dict[str, Any]:
    """All of one but the content of its files."""
    files = [
        {"name": each.name, "size": each.size, "sha256": each.sha256, "secret": each.secret} for each in kept.files
    ]
    facts = {name: kept.facts[name] for name in ("balancer", "revision", "generation", "releases")}
    services = {
        name: {"live": str(each.route.live), "weight": each.route.weight, "generation": each.generation}
        for name, each in kept.intent.services.items()
    }
    ejected = [
        {"service": service, "color": color, "address": address} for service, color, address in kept.facts["ejected"]
    ]
    return {**_line(kept.snapshot), **facts, "services": services, "ejected": ejected, "files": files}


def file(archive: Archive, kept: Kept, name: str) -> dict[str, Any]:
    """One file with its text. Raises: UnknownSnapshot, NotAllowed (secret), StateError."""
    listed = kept.file(name)
    if listed.secret:
        raise NotAllowed(f"{name} is secret and is never shown; snapshot {kept.snapshot.id} has it as {listed.sha256}")
    text = archive.objects.get(listed.sha256).decode(errors="replace")
    return {"id": kept.snapshot.id, "name": name, "text": text}


def diff(archive: Archive, kept: Kept, now: Iterable[File], intent: Intent) -> dict[str, Any]:
    """What has changed since, as a unified diff; of secret files only whether they differ. Raises: StateError."""
    before = {each.name: each for each in kept.files}
    after = {each.name: each for each in now}
    parts = [_unified("routes", _routes(kept.intent), _routes(intent))]
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        content = None if old is None else archive.objects.get(old.sha256)
        if old is not None and new is not None and content == new.content:
            continue
        if any(each is not None and each.secret for each in (old, new)):
            parts.append(f"{name}: differs (secret, not shown)\n")
        else:
            parts.append(_unified(name, _text(content), _text(None if new is None else new.content)))
    return {"id": kept.snapshot.id, "diff": "".join(parts)}


def _routes(intent: Intent) -> str:
    return "".join(f"{name}: {service.route}\n" for name, service in sorted(intent.services.items()))


def _text(content: bytes | None) -> str:
    return "" if content is None else content.decode(errors="replace")


def _unified(name: str, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"then/{name}", f"now/{name}"
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def restored(number: int, answer: Mapping[str, Any]) -> dict[str, Any]:
    """What a restore answers with."""
    return {"snapshot": number, **answer}
