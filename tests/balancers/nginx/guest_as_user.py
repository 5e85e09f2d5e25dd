"""Run as a program: the guest of root's nginx as an ordinary user; prints `ok`. Not a test by itself.

Arguments: nginx, a directory for the owner, certificate, key, and the addresses of blue and green.
"""

import codecs
import os
import pwd
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from lbswitch.core.model import Color
from lbswitch.errors import CheckFailed, ReloadFailed
from lbswitch.ports import Rendered, RenderedFile
from tests.balancers.nginx.owner import Guest, Owner

_USER = "nobody"


def make(owner: Owner, blue: str, green: str) -> Guest:
    pools = {"blue": {"servers": [blue]}, "green": {"servers": [green]}}
    return Guest(owner, {"shop": {"bind": f"127.0.0.1:{owner.port}", "verify": {"host": "shop.example"}, **pools}})


def refused(guest: Guest, rendered: Rendered) -> str:
    try:
        guest.nginx.check(rendered)
    except CheckFailed as error:
        return str(error)
    return "accepted"


def damaged(guest: Guest) -> Rendered:
    files = guest.nginx.render(guest.intent).files
    return Rendered.of([RenderedFile(file.name, file.content + b"nonsense;\n") for file in files])


def use_everything(guest: Guest) -> None:
    """Python may be installed where only root can read: what is imported on first use, and codecs, come now."""
    for codec in ("ascii", "idna"):
        codecs.lookup(codec)
    assert "nonsense" in refused(guest, damaged(guest))
    guest.install()
    guest.nginx.committed()
    guest.nginx.warnings()
    guest.nginx.is_running()


def as_ordinary_user(guest: Guest, act: Callable[[Guest], None]) -> bool:
    """Do it in a process of that user, to whom everything belongs that is lbswitch's; whether it went well."""
    user = pwd.getpwnam(_USER)
    for top in (guest.owner.output, guest.owner.state_dir):
        for path in (top, *top.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    try:
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        act(guest)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def without_rights(guest: Guest) -> None:
    """Logs and pid file that only root may open are no reason to refuse; what needs a right is told."""
    assert refused(guest, guest.nginx.render(guest.intent)) == "accepted"
    assert 'unknown directive "nonsense" in http.conf' in refused(guest, damaged(guest))
    guest.switch(Color.GREEN)
    assert guest.nginx.observe("shop").color is Color.GREEN
    with pytest.raises(ReloadFailed, match=f"the user {_USER} may not send SIGHUP"):
        guest.nginx.reload()


def without_key(guest: Guest) -> None:
    """A key that only root may read keeps the rest from being checked, so it is refused, with what to do."""
    said = refused(guest, guest.nginx.render(guest.intent))
    assert f"lbswitch checks as {_USER}: let this user read it" in said, said


def main() -> None:
    binary, directory, cert, key, blue, green = sys.argv[1:]
    owner = Owner(Path(directory), binary, (Path(cert), Path(key)))
    guest = make(owner, blue, green)
    use_everything(guest)
    owner.start()
    try:
        for log in (owner.base / "log").iterdir():
            log.chmod(0o600)
        went_well = as_ordinary_user(guest, without_rights)
        (owner.etc / "tls" / "key.pem").chmod(0o600)
        went_well &= as_ordinary_user(guest, without_key)
    finally:
        owner.stop()
    print("ok" if went_well else "failed")


if __name__ == "__main__":
    main()
