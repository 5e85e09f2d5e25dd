"""Rendering, checking and installing nginx's configuration."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lbswitch.balancers import nginx_user
from lbswitch.core.model import Route
from lbswitch.errors import BalancerMissing, BalancerTooOld, CheckFailed, RenderFailed
from tests.balancers.nginx.site import BLUE, GREEN, Site
from tests.support.ports import free_port
from tests.support.wait import wait_until

_STOCK = Path(__file__).resolve().parents[3] / "templates" / "nginx" / "nginx.conf.j2"
_as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can choose the workers' user")


def _site(directory, service, binary, **balancer) -> Site:
    return Site(directory, {"shop": service()}, binary, **balancer)


def _template(directory: Path, text: str) -> str:
    """A directory with this template in place of the stock one."""
    templates = directory / "templates"
    templates.mkdir(exist_ok=True)
    (templates / "nginx.conf.j2").write_text(text)
    return str(templates)


def _program(directory: Path, said: str) -> str:
    """A program that says this when asked for its version."""
    path = directory / "nginx"
    path.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{said}\nEND\n")
    path.chmod(0o755)
    return str(path)


def test_moving_pointers_changes_no_file(directory, service, binary):
    """The revision depends on what the file holds: not on routes that the pointer tells, nor on time or order."""
    shop = Site(directory, {"shop": service(), "api": service(weights={})}, binary)
    first = shop.nginx.render(shop.intent)
    moved = shop.after(shop=GREEN, api=Route(BLUE, 30))
    assert shop.nginx.render(moved) is first
    again = Site(directory, {"shop": service(), "api": service(weights={})}, binary)
    again.config.services.update(shop.config.services)
    assert again.nginx.render(moved) == first
    assert first.revision.encode() in first.files[0].content


def test_an_edited_template_is_rendered(directory, service, binary):
    """A template that changes while the agent runs gives another revision at the next rendering."""
    templates = _template(directory, _STOCK.read_text())
    shop = _site(directory, service, binary, templates=templates)
    first = shop.nginx.render(shop.intent)
    _template(directory, _STOCK.read_text() + "# edited\n")
    assert shop.nginx.render(shop.intent).revision != first.revision


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (
            "http {{ '{' }}\n    listen 80;\n}\n",
            r'"listen" directive is not allowed here in nginx\.conf:2 \(`listen 80;`\)',
        ),
        ("events {}\nhttp {\n  nonsense on;\n}\n", r'unknown directive "nonsense" in nginx\.conf:3'),
    ],
)
def test_bad_configuration(site, directory, broken, words):
    """What nginx refuses is told in its words with the line itself, nothing stays on disk, the old one serves."""
    shop = site(templates=_template(directory, _STOCK.read_text()))
    before = sorted(shop.state_dir.rglob("*"))
    _template(directory, broken)
    with pytest.raises(CheckFailed, match=words) as raised:
        shop.nginx.check(shop.nginx.render(shop.intent))
    assert str(shop.state_dir) not in str(raised.value)
    assert sorted(shop.state_dir.rglob("*")) == before
    assert shop.color() == "blue"


def test_bad_template(directory, service, binary):
    """A template error names file and line."""
    shop = _site(directory, service, binary, templates=_template(directory, "ok\n{{ service.nme }}\n"))
    with pytest.raises(RenderFailed, match=r"nginx\.conf\.j2:2"):
        shop.nginx.render(shop.intent)


def test_check_leaves_nothing_behind(directory, service, binary):
    """A good configuration's check leaves no pid file, log, socket or temporary directory, and binds nothing."""
    bind = f"unix:{directory}/shop.sock"
    shop = Site(directory, {"shop": service(bind=bind), "api": service()}, binary)
    shop.nginx.check(shop.nginx.render(shop.intent))
    assert [path for path in directory.rglob("*") if not path.is_dir()] == []
    assert shop.is_silent("api")


@pytest.mark.parametrize("missing", ["cert", "key"])
def test_missing_certificate(directory, service, binary, certificate, missing):
    """A certificate or key that is not there is named with its setting."""
    tls = dict(zip(("cert", "key"), map(str, certificate), strict=True)) | {missing: "/nowhere/file.pem"}
    shop = Site(directory, {"shop": service(tls=tls)}, binary)
    with pytest.raises(CheckFailed, match=rf"services\.shop\.tls\.{missing}: /nowhere/file\.pem does not exist"):
        shop.nginx.check(shop.nginx.render(shop.intent))


def test_renewed_certificate(directory, service, binary, certificate):
    """A certificate with another content is a change, to be checked and reloaded like any other; a copy is none."""
    copies = {kind: str(shutil.copy(path, directory)) for kind, path in zip(("cert", "key"), certificate, strict=True)}
    shop = Site(directory, {"shop": service(tls=copies)}, binary)
    first = shop.nginx.render(shop.intent)
    assert shop.nginx.render(shop.after(shop=GREEN)) is first
    shutil.copy(certificate[0], copies["cert"])
    assert shop.nginx.render(shop.intent).revision == first.revision
    Path(copies["cert"]).write_bytes(certificate[0].read_bytes() + b"\n")
    assert shop.nginx.render(shop.intent).revision != first.revision


def test_long_names_and_large_pools(directory, service, binary):
    """The longest service name, a thousand servers, the longest socket paths: nginx takes them."""
    name = "a" * 40 + "-" + "b" * 7
    servers = [f"unix:/{'x' * 90}/{number}" for number in range(1000)]
    shop = Site(directory, {name: service(blue={"servers": servers}, weights={"sticky": "cookie:" + "c" * 64})}, binary)
    shop.nginx.check(shop.nginx.render(shop.intent))


def test_few_connections(directory, service, binary):
    """Listeners take none of the connections that were configured: many services start with few."""
    services = {f"s{number}": service() for number in range(80)}
    with Site(directory, services, binary, connections=64) as site:
        assert site.color("s79") == "blue"


def test_a_thousand_services(directory, service, binary):
    """A thousand services are checked, started and switched together."""
    one = service()
    services = {f"s{n}": {**one, "bind": f"unix:{directory}/s{n}.sock"} for n in range(999)} | {"shop": one}
    with Site(directory, services, binary) as site:
        site.switch(**dict.fromkeys(services, GREEN))
        assert {site.color(name) for name in ("s0", "s500", "shop")} == {"green"}
        assert (site.prefix / "error.log").read_text() == ""


def test_no_program(directory, service):
    """A missing nginx is told together with how to get one."""
    shop = _site(directory, service, f"{directory}/nginx")
    with pytest.raises(BalancerMissing, match=r"apt-get install nginx.*pip install 'lbswitch\[nginx\]'"):
        shop.nginx.version()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("nginx version: nginx/1.18.0", r"is nginx 1\.18\.0; lbswitch needs 1\.22"),
        ("Apache 2", "no nginx that lbswitch knows"),
    ],
)
def test_old_program(directory, service, said, words):
    """An nginx that is too old is refused with what it lacks."""
    shop = _site(directory, service, _program(directory, said))
    with pytest.raises(BalancerTooOld, match=words):
        shop.nginx.version()


def test_missing_modules(directory, service, certificate):
    """TLS that was not built in is missed only by who configures it."""
    program = _program(directory, "nginx version: nginx/1.22.1\nconfigure arguments: --without-http_scgi_module")
    cert, key = map(str, certificate)
    assert _site(directory, service, program).nginx.version() == "1.22.1"
    shop = Site(directory, {"shop": service(tls={"cert": cert, "key": key})}, program)
    with pytest.raises(BalancerTooOld, match=r"http_ssl.*services\.shop\.tls"):
        shop.nginx.version()


@pytest.mark.parametrize(
    ("version", "free"), [("1.22.1", False), ("1.27.3", False), ("1.27.4", True), ("1.31.0", True)]
)
def test_free_reloads(directory, service, version, free):
    """Reloads are free from the version on that has keepalive_min_timeout, and it is rendered there."""
    shop = _site(directory, service, _program(directory, f"nginx version: nginx/{version}"))
    assert shop.nginx.reload_is_free is free
    assert (b"keepalive_min_timeout" in shop.nginx.render(shop.intent).files[0].content) is free


@_as_root
def test_workers_have_few_rights(site):
    """Started by root, the workers are somebody else, when that user can reach the pointer."""
    shop = site()
    assert shop.nginx.warnings() == []
    master = psutil.Process(int((shop.prefix / "nginx.pid").read_text()))
    wait_until(
        lambda: all(worker.uids().real != 0 for worker in master.children()), "the workers gave up root's rights"
    )


@_as_root
def test_closed_directory(site, directory):
    """Where no such user can reach the pointer, the workers are root's, switches work, and a sentence says so."""
    directory.chmod(0o700)
    shop = site()
    shop.switch(shop=GREEN)
    assert shop.color() == "green"
    (warning,) = shop.nginx.warnings()
    assert f"chmod o+x {directory}" in warning


@_as_root
def test_configured_user(directory, service, binary):
    """A configured user that can't reach the pointer, or does not exist, is refused with the reason."""
    shop = _site(directory, service, binary, user="nobody")
    shop.nginx.check(shop.nginx.render(shop.intent))
    directory.chmod(0o700)
    with pytest.raises(CheckFailed, match=f"balancer.user nobody can't enter {directory}"):
        shop.nginx.check(shop.nginx.render(shop.intent))
    stranger = _site(directory, service, binary, user="no-such-user")
    with pytest.raises(CheckFailed, match="there is no such user"):
        stranger.nginx.check(stranger.nginx.render(stranger.intent))


@_as_root
def test_mode_bits(directory):
    """Whether a user may enter is read as the kernel does it: owner, else group, else others."""
    user = nginx_user._find("nobody")
    for owner, group, mode, is_open in [
        (0, 0, 0o751, True),
        (0, 0, 0o750, False),
        (0, user.pw_gid, 0o710, True),
        (0, user.pw_gid, 0o701, False),
        (user.pw_uid, 0, 0o700, True),
        (user.pw_uid, user.pw_gid, 0o011, False),
    ]:
        os.chown(directory, owner, group)
        directory.chmod(mode)
        assert nginx_user.closed_to(user, directory / "state") == (None if is_open else directory)


_AS_USER = """
import sys
from pathlib import Path
from tests.balancers.nginx.site import GREEN, Site
directory, binary, port, blue, green = sys.argv[1:]
services = {"shop": {"bind": f"127.0.0.1:{port}", "blue": {"servers": [blue]}, "green": {"servers": [green]}}}
site = Site(Path(directory), services, binary)
with site:
    assert site.nginx.warnings() == []
    site.switch(shop=GREEN)
    assert site.color() == "green"
    site.apply(site.after(shop=GREEN))
assert (site.prefix / "error.log").read_text() == "", (site.prefix / "error.log").read_text()
print("done")
"""


def test_ordinary_user(directory, binary, blue, green):
    """An agent that is not root checks, starts, switches, reloads and stops an nginx of its own."""
    argv = [sys.executable, "-c", _AS_USER, str(directory), binary, str(free_port()), blue.address, green.address]
    environment = {**os.environ, "HOME": "/nonexistent", "TMPDIR": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}
    if os.geteuid() == 0:
        os.chown(directory, 65534, 65534)
        argv = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *argv]
    done = subprocess.run(argv, capture_output=True, timeout=60, env=environment, cwd=_STOCK.parents[2])
    assert done.stdout == b"done\n", done.stderr.decode()


def test_reinstall(site, service, directory):
    """The configuration before can be put back and read."""
    shop = site(templates=_template(directory, _STOCK.read_text()))
    first = shop.nginx.installed()
    _template(directory, _STOCK.read_text() + "# second\n")
    shop.apply(shop.ejected())
    assert shop.nginx.installed() != first
    assert b"# second" not in shop.nginx.read(first).files[0].content
    shop.nginx.reinstall(first)
    shop.nginx.reload()
    wait_until(lambda: shop.answers_alike("shop", first), "the first one serves again")
