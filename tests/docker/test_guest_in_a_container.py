"""lbswitch as a guest of nginx 1.26 and HAProxy 3.0 in Debian 13 containers, on a real Docker Engine."""

import pytest

from tests.docker.site import Site
from tests.support.wait import wait_until

pytestmark = [pytest.mark.xdist_group("docker"), pytest.mark.timeout(300)]
VERSIONS = {"nginx": "1.26.", "haproxy": "3.0."}


def test_switch_and_rollback(site: Site):
    """Green is seen at the owner's listener, rollback brings blue back, and nothing was reloaded."""
    assert site.agent.lbswitch("check").output.startswith(f"{site.kind} {VERSIONS[site.kind]}")
    before = [row[1] for row in site.container.top(ps_args="-eo pid,ppid,args")["Processes"]]
    green = site.agent.lbswitch("green", "--json")
    assert (green.code, green.output["state"], site.app()) == (0, "done", "green")
    back = site.agent.lbswitch("rollback", "--json")
    assert (back.code, back.output["to"], site.app()) == (0, "blue", "blue")
    assert [row[1] for row in site.container.top(ps_args="-eo pid,ppid,args")["Processes"]] == before
