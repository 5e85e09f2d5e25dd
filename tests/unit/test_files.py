"""File changes that a reader never sees half done."""

import os
import stat

import pytest

from lbswitch.files import read_link, replace_file, replace_symlink, sync_directory, write_file


def test_write_file_has_its_mode_whatever_the_umask(tmp_path):
    """A secret is never readable by others, and a public file always is."""
    before = os.umask(0o077)
    try:
        write_file(tmp_path / "public", b"x", 0o644)
        os.umask(0)
        write_file(tmp_path / "secret", b"x", 0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_write_file_does_not_follow_a_symlink(tmp_path):
    """Nobody can have another file overwritten by putting a link in the way."""
    (tmp_path / "victim").write_text("old")
    (tmp_path / "link").symlink_to("victim")
    with pytest.raises(OSError, match="symbolic links"):
        write_file(tmp_path / "link", b"new")
    assert (tmp_path / "victim").read_text() == "old"


def test_replace_file(tmp_path):
    """The name holds the new content, a reader that has the old file open keeps it, and nothing is left beside it."""
    path = tmp_path / "live.map"
    path.write_text("blue")
    with path.open() as reader:
        replace_file(path, b"green")
        assert reader.read() == "blue"
    assert path.read_text() == "green"
    assert list(tmp_path.iterdir()) == [path]


def test_replace_file_that_fails_leaves_the_old_one(tmp_path):
    """A directory in the way of the rename costs nothing: the old file stays and the temporary one goes."""
    path = tmp_path / "taken"
    path.mkdir()
    (path / "inside").touch()
    with pytest.raises(OSError, match="directory"):
        replace_file(path, b"green")
    assert list(tmp_path.iterdir()) == [path]


def test_replace_symlink(tmp_path):
    """One rename makes the link and moves it, also over what a crash left behind."""
    link = tmp_path / "live"
    assert read_link(link) is None
    replace_symlink(link, "gen-000001")
    (tmp_path / ".live.new").symlink_to("left by a crash")
    replace_symlink(link, "gen-000002")
    assert read_link(link) == "gen-000002"
    assert list(tmp_path.iterdir()) == [link]


def test_sync_directory_is_for_directories(tmp_path):
    """A file in its place is an error, not a silent success."""
    (tmp_path / "file").touch()
    sync_directory(tmp_path)
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "file")
