"""Small classes that satisfy the ports, for tests of the transaction alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from lbswitch.core.config import Config
from lbswitch.core.decide import PoolFacts, PoolState
from lbswitch.core.model import Color, Intent, Observation, PoolKey, ServerKey
from lbswitch.errors import BalancerError, CheckFailed, CommitFailed, NotSeen
from lbswitch.ports import Difference, Held, OldWorker, Rendered, RenderedFile


def config_of(**service: object) -> Config:
    """Two services, `shop` with these settings and `blog`."""
    common = {"blue": {"servers": ["127.0.0.1:9101"]}, "green": {"servers": ["127.0.0.1:9102"]}}
    fast = {"verify": {"answers": 2, "deadline": "50ms"}}
    return Config.model_validate(
        {
            "balancer": {"kind": "nginx"},
            "services": {
                "shop": {"bind": "127.0.0.1:8080", **common, **fast, **service},
                "blog": {"bind": "127.0.0.1:8081", **common, **fast},
            },
        }
    )


class FakeDraining:
    """`open` is what each pool still has (a pool that is not named has nothing), `old` the workers, oldest first."""

    def __init__(self) -> None:
        self.open: dict[PoolKey, tuple[Held, ...] | None] = {}
        self.old: tuple[OldWorker, ...] = ()
        self.no_closing: str | None = None
        self.break_close: str | None = None
        self.closed: list[tuple[PoolKey, int]] = []
        self.ended: list[OldWorker] = []

    def held(self, pools: Collection[PoolKey]) -> Mapping[PoolKey, tuple[Held, ...] | None]:
        return {pool: self.open.get(pool, ()) for pool in pools}

    def why_not_closed(self) -> str | None:
        return self.no_closing

    def close(self, pool: PoolKey, most: int) -> int:
        """`closed` says of which pool how many were ended."""
        if self.break_close is not None:
            raise BalancerError(self.break_close)
        left, kept = most, []
        for one in sorted(self.open.get(pool) or (), key=lambda held: not held.is_old):
            ended = min(left, one.count)
            left -= ended
            if one.count > ended:
                kept.append(Held(one.pid, one.is_old, one.count - ended))
        self.open[pool] = tuple(kept)
        self.closed.append((pool, most - left))
        return most - left

    def crew(self) -> int:
        return 2

    def old_workers(self) -> tuple[OldWorker, ...]:
        return self.old

    def end_old_workers(self, keep: int) -> tuple[OldWorker, ...]:
        ended = self.old[: max(0, len(self.old) - keep)]
        self.old = self.old[len(ended) :]
        self.ended.extend(ended)
        return ended


class FakeBalancer:
    """Three facts kept apart: what is committed, what is installed, and what its listeners answer."""

    reload_is_free = True

    def __init__(self) -> None:
        self.draining = FakeDraining()
        self.on_disk: Intent | None = None
        self.serves: Intent | None = None
        self.revision: str | None = None
        self.running = True
        self.template = "one"
        self.refuse: str | None = None
        self.break_prepare: list[str] = []
        self.break_commit: list[str] = []
        self.prepared: Intent | None = None
        self.ahead: Intent | None = None
        self.deaf = False
        self.no_weights: str | None = None
        self.no_shield: str | None = None
        self.break_shield: str | None = None
        self.shielded: dict[str, Color] = {}
        self.commits: list[Intent] = []
        self.reloads = 0
        self.reminded = 0
        self.clients: dict[str, int | None] = {}
        self.intended: str | None = None
        self.drifted: list[Difference] = []
        self.repairs: list[tuple[Intent, Rendered | None]] = []
        self.break_repair: str | None = None
        self._files: dict[str, Rendered] = {}

    def version(self) -> str:
        return "1.0"

    def warnings(self) -> list[str]:
        return []

    def render(self, intent: Intent) -> Rendered:
        weighted = sorted(name for name, service in intent.services.items() if service.weighted)
        text = f"{self.template} {sorted(intent.services)} {weighted} {sorted(intent.ejected)}"
        return Rendered.of([RenderedFile("conf", text.encode())])

    def check(self, rendered: Rendered) -> None:
        if self.refuse is not None:
            raise CheckFailed(self.refuse)

    def installed(self) -> str | None:
        return self.revision

    def read(self, revision: str) -> Rendered:
        return self._files[revision]

    def intended_revision(self) -> str | None:
        return self.intended

    def install(self, rendered: Rendered) -> None:
        self._files[rendered.revision] = rendered
        self.revision = self.intended = rendered.revision

    def reinstall(self, revision: str) -> None:
        assert revision in self._files
        self.revision = self.intended = revision

    def reload(self, *, gently: bool = True) -> None:
        self.reloads += 1

    def prepare(self, intent: Intent) -> None:
        if self.break_prepare:
            raise CommitFailed(self.break_prepare.pop(0))
        self.prepared = intent

    def prepare_ahead(self, intent: Intent) -> None:
        self.ahead = intent

    def is_ahead(self, intent: Intent) -> bool:
        return False

    def forget(self) -> None:
        self.prepared = None

    def commit(self, intent: Intent, changed: Collection[str]) -> None:
        if self.break_commit:
            raise CommitFailed(self.break_commit.pop(0))
        self.commits.append(intent)
        self.on_disk = intent
        if not self.deaf:
            self.serves = intent

    def committed(self) -> Intent | None:
        return self.on_disk

    def observe(self, service: str) -> Observation:
        if self.serves is None or not self.running:
            raise NotSeen(f"{service}: does not answer")
        served = self.serves.services[service]
        return Observation(served.route.live, served.generation, self.revision or "", served.route.share(Color.GREEN))

    def routes(self) -> Mapping[int, Intent]:
        return {}

    def differences(self, intent: Intent) -> list[Difference]:
        return list(self.drifted)

    def repair(self, intent: Intent, rendered: Rendered | None) -> None:
        if self.break_repair is not None:
            raise CommitFailed(self.break_repair)
        self.repairs.append((intent, rendered))
        self.drifted.clear()

    def eject(self, ejected: frozenset[ServerKey]) -> bool:
        return False

    def is_running(self) -> bool:
        return self.running

    def why_not_weighted(self, service: str) -> str | None:
        return self.no_weights

    def shield(self, services: Mapping[str, Color | None]) -> None:
        if self.break_shield is not None:
            raise CommitFailed(self.break_shield)
        after = {**self.shielded, **services}
        self.shielded = {name: color for name, color in after.items() if color is not None and self.no_shield is None}

    def why_not_shielded(self, service: str) -> str | None:
        return self.no_shield

    def remind(self) -> None:
        self.reminded += 1

    def why_not_started(self) -> str | None:
        return None

    def pools(self, rendered: Rendered) -> Mapping[str, int]:
        return {"shop_blue": 0 if b"no servers" in rendered.files[0].content else 1}

    def connections(self, services: Collection[str]) -> Mapping[str, int | None]:
        return {service: self.clients.get(service, 0) for service in services}

    def watched(self) -> frozenset[Path]:
        return frozenset()

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False


class FakeHealth:
    """Colors are healthy until told otherwise."""

    def __init__(self) -> None:
        self.sick: dict[tuple[str, Color], str] = {}

    def facts(self, service: str, color: Color) -> PoolFacts:
        why = self.sick.get((service, color))
        return PoolFacts(PoolState.HEALTHY, "1 of 1") if why is None else PoolFacts(PoolState.UNHEALTHY, why)
