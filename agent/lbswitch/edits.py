"""Edits of configuration, templates and certificates: noticed, left to settle, rendered, checked and applied.

An invalid edit changes nothing: what served before goes on serving and stays on disk. It is said once, in status and
log, and mends itself when the files are mended.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lbswitch.core.config import Config
from lbswitch.core.debounce import Debounce
from lbswitch.errors import CheckFailed, ConfigError, LbswitchError, NeedsForce, Problem, RenderFailed
from lbswitch.events import Events
from lbswitch.ports import Balancer, Store
from lbswitch.serving import Serving
from lbswitch.watching import Watching

LOOK_EVERY_S = 5.0
_RETRY_S = 5.0
_MOST_RETRY_S = 60.0
_BREATH_S = 0.05  # between two looks, however much happens
_PUT_OFF_S = 1.0
_NEEDS_RESTART = (
    *(("agent", key) for key in ("state_dir", "socket", "listen")),
    *(("balancer", key) for key in ("kind", "binary", "managed", "config", "output_dir")),
)


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of reading everything again. `error` is the first thing that was refused or failed."""

    configuration: str  # applied | unchanged | refused
    reloaded: bool
    revision: str | None
    differs: tuple[str, ...] = ()
    errors: tuple[LbswitchError, ...] = ()
    diff: str | None = None

    @property
    def error(self) -> LbswitchError | None:
        """Why not all was applied."""
        return self.errors[0] if self.errors else None

    def to_json(self) -> dict[str, Any]:
        """The document that `POST /v1/apply` answers with; `diff` only of a dry run."""
        document: dict[str, Any] = {
            "configuration": self.configuration,
            "reloaded": self.reloaded,
            "revision": self.revision,
            "differs": list(self.differs),
            "problems": [problem for error in self.errors for problem in _problems(error)],
            "dry_run": self.diff is not None,
        }
        return document if self.diff is None else {**document, "diff": self.diff}


def _problems(error: LbswitchError) -> list[dict[str, Any]]:
    source, found = (
        ("", [Problem(str(error))]) if not isinstance(error, ConfigError) else (error.source, error.problems)
    )
    return [
        {"file": source, "line": problem.line, "path": problem.path, "message": problem.message} for problem in found
    ]


class Edits:
    """Applies what people edit. `reconfigured` is called in the event loop after a changed configuration is served."""

    def __init__(
        self,
        config_path: Path,
        serving: Serving,
        store: Store,
        events: Events,
        load: Callable[[Path], tuple[Config, Balancer]],
        reconfigured: Callable[[Config], None],
        in_thread: Callable[..., Coroutine[Any, Any, Any]],
    ) -> None:
        """`load` reads the configuration file and makes the balancer for it."""
        self.config_error: str | None = None
        self.own_files_changed: Callable[[], None] = lambda: None  # called in the event loop, at once
        self.is_at_work: Callable[[float], bool] = lambda _within_s: False  # or an operation ended so short a time ago
        self.repair: Callable[[], list[str]] | None = None  # puts right what drifted, and says what that was; blocks
        self._path = config_path
        self._serving = serving
        self._store = store
        self._events = events
        self._load = load
        self._reconfigured = reconfigured
        self._in_thread = in_thread
        self._one_at_a_time = asyncio.Lock()
        self._wake = asyncio.Event()
        self._edited = Debounce()
        self._edited_paths: set[Path] = set()
        self._seen: set[Path] = set()  # those that were read at least once
        self._followed_at = float("-inf")
        self._must_follow = False
        self._retry_at: float | None = None
        self._retry_pause_s = _RETRY_S
        self._held: Config | None = None
        self._refused: Balancer | None = None
        self._watching: Watching | None = None

    @property
    def notes(self) -> list[str]:
        """Where edits are noticed late, as sentences."""
        return [] if self._watching is None else self._watching.notes(LOOK_EVERY_S)

    @property
    def is_applying(self) -> bool:
        """Whether services may come or go right now."""
        return self._one_at_a_time.locked()

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Nothing is read or applied for as long as this lasts."""
        async with self._one_at_a_time:
            yield

    # -- noticing --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        call = asyncio.get_running_loop().call_soon_threadsafe

        def edited() -> None:
            call(self._wake.set)

        def own_files() -> None:
            call(self._own_happened)

        self._watching = Watching(edited, own_files)
        try:
            await self._events.guard("applying edits", self._apply_what_was_missed(self._watching))
            while True:
                await self._events.guard("applying edits", self._round(self._watching))
                await self._wait()
        finally:
            await self._in_thread(self._watching.stop)

    def _own_happened(self) -> None:
        self._wake.set()  # directories to watch may have come and gone
        self.own_files_changed()

    async def _apply_what_was_missed(self, watching: Watching) -> None:
        """Somebody may have edited while the agent started."""
        self._seen = await self._in_thread(self._look, watching)
        await self.apply(asked=False)

    async def _round(self, watching: Watching) -> None:
        """Look, and do what is due."""
        self._wake.clear()
        changed = await self._in_thread(self._look, watching)
        now = time.monotonic()
        if changed:
            self._edited = self._edited.touched(now)
            self._edited_paths |= changed
        if self._is_due(self._edited, now) or (self._retry_at is not None and now >= self._retry_at):
            await self._apply_edits()
            self._wake.set()  # what was read may name other files: watch those, too

    async def _apply_edits(self) -> None:
        edited, self._edited, self._edited_paths = self._edited_paths, Debounce(), set()
        was_refused = self.config_error is not None or self._serving.files_problem is not None
        applied = await self.apply(asked=False)
        if applied.configuration == "unchanged" and not was_refused and edited & self._seen:
            names = ", ".join(sorted(str(path) for path in edited))
            self._events.emit("edits-without-effect", f"{names}: read again; nothing that is served changes")
        self._seen |= edited

    def _look(self, watching: Watching) -> set[Path]:
        balancers = (self._serving.balancer, *((self._refused,) if self._refused is not None else ()))
        watched = {path for balancer in balancers for path in balancer.watched()}
        config = self._serving.config
        roots = [Path(root) for root in (config.agent.state_dir, config.balancer.output_dir) if root is not None]
        keys = {Path(path) for each in config.services.values() if each.tls for path in (each.tls.cert, each.tls.key)}
        own = {path for path in watched - keys if any(root in (path, *path.parents) for root in roots)}
        # Watching other directories takes the processor from switches, which can't put it off for long.
        now = time.monotonic()
        self._must_follow = self.is_at_work(_BREATH_S) and now - self._followed_at < _PUT_OFF_S
        if not self._must_follow:
            self._followed_at = now
            watching.follow({self._path, *(watched - own)}, own)
        return watching.changed()

    def _due_at(self, debounce: Debounce) -> float | None:
        wait = self._serving.config.agent.wait
        return debounce.due_at(wait.min, wait.max)

    def _is_due(self, debounce: Debounce, now: float) -> bool:
        due_at = self._due_at(debounce)
        return due_at is not None and now >= due_at

    async def _wait(self) -> None:
        """Until something happens or is due, or it is time to look in any case."""
        await asyncio.sleep(_BREATH_S)
        now = time.monotonic()
        latest = now + (_BREATH_S if self._must_follow else LOOK_EVERY_S)
        moments = (self._due_at(self._edited), self._retry_at, latest)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(each for each in moments if each is not None) - now)):
                await self._wake.wait()

    # -- applying --------------------------------------------------------------------------------------------

    async def apply(self, *, force: bool = False, asked: bool = True) -> Applied:
        """Read configuration and templates again, and serve what they say; what is refused changes nothing.

        `force` allows what would empty a pool or cut off clients. `asked`: by a person, who also wants to try again
        what is held back since it was refused, and to put right what drifted.
        """
        async with self._one_at_a_time:
            errors: list[LbswitchError] = []
            reloaded = await self._apply_configuration(errors, force=force, asked=asked)
            refreshed = False if reloaded is not None else await self._apply_files(errors, force=force)
            differs = await self._repair(errors) if asked else []
            self._plan_retry(errors)
        done = reloaded is not None or refreshed
        outcome = "refused" if errors else "applied" if done else "unchanged"
        return Applied(outcome, bool(reloaded) or refreshed, self._revision(), tuple(differs), tuple(errors))

    async def _repair(self, errors: list[LbswitchError]) -> list[str]:
        if self.repair is None:
            return []
        try:
            differs: list[str] = await self._in_thread(self.repair)
        except LbswitchError as error:
            errors.append(error)
            return []
        return differs

    async def rehearse(self, *, force: bool = False) -> Applied:
        """What `apply` would do; changes nothing."""
        async with self._one_at_a_time:
            serving, before = self._serving, self._revision()
            try:
                config, balancer = await self._in_thread(self._load, self._path)
                refuse_what_needs_a_restart(serving.config, config)
                revision, diff = await self._in_thread(partial(serving.rehearse, config, balancer, force=force))
            except LbswitchError as error:
                return Applied("refused", reloaded=False, revision=before, errors=(error,), diff="")
            drifted = await self._in_thread(serving.differences)
        changes = config != serving.config or revision != before
        reloads = revision != before and serving.balancer.is_running()
        differs = tuple(dict.fromkeys(each.what for each in drifted))
        return Applied("applied" if changes else "unchanged", reloads, revision, differs, diff=diff)

    def _revision(self) -> str | None:
        return self._serving.balancer.installed()

    async def _apply_configuration(self, errors: list[LbswitchError], *, force: bool, asked: bool) -> bool | None:
        """Whether it needed a reload; None when nothing was applied."""
        self._refused = None
        try:
            config, balancer = await self._in_thread(self._load, self._path)
            if config == self._serving.config:
                self._serving.config.read_from(config.text)
                self._configuration_is_served(asked=asked)
                return None
            if config == self._held and not asked:
                return None
            self._refused = balancer  # its files are watched too, until it is served
            reloaded: bool = await self._reconfigure(config, balancer, force=force)
        except LbswitchError as error:
            self._held = config if isinstance(error, NeedsForce) else None
            self.config_error = str(error)
            errors.append(error)
            self._events.once("configuration", "configuration-refused", f"{error}; the running configuration stays")
            return None
        self.config_error = self._held = self._refused = None
        self._events.over("configuration")
        self._files_are_in_order()
        how = "with a reload" if reloaded else "without a reload"
        self._events.emit("configuration-applied", f"{self._path} was read again and applied {how}")
        return reloaded

    async def _reconfigure(self, config: Config, balancer: Balancer, *, force: bool) -> bool:
        refuse_what_needs_a_restart(self._serving.config, config)
        reloaded: bool = await self._in_thread(partial(self._serving.reconfigure, config, balancer, force=force))
        intent = self._serving.intent
        await self._in_thread(self._store.save_services, intent.services, intent.generation)
        self._reconfigured(config)
        return reloaded

    def _configuration_is_served(self, *, asked: bool) -> None:
        if self.config_error is not None:
            self._events.emit("configuration-mended", f"{self._path} was read again and is what is served")
        elif asked:
            self._events.emit("configuration-unchanged", f"{self._path} was read again; nothing changes")
        self.config_error = self._held = None
        self._events.over("configuration")

    async def _apply_files(self, errors: list[LbswitchError], *, force: bool) -> bool:
        """Edited templates and certificates, with the configuration that is served; True when there was a reload."""
        was_refused = self._serving.files_problem is not None
        try:
            installed: bool = await self._in_thread(partial(self._serving.refresh, force=force))
        except LbswitchError as error:
            if str(error) != self.config_error:
                errors.append(error)
                self._events.once("files", "files-refused", str(error))
            return False
        self._files_are_in_order()
        if installed:
            self._events.emit("templates-applied", "changed templates or certificates were checked and applied")
        elif was_refused:
            self._events.emit("files-mended", "templates and certificates are in order again; nothing had to change")
        return installed

    def _files_are_in_order(self) -> None:
        self._events.over("files")

    def _plan_retry(self, errors: list[LbswitchError]) -> None:
        """What only the files can mend waits for an edit; what the host may mend is tried again."""
        pauses = [pause for error in errors if (pause := self._pause_after(error)) is not None]
        self._retry_pause_s = min(self._retry_pause_s * 2, _MOST_RETRY_S) if pauses else _RETRY_S
        self._retry_at = time.monotonic() + min(pauses) if pauses else None

    def _pause_after(self, error: LbswitchError) -> float | None:
        if isinstance(error, ConfigError | RenderFailed | NeedsForce):
            return None
        return self._retry_pause_s if isinstance(error, CheckFailed) else _RETRY_S


def refuse_what_needs_a_restart(old: Config, new: Config) -> None:
    """The agent keeps its sockets, its state and its kind of balancer while it runs. Raises: ConfigError."""
    changed = [
        f"{section}.{key}"
        for section, key in _NEEDS_RESTART
        if getattr(getattr(old, section), key) != getattr(getattr(new, section), key)
    ]
    if changed:
        message = "changed, which takes effect only when the agent is restarted; nothing of the file was applied"
        raise ConfigError("configuration", [Problem(message, name) for name in changed])
