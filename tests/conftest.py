"""What holds for all tests: those of a balancer that can't be had here are skipped, and say so.

Agents and commands run as processes of their own, hundreds of them, and inherit two things of this one: how they begin
with SIGINT, which shells without job control ignore in what they start with `&`, and whether Python may keep what it
compiled.
"""

import os
import shutil
import signal
from pathlib import Path

import pytest

_HERE = Path(__file__).resolve().parent
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def pytest_configure() -> None:
    """Ctrl-C counts in every process that a test starts, and none of them compiles all of lbswitch again."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        os.environ["PYTHONPYCACHEPREFIX"] = str(_HERE.parent / ".pytest_cache" / "pycache")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs HAProxy where there is none; for nginx there is always the one of the extra `nginx`."""
    if shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:{_SBIN}"):
        return
    skip = pytest.mark.skip(reason="HAProxy is not installed: apt-get install haproxy")
    for item in items:
        if needs_haproxy(item):
            item.add_marker(skip)


def needs_haproxy(item: pytest.Item) -> bool:
    """Whether it runs the program: it lies in a directory or file of that name, or has it as a parameter."""
    place = item.path.relative_to(_HERE)
    if place.parts[0] == "unit":
        return False
    parameters = getattr(item, "callspec", None)
    return "haproxy" in str(place) or (parameters is not None and "haproxy" in parameters.params.values())
