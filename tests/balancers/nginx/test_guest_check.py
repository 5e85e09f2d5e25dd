"""The whole configuration is checked with the candidate in it, and nothing that is there is touched."""

import os
import re
from pathlib import Path

import pytest

from lbswitch.errors import CheckFailed
from lbswitch.ports import Rendered, RenderedFile


def with_line(rendered: Rendered, name: str, line: str) -> Rendered:
    """The same with one more line at the end of one file."""
    files = [
        RenderedFile(file.name, file.content + (f"{line}\n".encode() if file.name == name else b""))
        for file in rendered.files
    ]
    return Rendered.of(files)


def refusal(guest, rendered: Rendered | None = None) -> str:
    """What is said of the candidate (by default what the guest renders); everything on disk stays as it was."""
    owner = guest.owner
    rendered = rendered or guest.nginx.render(guest.intent)
    before = owner.fingerprint()
    with pytest.raises(CheckFailed) as refused:
        guest.nginx.check(rendered)
    assert owner.fingerprint() == before
    return str(refused.value)


def accept(guest) -> None:
    """The candidate is good, and nothing on disk changed."""
    before = guest.owner.fingerprint()
    guest.nginx.check(guest.nginx.render(guest.intent))
    assert guest.owner.fingerprint() == before


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch, tmp_path):
    """Checks leave nothing where temporary files are."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield
    assert list(tmp_path.iterdir()) == []


def test_first_install(guest, owner):
    """The owner's files name ours before there are any: nginx -t fails there, and the check does not."""
    shop = guest()
    assert owner.run("-t").returncode != 0
    assert shop.nginx.installed() is None
    accept(shop)
    assert not owner.output.exists()
    shop.install()
    assert owner.run("-t").returncode == 0


def test_first_check_fails(guest, owner):
    """A first candidate that is refused leaves no output directory."""
    shop = guest()
    refusal(shop, with_line(shop.nginx.render(shop.intent), "http.conf", "nonsense;"))
    assert not owner.output.exists()


@pytest.mark.parametrize("name", ["http.conf", "shop.server.conf"])
def test_bad_candidate(guest, name):
    """A candidate that is invalid is refused with its own name, line and text, although the installed one is fine."""
    shop = guest().install()
    rendered = shop.nginx.render(shop.intent)
    text = next(file.content for file in rendered.files if file.name == name).decode()
    said = refusal(shop, with_line(rendered, name, "nonsense on;"))
    line = text.count("\n") + 1
    assert (
        said
        == f'nginx refused the configuration: [emerg] unknown directive "nonsense" in {name}:{line} (`nonsense on;`)'
    )
    assert shop.owner.run("-t").returncode == 0


def test_good_candidate_mends(guest, owner):
    """Installed files that somebody damaged do not stand in the way of a candidate that is good."""
    shop = guest().install()
    (owner.output / "current" / "http.conf").write_text("nonsense;\n")
    assert owner.run("-t").returncode != 0
    accept(shop)


def test_owner_is_broken(guest, owner):
    """A mistake elsewhere is told with the owner's file and line, not with those of a copy."""
    shop = guest().install()
    path = owner.write("conf.d/broken.conf", "# fine\nmap a;\n")
    assert f"in {path}:2 (`map a;`)" in refusal(shop)


def test_owner_is_broken_on_the_way(guest, owner):
    """The same in the files that lead to ours, of which a copy is checked: lines and names are the real ones."""
    shop = guest().install()
    path = owner.etc / "sites-available" / "shop"
    path.write_text(path.read_text().replace("location / {", "location / {\n        nonsense;"))
    enabled = owner.etc / "sites-enabled" / "shop"
    assert f'unknown directive "nonsense" in {enabled}:6 (`nonsense;`)' in refusal(shop)
    owner.main.write_text(owner.main.read_text().replace("gzip on;", "gzip perhaps;"))
    (owner.etc / "sites-available" / "shop").write_text("")
    assert re.search(rf"in {owner.main}:\d+ \(`gzip perhaps;`\)", refusal(shop))


def test_missing_certificate(guest, owner):
    """A certificate that is gone is told by its real path."""
    shop = guest().install()
    (owner.etc / "tls" / "cert.pem").unlink()
    assert f'"{owner.etc}/tls/cert.pem"' in refusal(shop)


def test_service_that_is_still_included(guest, owner):
    """A service can't go while the owner's files include it; the line to remove is told."""
    shop = guest().install()
    rendered = shop.nginx.render(shop.intent)
    without = Rendered.of([file for file in rendered.files if file.name == "http.conf"])
    said = refusal(shop, without)
    assert f'"{owner.output}/current/shop.server.conf" failed (2: No such file' in said
    assert f"{owner.etc}/sites-enabled/" in said


@pytest.mark.parametrize(
    "include",
    [
        "include {base}/lbswitch/current/shop.server.conf;",
        'include "{base}/lbswitch/current/shop.server.conf" ;',
        "include '{base}/lbswitch/current/shop.server.conf';",
        "include\n        {base}/lbswitch/current/shop.server.conf\n    ;",
        "include ../lbswitch/current/shop.server.conf;",
        "include {base}/lbswitch/current/shop.*;",
        "include {base}/lbswitch/current/*.server.conf;",
        "include snippets/nested.conf;",
        "include snippets/*.conf; # include nothing.conf;",
        "include links/current/shop.server.conf;",
        "include links/direct.conf;",
    ],
)
def test_ways_to_include(guest, owner, include):
    """Whichever way the owner includes ours, the candidate is what is checked."""
    (owner.etc / "snippets").mkdir()
    owner.write("snippets/nested.conf", "# nested\ninclude {base}/lbswitch/current/shop.server.conf;\n")
    (owner.etc / "links").mkdir()
    (owner.etc / "links" / "current").symlink_to(owner.output / "current")
    (owner.etc / "links" / "direct.conf").symlink_to("../../lbswitch/current/shop.server.conf")
    site = "server {{\n    listen 127.0.0.1:{port};\n    server_name a;\n    " + include + "\n    location / {{\n"
    owner.site("shop", site + "        proxy_pass http://$lbswitch_shop;\n    }}\n}}\n")
    owner.site("tls", "")
    shop = guest()
    accept(shop)  # also when nothing is installed yet
    shop.install()
    assert owner.run("-t").returncode == 0
    accept(shop)
    said = refusal(shop, with_line(shop.nginx.render(shop.intent), "shop.server.conf", "nonsense;"))
    assert 'unknown directive "nonsense" in shop.server.conf:' in said


def test_relative_paths_upward(guest, owner):
    """Paths that go up from the main file's directory lead where they lead for the owner."""
    (owner.base / "shared").mkdir()
    for name in ("cert.pem", "key.pem"):
        (owner.etc / "tls" / name).rename(owner.base / "shared" / name)
    site = owner.etc / "sites-available" / "tls"
    site.write_text(site.read_text().replace(" tls/", " ../shared/"))
    accept(guest())


def test_names_that_need_quotes(guest, owner):
    """Files on the way to ours may have blanks and quotes in their names."""
    owner.write('conf.d/it "is".conf', "include {base}/lbswitch/current/http.conf;\n")
    (owner.etc / "conf.d" / "lbswitch.conf").unlink()
    accept(guest().install())


def test_not_included(guest, owner):
    """Files that nobody includes yet are judged all the same, apart; the owner's lines are asked for."""
    (owner.etc / "conf.d" / "lbswitch.conf").unlink()
    for name in ("shop", "tls"):
        owner.site(name, "")
    shop = guest()
    accept(shop)
    said = refusal(shop, with_line(shop.nginx.render(shop.intent), "shop.server.conf", "nonsense;"))
    assert 'unknown directive "nonsense" in shop.server.conf:' in said
    (warning,) = shop.nginx.warnings()
    assert f"`include {owner.output}/current/http.conf;` to the http block" in warning
    assert f"`include {owner.output}/current/shop.server.conf;` to the server block of shop" in warning
    assert "`proxy_pass http://$lbswitch_shop;`" in warning


def test_half_included(guest, owner):
    """The http level alone is a valid configuration, so that the owner may go one step at a time."""
    for name in ("shop", "tls"):
        owner.site(name, "")
    shop = guest().install()
    assert owner.run("-t").returncode == 0
    accept(shop)
    said = refusal(shop, with_line(shop.nginx.render(shop.intent), "shop.server.conf", "nonsense;"))
    assert 'unknown directive "nonsense" in shop.server.conf:' in said


def test_main_file_is_gone(guest, owner):
    """Without the owner's main file there is nothing to check in."""
    shop = guest().install()
    owner.main.unlink()
    assert f"{owner.main}: No such file or directory; it is named by balancer.config" in refusal(shop)


@pytest.mark.skipif(os.geteuid() != 0, reason="workers have another user only under root")
def test_workers_can_not_enter(guest, owner):
    """A state directory that the owner's workers can't reach is refused before anything moves."""
    owner.state_dir.parent.chmod(0o700)
    try:
        said = refusal(guest())
    finally:
        owner.state_dir.parent.chmod(0o755)
    assert f"workers run as www-data, who can't enter {owner.base}" in said
    assert f"chmod o+x {owner.base}" in said


def test_several_services_and_servers(guest, owner, blue, green):
    """Two services in one server block, and one service in two, are fine."""
    common = {"blue": {"servers": [blue.address]}, "green": {"servers": [green.address]}}
    services = {name: {"bind": f"127.0.0.1:{owner.port}", **common} for name in ("shop", "my-blog")}
    owner.site(
        "shop",
        "server {{\n    listen 127.0.0.1:{port};\n    include {base}/lbswitch/current/*.server.conf;\n"
        "    location / {{ proxy_pass http://$lbswitch_shop; }}\n"
        "    location /blog/ {{ proxy_pass http://$lbswitch_my_blog; }}\n}}\n",
    )
    accept(guest(services).install())


def test_paths_of_the_rendered_files(guest, owner):
    """What is rendered names paths below the state directory and nothing else of this host."""
    shop = guest()
    text = b"".join(file.content for file in shop.nginx.render(shop.intent).files).decode()
    paths = set(re.findall(r"(?:alias|-f) (/[^;) ]+)", text))
    assert {Path(path).is_relative_to(owner.state_dir) for path in paths} == {True}
