"""One cell of the matrix: a way of switching, a step, a fault."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.faults import judge
from tests.faults.judge import Red
from tests.faults.kinds import Bug, Fault, Nothing, forget_orders
from tests.faults.site import Site
from tests.faults.ways import Way
from tests.support.agent import Said
from tests.support.wait import wait_until

_EXIT_CODES = {"done": 0, "reverted": 4, "failed": 1}
_SETTLES_S = 40.0


class Row(NamedTuple):
    """A step as it is announced in one operation; `is_return`: only when the operation is put back."""

    step: str
    nth: int
    is_return: bool

    def __str__(self) -> str:
        again = f" {self.nth}" if self.nth > 1 else ""
        return f"{self.step}{again}{' (putting back)' if self.is_return else ''}"


@dataclass(frozen=True)
class Cell:
    """How it ended: `ok`, `n/a` or `RED`, and what happened, in words."""

    row: Row
    fault: str
    verdict: str
    what: str
    took_s: float = 0.0


class Bench:
    """A site for one way of switching, on which cell after cell is tried."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.site = way.make()
        self._rows: list[Row] | None = None
        self._reloads = False

    def __enter__(self) -> Bench:
        try:
            self.site.start()
        except BaseException:
            self.site.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.site.close()

    # -- learning --------------------------------------------------------------------------------------------

    @property
    def rows(self) -> list[Row]:
        """The steps that this way takes, in order, and those that it takes when it is put back at the last moment."""
        if self._rows is None:
            forward = [Row(*each, False) for each in self._steps(None)]
            broken = self._steps("verify")
            there = broken.index(("revert", 1))
            self._rows = [*forward, *(Row(*each, True) for each in broken[there:])]
            self._reloads = any(row.step == "reload" for row in forward)
        return self._rows

    def _steps(self, bug_at: str | None) -> list[tuple[str, int]]:
        """What is announced from `gates` on, each with the how many-th of its name it is."""
        self.way.prepare(self.site)
        log = self.site.directory / "steps.log"
        log.write_text("")
        fault = Bug("bug") if bug_at else Nothing("nothing")
        fault.order(self.site, bug_at or "none", 1)
        command = self.way.command(self.site)
        self.site.agent.lbswitch(*command)
        forget_orders(self.site)
        steps = log.read_text().split()
        return [(step, steps[: place + 1].count(step)) for place, step in enumerate(steps)]

    # -- trying ----------------------------------------------------------------------------------------------

    def cells(self, fault: Fault) -> Iterator[Cell]:
        """This fault at every step."""
        yield from (self.cell(row, fault) for row in self.rows)

    def cell(self, row: Row, fault: Fault) -> Cell:
        """Never raises what the product did; the site is fit for the next cell, or a new one."""
        rest = [each.step for each in self.rows[self.rows.index(row) :] if row.is_return or not each.is_return]
        why_not = fault.why_not(self.site, rest, self._reloads)
        if why_not is not None:
            return Cell(row, fault.name, "n/a", why_not)
        began = time.monotonic()
        since = len(self.site.agent.log())
        try:
            what, has_struck = self._try(row, fault)
            verdict = "ok" if has_struck else "n/a"
        except (AssertionError, OSError, LookupError, ValueError, RuntimeError) as error:
            what, verdict = f"{type(error).__name__}: {error}", "RED"
            what += f"\n--- log of the agent\n{self.site.agent.log()[since:][-3000:]}"
            self._begin_anew()
        return Cell(row, fault.name, verdict, what, time.monotonic() - began)

    def _begin_anew(self) -> None:
        """After a red cell nothing is relied on."""
        with contextlib.suppress(Exception):
            self.site.close()
        self.site = self.way.make()
        self.site.start()

    def _try(self, row: Row, fault: Fault) -> tuple[str, bool]:
        """What was told and what is in the history, and whether anything met the fault. Raises: Red, ..."""
        site = self.site
        self.way.prepare(site)
        site.load.mark(f"{row} {fault.name}")
        lost = site.load.report().lost
        before, last = site.shares(), site.journal()[0]["id"] if site.journal() else 0
        command = self.way.command(site)
        wanted = self.way.wanted(site, command)
        fault.begin(site)
        try:
            more = [{"step": "verify", "nth": 1, "do": "bug"}] if row.is_return else []
            fault.order(site, row.step, row.nth, more)
            said = site.agent.lbswitch(*command, "--json")
            struck = (site.directory / "struck.log").read_text()
            if f"{row.step} " not in struck:
                raise Red(f"the step was not taken; struck: {struck!r}, the command said {said}")
            has_struck = fault.has_struck(site)
            forget_orders(site)
            if fault.dies_after:
                site.agent.kill()
        finally:
            forget_orders(site)
            fault.end(site)
        after = self._come_round(fault, said, struck=has_struck)
        told = self._judge_answer(said, fault, before, after, wanted)
        was_killed = fault.is_fatal or fault.dies_after
        if site.agent.is_alive():
            site.agent.stop()
        site.agent.start()
        site.until_well()
        after = site.shares()
        if after not in (before, wanted):
            raise Red(f"neither {before} nor {wanted} is served: {after}")
        judge.consistent(site, after, was_killed=was_killed)
        in_history = judge.history(site, last, before, after, None if was_killed or told in ("none", "error") else told)
        self._next_switch(before)
        if site.load.report().lost != lost:
            raise Red(f"requests were lost: {site.load.report()}")
        return f"{told}, then {in_history}" if has_struck else "nothing met it from here on", has_struck

    def _come_round(self, fault: Fault, said: Said, *, struck: bool) -> dict[str, int] | None:
        """What is intended when the fault is over; an agent that lives repeats by itself what failed."""
        site = self.site
        if fault.is_fatal and struck:
            wait_until(lambda: not site.agent.is_alive(), "the agent is gone")
        if not site.agent.is_alive():
            if not (fault.is_fatal or fault.dies_after):
                raise Red(f"the agent died; the command said {said}")
            return None
        if said.code == 1 and _state(said) == "failed":
            wait_until(lambda: _is_settled(site), "the agent puts back by itself what it could not", _SETTLES_S)
        return site.shares()

    def _judge_answer(
        self,
        said: Said,
        fault: Fault,
        before: dict[str, int],
        after: dict[str, int] | None,
        wanted: dict[str, int],
    ) -> str:
        """The state that was told, which has to be true; "none" when the agent could not tell. Raises: Red."""
        state = _state(said)
        if fault.is_fatal and after is None:
            if said.code != 6:
                raise Red(f"the agent was killed, and the command ended with {said}")
            return "none"
        if state is None:
            if said.code != 1 or (after is not None and after != before):
                raise Red(f"{said}, and {after} serves, before {before}")
            return "error"
        is_refusal = state == "refused" and all(each["gate"]["name"] == "check" for each in _operations(said))
        if said.code != (3 if is_refusal else _EXIT_CODES.get(state)):
            raise Red(f"{state} with exit code {said.code}: {said.output}")
        if after is not None and after != (wanted if state == "done" else before):
            raise Red(f"the command said {state}, and {after} is intended (before {before}, wanted {wanted}): {said}")
        if state != "done" and not all(each["error"] or each["gate"] for each in _operations(said)):
            raise Red(f"{state} without a word why: {said}")
        return state

    def _next_switch(self, before: dict[str, int]) -> None:
        """Back to where all can begin again."""
        share = next(iter(self.site.shares().values()))
        self.site.switch("blue" if share > 0 else "green")
        self.site.switch("green" if share > 0 else "blue")


def _operations(said: Said) -> Sequence[dict[str, Any]]:
    if not isinstance(said.output, dict):
        return []
    return said.output.get("operations") or ([said.output] if "state" in said.output else [])


def _state(said: Said) -> str | None:
    """What the command said became of its operations."""
    states = {each["state"] for each in _operations(said)}
    if len(states) > 1:
        raise Red(f"services of one request ended differently: {said}")
    return states.pop() if states else None


def _is_settled(site: Site) -> bool:
    document = site.services(detail=True)
    assert not document["agent"]["drift"], document["agent"]["drift"]
    for service in document["services"].values():
        assert service["verified"], service["problem"]
        assert not service["drift"], service["drift"]
        facts = {
            (service[each]["generation"], service[each]["revision"]) for each in ("intended", "on_disk", "running")
        }
        assert len(facts) == 1, facts
    assert all(each["state"] != "open" for each in site.journal())
    return True
