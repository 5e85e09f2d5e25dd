"""The command check runs real programs and leaves none behind."""

import asyncio
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from lbswitch.core.config import HealthConfig
from lbswitch.core.model import Color, ServerKey
from lbswitch.health.checking import Inconclusive
from lbswitch.health.command import CommandProber
from lbswitch.health.target import check_endpoint
from tests.health.raw import asynchronous
from tests.support.wait import wait_until


def prober(*argv: str, address: str = "127.0.0.1:9101", timeout: float = 5.0, **settings: object) -> CommandProber:
    config = HealthConfig.model_validate({"type": "command", "command": argv, "timeout": timeout, **settings})
    key = ServerKey("shop", Color.GREEN, address)
    return CommandProber(key, check_endpoint(address, config), config, asyncio.Semaphore(2))


async def checked(*argv: str, **settings: object) -> str:
    result = await prober(*argv, **settings).check()
    return f"{'+' if result.passed else '-'} {result.detail}"


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def is_running(pid: str) -> bool:
    """Whether it runs; an orphan that was killed may stay a zombie until the system's first process looks."""
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("argv", "detail"),
    [
        (("/bin/true",), "+ exit 0"),
        (("/bin/echo", "replica is 0 s behind"), "+ replica is 0 s behind"),
        (("/bin/sh", "-c", "echo no leader; echo more; exit 2"), "- exit 2: no leader"),
        (("/bin/sh", "-c", "echo broken >&2; exit 3"), "- exit 3: broken"),
        (("/bin/false",), "- exit 1"),
        (("/bin/sh", "-c", "kill -SEGV $$"), "- killed by SIGSEGV"),
        (("/bin/sh", "-c", r"printf '\033[31mred\n'; exit 1"), r"- exit 1: \x1b[31mred"),
        (("/nowhere/check",), "- can't run /nowhere/check: No such file or directory"),
        (("/dev/null",), "- can't run /dev/null: Permission denied"),
    ],
)
@asynchronous
async def test_details(argv, detail, new_children):
    """0 passes; the first line of the output is told, without what a terminal would act on."""
    assert await checked(*argv) == detail
    assert not new_children()


@pytest.mark.parametrize(
    ("address", "settings", "words"),
    [
        ("127.0.0.1:9101", {}, "127.0.0.1:9101 127.0.0.1 9101 {x} $HOME"),
        ("[::1]:9101", {"port": 9999}, "[::1]:9101 ::1 9999 {x} $HOME"),
        ("unix:/run/app.sock", {}, "unix:/run/app.sock /run/app.sock  {x} $HOME"),
    ],
)
@asynchronous
async def test_arguments(address, settings, words):
    """Address, host and port are filled in, and nothing else is touched: there is no shell."""
    argv = ("/bin/echo", "{address} {host} {port} {x} $HOME")
    assert await checked(*argv, address=address, **settings) == f"+ {words}"


@asynchronous
async def test_environment():
    """The command knows which server it is about."""
    line = "echo $LBSWITCH_SERVICE $LBSWITCH_COLOR $LBSWITCH_ADDRESS"
    assert await checked("/bin/sh", "-c", line) == "+ shop green 127.0.0.1:9101"


@asynchronous
async def test_no_input():
    """A command that reads its input gets none, instead of the agent's."""
    assert await checked("/bin/cat") == "+ exit 0"


@asynchronous
async def test_timeout_kills_the_group(tmp_path, new_children):
    """A command that hangs is ended together with its children, and reaped."""
    pids = tmp_path / "pids"
    script = f"sleep 1000 & echo $! > {pids}; echo $$ >> {pids}; wait"
    assert await checked("/bin/sh", "-c", script, timeout=0.3) == "- timeout after 300ms"
    wait_until(lambda: not any(is_running(pid) for pid in pids.read_text().split()), "both are gone")
    assert not new_children()


@asynchronous
async def test_what_a_command_leaves_behind_is_ended(tmp_path):
    """A child in the background neither delays the verdict nor survives the check."""
    pid = tmp_path / "pid"
    assert await checked("/bin/sh", "-c", f"sleep 1000 & echo $! > {pid}; echo fine") == "+ fine"
    wait_until(lambda: not is_running(pid.read_text()), "the child is gone")


@asynchronous
async def test_a_daemon_that_holds_the_output_does_not_block(tmp_path):
    """A daemon that left the group and keeps the pipe open does not hold up the check."""
    pid = tmp_path / "pid"
    argv = ("/bin/sh", "-c", f"setsid sleep 1000 & echo $! > {pid}; sleep 0.1; echo fine")
    try:
        assert await checked(*argv) == "+ fine"
    finally:
        if is_running(pid.read_text()):
            psutil.Process(int(pid.read_text())).kill()


@asynchronous
async def test_endless_output():
    """A command that never stops talking takes no memory and ends with the timeout."""
    before = psutil.Process().memory_info().rss
    assert await checked("/usr/bin/yes", timeout=0.3) == "- timeout after 300ms"
    assert psutil.Process().memory_info().rss - before < 20_000_000
    assert await checked(*python("print('x' * 10_000_000)")) == f"+ {'x' * 80}..."


@asynchronous
async def test_cancelled(new_children):
    """A check that is cancelled ends its command."""
    task = asyncio.create_task(prober("/bin/sleep", "1000").check())
    async with asyncio.timeout(10):
        while not new_children():
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not new_children()


@asynchronous
async def test_no_descriptor_stays_open():
    """Runs, failures to run and timeouts give back what they opened."""
    fds = Path("/proc/self/fd")
    await checked("/bin/true")
    before = len(list(fds.iterdir()))
    for _ in range(3):
        await checked("/bin/true")
        await checked("/nowhere/check")
        await checked("/bin/sleep", "1000", timeout=0.05)
    assert len(list(fds.iterdir())) == before


@asynchronous
async def test_only_so_many_at_once():
    """Commands wait for a slot, and their timeout begins when they have it."""
    slow = prober("/bin/sleep", "0.2", timeout=0.35)
    results = await asyncio.gather(*(slow.check() for _ in range(4)))
    assert [result.detail for result in results] == ["exit 0"] * 4


@asynchronous
async def test_out_of_descriptors():
    """When the agent itself runs out of descriptors nothing is said about the server."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(Inconclusive, match="Too many open files"):
            await prober("/bin/true").check()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await checked("/bin/true") == "+ exit 0"


@asynchronous
async def test_blocked_loop(new_children):
    """A command that ended while the event loop stood still did not time out."""
    task = asyncio.create_task(checked("/bin/echo", "fine", timeout=0.2))
    async with asyncio.timeout(10):
        while not new_children():
            await asyncio.sleep(0)
    time.sleep(0.5)
    assert await task == "+ fine"
