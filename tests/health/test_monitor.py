"""The monitor against real application processes, over time and through changes of the configuration."""

import asyncio
import contextlib
import logging
import sys
import time
from pathlib import Path

import pytest

from lbswitch.core.config import ServiceConfig
from lbswitch.core.health import HealthState, ServerHealth
from lbswitch.core.model import Color, ServerKey
from lbswitch.errors import UnknownService
from lbswitch.health.monitor import HealthMonitor
from tests.health.raw import asynchronous, polite, serving, silent
from tests.support.app import App
from tests.support.ports import free_port

FAST = {"interval": 0.05, "timeout": 0.5}
HEALTHY, UNHEALTHY, UNKNOWN = HealthState.HEALTHY, HealthState.UNHEALTHY, HealthState.UNKNOWN


def service(blue: list[str], green: list[str], **health: object) -> ServiceConfig:
    return ServiceConfig.model_validate(
        {
            "bind": "127.0.0.1:8080",
            "blue": {"servers": blue},
            "green": {"servers": green},
            "health": {**FAST, **health},
        }
    )


class Changes:
    """What the monitor reported."""

    def __init__(self) -> None:
        self.seen: list[tuple[ServerKey, ServerHealth, ServerHealth]] = []

    def __call__(self, key: ServerKey, old: ServerHealth, new: ServerHealth) -> None:
        self.seen.append((key, old, new))

    def states(self, color: Color) -> list[str]:
        return [str(new.state) for key, _, new in self.seen if key.color is color]


@contextlib.asynccontextmanager
async def monitoring(changes: Changes | None = None, **services: ServiceConfig):
    monitor = HealthMonitor(services, changes or Changes())
    await monitor.start()
    try:
        yield monitor
    finally:
        await monitor.stop()


async def until(condition, timeout_s: float = 15.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def state(monitor: HealthMonitor, color: Color = Color.BLUE, name: str = "shop") -> HealthState:
    return monitor.pool(name, color).state


@asynchronous
async def test_real_processes():
    """A server that dies becomes unhealthy after `fall` checks, and healthy after `rise` when it is back."""
    changes = Changes()
    with App("blue") as blue, App("green") as green:
        async with monitoring(changes, shop=service([blue.address], [green.address], rise=3, fall=2)) as monitor:
            for color in Color:
                assert (await monitor.wait_known("shop", color, 10)).is_healthy
            blue.stop()
            await until(lambda: state(monitor) is UNHEALTHY)
            summary = monitor.pool("shop", Color.BLUE).summary()
            assert summary.startswith(f"{blue.address}: ")
            assert "failed checks, connect refused" in summary
            blue.start()
            await until(lambda: state(monitor) is HEALTHY)
            green.fail(health=503, text="db+down")
            await until(lambda: state(monitor, Color.GREEN) is UNHEALTHY)
            assert monitor.pool("shop", Color.GREEN).servers[0].last_error == 'HTTP 503 "db down"'
    assert changes.states(Color.BLUE)[:3] == ["healthy", "unhealthy", "healthy"]
    key, old, new = changes.seen[2]
    assert key == ServerKey("shop", Color.BLUE, blue.address)
    assert (old.state, new.state, old.failures, new.failures) == (HEALTHY, UNHEALTHY, 1, 2)
    assert abs(new.changed_at - time.time()) < 60


@asynchronous
async def test_first_verdict_comes_fast():
    """With long intervals a verdict does not wait for them."""
    async with (
        serving(polite) as server,
        monitoring(shop=service([server.address], [f"127.0.0.1:{free_port()}"], interval=3600.0)) as monitor,
    ):
        assert state(monitor) is UNKNOWN
        assert monitor.pool("shop", Color.BLUE).summary().endswith("0 of 2 checks passed so far")
        blue, green = await asyncio.gather(*(monitor.wait_known("shop", color, 10) for color in Color))
        assert (blue.state, green.state) == (HEALTHY, UNHEALTHY)
        assert (blue.servers[0].checks, green.servers[0].checks) == (2, 2)


@asynchronous
async def test_wait_known_is_bounded():
    """Who waits for a verdict on a server that hangs gets what is known in time."""
    async with (
        serving(silent) as server,
        monitoring(shop=service([server.address], [server.address], timeout=60.0)) as monitor,
    ):
        assert (await monitor.wait_known("shop", Color.BLUE, 0.05)).state is UNKNOWN


@asynchronous
async def test_checks_go_on():
    """Servers are checked again and again, of both colors, and counted."""
    async with serving(polite) as server, monitoring(shop=service([server.address], [server.address])) as monitor:
        await until(lambda: all(pool.servers[0].checks >= 10 for pool in monitor.snapshot().values()))
        pool = monitor.pool("shop", Color.GREEN)
        assert pool.servers[0].failed == 0
        assert pool.servers[0].latency_ms > 0
        assert set(monitor.snapshot()) == {("shop", Color.BLUE), ("shop", Color.GREEN)}


@asynchronous
async def test_same_server_in_several_services():
    """A server is checked for each service that lists it, with that service's settings."""
    async with (
        serving(polite) as server,
        monitoring(
            shop=service([server.address], [server.address]),
            blog=service([server.address], [server.address], body="missing"),
        ) as monitor,
    ):
        assert (await monitor.wait_known("shop", Color.BLUE, 10)).is_healthy
        assert (await monitor.wait_known("blog", Color.BLUE, 10)).state is UNHEALTHY


@asynchronous
async def test_min_healthy():
    """A pool needs as many healthy servers as configured."""
    async with serving(polite) as server:
        dead = f"127.0.0.1:{free_port()}"
        pair = [server.address, dead]
        services = {"one": service(pair, pair), "two": service(pair, pair, min_healthy=2)}
        async with monitoring(**services) as monitor:
            assert (await monitor.wait_known("one", Color.BLUE, 10)).is_healthy
            assert (await monitor.wait_known("two", Color.BLUE, 10)).state is UNHEALTHY


@asynchronous
async def test_unknown_service():
    """Asking for a service that is not configured is an error of the caller."""
    async with monitoring() as monitor:
        with pytest.raises(UnknownService, match="ship"):
            monitor.pool("ship", Color.BLUE)


@asynchronous
async def test_update_keeps_what_is_known():
    """A changed configuration starts new servers, ends removed ones, and forgets nothing about those that stay."""
    changes = Changes()
    async with serving(polite) as old, serving(polite) as new:  # noqa: SIM117 - the lines would not fit
        async with monitoring(changes, shop=service([old.address], [old.address])) as monitor:
            await until(lambda: state(monitor) is HEALTHY)
            before = monitor.pool("shop", Color.BLUE).servers[0]
            monitor.update({"shop": service([old.address, new.address], [new.address])})
            pool = monitor.pool("shop", Color.BLUE)
            assert pool.servers[0].checks >= before.checks
            assert [server.state for server in pool.servers] == [HEALTHY, UNKNOWN]
            assert state(monitor, Color.GREEN) is UNKNOWN
            await until(lambda: monitor.pool("shop", Color.BLUE).healthy == 2)
            monitor.update({"shop": service([new.address], [new.address])})
            assert state(monitor) is HEALTHY
            await until(lambda: old.open == 0)
            accepted = old.accepted
            checks = monitor.pool("shop", Color.BLUE).servers[0].checks
            await until(lambda: monitor.pool("shop", Color.BLUE).servers[0].checks > checks + 5)
            assert old.accepted == accepted


@asynchronous
async def test_update_of_the_settings():
    """What a check means starts over with a new check; a new pace or threshold keeps the state."""
    async with serving(polite) as server:  # noqa: SIM117 - the lines would not fit
        async with monitoring(shop=service([server.address], [server.address], interval=3600.0)) as monitor:
            await until(lambda: state(monitor) is HEALTHY)
            monitor.update({"shop": service([server.address], [server.address], interval=0.02, fall=7)})
            assert state(monitor) is HEALTHY
            await until(lambda: monitor.pool("shop", Color.BLUE).servers[0].checks > 5)
            monitor.update({"shop": service([server.address], [server.address], body="missing")})
            assert state(monitor) is UNKNOWN
            await until(lambda: state(monitor) is UNHEALTHY)


@asynchronous
async def test_update_before_start_and_after_stop():
    """Only a monitor that runs checks anything."""
    async with serving(polite) as server:
        monitor = HealthMonitor({}, Changes())
        monitor.update({"shop": service([server.address], [server.address])})
        await monitor.start()
        await until(lambda: state(monitor) is HEALTHY)
        await monitor.stop()
        accepted = server.accepted
        monitor.update({"shop": service([server.address], [server.address], path="/other")})
        await asyncio.sleep(0)
        assert state(monitor) is UNKNOWN
        assert server.accepted == accepted
        await until(lambda: server.open == 0)


@asynchronous
async def test_stop_ends_commands(tmp_path, new_children):
    """Stopping ends a command that runs, and leaves no task and no process."""
    started = tmp_path / "started"
    script = f"touch {started}; sleep 1000"
    settings = {"type": "command", "command": ["/bin/sh", "-c", script], "timeout": 60.0}
    monitor = HealthMonitor({"shop": service(["127.0.0.1:1"], ["127.0.0.1:1"], **settings)}, Changes())
    await monitor.start()
    await until(started.exists)
    await monitor.stop()
    assert not new_children()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@asynchronous
async def test_command_decides(tmp_path):
    """A command's verdict follows what it looks at."""
    flag = tmp_path / "well"
    flag.touch()
    code = f"import pathlib,sys; sys.exit(0 if pathlib.Path({str(flag)!r}).exists() else 'no flag')"
    settings = {"type": "command", "command": [sys.executable, "-c", code], "timeout": 30.0}
    async with monitoring(shop=service(["127.0.0.1:1"], ["127.0.0.1:2"], **settings)) as monitor:
        await until(lambda: state(monitor) is HEALTHY)
        flag.unlink()
        await until(lambda: state(monitor) is UNHEALTHY)
        assert "failed checks, exit 1: no flag" in monitor.pool("shop", Color.BLUE).summary()


@asynchronous
async def test_blocked_loop_changes_nothing():
    """The agent's own pauses, however long, make no server unhealthy."""
    with App("blue") as app:
        changes = Changes()
        async with monitoring(changes, shop=service([app.address], [app.address], timeout=0.1, fall=1)) as monitor:
            for color in Color:
                await monitor.wait_known("shop", color, 10)
            for _ in range(10):
                time.sleep(0.3)
                await asyncio.sleep(0.03)
            assert [pool.servers[0].failed for pool in monitor.snapshot().values()] == [0, 0]
        assert changes.states(Color.BLUE) == ["healthy"]


@asynchronous
async def test_clock_jumps():
    """The wall clock may jump: it dates the changes and moves nothing else."""
    now = [1_000_000.0]
    async with serving(polite) as server:
        monitor = HealthMonitor({"shop": service([server.address], [server.address])}, Changes(), clock=lambda: now[0])
        await monitor.start()
        await until(lambda: state(monitor) is HEALTHY)
        assert monitor.pool("shop", Color.BLUE).servers[0].changed_at == 1_000_000.0
        now[0] = 5.0
        checks = monitor.pool("shop", Color.BLUE).servers[0].checks
        await until(lambda: monitor.pool("shop", Color.BLUE).servers[0].checks > checks + 3)
        await server.stop()
        await until(lambda: state(monitor) is UNHEALTHY)
        assert monitor.pool("shop", Color.BLUE).servers[0].changed_at == 5.0
        await monitor.stop()


@asynchronous
async def test_listener_that_fails_does_not_end_the_checks(caplog):
    """An error in what follows from a change is logged, and the checks go on."""

    def fail(key: ServerKey, old: ServerHealth, new: ServerHealth) -> None:
        raise RuntimeError("nobody home")

    async with serving(polite) as server:
        monitor = HealthMonitor({"shop": service([server.address], [server.address])}, fail)
        with caplog.at_level(logging.ERROR):
            await monitor.start()
            await until(lambda: monitor.pool("shop", Color.BLUE).servers[0].checks > 5)
            await monitor.stop()
    assert "nobody home" in caplog.text


@asynchronous
async def test_own_trouble_is_told_once_and_changes_nothing(caplog):
    """When the agent has no descriptors left, servers stay what they are, and the log says why."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(polite) as server:  # noqa: SIM117 - the lines would not fit
        async with monitoring(shop=service([server.address], [server.address], fall=1)) as monitor:
            await until(lambda: all(pool.is_healthy for pool in monitor.snapshot().values()))
            with Path("/dev/null").open() as lowest:
                limit = lowest.fileno()
            await server.hang_up()
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                await until(lambda: "Too many open files" in caplog.text)
                await asyncio.sleep(0.3)
                assert all(pool.is_healthy for pool in monitor.snapshot().values())
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            checks = monitor.pool("shop", Color.BLUE).servers[0].checks
            await until(lambda: monitor.pool("shop", Color.BLUE).servers[0].checks > checks + 2)
    warnings = [record for record in caplog.records if "the agent can't check" in record.getMessage()]
    assert 1 <= len(warnings) <= 4


@asynchronous
async def test_many_servers():
    """Three hundred servers are all known soon, without one false failure."""
    async with serving(polite, host="0.0.0.0") as server:
        port = server.address.rpartition(":")[2]
        addresses = [f"127.0.1.{number}:{port}" for number in range(1, 151)]
        async with monitoring(shop=service(addresses, addresses, interval=1.0)) as monitor:
            await until(lambda: all(pool.healthy == 150 for pool in monitor.snapshot().values()), 60)
            assert [known for pool in monitor.snapshot().values() for known in pool.servers if known.failed] == []
