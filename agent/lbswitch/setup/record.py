"""What init has done, on disk before it is done: STATE/init/record.json, and the original bytes beside it.

    STATE/init/record.json         files with their originals, services, and an operation that is under way
    STATE/init/originals/SHA256    contents, by their digest

An operation is *pending* from before its first edit until after its last look; a crash in between leaves it so, and the
next `init` or `uninstall` undoes it (certbot's reverter does the same).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lbswitch.core.model import Color
from lbswitch.errors import StateError
from lbswitch.files import replace_file, sync_directory, write_file
from lbswitch.setup.changes import Content, FileChange
from lbswitch.setup.edits import Edit, NotOurs, take_out

_VERSION = 1


@dataclass(slots=True)
class Kept:
    """One file: as it was before the first init (None: not there), and as the last init left it."""

    original: Content | None
    left: Content | None
    edits: tuple[Edit, ...] = ()


@dataclass(slots=True)
class Pending:
    """An operation that began. `is_loaded` says that the balancer may have read the new files."""

    what: str
    before: dict[Path, Content | None]
    after: dict[Path, Content | None]
    revision: str | None = None
    is_loaded: bool = False
    is_restart: bool = False


@dataclass(slots=True)
class Record:
    """All that is known; `save` makes it durable.

    `configuration` is the text of lbswitch.yaml; `services` have the color that gets the traffic without lbswitch, and
    the owner's line that sends it there; `made` are directories that init has made, outermost first.
    """

    directory: Path
    config_path: Path = Path("/")
    configuration: str = ""
    files: dict[Path, Kept] = field(default_factory=dict)
    services: dict[str, tuple[Color, str]] = field(default_factory=dict)
    made: list[Path] = field(default_factory=list)
    pending: Pending | None = None
    needs_restart: bool = False

    @classmethod
    def open(cls, state_dir: Path) -> Record | None:
        """The record below a state directory, None when init has done nothing there. Raises: StateError."""
        directory = state_dir / "init"
        try:
            document = json.loads((directory / "record.json").read_text())
            return _Reader(directory).record(document)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{error.filename}: {error.strerror}; nothing was changed") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(
                f"{directory / 'record.json'} can't be read ({error!r}); nothing was changed. The files as they were "
                f"are in {directory / 'originals'}, by digest"
            ) from error

    def save(self) -> None:
        """Write it, durably, the contents before what names them. Raises: StateError."""
        try:
            _make(self.directory)
            _make(self.directory / "originals")
            document = _Writer(self.directory).document(self)
            replace_file(self.directory / "record.json", (json.dumps(document, indent=1) + "\n").encode(), 0o600)
        except OSError as error:
            where = error.filename or self.directory
            raise StateError(f"{where}: {error.strerror}; no file of the balancer was changed") from error

    def remove(self) -> None:
        """Forget everything; the record first, so that it never names what is gone."""
        (self.directory / "record.json").unlink(missing_ok=True)
        sync_directory(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)

    def keep(self, changes: Iterable[FileChange]) -> None:
        """Add what an init has just done to what earlier ones did."""
        for change in changes:
            known = self.files.get(change.path)
            if known is None:
                self.files[change.path] = Kept(change.before, change.after, change.edits)
                continue
            if not (known.left is not None and known.left.is_same(change.before)):
                known.original = _without(change.before, known.edits)  # the owner has edited it since
            known.left = change.after
            known.edits = (*known.edits, *change.edits)


def _without(content: Content | None, edits: tuple[Edit, ...]) -> Content | None:
    """What the owner would have without our earlier lines; as it is, when they can't be found."""
    if content is None or not edits:
        return content
    try:
        return replace(content, data=take_out(content.data, edits))
    except NotOurs:
        return content


def pending(what: str, changes: Iterable[FileChange], revision: str | None, *, is_restart: bool = False) -> Pending:
    """An operation that is about to make these changes."""
    ordered = list(changes)
    return Pending(
        what,
        {change.path: change.before for change in ordered},
        {change.path: change.after for change in ordered},
        revision,
        is_restart=is_restart,
    )


def _make(directory: Path) -> None:
    if not directory.is_dir():
        directory.mkdir(mode=0o700, parents=True)
        sync_directory(directory.parent)


# -- as JSON -----------------------------------------------------------------------------------------------------


class _Writer:
    """Turns a record into a document and writes contents that are not there yet."""

    def __init__(self, directory: Path) -> None:
        self._originals = directory / "originals"

    def document(self, record: Record) -> dict[str, Any]:
        pending = record.pending
        document = {
            "version": _VERSION,
            "config_path": str(record.config_path),
            "configuration": record.configuration,
            "files": {str(path): self._kept(kept) for path, kept in record.files.items()},
            "services": {name: {"color": str(color), "line": line} for name, (color, line) in record.services.items()},
            "made": [str(path) for path in record.made],
            "needs_restart": record.needs_restart,
            "pending": None if pending is None else self._pending(pending),
        }
        sync_directory(self._originals)
        return document

    def _kept(self, kept: Kept) -> dict[str, Any]:
        edits = [
            {"at": edit.at, "old": _text(edit.old), "new": _text(edit.new), "whole_line": edit.whole_line}
            for edit in kept.edits
        ]
        return {"original": self._content(kept.original), "left": self._content(kept.left), "edits": edits}

    def _pending(self, pending: Pending) -> dict[str, Any]:
        return {
            "what": pending.what,
            "revision": pending.revision,
            "is_loaded": pending.is_loaded,
            "is_restart": pending.is_restart,
            "before": self._contents(pending.before),
            "after": self._contents(pending.after),
        }

    def _contents(self, contents: Mapping[Path, Content | None]) -> dict[str, Any]:
        return {str(path): self._content(content) for path, content in contents.items()}

    def _content(self, content: Content | None) -> dict[str, Any] | None:
        if content is None:
            return None
        digest = hashlib.sha256(content.data).hexdigest()
        path = self._originals / digest
        if not path.exists():
            temporary = path.with_name(f".{digest}")
            write_file(temporary, content.data, 0o600)
            temporary.rename(path)
        return {
            "sha256": digest,
            "mode": content.mode,
            "uid": content.uid,
            "gid": content.gid,
            "is_link": content.is_link,
        }


class _Reader:
    """The way back."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def record(self, document: dict[str, Any]) -> Record:
        if document["version"] != _VERSION:
            raise ValueError(f"version {document['version']}")
        return Record(
            self._directory,
            Path(document["config_path"]),
            document["configuration"],
            {Path(path): self._kept(kept) for path, kept in document["files"].items()},
            {name: (Color(each["color"]), each["line"]) for name, each in document["services"].items()},
            [Path(path) for path in document["made"]],
            None if document["pending"] is None else self._pending(document["pending"]),
            document["needs_restart"],
        )

    def _kept(self, document: dict[str, Any]) -> Kept:
        edits = tuple(
            Edit(each["at"], _bytes(each["old"]), _bytes(each["new"]), each["whole_line"]) for each in document["edits"]
        )
        return Kept(self._content(document["original"]), self._content(document["left"]), edits)

    def _pending(self, document: dict[str, Any]) -> Pending:
        return Pending(
            document["what"],
            {Path(path): self._content(content) for path, content in document["before"].items()},
            {Path(path): self._content(content) for path, content in document["after"].items()},
            document["revision"],
            document["is_loaded"],
            document["is_restart"],
        )

    def _content(self, document: dict[str, Any] | None) -> Content | None:
        if document is None:
            return None
        data = (self._directory / "originals" / document["sha256"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != document["sha256"]:
            raise ValueError(f"originals/{document['sha256']} is damaged")
        return Content(data, document["mode"], document["uid"], document["gid"], document["is_link"])


def _text(data: bytes) -> str:
    return os.fsdecode(data)


def _bytes(text: str) -> bytes:
    return os.fsencode(text)
