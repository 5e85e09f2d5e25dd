"""An agent that is not root, as a guest of root's nginx."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run an nginx as root")
def test_an_ordinary_user(binary, directory, certificate, blue, green):
    """It checks, switches and sees; what it has no right to is told with what to do."""
    argv = [sys.executable, "-m", "tests.balancers.nginx.guest_as_user", binary, str(directory)]
    argv += [*map(str, certificate), blue.address, green.address]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "TMPDIR": "/tmp"}
    result = subprocess.run(argv, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stderr
