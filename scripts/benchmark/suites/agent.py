"""What the agent costs its machine: at rest, under load, with many servers to check, and until it is ready."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psutil
from scripts.benchmark import cpu, services, timing
from scripts.benchmark.bench import Bench
from scripts.benchmark.traffic import Traffic
from scripts.benchmark.web import UnixClient
from tests.support.agent import Agent

CPU = "Agent: CPU"
MEMORY = "Agent: memory"
PER_CHECK = "Agent: CPU for each check"
_SETTLE_S = 1.0  # what a start leaves to do is not rest
_US = 1e4  # in a second, of a percent
READY = "Agent: until ready, balancer started"
CHECK = "lbswitch check"


def run(bench: Bench) -> None:
    for balancer in bench.balancers:
        with bench.survive(f"agent at work: {balancer}"):
            _at_work(bench, balancer)
        for count in (200,) if bench.is_quick else (10, 100, 200, 1000):
            with bench.survive(f"agent: {balancer}, {count} servers"):
                _checking(bench, balancer, count)
        for count in (100,) if bench.is_quick else (1, 1000):
            with bench.survive(f"agent: {balancer}, {count} services"):
                _until_ready(bench, balancer, count)


def at_rest(balancer: str, count: int) -> str:
    """What tables call an agent that checks so many servers and does nothing else."""
    return f"{balancer}, {count} servers at 1 s"


def _at_work(bench: Bench, balancer: str) -> None:
    """Twenty servers: at rest, then while clients send requests, then with a switch every second as well."""
    with bench.servers() as servers, services.crowd(18) as others:
        config = services.wide(balancer, [servers.blue, *others, servers.green])
        with services.agent(bench, config) as agent:
            _record(bench, at_rest(balancer, 20), *_windows(bench, agent))
            with Traffic(services.port_of(config), new_share=0.1, streams=0, websockets=0):
                _record(bench, f"{balancer}, 20 servers, 4,000 requests/s", *_windows(bench, agent))
                switching = _windows(bench, agent, is_switching=True)
                _record(bench, f"{balancer}, 20 servers, 4,000 requests/s, a switch a second", *switching)


def _checking(bench: Bench, balancer: str, count: int) -> None:
    with services.crowd(count) as addresses, services.agent(bench, services.wide(balancer, addresses)) as agent:
        shares, memory = _windows(bench, agent)
    _record(bench, at_rest(balancer, count), shares, memory)
    bench.record.add(PER_CHECK, at_rest(balancer, count), "us", [share / count * _US for share in shares])


def _windows(bench: Bench, agent: Agent, *, is_switching: bool = False) -> tuple[Sequence[float], Sequence[float]]:
    """CPU in percent of a core, and memory in MiB, of a few windows of time."""
    count, seconds = (1, 2.0) if bench.is_quick else (4, 4.0)
    process, client = psutil.Process(agent.pid), UnixClient(agent.socket)
    shares, memory = [], []
    time.sleep(_SETTLE_S)
    for _ in range(count):
        began, used = time.monotonic(), cpu.with_children_s(process)
        _pass(seconds, client if is_switching else None)
        shares.append((cpu.with_children_s(process) - used) / (time.monotonic() - began) * 100)
        memory.append(process.memory_info().rss / 2**20)
    client.close()
    return shares, memory


def _pass(seconds: float, client: UnixClient | None) -> None:
    """Let time go by; with a client, switch every second."""
    if client is None:
        time.sleep(seconds)
        return
    for number in range(round(seconds)):
        to = "green" if number % 2 == 0 else "blue"
        answer = client.request("POST", "/v1/services/s0/switch", {"to": to})
        if answer.status != 200:
            raise RuntimeError(f"the switch to {to} was answered with {answer.status}: {answer.document}")
        time.sleep(max(0.0, 1.0 - answer.took_ms / 1000))


def _record(bench: Bench, case: str, shares: Sequence[float], memory: Sequence[float]) -> None:
    bench.record.add(CPU, case, "% of a core", shares)
    bench.record.add(MEMORY, case, "MiB", memory)


def _until_ready(bench: Bench, balancer: str, count: int) -> None:
    """From nothing: the state directory is empty, and the balancer is started."""
    ready, checked, memory = [], [], []
    with bench.servers() as servers:
        for _ in range(1 if bench.is_quick else 3):
            config = services.many(balancer, count, servers)
            with services.agent(bench, config, is_started=False) as agent:
                check = timing.command([*agent.argv, "check"], agent.env, timeout_s=120)
                checked.append(timing.timed_ms(check))
                ready.append(timing.timed_ms(lambda agent=agent: agent.start(timeout_s=120)))  # type: ignore[misc]
                memory.append(psutil.Process(agent.pid).memory_info().rss / 2**20)
    case = f"{balancer}, {count} service{'s' if count > 1 else ''}"
    bench.record.add(CHECK, case, "ms", checked)
    bench.record.add(READY, case, "ms", ready)
    bench.record.add(MEMORY, f"{case}, when ready", "MiB", memory)
