"""Without root, all of it works: start, switch, reload, stop; and what can't is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[3]


def test_an_ordinary_user(binary, service):
    """As nobody when the tests are run by root."""
    argv = [sys.executable, "-m", "tests.balancers.haproxy.as_user", binary, json.dumps({"shop": service()})]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    result = subprocess.run(argv, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stderr
