"""What is read and left of rendered files, whoever put something else in their place."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbswitch.balancers.rendered import RenderedDirectory
from lbswitch.balancers.running import RunningRevision
from lbswitch.balancers.staging import staging
from lbswitch.core.model import Color, Intent, Observation, Route, ServiceIntent
from lbswitch.errors import StateError
from lbswitch.ports import REVISION_MARK, Difference, Rendered, RenderedFile

INTENT = Intent({"shop": ServiceIntent(Route(Color.BLUE), 1)}, 1)
DAMAGE = [Difference("disk", "a.conf", "a.conf was changed")]


def rendered(text: str) -> Rendered:
    return Rendered.of([RenderedFile("a.conf", f"{text} {REVISION_MARK}\n".encode())])


@pytest.fixture
def installed(tmp_path: Path) -> RenderedDirectory:
    directory = RenderedDirectory(tmp_path / "output")
    directory.install(rendered("one"))
    return directory


@pytest.mark.parametrize(
    "place",
    [
        lambda path, _secret: os.mkfifo(path),
        lambda path, secret: path.symlink_to(secret),
        lambda path, secret: path.parent.joinpath("b.conf").symlink_to(secret),
        lambda path, _secret: path.mkdir(),
    ],
    ids=["a pipe", "a link", "one more link", "a directory"],
)
def test_what_is_no_file_is_neither_waited_for_nor_shown(
    installed: RenderedDirectory, tmp_path: Path, place: Callable[[Path, Path], None]
) -> None:
    """It is a difference like any other, and the repair puts the file back."""
    secret = tmp_path / "shadow"
    secret.write_text("root:hash")
    path = installed.current / "a.conf"
    path.unlink()
    place(path, secret)
    found: list[Difference] = []
    looking = threading.Thread(target=lambda: found.extend(installed.differences()), daemon=True)
    looking.start()
    looking.join(10)
    assert not looking.is_alive()
    assert found
    assert not any("root:hash" in each.diff for each in found)
    assert installed.restore(None)
    assert (installed.differences(), path.is_symlink(), path.read_bytes()) == (
        [],
        False,
        rendered("one").files[0].content,
    )
    assert secret.read_text() == "root:hash"


def test_a_key_stays_hidden_whatever_mode_somebody_gave_it() -> None:
    """Snapshots and diffs go by that, also when an agent finds the file already so."""
    assert RenderedFile("shop.pem", b"KEY").is_hidden
    assert RenderedFile("anything", b"KEY", secret=True).is_hidden
    assert not RenderedFile("nginx.conf", b"text").is_hidden


def aged(path: Path) -> Path:
    os.utime(path, (time.time() - 3600,) * 2)
    return path


def test_what_a_killed_agent_left_is_removed(
    installed: RenderedDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an installation, and what was staged for a check, keys included; what is fresh may be in use."""
    for name in (".install-0123456789ab-1", ".install-0123456789ab-2"):
        (tmp_path / "output" / "rendered" / name).mkdir()
    aged(tmp_path / "output" / "rendered" / ".install-0123456789ab-1")
    installed.install(rendered("two"))
    assert sorted(path.name for path in (tmp_path / "output" / "rendered").glob(".*")) == [".install-0123456789ab-2"]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    for name, age in (("lbswitch-check-old", aged), ("lbswitch-check-new", Path), ("others", aged)):
        (temporary / name).mkdir()
        (temporary / name / "shop.pem").write_text("KEY")
        age(temporary / name)
    (temporary / "lbswitch-check-link").symlink_to(temporary / "others")
    with staging() as directory:
        assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in temporary.iterdir()} == {"lbswitch-check-new", "lbswitch-check-link", "others"}


def test_what_a_container_checks_is_for_nobody_else_to_find(tmp_path: Path) -> None:
    """Its balancer may run as any user, so the way there is open, and its name a secret."""
    with staging(tmp_path) as directory:
        assert directory.stat().st_mode & 0o777 == 0o755
        assert directory.parent.stat().st_mode & 0o777 == 0o711
        assert len(directory.name) == 32
    assert not list(tmp_path.iterdir())


# -- who read what -----------------------------------------------------------------------------------------------


class Crowd:
    """Workers of a balancer that answers with one revision."""

    def __init__(self, directory: RenderedDirectory) -> None:
        self.pids = {1}
        self.directory = directory
        self.running = RunningRevision("nginx", directory, self.observe, lambda: self.pids)

    def observe(self, _service: str) -> Observation:
        return Observation(Color.BLUE, 1, self.directory.installed() or "", 0)

    def look(self, damaged: list[Difference], between: Callable[[], object] = lambda: None) -> list[str]:
        """As drift is looked for: who runs, what is wrong on disk, and who may have read that."""
        crew = self.running.workers()
        between()
        return [each.what for each in self.running.differences(INTENT, crew, damaged)]


def test_an_installation_of_ours_during_a_look_taints_nobody(installed: RenderedDirectory) -> None:
    """What the look saw of the files may have been half of what we were just doing."""
    crowd = Crowd(installed)
    assert crowd.look([]) == []
    crowd.pids = {2}
    assert crowd.look(DAMAGE, lambda: installed.install(rendered("two"))) == []
    assert crowd.look([]) == []


def test_an_installation_of_ours_during_a_look_absolves_nobody(installed: RenderedDirectory) -> None:
    """Workers that were first seen then are judged by the next look that is about what it saw."""
    crowd = Crowd(installed)
    crowd.look([])
    crowd.pids = {2}
    assert crowd.look([], lambda: installed.install(rendered("two"))) == []
    assert "a reload is needed" in crowd.look(DAMAGE)[0]
    assert "a reload is needed" in crowd.look([])[0]  # mending the files does not mend who read them
    assert "a reload is needed" in crowd.look([], lambda: None)[0]
    crowd.running.reloaded()
    assert crowd.look([]) == []


def test_a_look_while_files_are_being_changed_says_nothing(installed: RenderedDirectory) -> None:
    """`moves` is None for as long as that lasts, and another number afterwards, also when it failed."""
    crowd, before = Crowd(installed), installed.moves
    crowd.pids = {2}
    seen: list[object] = []

    class FullDisk(tuple[RenderedFile, ...]):
        """Files that can't be written."""

        def __iter__(self) -> Iterator[RenderedFile]:
            seen.append((installed.moves, crowd.look(DAMAGE)))
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StateError, match="unchanged"):
        installed.install(Rendered(FullDisk(rendered("two").files), rendered("two").revision))
    assert seen == [(None, [])]
    assert before is not None
    assert installed.moves is not None
    assert installed.moves > before
