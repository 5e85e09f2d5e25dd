"""The pointer on disk: whole at every instant, cheap to move, mended when in doubt."""

import os
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lbswitch.balancers.nginx_pointer import Pointer
from lbswitch.core.model import Intent, Route, ServiceIntent
from lbswitch.errors import CommitFailed
from tests.balancers.nginx.site import BLUE, GREEN


def _intent(generation: int = 1, **services) -> Intent:
    """`shop=GREEN` or `shop=Route(...)`; a split is weighted."""
    routes = {name: value if isinstance(value, Route) else Route(value) for name, value in services.items()}
    return Intent(
        {name: ServiceIntent(route, generation, route.is_split) for name, route in routes.items()}, generation
    )


def _commit(pointer: Pointer, intent: Intent) -> None:
    pointer.commit(intent, intent.services)
    assert pointer.committed() == intent


def _content(state_dir: Path) -> dict[str, str]:
    """Every file below `live`."""
    live = state_dir / "live"
    return {str(path.relative_to(live)): path.read_text() for path in live.rglob("*") if path.is_file()}


def _directories(state_dir: Path) -> set[str]:
    return {path.name for path in state_dir.iterdir() if path.name.startswith("gen-")}


def test_files(tmp_path):
    """A file named after the live color, the state, and a file for every percent of a weighted service."""
    _commit(Pointer(tmp_path), _intent(7, shop=GREEN, api=Route(BLUE, 97)))
    assert _content(tmp_path) == {
        "shop/green": "",
        "shop/state": "shop 7 100\n",
        "api/blue": "",
        "api/state": "api 7 3\n",
        "api/weighted": "",
        "api/0": "",
        "api/1": "",
        "api/2": "",
    }
    assert (tmp_path / "live").readlink() == Path("gen-000007")


def test_nothing_before_the_first_commit(tmp_path):
    """An empty state directory says nothing, and a link to nowhere neither."""
    assert Pointer(tmp_path).committed() is None
    (tmp_path / "live").symlink_to("gen-000001")
    assert Pointer(tmp_path).committed() is None
    _commit(Pointer(tmp_path), _intent(1, shop=GREEN))


def test_every_umask(tmp_path):
    """Workers of any user can read the pointer, whatever the umask of the agent is."""
    before = os.umask(0o077)
    try:
        pointer = Pointer(tmp_path / "var" / "state")
        for generation in range(1, 4):
            _commit(pointer, _intent(generation, shop=Route(BLUE, 50), api=GREEN))
    finally:
        os.umask(before)
    made = [tmp_path / "var", *(tmp_path / "var").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in made if path.is_dir()} == {0o755}
    assert {path.stat().st_mode & 0o777 for path in made if path.is_file()} == {0o644}


def test_double_buffer(tmp_path):
    """However often it moves, there are two directories, and what one commit changed is right two commits later."""
    pointer = Pointer(tmp_path)
    seen = set()
    for generation in range(1, 30):
        routes = {
            "shop": GREEN if generation % 2 else BLUE,
            "api": GREEN if generation % 3 else BLUE,
            "web": Route(BLUE, 100 - generation),
            "late": BLUE,
        }
        _commit(pointer, _intent(generation, **routes))
        assert len(_directories(tmp_path)) == 2
        seen |= {path.stat().st_ino for path in tmp_path.iterdir() if path.is_dir()}
    assert len(seen) == 2


def test_services_come_and_go(tmp_path):
    """Services that are added or removed leave nothing behind."""
    pointer = Pointer(tmp_path)
    for generation, names in enumerate([("a",), ("a", "b"), ("b",), ("b", "c"), ("a",), ("a",)], start=1):
        _commit(pointer, _intent(generation, **dict.fromkeys(names, GREEN)))
        assert {path.name for path in (tmp_path / "live").iterdir()} == set(names)


def test_idempotent(tmp_path):
    """Committing the same again moves nothing, also from a process that has just started."""
    pointer, intent = Pointer(tmp_path), _intent(3, shop=GREEN)
    _commit(pointer, intent)
    link = (tmp_path / "live").lstat().st_ino
    _commit(pointer, intent)
    _commit(Pointer(tmp_path), intent)
    assert (tmp_path / "live").lstat().st_ino == link


def test_prepared(tmp_path):
    """What was prepared serves with one rename, and until then nothing of what is served changes."""
    pointer, after = Pointer(tmp_path), _intent(2, shop=GREEN)
    _commit(pointer, _intent(1, shop=BLUE))
    before = _content(tmp_path)
    pointer.prepare(after)
    assert (_content(tmp_path), pointer.committed()) == (before, _intent(1, shop=BLUE))
    prepared = (tmp_path / "gen-000002").stat().st_ino
    _commit(pointer, after)
    assert (tmp_path / "live").stat().st_ino == prepared
    assert _content(tmp_path) == {"shop/green": "", "shop/state": "shop 2 100\n"}


@pytest.mark.parametrize("forgets", [True, False])
def test_prepared_and_not_committed(tmp_path, forgets):
    """Another intent may be committed instead, and the same generation with other routes."""
    pointer = Pointer(tmp_path)
    _commit(pointer, _intent(1, shop=BLUE, api=BLUE))
    for after in (_intent(2, shop=BLUE, api=GREEN), _intent(1, shop=BLUE, api=BLUE), _intent(3, shop=GREEN)):
        pointer.prepare(_intent(2, shop=GREEN, api=BLUE))
        if forgets:
            pointer.forget()
        _commit(pointer, after)
        assert len(_directories(tmp_path)) == 2


def test_a_hand_in_what_was_prepared_and_forgotten(tmp_path):
    """It is looked at again before it may serve."""
    pointer, after = Pointer(tmp_path), _intent(2, shop=GREEN)
    _commit(pointer, _intent(1, shop=BLUE))
    pointer.prepare(after)
    pointer.forget()
    (tmp_path / "gen-000002" / "shop" / "blue").touch()
    _commit(pointer, after)
    assert set(_content(tmp_path)) == {"shop/green", "shop/state"}


def test_generations_repeat_and_go_back(tmp_path):
    """A revert writes an old generation, or the live one with other routes; the live directory is never built in."""
    pointer = Pointer(tmp_path)
    for generation, color in [
        (5, BLUE),
        (6, GREEN),
        (5, BLUE),
        (5, GREEN),
        (5, BLUE),
        (4, BLUE),
        (6, GREEN),
        (6, BLUE),
    ]:
        before = (tmp_path / "live").readlink() if (tmp_path / "live").is_symlink() else None
        _commit(pointer, _intent(generation, shop=color))
        assert (tmp_path / "live").readlink() != before


def test_left_overs(tmp_path):
    """What a crash left (half-built directories, a temporary link) is not used and goes away."""
    intent = _intent(1, shop=BLUE)
    _commit(Pointer(tmp_path), intent)
    for name in ("gen-000002", "gen-000003", "gen-000001.spare"):
        (tmp_path / name / "shop").mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "shop" / "blue").touch()
    (tmp_path / ".live.new").symlink_to("gen-000002")
    pointer = Pointer(tmp_path)
    assert pointer.committed() == intent
    for generation, color in ((2, GREEN), (3, GREEN), (4, BLUE)):
        _commit(pointer, _intent(generation, shop=color))
        assert f"shop/{color.other}" not in _content(tmp_path)
    assert len(_directories(tmp_path)) == 2
    assert not (tmp_path / ".live.new").is_symlink()


def test_a_hand_in_the_files(tmp_path):
    """Who moves a flag by hand is overruled by the next commit, for good."""
    pointer = Pointer(tmp_path)
    intent = _intent(1, shop=BLUE, api=BLUE)
    _commit(pointer, intent)
    (tmp_path / "live" / "api" / "green").touch()
    assert pointer.committed().services["api"].route == Route(GREEN)
    _commit(pointer, intent)
    (tmp_path / "live" / "api" / "green").touch()
    for generation, color in ((2, GREEN), (3, BLUE), (4, GREEN)):
        _commit(pointer, _intent(1, api=BLUE).with_services(_intent(generation, shop=color).services))
        assert set(_content(tmp_path)) == {"api/blue", "api/state", f"shop/{color}", "shop/state"}


def test_another_writer(tmp_path):
    """Two objects on one directory, as after a reread of the configuration that failed, do not confuse each other."""
    one, other = Pointer(tmp_path), Pointer(tmp_path)
    _commit(one, _intent(1, shop=BLUE))
    _commit(other, _intent(1, shop=BLUE, api=GREEN))
    _commit(other, _intent(1, shop=GREEN))
    _commit(one, _intent(1, shop=BLUE))
    _commit(one, _intent(2, shop=GREEN))
    _commit(other, _intent(3, shop=GREEN))


def test_unreadable_service(tmp_path):
    """A state file that can't be read is left out of what is told, and mended by the next commit."""
    pointer, intent = Pointer(tmp_path), _intent(1, shop=BLUE, api=GREEN)
    _commit(pointer, intent)
    (tmp_path / "live" / "api" / "state").write_text("?\n")
    assert set(Pointer(tmp_path).committed().services) == {"shop"}
    _commit(Pointer(tmp_path), intent)


@contextmanager
def _small_disk(directory: Path):
    """A file system of 64 KiB that can be filled up."""
    directory.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=64k", "lbswitch-test", str(directory)]
    if os.geteuid() != 0 or subprocess.run(argv, capture_output=True, timeout=10).returncode != 0:
        pytest.skip("needs root that may mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True, timeout=10)


def _fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_full_disk(tmp_path):
    """With no room left the live pointer stays, the error says what serves, nothing half-built is left behind."""
    state_dir = tmp_path / "state"
    with _small_disk(state_dir):
        pointer, intent = Pointer(state_dir), _intent(4, shop=BLUE)
        _commit(pointer, intent)
        _fill(state_dir / "full")
        for _ in range(2):
            with pytest.raises(CommitFailed, match=r"No space left.*generation 4 \(shop blue\) still serves"):
                pointer.commit(_intent(5, shop=GREEN), ["shop"])
            with pytest.raises(CommitFailed, match=r"No space left.*generation 4 \(shop blue\) still serves"):
                pointer.prepare(_intent(5, shop=GREEN))
            assert pointer.committed() == intent
            assert _directories(state_dir) == {"gen-000004"}
        (state_dir / "full").unlink()
        _commit(pointer, _intent(5, shop=GREEN))
        _commit(pointer, _intent(6, shop=BLUE))


def test_full_disk_at_first(tmp_path):
    """A first commit that fails leaves no pointer at all."""
    state_dir = tmp_path / "state"
    with _small_disk(state_dir):
        _fill(state_dir / "full")
        with pytest.raises(CommitFailed, match="no pointer before"):
            Pointer(state_dir).commit(_intent(1, shop=GREEN), ["shop"])
        assert {path.name for path in state_dir.iterdir()} == {"full"}


def test_state_directory_that_is_a_file(tmp_path):
    """Whatever is wrong with the state directory becomes a CommitFailed that names it."""
    (tmp_path / "state").write_text("")
    with pytest.raises(CommitFailed, match=str(tmp_path / "state")):
        Pointer(tmp_path / "state").commit(_intent(1, shop=GREEN), ["shop"])
