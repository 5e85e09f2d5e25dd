"""What nginx logs is counted for the color that it is about."""

from collections import Counter
from dataclasses import dataclass

import pytest

from lbswitch.core.evidence import Batch, Failure
from lbswitch.core.model import Color, PoolKey
from lbswitch.traffic.counting import MOST_LISTED
from lbswitch.traffic.nginx import Lines, Pools
from tests.traffic.nginx_lines import AT, BLUE_1, GREEN_1, GREEN_2, config, line, lines

BLUE, GREEN = PoolKey("shop", Color.BLUE), PoolKey("shop", Color.GREEN)
NOW = AT + 0.1


def count(*each: bytes, **services):
    return Lines(Pools.of(config(**services))).count(lines(*each), NOW)


@dataclass(frozen=True)
class Seen:
    """What matters of a batch."""

    requests: int
    failures: dict[Failure, int]
    statuses: dict[int, int]

    @classmethod
    def of(cls, batch: Batch) -> "Seen":
        return cls(batch.requests, dict(batch.failures), dict(batch.statuses))


def seen(*each: bytes, **services) -> dict[PoolKey, Seen]:
    return {pool: Seen.of(batch) for pool, batch in count(*each, **services).batches.items()}


def test_answers_by_color():
    """Requests, statuses and latencies, each for its own color."""
    reading = count(line(), line(header="0.010"), line("shop_blue", BLUE_1, "404", 404, header="0.000"))
    assert reading.at == NOW
    green, blue = reading.batches[GREEN], reading.batches[BLUE]
    assert Seen.of(green) == Seen(2, {}, {200: 2})
    assert green.latency.quantile(1) == pytest.approx(10, rel=0.02)
    assert Seen.of(blue) == Seen(1, {}, {404: 1})
    assert blue.latency.quantile(1) == pytest.approx(0.5, rel=0.02)
    assert (green.streak, green.unbroken) == (0, False)
    assert (reading.lost, reading.unlisted, reading.requests) == (0, 0, ())


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        (line(statuses="500", status=500), Failure.STATUS),
        (line(statuses="502", status=502), Failure.STATUS),
        (line(statuses="503", status=200), Failure.STATUS),  # an error_page of the owner's
        (line(statuses="502", status=502, header="-", sent="0"), Failure.CONNECT),
        (line(servers="shop_green", statuses="502", status=502, header="-", sent="-"), Failure.CONNECT),
        (line(statuses="502", status=502, header="-", sent="99"), Failure.CLOSED),
        (line(statuses="504", status=504, header="-", sent="99", took="1.000"), Failure.TIMEOUT),
        (line(statuses="504", status=504), Failure.STATUS),
    ],
)
def test_kinds_of_failures(said: bytes, failure: Failure):
    """A status of the server's own is told from one that nginx gives because there was no answer."""
    reading = count(said)
    batch = reading.batches[GREEN]
    assert (batch.requests, batch.failures) == (1, Counter({failure: 1}))
    assert (batch.first_failure_at, batch.last_failure_at, batch.streak, batch.unbroken) == (AT, AT, 1, True)
    assert [(one.color, one.failure, one.path) for one in reading.requests] == [(Color.GREEN, failure, "/a")]


def test_a_timeout_is_as_slow_as_it_lasted():
    """Else a color that hangs would look quick."""
    hung = line(statuses="504", status=504, header="-", took="2.000")
    assert count(hung).batches[GREEN].latency.quantile(0.5) == pytest.approx(2000, rel=0.02)
    refused = line(statuses="502", status=502, header="-", took="0.000", sent="0")
    assert count(refused).batches[GREEN].latency.count == 0


@pytest.mark.parametrize("said", [line(statuses="-", status=499, header="-", took="3.000"), line(status=499)])
def test_clients_that_go_away_are_no_failure(said: bytes):
    """They count as requests, and break no streak."""
    bad = line(statuses="500", status=500)
    batch = count(bad, said, bad, said).batches[GREEN]
    assert (batch.requests, batch.failures, batch.streak) == (4, Counter({Failure.STATUS: 2}), 2)
    assert count(said).batches[GREEN].unbroken


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (  # the shield
            line("shop_green_shielded", f"{GREEN_1}, {BLUE_1}", "500, 200", 200, "0.001, 0.003", took="0.001, 0.003"),
            {GREEN: Seen(1, {Failure.REPLAY: 1}, {500: 1}), BLUE: Seen(1, {}, {200: 1})},
        ),
        (
            line("shop_green_shielded", f"{GREEN_1}, {GREEN_2}, {BLUE_1}", "502, 504, 200", 200, "-, -, 0.003"),
            {GREEN: Seen(1, {Failure.REPLAY: 1}, {504: 1}), BLUE: Seen(1, {}, {200: 1})},
        ),
        (
            line("shop_green_shielded", f"{GREEN_1}, {BLUE_1}", "502, 502", 502, "-, -", sent="0, 0"),
            {GREEN: Seen(1, {Failure.REPLAY: 1}, {502: 1}), BLUE: Seen(1, {Failure.CONNECT: 1}, {502: 1})},
        ),
        (  # another server of the same color: one request
            line(servers=f"{GREEN_1}, {GREEN_2}", statuses="502, 200", header="-, 0.002", sent="0, 99"),
            {GREEN: Seen(1, {Failure.REPLAY: 1}, {200: 1})},
        ),
        (
            line(servers=f"{GREEN_1}, {GREEN_2}", statuses="502, 504", status=504, header="-, -", sent="0, 99"),
            {GREEN: Seen(1, {Failure.TIMEOUT: 1}, {504: 1})},
        ),
        (
            line(servers=f"{GREEN_1} : {GREEN_2}", statuses="502 : 200", header="- : 0.002", sent="0 : 99"),
            {GREEN: Seen(1, {Failure.REPLAY: 1}, {200: 1})},
        ),
    ],
)
def test_several_servers(said: bytes, expected: dict[PoolKey, Seen]):
    """What failed first is a failure of its color, whoever answered in the end."""
    assert seen(said) == expected


def test_replays_are_listed():
    """With the status that was not passed on."""
    said = line("shop_green_shielded", f"{GREEN_1}, {BLUE_1}", "503, 200", 200, "0.001, 0.003", path="/cart")
    (request,) = count(said).requests
    assert (request.color, request.status, request.failure, request.ms) == (Color.GREEN, 503, Failure.REPLAY, 1.0)


def test_streaks():
    """Failures in a row at the end, by color, whatever the other color does."""
    bad, other = line(statuses="500", status=500), line("shop_blue", BLUE_1)
    batches = count(bad, line(), bad, other, bad).batches
    assert (batches[GREEN].streak, batches[GREEN].unbroken) == (2, False)
    assert (batches[BLUE].streak, batches[BLUE].unbroken) == (0, False)
    batches = count(bad, other, bad).batches
    assert (batches[GREEN].streak, batches[GREEN].unbroken) == (2, True)
    assert count(bad, line()).batches[GREEN].streak == 0


def test_what_is_nobodys():
    """Requests that nginx answered alone, and pools that are not ours, count for nobody and are not lost."""
    reading = count(line(servers="-", statuses="-", status=400, header="-"), line("owners", "10.0.0.1:80"))
    assert (reading.batches, reading.lost) == ({}, 0)


def test_names_are_learned():
    """nginx tells addresses. Those of servers listed by name are known from when only their color was asked."""
    named = {"blue": {"servers": ["blue.example:80"]}, "green": {"servers": ["green.example:80"]}}
    reader = Lines(Pools.of(config(shop=named)))
    reader.count(lines(line("shop_blue", "10.0.0.1:80")), NOW)
    shielded = line("shop_green_shielded", "10.0.0.2:80, 10.0.0.1:80", "500, 200", 200, "0.001, 0.001")
    assert set(reader.count(lines(shielded), NOW).batches) == {GREEN, BLUE}


def test_services_whose_names_are_alike():
    """`shop` and `shop_green` are two services."""
    found = seen(line("shop_green_blue"), line("shop_green"), shop={}, shop_green={})
    assert found.keys() == {PoolKey("shop_green", Color.BLUE), GREEN}


def test_garbage_is_lost_and_nothing_else():
    """Torn lines, binary, huge ones, nonsense where numbers belong: each counts as lost, the rest is read."""
    bad = [
        *(line()[:size] for size in (1, 12, 30, 45)),
        b"\x00" * 100,
        b"\xff\xfe\t\t\t\t\t",
        b"x" * 100_000,
        line(header="0.0.2"),
        line(header="-0.1"),
        line(header="nan"),
        line(status="2x0"),  # type: ignore[arg-type]
        line(servers=f"{GREEN_1}, {GREEN_2}"),
    ]
    reading = count(line(), *bad, line())
    assert reading.batches[GREEN].requests == 2
    assert reading.lost == len(bad)


def test_what_clients_may_have_changed_is_listed():
    """POST and PATCH, with the id they came with; not GET, nor what may be sent twice."""
    methods = ("GET", "PUT", "DELETE", "POST", "PATCH", "LOCK")
    reading = count(*(line(method=method, id=f"id-{method}", path="/pay") for method in methods))
    listed = [(one.method, one.request_id, one.path, one.failure, one.ms) for one in reading.requests]
    assert listed == [(method, f"id-{method}", "/pay", None, 2.0) for method in ("POST", "PATCH", "LOCK")]
    assert {one.at for one in reading.requests} == {AT}


def test_lists_are_bounded():
    """A reading names so many; the rest is counted."""
    reading = count(*[line(statuses="500", status=500)] * (MOST_LISTED + 5))
    assert (len(reading.requests), reading.unlisted) == (MOST_LISTED, 5)
    assert reading.batches[GREEN].failures[Failure.STATUS] == MOST_LISTED + 5


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ("/caf\\xC3\\xA9", "/café"),
        ("/a\\x22b", '/a"b'),
        ("/\\x1B[2J", "/\\x1B[2J"),
        ("/\\xC2\\x85\\xE2\\x80\\xAE", "/\\x85\\u202e"),
        ("/\\xFF", "/\\xff"),
        ("/" + "a" * 600, "/" + "a" * 499),
    ],
)
def test_paths_are_fit_to_be_shown(said: str, path: str):
    """Nothing that a client sent reaches a terminal as control characters."""
    assert count(line(statuses="500", status=500, path=said)).requests[0].path == path


def test_a_backlog_counts_when_it_happened():
    """Lines that lay there while the agent was frozen are not news."""
    reader = Lines(Pools.of(config()))
    assert reader.count(lines(line(at=AT), line(at=AT + 1)), AT + 20).at == AT + 1
    assert reader.count(b"", AT + 20).at == AT + 20
    assert reader.count(lines(line(at=AT + 19.9)), AT + 20).at == AT + 20


def test_another_configuration():
    """Services that come are counted from then on, those that go no more."""
    reader = Lines(Pools.of(config(shop={})))
    assert reader.count(lines(line("cart_blue")), NOW).batches == {}
    reader.pools = Pools.of(config(cart={}))
    assert set(reader.count(lines(line("cart_blue"), line()), NOW).batches) == {PoolKey("cart", Color.BLUE)}
