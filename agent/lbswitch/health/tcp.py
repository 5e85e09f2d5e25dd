"""The TCP check: the server accepts a connection, and shakes hands with TLS."""

from __future__ import annotations

from lbswitch.core.config import HealthConfig
from lbswitch.core.health import CheckResult
from lbswitch.core.values import Endpoint
from lbswitch.health.checking import timed
from lbswitch.health.connection import connect
from lbswitch.health.resolver import Resolver
from lbswitch.health.target import server_name


class TcpProber:
    """Connects and closes."""

    def __init__(self, endpoint: Endpoint, config: HealthConfig, resolver: Resolver) -> None:
        """Check `endpoint`."""
        self._endpoint = endpoint
        self._config = config
        self._resolver = resolver
        self._server_name = server_name(endpoint, config)

    async def check(self) -> CheckResult:
        """Connect once. Raises: Inconclusive."""
        return await timed(self._connect, self._config.timeout)

    def close(self) -> None:
        """Nothing is kept."""

    async def _connect(self) -> str:
        connection = await connect(self._endpoint, self._resolver, tls=self._config.tls, server_name=self._server_name)
        connection.close()
        return "connected with TLS" if self._config.tls else "connected"
