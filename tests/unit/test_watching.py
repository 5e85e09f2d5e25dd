"""What inotify tells, and what is found without it."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lbswitch.watching import Watching
from tests.support.wait import wait_until


class Watcher:
    """A Watching with counters of what it told."""

    def __init__(self, observer: Callable[[], Any] | None = None) -> None:
        self.edits = self.own = 0
        self._lock = threading.Lock()
        self.watching = Watching(self._edited, self._own_files, observer)

    def _edited(self) -> None:
        with self._lock:
            self.edits += 1

    def _own_files(self) -> None:
        with self._lock:
            self.own += 1

    def follow(self, *edits: Path, own: tuple[Path, ...] = ()) -> None:
        """From here on `changed` tells what is new."""
        self.watching.follow(edits, own)
        self.watching.changed()
        self.edits = self.own = 0

    def until_told(self, *changed: Path) -> None:
        """It told by itself, at once, and then these were changed."""
        wait_until(lambda: self.edits, "inotify told", 4.0)  # less than the time between two looks
        wait_until(lambda: self.watching.changed() == set(changed), f"{changed} changed", 4.0)


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.watching.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "etc" / "lbswitch.yaml"
    path.parent.mkdir()
    path.write_text("one")
    return path


def test_what_is_new_counts_as_changed_once(watcher: Watcher, file: Path) -> None:
    """Nobody has read it yet."""
    watcher.watching.follow([file])
    assert watcher.watching.changed() == {file}
    assert watcher.watching.changed() == set()


def _write(path: Path) -> None:
    path.write_text("two")


def _replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_text("two")
    new.rename(path)


def _remove(path: Path) -> None:
    path.unlink()


def _move_away(path: Path) -> None:
    path.rename(path.with_name("old"))


@pytest.mark.parametrize("edit", [_write, _replace, _remove, _move_away])
def test_an_edit_is_told(watcher: Watcher, file: Path, edit: Callable[[Path], None]) -> None:
    """Written in place, replaced by a rename, removed, moved away."""
    watcher.follow(file)
    edit(file)
    watcher.until_told(file)


def test_removed_and_put_back(watcher: Watcher, file: Path) -> None:
    watcher.follow(file)
    file.unlink()
    watcher.until_told(file)
    watcher.follow(file)
    file.write_text("again")
    watcher.until_told(file)


def test_a_directory_that_is_made_later(watcher: Watcher, tmp_path: Path) -> None:
    """The nearest one that is there is watched until then."""
    file = tmp_path / "later" / "deep" / "lbswitch.yaml"
    watcher.follow(file)
    file.parent.mkdir(parents=True)
    wait_until(lambda: watcher.edits, "the directory is told", 4.0)
    watcher.follow(file)
    file.write_text("one")
    watcher.until_told(file)


def test_a_directory_that_is_removed_and_made_again(watcher: Watcher, file: Path) -> None:
    watcher.follow(file)
    file.unlink()
    file.parent.rmdir()
    watcher.until_told(file)
    watcher.follow(file)
    file.parent.mkdir()
    wait_until(lambda: watcher.edits, "the directory is told", 4.0)
    watcher.follow(file)
    file.write_text("again")
    watcher.until_told(file)


def test_a_switched_symlink(watcher: Watcher, tmp_path: Path) -> None:
    """As Kubernetes mounts a config map: lbswitch.yaml -> ..data/lbswitch.yaml, and ..data is replaced."""
    for name in ("..1", "..2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lbswitch.yaml").write_text(name)
    (tmp_path / "..data").symlink_to("..1")
    file = tmp_path / "lbswitch.yaml"
    file.symlink_to("..data/lbswitch.yaml")
    watcher.follow(file)
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    watcher.until_told(file)
    watcher.follow(file)
    (tmp_path / "..2" / "lbswitch.yaml").write_text("where it points to now")
    watcher.until_told(file)


def test_a_directory_of_templates(watcher: Watcher, tmp_path: Path) -> None:
    """Templates come, change and go; other files there are nobody's business."""
    directory = tmp_path / "templates"
    directory.mkdir()
    watcher.follow(directory)
    (directory / "notes.txt").write_text("x")
    (directory / "a.j2").write_text("one")
    watcher.until_told(directory)
    watcher.follow(directory)
    (directory / "a.j2").unlink()
    watcher.until_told(directory)
    (directory / "more notes.txt").write_text("x")
    assert watcher.watching.changed() == set()


def test_rights_and_times_are_edits(watcher: Watcher, file: Path) -> None:
    """A file that may be read again; one whose time was set back after it was replaced."""
    watcher.follow(file)
    file.chmod(0o600)
    assert watcher.watching.changed() == {file}
    os.utime(file, ns=(1, 1))
    assert watcher.watching.changed() == {file}


def test_neighbors_are_not_told(watcher: Watcher, file: Path) -> None:
    """A hundred other files come and go beside it."""
    watcher.follow(file)
    for number in range(100):
        other = file.with_name(f"other{number}")
        other.write_text("x")
        other.unlink()
    _write(file)
    watcher.until_told(file)
    assert watcher.edits <= 3


def test_a_busy_directory_is_left_alone(watcher: Watcher, file: Path) -> None:
    """Thousands of changes there cost no time; the file's own are found by looking, and a note says so."""
    watcher.follow(file)
    for number in range(2000):
        file.with_name(f"other{number}").touch()
    wait_until(lambda: watcher.watching.notes(5.0), "it is noted")
    (note,) = watcher.watching.notes(5.0)
    assert note.startswith(f"{file.parent} had more than 200 changes in a second: ")
    watcher.follow(file)
    told = watcher.edits
    _write(file)
    assert watcher.watching.changed() == {file}
    assert watcher.edits == told


def test_own_files_are_told_apart(watcher: Watcher, file: Path, tmp_path: Path) -> None:
    """What happens in a directory of lbswitch's own is no edit."""
    own = tmp_path / "state"
    own.mkdir()
    watcher.follow(file, own=(own,))
    (own / "live").symlink_to("gen-1")
    wait_until(lambda: watcher.own, "our own file is told")
    assert watcher.watching.changed() == set()
    assert watcher.edits == 0


class Exhausted:
    """An observer that can't watch."""

    def __init__(self, number: int) -> None:
        self._error = OSError(number, os.strerror(number))

    def schedule(self, *_: Any, **__: Any) -> Any:
        raise self._error

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def join(self) -> None:
        pass


@pytest.mark.parametrize(
    ("number", "limit"),
    [(errno.ENOSPC, "fs.inotify.max_user_watches"), (errno.EMFILE, "fs.inotify.max_user_instances")],
)
def test_exhausted_inotify(file: Path, number: int, limit: str) -> None:
    """Looking still finds every edit, and a note says what to raise."""
    watcher = Watcher(lambda: Exhausted(number))
    watcher.follow(file)
    _write(file)
    assert watcher.watching.changed() == {file}
    (note,) = watcher.watching.notes(5.0)
    assert note.startswith("edits are noticed by looking every 5 s, because inotify is exhausted")
    assert limit in note
    watcher.watching.stop()


def test_no_inotify(file: Path) -> None:
    """A system without it."""

    def missing() -> Any:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    watcher = Watcher(missing)
    watcher.follow(file)
    _write(file)
    assert watcher.watching.changed() == {file}
    assert "inotify can't be used" in watcher.watching.notes(5.0)[0]
    watcher.watching.stop()


def test_links_that_lead_in_a_circle(watcher: Watcher, tmp_path: Path) -> None:
    """They are no file, and nothing hangs."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    watcher.follow(tmp_path / "a")
    (tmp_path / "a").unlink()
    (tmp_path / "a").write_text("a file now")
    watcher.until_told(tmp_path / "a")
