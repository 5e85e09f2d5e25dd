"""What choosing a color costs each request: processor time of the workers, next to a plain proxy.

The plain proxy runs the very configuration that lbswitch rendered, without the lines that choose. Both take the same
load, so many requests a second, in turns; what is compared is what the kernel says that the workers have run.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psutil
from scripts.benchmark import cpu
from scripts.benchmark.bench import Bench
from scripts.benchmark.daemon import Daemon
from scripts.benchmark.systems.agents import HaproxyMap, Lbswitch, NginxPointer
from scripts.benchmark.systems.catalog import of_balancers
from scripts.benchmark.systems.system import Absent, Servers, other
from scripts.benchmark.traffic import Traffic
from scripts.benchmark.web import get
from tests.support.ports import free_port
from tests.support.wait import wait_until

from lbswitch.core import traffic_files

GROUP = "Cost of a request: CPU of the workers"
DIFFERENCE = "Cost of the choice: CPU of the workers, pairwise"
_RATE = 6000


class Proxy(NamedTuple):
    """A port, and the processes that serve it."""

    case: str
    port: int
    workers: Sequence[psutil.Process]


def run(bench: Bench) -> None:
    """Blue live and green live are measured both: a file that is there costs another way than one that is not."""
    for system in of_balancers((NginxPointer, HaproxyMap), bench.balancers):
        with bench.survive(f"cost: {system.name}"), bench.servers() as servers, ExitStack() as stack:
            _compare(bench, *_proxies(bench, stack, system, servers))


def _compare(bench: Bench, plain: Proxy, *choosing: Proxy) -> None:
    rounds, seconds = (4, 0.5) if bench.is_quick else (20, 0.8)
    taken: dict[str, list[float]] = {proxy.case: [] for proxy in (plain, *choosing)}
    for number in range(rounds):
        proxies = (plain, *choosing) if number % 2 else (*reversed(choosing), plain)
        for proxy in proxies:
            taken[proxy.case].append(us_per_request(proxy, seconds))
    for case, samples in taken.items():
        bench.record.add(GROUP, case, "us", samples, of=None if case == plain.case else plain.case)
    for proxy in choosing:
        pairs = zip(taken[proxy.case], taken[plain.case], strict=True)
        bench.record.add(DIFFERENCE, proxy.case, "us", [with_it - without for with_it, without in pairs])


def us_per_request(proxy: Proxy, seconds: float) -> float:
    """Kept-alive connections alone: opening connections costs much more, and varies more, than choosing."""
    with Traffic(proxy.port, rate=_RATE, new_share=0.0, streams=0, websockets=0) as traffic:
        time.sleep(0.2)
        answered, used = traffic.answered(), cpu.used_s(proxy.workers)
        time.sleep(seconds)
        used = cpu.used_s(proxy.workers) - used
        answered = traffic.answered() - answered
    return used * 1e6 / answered


def _proxies(bench: Bench, stack: ExitStack, system: type[Lbswitch], servers: Servers) -> Iterator[Proxy]:
    """The plain one, then one with blue live and one with green live; their agents have ended."""
    with bench.running(system, servers) as rendered:
        text = rendered.agent.lbswitch("render").output
        source = rendered.port
    plain = _PLAIN[system](bench.place.directory(), text, source, servers, stack)
    yield plain
    for color in ("blue",) if bench.is_quick else ("blue", "green"):
        running = stack.enter_context(bench.running(system, servers))
        if running.live != color:
            running.switch(other(running.live))
        running.agent.kill()
        end_lease(running.agent.state_dir)
        yield Proxy(f"{system.name}, {color} live", running.port, running.workers())


def end_lease(state_dir: Path) -> None:
    """As time does it within half a minute: without an agent nginx does not log requests."""
    shutil.rmtree(state_dir / traffic_files.LEASE, ignore_errors=True)


def _plain_nginx(directory: Path, text: str, source: int, servers: Servers, stack: ExitStack) -> Proxy:
    """The rendered configuration without its `if (-f ...)`."""
    text, found = without_choice_of_nginx(text)
    if found != 1:
        raise Absent(f"the rendered configuration has {found} tests of the pointer, not 1")
    return nginx_of("nginx, plain", directory, text, source, servers, stack)


def nginx_of(case: str, directory: Path, text: str, source: int, servers: Servers, stack: ExitStack) -> Proxy:
    """An nginx of a rendered configuration for port `source`, on a port of its own. It logs into `directory`."""
    port = free_port()
    text = text.replace(f"127.0.0.1:{source}", f"127.0.0.1:{port}")
    (directory / "tmp").mkdir()
    path = directory / "nginx.conf"
    path.write_text(f"daemon off;\n{text}")
    program = NginxPointer(servers, directory).binary()
    daemon = Daemon([program, "-p", str(directory), "-e", "error.log", "-c", str(path)], directory)
    return _serving(case, port, daemon, stack)


def without_choice_of_nginx(text: str) -> tuple[str, int]:
    """A rendered configuration without its tests of the pointer, and how many those were."""
    return re.subn(r"\n *if \(-f [^)]*/green\) \{[^}]*\}", "", text)


def _plain_haproxy(directory: Path, text: str, source: int, servers: Servers, stack: ExitStack) -> Proxy:
    """The rendered configuration without the lines that look a color up; the maps stay, empty, for what asks them."""
    port = free_port()
    lines = [line for line in text.splitlines() if not _chooses(line)]
    text = "\n".join(lines) + "\n"
    for old in set(re.findall(r"/\S+?/haproxy/(?=\w+\.(?:map|sock))", text)):
        text = text.replace(old, f"{directory}/")
    for name in ("live.map", "weights.map"):
        (directory / name).touch()
    path = directory / "haproxy.cfg"
    path.write_text(text.replace(f"127.0.0.1:{source}", f"127.0.0.1:{port}"))
    program = HaproxyMap(servers, directory).binary()
    daemon = Daemon([program, "-W", "-f", str(path)], directory)
    return _serving("HAProxy, plain", port, daemon, stack)


def _chooses(line: str) -> bool:
    """Lines of a frontend that choose by map; what is left is `default_backend`."""
    words = line.split()
    if words[:1] == ["use_backend"]:
        return True
    return words[:1] == ["http-request"] and len(words) > 1 and words[1].startswith(_CHOOSING)


_CHOOSING = ("set-var(txn.lbswitch_color)", "set-var(txn.lbswitch_weight)", "set-var(txn.lbswitch_bucket)")
_PLAIN = {NginxPointer: _plain_nginx, HaproxyMap: _plain_haproxy}


def _serving(case: str, port: int, daemon: Daemon, stack: ExitStack) -> Proxy:
    stack.callback(daemon.stop)
    wait_until(lambda: get(f"127.0.0.1:{port}").color == "blue", f"{case} serves blue", 10)
    return Proxy(case, port, daemon.children())
