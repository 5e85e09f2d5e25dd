"""What is done on this host's files, with the real balancers and no agent."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.support.agent import Agent
from tests.support.ports import free_port

CONFIGURATION = """
agent:
  state_dir: {directory}/state
  socket: {directory}/agent.sock
balancer: {{kind: {kind}}}
services:
  shop:
    bind: 127.0.0.1:{port}
    blue: {{servers: [127.0.0.1:9101]}}
    green: {{servers: [127.0.0.1:9102]}}
"""


@pytest.fixture(params=["nginx", "haproxy"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def main_file(kind: str) -> str:
    return {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}[kind]


@pytest.fixture
def configuration(directory: Path, kind: str) -> Path:
    directory.chmod(0o755)
    path = directory / "lbswitch.yaml"
    path.write_text(CONFIGURATION.format(directory=directory, kind=kind, port=free_port()))
    return path


def test_check_says_that_all_is_valid(run: Run, configuration: Path, kind: str):
    ran = run("check", "--config", configuration)
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"{kind} ")
    assert "1 service, revision " in ran.out
    assert ran.out.endswith("is valid; nothing is installed yet\n")


def test_check_as_json_is_one_document(run: Run, configuration: Path, kind: str):
    report = json.loads(run("check", "--json", "--config", configuration).out)
    assert (report["kind"], report["services"], report["installed"]) == (kind, 1, None)


def test_check_names_every_problem_with_its_line(run: Run, configuration: Path, kind: str):
    """One a line on stderr; with --json one document that holds them all."""
    text = configuration.read_text().replace(f"kind: {kind}", "kind: apache").replace("bind: 127", "bind: x y 127")
    configuration.write_text(text)
    ran = run("check", "--config", configuration)
    assert (ran.code, ran.out) == (2, "")
    assert f"{configuration}:5: " in ran.err
    assert f"{configuration}:8: " in ran.err
    ran = run("check", "--config", configuration, "--json")
    assert ran.code == 2
    assert [problem["line"] for problem in json.loads(ran.out)["problems"]] == [5, 8]


def test_render_prints_every_file_and_changes_nothing(run: Run, configuration: Path, main_file: str):
    before = sorted(configuration.parent.rglob("*"))
    ran = run("render", "--config", configuration)
    assert ran.code == 0, ran.err
    assert f"# ---- {main_file}" in ran.out
    assert "shop_blue" in ran.out
    assert sorted(configuration.parent.rglob("*")) == before


def test_render_diff_is_a_unified_diff(run: Run, configuration: Path, main_file: str):
    ran = run("render", "--diff", "--config", configuration)
    assert ran.code == 0
    assert f"+++ rendered/{main_file}" in ran.out


def test_render_as_json_is_one_document(run: Run, configuration: Path, main_file: str):
    document = json.loads(run("render", "--json", "--config", configuration).out)
    assert main_file in [file["name"] for file in document["files"]]


def test_balancer_status_says_that_nothing_is_there(run: Run, configuration: Path):
    ran = run("balancer", "status", "--config", configuration)
    assert ran.code == 0, ran.err
    assert ran.out.endswith("is not running, nothing is installed\n")
    assert json.loads(run("balancer", "status", "--json", "--config", configuration).out)["running"] is False


def test_balancer_start_says_what_has_to_come_first(run: Run, configuration: Path):
    ran = run("balancer", "start", "--config", configuration)
    assert ran.code == 1
    assert "nothing is installed yet" in ran.err


def test_balancer_commands_say_what_they_did(run: Run, directory: Path, kind: str):
    """Also that there was nothing to do; never a sentence that reads as if nothing had happened."""
    directory.chmod(0o755)
    color = {"servers": [f"127.0.0.1:{free_port()}"]}
    services = {"shop": {"bind": f"127.0.0.1:{free_port()}", "blue": color, "green": color}}
    services["shop"]["green"] = {"servers": [f"127.0.0.1:{free_port()}"]}
    with Agent(directory, {"balancer": {"kind": kind}, "services": services}) as agent:
        agent.stop()
        said = {}
        for command in ("start", "restart", "stop", "stop", "restart", "stop", "start"):
            ran = run("balancer", command, "--config", agent.config_path)
            assert ran.code == 0, ran.err
            said.setdefault(command, []).append(ran.out.splitlines())
        found = json.loads(run("balancer", "status", "--json", "--config", agent.config_path).out)
    name, revision = f"{kind} {found['version']}", f"(revision {found['revision']})"
    assert [lines[0] for lines in said["stop"]] == [
        f"{name} stopped {revision}",
        f"{name} was not running {revision}",
        f"{name} stopped {revision}",
    ]
    assert [lines[0] for lines in said["start"]] == [f"{name} runs already {revision}", f"{name} started {revision}"]
    assert [lines[0] for lines in said["restart"]] == [
        f"{name} restarted {revision}",
        f"{name} was not running and was started {revision}",
    ]
    assert said["start"][1][1].startswith("  shop: blue, generation ")
    assert {len(lines) for lines in said["stop"]} == {1}


def test_the_agent_refuses_a_wrong_configuration(run: Run, directory: Path):
    (directory / "lbswitch.yaml").write_text("balancer: {kind: apache}\n")
    ran = run("agent", "--config", directory / "lbswitch.yaml")
    assert (ran.code, ran.out) == (2, "")
    assert "lbswitch.yaml:1:" in ran.err
