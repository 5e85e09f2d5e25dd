"""docs/templates.md names every variable that templates are given, and no other."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lbswitch.core.config import Config
from lbswitch.core.model import Color, Intent, Route, ServiceIntent
from lbswitch.errors import RenderFailed
from lbswitch.wiring import make_balancer
from tests.balancers.nginx.site import binaries
from tests.support.agent import make_short_directory

DOCS = Path(__file__).resolve().parents[2] / "docs" / "templates.md"
PARTS = {
    "nginx": [
        "nginx",
        "keys[0]",
        *(f"services[{place}]" for place in range(3)),
        "services[0].pools[0]",
        "services[0].shielded[0]",
    ],
    "haproxy": [
        *("services[0]", "services[0].pools[0]", "services[0].pools[0].servers[0]", "services[1].literal"),
        *("services[0].shielded[0]", "services[0].shielded[0].servers[0]"),
    ],
}
"""Where a template can look into something."""
TEMPLATES = {
    "nginx.conf.j2": ("nginx", True),
    "guest_http.conf.j2": ("nginx", False),
    "haproxy.cfg.j2": ("haproxy", True),
    "guest.cfg.j2": ("haproxy", False),
}


@pytest.fixture
def directory() -> Iterator[Path]:
    made = make_short_directory()
    yield made
    shutil.rmtree(made, ignore_errors=True)


def configuration(directory: Path, kind: str, managed: bool) -> Config:
    """A service switched by pointer or map with weights, one by reload, one by reload that is split."""
    colors = {"blue": {"servers": ["127.0.0.1:1"]}, "green": {"servers": ["127.0.0.1:2"]}}
    services = {
        "first": {"bind": "127.0.0.1:3", "weights": {"sticky": "cookie:user"}, **colors},
        "second": {"bind": "127.0.0.1:4", **({"switching": "reload"} if managed or kind == "nginx" else {}), **colors},
        "third": {"bind": "127.0.0.1:5", **({"switching": "reload"} if managed or kind == "nginx" else {}), **colors},
    }
    balancer: dict[str, Any] = {"kind": kind, "templates": str(directory / "templates")}
    if kind == "nginx":
        balancer["binary"] = binaries()[0]
    if not managed:
        (directory / "owner.conf").write_text("events {}\nhttp {}\n" if kind == "nginx" else "global\n")
        balancer |= {"managed": False, "config": [str(directory / "owner.conf")], "output_dir": str(directory / "out")}
        balancer |= {"master_socket": str(directory / "m.sock")} if kind == "haproxy" else {}
    document = {"agent": {"state_dir": str(directory / "state")}, "balancer": balancer, "services": services}
    return Config.model_validate(document)


def known(directory: Path, template: str) -> Callable[[str], list[str]]:
    """What a template with this expression is told that there is."""
    kind, managed = TEMPLATES[template]
    balancer = make_balancer(configuration(directory, kind, managed))
    routes = {"first": Route(Color.BLUE), "second": Route(Color.GREEN), "third": Route(Color.BLUE, 30)}
    intent = Intent({name: ServiceIntent(route, 1, name == "first") for name, route in routes.items()}, 1)
    (directory / "templates").mkdir()

    def ask(expression: str) -> list[str]:
        (directory / "templates" / template).write_text(f"{{{{ {expression} }}}}\n")
        with pytest.raises(RenderFailed) as raised:
            balancer.render(intent)
        listed = re.search(r"; (?:there are|it has): (.*) \(`", str(raised.value))
        assert listed, raised.value
        return listed[1].split(", ")

    return ask


def given(directory: Path, template: str) -> set[str]:
    """Every dotted name that this template may use, without the numbers of lists."""
    ask = known(directory, template)
    found = set(ask("qqqqqqqq"))
    for part in PARTS[TEMPLATES[template][0]]:
        if template.startswith("guest") and ("literal" in part or "shielded" in part):
            continue
        found |= {re.sub(r"\[\d\]", "", f"{part}.{name}") for name in ask(f"{part}.qqqqqqqq")}
    containers = {name.rpartition(".")[0] for name in found}
    return found - containers - {"services.pools", "keys", "services"}


def documented(template: str) -> set[str]:
    section = DOCS.read_text().partition(f"### `{template}`")[2].partition("\n#")[0]
    assert section, f"docs/templates.md has no section {template}"
    return {
        name
        for row in re.findall(r"^\| (.+?) \|", section, re.MULTILINE)
        for name in re.findall(r"`([a-z0-9_.]+)`", row)
    }


@pytest.mark.parametrize("template", [pytest.param(name, id=f"{kind}-{name}") for name, (kind, _) in TEMPLATES.items()])
def test_every_variable_is_documented(directory: Path, template: str):
    """What the view passes and what the page says are the same."""
    kind = TEMPLATES[template][0]
    if kind == "nginx" and not binaries():
        pytest.skip("no nginx on this machine")
    if kind == "haproxy" and not shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin:/usr/bin:/usr/local/bin"):
        pytest.skip("HAProxy is not installed")
    assert documented(template) == given(directory, template)


def test_every_template_is_documented():
    """Also those that others include."""
    text = DOCS.read_text()
    stock = Path(__file__).resolve().parents[2] / "templates"
    for path in stock.rglob("*.j2"):
        assert f"`{path.name}`" in text, path.name
