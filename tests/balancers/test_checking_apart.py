"""`lbswitch check` needs no rights on the state directory and leaves nothing there; stopping nothing leaves nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from lbswitch import local
from lbswitch.errors import CheckFailed
from tests.balancers.haproxy.managed import binaries as haproxies
from tests.balancers.nginx.site import binaries as nginxes
from tests.support.agent import make_short_directory
from tests.support.ports import free_port

_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = "import sys; sys.argv[0] = 'lbswitch'; from lbswitch.cli.main import main; sys.exit(main())"
_AS_NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
_KINDS = [*(("nginx", one) for one in nginxes()), *(("haproxy", one) for one in haproxies())]
_as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


class Place:
    """A configuration file, and a state directory that does not exist yet."""

    def __init__(self, directory: Path, kind: str, binary: str) -> None:
        self.directory = directory
        self.state = directory / "var" / "state"
        self.state.parent.mkdir()
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self.temporary.chmod(0o1777)
        self.config = directory / "lbswitch.yaml"
        self._balancer = {"kind": kind, "binary": binary}
        self.write({"shop": {}, "api": {"switching": "reload"}})

    def write(self, services: dict[str, dict[str, Any]], **balancer: Any) -> None:
        pools = {"blue": {"servers": ["127.0.0.1:1"]}, "green": {"servers": ["127.0.0.1:2"]}}
        document = {
            "agent": {"state_dir": str(self.state)},
            "balancer": {**self._balancer, **balancer},
            "services": {
                name: {"bind": f"127.0.0.1:{free_port()}", **pools, **settings} for name, settings in services.items()
            },
        }
        self.config.write_text(yaml.safe_dump(document))

    def install(self) -> None:
        """What an agent leaves on disk."""
        handle = local.balancer(self.config)._balancer
        intent = local._intent(local.configfile.load(self.config), handle)
        rendered = handle.render(intent)
        handle.install(rendered)
        handle.commit(intent, intent.services)

    def files(self) -> list[tuple[str, int, int, int]]:
        """Everything below, with modes, times and sizes."""
        found = []
        for path in sorted(self.directory.rglob("*")):
            status = path.lstat()
            found.append((str(path), status.st_mode, status.st_mtime_ns, 0 if path.is_dir() else status.st_size))
        return [entry for entry in found if entry[0] != str(self.temporary)]

    def lbswitch(self, *arguments: str, as_nobody: bool) -> subprocess.CompletedProcess[str]:
        argv = [
            *(_AS_NOBODY if as_nobody else []),
            sys.executable,
            "-c",
            _PROGRAM,
            "--config",
            str(self.config),
            *arguments,
        ]
        environment = {**os.environ, "HOME": "/nonexistent", "TMPDIR": str(self.temporary)}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(_ROOT / "agent")}
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment, cwd="/")


class Pair(NamedTuple):
    cert: str
    key: str


@pytest.fixture(params=_KINDS or [None], ids=lambda param: "-".join(param or ["none"]))
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param is None:
        pytest.skip("neither nginx nor HAProxy on this machine")
    directory = make_short_directory()
    yield Place(directory, *request.param)
    shutil.rmtree(directory)


@pytest.fixture
def nobody() -> None:
    """Python and lbswitch may be installed where only root can read."""
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv to become somebody else")
    argv = [*_AS_NOBODY, sys.executable, "-c", "import lbswitch.cli.main, lbswitch.local"]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT / "agent")}
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", env=environment, timeout=60)
    if done.returncode:
        pytest.skip(f"another user can't run lbswitch here: {done.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """Two self-signed certificates with their keys."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make certificates")
    made = []
    for name in ("one", "two"):
        directory = tmp_path_factory.mktemp(name)
        pair = Pair(str(directory / "cert.pem"), str(directory / "key.pem"))
        argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        argv += ["-subj", f"/CN={name}", "-days", "2", "-keyout", pair.key, "-out", pair.cert]
        subprocess.run(argv, check=True, capture_output=True, timeout=30)
        made.append(pair)
    return made


@_as_root
@pytest.mark.usefixtures("nobody")
def test_another_user_checks_what_is_installed(place: Place):
    """Who may only read the state directory is told the same as the agent, and nothing changes anywhere."""
    place.install()
    before = place.files()
    done = place.lbswitch("check", as_nobody=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert place.files() == before


@_as_root
@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("command", ["check", "render"])
def test_another_user_checks_a_state_directory_that_is_closed(place: Place, command: str):
    """Who may not even look there can judge the configuration all the same."""
    place.install()
    place.state.chmod(0o700)
    before = place.files()
    done = place.lbswitch(command, as_nobody=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert place.files() == before


@_as_root
@pytest.mark.usefixtures("nobody")
def test_another_user_checks_listeners_that_it_may_not_have(place: Place):
    """Whether the agent may listen there is not this user's to find out."""
    place.state.parent.chmod(0o711)
    place.write({"shop": {"bind": f"unix:{place.state.parent}/shop.sock"}})
    done = place.lbswitch("check", as_nobody=True)
    assert done.returncode == 0, done.stdout + done.stderr


@_as_root
@pytest.mark.usefixtures("nobody")
def test_a_key_that_only_root_may_read(place: Place, pairs: list[Pair]):
    """It can't be judged, and who can judge it is said; root then does."""
    copies = Pair(str(place.directory / "cert.pem"), str(place.directory / "key.pem"))
    for source, copy in zip(pairs[0], copies, strict=True):
        shutil.copy(source, copy)
    Path(copies.cert).chmod(0o644)
    Path(copies.key).chmod(0o600)
    place.write({"shop": {"tls": copies._asdict()}})
    done = place.lbswitch("check", as_nobody=True)
    assert done.returncode != 0
    words = f"services.shop.tls.key: {copies.key} can't be read by this user (nobody): run lbswitch check as root"
    assert words in re.sub(r"\s+", " ", done.stderr)
    assert place.lbswitch("check", as_nobody=False).returncode == 0


def test_a_first_check_makes_no_state_directory(place: Place):
    """Not even while there is none yet, and no temporary file stays."""
    before = place.files()
    done = place.lbswitch("check", "--json", as_nobody=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["installed"] is None
    assert place.files() == before


def test_a_check_touches_nothing_that_is_installed(place: Place):
    """Nor after a failed one: modes, times and sizes are as before."""
    place.install()
    before = place.files()
    assert place.lbswitch("check", as_nobody=False).returncode == 0
    place.write({"shop": {"bind": "127.0.0.1:18181"}, "api": {"bind": "127.0.0.1:18181"}})
    assert place.lbswitch("check", as_nobody=False).returncode != 0
    known = str(place.config)
    assert [one for one in place.files() if one[0] != known] == [one for one in before if one[0] != known]


def test_a_stop_with_nothing_installed_leaves_nothing(place: Place):
    """No state directory, and no mark that somebody stopped what never was."""
    for made in ("", "nginx", "haproxy"):
        if made:
            (place.state / made).mkdir(parents=True)
        before = place.files()
        local.balancer(place.config).stop()
        assert place.files() == before


def test_everything_wrong_with_tls_files_is_told_at_once(place: Place, pairs: list[Pair]):
    """Missing files and keys that do not fit, of every service, a line each."""
    one, two = pairs
    garbage = place.directory / "garbage.pem"
    garbage.write_text("no PEM\n")
    place.write(
        {
            "good": {"tls": one._asdict()},
            "gone": {"tls": {"cert": "/nowhere/cert.pem", "key": "/nowhere/key.pem"}},
            "half": {"tls": {"cert": two.cert, "key": "/nowhere/half.pem"}},
            "mixed": {"tls": {"cert": one.cert, "key": two.key}},
            "text": {"tls": {"cert": str(garbage), "key": one.key}},
        }
    )
    with pytest.raises(CheckFailed) as raised:
        local.check(place.config)
    lines = str(raised.value).splitlines()
    assert lines[:3] == [
        "services.gone.tls.cert: /nowhere/cert.pem does not exist",
        "services.gone.tls.key: /nowhere/key.pem does not exist",
        "services.half.tls.key: /nowhere/half.pem does not exist",
    ]
    assert lines[3].startswith(f"services.mixed.tls.key: {two.key} does not fit tls.cert {one.cert}")
    assert lines[4].startswith(f"services.text.tls.key: {one.key} does not fit tls.cert {garbage}")
    assert len(lines) == 5


@_as_root
def test_an_unknown_user_is_told_with_the_rest(place: Place):
    """One run is enough to learn of both."""
    place.write({"shop": {"tls": {"cert": "/nowhere/cert.pem", "key": "/nowhere/key.pem"}}}, user="no-such-user")
    with pytest.raises(CheckFailed) as raised:
        local.check(place.config)
    lines = str(raised.value).splitlines()
    assert lines[0] == "balancer.user no-such-user: there is no such user on this host"
    assert len(lines) == 3
