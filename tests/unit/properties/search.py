"""How long the property-based tests search: the same cases every time, or more and other ones on request.

    LBSWITCH_TEST_EXAMPLES=100 .venv/bin/pytest tests/unit/properties

tries a hundred times as many, chosen anew in every run. A failure prints what to call for the same case again.
"""

import os

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("LBSWITCH_TEST_EXAMPLES", "1"))


def searching(examples: int, steps: int = 30) -> settings:
    """So many cases, of so many steps where it is a state machine."""
    return settings(
        max_examples=examples * TIMES,
        stateful_step_count=steps,
        derandomize=TIMES == 1,
        database=None,  # nothing is left in the tree
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
