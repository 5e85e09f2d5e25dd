"""What happens, as it is told to the log and to everybody who listens."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; `at` is in seconds since the epoch, `id` grows by one within a process."""

    id: int
    at: float
    type: str
    message: str
    service: str | None = None
    level: str = "info"
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The event as the API shows it."""
        return {
            "id": self.id,
            "at": self.at,
            "type": self.type,
            "service": self.service,
            "level": self.level,
            "message": self.message,
            "data": dict(self.data),
        }


Listener = Callable[[Event], None]


class Events:
    """Numbers events and hands each to every listener; may be called from any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since the epoch."""
        self._clock = clock
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._recent: deque[Event] = deque(maxlen=_KEPT)
        self._last = 0
        self._said: dict[str, str] = {}

    def emit(self, type_: str, message: str, service: str | None = None, level: str = "info", **data: Any) -> None:
        """Tell everybody; listeners must return at once and not raise."""
        with self._lock:
            self._last += 1
            event = Event(self._last, self._clock(), type_, message, service, level, data)
            self._recent.append(event)
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener(event)

    def once(self, topic: str, type_: str, message: str, service: str | None = None, level: str = "error") -> None:
        """Emit, unless the same was the last thing said on this topic."""
        if self._said.get(topic) != message:
            self._said[topic] = message
            self.emit(type_, message, service, level)

    def over(self, topic: str) -> None:
        """The topic is closed: what was said on it may be said anew."""
        self._said.pop(topic, None)

    async def guard(self, doing: str, work: Awaitable[object]) -> None:
        """Await one round of a loop that must live on; whatever it raises is said once."""
        try:
            await work
        except Exception as error:
            self.once(doing, "trouble", f"{doing}: {error or type(error).__name__}")
        else:
            self.over(doing)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Hand every further event to `listener` until the returned function is called."""
        with self._lock:
            self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def since(self, last_id: int) -> list[Event]:
        """The events after `last_id` that are still remembered (the last thousand)."""
        with self._lock:
            return [event for event in self._recent if event.id > last_id]
