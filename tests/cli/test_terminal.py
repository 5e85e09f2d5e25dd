"""The command as a process of its own: signals, pipes, terminals, imports, completion."""

import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import PROGRAM, start
from tests.cli.fake_agent import FakeAgent, operation, pool, service, status
from tests.support.wait import wait_until

GREEN, BLUE = status(), status(shop=service(live="blue", generation=44))


def in_terminal(*arguments: object, until: str = "", **environment: str) -> tuple[int, str]:
    """Run on a terminal of its own; with `until`, press Ctrl-C when that was seen."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update({"TERM": "xterm", **environment})
        os.execv(PROGRAM[0], [*PROGRAM, *map(str, arguments)])
    seen = b""
    pressed = False
    try:
        while True:
            part = os.read(terminal, 4096)
            if not part:
                break
            seen += part
            if until and not pressed and until.encode() in seen:
                os.write(terminal, b"\x03")
                pressed = True
    except OSError:  # Linux: the other end was closed
        pass
    finally:
        os.close(terminal)
    _, ended = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(ended), seen.decode()


def test_a_terminal_gets_color_and_a_pipe_does_not(agent: FakeAgent):
    agent.answers["GET", "/v1/services"] = (200, status(shop=service(blue=pool("127.0.0.1:9101", "down"))))
    code, seen = in_terminal("status", "--socket", agent.socket_path)
    assert code == 0
    assert "\x1b[32mgreen\x1b[0m" in seen
    assert "\x1b[31m0/1 unhealthy\x1b[0m" in seen
    with start("status", "--socket", agent.socket_path) as piped:
        assert "\x1b" not in piped.communicate(timeout=30)[0]


def test_no_color_is_respected(agent: FakeAgent):
    _, seen = in_terminal("status", "--socket", agent.socket_path, NO_COLOR="1")
    assert "\x1b" not in seen


def test_watch_on_a_terminal_redraws_until_ctrl_c(agent: FakeAgent):
    """Ctrl-C is 130, and the terminal is left as it was found."""
    agent.answers["GET", "/v1/services"] = [(200, GREEN), (200, GREEN), (200, BLUE)]
    code, seen = in_terminal("status", "--watch", "--interval", "0.1", "--socket", agent.socket_path, until="m  44 ")
    assert code == 130
    assert seen.count("\x1b[H") >= 3
    assert "\x1b[?7h" in seen
    assert "Traceback" not in seen


def test_watch_in_a_pipe_prints_a_line_a_change(agent: FakeAgent):
    """And goes on when the agent is away for a while."""
    answers = [(200, GREEN), (200, GREEN), b"", b"", (200, GREEN), (200, BLUE)]
    agent.answers["GET", "/v1/services"] = answers
    with start("status", "--watch", "--interval", "0.1", "--socket", agent.socket_path) as watch:
        assert watch.stdout is not None
        said = [watch.stdout.readline() for _ in range(5)]
        watch.send_signal(signal.SIGINT)
        rest, err = watch.communicate(timeout=30)
    facts = [line.split(" ", 1)[1].strip() for line in said]
    assert facts[0] == "shop: green live (generation 43, verified), blue 1/1 healthy, green 1/1 healthy"
    assert facts[1] == "agent: answers"
    assert "gave no usable answer" in facts[2]
    assert facts[3] == "agent: answers"
    assert facts[4].startswith("shop: blue live (generation 44")
    assert rest == ""
    assert watch.returncode == 130
    assert err == ""


def test_watch_ends_when_nobody_reads(agent: FakeAgent):
    agent.answers["GET", "/v1/services"] = [(200, GREEN), (200, BLUE)] * 500
    with start("status", "--watch", "--interval", "0.1", "--socket", agent.socket_path) as watch:
        assert watch.stdout is not None
        watch.stdout.close()
        assert watch.wait(timeout=30) == 0
        assert watch.stderr is not None
        assert watch.stderr.read() == ""


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_a_closed_pipe_is_quiet_and_does_not_change_the_exit_code(agent: FakeAgent, how: list[str]):
    """The switch was made, whoever reads about it."""
    agent.answers["POST", "/v1/services/shop/switch"] = (200, operation())
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [*PROGRAM, "green", "--socket", str(agent.socket_path), *how],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_ctrl_c_while_waiting_is_130_and_one_line(agent: FakeAgent, directory: Path):
    import socket

    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(directory / "silent.sock"))
        silent.listen()
        with start("green", "-s", "shop", "--socket", directory / "silent.sock") as waiting:
            connection, _ = silent.accept()
            with connection:
                wait_until(lambda: b"POST" in connection.recv(4096), "the request came")
                waiting.send_signal(signal.SIGINT)
                out, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, out) == (130, "")
    assert len(err.strip().splitlines()) == 1


def test_the_fast_path_loads_nothing_heavy(agent: FakeAgent):
    """Starting is what a status costs; this is what keeps it cheap."""
    code = (
        "import sys; from lbswitch.cli.main import main; code = main(sys.argv[1:]); "
        "heavy = {'pydantic', 'yaml', 'asyncio', 'http.client', 'httpx', 'rich', 'lbswitch.core.config', 'logging', "
        "'urllib.parse', 'subprocess'}; loaded = heavy & set(sys.modules); "
        "sys.exit(code or ' '.join(sorted(loaded)) or 0)"
    )
    argv = [sys.executable, "-c", code, "status", "--socket", str(agent.socket_path)]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_the_program(shell: str):
    with start("completion", shell) as ran:
        out, err = ran.communicate(timeout=30)
    assert (ran.returncode, err) == (0, "")
    assert "_LBSWITCH_COMPLETE" in out


def complete(*words: str, socket_path: object) -> list[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "_LBSWITCH_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
        "LBSWITCH_SOCKET": str(socket_path),
    }
    with start(env=environment) as ran:
        out, err = ran.communicate(timeout=30)
    assert err == ""
    return [line.partition(",")[2] for line in out.splitlines() if line]


def test_commands_and_service_names_are_completed(agent: FakeAgent):
    agent.answers["GET", "/v1/services"] = (200, status(shop=service(), shipping=service(), cart=service()))
    assert complete("lbswitch", "ro", socket_path=agent.socket_path) == ["rollback"]
    assert complete("lbswitch", "green", "-s", "sh", socket_path=agent.socket_path) == ["shop", "shipping"]


def test_completion_without_an_agent_is_quiet(directory: Path):
    assert complete("lbswitch", "green", "-s", "sh", socket_path=directory / "none.sock") == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_bash_script_is_valid(tmp_path: Path):
    with start("completion", "bash") as ran:
        (tmp_path / "script").write_text(ran.communicate(timeout=30)[0])
    subprocess.run(["bash", "-n", str(tmp_path / "script")], check=True, timeout=30)
