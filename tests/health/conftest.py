"""Health checks leave no process behind."""

from collections.abc import Callable

import pytest

from tests.support.children import child_pids


@pytest.fixture
def new_children() -> Callable[[], frozenset[int]]:
    """The pids of children that came since the test began."""
    before = child_pids()
    return lambda: child_pids() - before
