"""Edits of configuration, templates and certificates while clients are served."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import FAST, Site
from tests.support.load import Load
from tests.support.ports import free_port
from tests.support.wait import wait_until

STOCK = Path(__file__).resolve().parents[2] / "templates"
MAIN = {"nginx": "nginx.conf.j2", "haproxy": "haproxy.cfg.j2"}
WAIT_MAX_S = 2.0  # the default of agent.wait.max
MARGIN_S = 6.0  # rendering, checking, reloading and seeing it, on a machine that has other things to do


class Shop:
    """A site with templates of its own and a second service with TLS."""

    def __init__(self, make_site: Callable[..., Site]) -> None:
        self.site = make_site(start=False, timeouts={"read": "60s"}, failover={"enabled": False})
        self.directory = self.site.agent.directory
        self.templates = self.directory / "templates" / self.site.kind
        shutil.copytree(STOCK / self.site.kind, self.templates)
        self.template = self.templates / MAIN[self.site.kind]
        self.cert, self.key = self.directory / "shop.crt", self.directory / "shop.key"
        self.certify("first.example")
        self.port = free_port()
        self.site.config["balancer"]["templates"] = str(self.templates.parent)
        self.site.config["services"]["secure"] = {
            "bind": f"127.0.0.1:{self.port}",
            "blue": {"servers": [self.site.blue.address]},
            "green": {"servers": [self.site.green.address]},
            "health": FAST,
            "tls": {"cert": str(self.cert), "key": str(self.key)},
        }
        self.site.agent.write_config(self.site.config)
        self.site.agent.start()
        self.site.until_known()

    def certify(self, name: str) -> None:
        """A new key and certificate, each put there with a rename."""
        key, cert = self.key.with_suffix(".newkey"), self.cert.with_suffix(".newcrt")
        argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        argv += ["-days", "2", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(cert)]
        subprocess.run(argv, check=True, capture_output=True)
        key.replace(self.key)
        cert.replace(self.cert)

    def common_name(self) -> str:
        """Of the certificate that the listener shows to a new client."""
        context = ssl.create_default_context(cafile=str(self.cert) if self.cert.exists() else None)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(socket.create_connection(("127.0.0.1", self.port), timeout=5)) as wrapped:
            shown = wrapped.getpeercert(binary_form=True)
        text = subprocess.run(
            ["openssl", "x509", "-inform", "DER", "-noout", "-subject"], input=shown, capture_output=True, check=True
        ).stdout.decode()
        return text.strip().rpartition("=")[2].strip()

    def about(self) -> dict[str, Any]:
        """The agent's part of the status."""
        return dict(self.site.agent.http("GET", "/v1/services")[1]["agent"])

    def services(self) -> dict[str, Any]:
        return dict(self.site.agent.http("GET", "/v1/services")[1]["services"])

    def config(self) -> dict[str, Any]:
        return dict(self.about()["config"])

    def revision(self) -> str:
        return str(self.about()["balancer"]["revision"])

    def workers(self) -> set[int]:
        return {process.pid for process in self.site.agent.balancer_processes()}

    def until_refused(self, field: str, *words: str) -> None:
        """The status says what and where."""
        wait_until(lambda: all(word in (self.config()[field] or "") for word in words), f"{field} says {words}")
        assert self.config()["valid"] is False

    def until_applied(self, what: str, before: str) -> None:
        """Everything is valid and served, by itself, within wait.max of this call."""
        began = time.monotonic()
        try:
            wait_until(lambda: self.config()["valid"] and self.revision() != before, f"{what} is applied")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.config()}\n{self.site.agent.log()}") from error
        took = time.monotonic() - began
        print(f"{self.site.kind}: {what} mended and applied after {took:.2f} s")
        assert took < WAIT_MAX_S + MARGIN_S

    def without_servers(self, pool: str) -> None:
        """Edit the template so that nothing of this pool is rendered but what takes no part in traffic."""
        if self.site.kind == "nginx":  # which refuses an upstream without any server itself
            path, line = self.templates / "pools.conf.j2", "{% for address in pool.servers %}\n"
            other = f"{{% if pool.name == '{pool}' %}}\n    server 127.0.0.1:1 down;\n{{% endif %}}\n"
        else:
            path, line, other = self.template, "{% for server in pool.servers %}\n", ""
        text = path.read_text()
        assert text.count(line) == 1
        path.write_text(text.replace(line, other + line.replace(" %}", f" if pool.name != '{pool}' %}}")))

    def write(self, text: str) -> None:
        """Replace lbswitch.yaml as editors do."""
        new = self.site.agent.config_path.with_suffix(".tmp")
        new.write_text(text)
        new.replace(self.site.agent.config_path)

    def events(self, type_: str) -> int:
        return self.site.agent.log().count(type_)


@pytest.fixture
def shop(make_site: Callable[..., Site]) -> Shop:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    return Shop(make_site)


def loses_at_reloads(shop: Shop) -> bool:
    """nginx before 1.27.4 closes idle connections when it reloads, whoever asks for it (DESIGN 3.1)."""
    version = tuple(int(part) for part in shop.about()["balancer"]["version"].split(".")[:3])
    return shop.site.kind == "nginx" and version < (1, 27, 4)


@contextmanager
def load_on(shop: Shop) -> Iterator[Load]:
    """Requests all along, none of which may be lost."""
    fresh = 1.0 if loses_at_reloads(shop) else 0.5
    with Load("127.0.0.1", shop.site.port, rate=150, connections=4, new_connections=fresh) as load:
        wait_until(lambda: load.report().answered > 20, "traffic flows")
        yield load
        report = load.stop()
    assert report.lost == 0, str(report)
    assert report.answered > 50


def test_template_yaml_and_certificate_broken_and_mended_under_load(shop: Shop) -> None:
    """Each breaks alone: nothing lost, the old one serves and stays on disk, said what and where; mended: applied."""
    before = shop.revision()
    with load_on(shop) as load:
        load.mark("template")
        good = shop.template.read_text()
        shop.template.write_text(good + "{{ nonsense }}\n")
        shop.until_refused("files_error", f"{MAIN[shop.site.kind]}:{len(good.splitlines()) + 1}", "nonsense")
        assert shop.revision() == before
        shop.template.write_text("# edited\n" + good)
        shop.until_applied("template", before)

        load.mark("yaml")
        before, text = shop.revision(), shop.site.agent.config_path.read_text()
        shop.write(text + "nonsense: [\n")
        shop.until_refused("error", f"{shop.site.agent.config_path}:")
        assert shop.revision() == before
        shop.write(text.replace("60s", "61s"))
        shop.until_applied("YAML", before)

        load.mark("certificate")
        before, kept = shop.revision(), shop.cert.with_suffix(".kept")
        shop.cert.rename(kept)
        shop.until_refused("files_error", "services.secure.tls.cert", str(shop.cert), "does not exist")
        assert shop.revision() == before
        assert shop.common_name() == "first.example"
        shop.certify("second.example")
        shop.until_applied("certificate", before)
        wait_until(lambda: shop.common_name() == "second.example", "the new certificate is shown")
    log = shop.site.agent.log()
    assert log.count("'nonsense'") == 1, log
    assert log.count("does not exist") == 1, log
    assert shop.site.status()["live"] == "blue"


def test_a_certificate_that_comes_after_the_configuration_that_names_it(shop: Shop) -> None:
    """Refused as long as it is missing, with the service that names it; served when it comes, without further edits."""
    before = shop.revision()
    config = json.loads(json.dumps(shop.site.config))
    late = shop.directory / "later" / "late.crt"
    config["services"]["secure"]["tls"]["cert"] = str(late)
    config["services"]["secure"]["timeouts"] = {"read": "63s"}  # HAProxy gets a copy: another path is the same bytes
    shop.site.agent.write_config(config)
    shop.until_refused("error", "services.secure.tls.cert", f"{late} does not exist")
    assert shop.revision() == before
    late.parent.mkdir()
    shutil.copy(shop.cert, late)
    shop.until_applied("late certificate", before)


@pytest.mark.parametrize("first", ["template", "yaml"])
def test_template_and_yaml_broken_at_once(shop: Shop, first: str) -> None:
    """Mended in either order: both are said while they last, and in the end the new one is served."""
    before, text, good = shop.revision(), shop.site.agent.config_path.read_text(), shop.template.read_text()
    shop.template.write_text("{% if %}\n" + good)
    shop.write(text.replace("60s", "sixty"))
    shop.until_refused("error", "services.shop.timeouts.read", "sixty")
    shop.until_refused("files_error", f"{MAIN[shop.site.kind]}:1")
    mends = {"template": lambda: shop.template.write_text(good), "yaml": lambda: shop.write(text.replace("60s", "62s"))}
    mends.pop(first)()
    if first == "template":
        wait_until(lambda: shop.config()["files_error"] is None, "the template is mended")
        assert "sixty" in shop.config()["error"]
    else:
        wait_until(lambda: "sixty" not in shop.config()["error"], "the YAML is mended")
        assert f"{MAIN[shop.site.kind]}:1" in shop.config()["files_error"]
    assert shop.revision() == before
    mends.popitem()[1]()
    shop.until_applied("the second", before)
    assert shop.site.app() == "blue"


def test_edits_that_change_no_byte_reload_nothing(shop: Shop) -> None:
    """A comment in the YAML, a touched template, a switch of our own: the same workers go on."""
    workers, revision = shop.workers(), shop.revision()

    def comment_is_read() -> bool:
        shop.write("# a comment\n" + shop.site.agent.config_path.read_text())
        words = "lbswitch.yaml: read again; nothing that is served changes"
        return bool(wait_until(lambda: shop.events(words), "it says so", MARGIN_S))

    # What is edited before an agent that has just started watches is read too, but not spoken of.
    wait_until(comment_is_read, "the comment is read")
    os.utime(shop.template)
    wait_until(lambda: shop.events(f"templates/{shop.site.kind}: read again"), "the template is read")
    for color in ("green", "blue"):
        assert shop.site.agent.lbswitch(color, "--service", "shop").code == 0
    done = shop.site.agent.lbswitch("apply", "--json")
    assert (done.code, done.output["configuration"], done.output["reloaded"]) == (0, "unchanged", False), done
    assert (shop.workers(), shop.revision()) == (workers, revision)


def test_a_template_that_would_empty_a_pool_needs_force(shop: Shop) -> None:
    """Refused with the numbers and the mend, while a switch can't let it in either; forced it goes through."""
    before, name = shop.revision(), "shop_green"
    shop.without_servers(name)
    shop.until_refused("files_error", f"pool {name} has 1 server", "lbswitch apply --force")
    assert shop.revision() == before
    refused = shop.site.agent.lbswitch("apply", "--json")
    assert (refused.code, refused.output["configuration"]) == (3, "refused"), refused
    switched = shop.site.agent.lbswitch("green", "-s", "shop")
    assert switched.code == 4, switched
    assert shop.revision() == before
    forced = shop.site.agent.lbswitch("apply", "--force", "--json")
    assert (forced.code, forced.output["configuration"], forced.output["reloaded"]) == (0, "applied", True), forced
    assert shop.config()["valid"]
    assert shop.site.app() == "blue"


def test_removing_a_service_that_has_clients_needs_force(shop: Shop) -> None:
    """One that nobody uses goes by itself; one with a connection, or whose address moves, stays until it is forced."""
    config = json.loads(json.dumps(shop.site.config))
    port = free_port()
    config["services"]["unused"] = {**config["services"]["shop"], "bind": f"127.0.0.1:{port}"}
    before = shop.revision()
    shop.site.agent.write_config(config)
    shop.until_applied("a new service", before)
    before = shop.revision()
    del config["services"]["unused"]
    shop.site.agent.write_config(config)
    shop.until_applied("without it", before)

    before = shop.revision()
    with socket.create_connection(("127.0.0.1", shop.site.port)) as client:
        moved = json.loads(json.dumps(config))
        moved["services"]["shop"]["bind"] = f"127.0.0.1:{free_port()}"
        shop.site.agent.write_config(moved)
        shop.until_refused("error", "shop would move to", "1 client connection ", "lbswitch apply --force")
        del config["services"]["shop"]
        shop.site.agent.write_config(config)
        shop.until_refused("error", "shop would be removed", "1 client connection ")
        assert shop.site.app() == "blue"
        assert client.fileno() > 0
    assert shop.site.agent.lbswitch("apply").code == 3  # they were there within the last minute
    assert shop.revision() == before
    assert shop.site.agent.lbswitch("apply", "--force").code == 0
    assert "shop" not in shop.services()
    assert shop.config()["valid"]


def test_the_status_is_answered_while_services_come_and_go(shop: Shop) -> None:
    """Nobody who asks in such a moment gets an error, and nothing is reported that is none."""
    over, answers = threading.Event(), Counter[int]()

    def ask() -> None:
        while not over.is_set():
            answers[shop.site.agent.http("GET", "/v1/services")[0]] += 1

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        for extra in ("", "extra", "", "other", ""):
            config = json.loads(json.dumps(shop.site.config))
            if extra:
                config["services"][extra] = {**config["services"]["shop"], "bind": f"127.0.0.1:{free_port()}"}
            shop.site.agent.write_config(config)
            services = {"shop", "secure", extra} - {""}
            wait_until(lambda: services == set(shop.services()), f"{services} are served")  # noqa: B023
    finally:
        over.set()
        asker.join()
    assert set(answers) == {200}, answers
    assert " error " not in shop.site.agent.log(), shop.site.agent.log()


def test_apply_answers(shop: Shop) -> None:
    """What a dry run shows happens; what is invalid is answered with file and line."""
    good = shop.template.read_text()
    shop.template.write_text("# rehearsed\n" + good)
    rehearsal = shop.site.agent.lbswitch("apply", "--dry-run")
    assert rehearsal.code == 0
    wait_until(lambda: shop.events("templates-applied") or "checked and applied" in shop.site.agent.log(), "applied")
    text = shop.site.agent.config_path.read_text()
    shop.write(text.replace("60s", "sixty"))
    answer = shop.site.agent.lbswitch("apply", "--json")
    assert answer.code == 2
    (problem,) = answer.output["problems"]
    assert (problem["path"], problem["line"] > 0) == ("services.shop.timeouts.read", True)
    assert shop.config()["error"] is not None
