"""What is written can be read, and gives the same; and small functions of routes, health and time."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lbswitch.balancers.haproxy_maps import Maps
from lbswitch.balancers.nginx_pointer import files_of, read_service
from lbswitch.core.debounce import Debounce
from lbswitch.core.durations import format_duration, parse_duration
from lbswitch.core.health import CheckResult, HealthState, PoolHealth, ServerHealth, advance, servers_to_eject
from lbswitch.core.model import Color, Intent, Route, ServerKey, ServiceIntent
from tests.unit.properties.search import searching

colors = st.sampled_from(list(Color))
percents = st.integers(0, 100)
names = st.from_regex(r"[a-z][a-z0-9_-]{0,47}", fullmatch=True)
generations = st.integers(1, 10**9)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    """Those that operations make: a live color has some of the traffic."""
    return Route(draw(colors), draw(st.integers(1, 100)))


@st.composite
def intents(draw: st.DrawFn) -> Intent:
    """Of services that are weighted at least where they are split."""
    services = {}
    for name in draw(st.lists(names, max_size=5, unique=True)):
        route = draw(routes())
        services[name] = ServiceIntent(route, draw(generations), weighted=route.is_split or draw(st.booleans()))
    return Intent(services, max((service.generation for service in services.values()), default=0))


def shares(intent: Intent) -> dict[str, tuple[int, int]]:
    """Generation and green's share of each service."""
    return {name: (each.generation, each.route.share(Color.GREEN)) for name, each in intent.services.items()}


@given(intents())
@searching(150)
def test_maps_tell_the_intent_that_they_were_made_of(intent: Intent) -> None:
    """Shares and generations; which color of a split is the live one, too."""
    read = Maps.of(intent).intent()
    assert read.generation == intent.generation
    assert shares(read) == shares(intent)
    assert {name: each.route for name, each in read.services.items()} == {
        name: each.route for name, each in intent.services.items()
    }
    assert Maps.of(read) == Maps.of(intent)


@given(names, routes(), generations, st.booleans())
@searching(100)
def test_pointer_files_tell_the_intent_that_they_were_made_of(
    name: str, route: Route, generation: int, weighted: bool
) -> None:
    """All of it."""
    intent = ServiceIntent(route, generation, weighted or route.is_split)
    with tempfile.TemporaryDirectory(prefix="lbs") as directory:
        for file, content in files_of(name, intent).items():
            (Path(directory) / file).write_bytes(content)
        assert read_service(Path(directory)) == intent


@given(routes(), colors, percents)
@searching(200)
def test_a_share_is_what_was_asked_for(route: Route, color: Color, percent: int) -> None:
    """Also at 0 and 100; the other color has the rest, and live moves only with all of the traffic."""
    after = route.with_share(color, percent)
    assert after.share(color) == percent
    assert after.share(color) + after.share(color.other) == 100
    assert after.live is route.live or not after.is_split
    assert after.share(after.live) > 0 or after.is_split
    gaining = after.gains_from(route)
    assert (gaining is None) == (after.share(Color.BLUE) == route.share(Color.BLUE))
    assert gaining is None or after.share(gaining) > route.share(gaining)
    assert after.with_share(color, percent) == after


milliseconds = st.integers(1, 366 * 86400 * 1000)


@given(milliseconds)
@searching(300)
def test_durations_are_read_as_they_are_written(length_ms: int) -> None:
    """The same number, not one near it."""
    seconds = length_ms / 1000
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(0, 10**6), st.sampled_from(["ms", "s", "m", "h"]))
@searching(100)
def test_a_duration_that_was_read_is_written_as_short_or_shorter(amount: int, unit: str) -> None:
    """`90000ms` becomes `90s`, and means the same."""
    text = f"{amount}{unit}"
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert parse_duration(format_duration(seconds)) == seconds
    assert len(format_duration(seconds)) <= len(text)


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 4), st.integers(1, 4))
@searching(200)
def test_a_state_changes_only_after_so_many_checks_in_a_row(results: list[bool], rise: int, fall: int) -> None:
    """Healthy right after `rise` passes, unhealthy right after `fall` failures, and else as before."""
    health = ServerHealth("a")
    for number, passed in enumerate(results, start=1):
        before, health = health, advance(health, CheckResult(passed, "x", 1.0), float(number), rise, fall)
        needed = rise if passed else fall
        told = results[max(0, number - needed) : number]
        is_told = len(told) == needed and all(each is passed for each in told)
        expected = HealthState.HEALTHY if passed else HealthState.UNHEALTHY
        assert health.state is (expected if is_told else before.state)
        assert (health.changed_at == float(number)) == (health.state is not before.state)
        assert health.checks == number


states = st.sampled_from(list(HealthState))
times = st.one_of(st.none(), st.floats(0, 2000))


@given(st.lists(st.tuples(states, times, st.booleans()), min_size=1, max_size=5), st.floats(0, 100), st.integers(1, 3))
@searching(200)
def test_leaving_servers_out_never_empties_a_pool(
    servers: list[tuple[HealthState, float | None, bool]], down_for_s: float, least: int
) -> None:
    """Nor takes a healthy one, nor one that nobody knows unless it was left out before."""
    found = tuple(ServerHealth(f"s{n}", state, changed_at=at) for n, (state, at, _) in enumerate(servers))
    keys = [ServerKey("shop", Color.BLUE, server.address) for server in found]
    before = frozenset(key for key, (_, _, was_out) in zip(keys, servers, strict=True) if was_out)
    pools = {Color.BLUE: PoolHealth(found, min(least, len(found)))}
    out = servers_to_eject("shop", pools, now=1000.0, down_for_s=down_for_s, ejected=before)
    assert len(out) < len(found)
    for key, server in zip(keys, found, strict=True):
        if key in out:
            assert server.state is HealthState.UNHEALTHY or (key in before and not server.is_healthy)
    assert out == servers_to_eject("shop", pools, now=1000.0, down_for_s=down_for_s, ejected=before)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=20), st.floats(0, 3), st.floats(0, 10))
@searching(200)
def test_edits_settle_but_not_forever(pauses: list[float], quiet_s: float, most_s: float) -> None:
    """Due after a quiet while, and never later than so long after the first touch."""
    edits, now = Debounce(), 100.0
    assert edits.due_at(quiet_s, most_s) is None
    for pause in pauses:
        now += pause
        edits = edits.touched(now)
    due = edits.due_at(quiet_s, most_s)
    assert due is not None
    first = 100.0 + pauses[0]
    assert due <= first + most_s
    assert due <= now + quiet_s
    assert due in (first + most_s, now + quiet_s)
