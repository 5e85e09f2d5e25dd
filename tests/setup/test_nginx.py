"""init and uninstall on a packaged nginx with its default site and a second TLS site, really running."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lbswitch.errors import NotAllowed
from lbswitch.setup.carry_out import refuse_unwritable
from lbswitch.setup.changes import edited
from lbswitch.setup.edits import Edit
from tests.setup.owner import NginxOwner, run
from tests.support.wait import wait_until


def init(owner: NginxOwner, *more: str) -> None:
    said = run(owner, "init", *owner.init_options(), "--yes", *more)
    assert said.code == 0, said.output


def changed(before: dict[str, tuple[str, int, int, int]], owner: NginxOwner) -> set[str]:
    after = owner.snapshot()
    return {Path(path).name for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def test_the_main_job(nginx: NginxOwner):
    """Plug in, switch, roll back, unplug: only consented lines differ in between, and not one byte afterwards."""
    before = nginx.snapshot()
    site = nginx.site.read_bytes()
    init(nginx)
    assert changed(before, nginx) == {"shop", "lbswitch.conf"}
    lines = site.splitlines(keepends=True)
    after = nginx.site.read_bytes().splitlines(keepends=True)
    assert after[7] == f"    include {nginx.root}/lbswitch/current/shop.server.conf;\r\n".encode()
    assert after[14] == lines[13].replace(b"http://shop_blue", b"http://$lbswitch_shop")
    assert after[:7] + after[8:14] + after[15:] == lines[:13] + lines[14:]
    assert nginx.site.stat().st_mode & 0o777 == 0o640
    assert run(nginx, "check").code == 0
    with nginx.agent() as agent:
        assert agent.lbswitch("green").code == 0
        assert nginx.serves() == "green"
        assert agent.lbswitch("rollback").code == 0
        assert nginx.serves() == "blue"
    said = run(nginx, "uninstall", "--yes")
    assert said.code == 0, said.output
    assert nginx.snapshot() == before
    assert nginx.serves() == "blue"
    assert not (nginx.root / "lbswitch").exists()
    assert "the default site" in nginx.get(nginx.plain_url)


def test_a_directory_that_was_prepared_goes_too(nginx: NginxOwner):
    """As service files have it; and `uninstall` says what it keeps."""
    (nginx.root / "lbswitch").mkdir()
    init(nginx)
    said = run(nginx, "uninstall", "--yes")
    assert said.code == 0, said.output
    assert not (nginx.root / "lbswitch").exists()
    assert f"kept: {nginx.config_path}, {nginx.state_dir}" in said.output


def test_nothing_is_written_without_consent(nginx: NginxOwner):
    """The whole diff is shown; exit code 2 says that consent is missing, 0 that a dry run was asked for."""
    before = nginx.snapshot()
    refused = run(nginx, "init", *nginx.init_options())
    dry = run(nginx, "init", *nginx.init_options(), "--dry-run")
    as_json = run(nginx, "init", *nginx.init_options(), "--json")
    assert (refused.code, dry.code, as_json.code) == (2, 0, 2)
    assert "nobody has consented" in refused.output
    for path in (nginx.site, nginx.root / "conf.d" / "lbswitch.conf", nginx.config_path):
        assert f"+++ {path}" in dry.output
    assert as_json.output["applied"] is False
    assert [Path(each["path"]).name for each in as_json.output["files"]] == ["shop", "lbswitch.conf", "lbswitch.yaml"]
    assert nginx.snapshot() == before
    assert not nginx.config_path.exists()
    assert not nginx.state_dir.exists()


def test_a_site_that_can_not_be_seen_puts_everything_back(nginx: NginxOwner):
    """A name that leads to another server: the reload works, the listener does not show it, all is as it was."""
    before = nginx.snapshot()
    said = run(nginx, "init", *nginx.init_options(), "--yes", "--bind", f"127.0.0.1:{nginx.port}", "--no-verify-tls")
    assert said.code == 4
    assert "not seen" in said.output
    assert nginx.snapshot() == before
    assert not nginx.config_path.exists()
    assert not (nginx.state_dir / "init").exists()
    assert nginx.serves() == "blue"
    wait_until(lambda: answers_as_its_owner_says(nginx), "nginx runs what is on disk")
    init(nginx)


def test_a_broken_configuration_of_the_owner_is_not_touched(nginx: NginxOwner):
    """nginx's own words are said, and not a byte is written."""
    (nginx.root / "conf.d" / "mistake.conf").write_text("server { listen 127.0.0.1:1; nonsense on; }\n")
    before = nginx.snapshot()
    said = run(nginx, "init", *nginx.init_options(), "--yes")
    assert said.code == 2
    assert 'unknown directive "nonsense"' in said.output
    assert nginx.snapshot() == before
    assert not nginx.config_path.exists()


@pytest.mark.parametrize(
    ("what", "step"),
    [
        *(("init", step) for step in ("install", "edit-1", "edit-2", "check", "reload", "verify", "finish")),
        *(("uninstall", step) for step in ("edit-1", "edit-2", "check", "reload", "verify", "forget")),
    ],
)
def test_a_crash_in_the_middle_is_undone(nginx: NginxOwner, what: str, step: str):
    """kill -9 before any step: the next command finds the record, and everything is as before, or goes on."""
    before = nginx.snapshot()
    if what == "uninstall":
        init(nginx)
    assert killed(nginx, what, step) == -9
    said = run(nginx, "uninstall", "--yes", "--state-dir", str(nginx.state_dir))
    if what == "init":
        assert "that did not end was undone" in said.output
        assert "nothing to undo" in said.output
    else:
        assert said.code == 0, said.output
    assert nginx.snapshot() == before
    assert nginx.serves() == "blue"
    wait_until(lambda: answers_as_its_owner_says(nginx), "nginx runs what is on disk")


def answers_as_its_owner_says(owner: NginxOwner) -> bool:
    """The question of lbswitch is the application's to answer."""
    return owner.get(f"{owner.url}.lbswitch/state/shop", host="shop.example").startswith("blue v1")


def killed(owner: NginxOwner, what: str, step: str) -> int:
    """Run init or uninstall until a step, and kill it there."""
    program = f"""
import os, signal
from pathlib import Path
from lbswitch.core.config import BalancerKind
from lbswitch.setup import carry_out, proposal, removal
from lbswitch.setup.asking import Nobody
from lbswitch.setup.wishes import Wishes

def at(name):
    if name == {step!r}:
        os.kill(os.getpid(), signal.SIGKILL)

if {what!r} == "init":
    wishes = Wishes(Path({str(owner.config_path)!r}), BalancerKind.NGINX, config=({str(owner.main)!r},),
                    state_dir={str(owner.state_dir)!r}, socket={str(owner.socket)!r})
    carry_out.carry_out(proposal.propose(wishes, Nobody()), step=at)
else:
    removal.remove(removal.propose(Path({str(owner.state_dir)!r})), step=at)
"""
    return subprocess.run([sys.executable, "-c", program], env=owner.env, timeout=60, check=False).returncode


def test_what_the_owner_edited_since_is_kept(nginx: NginxOwner):
    """Only our lines are taken out, wherever they are by now."""
    site = nginx.site.read_bytes()
    init(nginx)
    edited = nginx.site.read_bytes().replace(b"# the shop,", b"# the very shop,").replace(b"robots", b"humans")
    nginx.site.write_bytes(edited)
    said = run(nginx, "uninstall", "--yes")
    assert said.code == 0, said.output
    assert "was edited since" in said.output
    assert nginx.site.read_bytes() == site.replace(b"# the shop,", b"# the very shop,").replace(b"robots", b"humans")


def test_lines_of_the_owner_that_use_lbswitch_stop_the_removal(nginx: NginxOwner):
    """Their place is said, and nothing is changed."""
    init(nginx)
    text = nginx.site.read_bytes().replace(b'return 200 "none"', b'return 200 "$lbswitch_shop"')
    nginx.site.write_bytes(text)
    said = run(nginx, "uninstall", "--yes")
    assert said.code == 3
    assert f"{nginx.site}:18: " in said.output
    assert nginx.site.read_bytes() == text


def test_traffic_does_not_move_by_an_uninstall(nginx: NginxOwner):
    """Green is live and the owner's line says blue: refused, unless --force."""
    before = nginx.snapshot()
    init(nginx)
    with nginx.agent() as agent:
        assert agent.lbswitch("green").code == 0
        running = run(nginx, "uninstall", "--yes", "--force")
        assert running.code == 1
        assert f"in use by another agent, pid {agent.pid}" in running.output
    refused = run(nginx, "uninstall", "--yes")
    assert refused.code == 3
    assert "green serves now" in refused.output
    assert nginx.serves() == "green"
    assert run(nginx, "uninstall", "--yes", "--force", "--purge").code == 0
    assert nginx.serves() == "blue"
    assert nginx.snapshot() == before
    assert not nginx.state_dir.exists()
    assert not nginx.config_path.exists()


def test_a_second_service_is_added(nginx: NginxOwner):
    """The first stays what it is; uninstall takes out both."""
    port = nginx.port
    other = nginx.root / "conf.d" / "cart.conf"
    other.write_text(
        "upstream cart { server 127.0.0.1:9; }\n"
        f"server {{ listen 127.0.0.1:{port}; server_name cart.example; location / {{ proxy_pass http://cart; }} }}\n"
    )
    nginx.reload()
    before = nginx.snapshot()
    init(nginx)
    first = nginx.config_path.read_text()
    init(nginx, "--adopt-blue", "cart", "--green", "127.0.0.1:10")
    assert nginx.config_path.read_text().startswith(first)
    text = other.read_text()
    assert "server { include " in text
    assert "proxy_set_header Host cart; proxy_redirect http://cart/ /; proxy_pass http://$lbswitch_cart;" in text
    again = run(nginx, "init", *nginx.init_options(), "--yes", "-s", "cart", "--adopt-blue", "cart")
    assert again.code == 2
    assert "has a service 'cart' already" in again.output
    with nginx.agent() as agent:
        assert agent.lbswitch("green", "-s", "shop").code == 0
        assert agent.lbswitch("blue", "-s", "shop").code == 0
    said = run(nginx, "uninstall", "--yes")
    assert said.code == 0, said.output
    assert nginx.snapshot() == before


def test_a_failed_second_service_leaves_the_first(nginx: NginxOwner):
    """Every file is as the first init left it, and lbswitch still switches."""
    (nginx.root / "conf.d" / "cart.conf").write_text(
        "upstream cart { server 127.0.0.1:9; }\n"
        f"server {{ listen 127.0.0.1:{nginx.port}; server_name cart.example;\n"
        "location / { proxy_pass http://cart; } }\n"
    )
    nginx.reload()
    init(nginx)
    before, text = nginx.snapshot(), nginx.config_path.read_text()
    options = ["--adopt-blue", "cart", "--green", "127.0.0.1:10", "--verify-host", "elsewhere.example"]
    assert run(nginx, "init", *nginx.init_options(), "--yes", *options).code == 4
    assert nginx.snapshot() == before
    assert nginx.config_path.read_text() == text
    with nginx.agent() as agent:
        assert agent.lbswitch("green").code == 0
    assert nginx.serves() == "green"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become somebody else")
def test_another_user_is_told_which_files_are_closed(tmp_path: Path):
    """All of them at once, and nothing is changed."""
    path = tmp_path / "site"
    path.write_text("server {}\n")
    change = edited(path, [Edit(0, b"", b"# ours\n", whole_line=True)])
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            refuse_unwritable([change])
        except NotAllowed as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        assert said.read().startswith(f"user 65534 may not change {path}; nothing was changed")
    os.waitpid(pid, 0)


def test_several_servers_and_a_path_behind_the_name(nginx: NginxOwner):
    """With a variable `http://shop/` means something else: refused, with the line and what to write."""
    nginx.site.write_bytes(nginx.site.read_bytes().replace(b"http://shop_blue;", b"http://shop_blue/v2/;"))
    before = nginx.snapshot()
    said = run(nginx, "init", *nginx.init_options(), "--yes")
    assert said.code == 2
    assert f"{nginx.root}/sites-enabled/shop:14: " in said.output
    assert "rewrite ^/(.*)$ /v2/$1 break;" in said.output
    assert nginx.snapshot() == before
