"""The reader of an nginx: it says that it reads, and what keeps it from it."""

import os
from pathlib import Path

import pytest

from lbswitch.core.model import Color, PoolKey
from lbswitch.traffic.lease import SECONDS, Lease
from lbswitch.traffic.nginx import NginxTraffic, log_path
from tests.traffic.nginx_lines import AT, config, line, lines

GREEN = PoolKey("shop", Color.GREEN)


class Clock:
    """Seconds since the epoch, as the test says."""

    def __init__(self, now: float = AT) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def names(directory: Path) -> set[int]:
    return {int(path.name) for path in directory.iterdir()}


def test_the_lease_is_for_now_and_a_little_longer(tmp_path: Path):
    """Nothing else is there, also after a pause and when the clock is set back."""
    lease = Lease(tmp_path / "traffic" / "lease")
    for now in (AT, AT + 3, AT + 12, AT + 500, AT + 100):
        lease.renew(now)
        current = int(now) // SECONDS
        assert names(tmp_path / "traffic" / "lease") == {current, current + 1, current + 2}
    lease.end()
    assert names(tmp_path / "traffic" / "lease") == set()


def test_from_start_to_close(tmp_path: Path):
    """It reads what is logged while the lease holds, and ends the lease."""
    clock = Clock()
    reader = NginxTraffic(config(tmp_path), clock)
    reader.start()
    assert names(tmp_path / "traffic" / "lease")
    with log_path(config(tmp_path)).open("ab") as log:
        log.write(lines(line(), line(statuses="500", status=500), b"garbage"))
    reading = reader.read()
    assert (reading.batches[GREEN].requests, reading.lost, reading.at) == (2, 1, AT)
    assert reader.read().batches == {}
    assert reader.problem is None
    reader.close()
    assert reader.read().batches == {}
    assert names(tmp_path / "traffic" / "lease") == set()


def test_a_directory_that_comes_later(tmp_path: Path):
    """A problem is said while there is one, readings are empty then, and it goes on by itself."""
    (tmp_path / "state").write_text("in the way")
    reader = NginxTraffic(config(tmp_path / "state"), Clock())
    reader.start()
    assert reader.read().batches == {}
    assert str(tmp_path / "state") in str(reader.problem)
    (tmp_path / "state").unlink()
    assert reader.read().batches == {}
    assert reader.problem is None
    reader.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_log_of_somebody_else(tmp_path: Path):
    """One that the agent may not empty is not read, and nothing more is logged to it."""
    path = log_path(config(tmp_path))
    path.parent.mkdir(parents=True)
    path.touch(0o444)
    reader = NginxTraffic(config(tmp_path), Clock())
    reader.start()
    assert str(path) in str(reader.problem)
    assert not (tmp_path / "traffic" / "lease").exists()


def test_another_configuration(tmp_path: Path):
    """Services that come are read of."""
    reader = NginxTraffic(config(tmp_path), Clock())
    reader.start()
    reader.update(config(tmp_path, cart={}))
    with log_path(config(tmp_path)).open("ab") as log:
        log.write(lines(line("cart_green"), line()))
    assert set(reader.read().batches) == {PoolKey("cart", Color.GREEN)}
    reader.close()
