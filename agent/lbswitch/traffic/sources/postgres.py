"""How full a PostgreSQL server is: its connections as a fraction of those that ordinary roles may have.

Client connections (pg_stat_activity) divided by `max_connections` less the slots that are kept for superusers
(`superuser_reserved_connections`) and for members of pg_use_reserved_connections (`reserved_connections`, since
PostgreSQL 16): at 1 an application is refused, whatever is still reserved. Superusers can push it above 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from lbswitch.core.source_config import PostgresSource
from lbswitch.ports import SourceDown
from lbswitch.traffic.sources.secret import read_secret
from lbswitch.traffic.sources.thread import Apart

if TYPE_CHECKING:
    import psycopg

# Who is not a member of pg_read_all_stats sees no backend_type of others' sessions. What has a database and a user is
# then taken for a client: that counts background workers of extensions, too, and misses nobody.
_FULLNESS = """
SELECT count(*) FILTER (
           WHERE backend_type = 'client backend'
              OR (backend_type IS NULL AND datid IS NOT NULL AND usesysid IS NOT NULL)),
       current_setting('max_connections')::int
           - current_setting('superuser_reserved_connections')::int
           - coalesce(current_setting('reserved_connections', true), '0')::int
  FROM pg_stat_activity"""
_FULL = ("too many clients already", "remaining connection slots are reserved")
_LONGEST = 300


class PostgresMetric:
    """Asks over one connection, which is kept; it counts as a connection itself.

    psycopg runs in a thread: what libpq looks up (a service's host, a password file) would block the event loop. A read
    that is cancelled shuts the connection down under it.
    """

    def __init__(self, config: PostgresSource) -> None:
        """Nothing is connected yet."""
        self._config = config
        self._apart = Apart("source postgres")
        self._lock = threading.Lock()  # for what follows
        self._connection: psycopg.Connection[Any] | None = None
        self._is_asking = False
        self._is_given_up = False
        self._is_closed = False

    async def read(self) -> float:
        """See `MetricSource`. Raises: SourceDown."""
        self._is_given_up = False
        try:
            return await self._apart.call(self._fullness)
        except asyncio.CancelledError:
            self._give_up()
            raise

    async def close(self) -> None:
        """Let go of the connection; a thread that still asks does that itself."""
        self._give_up()
        with self._lock:
            self._is_closed = True
        if not self._is_asking:
            self._drop()

    def _give_up(self) -> None:
        """Let the thread that asks see the end of the connection."""
        self._is_given_up = True
        with self._lock:
            if self._is_asking and self._connection is not None:
                _shut_down(self._connection)

    # -- in the thread -----------------------------------------------------------------------------------------

    def _fullness(self) -> float:
        with self._lock:
            self._is_asking = True
        try:
            return self._value()
        finally:
            with self._lock:
                self._is_asking = False
            if self._is_closed:
                self._drop()

    def _value(self) -> float:
        try:
            import psycopg
        except ImportError as error:
            words = "psycopg is not there to ask PostgreSQL with: pip install 'lbswitch[postgres]'"
            raise SourceDown(words) from error
        was_connected = self._connection is not None
        try:
            try:
                return self._asked(psycopg)
            except psycopg.OperationalError:
                if not was_connected or self._is_given_up:
                    raise
                return self._asked(psycopg)  # the server was restarted since the last read
        except psycopg.Error as error:
            return _judged(error)

    def _asked(self, library: Any) -> float:
        """Over the connection there is, or a new one. Raises: psycopg.Error, SourceDown."""
        connection = self._connection or self._connected(library)
        try:
            row = connection.execute(_FULLNESS).fetchone()
        except BaseException:
            self._drop()
            raise
        used, most = row or (0, 0)
        if most <= 0:
            raise SourceDown("the server reserves all connections: see max_connections and what is reserved of them")
        return float(used / most)

    def _connected(self, library: Any) -> psycopg.Connection[Any]:
        connection: psycopg.Connection[Any] = library.connect(
            self._conninfo(library),
            autocommit=True,
            prepare_threshold=None,  # a pooler would hand the statement to another server
            **self._password(),
        )
        with self._lock:
            self._connection = connection
            is_late = self._is_given_up
        if is_late:  # nobody could shut it down before
            self._drop()
            raise SourceDown("the server let lbswitch in too late")
        return connection

    def _conninfo(self, library: Any) -> str:
        """The DSN, with defaults; libpq's own words could repeat a secret. Raises: SourceDown."""
        config = self._config
        key = "dsn_file" if config.dsn_file is not None else "dsn"
        text = read_secret(config.dsn_file, "dsn_file") if config.dsn_file is not None else config.dsn or ""
        try:
            given = library.conninfo.conninfo_to_dict(text)
        except library.Error:
            given = {"host": "@"}
        if "@" in str(given.get("host", "")):
            words = "is no connection string: write host=... dbname=... user=..., or postgresql://USER@HOST/DB"
            raise SourceDown(f"{key} {config.dsn_file or ''} {words}".replace("  ", " "))
        defaults = {
            "connect_timeout": str(max(2, math.ceil(config.timeout))),  # libpq takes no less
            "fallback_application_name": "lbswitch",
        }
        return str(library.conninfo.make_conninfo(text, **{k: v for k, v in defaults.items() if k not in given}))

    def _password(self) -> dict[str, str]:
        path = self._config.password_file
        return {} if path is None else {"password": read_secret(path, "password_file")}

    def _drop(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()


def _shut_down(connection: psycopg.Connection[Any]) -> None:
    """End the conversation under whoever waits for a word of it, who then closes the connection."""
    with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.shutdown(socket.SHUT_RDWR)  # whatever fails: it is not open any more


def _judged(error: Exception) -> float:
    """A server that refuses because it is full says how full it is. Raises: SourceDown."""
    lines = [line.strip() for line in str(error).splitlines()]
    words = "; ".join(line for line in lines if line and not line.endswith("?"))  # libpq asks back what we say below
    words = words.removeprefix("connection is bad: ").removeprefix("connection failed: ")
    if any(full in words for full in _FULL):
        return 1.0
    shown = words if len(words) <= _LONGEST else f"{words[:_LONGEST]}..."
    raise SourceDown(f"{shown or type(error).__name__}: see that the server runs and lets lbswitch in") from error
