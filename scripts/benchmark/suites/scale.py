"""What a switch costs the more services there are: one of them over the API, then all of them at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from scripts.benchmark import services
from scripts.benchmark.bench import Bench
from scripts.benchmark.systems.agents import WAYS
from scripts.benchmark.systems.system import Servers
from scripts.benchmark.web import UnixClient

GROUP = "Scale: "
STEPS = ("gates", "render", "commit", "verify", "total")


def run(bench: Bench) -> None:
    counts = (1, 100) if bench.is_quick else (1, 10, 100, 1000)
    with bench.servers() as servers:
        for balancer in bench.balancers:
            for count in counts:
                with bench.survive(f"scale: {balancer}, {count} services"):
                    _switch_among(bench, balancer, count, servers)
            if not bench.is_quick:
                with bench.survive(f"scale: {balancer}, reload"):
                    _switch_by_reload(bench, balancer, servers)


def case_one(balancer: str, count: int) -> str:
    """What tables call the switch of one service of so many."""
    return f"{balancer} {WAYS[balancer]}: switch 1 of {count}"


def _switch_among(bench: Bench, balancer: str, count: int, servers: Servers) -> None:
    """The first two of each are not counted: what is loaded on first use is loaded then."""
    with services.agent(bench, services.many(balancer, count, servers)) as agent:
        client = UnixClient(agent.socket, timeout_s=60)
        one = [_switch(client, "/v1/services/s0/switch", to) for to in _alternately(6 if bench.is_quick else 32)]
        _record(bench, case_one(balancer, count), one[2:], of=case_one(balancer, 1) if count > 1 else None)
        if count > 1:
            rounds = 2 if bench.is_quick else 10
            everything = [_switch(client, "/v1/switch", to) for to in _alternately(rounds)]
            _record(bench, f"{balancer} {WAYS[balancer]}: switch all {count}", everything)
        client.close()


def _switch_by_reload(bench: Bench, balancer: str, servers: Servers) -> None:
    """The other way of switching, which the first one is there to avoid."""
    with services.agent(bench, services.many(balancer, 1, servers, switching="reload")) as agent:
        client = UnixClient(agent.socket, timeout_s=60)
        taken = [_switch(client, "/v1/services/s0/switch", to) for to in _alternately(4 if bench.is_quick else 20)]
        _record(bench, f"{balancer} reload: switch 1 of 1", taken, of=case_one(balancer, 1))
        client.close()


def _record(bench: Bench, case: str, taken: Sequence[Mapping[str, float]], of: str | None = None) -> None:
    for step in ("request", *STEPS):
        bench.record.add(f"{GROUP}{step}", case, "ms", [one[step] for one in taken], of=of)


def _alternately(rounds: int) -> Iterator[str]:
    for number in range(rounds):
        yield ("green", "blue")[number % 2]


def _switch(client: UnixClient, path: str, to: str) -> dict[str, float]:
    """Milliseconds of the request and of the steps in it (the slowest of the operations). Raises: RuntimeError."""
    answer = client.request("POST", path, {"to": to})
    document = answer.document
    operations = document.get("operations", [document])
    if answer.status != 200 or any(operation["state"] != "done" for operation in operations):
        raise RuntimeError(f"POST {path} to {to}: HTTP {answer.status}: {json.dumps(document)[:500]}")
    return {"request": answer.took_ms} | {step: max(one["timings_ms"][step] for one in operations) for step in STEPS}
