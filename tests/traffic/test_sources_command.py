"""A command's number; whatever it does, it is gone when its read is over. And what the machine itself says."""

import asyncio
import sys

import psutil
import pytest

from tests.health.raw import asynchronous
from tests.support.children import child_pids
from tests.support.wait import wait_until
from tests.traffic.web import error, source, value


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # an orphan, if the first process reaps none
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("script", "number"),
    [("echo 41", 41), ("echo careful >&2; printf ' -1.5e2\\n\\n'", -150), ("echo .5; sleep 60 &", 0.5)],
)
@asynchronous
async def test_value(script, number):
    """One number on stdout; stderr and what goes on in the background don't matter."""
    before = child_pids()
    assert await value(source("command", command=sh(script))) == number
    assert child_pids() == before


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "/bin/sh ended with exit 3: run it by hand as the agent's user"),
        ("echo 5; echo no database >&2; exit 1", "ended with exit 1, saying 'no database': run it"),
        ("kill -SEGV $$", "ended with signal SIGSEGV"),
        ("true", "printed nothing, which is not a number: it has to print one number and nothing else"),
        ("echo 5 apples", "printed '5 apples', which is not a number"),
        ("echo 5; echo 6", r"printed '5\n6', which is not a number"),
        (r"printf '\377\033[31m'", r"which is not a number"),
        ("echo nan", "printed NaN, which is not a finite number"),
        ("echo -inf", "printed -Inf, which is not a finite number"),
        ("echo 1_000", "printed '1_000', which is not a number"),
        ("echo 1e999", "printed a number without bounds"),
        ("yes 1 | head -c 100000", "printed 4 KiB or more: it has to print one number"),
    ],
)
@asynchronous
async def test_no_number(script, words):
    said = await error(source("command", command=sh(script)))
    assert words in said
    assert "\033" not in said


@asynchronous
async def test_no_program():
    said = await error(source("command", command=["/nowhere/count"]))
    assert said == "/nowhere/count can't be run (No such file or directory): mend `command`"


@pytest.mark.parametrize("endless", ["while :; do sleep 9; done", "yes"])
@asynchronous
async def test_hanging(tmp_path, endless):
    """Its whole process group is ended with its time, whether it sleeps, ignores signals or floods."""
    pids = tmp_path / "pids"
    script = (
        f"trap '' TERM INT HUP; (trap '' TERM; sleep 60) & echo $$ $! > {pids}.new; mv {pids}.new {pids}; {endless}"
    )
    before = child_pids()
    config = source("command", command=sh(script), timeout=1.0)
    for _ in range(5):  # a slow machine may not even have begun
        said = await error(config)
        assert said.startswith("no answer within 1s")
        if pids.exists():
            break
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda pid=pid: is_gone(pid), f"{pid} is gone")
    assert child_pids() == before


@asynchronous
async def test_the_loop_goes_on():
    """While a command hangs, everything else runs."""
    slow = asyncio.create_task(error(source("command", command=sh("sleep 60"), timeout=2.0)))
    assert await value(source("command", command=[sys.executable, "-c", "print(7)"])) == 7
    assert not slow.done()
    slow.cancel()
    await asyncio.wait([slow])


@pytest.mark.parametrize("metric", ["cpu", "memory", "disk"])
@asynchronous
async def test_host(metric):
    """Fractions."""
    assert 0 <= await value(source("host", metric=metric)) <= 1


@asynchronous
async def test_load():
    """Of a core, and so without bounds."""
    assert await value(source("host", metric="load")) >= 0


@asynchronous
async def test_a_disk_that_is_not_there():
    said = await error(source("host", metric="disk", path="/nowhere"))
    assert said == "/nowhere can't be looked at (No such file or directory): mend `path`"
