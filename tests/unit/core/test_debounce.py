"""When edits have settled."""

import pytest

from lbswitch.core.debounce import Debounce


def test_nothing_edited_is_never_due() -> None:
    assert Debounce().due_at(0.25, 2.0) is None


def test_one_edit_is_due_after_the_quiet_time() -> None:
    assert Debounce().touched(10.0).due_at(0.25, 2.0) == 10.25


def test_every_further_edit_puts_it_off() -> None:
    assert Debounce().touched(10.0).touched(10.2).touched(10.4).due_at(0.25, 2.0) == 10.65


def test_edits_without_end_put_it_off_no_longer_than_the_longest_time() -> None:
    """Counted from the first of them."""
    debounce = Debounce()
    for number in range(100):
        debounce = debounce.touched(10.0 + number / 10)
    assert debounce.due_at(0.25, 2.0) == 12.0


@pytest.mark.parametrize(("quiet", "most", "due"), [(0.0, 0.0, 10.0), (2.0, 2.0, 12.0), (1.0, 5.0, 12.5)])
def test_the_times_are_those_that_hold_now(quiet: float, most: float, due: float) -> None:
    """A configuration that changes them counts for edits that wait already."""
    assert Debounce(10.0, 11.5).due_at(quiet, most) == due
