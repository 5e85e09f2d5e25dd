"""One GET of a bounded document: no redirects, no proxy of the environment, a new connection each time."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from lbswitch.core.config_problems import show
from lbswitch.core.source_config import HttpSource, PrometheusSource
from lbswitch.ports import SourceDown
from lbswitch.traffic.sources.secret import read_secret
from lbswitch.traffic.sources.thread import Apart

if TYPE_CHECKING:
    import httpx

_MOST_BYTES = 1 << 20
_MOST_ADDRESSES = 4
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a body."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The document. Raises: ValueError with words such as `holds no JSON (...)`."""
        try:
            return json.loads(self.body, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            why = "too deep" if isinstance(error, RecursionError) else str(error)
            raise ValueError(f"holds no JSON ({why})") from None


def _refuse(name: str) -> None:
    raise ValueError(f"it has {name}, which JSON does not know")


class Fetcher:
    """Gets documents from one address."""

    def __init__(self, config: PrometheusSource | HttpSource) -> None:
        """Nothing is connected yet."""
        self._config = config
        self._url = urlsplit(config.url)
        self._apart = Apart(f"source {self._url.netloc}")
        self._client: httpx.AsyncClient | None = None

    async def get(self, path: str = "", **query: str) -> Answer:
        """What `path` below the URL answers, whatever its status is, but for redirects. Raises: SourceDown."""
        if self._client is None:
            self._client = await self._apart.call(self._make_client)
        target = self._url.path.rstrip("/") + path if path else self._url.path or "/"
        questions = "&".join(part for part in (self._url.query, urlencode(query)) if part)
        target = f"{target}?{questions}" if questions else target
        return await self._first(self._client, await self._addresses(), target)

    async def close(self) -> None:
        """Let go of the client."""
        if self._client is not None:
            await self._client.aclose()

    def _make_client(self) -> httpx.AsyncClient:
        """In a thread: importing httpx and reading all CAs of a system takes its time. Raises: SourceDown."""
        import httpx

        limits = httpx.Limits(max_keepalive_connections=0)
        verify: Any = self._tls() if self._url.scheme == "https" else False
        return httpx.AsyncClient(
            verify=verify,
            trust_env=False,
            follow_redirects=False,
            limits=limits,
            timeout=None,  # noqa: S113 - the time for the whole read is counted by whoever asks for it
        )

    def _tls(self) -> Any:
        import ssl

        try:
            return ssl.create_default_context(cafile=self._config.ca_file)
        except OSError as error:
            raise SourceDown(f"ca_file {self._config.ca_file} can't be used: {_tls_words(error)}") from error

    async def _addresses(self) -> list[str]:
        """IP addresses to try, in order. Raises: SourceDown."""
        host = self._url.hostname or ""
        if _is_address(host):
            return [host]
        try:
            found = await self._apart.call(lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            words = error.strerror if isinstance(error, OSError) else "not a name"
            raise SourceDown(f"the host {host} is not found ({words}): mend `url`, or the name server") from error
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))[:_MOST_ADDRESSES]

    async def _first(self, client: httpx.AsyncClient, addresses: list[str], target: str) -> Answer:
        """The answer of the first address that can be connected to. Raises: SourceDown."""
        import httpx

        failed: Exception | None = None
        for address in addresses:
            try:
                return await self._answer(client, address, target)
            except httpx.ConnectError as error:
                failed = error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise SourceDown(f"{self._where} does not speak HTTP ({error}): see what listens there") from error
        raise SourceDown(self._unreachable(failed)) from failed

    async def _answer(self, client: httpx.AsyncClient, address: str, target: str) -> Answer:
        host = f"[{address}]" if ":" in address else address
        port = f":{self._url.port}" if self._url.port else ""
        name = self._url.hostname or ""
        extensions = {} if _is_address(name) else {"sni_hostname": name}
        request = client.stream(
            "GET", f"{self._url.scheme}://{host}{port}{target}", headers=self._headers(), extensions=extensions
        )
        async with request as response:
            if response.is_redirect:
                where = show(response.headers.get("location", ""))
                raise SourceDown(f"{self._where} redirects to {where}, which is not followed: write where it leads to")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise SourceDown(f"{self._where} compresses though it was not asked to: turn that off")
            body = b""
            async for data in response.aiter_raw():
                body += data
                if len(body) > _MOST_BYTES:
                    raise SourceDown(f"{self._where} answers more than 1 MiB: ask for less")
            return Answer(response.status_code, body)

    def _headers(self) -> dict[str, str]:
        config = self._config
        headers = {"Host": self._url.netloc, "Accept": "application/json", "Accept-Encoding": "identity"}
        if config.token_file is not None:
            headers["Authorization"] = f"Bearer {_ascii(read_secret(config.token_file, 'token_file'))}"
        if config.password_file is not None:
            from base64 import b64encode

            pair = f"{config.user}:{read_secret(config.password_file, 'password_file')}"
            headers["Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        return headers

    @property
    def _where(self) -> str:
        """The URL without its query, in which there may be what is nobody's business."""
        return f"{self._url.scheme}://{self._url.netloc}{self._url.path}"

    def _unreachable(self, error: Exception | None) -> str:
        import ssl

        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            return f"{self._where}: TLS fails ({_tls_words(cause)}): see the scheme and port of `url`, and `ca_file`"
        return f"{self._where} can't be reached ({_words(error)}): see that it runs, and that `url` is right"

    def refused(self, answer: Answer) -> str | None:
        """Why an answer is none, by its status; None when it may be one."""
        if answer.status == HTTPStatus.OK:
            return None
        try:
            name = f"{answer.status} {HTTPStatus(answer.status).phrase}"
        except ValueError:
            name = str(answer.status)
        if answer.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return f"{self._where} answers {name}: see token_file, or user and password_file"
        if answer.status == HTTPStatus.NOT_FOUND:
            return f"{self._where} answers {name}: mend `url`"
        return f"{self._where} answers {name}: its own log says why"

    def unusable(self, words: str, mend: str) -> SourceDown:
        """What the document holds is no number."""
        return SourceDown(f"{self._where} {words}: {mend}")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _ascii(token: str) -> str:
    if not token.isascii():
        raise SourceDown("token_file does not hold a token, which is ASCII: write it into the file, and nothing else")
    return token


def _words(error: BaseException | None) -> str:
    """The system's words for why a connection failed, which lie below those of two libraries."""
    cause = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)  # asyncio has words of its own
        cause = cause.__cause__ or cause.__context__
    return str(error)[:_SHOWN] or "connection refused"


def _tls_words(error: BaseException) -> str:
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
