"""The interview, on a terminal of its own."""

import os
import pty
import re
import select
import sys
import time

from tests.setup.owner import NginxOwner, run

PROGRAM = "import sys; from lbswitch.cli.main import main; sys.exit(main())"
_PATIENCE_S = 60.0


def converse(owner: NginxOwner, answers: list[tuple[str, str]], *arguments: str) -> tuple[int, str]:
    """Run a command on a terminal; say each answer when its question was seen. Exit code and all that was shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update({**owner.env, "TERM": "dumb"})
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM, "--config", str(owner.config_path), *arguments])
    seen, waiting = "", list(answers)
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 1.0)[0]:
                continue
            part = os.read(terminal, 65536)
            if not part:
                break
            seen += part.decode(errors="replace")
            if waiting and re.search(waiting[0][0], seen[seen.rfind("~~answered~~") + 1 :]):
                os.write(terminal, waiting.pop(0)[1].encode() + b"\n")
                seen += "~~answered~~"
    except OSError:  # Linux: the other end was closed
        pass
    finally:
        os.close(terminal)
    _, ended = os.waitpid(pid, 0)
    assert not waiting, f"never asked: {waiting}\n{seen}"
    return os.waitstatus_to_exitcode(ended), seen.replace("~~answered~~", "")


QUESTIONS = [("How should lbswitch work", ""), ("Which upstream", ""), ("service called", "shop2"), ("Which path", "")]


def test_every_question_has_a_proposed_answer(nginx: NginxOwner):
    """Enter takes it; what is typed counts; nothing is written before the last yes."""
    code, seen = converse(nginx, [*QUESTIONS, ("Write these changes", "y")], "init", *nginx.init_options())
    assert code == 0, seen
    assert "the listener shows it" in seen
    assert "services:\n  shop2:" in nginx.config_path.read_text()
    code, seen = converse(nginx, [("Write these changes", "y")], "uninstall")
    assert code == 0, seen


def test_no_is_an_answer(nginx: NginxOwner):
    before = nginx.snapshot()
    code, seen = converse(nginx, [*QUESTIONS, ("Write these changes", "n")], "init", *nginx.init_options())
    assert code == 3
    assert "nothing was changed" in seen
    assert nginx.snapshot() == before
    assert not nginx.config_path.exists()


def test_ctrl_c_leaves_everything_as_it_is(nginx: NginxOwner):
    before = nginx.snapshot()
    code, seen = converse(nginx, [QUESTIONS[0], ("Which upstream", "\x03")], "init", *nginx.init_options())
    assert code == 130
    assert "Traceback" not in seen
    assert nginx.snapshot() == before


def test_a_value_that_is_wrong_is_said_before_anything_is_shown(nginx: NginxOwner):
    options = ["--adopt-blue", "shop_blue", "--green", "10.0.0.1:0; return 200"]
    said = run(nginx, "init", *nginx.init_options(), "--yes", *options)
    assert said.code == 2
    assert "services.shop.green.servers.0" in said.output
    assert not nginx.config_path.exists()
