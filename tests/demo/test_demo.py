"""The demonstration, in its shortest form: it is what newcomers run first, and its JSON line is read by others."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
BALANCERS = ("nginx", "haproxy")


def demo_argv(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "demo.py"), "--pause", "0.5", "--rate", "150", *arguments]


def start_demo(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        demo_argv(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def run_demo(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    process = start_demo(*arguments)
    out, err = process.communicate(timeout=90)
    return process.returncode, out, err


def processes_of(directory: str) -> list[str]:
    """Command lines that name the directory."""
    lines = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    return [line for line in lines if directory in line]


@pytest.mark.parametrize("balancer", BALANCERS)
def test_the_demonstration_loses_nothing_in_a_switch_and_comes_back_from_a_crash(balancer: str):
    """With --json stdout is one line, and it accounts for every request."""
    code, out, err = run_demo("--balancer", balancer, "--json")
    assert code == 0, out + err
    (line,) = out.splitlines()
    document: dict[str, Any] = json.loads(line)
    assert document["ok"] is True
    (result,) = document["balancers"]
    assert (result["balancer"], result["state"], result["problems"]) == (balancer, "held", [])
    assert result["lost_in_switches"] == 0
    answered = result["answered"]
    assert (
        answered["blue"] + answered["green"] + result["lost_in_outage"] + result["lost_after_recovery"]
        == result["sent"]
    )
    assert result["switch"]["last_old_ms"] > 0
    assert result["switch"]["timings_ms"]["total"] > 0
    assert result["failover"]["recovery_ms"] > 0
    assert result["failover"]["reason"]


def test_ctrl_c_leaves_nothing_running_and_no_files():
    """Interrupted in the middle, with balancer, agent, applications and client up."""
    process = start_demo("--balancer", "nginx", "--pause", "30")
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "A client now sends" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    found = re.search(r"/tmp/lbs\w+", said)
    assert found is not None, said + out + err
    assert process.returncode == 130, out + err
    assert processes_of(found[0]) == []
    assert not Path(found[0]).exists()


def test_keep_leaves_it_up_and_says_how_to_end_it():
    """The balancer still answers afterwards; the command that ends it ends all of it."""
    code, out, err = run_demo("--balancer", "nginx", "--json", "--keep")
    kept = json.loads(out)["balancers"][0].get("kept")
    assert code == 0, out + err
    directory = str(Path(kept["config"]).parent)
    try:
        assert len(processes_of(directory)) >= 2, "agent and balancer"
    finally:
        subprocess.run(kept["stop"].split(), check=True, timeout=30, capture_output=True)
    assert processes_of(directory) == []
    assert not Path(directory).exists()
