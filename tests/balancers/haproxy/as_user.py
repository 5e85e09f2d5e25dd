"""Run as a program: everything an agent does, as an ordinary user; prints `ok`. Not a test by itself."""

import json
import os
import pwd
import resource
import sys
from pathlib import Path

from lbswitch.core.model import Color, Route
from lbswitch.errors import CommitFailed, StartFailed
from tests.balancers.haproxy.managed import Managed


def import_everything(binary: str, services: dict[str, dict[str, object]]) -> None:
    """Python may be installed where only root can read: what is imported on first use, and codecs, come now."""
    managed = Managed(binary, services)
    managed.serve()
    managed.move(shop=Route(Color.GREEN))
    managed.haproxy.reload()
    managed.close()


def drop(name: str) -> None:
    """Become that user for good."""
    user = pwd.getpwnam(name)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ["HOME"] = "/"


def refused_port(document: dict[str, object], managed: Managed) -> None:
    """A port below 1024 is refused with the service's name, where the system keeps such ports for root."""
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 2:
        return
    message = "bound port 1"
    managed.document["services"]["shop"]["bind"] = "127.0.0.1:1"
    try:
        managed.adapter().start()
    except StartFailed as error:
        message = str(error)
    assert "shop: 127.0.0.1:1 may not be used by user" in message, message


def read_only(managed: Managed) -> None:
    """A state directory that can't be written: nothing moves, the message names the file."""
    message = "committed into a read-only directory"
    managed.directory.chmod(0o555)
    try:
        managed.haproxy.commit(managed.after(shop=Route(Color.BLUE)), ["shop"])
    except CommitFailed as error:
        message = str(error)
    managed.directory.chmod(0o755)
    assert "live.map.new: Permission denied" in message, message
    assert managed.app() == "green"
    assert managed.shows(managed.haproxy.observe("shop"), "shop")


def main() -> None:
    binary, services = sys.argv[1], json.loads(sys.argv[2])
    if os.geteuid() == 0:
        import_everything(binary, services)
        drop("nobody")
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500))
    managed = Managed(binary, services)
    managed.install()
    assert "the limit is 500" in managed.haproxy.warnings()[0]
    assert b"\n    user " not in managed.haproxy.render(managed.intent).files[0].content
    managed.haproxy.start()
    try:
        managed.move(shop=Route(Color.GREEN))
        managed.haproxy.reload()
        managed.move(shop=Route(Color.GREEN, 50))
        managed.move(shop=Route(Color.GREEN))
        read_only(managed)
    finally:
        managed.stop()
    refused_port(managed.document, managed)
    managed.close()
    print("ok")


if __name__ == "__main__":
    main()
