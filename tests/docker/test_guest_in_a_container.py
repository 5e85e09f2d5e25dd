"""lbswitch as a guest of nginx 1.26 and HAProxy 3.0 in Debian 13 containers, on a real Docker Engine."""

import pytest

from tests.docker.site import Site
from tests.support.wait import wait_until

pytestmark = [pytest.mark.xdist_group("docker"), pytest.mark.timeout(300)]
VERSIONS = {"nginx": "1.26.", "haproxy": "3.0."}
BROKEN = {
    "nginx": ("guest_http.conf.j2", "no_such_directive on;\n", 'unknown directive "no_such_directive"'),
    "haproxy": ("guest.cfg.j2", "backend broken\n    no-such-keyword on\n", "no-such-keyword"),
}


def test_switch_and_rollback(site: Site):
    """Green is seen at the owner's listener, rollback brings blue back, and nothing was reloaded."""
    assert site.agent.lbswitch("check").output.startswith(f"{site.kind} {VERSIONS[site.kind]}")
    before = site.processes()
    green = site.agent.lbswitch("green", "--json")
    assert (green.code, green.output["state"], site.app()) == (0, "done", "green")
    back = site.agent.lbswitch("rollback", "--json")
    assert (back.code, back.output["to"], site.app()) == (0, "blue", "blue")
    assert site.processes() == before


def test_a_changed_pool_is_checked_and_reloaded_in_the_container(site: Site):
    """Another server behind blue: the master stays, its workers are new, and clients get the new server."""
    first, before = site.processes()[0], site.processes()
    site.agent.write_config(site.config(blue=site.third))
    wait_until(lambda: site.app() == "third", "the new server answers")
    assert site.processes()[0][0] == first[0]
    assert set(site.processes()) - set(before)
    assert site.status()["live"] == "blue"


def test_a_broken_template_changes_nothing(site: Site):
    """The checker in the container refuses it in its own words; files and traffic stay; mended, it is applied."""
    name, text, words = BROKEN[site.kind]
    files, processes = site.files(), site.processes()
    (site.templates / name).write_text(text)
    refused = site.agent.lbswitch("apply")
    assert refused.code in (2, 4)
    assert words in refused.output
    assert (site.files(), site.processes(), site.app()) == (files, processes, "blue")
    (site.templates / name).unlink()
    assert site.agent.lbswitch("apply").code == 0


def test_a_restarted_container_serves_the_live_color(site: Site):
    """Green stays live through a restart of the container."""
    assert site.agent.lbswitch("green").code == 0
    site.container.restart(timeout=5)
    site.until_live("green")


def test_a_stopped_container_is_said_to_be_stopped(site: Site):
    """Status names the container and how to start it; started again, it serves what was live."""
    assert site.agent.lbswitch("green").code == 0
    site.container.stop(timeout=5)
    wait_until(lambda: f"docker start {site.name}" in site.agent.lbswitch("status").output, "status says so")
    refused = site.agent.lbswitch("balancer", "start")
    assert refused.code != 0
    assert f"docker start {site.name}" in refused.output
    site.container.start()
    site.until_live("green")
