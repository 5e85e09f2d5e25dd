"""A timeout that is fair, and text that is safe to show."""

import asyncio
import time

import pytest

from lbswitch.health.checking import CheckFailed, Inconclusive, shown, timed
from tests.health.raw import asynchronous, checked, http_prober, serving


@asynchronous
async def test_passes_and_fails():
    """What the attempt saw is the detail; the time it took is told."""

    async def fine() -> str:
        return "seen"

    async def bad() -> str:
        raise CheckFailed("not seen")

    assert (await timed(fine, 1.0)).detail == "seen"
    assert (await timed(fine, 1.0)).passed
    result = await timed(bad, 1.0)
    assert (result.passed, result.detail) == (False, "not seen")
    assert result.latency_ms >= 0


@pytest.mark.parametrize(("timeout_s", "detail"), [(0.001, "timeout after 1ms"), (0.08, "timeout after 80ms")])
@asynchronous
async def test_timeout(timeout_s, detail):
    """An attempt that takes too long ends, and not before its time is over, also when that is very short."""

    async def hang() -> str:
        await asyncio.sleep(100)
        return ""

    result = await timed(hang, timeout_s)
    assert (result.passed, result.detail) == (False, detail)
    assert result.latency_ms >= timeout_s * 990


@asynchronous
async def test_a_loop_that_never_rests_still_ends_a_check():
    """An event loop that stalls all the time ends a hanging check without a verdict, instead of never."""

    async def hang() -> str:
        await asyncio.sleep(100)
        return ""

    async def hog() -> None:
        while True:
            time.sleep(0.03)
            await asyncio.sleep(0)

    hogging = asyncio.create_task(hog())
    with pytest.raises(Inconclusive):
        await timed(hang, 0.02)
    hogging.cancel()


@asynchronous
async def test_cancellation_is_not_a_timeout():
    """Who cancels a check gets the cancellation, also when it is about to time out."""

    async def hang() -> str:
        await asyncio.sleep(100)
        return ""

    task = asyncio.create_task(timed(hang, 10.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("blocked_s", [0.15, 0.3, 1.0])
@asynchronous
async def test_blocked_loop_is_no_failure(blocked_s):
    """A server that answers in time passes, for however long the agent's own event loop stood still meanwhile."""

    async def after_a_moment(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        asyncio.get_running_loop().call_soon(time.sleep, blocked_s)
        await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with serving(after_a_moment) as server:
        prober = http_prober(server.address, timeout=0.2)
        assert await checked(prober) == "+ HTTP 200"
        assert server.accepted == 1
        prober.close()


@asynchronous
async def test_failure_in_a_blocked_loop_is_repeated():
    """A failure while the loop stood still proves nothing: the attempt is made again at once."""
    attempts = 0

    async def bad_while_blocked() -> str:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            time.sleep(0.15)
            raise CheckFailed("closed without an answer")
        return "seen"

    result = await timed(bad_while_blocked, 0.1)
    assert (result.passed, result.detail, attempts) == (True, "seen", 3)


@asynchronous
async def test_a_loop_that_is_always_blocked_decides_nothing():
    """When no attempt can be made properly there is no result, and no endless repetition."""
    attempts = 0

    async def always_blocked() -> str:
        nonlocal attempts
        attempts += 1
        time.sleep(0.1)
        raise CheckFailed("closed without an answer")

    with pytest.raises(Inconclusive, match="stood still in 3 checks"):
        await timed(always_blocked, 0.05)
    assert attempts == 3


@asynchronous
async def test_a_short_stall_excuses_nothing():
    """A server that is too slow fails, though the loop stood still for a moment."""

    async def hang() -> str:
        time.sleep(0.02)
        await asyncio.sleep(100)
        return ""

    assert (await timed(hang, 0.2)).detail == "timeout after 200ms"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        (b"db down\n", "db down"),
        (b"a\r\nb\tc", r"a\r\nb\tc"),
        (b"\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("übel \u202e".encode(), "übel \\u202e"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"x" * 81, "x" * 80 + "..."),
        (b"x" * 80, "x" * 80),
        (b"", ""),
    ],
)
def test_shown(text, safe):
    """Foreign text is cut, and nothing in it reaches a terminal as a command."""
    assert shown(text) == safe
