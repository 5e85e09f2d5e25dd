"""Whether a file of the operator's can be replaced is known before anything moves."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lbswitch.replacement import Replacement

_NOBODY = 65534


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where somebody else may go, too."""
    made = Path(tempfile.mkdtemp(prefix="lbs"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@contextmanager
def as_nobody() -> Iterator[None]:
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(_NOBODY)
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def obstacle(path: Path) -> str | None:
    """What an agent of another user says; when it says nothing, it can."""
    with as_nobody():
        replacement = Replacement(path)
        said = replacement.obstacle()
        if said is None:
            replacement.stage(b"new")
            replacement.clean()
        return said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become somebody else")
def test_the_file_has_to_be_the_agents_own(directory: Path) -> None:
    """In a directory that it may write: else owner and group of the file could not stay what they are."""
    path = directory / "lbswitch.yaml"
    path.write_bytes(b"old")
    assert "may not write in" in str(obstacle(path))
    os.chown(directory, _NOBODY, _NOBODY)
    assert "is not the agent's own file" in str(obstacle(path))
    os.chown(path, _NOBODY, 0)
    assert "is not the agent's own file" in str(obstacle(path))
    os.chown(path, _NOBODY, _NOBODY)
    assert obstacle(path) is None
    assert Replacement(path).obstacle() is None
