"""All checks together: at once, in bounded time, whatever one of them does; and what the command makes of it."""

import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbswitch.doctor.case import Case
from lbswitch.doctor.check import Check
from lbswitch.doctor.examine import examine
from lbswitch.doctor.finding import Finding, NotChecked, Severity, error, note, warning
from lbswitch.doctor.registry import CHECKS
from tests.cli.conftest import Run, run  # noqa: F401 - a fixture
from tests.doctor.desk import Desk

DOCS = Path(__file__).resolve().parents[2] / "docs" / "doctor.md"


def made(*runs: object) -> list[Check]:
    return [Check(f"check-{number}", "", Severity.ERROR, one) for number, one in enumerate(runs)]  # type: ignore[arg-type]


def quiet(case: Case) -> Iterator[Finding]:
    yield from ()


def noted(case: Case) -> Iterator[Finding]:
    yield note("a note", "nothing")


def warned(case: Case) -> Iterator[Finding]:
    yield warning("a warning", "do this", "shop")


def failed(case: Case) -> Iterator[Finding]:
    yield error("an error", "do that")


def unable(case: Case) -> Iterator[Finding]:
    yield warning("before", "do this")
    raise NotChecked("needs root")


def broken(case: Case) -> Iterator[Finding]:
    raise ZeroDivisionError("a mistake of ours")
    yield


def test_the_worst_is_the_exit_code(desk: Desk):
    for runs, worst in (
        ([quiet], 0), ([quiet, noted], 0), ([noted, warned], 1), ([warned, failed, noted], 2),
    ):  # fmt: skip
        assert int(examine(desk.case(), made(*runs)).worst) == worst


def test_the_worst_comes_first(desk: Desk):
    report = examine(desk.case(), made(noted, warned, failed))
    assert [finding.what for _, finding in report.findings] == ["an error", "a warning", "a note"]


def test_a_check_that_can_not_look_hides_nothing(desk: Desk):
    """What it found before counts, and others are not concerned."""
    report = examine(desk.case(), made(unable, broken, warned))
    assert [finding.what for _, finding in report.findings] == ["before", "a warning"]
    assert report.not_checked == {
        "needs root": ["check-0"],
        "ZeroDivisionError: a mistake of ours": ["check-1"],
    }


def test_a_check_that_hangs_is_left_behind(desk: Desk):
    """Others are reported in time."""
    release = threading.Event()

    def hanging(case: Case) -> Iterator[Finding]:
        release.wait(60)
        yield from ()

    report = examine(desk.case(), made(hanging, warned), patience_s=0.2)
    release.set()
    assert [finding.what for _, finding in report.findings] == ["a warning"]
    assert report.not_checked == {"it took longer than 0.2 s": ["check-0"]}


def test_what_several_checks_ask_is_looked_up_once(desk: Desk):
    """Also when it fails; and no two of them at once."""
    asked = []

    class Counting(Case):
        @property
        def probe(self) -> int:
            return int(self.look_up("probe", self._count))

        def _count(self) -> int:
            asked.append(1)
            raise NotChecked("no")

    def ask(case: Case) -> Iterator[Finding]:
        case.probe  # type: ignore[attr-defined]  # noqa: B018
        yield

    desk.case()
    case = Counting(desk.path, lambda: None, None, desk.host)  # type: ignore[arg-type,return-value]
    assert examine(case, made(*[ask] * 20)).not_checked == {"no": [f"check-{number}" for number in range(20)]}
    assert len(asked) == 1


def test_checks_of_the_other_balancer_are_not_made(desk: Desk):
    ids = {result.check.id for result in examine(desk.case(), CHECKS).results}
    assert "pointer-unreadable" in ids
    assert not ids & {"hard-stop-after", "include-missing"}


def test_every_check_has_a_name_of_its_own():
    names = [check.id for check in CHECKS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in names)


def test_every_check_is_documented():
    """docs/doctor.md has each in its table, with its severity and what it finds, in the same order."""
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \| (.+?) \| .+ \|$", DOCS.read_text(), re.MULTILINE)
    assert rows == [(check.id, str(check.worst), check.title) for check in CHECKS]


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LBSWITCH_")]:
        monkeypatch.delenv(name)


def test_the_command_reports_a_broken_configuration(run: Run, directory: Path):  # noqa: F811
    """Exit code 2, the problem with its line, and the rest in one line."""
    path = directory / "lbswitch.yaml"
    path.write_text("balancer: {kind: apache}\nservices: {}\n")
    ran = run("doctor", "--config", path)
    assert ran.code == 2
    assert "error config-invalid\n" in ran.out
    assert f"{path}:1: balancer.kind: is 'apache'" in ran.out
    assert "not checked: there is no valid configuration\n" in ran.out
    assert re.search(r"^\d+ errors.*: \d+ checks, \d+ could not be made$", ran.out, re.MULTILINE)


def test_the_command_prints_one_document(run: Run, desk: Desk):  # noqa: F811
    desk.case()
    ran = run("doctor", "--json", "--config", desk.path)
    document = json.loads(ran.out)
    assert ran.code == 2
    assert document["worst"] == "error"
    assert {"id", "severity", "service", "what", "mend"} == set(document["findings"][0])
    assert document["checks"] > 30


def test_the_command_knows_its_services(run: Run, desk: Desk):  # noqa: F811
    desk.case()
    ran = run("doctor", "--service", "nothing", "--config", desk.path)
    assert ran.code == 2
    assert "there is no service 'nothing'; known: shop" in ran.err
    assert run("doctor", "--service", "shop", "--config", desk.path).err == ""


def test_the_command_works_on_this_host_only(run: Run, desk: Desk):  # noqa: F811
    desk.case()
    assert run("doctor", "--url", "http://127.0.0.1:1", "--config", desk.path).code == 2


def test_the_same_of_many_services_is_said_in_short(run: Run, desk: Desk):  # noqa: F811
    """Three of them, and how many more; --json has all."""
    desk.shop["failover"] = {"enabled": False}
    for number in range(9):
        desk.document["services"][f"s{number}"] = {**desk.shop, "bind": f"127.0.0.1:{number + 1}"}
    desk.case()
    ran = run("doctor", "--config", desk.path)
    block = ran.out.partition("note no-failover\n")[2].partition("\nnote")[0]
    assert block.count("mend: ") == 3
    assert "  and 7 more (s3, s4, s5, s6, s7, ...); --json has all" in block
    found = json.loads(run("doctor", "--json", "--config", desk.path).out)["findings"]
    assert len([finding for finding in found if finding["id"] == "no-failover"]) == 10
