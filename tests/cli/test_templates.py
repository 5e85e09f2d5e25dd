"""`lbswitch templates`: which templates are used, and what the operator's change."""

import json
import os
from pathlib import Path

import pytest

from lbswitch.balancers.templating import STOCK_TEMPLATES
from tests.cli.conftest import Run

NGINX = STOCK_TEMPLATES / "nginx" / "nginx.conf.j2"
CONFIGURATION = """
balancer: {{kind: nginx, templates: {directory}/templates}}
services: {{shop: {{bind: "127.0.0.1:8080", blue: {{servers: ["127.0.0.1:1"]}}, green: {{servers: ["127.0.0.1:2"]}}}}}}
"""


@pytest.fixture
def configuration(directory: Path) -> Path:
    path = directory / "lbswitch.yaml"
    path.write_text(CONFIGURATION.format(directory=directory))
    (directory / "templates").mkdir()
    return path


@pytest.fixture
def ours(run: Run, configuration: Path) -> Path:
    """A fresh override of nginx.conf.j2."""
    ran = run("templates", "copy", "nginx.conf.j2", "--config", configuration)
    assert ran.code == 0, ran.err
    return configuration.parent / "templates" / "nginx" / "nginx.conf.j2"


def listed(run: Run, *arguments: object) -> dict[str, dict[str, object]]:
    ran = run("templates", "list", "--json", *arguments)
    assert ran.code == 0, ran.err
    return {one["name"]: one for one in json.loads(ran.out)["templates"]}


def test_the_list_shows_stock_templates(run: Run, configuration: Path):
    ran = run("templates", "list", "--config", configuration)
    assert ran.code == 0, ran.err
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[0] == ["NAME", "STATE", "FILE"]
    assert ["nginx/nginx.conf.j2", "stock", str(NGINX)] in lines
    assert "haproxy" not in ran.out


def test_the_list_needs_no_configuration(run: Run, monkeypatch: pytest.MonkeyPatch):
    """Without the usual file it has the stock templates of both kinds, or of the one that was asked for."""
    if Path("/etc/lbswitch/lbswitch.yaml").exists():
        pytest.skip("this machine has an lbswitch of its own")
    assert {name.partition("/")[0] for name in listed(run)} == {"nginx", "haproxy"}
    assert {name.partition("/")[0] for name in listed(run, "--kind", "haproxy")} == {"haproxy"}


def test_a_configuration_that_was_named_has_to_be_there(run: Run, directory: Path):
    ran = run("templates", "list", "--config", directory / "none.yaml")
    assert (ran.code, ran.out) == (2, "")
    assert "none.yaml: does not exist" in ran.err


@pytest.mark.parametrize("place", ["templates/nginx", "templates"])
def test_an_override_is_listed_with_its_file(run: Run, configuration: Path, place: str):
    """In the directory or in the kind's own below it, as it is when it is rendered."""
    path = configuration.parent / place / "nginx.conf.j2"
    path.parent.mkdir(exist_ok=True)
    path.write_text("events {}\n")
    found = listed(run, "--config", configuration)["nginx/nginx.conf.j2"]
    assert (found["state"], found["path"], found["base"]) == ("overridden", str(path), "unknown")


def test_a_template_of_the_operators_own_is_listed(run: Run, configuration: Path):
    """One that no stock template has the name of; those of the other balancer are not meant."""
    (configuration.parent / "templates" / "extra.j2").write_text("")
    (configuration.parent / "templates" / "haproxy.cfg.j2").write_text("")
    found = listed(run, "--config", configuration)
    assert found["nginx/extra.j2"]["state"] == "own"
    assert "nginx/haproxy.cfg.j2" not in found


def test_a_copy_renders_the_same(run: Run, configuration: Path):
    """The comment that remembers where it is from leaves no trace in what is rendered."""
    before = json.loads(run("render", "--json", "--config", configuration).out)
    assert run("templates", "copy", "nginx.conf", "--config", configuration).code == 0
    assert json.loads(run("render", "--json", "--config", configuration).out) == before
    assert listed(run, "--config", configuration)["nginx/nginx.conf.j2"]["base"] == "current"
    ran = run("templates", "diff", "--config", configuration)
    assert (ran.code, ran.out) == (0, "")
    assert "nothing differs" in ran.err


def test_a_copy_overwrites_nothing(run: Run, configuration: Path, ours: Path):
    ours.write_text("mine\n")
    ran = run("templates", "copy", "nginx.conf.j2", "--config", configuration)
    assert ran.code == 2
    assert f"has an override already, which stays as it is: {ours}" in ran.err
    assert ours.read_text() == "mine\n"


def test_a_copy_needs_a_directory(run: Run, configuration: Path):
    configuration.write_text(configuration.read_text().replace(f", templates: {configuration.parent}/templates", ""))
    ran = run("templates", "copy", "nginx.conf.j2", "--config", configuration)
    assert ran.code == 2
    assert "balancer.templates is not set" in ran.err
    target = configuration.parent / "elsewhere"
    ran = run("templates", "copy", "nginx.conf.j2", "--config", configuration, "--to", target)
    assert ran.code == 0
    assert f"balancer: {{templates: {target}}}" in ran.err


def test_diff_shows_what_an_override_changes(run: Run, configuration: Path, ours: Path):
    ours.write_text(ours.read_text().replace("server_tokens off;", "server_tokens on;"))
    ran = run("templates", "diff", "--config", configuration)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[:2] == ["--- stock/nginx/nginx.conf.j2", f"+++ {ours}"]
    assert [line for line in lines[2:] if line.startswith(("+", "-"))] == [
        "-    server_tokens off;",
        "+    server_tokens on;",
    ]
    assert run("templates", "diff", "nginx.conf.j2", "--config", configuration).out == ran.out
    assert json.loads(run("templates", "diff", "--json", "--config", configuration).out)["diffs"].keys() == {
        "nginx/nginx.conf.j2"
    }


def test_diff_without_an_override_is_empty(run: Run, configuration: Path):
    ran = run("templates", "diff", "nginx.conf.j2", "--config", configuration)
    assert (ran.code, ran.out) == (0, "")
    assert "nginx/nginx.conf.j2 is the stock one" in ran.err


def test_an_override_of_an_older_stock_template_is_told(run: Run, configuration: Path, ours: Path):
    """After an upgrade that changed the stock template."""
    first, _, rest = ours.read_text().partition("\n")
    digest = first.split()[-2]
    ours.write_text(first.replace(digest, "0123456789ab").replace(first.split()[2], "0.0.9:") + "\n" + rest)
    ran = run("templates", "list", "--config", configuration)
    assert "overridden, older" in ran.out
    assert "was made from the one of lbswitch 0.0.9" in ran.err
    assert listed(run, "--config", configuration)["nginx/nginx.conf.j2"]["base"] == "older"


def test_show_prints_the_template_that_is_used(run: Run, configuration: Path, ours: Path):
    """Yours, or with --stock the one behind it."""
    ours.write_text("mine\n")
    assert run("templates", "show", "nginx.conf", "--config", configuration).out == "mine\n"
    stock = run("templates", "show", "nginx/nginx.conf.j2", "--stock", "--config", configuration).out
    assert stock.rstrip() == NGINX.read_text().rstrip()
    assert json.loads(run("templates", "show", "nginx.conf", "--json", "--config", configuration).out)["text"] == (
        "mine\n"
    )


def test_a_wrong_name_is_answered_with_the_right_ones(run: Run, configuration: Path):
    ran = run("templates", "show", "ngnix.conf.j2", "--config", configuration)
    assert ran.code == 2
    assert "there is no template 'ngnix.conf.j2'; did you mean 'nginx.conf.j2'?" in ran.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_override_that_may_not_be_read(run: Run, configuration: Path, ours: Path):
    ours.chmod(0)
    ran = run("templates", "show", "nginx.conf", "--config", configuration)
    assert ran.code == 8
    assert str(ours) in ran.err
