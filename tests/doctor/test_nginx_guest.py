"""An owner's nginx with lbswitch as its guest: the files of a real one, and what is wrong with them."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.balancers.nginx.owner import Guest, Owner
from tests.balancers.nginx.site import binaries
from tests.doctor.desk import Desk, severities

_NGINX = binaries()[:1]
pytestmark = pytest.mark.skipif(not _NGINX, reason="no nginx on this machine")


class Visit(Desk):
    """The owner's nginx, and the doctor's desk beside it."""

    def __init__(self, directory: Path, **service: Any) -> None:
        super().__init__(directory, **service)
        self.owner = Owner(directory / "owner", _NGINX[0])
        self.shop["bind"] = f"127.0.0.1:{self.owner.port}"
        self.shop["verify"] = {"host": "shop.example"}
        self.document["balancer"] = self.owner.balancer(binary=_NGINX[0], pid_file=str(self.owner.base / "nginx.pid"))
        self.document["agent"]["state_dir"] = str(self.owner.state_dir)
        self.state_dir = self.owner.state_dir

    def serve(self) -> "Visit":
        self.guest = Guest(self.owner, self.document["services"], pid_file=str(self.owner.base / "nginx.pid"))
        self.guest.install()
        self.owner.start()
        return self

    @property
    def site(self) -> Path:
        return self.owner.etc / "sites-available" / "shop"

    def edit(self, old: str, new: str, path: Path | None = None) -> None:
        """Change the owner's site `shop`, or another file of theirs."""
        path = path or self.site
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture
def visit(directory: Path) -> Iterator[Visit]:
    (directory / "owner").mkdir()
    made = Visit(directory)
    yield made
    made.owner.stop()


FILES = ("open-file-cache", "include-missing", "include-misplaced", "not-passed", "bare-slash", "disable-symlinks")
RUNNING = ("pointer-unreadable", "workers-root", "few-files", "listener", "balancer-down", "drift", "no-restart")


def test_an_owner_who_did_as_told(visit: Visit):
    """Every check of files and processes finds nothing."""
    visit.serve()
    case = visit.case()
    for name in (*FILES, *RUNNING, "not-applied", "change-refused", "balancer-missing", "certificate", "underscores"):
        assert visit.found(name, case) == [], name


@pytest.mark.parametrize("where", ["http", "server"])
def test_an_open_file_cache(visit: Visit, where: str):
    """Inherited from http, or in the server itself; with the time for which it keeps what it saw."""
    visit.serve()
    cache = "open_file_cache max=1000; open_file_cache_valid 30s;"
    if where == "http":
        visit.edit("sendfile on;", f"sendfile on; {cache}", visit.owner.main)
    else:
        visit.edit("server_name shop.example;", f"server_name shop.example; {cache}")
    found = visit.found("open-file-cache")
    assert severities(found) == ["error"]
    assert "`open_file_cache max=1000;` is active where the pointer is tested" in found[0].what
    assert "for up to 30s" in found[0].what
    file = visit.owner.main if where == "http" else visit.owner.etc / "sites-enabled" / "shop"
    assert found[0].what.startswith(f"{file}:")


def test_an_open_file_cache_that_is_off_there(visit: Visit):
    visit.serve()
    visit.edit("sendfile on;", "sendfile on; open_file_cache max=1000;", visit.owner.main)
    visit.edit("server_name shop.example;", "server_name shop.example; open_file_cache off;")
    assert visit.found("open-file-cache") == []


def test_a_snippet_that_is_not_included(visit: Visit):
    visit.serve()
    line = f"include {visit.owner.output}/current/shop.server.conf;"
    visit.edit(line, "")
    found = visit.found("include-missing")
    assert severities(found) == ["error"]
    assert found[0].what.startswith(f"nothing includes {visit.owner.output}/current/shop.server.conf")
    assert line in found[0].mend
    assert found[0].service == "shop"
    (visit.owner.etc / "conf.d/lbswitch.conf").write_text("")
    assert [finding.service for finding in visit.found("include-missing")] == [None, "shop"]


def test_an_include_of_another_place(visit: Visit):
    """An old directory, or one revision for ever."""
    visit.serve()
    path = f"{visit.owner.output}/current/shop.server.conf"
    visit.edit(path, "/etc/nginx/old/current/shop.server.conf")
    found = visit.found("include-missing")
    assert severities(found) == ["error"]
    assert "is not where lbswitch writes" in found[0].what
    assert "sites-enabled/shop:" in found[0].what
    revision = visit.guest.nginx.installed()
    visit.edit("/etc/nginx/old/current/shop.server.conf", f"{visit.owner.output}/rendered/{revision}/shop.server.conf")
    assert "stays as it is when lbswitch writes the next one" in visit.found("include-missing")[0].what


def test_an_include_by_a_symlink_or_a_pattern(visit: Visit):
    """However it is reached, it is the same file."""
    visit.serve()
    path = f"{visit.owner.output}/current/shop.server.conf"
    visit.edit(path, f"{visit.owner.output}/current/shop.*.conf")
    assert visit.found("include-missing") == []
    (visit.owner.base / "link").symlink_to(visit.owner.output)
    visit.edit(f"{visit.owner.output}/current/shop.*.conf", f"{visit.owner.base}/link/current/shop.server.conf")
    assert visit.found("include-missing") == []


def test_an_include_in_the_wrong_block(visit: Visit):
    visit.serve()
    line = f"include {visit.owner.output}/current/shop.server.conf;"
    visit.edit(line, "")
    visit.edit("location / {", f"location / {{ {line}")
    found = visit.found("include-misplaced")
    assert severities(found) == ["error"]
    assert "is in `http > server > location`, but belongs in the server block of shop" in found[0].what


def test_a_server_that_passes_elsewhere(visit: Visit):
    """The choice is there, and nobody asks it."""
    visit.serve()
    visit.edit("http://$lbswitch_shop;", "http://127.0.0.1:9101;")
    found = visit.found("not-passed")
    assert severities(found) == ["error"]
    assert "no proxy_pass uses $lbswitch_shop" in found[0].what
    assert "`proxy_pass http://127.0.0.1:9101;`" in found[0].what
    visit.edit("http://127.0.0.1:9101;", "http://$lbswitch_shop2;")
    assert severities(visit.found("not-passed")) == ["error"]
    visit.edit("http://$lbswitch_shop2;", "http://${lbswitch_shop};")
    assert visit.found("not-passed") == []


def test_a_slash_behind_the_variable(visit: Visit):
    visit.serve()
    visit.edit("http://$lbswitch_shop;", "http://$lbswitch_shop/;")
    found = visit.found("bare-slash")
    assert severities(found) == ["warning"]
    assert found[0].mend == "proxy_pass http://$lbswitch_shop;"


def test_symlinks_that_are_not_followed(visit: Visit):
    visit.serve()
    visit.edit("sendfile on;", "sendfile on; disable_symlinks on;", visit.owner.main)
    assert severities(visit.found("disable-symlinks")) == ["error"]
    visit.edit("server_name shop.example;", "server_name shop.example; disable_symlinks off;")
    assert visit.found("disable-symlinks") == []


def test_a_header_that_nginx_drops(visit: Visit):
    visit.shop["weights"] = {"sticky": "header:x_user"}
    visit.serve()
    assert severities(visit.found("underscores")) == ["warning"]
    visit.edit("server_name shop.example;", "server_name shop.example; underscores_in_headers on;")
    assert visit.found("underscores") == []


def test_workers_that_may_not_read_the_pointer(visit: Visit):
    """Every directory on the way counts; the mend names the one that is closed."""
    visit.serve()
    if not visit.host.is_root or not shutil.which("id"):
        pytest.skip("needs root, for workers of another user")
    live = (visit.state_dir / "live").resolve()
    live.chmod(0o700)
    found = visit.found("pointer-unreadable")
    assert severities(found) == ["error"]
    assert found[0].mend == f"chmod o+x {live}"
    live.chmod(0o755)
    (live / "shop" / "state").chmod(0o600)
    assert [finding.mend for finding in visit.found("pointer-unreadable")] == [
        f"chmod o+r {visit.state_dir}/live/shop/state"
    ]


def test_workers_that_are_root(visit: Visit):
    visit.edit("user www-data;", "user root;", visit.owner.main)
    visit.serve()
    assert severities(visit.found("workers-root")) == ["warning"]


def test_more_connections_than_files(visit: Visit):
    visit.serve()
    visit.host.limit = 512
    found = visit.found("few-files")
    assert severities(found) == ["warning"]
    assert f"{visit.owner.main}:" in found[0].what
    assert "worker_connections is 768, and a worker may open 512 files" in found[0].what
    visit.edit("worker_processes 2;", "worker_processes 2; worker_rlimit_nofile 4096;", visit.owner.main)
    assert visit.found("few-files") == []


def test_an_owner_whose_nginx_is_down(visit: Visit):
    visit.serve()
    visit.owner.stop()
    assert severities(visit.found("balancer-down")) == ["error"]


def test_an_owners_edit_that_would_not_start_again(visit: Visit):
    """What runs is fine; the next restart would not be."""
    visit.serve()
    visit.edit("sendfile on;", "sendfil on;", visit.owner.main)
    found = visit.found("no-restart")
    assert severities(found) == ["error"]
    assert 'unknown directive "sendfil"' in found[0].what


def test_a_listener_that_is_somebody_elses(visit: Visit):
    """The service's address leads to another server block."""
    visit.serve()
    visit.shop["verify"] = {"host": "other.example"}
    visit.shop["bind"] = f"127.0.0.1:{visit.owner.default_port}"
    found = visit.found("listener")
    assert severities(found) == ["error"]
    assert "No switch of shop can be verified" in found[0].what


def test_files_that_were_changed_by_hand(visit: Visit):
    visit.serve()
    (visit.owner.output / "current" / "shop.server.conf").write_text("# mine\n")
    assert "warning" in severities(visit.found("drift"))


def test_owners_certificates_are_looked_at(visit: Visit, make_certificate: Callable[..., tuple[Path, Path]]):
    """Those of the owner's servers end for the service, too."""
    cert, key = make_certificate(5)
    key.chmod(0o644)
    visit.edit(
        "server_name shop.example;", f"server_name shop.example; ssl_certificate {cert}; ssl_certificate_key {key};"
    )
    assert severities(visit.found("certificate")) == ["warning"]
    assert severities(visit.found("key-readable")) == ["warning"]
