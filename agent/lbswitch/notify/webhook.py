"""One POST of an alert, signed: `X-Lbswitch-Signature: t=SECONDS,v1=HEX`, HMAC-SHA256 over `SECONDS.BODY`."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import socket
import ssl
import threading
from contextlib import closing, suppress
from urllib.parse import urlsplit

import lbswitch
from lbswitch.notify.secrets import NotDelivered

_LEAST_SECRET = 16
_ABOUT_THE_MESSAGE = (400, 413, 415, 422)


def sign(body: bytes, secret: str, at: int) -> str:
    """The value of X-Lbswitch-Signature; `at` is in seconds since the epoch. Raises: NotDelivered."""
    if len(secret) < _LEAST_SECRET:
        raise NotDelivered(f"the secret has {len(secret)} characters, {_LEAST_SECRET} at least are needed")
    digest = hmac.new(secret.encode(), str(at).encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def post(url: str, body: bytes, headers: dict[str, str], timeout_s: float) -> None:
    """Send it; a status of 200-299 is what counts as received, redirects are not followed.

    Raises: NotDelivered.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NotDelivered("the webhook's URL is not http:// or https://")
    try:
        port = parts.port
        status, reason = _exchange(
            _connection(parts.scheme, parts.hostname, port, timeout_s), url, body, headers, timeout_s
        )
    except TimeoutError as error:
        raise NotDelivered(f"{parts.hostname} did not answer within {timeout_s:g} s") from error
    except ssl.SSLCertVerificationError as error:
        raise NotDelivered(f"{parts.hostname}: its certificate is not trusted: {error.verify_message}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise NotDelivered(f"{parts.hostname} could not be told: {why}") from error
    if not 200 <= status < 300:
        hint = "; redirects are not followed, name the address it points at" if 300 <= status < 400 else ""
        words = f"{parts.hostname} answered {status} {reason}{hint}"
        raise NotDelivered(words, is_about_message=status in _ABOUT_THE_MESSAGE)


def _connection(scheme: str, host: str, port: int | None, timeout_s: float) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=timeout_s)


def _exchange(
    connection: http.client.HTTPConnection, url: str, body: bytes, headers: dict[str, str], timeout_s: float
) -> tuple[int, str]:
    """Status and reason. Every wait is bounded by the timeout, and all of them together as well."""
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    common = {
        "Content-Type": "application/json",
        "User-Agent": f"lbswitch/{lbswitch.__version__}",
        "Connection": "close",
    }
    is_late = threading.Event()
    with closing(connection):
        connection.connect()
        timer = threading.Timer(timeout_s, _cut, (connection.sock, is_late))
        timer.daemon = True
        timer.start()
        try:
            connection.request("POST", path, body, {**common, **headers})
            answer = connection.getresponse()
            return answer.status, "".join(c for c in answer.reason[:60] if c.isprintable())
        except (OSError, http.client.HTTPException) as error:
            if is_late.is_set():
                raise TimeoutError from error
            raise
        finally:
            timer.cancel()


def _cut(connection: socket.socket, is_late: threading.Event) -> None:
    """For who sends a byte now and then and never ends."""
    is_late.set()
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
