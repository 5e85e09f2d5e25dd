"""Calls that may block for as long as they like, outside of the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from lbswitch.ports import SourceDown

T = TypeVar("T")


class Apart:
    """One call at a time, each in a daemon thread.

    A name server that never answers or a file system that hangs neither fills the thread pool that everything else uses
    nor delays the agent's exit. Whoever stops waiting leaves the thread to itself.
    """

    def __init__(self, name: str) -> None:
        """`name` is the thread's."""
        self._name = name
        self._thread: threading.Thread | None = None

    async def call(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises. Raises: SourceDown while an earlier call still hangs."""
        if self._thread is not None and self._thread.is_alive():
            raise SourceDown("the read before this one still hangs; nothing more is asked until it ends")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            result: Any = None
            failed: BaseException | None = None
            try:
                result = work()
            except BaseException as error:  # told to whoever waits
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(_tell, answer, result, failed)

        self._thread = threading.Thread(target=run, name=self._name, daemon=True)
        self._thread.start()
        try:
            return await answer
        finally:
            if answer.done() and not answer.cancelled():
                self._thread.join()  # it has nothing left to do


def _tell(answer: asyncio.Future[Any], result: Any, failed: BaseException | None) -> None:
    if answer.done():
        return
    if failed is None:
        answer.set_result(result)
    else:
        answer.set_exception(failed)
