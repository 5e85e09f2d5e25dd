"""Whether the workers run the configuration that was installed last, or one that somebody else had them read."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from lbswitch.balancers.diffs import of_texts
from lbswitch.balancers.rendered import RenderedDirectory
from lbswitch.core.model import Intent, Observation
from lbswitch.errors import NotSeen, StateError
from lbswitch.ports import Difference

_HANDOVER_S = 0.4  # after a reload, workers from before it answer for 0.1 s
_MOST_S = 1.5
_PAUSE_S = 0.01


class Crew(NamedTuple):
    """The workers that ran, and what `RenderedDirectory.moves` was then."""

    pids: frozenset[int]
    moves: int | None


class RunningRevision:
    """Compares what the listeners say they run with what is intended.

    A file that was edited under the name of its revision gives itself away by the workers: those that were first seen
    while files on disk were damaged may have read them.
    """

    def __init__(
        self,
        program: str,
        rendered: RenderedDirectory,
        observe: Callable[[str], Observation],
        workers: Callable[[], Collection[int]],
    ) -> None:
        """`observe` asks the listener of a service (raises NotSeen); `workers` gives the pids, none when it is down."""
        self._program = program
        self._rendered = rendered
        self._observe = observe
        self._workers = workers
        self._sound: frozenset[int] = frozenset()
        self._tainted: frozenset[int] = frozenset()
        self._confirmed: tuple[str, str] | None = None
        self._turn = 0

    def workers(self) -> Crew:
        """Who runs now."""
        moves = self._rendered.moves
        return Crew(frozenset(self._workers()), moves)

    def differences(self, intent: Intent, crew: Crew, damaged: Sequence[Difference]) -> list[Difference]:
        """`crew` ran before `damaged`, which is wrong with the rendered files, was looked for. Never raises.

        Asks one service, another one each time: all of them are answered by the same workers.
        """
        revision = self._rendered.intended
        if not crew.pids or revision is None or not intent.services:
            return []
        if crew.moves is None or crew.moves != self._rendered.moves:
            return []  # we change files ourselves: nothing can be said of who read them
        self._sort(crew.pids, is_damaged=bool(damaged))
        names = list(intent.services)
        self._turn += 1
        found = self._other_revision(names[self._turn % len(names)], revision)
        if found is not None:
            return [self._runs(found, revision)]
        if self._tainted:
            what = f"{self._program} read its configuration while rendered files were changed by somebody"
            return [Difference("running", "configuration", f"{what}, and may run those; a reload is needed")]
        return []

    def reloaded(self) -> None:
        """The workers have read what is installed."""
        self._sound, self._tainted, self._confirmed = frozenset(self._workers()), frozenset(), None

    def _sort(self, workers: frozenset[int], *, is_damaged: bool) -> None:
        new = workers - self._sound - self._tainted
        self._tainted = (self._tainted | (new if is_damaged else frozenset())) & workers
        self._sound = workers - self._tainted

    def _other_revision(self, service: str, revision: str) -> str | None:
        """What runs, if it is something else, and no handover between workers that is under way explains it."""
        began = since = time.monotonic()
        workers = frozenset(self._workers())
        while True:
            try:
                found = self._observe(service).revision
            except NotSeen:
                return None  # another trouble, which status tells as "not verified"
            if found == revision:
                self._confirmed = None
                return None
            if self._confirmed == (found, revision) or time.monotonic() - since > _HANDOVER_S:
                self._confirmed = (found, revision)
                return found
            if time.monotonic() - began > _MOST_S:
                return None
            time.sleep(_PAUSE_S)
            now = frozenset(self._workers())
            if now != workers:
                workers, since = now, time.monotonic()

    def _runs(self, found: str, revision: str) -> Difference:
        what = f"{self._program} runs configuration {found}, intended is {revision}: somebody reloaded another file"
        return Difference("running", "configuration", what, diff=self._diff(found, revision))

    def _diff(self, found: str, revision: str) -> str:
        """Of files that hold no secrets, as far as both revisions are still kept."""
        try:
            before, after = self._rendered.read(revision), self._rendered.read(found)
        except StateError:
            return ""
        texts = [
            {file.name: file.content.decode(errors="replace") for file in rendered.files if not file.is_hidden}
            for rendered in (before, after)
        ]
        names = sorted(texts[0].keys() | texts[1].keys())
        return "".join(of_texts(name, texts[0].get(name, ""), texts[1].get(name, "")) for name in names)


def children(pid: int | None) -> frozenset[int]:
    """The child processes of a master: its workers. None of a master that is down. Never raises."""
    if pid is None:
        return frozenset()
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return _children_by_looking(pid)  # a kernel without that file
    except OSError:
        return frozenset()
    return frozenset(map(int, words))


def _children_by_looking(pid: int) -> frozenset[int]:
    import psutil

    try:
        return frozenset(child.pid for child in psutil.Process(pid).children())
    except psutil.Error:
        return frozenset()
