import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lbswitch.cli.main import main
from tests.cli.fake_agent import FakeAgent

PROGRAM = [sys.executable, "-c", "import sys; from lbswitch.cli.main import main; sys.exit(main())"]


class Ran(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("LBSWITCH_", "_LBSWITCH"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: the name of a socket has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="lbs-") as name:
        yield Path(name)


@pytest.fixture
def agent(directory: Path) -> Iterator[FakeAgent]:
    with FakeAgent(directory / "agent.sock") as fake:
        yield fake


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process, exactly as given."""

    def call(*arguments: object) -> Ran:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return call


@pytest.fixture
def ask(run: Run, agent: FakeAgent) -> Run:
    """Run a command line against the stand-in agent."""
    return lambda *arguments: run("--socket", agent.socket_path, *arguments)


def start(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """A command line as a process of its own."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
