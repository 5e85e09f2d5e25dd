"""PostgreSQL's connections, of a real server: as a fraction of what ordinary roles may have, full or restarted."""

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from lbswitch.core.source_config import SourceConfig
from lbswitch.ports import SourceDown
from lbswitch.traffic.sources.polling import make_source
from tests.health.raw import asynchronous
from tests.support.agent import make_short_directory
from tests.support.wait import wait_until
from tests.traffic.postgres import Postgres, programs
from tests.traffic.web import error, source, value

pytestmark = [
    pytest.mark.xdist_group("postgres"),
    pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed: apt-get install postgresql"),
]

ROOM = 10 - 2  # max_connections less those reserved for superusers


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    directory = make_short_directory()
    made = Postgres(directory)
    made.start()
    try:
        with psycopg.connect(made.dsn, autocommit=True) as connection:
            connection.execute("CREATE ROLE app LOGIN PASSWORD 's3cret'")
            connection.execute("CREATE ROLE few LOGIN CONNECTION LIMIT 0 PASSWORD 's3cret'")
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def connections(server: Postgres, count: int, user: str = "app") -> Iterator[None]:
    """So many, of one role."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = psycopg.connect(f"host={server.directory} user={user} password=s3cret dbname=postgres")
            stack.callback(connection.close)
        yield


def settled(server: Postgres, clients: int = 0) -> None:
    """Wait for the end of what was connected before: a backend goes a moment after its client."""
    wait_until(lambda: server.clients() == clients, f"{clients} clients")


def of(server: Postgres, user: str = "app", **settings: object) -> SourceConfig:
    settings = {"dsn": f"host={server.directory} user={user} dbname=postgres", **settings}
    return source("postgres", **settings)


@pytest.fixture
def password(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "password").write_text("s3cret\n")
    return {"password_file": str(tmp_path / "password")}


@asynchronous
async def test_fraction(server: Postgres, password):
    """All client connections, the question's own among them, of those that are not reserved; whoever asks."""
    settled(server)
    with connections(server, 3):
        assert await value(of(server, **password)) == 4 / ROOM
        settled(server, 3)
        assert await value(of(server, server.superuser)) == 4 / ROOM
    settled(server)
    with connections(server, 2, server.superuser):  # of whom an ordinary role sees next to nothing
        assert await value(of(server, **password)) == 3 / ROOM


@asynchronous
async def test_full(server: Postgres, password):
    """A server that has no connection left for the question is full, and not unknown."""
    settled(server)
    with connections(server, ROOM):
        assert await value(of(server, **password)) == 1.0
        with connections(server, 2, server.superuser):
            assert await value(of(server, server.superuser)) == 1.0


@asynchronous
async def test_a_limit_of_the_role(server: Postgres, password):
    """That it may not connect itself says nothing of the others."""
    assert "too many connections for role" in await error(of(server, "few", **password))


@asynchronous
async def test_who_is_not_let_in(server: Postgres, tmp_path: Path):
    """In the server's words; no password is repeated."""
    assert "no password supplied" in await error(of(server))
    (tmp_path / "wrong").write_text("gue55")
    said = await error(of(server, password_file=str(tmp_path / "wrong")))
    assert 'password authentication failed for user "app": see that the server runs and lets lbswitch in' in said
    assert "gue55" not in said


@asynchronous
async def test_a_dsn_in_a_file(server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Or as a service of libpq's; one that can't be read is not repeated."""
    file = tmp_path / "dsn"
    config = source("postgres", dsn_file=str(file))
    assert f"dsn_file {file} can't be read" in await error(config)
    file.write_text(f"host={server.directory} user=app password=s3cret dbname=postgres\n")
    assert 0 < await value(config) <= 1
    for wrong in ("s3cret", "postgresql://app:s3cret@part@nowhere/postgres"):
        file.write_text(wrong)
        said = await error(config)
        assert said.startswith(f"dsn_file {file} is no connection string: write host=")
        assert "s3cret" not in said
    (tmp_path / "services").write_text(f"[shop]\nhost={server.directory}\nuser={server.superuser}\ndbname=postgres\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    assert 0 < await value(source("postgres", dsn="service=shop")) <= 1


@asynchronous
async def test_kept_connection(server: Postgres):
    """One connection for all reads; a restart of the server between two of them is not seen."""
    settled(server)
    reader = make_source(of(server, server.superuser))
    try:
        assert [await reader.read() for _ in range(3)] == [1 / ROOM] * 3
        server.stop()
        with pytest.raises(SourceDown, match="No such file or directory"):
            await reader.read()
        server.start()
        assert await reader.read() == 1 / ROOM
        server.stop()
        server.start()
        assert await reader.read() == 1 / ROOM
    finally:
        await reader.close()
    settled(server)


@asynchronous
async def test_hanging(server: Postgres):
    """A server that stands still costs the timeout, and is read again when it goes on."""
    settled(server)
    reader = make_source(of(server, server.superuser))
    try:
        assert await reader.read() == 1 / ROOM
        server.freeze()
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await reader.read()
        finally:
            server.thaw()
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(SourceDown):  # the read before may still be on its way out
                    assert await reader.read() > 0
                    break
                await asyncio.sleep(0.05)
    finally:
        await reader.close()
    settled(server)
