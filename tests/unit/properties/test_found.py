"""What the search has found, as stories: they are told every time, not only when chance has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lbswitch.core.model import Color, Kind, OperationState, Route
from tests.unit.properties.test_transaction import Transactions, Wish

BLUE, GREEN = Color.BLUE, Color.GREEN
TO_GREEN = Wish(Kind.SWITCH, ("shop",), GREEN)
TO_BLUE = Wish(Kind.SWITCH, ("shop",), BLUE)


@pytest.fixture
def desk() -> Iterator[Transactions]:
    desk = Transactions()
    desk.first_agent()
    yield desk
    desk.what_is_intended_is_stored_and_served()
    desk.the_journal_is_closed_and_the_history_tells_what_is_live()
    desk.teardown()


def route(desk: Transactions) -> Route | None:
    return desk.world.route("shop")


def test_a_switch_that_was_done_is_not_undone_by_the_late_return_of_an_earlier_one(desk: Transactions) -> None:
    """The first switch failed and so did its return; the second one is done before the return is tried again."""
    desk.ask_in_trouble(TO_GREEN, [(("commit", "fails"), 2, 0)], [TO_GREEN])
    assert route(desk) == Route(GREEN)
    desk.upkeep()
    assert route(desk) == Route(GREEN)


def test_what_a_failed_return_left_of_other_services_is_still_put_back(desk: Transactions) -> None:
    """A switch of one of them takes only that one out of it."""
    both = Wish(Kind.SWITCH, ("blog", "shop"), GREEN)
    desk.ask_in_trouble(both, [(("commit", "lies"), 1, 0), (("commit", "fails"), 1, 1)], [TO_GREEN])
    desk.upkeep()
    assert (route(desk), desk.world.route("blog")) == (Route(GREEN), Route(BLUE))


def test_an_end_that_is_written_late_does_not_overwrite_a_later_switch(desk: Transactions) -> None:
    """The disk was full when the first one ended, and had room for the second one."""
    desk.ask_in_trouble(TO_GREEN, [(("finish", "fails"), 2, 0)], [TO_GREEN])
    desk.upkeep()
    desk.what_is_intended_is_stored_and_served()
    desk.agent_dies_between([])
    assert route(desk) == Route(GREEN)


def test_an_agent_that_starts_does_not_go_back_to_before_an_operation_that_others_followed(desk: Transactions) -> None:
    """The first one was put back, its end was never written, and then the agent died."""
    desk.ask_in_trouble(TO_GREEN, [(("finish", "fails"), 2, 0)], [TO_GREEN])
    assert route(desk) == Route(GREEN)
    desk.agent_dies_between([])
    assert route(desk) == Route(GREEN)
    assert desk.store is not None
    first, second = reversed(desk.store.history(2))
    assert (first.state, second.state) == (OperationState.REVERTED, OperationState.DONE)
    assert "another operation has moved traffic to green since" in (first.error or "")
