"""The units, rules and the man page in packaging/ say what systemd, polkit and lbswitch understand."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
UNITS = sorted((PACKAGING / "systemd").glob("*.service"))
DROP_INS = sorted((PACKAGING / "systemd" / "lbswitch.service.d").glob("*.conf"))
_PROGRAM = "import sys; sys.argv[0] = 'lbswitch'; from lbswitch.cli.main import main; sys.exit(main())"
_PROTECTIONS = ("Protect", "Restrict", "Private", "SystemCall", "Capability", "Ambient", "NoNew", "Lock")


def settings(path: Path) -> Iterator[tuple[str, str]]:
    """Name and value of every line; comments and section names left out."""
    for line in path.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, mark, value = line.partition("=")
            assert mark, f"{path}: {line}"
            yield name, value


def value(path: Path, name: str) -> str:
    return dict(settings(path))[name]


@pytest.fixture
def verify(tmp_path: Path) -> Path:
    """A directory with the units, in which programs that are not installed here are `/bin/true`."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for unit in UNITS:
        text = unit.read_text().replace("/usr/local/bin/lbswitch", "/bin/true").replace("man:lbswitch(1)", "")
        (tmp_path / unit.name).write_text(re.sub(r"^(User|Group)=lbswitch$", r"\1=root", text, flags=re.MULTILINE))
    return tmp_path


def analyze(*units: Path) -> str:
    argv = ["systemd-analyze", "--man=no", "verify", *map(str, units)]
    environment = {**os.environ, "SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=environment)
    return done.stdout + done.stderr


def test_systemd_knows_every_directive(verify: Path):
    """`systemd-analyze verify` finds nothing to say about our units."""
    said = analyze(*(verify / unit.name for unit in UNITS))
    assert [line for line in said.splitlines() if "lbswitch" in line] == []


@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda path: path.stem)
def test_systemd_knows_every_directive_of_the_drop_ins(verify: Path, drop_in: Path):
    """With the agent's unit."""
    directory = verify / "lbswitch.service.d"
    directory.mkdir()
    shutil.copy(drop_in, directory)
    said = analyze(verify / "lbswitch.service")
    assert [line for line in said.splitlines() if "lbswitch" in line] == []


def test_a_misspelled_directive_would_be_found(verify: Path):
    """The tests above would pass for nothing if systemd-analyze were silent."""
    unit = verify / "lbswitch.service"
    unit.write_text(unit.read_text().replace("ProtectSystem=", "ProtectSytem="))
    assert "ProtectSytem" in analyze(unit)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_commands_and_options_of_the_units_exist(unit: Path):
    """What ExecStart and ExecStop run is known to lbswitch."""
    commands = [text.split() for name, text in settings(unit) if name.startswith("Exec") and "/lbswitch " in text]
    assert commands
    for argv in commands:
        command = [word for word in argv[1:] if not word.startswith("--") and word != "json"]
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *command, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert [option for option in argv if option.startswith("--") and option not in done.stdout] == []


def test_agent_and_balancer_have_the_same_protections():
    """A balancer that the agent started and one of its own unit can do the same, or a restart would break it."""
    agent, balancer = (
        [
            (name, text)
            for name, text in settings(PACKAGING / "systemd" / f"{unit}.service")
            if name.startswith(_PROTECTIONS)
        ]
        for unit in ("lbswitch", "lbswitch-balancer")
    )
    assert agent == balancer


def test_the_agent_has_one_capability_and_its_own_user():
    """No root, no other rights than a port below 1024, nothing to write to but its own directories."""
    unit = PACKAGING / "systemd" / "lbswitch.service"
    assert (value(unit, "User"), value(unit, "NoNewPrivileges")) == ("lbswitch", "yes")
    assert value(unit, "CapabilityBoundingSet") == value(unit, "AmbientCapabilities") == "CAP_NET_BIND_SERVICE"
    assert value(unit, "ProtectSystem") == "strict"
    assert "ReadWritePaths" not in dict(settings(unit))
    assert value(unit, "KillMode") == "process"
    assert (PACKAGING / "sysusers.d" / "lbswitch.conf").read_text().splitlines()[-1].startswith("u lbswitch ")


@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda path: path.stem)
def test_a_guest_may_read_and_write_one_directory(drop_in: Path):
    """The capabilities of managed mode are taken away, not added to; the agent starts without the directory, too."""
    lines = list(settings(drop_in))
    for name in ("CapabilityBoundingSet", "AmbientCapabilities"):
        assert [text for key, text in lines if key == name] == ["", "CAP_DAC_READ_SEARCH"]
    kind = drop_in.stem.removeprefix("guest-")
    assert dict(lines)["ReadWritePaths"] == f"-/etc/{kind}/lbswitch"


def test_a_balancer_that_runs_already_is_not_stopped_by_its_unit():
    """Without RemainAfterExit systemd takes the unit for ended at once, and runs ExecStop."""
    unit = PACKAGING / "systemd" / "lbswitch-balancer.service"
    assert (value(unit, "Type"), value(unit, "RemainAfterExit")) == ("forking", "yes")


def test_polkit_allows_the_reload_of_two_units_and_nothing_else():
    """To the agent's user; everything else stays as it was (the rule returns nothing)."""
    rule = (PACKAGING / "polkit-1" / "rules.d" / "50-lbswitch.rules").read_text()
    assert rule.count("polkit.Result") == 1
    assert 'action.lookup("verb") == "reload"' in rule
    assert set(re.findall(r'"([a-z-]+\.service)"', rule)) == {"nginx.service", "haproxy.service"}
    assert 'subject.user == "lbswitch"' in rule


def test_logrotate_takes_its_file(tmp_path: Path):
    """In a dry run."""
    program = shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("logrotate is not installed")
    log = tmp_path / "error.log"
    log.write_text("words\n")
    text = (PACKAGING / "logrotate" / "lbswitch").read_text()
    text = text.replace("/var/lib/lbswitch/nginx/error.log", str(log)).replace("    su lbswitch lbswitch\n", "")
    (tmp_path / "conf").write_text(text)
    argv = [program, "--debug", "--state", str(tmp_path / "state"), str(tmp_path / "conf")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "error:" not in done.stderr


def test_the_agent_is_started_again_for_as_long_as_it_takes():
    """Where it has to wait for somebody, such as a HAProxy that is not restarted yet, systemd does not give up."""
    unit = PACKAGING / "systemd" / "lbswitch.service"
    assert (value(unit, "Restart"), value(unit, "StartLimitIntervalSec")) == ("always", "0")


def test_the_man_page_is_that_of_the_commands():
    """It is made from their help; `.venv/bin/python scripts/man.py` writes it again."""
    argv = [sys.executable, str(ROOT / "scripts" / "man.py"), "--print"]
    environment = {name: text for name, text in os.environ.items() if not name.startswith("LBSWITCH_")}
    made = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True, env=environment).stdout
    page = (PACKAGING / "man" / "lbswitch.1").read_text()
    assert page.split() == made.split(), "run .venv/bin/python scripts/man.py"


def test_the_man_page_is_good_roff():
    """`man` finds nothing to complain of, and shows every command."""
    if shutil.which("man") is None or shutil.which("groff") is None:
        pytest.skip("man and groff are not installed")
    argv = ["man", "--warnings", "-l", "-Tutf8", str(PACKAGING / "man" / "lbswitch.1")]
    environment = {**os.environ, "MANWIDTH": "100", "MANPAGER": "cat", "MAN_KEEP_FORMATTING": ""}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "lbswitch balancer start" in done.stdout
