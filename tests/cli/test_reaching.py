import contextlib
import grp  # noqa: F401 - loaded while this process may still read it
import json
import os
import pwd  # noqa: F401
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import lbswitch.configfile
import lbswitch.local  # noqa: F401 - likewise
from lbswitch.client import Client, UnixSocket
from lbswitch.errors import AgentUnreachable
from tests.cli.conftest import Run
from tests.cli.fake_agent import FakeAgent, dead_socket, operation, problem, service, status

SWITCH = "/v1/services/shop/switch"


def configuration(directory: Path, socket_path: Path) -> Path:
    path = directory / "lbswitch.yaml"
    path.write_text(f"agent:\n  socket: {socket_path}\nbalancer: {{kind: nginx}}\n")
    return path


@pytest.mark.parametrize("command", ["status", "green", "rollback", "history", "freeze", "release"])
def test_without_an_agent_it_says_how_to_start_one(run: Run, directory: Path, command: str):
    """And that traffic does not need it."""
    ran = run(command, "--socket", directory / "none.sock")
    assert (ran.code, ran.out) == (6, "")
    assert "traffic is not affected" in ran.err
    assert "systemctl start lbswitch" in ran.err


def test_a_dead_agents_socket_is_an_absent_agent(run: Run, directory: Path):
    with dead_socket(directory / "agent.sock") as path:
        ran = run("status", "--json", "--socket", path)
    assert ran.code == 6
    assert json.loads(ran.out)["exit_code"] == 6
    assert "Connection refused" in json.loads(ran.out)["detail"]


def test_a_path_that_no_socket_can_have_is_an_absent_agent(run: Run):
    assert run("status", "--socket", "/tmp/" + "x" * 200).code == 6


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Be a user without any rights; root only."""
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(65534, 65534, 0)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


@pytest.mark.skipif(os.getuid() != 0, reason="root becomes somebody else")
def test_who_may_not_use_the_socket_learns_whose_it_is(agent: FakeAgent, ask: Run, directory: Path):
    assert agent.socket_path is not None
    directory.chmod(0o755)
    os.chown(agent.socket_path, 0, 4)
    agent.socket_path.chmod(0o660)
    with nobody():
        ran = ask("status")
    assert (ran.code, ran.out) == (8, "")
    assert "belongs to user root and group adm, mode 0660" in ran.err
    assert "usermod -aG adm" in ran.err


@pytest.mark.skipif(os.getuid() != 0, reason="root becomes somebody else")
def test_who_may_not_even_look_into_the_directory_learns_that(agent: FakeAgent, ask: Run, directory: Path):
    with nobody():
        ran = ask("status")
    assert ran.code == 8
    assert f"may not look into {directory}" in ran.err


def test_garbage_after_a_switch_leaves_the_outcome_unknown(ask: Run, agent: FakeAgent):
    """It is not said to have failed, nor to have worked."""
    for garbage in (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"):
        agent.answers["POST", SWITCH] = garbage
        ran = ask("green", "-s", "shop")
        assert ran.code == 6
        assert "the outcome is unknown" in ran.err
        assert "lbswitch status" in ran.err


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"HTT",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b'HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"id": 1',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{"id": 1',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_an_agent_that_dies_in_the_middle_leaves_the_outcome_unknown(ask: Run, agent: FakeAgent, broken: bytes):
    agent.answers["POST", SWITCH] = broken
    ran = ask("green", "-s", "shop", "--json")
    assert ran.code == 6
    assert "finished or reverted by the agent" in json.loads(ran.out)["detail"]


def test_an_answer_of_another_program_is_not_taken_for_a_problem(ask: Run, agent: FakeAgent):
    agent.answers["GET", "/v1/services"] = (404, {"detail": "Not Found"})
    ran = ask("status")
    assert ran.code == 6
    assert "not an agent" in ran.err


def test_good_json_without_what_was_asked_for_is_garbage(ask: Run, agent: FakeAgent):
    agent.answers["GET", "/v1/services"] = (200, {"hello": "world"})
    assert ask("status").code == 6


def test_chunked_answers_are_read(ask: Run, agent: FakeAgent):
    agent.chunked = True
    assert json.loads(ask("status", "--json").out) == status()


def test_an_agent_that_hangs_is_given_up_in_time(directory: Path):
    """The timeout is for the whole exchange, however slowly bytes drip in."""
    path = directory / "slow.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        over = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                while not over.wait(0.02):
                    connection.sendall(b"HTTP/1.1 200 OK\r\n"[:1])

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(AgentUnreachable, match=r"no answer within 0\.2 s"):
                Client(UnixSocket(str(path)), 0.2).status()
        finally:
            over.set()
            thread.join()


# -- which agent ---------------------------------------------------------------------------------------------


def test_url_reaches_an_agent_over_tcp(run: Run):
    with FakeAgent() as agent:
        port = agent._server.server_address[1]
        agent.answers["POST", SWITCH] = (200, operation())
        ran = run("green", "--url", f"http://127.0.0.1:{port}/")
        assert ran == (0, "shop: green is live (generation 43, verified in 2.1 ms)\n", "")


def test_a_url_nobody_listens_on_is_an_absent_agent(run: Run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ran = run("status", "--url", f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert ran.code == 6
    assert "traffic is not affected" in ran.err


def test_a_tcp_agent_that_dies_in_the_middle_leaves_the_outcome_unknown(run: Run):
    with FakeAgent() as agent:
        agent.answers["POST", SWITCH] = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"
        ran = run("green", "-s", "shop", "--url", f"http://127.0.0.1:{agent._server.server_address[1]}")
    assert ran.code == 6
    assert "the outcome is unknown" in ran.err


@pytest.mark.parametrize("url", ["https://lb:9180", "lb:9180", "http://", "unix:/run/x"])
def test_a_url_that_is_none_is_a_usage_error(run: Run, url: str):
    ran = run("status", "--url", url)
    assert ran.code == 2
    assert "http://HOST:PORT" in ran.err


def test_socket_of_the_environment(run: Run, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LBSWITCH_SOCKET", str(agent.socket_path))
    assert run("status").code == 0


def test_an_option_beats_the_environment(run: Run, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LBSWITCH_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("LBSWITCH_SOCKET", "/nowhere")
    assert run("status", "--socket", agent.socket_path).code == 0


def test_a_broken_environment_is_named(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LBSWITCH_URL", "lb:9180")
    assert "LBSWITCH_URL 'lb:9180'" in run("status").err


def test_the_configuration_file_names_the_socket(run: Run, agent: FakeAgent, directory: Path):
    assert agent.socket_path is not None
    assert run("status", "--config", configuration(directory, agent.socket_path)).code == 0


def test_the_environment_names_the_configuration_file(
    run: Run, agent: FakeAgent, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    assert agent.socket_path is not None
    monkeypatch.setenv("LBSWITCH_CONFIG", str(configuration(directory, agent.socket_path)))
    assert run("status").code == 0


@pytest.mark.parametrize("command", ["status", "green", "rollback"])
def test_a_named_configuration_file_has_to_be_there(run: Run, usual_agent: FakeAgent, directory: Path, command: str):
    """A typo never reaches another agent; how to name the socket itself is said."""
    ran = run(command, "--config", directory / "typo.yaml")
    assert (ran.code, ran.out) == (2, "")
    assert "typo.yaml: does not exist" in ran.err
    assert "--socket or LBSWITCH_SOCKET" in ran.err
    assert usual_agent.requests == []


@pytest.fixture
def usual_agent(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> FakeAgent:
    """The agent at the socket that is asked when nothing else is said."""
    monkeypatch.setattr("lbswitch.core.defaults.SOCKET", str(agent.socket_path))
    agent.answers["POST", SWITCH] = (200, operation())
    agent.answers["POST", "/v1/services/shop/rollback"] = (200, operation(kind="rollback"))
    return agent


@pytest.fixture
def usual_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration file that is read when none is named."""
    path = directory / "lbswitch.yaml"
    monkeypatch.setattr("lbswitch.core.defaults.CONFIG", str(path))
    return path


BROKEN = {
    "no YAML": b"agent: [\n",
    "no socket": b"agent: {socket: relative}\n",
    "no UTF-8": b"agent: {socket: /\xff}\n",
    "empty": b"",
    "a list": b"- a\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("command", ["status", "green", "rollback"])
def test_a_broken_configuration_file_keeps_nobody_from_the_usual_agent(
    run: Run, usual_agent: FakeAgent, usual_file: Path, command: str, content: bytes
):
    """It works, and says on stderr which agent that was and why."""
    usual_file.write_bytes(content)
    ran = run(command, "--json")
    assert ran.code == 0
    assert json.loads(ran.out)
    assert f"note: {usual_agent.socket_path} was asked" in ran.err
    assert str(usual_file) in ran.err


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("command", ["status", "green", "rollback"])
def test_a_named_file_that_does_not_tell_the_socket_reaches_nobody(
    run: Run, usual_agent: FakeAgent, directory: Path, command: str, content: bytes
):
    """On a host with several agents the command is meant for one of them, and for no other."""
    path = directory / "second.yaml"
    path.write_bytes(content)
    ran = run(command, "--config", path)
    assert ran.code == 2
    assert str(path) in ran.err
    assert "--socket or LBSWITCH_SOCKET" in ran.err
    assert usual_agent.requests == []


def test_a_directory_is_a_broken_configuration_file(run: Run, usual_agent: FakeAgent, usual_file: Path):
    usual_file.mkdir()
    ran = run("status")
    assert ran.code == 0
    assert "is a directory" in ran.err


@pytest.mark.parametrize("broken", ["servces: {}\n", "services: [\n", "stray\n", "services: {shop: {}}\nagnt: {}\n"])
@pytest.mark.parametrize("order", ["first", "last"])
def test_the_agent_section_counts_whatever_is_wrong_elsewhere(
    run: Run, agent: FakeAgent, directory: Path, broken: str, order: str
):
    section = f"agent:\n  socket: {agent.socket_path}\n"
    path = directory / "lbswitch.yaml"
    path.write_text(section + broken if order == "first" else broken + section)
    ran = run("status", "--config", path)
    assert (ran.code, ran.err) == (0, "")


def test_when_nobody_answers_either_both_are_said(
    run: Run, directory: Path, usual_file: Path, monkeypatch: pytest.MonkeyPatch
):
    """What is wrong with the file, and how to name the socket without one."""
    monkeypatch.setattr("lbswitch.core.defaults.SOCKET", str(directory / "none.sock"))
    usual_file.write_text("agent: [\n")
    ran = run("rollback", "--json")
    assert ran.code == 6
    for said in (ran.err, json.loads(ran.out)["detail"]):
        assert f"nobody answers on {directory / 'none.sock'}" in said
        assert f"{usual_file}:" in said
        assert "--socket or LBSWITCH_SOCKET" in said


def test_a_refusal_by_the_usual_agent_names_it_too(run: Run, usual_agent: FakeAgent, usual_file: Path):
    usual_agent.answers["POST", SWITCH] = problem(409, 7, "no")
    usual_file.write_text("")
    ran = run("green")
    assert ran.code == 7
    assert "was asked" in ran.err


@pytest.mark.parametrize("there", [True, False])
def test_the_usual_configuration_file_need_not_be_there(
    run: Run, usual_agent: FakeAgent, directory: Path, monkeypatch: pytest.MonkeyPatch, there: bool
):
    """But one that is there and broken is named."""
    monkeypatch.setattr("lbswitch.core.defaults.CONFIG", str(directory / "lbswitch.yaml"))
    if there:
        (directory / "lbswitch.yaml").write_text("agent: [\n")
    ran = run("status")
    assert ran.code == 0
    assert (str(directory / "lbswitch.yaml") in ran.err) is there


@pytest.mark.skipif(os.getuid() != 0, reason="root becomes somebody else")
def test_a_configuration_file_that_may_not_be_read_keeps_nobody_from_the_usual_agent(
    run: Run, usual_agent: FakeAgent, directory: Path, usual_file: Path
):
    assert usual_agent.socket_path is not None
    directory.chmod(0o755)
    usual_agent.socket_path.chmod(0o666)
    usual_file.write_text("")
    usual_file.chmod(0)
    with nobody():
        ran = run("status")
    assert (ran.code, ran.err.count("Usage:")) == (0, 0)
    assert "may not be read by this user" in ran.err


@pytest.mark.skipif(os.getuid() != 0, reason="root becomes somebody else")
@pytest.mark.parametrize("option", ["--config", "--socket"])
def test_a_path_that_may_not_be_read_is_told_in_our_words(run: Run, directory: Path, option: str):
    """Not as a command line that makes no sense."""
    directory.chmod(0o755)
    with dead_socket(directory / "x") as path:
        path.chmod(0)
        with nobody():
            ran = run("check" if option == "--config" else "status", option, path)
    assert ran.code == (2 if option == "--config" else 8)
    assert "Usage:" not in ran.err
    assert str(path) in ran.err


# -- the same options before and after the command -----------------------------------------------------------


def test_global_options_stand_before_or_after_the_command(run: Run, agent: FakeAgent):
    agent.answers["GET", "/v1/services"] = (200, status(shop=service(), cart=service()))
    before = run("--socket", agent.socket_path, "--json", "-s", "cart", "status")
    after = run("status", "--socket", agent.socket_path, "--json", "-s", "cart")
    assert before == after
    assert list(json.loads(before.out)["services"]) == ["cart"]


def test_given_twice_the_later_counts(run: Run, agent: FakeAgent):
    assert run("--socket", "/nowhere", "status", "--socket", agent.socket_path).code == 0
    assert run("--socket", agent.socket_path, "status", "--socket", "/nowhere").code == 6


def test_global_options_stand_anywhere_in_a_group(run: Run):
    one = run("--json", "config", "schema")
    assert one == run("config", "--json", "schema") == run("config", "schema", "--json")
