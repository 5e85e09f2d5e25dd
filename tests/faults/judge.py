"""The invariants: what has to hold after whatever fault, when an agent has started again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.faults.site import Site
from tests.support.wait import wait_until

_ASKED = 8  # requests in a row, each on a connection of its own
_ALLOWED = re.compile(
    r"""
    state/(?:lbswitch\.db(?:-wal|-shm)?|agent\.lock|live|gen-\d{6,}(?:\.spare|\.1)?(?:/.*)?)
    | state/snapshots(?:/objects(?:/[0-9a-f]{64})?)?
    | state/nginx(?:/(?:nginx\.pid|error\.log|tmp(?:/.*)?|closing(?:/[0-9a-f]{12})?))?
    | state/haproxy(?:/(?:live\.map|weights\.map|haproxy\.pid|(?:master|worker|state)\.sock))?
    | state/haproxy/\.(?:live|weights)\.map\.(?:new|old)
    | state/nginx/(?:traffic\.log|lease(?:/\d+)?)
    | state/haproxy/(?:shield\.map|traffic\.sock|\.shield\.map\.(?:new|old))
    | state/(?:traffic|shield)(?:/.*)?
    | state/alerts\.db(?:-wal|-shm)?
    | state/(?:nginx|haproxy)/(?:current|rendered(?:/[0-9a-f]{12}(?:/[^.].*)?)?)
    """,
    re.VERBOSE,
)
"""What belongs below the state directory. `gen-N` is live or the spare, and there is no third."""
_LATER = re.compile(r".*/(?:\.install-[0-9a-f]{12}-\d+(?:/.*)?|objects/\.[0-9a-f]{64}\.new)")
"""What an agent that was killed in the middle of a write leaves for ten minutes, when it is removed."""


class Red(AssertionError):
    """An invariant does not hold."""


def consistent(site: Site, wanted: Mapping[str, int], *, was_killed: bool) -> None:
    """All facts agree on these shares of green, nothing is open, nothing is left over. Raises: Red."""
    found: list[str] = []

    def is_so() -> bool:
        found[:] = list(_deviations(site, wanted, was_killed=was_killed))
        return not found

    try:
        # a drift or a doubtful sight is looked at again within a second, so what is over by itself gets that time
        wait_until(is_so, "all agrees", 6.0)
    except AssertionError:
        raise Red("; ".join(found)) from None


def _deviations(site: Site, wanted: Mapping[str, int], *, was_killed: bool) -> Iterator[str]:
    document = site.services(detail=True)
    for name, share in wanted.items():
        yield from _of_service(name, document["services"][name], share)
        yield from _of_answers(site, name, share)
    agent = document["agent"]
    if agent["drift"]:
        yield f"drift is reported: {agent['drift'][0]['what']}"
    if not agent["config"]["valid"]:
        yield f"the configuration is said to be invalid: {agent['config']}"
    yield from _of_apply(site)
    left = [each for each in site.journal() if each["state"] == "open"]
    if left:
        yield f"the journal has open operations: {left}"
    yield from leftovers(site.directory, was_killed=was_killed)


def _of_service(name: str, service: Mapping[str, Any], share: int) -> Iterator[str]:
    columns = {place: service[place] for place in ("intended", "on_disk", "running")}
    if columns["running"]["error"] is not None:
        yield f"{name} is not seen: {columns['running']['error']}"
        return
    for place, column in columns.items():
        if column["weights"] is None or column["weights"]["green"] != share:
            yield f"{name}: {place} is {column}, wanted is green {share}%"
    facts = {place: (column["generation"], column["revision"]) for place, column in columns.items()}
    if len(set(facts.values())) != 1:
        yield f"{name}: generation and revision differ: {facts}"
    for worker in columns["running"]["workers"]:
        if (worker["generation"], worker["weights"]["green"]) != (columns["intended"]["generation"], share):
            yield f"{name}: worker {worker} does not serve green {share}%"
    if not service["verified"]:
        yield f"{name} is not verified: {service['problem']}"
    if service["drift"]:
        yield f"{name} drifts: {service['drift'][0]['what']}"


def _of_answers(site: Site, name: str, share: int) -> Iterator[str]:
    """What clients get; of a split the listener has told the share."""
    allowed = {"green"} if share == 100 else {"blue"} if share == 0 else {"blue", "green"}
    answers = {site.front(name) for _ in range(_ASKED)}
    if not answers <= allowed:
        yield f"{name}: {answers} answer, wanted is green {share}%"


def _of_apply(site: Site) -> Iterator[str]:
    """What `apply` would do, and what drifted, looked at now."""
    code, answer = site.agent.http("POST", "/v1/apply", {"dry_run": True})
    told = {name: value for name, value in answer.items() if name not in ("revision", "dry_run", "notes")}
    if (
        code != 200
        or told.get("configuration") != "unchanged"
        or any(told.get(key) for key in ("errors", "reloaded", "diff"))
    ):
        yield f"apply would change something: {answer}"


def leftovers(directory: Path, *, was_killed: bool) -> Iterator[str]:
    """What is below the state directory, beside the configuration file or below the guest's, and does not belong."""
    generations = [path.name for path in (directory / "state").glob("gen-*")]
    if len(generations) > 2:
        yield f"more than the live directory and a spare: {sorted(generations)}"
    for path in sorted((directory / "state").rglob("*")):
        name = str(path.relative_to(directory))
        if not _ALLOWED.fullmatch(name) and not (was_killed and _LATER.fullmatch(name)):
            yield f"left over: {name}"
    yield from (f"left over: {path.name}" for path in directory.glob(".lbswitch*"))


def history(site: Site, last: int, before: Mapping[str, int], after: Mapping[str, int], said: str | None) -> str:
    """The newest operation of each service agrees with what serves; gives its state, or "none". Raises: Red.

    `last` is the newest operation from before, `said` the state that the command told.
    """
    states = set()
    for name in before:
        newest = next((each for each in site.journal() if each["service"] == name and each["id"] > last), None)
        state = "none" if newest is None else str(newest["state"])
        states.add(state)
        moved = before[name] != after[name]
        if (state == "done") != moved:
            raise Red(f"{name}: green went from {before[name]}% to {after[name]}%, and the history says {newest}")
        if newest is not None and state not in ("done", "refused") and not newest["error"]:
            raise Red(f"{name}: the history does not say why: {newest}")
        if said is not None and state != said:
            raise Red(f"{name}: the command said {said}, the history says {newest}")
    if len(states) != 1:
        raise Red(f"services of one request ended differently: {states}")
    return states.pop()
