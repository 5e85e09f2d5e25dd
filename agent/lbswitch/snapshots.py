"""Immutable copies of everything needed to come back, taken before anything is changed.

A snapshot is a row in the store. Its *manifest* is canonical JSON, addressed by its digest: the route and generation of
every service, which servers were left out, release labels, the balancer's kind and version, and the digest of the
*tree*. The tree is an object that lists files, each an object of its own (`objects`): the configuration, override
templates, and what was rendered. Pointer and maps are a function of the routes, so they are not copied.

What a manifest holds is small and goes into the transaction that writes INTENT; objects are written only when a file
has changed. So a switch costs no further fsync.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbswitch.core.config import Config
from lbswitch.core.model import Color, Intent, Route, ServerKey, ServiceIntent
from lbswitch.errors import StateError, UnknownSnapshot
from lbswitch.objects import Objects, digest_of
from lbswitch.ports import Balancer, OpenOperation, Rendered, RenderedFile, Snapshot, Store
from lbswitch.serving import Serving

CONFIG = "lbswitch.yaml"
ON_DISK = "lbswitch.yaml.on-disk"
_RENDERED = "rendered/"
_TEMPLATES = "templates/"
_FORMAT = 1
_RECENT = 4

Labels = Mapping[str, Mapping[Color, str | None]]
Stamp = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class File:
    """One file of a snapshot. `secret` content is never shown."""

    name: str
    content: bytes
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """A file as the tree lists it; `size` in bytes."""

    name: str
    sha256: str
    size: int
    secret: bool


@dataclass(frozen=True, slots=True)
class _Tree:
    """The files that there were when `key` was so."""

    key: object
    digest: str
    config: str | None
    revision: str | None


@dataclass(frozen=True, slots=True)
class _Drafted:
    """A manifest, and what it was made from."""

    tree: _Tree
    intent: Intent
    labels: Labels
    text: str
    digest: str


class Snapshots:
    """Takes, reads and forgets snapshots. May be used by several threads."""

    def __init__(
        self,
        directory: Path,
        config_path: Path,
        serving: Serving,
        store: Store,
        clock: Callable[[], float],
        labels: Callable[[], Labels] = dict,
    ) -> None:
        """`directory` is for the objects; `clock` gives seconds since the epoch; `labels` what runs on each color."""
        self.archive = Archive(store, Objects(directory))
        self._objects = self.archive.objects
        self._config_path = config_path
        self._serving = serving
        self._store = store
        self._clock = clock
        self._labels = labels
        self._lock = threading.Lock()
        self._tree: _Tree | None = None
        self._drafted: _Drafted | None = None
        self._recent: deque[str] = deque(maxlen=_RECENT)
        self._version: tuple[Balancer, str] | None = None
        self._parts: dict[str, tuple[ServiceIntent, str]] = {}
        self._config: Config | None = None

    # -- taking ----------------------------------------------------------------------------------------------

    def draft(self, purpose: str, *, restores: int | None = None) -> Snapshot:
        """What there is now, its files written; the caller keeps it in the store. Raises: StateError."""
        with self._lock:
            drafted = self._drafted_now()
        return Snapshot(0, self._clock(), purpose, drafted.digest, drafted.tree.digest, drafted.text, restores)

    def _drafted_now(self) -> _Drafted:
        tree, intent, labels = self._current_tree(), self._serving.intent, self._labels()
        known = self._drafted
        if known is None or known.tree is not tree or known.intent is not intent or known.labels != labels:
            text = self._manifest(tree, intent, labels)
            known = self._drafted = _Drafted(tree, intent, labels, text, digest_of(text.encode()))
        return known

    def take(self, purpose: str) -> int:
        """Keep what there is now, unless the newest snapshot is just that; gives its number. Raises: StateError."""
        draft = self.draft(purpose)
        newest = self._store.snapshots(1)
        if newest and newest[0].digest == draft.digest:
            return newest[0].id
        return self._store.add_snapshot(draft)

    def warm(self) -> None:
        """Write and work out now what the next snapshot would have to. Raises: StateError."""
        balancer = self._serving.balancer
        version = balancer.version()
        with self._lock:
            self._version = (balancer, version)
            self._drafted_now()

    def _current_tree(self) -> _Tree:
        config, balancer = self._serving.config, self._serving.balancer
        installed = balancer.intended_revision()
        key = (id(config), installed, config.text, tuple(_stamps(config, self._config_path)))
        if self._tree is None or self._tree.key != key:
            self._tree = self._written(key, config, list(files_now(config, balancer, self._config_path, installed)))
            self._config = config  # or its id could be given to another
            self._recent.append(self._tree.digest)
        return self._tree

    def _written(self, key: tuple[object, str | None, object, object], config: Config, files: list[File]) -> _Tree:
        digests = self._objects.put(file.content for file in files)
        listed = [
            {"name": file.name, "secret": file.secret, "sha256": digest, "size": len(file.content)}
            for file, digest in zip(files, digests, strict=True)
        ]
        (tree,) = self._objects.put([_canonical({"files": listed, "format": _FORMAT}).encode()])
        return _Tree(key, tree, _digest_of_text(config.text), key[1])

    def _manifest(self, tree: _Tree, intent: Intent, labels: Labels) -> str:
        """Canonical JSON: sorted keys, no spaces. The services are put together from parts that are kept."""
        head = {
            "balancer": {"kind": str(self._serving.config.balancer.kind), "version": self._known_version()},
            "config": tree.config,
            "ejected": sorted([key.service, str(key.color), key.address] for key in intent.ejected),
            "format": _FORMAT,
            "generation": intent.generation,
            "releases": {name: {str(c): label for c, label in of.items()} for name, of in labels.items()},
            "revision": tree.revision,
        }
        known = self._parts
        parts = [
            part[1] if (part := known.get(name)) is not None and part[0] is service else self._part(name, service)
            for name, service in sorted(intent.services.items())
        ]
        services = ",".join(parts)
        return f'{_canonical(head)[:-1]},"services":{{{services}}},"tree":"{tree.digest}"}}'

    def _known_version(self) -> str:
        balancer = self._serving.balancer
        if self._version is None or self._version[0] is not balancer:
            self._version = (balancer, balancer.version())
        return self._version[1]

    def _part(self, name: str, intent: ServiceIntent) -> str:
        facts = [str(intent.route.live), intent.route.weight, intent.generation, intent.weighted]
        part = f"{json.dumps(name)}:{_canonical(facts)}"
        self._parts[name] = (intent, part)
        return part

    # -- after a crash -----------------------------------------------------------------------------------------

    def is_restored(self, each: OpenOperation) -> bool | None:
        """Whether the configuration in use is the one that this restore was about to bring back.

        None when it was to change no configuration, so that this tells nothing. Raises: StateError.
        """
        taken = self._row(each.operation.snapshot)
        target = None if taken is None else self._row(taken.restores)
        if taken is None or target is None:
            return None
        before, after = (json.loads(row.manifest)["config"] for row in (taken, target))
        if before == after:
            return None
        return bool(_digest_of_text(self._serving.config.text) == after)

    def _row(self, number: int | None) -> Snapshot | None:
        return None if number is None else self._store.snapshot(number)

    # -- forgetting --------------------------------------------------------------------------------------------

    def prune(self, now: float) -> int:
        """Forget what is old (`agent.snapshots`), and then remove objects that nothing refers to; gives how many.

        The rows go first: a crash in between leaves objects that the next call removes. Raises: StateError.
        """
        settings = self._serving.config.agent.snapshots
        self._store.forget_snapshots(settings.keep, now - settings.age)
        with self._lock:
            trees = {*self._store.snapshot_trees(), *self._recent}
        keep = set(trees)
        for tree in trees:
            keep.update(listed.sha256 for listed in self.archive.listed(tree))
        return self._objects.sweep(keep)


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot as it is read again, verified."""

    snapshot: Snapshot
    files: tuple[Listed, ...]
    facts: Mapping[str, Any]

    @property
    def intent(self) -> Intent:
        """What was served."""
        services = {
            name: ServiceIntent(Route(Color(live), weight), generation, weighted)
            for name, (live, weight, generation, weighted) in self.facts["services"].items()
        }
        ejected = frozenset(ServerKey(name, Color(color), address) for name, color, address in self.facts["ejected"])
        return Intent(services, self.facts["generation"], ejected)

    def file(self, name: str) -> Listed:
        """The file of that name. Raises: UnknownSnapshot with the names there are."""
        found = next((listed for listed in self.files if listed.name == name), None)
        if found is None:
            known = ", ".join(listed.name for listed in self.files)
            raise UnknownSnapshot(f"snapshot {self.snapshot.id} holds no file {name!r}; there are: {known or 'none'}")
        return found


class Archive:
    """The snapshots that were taken, to be read; needs no running agent."""

    def __init__(self, store: Store, objects: Objects) -> None:
        """Rows come from the store, files from the objects."""
        self.objects = objects
        self._store = store

    def newest(self, limit: int) -> list[Snapshot]:
        """The newest first, without their manifests. Raises: StateError."""
        return self._store.snapshots(limit)

    def read(self, number: int) -> Kept:
        """One snapshot, verified. Raises: UnknownSnapshot; StateError when it is damaged."""
        snapshot = self._store.snapshot(number) if 0 < number < 2**63 else None
        if snapshot is None:
            newest = self._store.snapshots(1)
            there = f"the newest is {newest[0].id}; older ones are removed in time" if newest else "there are none yet"
            raise UnknownSnapshot(f"there is no snapshot {number}; {there}")
        if digest_of(snapshot.manifest.encode()) != snapshot.digest:
            raise StateError(f"snapshot {number} is damaged: its manifest is not what was written; nothing was changed")
        facts = json.loads(snapshot.manifest)
        if facts["format"] != _FORMAT:
            raise StateError(f"snapshot {number} has the format {facts['format']}, which this version does not know")
        return Kept(snapshot, self.listed(snapshot.tree), facts)

    def listed(self, tree: str) -> tuple[Listed, ...]:
        """What a tree lists. Raises: StateError."""
        files = json.loads(self.objects.get(tree))["files"]
        return tuple(Listed(one["name"], one["sha256"], one["size"], one["secret"]) for one in files)

    def config_text(self, kept: Kept) -> str | None:
        """The configuration that was in use; None when it was read from no file. Raises: StateError."""
        listed = next((one for one in kept.files if one.name == CONFIG), None)
        return None if listed is None else self.objects.get(listed.sha256).decode()

    def rendered(self, kept: Kept) -> Rendered:
        """What was installed. Raises: StateError."""
        files = tuple(
            RenderedFile(one.name.removeprefix(_RENDERED), self.objects.get(one.sha256), one.secret)
            for one in kept.files
            if one.name.startswith(_RENDERED)
        )
        return Rendered(files, kept.facts["revision"] or "")


def files_now(config: Config, balancer: Balancer, config_path: Path, installed: str | None) -> Iterator[File]:
    """Everything that a snapshot of this moment holds; a file on disk that is not in use is there, too.

    `installed` is the revision whose files are wanted.

    Raises: StateError when what is installed can't be read.
    """
    on_disk = _content(config_path)
    if config.text is not None:
        yield File(CONFIG, config.text.encode())
        if on_disk is not None and on_disk != config.text.encode():
            yield File(ON_DISK, on_disk)
    for name, path in _templates(config):
        content = _content(path)
        if content is not None:
            yield File(_TEMPLATES + name, content)
    for file in () if installed is None else balancer.read(installed).files:
        yield File(_RENDERED + file.name, file.content, file.is_hidden)


def _templates(config: Config) -> Iterable[tuple[str, Path]]:
    """The operator's own, by their name below `balancer.templates`."""
    override = config.balancer.templates
    if override is None:
        return []
    base = Path(override)
    paths = [path for directory in (base / config.balancer.kind, base) for path in directory.glob("*.j2")]
    return [(str(path.relative_to(base)), path) for path in sorted(paths)]


def _stamps(config: Config, config_path: Path) -> Iterator[Stamp | None]:
    """What changes when somebody edits a file."""
    for path in (config_path, *(path for _, path in _templates(config))):
        try:
            status = path.stat()
        except OSError:
            yield None
        else:
            yield str(path), status.st_mtime_ns, status.st_size, status.st_ino


def _content(path: Path) -> bytes | None:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return None


def _digest_of_text(text: str | None) -> str | None:
    return None if text is None else digest_of(text.encode())


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
