"""The configuration file on disk: what is wrong with it is said as for its text, and its socket is found quickly."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lbswitch import configfile
from lbswitch.core import defaults
from lbswitch.core.config import AgentConfig
from lbswitch.core.config_text import parse
from lbswitch.errors import ConfigError

REST = """\
balancer: {kind: nginx}
services:
  shop:
    bind: 127.0.0.1:8080
    blue: {servers: [127.0.0.1:9101]}
    green: {servers: [127.0.0.1:9102]}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lbswitch.yaml"


def answer(ask: Callable[[Path], str], path: Path) -> str:
    """What it says, or why it can't."""
    try:
        return ask(path)
    except ConfigError as error:
        return f"refused: {error}"


def parse_only_socket(block: str) -> str:
    """`agent.socket` as YAML has it; `nothing` without one that is of use."""
    try:
        agent = yaml.compose(block)
    except yaml.YAMLError:
        return "nothing"
    pairs = [(key.value, value.value) for key, value in agent.value[0][1].value]
    names = [name for name, _ in pairs]
    found = str(dict(pairs).get("socket", defaults.SOCKET))
    return found if found.startswith("/") and len(set(names)) == len(names) else "nothing"


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        configfile.load(path)
    with pytest.raises(ConfigError) as again:
        configfile.socket_of(path)
    assert str(again.value) == str(caught.value)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_load(path):
    """A file becomes a configuration."""
    path.write_text(REST)
    assert list(configfile.load(path).services) == ["shop"]


def test_problems_name_the_file(path):
    """Every problem begins with the file and the line."""
    path.write_text(REST.replace("nginx", "apache"))
    with pytest.raises(ConfigError) as caught:
        configfile.load(path)
    assert str(caught.value) == f"{path}:1: balancer.kind: is 'apache', which is none of nginx, haproxy"


def test_no_file(path):
    """Says where it was looked for and how to name another."""
    assert refusal(path) == (
        f"{path}: does not exist: write one there, or name another with --config or LBSWITCH_CONFIG"
    )


def test_directory(tmp_path):
    """A directory is not a file."""
    assert refusal(tmp_path) == f"{tmp_path}: is a directory: name another with --config or LBSWITCH_CONFIG"


def test_below_a_file(path):
    """Whatever else the system says is passed on."""
    path.write_text(REST)
    assert refusal(path / "x") == f"{path}/x: can't be read: Not a directory"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_not_readable_by_this_user(path):
    """Says which user it is that may not read it."""
    path.write_text(REST)
    path.chmod(0o600)
    for parent in path.parents[:3]:
        parent.chmod(0o755)
    code = (
        "import os, sys; from pathlib import Path; from lbswitch import configfile, errors\n"
        "import lbswitch.core.config_text\n"
        "os.setuid(65534)\n"
        "try: configfile.load(Path(sys.argv[1]))\n"
        "except errors.ConfigError as error: print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout.startswith(f"{path}: may not be read by this user (uid 65534): run as another user")


def test_too_large(path):
    """A disk image given by mistake is not read into memory."""
    with path.open("wb") as file:
        file.truncate(17 * 1024 * 1024)
    assert refusal(path) == f"{path}: is larger than 16 MiB: this is not a configuration of lbswitch"


def test_not_utf8(path):
    """Says the line and the byte."""
    path.write_bytes(REST.encode() + b"# caf\xe9\n")
    assert refusal(path) == f"{path}:7: is not UTF-8: byte 0xe9; save it as UTF-8"


def test_default_path(monkeypatch):
    """The environment names it; unset or empty it is the system's."""
    monkeypatch.setenv("LBSWITCH_CONFIG", "/etc/other.yaml")
    assert configfile.default_path() == Path("/etc/other.yaml")
    monkeypatch.setenv("LBSWITCH_CONFIG", "")
    assert configfile.default_path() == Path("/etc/lbswitch/lbswitch.yaml")
    monkeypatch.delenv("LBSWITCH_CONFIG")
    assert configfile.default_path() == Path("/etc/lbswitch/lbswitch.yaml")


class TestSocket:
    @pytest.mark.parametrize(
        "agent",
        [
            *("", "agent: {}\n", "agent: {listen: '127.0.0.1:1'}\n", "agent: {socket: /run/a.sock}\n"),
            *(
                "agent:\n  socket: /run/a.sock\n",
                "agent:\n\n# why\n  listen: localhost:1\n\n  socket: '/run/a.sock'  # x\n",
            ),
            *("---\nagent: {socket: /run/a.sock}\n", "# first\n\nagent: {socket: /run/a.sock}\n", "\ufeffagent: {}\n"),
            *(
                "'agent': {socket: /run/a.sock}\n",
                '"agent" : {socket: /run/a.sock}\n',
                "? agent\n: {socket: /run/a.sock}\n",
            ),
            *(
                "agent: {\n  socket: /run/a.sock\n}\n",
                "agent: &a {socket: &s /run/a.sock}\n",
                "agent: {<<: {socket: /run/a.sock}}\n",
            ),
            "agent: !!map {}\n",
            "agent: {socket: relative}\n",
            "agent: {socket: 5}\n",
            "agent:\n",
            "agent: x\n",
            "agent: {}\nagent: {socket: /run/a.sock}\n",
            "agent: [\n",
        ],
    )
    @pytest.mark.parametrize("order", ["first", "last"])
    def test_the_same_as_the_whole_file_says(self, path, agent, order):
        """Quick or not, the answer is what the agent itself would read: a socket, or the same errors."""
        path.write_text(agent + REST if order == "first" else REST + agent.removeprefix("---\n"))
        assert answer(configfile.socket_of, path) == answer(lambda path: configfile.load(path).agent.socket, path)

    @pytest.mark.parametrize(
        "block",
        [
            "agent: {state_dir: /var/lib/a, socket: /run/a.sock}\n",
            "agent: {state_dir: /var/lib/a, snapshots: {keep: 3}, socket: /run/a.sock}\n",
            "agent: {state_dir: /var/lib/a, socket: /run/a.sock, socket: /run/b.sock}\n",
            "agent:\n  state_dir: /var/lib/a  # here\n  socket: /run/a.sock # there\n",
            "agent:  # ours\n   wait: {min: 1s}\n   snapshots:\n      keep: 3\n   socket: /run/a.sock\n",
            "agent:\n  snapshots:\n    keep: 3\n",
            "agent:\n  socket:\n    /run/a.sock\n",
            "agent:\n  socket: /run/a.sock\n    more\n",
            "agent:\n  socket: /run/a.sock#1\n",
            "agent:\n  listen: '127.0.0.1:1\n  socket: /run/a.sock # x'\n",
            "agent:\n  wait: {min: 1s,\n  socket: /run/a.sock\n  }\n",
            "agent:\n\tsocket: /run/a.sock\n",
            "agent:\n  state_dir: /var/lib/a\n socket: /run/a.sock\n",
            "agent:\n  socket: /run/a.sock\n  socket: /run/a.sock\n",
        ],
    )
    def test_without_a_parser_it_is_what_the_parser_says(self, path, block):
        """Whatever is not plain is left to YAML; nothing is read out of it that is not there."""
        path.write_text(block)
        socket = parse_only_socket(block)
        assert (configfile.likely_socket(path) or "nothing") == socket

    def test_a_line_that_only_looks_like_it(self, path):
        """A text that goes on at the beginning of a line does not fool it."""
        path.write_text(REST + "    health: {body: '\nagent: {socket: /run/a.sock}'}\n")
        assert configfile.socket_of(path) == configfile.load(path).agent.socket == defaults.SOCKET

    def test_flow_style(self, path):
        """JSON is YAML too."""
        config = parse("agent: {socket: /run/a.sock}\n" + REST, "a")
        path.write_text(config.model_dump_json())
        assert configfile.socket_of(path) == "/run/a.sock"

    def test_an_error_elsewhere_does_not_matter(self, path):
        """`lbswitch status` works while somebody is in the middle of editing a service."""
        path.write_text("agent: {socket: /run/a.sock}\n" + REST + "    health: {intervall: 1s}\n")
        assert configfile.socket_of(path) == "/run/a.sock"

    @pytest.mark.parametrize("agent", ["", "agent:\n  socket: /run/a.sock\n", "agent: {socket: '/run/a.sock'}\n"])
    def test_without_the_heavy_parts(self, path, agent):
        """Neither pydantic nor a YAML parser is loaded when there is nothing for it to do."""
        path.write_text(agent + REST)
        code = (
            "import sys; from pathlib import Path; from lbswitch.configfile import socket_of\n"
            "print(socket_of(Path(sys.argv[1])), 'pydantic' in sys.modules, 'yaml' in sys.modules)"
        )
        said = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=True
        )
        assert said.stdout.split() == [
            *("/run/a.sock" if agent else defaults.SOCKET, "False", str("'" in agent)),
        ]

    def test_default_is_the_same_everywhere(self):
        """The quick way and the model agree on the default."""
        assert AgentConfig().socket == defaults.SOCKET
