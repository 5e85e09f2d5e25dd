"""The program itself: what it says arrives, and its exit code is the command's."""

import subprocess
import sys

_PROGRAM = [sys.executable, "-c", "import sys; sys.argv[0] = 'lbswitch'; from lbswitch.cli.run import run; run()"]


def test_output_and_exit_code_are_those_of_the_command() -> None:
    """All of a long help text reaches a pipe, and a refusal has its code."""
    shown = subprocess.run([*_PROGRAM, "--help"], capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("Usage: lbswitch")
    assert "Global options" in shown.stdout
    refused = subprocess.run([*_PROGRAM, "greeen"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "did you mean 'green'?" in refused.stderr


def test_a_stream_that_takes_nothing_is_said() -> None:
    """Output that can't be written is not lost without a word."""
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        said = subprocess.run([*_PROGRAM, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert said.returncode != 0
    assert "No space left" in said.stderr
