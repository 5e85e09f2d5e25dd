"""What holds for all tests: those of a balancer that can't be had here are skipped, and say so."""

import os
import shutil
from pathlib import Path

import pytest

_HERE = Path(__file__).resolve().parent
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


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
