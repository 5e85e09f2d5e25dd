"""A log that grows, is rotated, truncated and deleted is read completely, once, and kept small."""

import os
import stat
from pathlib import Path

import pytest

from lbswitch.traffic.tail import KEPT_S, MODE, Tail

NOW = 1_700_000_000.0


class Log:
    """A file as nginx holds it: open for appending, whatever becomes of its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reopen()

    def reopen(self) -> None:
        self.descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, text: str) -> None:
        os.write(self.descriptor, text.encode())


@pytest.fixture
def log(tmp_path: Path):
    made = Log(tmp_path / "traffic.log")
    yield made
    os.close(made.descriptor)


@pytest.fixture
def tail(log: Log):
    made = Tail(log.path, log.path.with_name("position"))
    made.open(NOW)
    yield made
    made.close()


def test_lines_as_they_are_completed(log: Log, tail: Tail):
    """A line without an end waits for it."""
    log.write("a\nb\nto")
    assert tail.read(NOW) == b"a\nb\n"
    assert tail.read(NOW) == b""
    log.write("rn\nc")
    assert tail.read(NOW) == b"torn\n"
    assert tail.lost == 0


def test_what_was_there_before_is_not_read(log: Log):
    """A first agent begins at the end; it is the next one that goes on."""
    log.write("old\n")
    tail = Tail(log.path, log.path.with_name("position"))
    tail.open(NOW)
    log.write("new\n")
    assert tail.read(NOW) == b"new\n"
    tail.close()
    log.write("meanwhile\n")
    tail.open(NOW + 5)
    assert tail.read(NOW + 5) == b"meanwhile\n"
    tail.close()
    log.write("long ago\n")
    tail.open(NOW + 500)
    assert tail.read(NOW + 500) == b""
    tail.close()


@pytest.mark.parametrize("memory", ["", "garbage", "1 2", "-1 -5 9", "1 2 3 4", f"{2**70} 5 {int(NOW)}"])
def test_a_memory_that_makes_no_sense(log: Log, memory: str):
    """It is as if there were none."""
    log.write("old\n")
    log.path.with_name("position").write_text(memory)
    tail = Tail(log.path, log.path.with_name("position"))
    tail.open(NOW)
    assert tail.read(NOW) == b""
    tail.close()


def test_a_file_that_is_not_there_yet(tmp_path: Path):
    """It is made, for this user and group alone; nginx then appends to it."""
    tail = Tail(tmp_path / "traffic.log", tmp_path / "position")
    tail.open(NOW)
    assert stat.S_IMODE((tmp_path / "traffic.log").stat().st_mode) == MODE
    log = Log(tmp_path / "traffic.log")
    log.write("first\n")
    assert tail.read(NOW) == b"first\n"
    tail.close()
    os.close(log.descriptor)


def test_one_that_nginx_made_is_closed_to_strangers(log: Log, tail: Tail):
    """nginx makes logs that everybody can read."""
    assert stat.S_IMODE(log.path.stat().st_mode) == MODE


def test_rotation(log: Log, tail: Tail):
    """The old file is read to its end while the new one is read already, and is left as it is."""
    log.write("1\n")
    assert tail.read(NOW) == b"1\n"
    log.path.rename(log.path.with_suffix(".1"))
    log.write("2\n")
    assert tail.read(NOW) == b"2\n"
    assert log.path.exists(), "with the right mode, before nginx makes it"
    old = log.descriptor
    log.reopen()
    log.write("4\n")
    os.write(old, b"3\n")
    assert tail.read(NOW) == b"3\n4\n"
    tail.tidy(NOW)
    assert (log.path.stat().st_size, log.path.with_suffix(".1").read_text()) == (0, "1\n2\n3\n")
    os.close(old)


def test_rotated_again_and_again(log: Log, tail: Tail):
    """However often: a few old files are followed, and no descriptor is left behind."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for number in range(10):
        log.path.rename(log.path.with_suffix(f".{number}"))
        os.close(log.descriptor)
        log.reopen()
        log.write(f"{number}\n")
        assert tail.read(NOW + number) == b"%d\n" % number
    assert len(os.listdir("/proc/self/fd")) <= before + 3  # noqa: PTH208
    tail.read(NOW + 500)
    assert len(os.listdir("/proc/self/fd")) == before + 1  # noqa: PTH208


def test_truncated_by_somebody(log: Log, tail: Tail):
    """What comes after it is read."""
    log.write("before, and long enough\n")
    tail.read(NOW)
    os.truncate(log.path, 0)
    log.write("after\n")
    assert tail.read(NOW) == b"after\n"


def test_deleted(log: Log, tail: Tail):
    """nginx goes on writing to what has no name any more; it is read, and emptied, too."""
    log.path.unlink()
    log.write("nameless\n")
    assert tail.read(NOW) == b"nameless\n"
    tail.tidy(NOW)
    assert os.fstat(log.descriptor).st_size == 0


def test_kept_small(log: Log, tail: Tail):
    """It is emptied from time to time, never with something unread in it, and goes on to be read."""
    tail.tidy(NOW)
    for second in range(int(KEPT_S) + 5):
        log.write("x" * 100 + "\n")
        assert len(tail.read(NOW + second)) == 101
        log.write("unread\n") if second == KEPT_S else None
        tail.tidy(NOW + second)
        if second == KEPT_S:
            assert log.path.stat().st_size > 0
            assert tail.read(NOW + second) == b"unread\n"
    assert log.path.stat().st_size < 5 * 101


def test_no_line_at_all(log: Log, tail: Tail):
    """A megabyte without an end is given up, and what follows is read."""
    log.write("x" * (1 << 20))
    assert (tail.read(NOW), tail.lost) == (b"", 1)
    log.write("tail of it\nnext\n")
    assert tail.read(NOW) == b"tail of it\nnext\n"


def test_more_than_fits_into_one_reading(log: Log, tail: Tail):
    """Memory does not grow with a backlog, and no line is lost or cut."""
    some = "".join(f"{number:0100d}\n" for number in range(60_000))
    for _ in range(3):
        log.write(some)
    parts = [tail.read(NOW) for _ in range(5)]
    assert b"".join(parts) == some.encode() * 3
    assert max(map(len, parts)) < 10 << 20


def test_no_file(tmp_path: Path):
    """A symlink or a pipe in its place is refused, and not waited for."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match=r"no regular file|Too many levels"):
            Tail(tmp_path / name, tmp_path / "position").open(NOW)
