"""Programs that lbswitch runs: never forever, never through a shell."""

import subprocess
import sys
from pathlib import Path

import pytest

from lbswitch.procs import TimedOut, end_group, run
from tests.support.wait import wait_until


def test_output_and_exit_code():
    """Both streams come back in order, with the exit code."""
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr, flush=True); sys.exit(3)"
    result = run([sys.executable, "-c", code], timeout_s=30)
    assert (result.returncode, result.output, result.ok) == (3, "out\nerr\n", False)


def test_success():
    """0 is ok."""
    assert run(["true"], timeout_s=30).ok


def test_no_shell():
    """Arguments arrive as they are."""
    assert run(["printf", "%s", "$HOME; `id` *"], timeout_s=30).output == "$HOME; `id` *"


def test_no_input():
    """A program that reads its input gets none instead of waiting."""
    assert run(["cat"], timeout_s=30).output == ""


def test_environment():
    """The environment is replaced when one is given."""
    assert run(["/usr/bin/env"], timeout_s=30, env={"A": "1"}).output == "A=1\n"


def test_output_that_is_not_utf8():
    """Bytes of another encoding do not fail the call."""
    assert run(["printf", r"\377"], timeout_s=30).output == "\N{REPLACEMENT CHARACTER}"


def test_timeout_ends_the_whole_group(tmp_path: Path):
    """A program that hangs is ended with everything that it started, and the error says after how long."""
    pid_file = tmp_path / "pid"
    script = f"sleep 600 & echo $! >{pid_file}.new; mv {pid_file}.new {pid_file}; wait"
    with pytest.raises(TimedOut, match=r"sh did not finish within 0\.5 s and was ended"):
        run(["sh", "-c", script], timeout_s=0.5)
    pid = int(pid_file.read_text())
    wait_until(lambda: not is_alive(pid), "the child has ended too")


def is_alive(pid: int) -> bool:
    """Whether it runs; one that only waits to be collected by init does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_missing_program():
    """The caller gets to say what is missing."""
    with pytest.raises(FileNotFoundError):
        run(["/nonexistent/program"], timeout_s=30)


def test_end_group_of_one_that_is_gone():
    """Ending what has ended is fine."""
    process = subprocess.Popen(["true"], start_new_session=True)
    process.wait()
    end_group(process.pid)
