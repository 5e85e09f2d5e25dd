"""What the checks ask this machine: file systems, processes, systemd, the clock. A test gives another one."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lbswitch import procs

_SYSTEMCTL_S = 5.0
_CLEANED = {Path("/tmp"): "10 days", Path("/var/tmp"): "30 days"}  # noqa: S108 - named, not used
_CONTAINER = (Path("/run/systemd/container"), Path("/.dockerenv"), Path("/run/.containerenv"))
_STA_UNSYNC = 0x0040  # adjtimex(2)
_CLOCK_OK = range(5)  # TIME_OK .. TIME_WAIT; 5 is TIME_ERROR


@dataclass(frozen=True, slots=True)
class Space:
    """Free bytes and inodes of a file system; `inodes` is None where there is no limit."""

    free: int
    total: int
    inodes: int | None


@dataclass(frozen=True, slots=True)
class Clock:
    """Whether the kernel says that the clock is synchronized; None when that is not known."""

    synchronized: bool | None


class Host:
    """This machine. Every method may be called from several threads."""

    @property
    def is_root(self) -> bool:
        """Whether we may look at everything."""
        return os.geteuid() == 0

    # -- files -------------------------------------------------------------------------------------------------

    def filesystem(self, path: Path) -> str:
        """The type of the file system that holds the path (proc_pid_mountinfo(5)), such as `ext4`; "" if unknown."""
        device = existing(path).resolve()
        found = [(point, kind) for point, kind in _mounts() if device.is_relative_to(point)]
        return max(found, key=lambda each: len(str(each[0])))[1] if found else ""

    def space(self, path: Path) -> Space:
        """What is left there. Raises: OSError."""
        found = os.statvfs(existing(path))
        inodes = found.f_favail if found.f_files else None
        return Space(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, inodes)

    def cleaned(self, path: Path) -> str | None:
        """After what age systemd-tmpfiles removes what lies there; None where it does not (tmpfiles.d(5))."""
        return next((age for directory, age in _CLEANED.items() if path.is_relative_to(directory)), None)

    # -- time --------------------------------------------------------------------------------------------------

    def clock(self) -> Clock:
        """What adjtimex(2) says, which asks and sets nothing; a container has the clock of its host."""
        in_container = any(path.exists() for path in _CONTAINER)
        return Clock(None if in_container else _is_synchronized())

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def since_boot(self) -> float:
        """Seconds since the boot, suspended ones too (CLOCK_BOOTTIME)."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def started(self, pid: int) -> float:
        """When a process started, in seconds since the boot (proc_pid_stat(5), field 22). Raises: OSError."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")

    # -- systemd -----------------------------------------------------------------------------------------------

    @property
    def has_systemd(self) -> bool:
        """Whether systemd started this machine (sd_booted(3))."""
        return Path("/run/systemd/system").is_dir()

    def unit(self, name: str) -> dict[str, str]:
        """Properties of a unit; empty when there is none or systemd does not answer."""
        wanted = "LoadState,UnitFileState,ActiveState,KillMode,FragmentPath"
        try:
            result = procs.run(["systemctl", "show", "-p", wanted, "--", name], timeout_s=_SYSTEMCTL_S)
        except (OSError, procs.TimedOut):
            return {}
        found = dict(line.partition("=")[::2] for line in result.output.splitlines() if "=" in line)
        return found if result.ok and found.get("LoadState") == "loaded" else {}

    def unit_of(self, pid: int) -> str | None:
        """The systemd service whose control group a process is in; None outside of one. Raises: OSError."""
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            name = line.rpartition("/")[2]
            if name.endswith(".service"):
                return name
        return None

    # -- processes ---------------------------------------------------------------------------------------------

    def open_files_limit(self, pid: int) -> int | None:
        """The soft limit of open files (proc_pid_limits(5)); None when unlimited. Raises: OSError."""
        for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
            if line.startswith("Max open files"):
                soft = line.removeprefix("Max open files").split()[0]
                return None if soft == "unlimited" else int(soft)
        return None


def existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    return next(each for each in (path, *path.parents) if os.path.lexists(each))


def _mounts() -> Iterator[tuple[Path, str]]:
    """Mount points with the types of their file systems, in the order in which they were mounted."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        before, _, after = line.partition(" - ")
        yield Path(before.split()[4].replace("\\040", " ")), after.split()[0]


class _Timex(ctypes.Structure):
    """The head of struct timex; the rest is room."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    ]


def _is_synchronized() -> bool | None:
    """What the kernel says; None where it may not be asked."""
    timex = _Timex()
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    return state in _CLOCK_OK and not timex.status & _STA_UNSYNC
