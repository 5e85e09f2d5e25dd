"""What HAProxy tells is counted for the color that it is about."""

from pathlib import Path
from typing import Any

import pytest

from lbswitch.core.config import Config
from lbswitch.core.evidence import Failure
from lbswitch.core.model import Color, PoolKey
from lbswitch.ports import Reading
from lbswitch.traffic.haproxy import Lines
from lbswitch.traffic.haproxy_socket import place

BLUE, GREEN = PoolKey("shop", Color.BLUE), PoolKey("shop", Color.GREEN)
AT = 1_700_000_000.0


def config(directory: Path = Path("/nowhere"), mode: str = "http", **balancer: Any) -> Config:
    colors = {"blue": {"servers": ["127.0.0.1:1"]}, "green": {"servers": ["127.0.0.1:2"]}}
    document = {
        "agent": {"state_dir": str(directory)},
        "balancer": {"kind": "haproxy", **balancer},
        "services": {"shop": {"bind": "127.0.0.1:3", "mode": mode, **colors}},
    }
    return Config.model_validate(document)


def line(ended: str = "shop_green s1 200 -- 0", number: int = 0, timers: str = "0/0/2/2", **rest: Any) -> bytes:
    """One datagram."""
    values = {"head": "", "at": AT, "source": "7 shop", "method": "GET", "path": "/a", "id": "-", "tail": "\n", **rest}
    fields = (values["head"], "lbswitch1", values["source"], number, round(values["at"] * 1000), timers, ended)
    return "\t".join(map(str, (*fields, values["method"], values["path"], values["id"], values["tail"]))).encode()


def count(*lines: bytes, **more: Any) -> Reading:
    return Lines(config(**more)).reading(lines, AT + 1)


@pytest.mark.parametrize(
    ("ended", "failure"),
    [
        ("shop_green s1 200 -- 0", None),
        ("shop_green s1 404 -- 0", None),
        ("shop_green s1 500 -- 0", Failure.STATUS),
        ("shop_green s1 504 -- 0", Failure.TIMEOUT),
        ("shop_green s1 504 sH 0", Failure.TIMEOUT),
        ("shop_green s1 503 SC 1", Failure.CONNECT),
        ("shop_green s1 503 sC 1", Failure.CONNECT),
        ("shop_green <NOSRV> 503 SC 0", Failure.CONNECT),
        ("shop_green s1 502 SH 0", Failure.CLOSED),
        ("shop_green s1 502 PH 0", Failure.CLOSED),
        ("shop_green s1 200 SD 0", Failure.CLOSED),
        ("shop_green s1 200 sD 0", Failure.CLOSED),
        ("shop_green s2 200 -- +1", Failure.REPLAY),
        ("shop_green s1 101 sD 0", None),
        ("shop_green s1 -1 CH 0", None),
        ("shop_green s1 200 CD 0", None),
        ("shop_green s1 200 KD 0", None),
    ],
)
def test_how_a_request_ended(ended: str, failure: Failure | None):
    """Servers are to blame for what they did, and for nothing that clients or administrators did."""
    batch = count(line(ended)).batches[GREEN]
    assert batch.requests == 1
    assert dict(batch.failures) == ({failure: 1} if failure else {})
    assert batch.streak == (failure is not None)


@pytest.mark.parametrize("ended", ["shop <NOSRV> 400 PR 0", "shop_green <NOSRV> 403 LR 0", "theirs s1 500 -- 0", "x"])
def test_not_a_request_to_a_server_of_ours(ended: str):
    """What HAProxy answers by itself, and other people's backends, say nothing of a color."""
    assert count(line(ended)).batches == {}


def test_replay_by_the_other_color():
    """Under the shield the failing color has a replay and the latency, the other one what became of it."""
    reading = count(
        line("shop_green_shielded green1 200 -- 0"),
        line("shop_green_shielded blue1 200 -- +1", 1, timers="0/1/99/100"),
        line("shop_green_shielded blue2 500 -- +2", 2),
    )
    green, blue = reading.batches[GREEN], reading.batches[BLUE]
    assert (green.requests, dict(green.failures), green.streak) == (3, {Failure.REPLAY: 2}, 2)
    assert (blue.requests, dict(blue.failures), dict(blue.statuses)) == (2, {Failure.STATUS: 1}, {200: 1, 500: 1})
    assert green.latency.count == 3
    assert green.latency.quantile(1) == pytest.approx(100, rel=0.02)


def test_requests_are_named():
    """Those that failed or may not be sent twice, with time, path and id; the newest failure ends the streak."""
    reading = count(
        line("shop_green s1 500 -- 0", 0, at=AT),
        line("shop_green s1 200 -- 0", 1, at=AT + 0.1, method="POST", path="/pay", id="r-1"),
        line("shop_green s1 500 -- 0", 2, at=AT + 0.2, method="POST"),
        line(number=3),
    )
    shown = [(one.method, one.path, one.status, one.request_id, one.failure) for one in reading.requests]
    assert shown == [
        ("GET", "/a", 500, "", Failure.STATUS),
        ("POST", "/pay", 200, "r-1", None),
        ("POST", "/a", 500, "", Failure.STATUS),
    ]
    batch = reading.batches[GREEN]
    assert (batch.streak, batch.first_failure_at, batch.last_failure_at) == (1, AT, pytest.approx(AT + 0.2))


def test_connections():
    """In `mode: tcp` a refused or broken connection fails, and one that was asked and said nothing; idle ones don't."""
    ends = {"0 -- 0": "9/9", "0 SC 1": "9/0", "0 SD 0": "9/9", "0 sD 0": "9/0"}
    lines = [
        line(f"shop_green s1 {end}", number, "0/1/0/9", method="TCP", path=path)
        for number, (end, path) in enumerate(ends.items())
    ]
    idle = [line("shop_green s1 0 sD 0", n, method="TCP", path=path) for n, path in ((4, "9/9"), (5, "0/0"))]
    batch = count(*lines, *idle, mode="tcp").batches[GREEN]
    assert batch.requests == 5
    assert dict(batch.failures) == {Failure.CONNECT: 1, Failure.CLOSED: 1, Failure.TIMEOUT: 1}


def test_dropped_lines_are_known():
    """A gap in the numbers is lost once it lasts; threads that send in another order lose nothing."""
    lines = Lines(config())
    numbers = ((5, 7), (6,), (9,), (8,), (20,), (21,), (), (22,))
    readings = [lines.reading([line(number=number) for number in each], AT) for each in numbers]
    assert [reading.lost for reading in readings] == [0, 0, 0, 0, 0, 10, 0, 0]
    other = lines.reading([line(number=0, source="8 shop"), line(number=1, source="8 shop")], AT)
    assert other.lost == 0


def test_garbage_is_lost():
    """Torn lines count, what HAProxy says of servers does not, and a client can't make up fields."""
    torn = line()[:40]
    notice = b"Server shop_green/s1 is going DOWN for maintenance."
    forged = line(id="x\tlbswitch1\t8 shop\t0\t0\t0/0/0/0\tshop_blue s1 500 -- 0")
    reading = count(torn, notice, b"", b"\xff\t\xfe", forged)
    assert reading.lost == 1
    assert set(reading.batches) == {GREEN}


def test_guest_line():
    """In an owner's HAProxy the fields are the structured data of a line whose message is the owner's."""
    head, tail = "<134>1 2026-01-01T00:00:00+00:00 - haproxy 7 - ", ' 10.0.0.1:1 "GET / HTTP/1.1"\n'
    guest = {"managed": False, "config": "/o.cfg", "output_dir": "/out", "master_socket": "/m.sock"}
    reading = count(line("lbswitch_shop_green s1 500 -- 0", head=head, tail=tail, id="r-1"), **guest)
    assert dict(reading.batches[GREEN].failures) == {Failure.STATUS: 1}
    assert reading.requests[0].request_id == "r-1"


def test_what_the_owner_has_to_write(tmp_path: Path):
    """The lines, and the directory that a HAProxy needs which locks itself into another root."""
    owner, output = tmp_path / "owner.cfg", tmp_path / "out"
    owner.write_text("global\n    daemon\n")
    guest = config(managed=False, config=str(owner), output_dir=str(output), master_socket="/m.sock")
    output.mkdir()
    path = output / "traffic.sock"
    problem = place(guest, path).problem or ""
    lines = [text.strip() for text in problem.splitlines() if text.startswith("    ")]
    assert [text.split()[0] for text in lines] == ["log", "log-format-sd", "option"]
    owner.write_text("\n".join(["frontend shop", *lines, ""]))
    assert place(guest, path) == place(guest, path)._replace(path=path, problem=None)
    owner.write_text("\n".join(["global", f"    chroot {tmp_path}/jail", "frontend shop", *lines, ""]))
    assert f"install -d -o root {tmp_path}/jail{output}".split()[-1] in (place(guest, path).problem or "")
