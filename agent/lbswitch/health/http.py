"""The HTTP check: one request on a kept connection, judged by status and body."""

from __future__ import annotations

from lbswitch import __version__
from lbswitch.core.config import HealthConfig
from lbswitch.core.health import CheckResult
from lbswitch.core.values import Endpoint
from lbswitch.health.answer import Answer, Question
from lbswitch.health.checking import CheckFailed, shown, timed
from lbswitch.health.connection import Connection, connect
from lbswitch.health.resolver import Resolver
from lbswitch.health.target import server_name

_REQUESTS_PER_CONNECTION = 5


class HttpProber:
    """Asks one server again and again.

    The connection is kept, which is cheap for both sides, but not for long: a server that no longer accepts may
    well go on answering on a connection it accepted before.
    """

    def __init__(self, endpoint: Endpoint, config: HealthConfig, resolver: Resolver) -> None:
        """Check `endpoint`; nothing is sent yet."""
        self._endpoint = endpoint
        self._config = config
        self._resolver = resolver
        self._server_name = server_name(endpoint, config)
        self._question = _question(endpoint, config)
        self._wanted = None if config.body is None else config.body.encode()
        self._connection: Connection | None = None
        self._uses_left = 0

    async def check(self) -> CheckResult:
        """Ask once. Raises: Inconclusive."""
        return await timed(self._ask, self._config.timeout)

    def close(self) -> None:
        """Close the kept connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _ask(self) -> str:
        if self._connection is not None and self._connection.is_open and self._uses_left:
            answer = await self._exchange(self._connection)
            if not answer.is_empty:
                return self._judge(answer)
        self.close()
        self._connection = await connect(
            self._endpoint, self._resolver, tls=self._config.tls, server_name=self._server_name
        )
        self._uses_left = _REQUESTS_PER_CONNECTION
        return self._judge(await self._exchange(self._connection))

    async def _exchange(self, connection: Connection) -> Answer:
        """One request and its answer; the connection is closed unless the answer leaves it usable."""
        answer = Answer(self._question)
        self._uses_left -= 1
        try:
            await connection.ask(self._question.sent, answer)
        except BaseException:
            self.close()
            raise
        if answer.is_last:
            self.close()
        return answer

    def _judge(self, answer: Answer) -> str:
        status = answer.status
        if status is not None and not any(low <= status <= high for low, high in self._config.expect):
            text = shown(bytes(answer.body))
            raise CheckFailed(f'HTTP {status} "{text}"' if text else f"HTTP {status}")
        if answer.fault is not None:
            raise CheckFailed(answer.fault)
        if self._wanted is not None and self._wanted not in answer.body:
            raise CheckFailed(f'body lacks "{shown(self._wanted)}"')
        return f"HTTP {status}"


def _question(endpoint: Endpoint, config: HealthConfig) -> Question:
    host = config.host or ("localhost" if endpoint.is_unix else str(endpoint))
    return Question(config.method, config.path, host, f"lbswitch/{__version__}")
