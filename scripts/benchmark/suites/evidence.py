"""What it costs to know how requests fare: lines that are counted in a second, and processor time of the workers."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from scripts.benchmark.bench import Bench
from scripts.benchmark.suites.cost import Proxy, nginx_of, us_per_request
from scripts.benchmark.systems.agents import NginxPointer

from lbswitch.core import traffic_files
from lbswitch.core.config import Config
from lbswitch.traffic.lease import Lease
from lbswitch.traffic.nginx import NginxTraffic, log_path

LINES = "Log lines counted in a second of one core"
NAIVE = "each line split, in Python"
COUNTED = "nginx: as the agent reads them"
FAILING = "nginx: every second line a failure or a POST"
COST = "Cost of the log: CPU of the workers"
OFF, UNREAD, READ = "nginx, without the log", "nginx, no agent", "nginx, an agent reads"


def run(bench: Bench) -> None:
    """The figures of one balancer do not depend on the other."""
    with bench.survive("lines of the log"):
        _count_lines(bench)
    if "nginx" in bench.balancers:
        with bench.survive("cost of the log"):
            _compare(bench)


# -- lines that are counted ------------------------------------------------------------------------------------------


def _count_lines(bench: Bench) -> None:
    count = 40_000 if bench.is_quick else 200_000
    usual, failing = (b"".join(_lines(count, share)) for share in (0.02, 0.5))
    directory = bench.place.directory()
    (directory / "plain.log").write_bytes(usual)
    calls: dict[str, Callable[[], int]] = {
        NAIVE: lambda: _naively(directory / "plain.log"),
        COUNTED: lambda: _as_the_agent(directory, usual),
        FAILING: lambda: _as_the_agent(directory, failing),
    }
    samples: dict[str, list[float]] = {case: [] for case in calls}
    for _ in range(3 if bench.is_quick else 15):
        for case, call in calls.items():
            began = time.process_time()
            counted = call()
            samples[case].append(counted / (time.process_time() - began))
            if counted != count:
                raise RuntimeError(f"{case}: {counted} of {count} lines were counted")
    for case, taken in samples.items():
        bench.record.add(LINES, case, "lines/s", taken, of=None if case == NAIVE else NAIVE)


def _lines(count: int, special: float) -> Iterator[bytes]:
    """Of a service with three servers a color; this share of them POST, 500 or tried on a second server."""
    dice = random.Random(1)
    for number in range(count):
        server, ms = f"10.0.0.{dice.randrange(1, 4)}:8080", min(dice.lognormvariate(2.5, 1), 9000) / 1000
        times, status, method = f"{ms:.3f}", "200", "GET"
        answers = status
        if dice.random() < special:
            kind = dice.randrange(3)
            method = "POST" if kind == 0 else "GET"
            status = answers = "500" if kind == 1 else "200"
            if kind == 2:
                server, answers, times = f"{server}, 10.0.0.9:8080", "502, 200", f"-, {times}"
        at, request_id = f"{1_700_000_000 + number / 10_000:.3f}", "-" if method == "GET" else f"{number:032x}"
        start = "\t".join(("shop_green", server, answers, status, method))
        yield f"{start}\t\t{times}\t\t{at}\t{times}\t431\t{request_id}\t/products/{number % 977}/reviews\n".encode()


def _as_the_agent(directory: Path, data: bytes) -> int:
    """The lines that were counted, from a file that grew by all of them."""
    colors = {color: {"servers": [f"10.0.0.{number}:8080"]} for number, color in enumerate(("blue", "green"), 1)}
    document = {
        "agent": {"state_dir": str(directory)},
        "balancer": {"kind": "nginx"},
        "services": {"shop": {"bind": "127.0.0.1:80", **colors}},
    }
    config = Config.model_validate(document)
    reader = NginxTraffic(config)
    reader.start()
    with log_path(config).open("ab") as log:
        log.write(data)
    counted = 0
    while more := sum(batch.requests for batch in reader.read().batches.values()):
        counted += more
    reader.close()
    return counted


def _naively(path: Path) -> int:
    """As one would write it first; it sorts by status and keeps latencies in a list."""
    statuses: Counter[tuple[str, str]] = Counter()
    latencies: list[float] = []
    with path.open() as log:
        for line in log:
            pool, _, _, status, method, _, header, _, _at, *_ = line.rstrip("\n").split("\t")
            statuses[pool, status] += 1
            if method:
                latencies.append(float(header.rpartition(" ")[2]))
    return statuses.total()


# -- what it costs the workers ---------------------------------------------------------------------------------------


def _compare(bench: Bench) -> None:
    rounds, seconds = (4, 0.5) if bench.is_quick else (20, 0.8)
    taken: dict[str, list[float]] = {OFF: [], UNREAD: [], READ: []}
    directory = bench.place.directory()
    lease = Lease(directory / "lease")
    with ExitStack() as stack:
        proxies = _proxies(bench, stack, directory)
        for number in range(rounds):
            for proxy in proxies if number % 2 else reversed(proxies):
                lease.renew(time.time())
                taken[proxy.case].append(us_per_request(proxy, seconds))
                (directory / traffic_files.MANAGED_LOG).write_bytes(b"")
    for case, samples in taken.items():
        bench.record.add(COST, case, "us", samples, of=None if case == OFF else OFF)


def _proxies(bench: Bench, stack: ExitStack, directory: Path) -> list[Proxy]:
    """Three of what is rendered for the same service: as it is with and without a lease, and without the log."""
    servers = stack.enter_context(bench.servers())
    with bench.running(NginxPointer, servers) as rendered:
        text, source = rendered.agent.lbswitch("render").output, rendered.port
        old = str(rendered.agent.state_dir / traffic_files.LEASE)
    texts = {
        OFF: _without_log(text),
        UNREAD: text.replace(old, f"{directory}/nobody"),
        READ: text.replace(old, f"{directory}/lease"),
    }
    places = {OFF: bench.place.directory(), UNREAD: bench.place.directory(), READ: directory}
    return [nginx_of(case, places[case], texts[case], source, servers, stack) for case in texts]


def _without_log(text: str) -> str:
    """A rendered configuration whose requests are not logged, and whose lease is not looked for."""
    text, tests = re.subn(r"\n *if \(-f \$lbswitch_lease\) \{[^}]*\}", "", text)
    text, logs = re.subn(r"\n *access_log traffic\.log [^;]*;", "\n    access_log off;", text)
    if (tests, logs) != (1, 1):
        raise RuntimeError(
            f"the rendered configuration has {tests} tests of the lease and {logs} logs, not one of each"
        )
    return text
