"""How fast what is left is closed: evenly, all of it in time, and never all at once."""

from itertools import pairwise, product

import pytest

from lbswitch.core.config_text import parse
from lbswitch.core.drain import ceiling, closing_pause_s, counting_pause_s, excess
from lbswitch.core.model import Kind
from lbswitch.errors import ConfigError

TOTALS = (0, 1, 2, 3, 4, 5, 7, 10, 64, 99, 100, 1000, 12_345)
SPANS_S = (0.001, 0.5, 1.0, 3.0, 10.0, 90.0, 3600.0)
ALL = list(product(TOTALS, SPANS_S))


@pytest.mark.parametrize(("total", "over_s"), ALL)
def test_the_ceiling_sinks_evenly_to_nothing(total: int, over_s: float) -> None:
    """All may be open at the start, none at the end; in equal times it sinks by equal numbers, give or take one."""
    steps = 1000
    line = [ceiling(total, over_s * step / steps, over_s) for step in range(steps + 1)]
    assert (line[0], line[-1]) == (total, 0)
    drops = [before - after for before, after in pairwise(line)]
    assert min(drops) >= 0
    assert max(drops) - min(drops) <= 1
    assert ceiling(total, -1.0, over_s) == total
    assert ceiling(total, over_s * 1.5, over_s) == 0


@pytest.mark.parametrize(("total", "over_s"), ALL)
@pytest.mark.parametrize("ticks", [1, 3, 10, 97])
@pytest.mark.parametrize("ends", [0, 1])
def test_all_are_closed_and_never_all_at_once(total: int, over_s: float, ticks: int, ends: int) -> None:
    """However seldom somebody looks, and however many end by themselves between two looks."""
    still_open, closed, tick = total, [], 0
    while still_open and tick < 10 * ticks + total + 10:
        tick += 1
        still_open = max(0, still_open - ends)
        count = excess(total, still_open, over_s * tick / ticks, over_s)
        assert 0 <= count <= still_open
        closed.append(count)
        still_open -= count
    assert still_open == 0
    assert max(closed, default=0) <= max(1, -(-total // 4))
    assert tick <= ticks + 4 or total == 0


@pytest.mark.parametrize(("total", "over_s"), ALL)
def test_looked_at_often_it_stays_on_the_line(total: int, over_s: float) -> None:
    """Never more closed than is due, never fewer than is due."""
    still_open = total
    for tick in range(1, 401):
        elapsed_s = over_s * tick / 400
        still_open -= excess(total, still_open, elapsed_s, over_s)
        assert still_open == ceiling(total, elapsed_s, over_s)


def test_what_ends_by_itself_is_not_closed_in_addition() -> None:
    """Below the line nothing is closed."""
    assert excess(100, 49, 5.0, 10.0) == 0
    assert excess(100, 50, 5.0, 10.0) == 0
    assert excess(100, 51, 5.0, 10.0) == 1


@pytest.mark.parametrize("took_s", [0.0, 0.001, 0.05, 1.0, 60.0])
def test_it_is_counted_more_and_more_seldom_and_costs_little(took_s: float) -> None:
    """From a tenth of a second to a few; one percent of a core, or every 20 s."""
    pauses = [counting_pause_s(age_s, took_s) for age_s in (0.0, 0.5, 1.0, 5.0, 20.0, 60.0, 86400.0)]
    assert pauses == sorted(pauses)
    assert all(pause >= min(took_s * 100, 20.0) for pause in pauses)
    if took_s == 0:
        assert (pauses[0], pauses[-1]) == (0.1, 3.0)


@pytest.mark.parametrize(
    ("drain", "problem"),
    [
        ("{back: clos}", "services.shop.drain.back: is 'clos', which is none of wait, close"),
        ("{back: close, close_over: 0s}", "services.shop.drain.close_over: is '0s', which is shorter than 1ms"),
        ("{close_after: 5}", "services.shop.drain.close_after: is 5, which is not a duration"),
        ("{backward: close}", "services.shop.drain.backward: unknown key 'backward'"),
    ],
)
def test_a_wrong_policy_is_an_error_with_its_line(drain: str, problem: str) -> None:
    """As with every other key."""
    with pytest.raises(ConfigError) as raised:
        parse(CONFIG.format(drain=drain), "lbswitch.yaml")
    assert str(raised.value).startswith(f"lbswitch.yaml:7: {problem}")


def test_a_policy_for_each_direction() -> None:
    """Wait is the default; the way back is a rollback or a failover."""
    policy = parse(CONFIG.format(drain="{back: close, close_after: 2s}"), "x").services["shop"].drain
    assert {kind: policy.leftover(kind) for kind in Kind} == {
        Kind.SWITCH: "wait",
        Kind.WEIGHT: "wait",
        Kind.RESTORE: "wait",
        Kind.ROLLBACK: "close",
        Kind.FAILOVER: "close",
    }
    assert (policy.close_after, policy.close_over) == (2.0, 10.0)


CONFIG = """balancer: {{kind: nginx}}
services:
  shop:
    bind: 127.0.0.1:8080
    blue: {{servers: [127.0.0.1:9101]}}
    green: {{servers: [127.0.0.1:9102]}}
    drain: {drain}
"""


@pytest.mark.parametrize(("total", "over_s"), ALL)
def test_closing_is_looked_after_often_enough(total: int, over_s: float) -> None:
    """Ten times a second at most, once a second at least."""
    assert 0.1 <= closing_pause_s(total, over_s, 0.0) <= 1.0
    assert closing_pause_s(total, over_s, 0.05) >= 0.5
