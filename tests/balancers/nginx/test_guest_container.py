"""What is different in a container: other paths for the same files, another user, questions from a gateway.

The container is a symlink: what this host has in `base` it has in `base-inside`. A real Docker Engine is
used in tests/docker.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lbswitch import procs
from lbswitch.balancers import control as controls
from lbswitch.balancers import nginx_view
from lbswitch.balancers.control_signal import ControlSignal
from lbswitch.balancers.neighbors import Neighbors
from lbswitch.balancers.nginx_binary import ask
from lbswitch.balancers.nginx_guest_check import Checker
from lbswitch.balancers.nginx_guest_files import GuestFiles
from lbswitch.balancers.nginx_guest_shadow import Shadow
from lbswitch.balancers.templating import Templates
from lbswitch.core.config import Control as Kind
from lbswitch.core.model import Intent
from lbswitch.errors import CheckFailed
from lbswitch.ports import Rendered, RenderedFile

_ROUTES = "Iface\tDestination\tGateway\nlo\t0000007F\t00000000\neth0\t00000000\t010011AC\n"


class Inside(ControlSignal):
    """Satisfies `Control`: runs here, sees `base` as `inside`."""

    kind = Kind.DOCKER

    def __init__(self, balancer, base: Path, inside: Path) -> None:
        super().__init__(balancer)
        self._base, self._inside = base, inside
        self.ran: list[Sequence[str]] = []
        self.run_checks: Callable[..., procs.Result] | None = None

    def seen(self, path: Path) -> Path:
        return self._inside / path.relative_to(self._base)

    def run(self, argv: Sequence[str], *, timeout_s: float) -> procs.Result:
        self.ran.append(argv)
        if argv[0] == "cat":
            return procs.Result(0, _ROUTES)
        return self.run_checks(argv, timeout_s=timeout_s) if self.run_checks else super().run(argv, timeout_s=timeout_s)


@pytest.fixture
def inside(guest, owner, directory):
    """The owner's configuration as the container has it: every path goes through `inside`."""
    link = Path(f"{directory}-inside")
    link.symlink_to(directory)
    for path in [*owner.etc.rglob("*.conf"), *owner.sites()]:
        if path.is_file():
            path.write_text(path.read_text().replace(str(owner.base), str(link)))
    owner.output.mkdir()
    yield Inside(guest().config.balancer, owner.base, link)
    link.unlink()


def rendered_for(guest, control: controls.Control) -> Rendered:
    config = guest.config
    live, output = (control.seen(path) for path in (guest.owner.state_dir / "live", guest.owner.output))
    intent = Intent(guest.intent.services, 1)
    program = ask(guest.owner.binary)
    seen = nginx_view.guest_variables(config, intent, program, live, output, Neighbors(control).addresses())
    templates = Templates("nginx")
    server = templates.render("guest_server.conf.j2", {**seen, "service": seen["services"][0]})
    http = templates.render("guest_http.conf.j2", seen)
    return Rendered.of([RenderedFile("http.conf", http), RenderedFile("shop.server.conf", server)])


def check(guest, control: Inside, rendered: Rendered) -> None:
    main = str(control.seen(guest.owner.main))
    shadow = Shadow(main, GuestFiles(control, guest.owner.output, rendered), rendered)
    Checker(control, ask(guest.owner.binary), [], guest.owner.output).check(shadow, rendered)


def test_paths_of_the_container(guest, inside):
    """Rendered paths, what is checked, and where it is staged are all as the container has them."""
    shop = guest()
    rendered = rendered_for(shop, inside)
    text = b"".join(file.content for file in rendered.files).decode()
    assert f"if (-f {inside.seen(shop.owner.state_dir)}/live/shop/green)" in text
    assert f"include {inside.seen(shop.owner.output)}/current/http.conf;" in text
    check(shop, inside, rendered)
    main = inside.ran[-1][inside.ran[-1].index("-c") + 1]
    assert main.startswith(f"{inside.seen(shop.owner.output)}/.check-")
    assert list(shop.owner.output.iterdir()) == []


def test_another_user(guest, inside):
    """What is staged can be read by a container's own user, whatever this process's umask is; nobody can list it."""
    shop = guest()
    staged: list[tuple[str, int]] = []

    def run(argv, *, timeout_s):
        staged.extend((path.name, path.lstat().st_mode & 0o777) for path in shop.owner.output.rglob("*"))
        return procs.run(argv, timeout_s=timeout_s)

    inside.run_checks = run
    before = os.umask(0o077)
    try:
        check(shop, inside, rendered_for(shop, inside))
    finally:
        os.umask(before)
    modes = {mode for name, mode in staged if not name.startswith(".check-")}
    assert modes <= {0o755, 0o644, 0o777}, staged  # symlinks have 777
    assert {mode for name, mode in staged if name.startswith(".check-")} == {0o711}


def test_bad_candidate(guest, inside):
    """The refusal names the candidate's file, or the owner's as the container has it; nothing is left."""
    shop = guest()
    good = rendered_for(shop, inside)
    bad = Rendered.of([RenderedFile(file.name, file.content + b"nonsense;\n") for file in good.files])
    with pytest.raises(CheckFailed, match=r'unknown directive "nonsense" in http\.conf:\d+ \(`nonsense;`\)$'):
        check(shop, inside, bad)
    broken = shop.owner.write("conf.d/broken.conf", "map;\n")
    with pytest.raises(CheckFailed, match=f"in {inside.seen(broken)}:1"):
        check(shop, inside, good)
    assert list(shop.owner.output.iterdir()) == []


def test_what_a_killed_check_left(guest, inside):
    """A check that was killed leaves its staging; a later one removes it when it is old, and not while it is new."""
    shop = guest()
    old, new = shop.owner.output / ".check-old", shop.owner.output / ".check-new"
    old.mkdir()
    new.mkdir()
    os.utime(old, (0, 0))
    check(shop, inside, rendered_for(shop, inside))
    assert list(shop.owner.output.iterdir()) == [new]


def test_questions_from_the_gateway(guest, inside):
    """A container with a network of its own sees this host as the gateway, and answers it."""
    http = rendered_for(guest(), inside).files[0].content.decode()
    assert r'"~^172\.17\.0\.1=" 1;' in http
