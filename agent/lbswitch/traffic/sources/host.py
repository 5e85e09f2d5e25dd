"""What this machine is busy with, as psutil(8) of its /proc; a container's own limits are not looked at."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lbswitch.core.source_config import HostSource
from lbswitch.ports import SourceDown
from lbswitch.traffic.sources.thread import Apart

if TYPE_CHECKING:
    from types import ModuleType

_FIRST_LOOK_S = 0.5
_IDLE = ("idle", "iowait")
_COUNTED_TWICE = ("guest", "guest_nice")  # in user and nice already


class HostMetric:
    """Fractions: cpu and memory in use, load of a minute for each core, disk in use as df(1) says it."""

    def __init__(self, config: HostSource) -> None:
        """Nothing is looked at yet."""
        self._metric = config.metric
        self._path = config.path or "/"
        self._wait_s = min(_FIRST_LOOK_S, config.timeout / 2)
        self._before: tuple[float, float] | None = None
        self._apart = Apart(f"source {config.metric}")

    async def read(self) -> float:
        """See `MetricSource`; of the processors it is the share since the read before. Raises: SourceDown."""
        import psutil

        if self._metric == "cpu":
            return await self._cpu(psutil)
        if self._metric == "memory":
            memory = psutil.virtual_memory()
            return 1 - memory.available / memory.total
        if self._metric == "load":
            return float(psutil.getloadavg()[0] / (psutil.cpu_count() or 1))
        return await self._disk(psutil)

    async def close(self) -> None:
        """Nothing is kept."""

    async def _cpu(self, psutil: ModuleType) -> float:
        if self._before is None:
            self._before = _times(psutil.cpu_times())
            await asyncio.sleep(self._wait_s)
        before, now = self._before, _times(psutil.cpu_times())
        total = now[1] - before[1]
        if total <= 0:  # not a tick of the kernel's clock since
            raise SourceDown("the processors' times did not advance since the last read: choose a longer interval")
        self._before = now
        return min(1.0, max(0.0, (now[0] - before[0]) / total))

    async def _disk(self, psutil: ModuleType) -> float:
        try:
            usage = await self._apart.call(lambda: psutil.disk_usage(self._path))
        except OSError as error:
            raise SourceDown(f"{self._path} can't be looked at ({error.strerror}): mend `path`") from error
        return float(usage.percent) / 100


def _times(times: Any) -> tuple[float, float]:
    """Seconds busy and in total, of all cores since boot (proc_stat(5))."""
    seconds = {name: value for name, value in times._asdict().items() if name not in _COUNTED_TWICE}
    total = sum(seconds.values())
    return total - sum(seconds.get(name, 0.0) for name in _IDLE), total
