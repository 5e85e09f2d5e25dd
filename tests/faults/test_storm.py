"""SIGKILL of the agent every second under load, while switches are asked for without a pause."""

import pytest

from tests.faults.shim import compiler
from tests.faults.site import program
from tests.faults.storm import storm


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_nothing_is_lost(kind: str) -> None:
    """Ten seconds: no request is lost, many switches are done, and all agrees at the end."""
    if program(kind) is None or compiler() is None:
        pytest.skip("needs the balancer and a C compiler")
    outcome = storm(kind, 10.0)
    print(outcome)
    assert outcome.is_well, str(outcome)
    assert outcome.kills > 1
    assert outcome.states.get("done", 0) > 10, str(outcome)
    assert all(report.answered > 500 for report in outcome.loads.values()), str(outcome)
