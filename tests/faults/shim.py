"""Compiles `shim.c` and reads what it counted."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

_SOURCE = Path(__file__).with_name("shim.c")
CONTROL_SIZE = struct.calcsize("=6i")


class Counted(NamedTuple):
    """Calls that could have failed since the fault was armed, and those that did."""

    calls: int
    hits: int


def compiler() -> str | None:
    """A C compiler, if there is one."""
    return shutil.which("gcc") or shutil.which("cc")


def library(directory: Path) -> Path:
    """The shim, compiled into this directory. Raises: RuntimeError with the compiler's words."""
    made = directory / "shim.so"
    argv = [compiler() or "gcc", "-shared", "-fPIC", "-O2", "-o", str(made), str(_SOURCE), "-ldl"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the shim can't be compiled: {done.stderr}")
    return made


def counted(control: Path) -> Counted:
    """What the shim has counted since it was armed."""
    return Counted(*struct.unpack("=6i", control.read_bytes())[4:])
