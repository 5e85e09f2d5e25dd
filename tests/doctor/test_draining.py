"""What the doctor says of connections that can't be closed, and of workers that stay."""

import pytest

from lbswitch.doctor.case import Case
from lbswitch.doctor.fact import fact
from lbswitch.ports import Balancer, OldWorker
from tests.doctor.desk import Desk, severities
from tests.unit.fakes import FakeBalancer

WHY = "this user may not touch the sockets of process 7: give it CAP_SYS_PTRACE"


class CaseOf(Case):
    """With this balancer, which runs."""

    fake = FakeBalancer()

    @fact
    def balancer(self) -> Balancer:
        return self.fake

    @fact
    def is_running(self) -> bool:
        return True


def look(desk: Desk, balancer: FakeBalancer) -> Case:
    desk.case()
    case = CaseOf(desk.path, lambda: None, None, desk.host)  # type: ignore[arg-type,return-value]
    case.fake = balancer
    case._client = desk.look()._client
    return case


def test_a_policy_that_cant_be_kept(desk: Desk) -> None:
    """Named with the directions, the reason, and both mends; silent where nothing is to be closed."""
    balancer = FakeBalancer()
    balancer.draining.no_closing = WHY
    assert desk.found("cannot-close", look(desk, balancer)) == []
    desk.shop["drain"] = {"back": "close"}
    (found,) = desk.found("cannot-close", look(desk, balancer))
    assert found.what == (
        "shop: drain says close (back), but connections can't be closed: "
        "this user may not touch the sockets of process 7"
    )
    assert found.mend == "give it CAP_SYS_PTRACE; or services.shop.drain.back: wait"
    balancer.draining.no_closing = None
    assert desk.found("cannot-close", look(desk, balancer)) == []


def test_what_the_agent_may_do_counts(desk: Desk) -> None:
    """Not what this user may."""
    balancer = FakeBalancer()
    desk.shop["drain"] = {"back": "close", "forward": "close"}
    desk.answer = desk.healthy()
    desk.answer["agent"]["balancer"] = {"why_not_closed": WHY}
    (found,) = desk.found("cannot-close", look(desk, balancer))
    assert found.mend.endswith("or services.shop.drain.forward: wait and services.shop.drain.back: wait")
    desk.answer["agent"]["balancer"]["why_not_closed"] = None
    balancer.draining.no_closing = WHY
    assert desk.found("cannot-close", look(desk, balancer)) == []
    del desk.answer["agent"]["balancer"]
    assert desk.found("cannot-close", look(desk, balancer)) == []


@pytest.mark.parametrize(
    ("count", "age_s", "managed", "severity"),
    [
        (0, 0.0, True, []),
        (3, 60.0, True, []),
        (3, 7200.0, True, ["note"]),
        (31, 60.0, True, []),
        (32, 60.0, True, ["warning"]),  # 16 reloads with two workers each
        (8, 60.0, False, []),
        (9, 60.0, False, ["warning"]),
    ],
)
@pytest.mark.parametrize("has_agent", [True, False])
def test_workers_that_stay(
    desk: Desk, count: int, age_s: float, managed: bool, severity: list[str], has_agent: bool
) -> None:
    """How many, the oldest with its age and what it holds."""
    if not managed:
        output = str(desk.directory / "output")
        desk.document["balancer"] |= {"managed": False, "config": "/etc/nginx/nginx.conf", "output_dir": output}
    workers = [OldWorker(100 + number, age_s - number, None if number else 4) for number in range(count)]
    balancer = FakeBalancer()
    if has_agent:
        desk.answer = desk.healthy()
        lingering = [{"pid": one.pid, "age_s": one.age_s, "connections": one.connections} for one in workers]
        desk.answer["agent"]["balancer"] = {"lingering": lingering}
    else:
        balancer.draining.old = tuple(workers)
    found = desk.found("old-workers", look(desk, balancer))
    assert severities(found) == severity
    if found:
        assert f"{count} nginx workers from before reloads still run; the oldest, pid 100, " in found[0].what
        assert f"for {age_s / 60:.0f} min, with 4 connections" in found[0].what
