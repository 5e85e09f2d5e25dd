"""A property that is looked up once, also when that failed; by who asks first, while the others wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

T = TypeVar("T")


class Facts:
    """What objects with facts remember of them."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._facts: dict[str, tuple[Any, Exception | None]] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def look_up(self, name: str, call: Callable[[], Any]) -> Any:
        """What `call` gives or raises, the first time; may be called from several threads."""
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._facts:
                try:
                    self._facts[name] = (call(), None)
                except Exception as error:  # it is the same for everybody who asks
                    self._facts[name] = (None, error)
            value, failed = self._facts[name]
        if failed is not None:
            raise failed
        return value


class fact(Generic[T]):  # noqa: N801 - used like `property`
    """Decorates a method of a `Facts` without arguments."""

    def __init__(self, call: Callable[[Any], T]) -> None:
        """Keep the method."""
        self._call = call
        self.__doc__ = call.__doc__

    @overload
    def __get__(self, owner: None, kind: type) -> Self: ...

    @overload
    def __get__(self, owner: Facts, kind: type) -> T: ...

    def __get__(self, owner: Facts | None, kind: type) -> T | Self:
        if owner is None:
            return self
        value: T = owner.look_up(self._call.__name__, lambda: self._call(owner))
        return value
