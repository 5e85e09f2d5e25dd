"""The doctor looks into a container as the balancer sees it."""

import pytest

from tests.docker.site import Site

pytestmark = [pytest.mark.xdist_group("docker"), pytest.mark.timeout(300)]


def findings(site: Site) -> set[str]:
    """Without what this machine's directory for temporary files and its clock are to blame for."""
    said = site.agent.lbswitch("doctor", "--json")
    assert isinstance(said.output, dict), said
    found = {finding["id"] for finding in said.output["findings"]}
    return found - {"state-volatile", "clock-unsynchronized", "never-switched"}


def test_a_healthy_guest(site: Site):
    assert findings(site) == set()


def test_an_owner_without_our_lines(site: Site):
    """What is missing is found in the container's own files."""
    owner = site.directory / "owner"
    before = {path: path.read_text() for path in owner.iterdir() if not path.is_symlink()}
    for path, text in before.items():
        path.write_text("\n".join(line for line in text.splitlines() if "lbswitch" not in line) + "\n")
    try:
        expected = "include-missing" if site.kind == "nginx" else "no-use-backend"
        assert expected in findings(site)
    finally:
        for path, text in before.items():
            path.write_text(text)
