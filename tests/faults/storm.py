"""Load and switches without a pause, while the agent is killed again and again."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections import Counter
from dataclasses import dataclass

from tests.faults import judge
from tests.faults.site import Site
from tests.support.load import Load, Report
from tests.support.wait import wait_until

_RATE = 200.0
_PAUSE_S = 0.01
_KILL_EVERY_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """What came of it; `states` are those of the history, `recovered` what later agents ended."""

    kind: str
    seconds: float
    kills: int
    asked: int
    answers: dict[str, int]
    states: dict[str, int]
    recovered: int
    loads: dict[str, Report]
    consistent: str

    @property
    def is_well(self) -> bool:
        """Nothing was lost, and all agrees."""
        return self.consistent == "yes" and all(report.lost == 0 for report in self.loads.values())

    def __str__(self) -> str:
        answers = ", ".join(f"{count} {word}" for word, count in sorted(self.answers.items()))
        states = ", ".join(f"{count} {word}" for word, count in sorted(self.states.items()))
        lines = [
            f"{self.kind}: {self.kills} times SIGKILL in {self.seconds:.0f} s",
            f"  switches asked for {self.asked}: {answers}",
            f"  in the history: {states}; {self.recovered} of them were ended by a later agent",
        ]
        for name, report in self.loads.items():
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.lost_by_kind.items())) or "none"
            lines.append(f"  {name}: {report.sent} requests sent, {report.lost} lost ({kinds})")
        return "\n".join([*lines, f"  consistent at the end: {self.consistent}"])


def storm(kind: str, seconds: float) -> Outcome:
    """So many seconds of it, on the pointer of nginx or the maps of HAProxy. Raises: AssertionError."""
    site = Site(kind)
    try:
        site.start()
        return _Storm(site).run(seconds)
    finally:
        site.close()


class _Storm:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._over = threading.Event()
        self._answers: Counter[str] = Counter()

    def run(self, seconds: float) -> Outcome:
        site, kills, port = self._site, 0, self._site.ports["shop"]
        settings = {"rate": _RATE, "duration_s": seconds + 120, "timeout_s": 20.0}
        with (
            Load("127.0.0.1", port, new_connections=0.0, **settings) as kept,
            Load("127.0.0.1", port, new_connections=1.0, **settings) as fresh,
        ):
            loads = {"keep-alive": kept, "new connections": fresh}
            asking = threading.Thread(target=self._ask)
            asking.start()
            began = time.monotonic()
            try:
                while time.monotonic() - began < seconds:
                    self._over.wait(_KILL_EVERY_S)  # the rhythm of the storm; nothing is awaited
                    site.agent.kill()
                    kills += 1
                    site.agent.start()
            finally:
                self._over.set()
                asking.join(timeout=60)
            consistent = self._is_consistent()
            reports = {name: load.stop() for name, load in loads.items()}
        history = site.journal()
        return Outcome(
            site.kind,
            time.monotonic() - began,
            kills,
            self._answers.total(),
            dict(self._answers),
            dict(Counter(each["state"] for each in history)),
            sum("the agent ended" in each["notes"] for each in history),
            reports,
            consistent,
        )

    def _ask(self) -> None:
        """Another switch as soon as the last was answered."""
        to = "green"
        while not self._over.is_set():
            self._answers[self._answer(to)] += 1
            to = "blue" if to == "green" else "green"
            self._over.wait(_PAUSE_S)

    def _answer(self, to: str) -> str:
        try:
            _, document = self._site.agent.http("POST", "/v1/services/shop/switch", {"to": to})
        except (OSError, http.client.HTTPException) as error:
            is_there = isinstance(error, ConnectionResetError | http.client.HTTPException)
            return "cut off by a kill" if is_there else "while no agent was there"
        return str(document.get("state") or document.get("title", document))

    def _is_consistent(self) -> str:
        site = self._site
        try:
            site.until_well()
            wait_until(lambda: not site.services()["services"]["shop"]["operation"], "no operation runs")
            judge.consistent(site, site.shares(), was_killed=True)
            with contextlib.suppress(IndexError):
                moves = [each for each in site.journal() if each["state"] == "done"]
                share = 100 if moves[0]["target"] == "green" else 0
                assert site.shares() == {"shop": share}, f"the history ends with {moves[0]}, {site.shares()} serves"
        except AssertionError as error:
            return f"NO: {error}"
        return "yes"
