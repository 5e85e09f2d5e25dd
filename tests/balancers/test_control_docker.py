"""`control: docker` without an engine: paths, and what is said when none answers. With one: tests/docker."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbswitch.balancers import control
from lbswitch.balancers.control_mounts import Mounts
from lbswitch.core.config import BalancerConfig
from lbswitch.errors import BalancerMissing, CheckFailed, ReloadFailed


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "out" / "rendered" / "abc").mkdir(parents=True)
    (tmp_path / "out" / "current").symlink_to("rendered/abc")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    return tmp_path


def test_a_path_below_a_mount_keeps_its_links(here: Path):
    """`current` stays `current`: it is for the balancer to follow, also after it moved."""
    mounts = Mounts("lb", {}, [(here / "out", Path("/etc/ours"))])
    assert mounts.seen(here / "out" / "current" / "http.conf") == Path("/etc/ours/current/http.conf")
    assert mounts.seen(here / "out") == Path("/etc/ours")


def test_links_on_the_way_to_a_mount_are_followed(here: Path):
    """Whether the path leads there, or the mount was named by a link."""
    direct = Mounts("lb", {}, [(here / "out", Path("/etc/ours"))])
    by_link = Mounts("lb", {}, [(here / "link", Path("/etc/ours"))])
    assert direct.seen(here / "link" / "current") == Path("/etc/ours/current")
    assert by_link.seen(here / "out" / "current") == Path("/etc/ours/current")


def test_the_nearest_mount_counts(here: Path):
    """Of two that hold a path, the one further down."""
    mounts = Mounts("lb", {}, [(here, Path("/all")), (here / "out", Path("/ours"))])
    assert mounts.seen(here / "out" / "a") == Path("/ours/a")
    assert mounts.seen(here / "other") == Path("/all/other")


def test_what_is_hidden_by_another_mount_is_not_seen(here: Path):
    """Something else lies where this path would be."""
    mounts = Mounts("lb", {}, [(here, Path("/all")), (Path("/usr"), Path("/all/out"))])
    with pytest.raises(CheckFailed, match="container lb does not have"):
        mounts.seen(here / "out" / "a")


def test_the_configuration_comes_before_the_mounts(here: Path):
    """`balancer.container_paths` is what somebody said."""
    mounts = Mounts("lb", {here / "out": Path("/said")}, [(here / "out", Path("/mounted"))])
    assert mounts.seen(here / "out" / "a") == Path("/said/a")


def test_a_path_that_is_not_mounted_names_what_to_mount(here: Path):
    """The directory itself, or that of a file."""
    with pytest.raises(CheckFailed, match=rf"--volume {here}/out:{here}/out"):
        Mounts("lb", {}, []).seen(here / "out")
    with pytest.raises(CheckFailed, match=rf"--volume {here}/out:{here}/out.*balancer\.container_paths"):
        Mounts("lb", {}, []).seen(here / "out" / "file")


@pytest.fixture
def forgotten_sockets() -> Iterator[None]:
    """Docker's client forgets its socket when it can't connect: collected here, not in a test that comes later."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("forgotten_sockets")
def test_without_an_engine_it_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And that the engine is to be started; nothing that only asks raises."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    document = {"kind": "nginx", "managed": False, "config": ["/etc/nginx/nginx.conf"], "output_dir": str(tmp_path)}
    made = control.make(BalancerConfig.model_validate({**document, "control": "docker", "container": "lb"}))
    words = f"no Docker Engine answers at unix://{tmp_path}/docker.sock: systemctl start docker"
    assert (made.pid(), made.is_running(), made.arguments()) == (None, False, [])
    assert str(made.trouble()).startswith(words)
    with pytest.raises(ReloadFailed, match=words):
        made.reload()
    with pytest.raises(BalancerMissing, match=words):
        made.run(["nginx", "-t"], timeout_s=1)
    with pytest.raises(CheckFailed, match=words):
        made.seen(tmp_path)
    with pytest.raises(OSError, match=words):
        made.read(Path("/etc/nginx/nginx.conf"))
    with pytest.raises(OSError, match=words):
        made.names(Path("/etc/nginx"))
    assert made.how_to("start") == "docker start lb"
