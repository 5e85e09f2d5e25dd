"""Answers mean the same however they are cut into pieces, and take bounded memory."""

import pytest

from lbswitch.health.answer import BODY_LIMIT, Answer, Question

GET = Question("GET", "/health", "shop.example", "lbswitch/test")
HEAD = Question("HEAD", "/health", "shop.example", "lbswitch/test")
OK = b"HTTP/1.1 200 OK\r\n"


def read(data: bytes, size: int, question: Question = GET, *, closes: bool = True) -> Answer:
    """The answer read in pieces of `size` bytes."""
    answer = Answer(question)
    for start in range(0, len(data), size):
        if answer.receive(data[start : start + size]):
            return answer
    if closes:
        answer.end()
    return answer


ANSWERS = {
    "length": (OK + b"Content-Length: 2\r\n\r\nok", 200, b"ok", None, False),
    "empty": (OK + b"Content-Length: 0\r\n\r\n", 200, b"", None, False),
    "keep-alive": (OK + b"Connection: keep-alive\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", None, False),
    "close": (OK + b"Content-Length: 2\r\nConnection: close\r\n\r\nok", 200, b"ok", None, True),
    "chunked": (OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", 200, b"ok", None, False),
    "until close": (OK + b"\r\nok", 200, b"ok", None, True),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", None, True),
    "no reason": (b"HTTP/1.1 503\r\nContent-Length: 4\r\n\r\ndown", 503, b"down", None, False),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", None, False),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", 304, b"", None, False),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok", 200, b"ok", None, False),
    "two lengths": (OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok!", None, b"", "not HTTP", True),
    "garbage": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", None, b"", 'not HTTP: "SSH-2.0-OpenSSH_9.2"', True),
    "garbage without an end": (b"hello", None, b"", 'not HTTP: "hello"', True),
    "bad chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 200, b"", "broken body", True),
    "cut head": (b"HTTP/1.1 200 OK\r\nContent-", None, b"", "closed in the middle of its answer", True),
    "cut body": (OK + b"Content-Length: 5\r\n\r\nok", 200, b"ok", "closed in the middle of its answer", True),
    "nothing": (b"", None, b"", "closed without an answer", True),
}


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("name", ANSWERS)
def test_pieces(name, size):
    """Status, body, fault and reuse do not depend on where TCP cuts."""
    data, status, body, fault, is_last = ANSWERS[name]
    answer = read(data, size)
    assert (answer.status, bytes(answer.body), answer.is_last) == (status, body, is_last)
    assert answer.fault == fault or (answer.fault or "").startswith(fault)


def test_head():
    """An answer to HEAD has no body, whatever its length says."""
    answer = read(OK + b"Content-Length: 2\r\n\r\n", 100, HEAD, closes=False)
    assert (answer.status, answer.fault, answer.is_last) == (200, None, False)


@pytest.mark.parametrize("size", [1000, 262_144])
def test_long_body(size):
    """64 KiB of a body are enough, and are all that is kept."""
    answer = read(OK + b"Content-Length: 90000\r\n\r\n" + b"x" * 90_000, size, closes=False)
    assert (answer.status, len(answer.body), answer.is_last) == (200, BODY_LIMIT, True)


def test_long_header():
    """A header that does not end is given up after 16 KiB."""
    answer = Answer(GET)
    sent = 0
    while not answer.receive((OK if not sent else b"") + b"X: " + b"y" * 1000 + b"\r\n"):
        sent += 1000
    assert answer.fault == "header longer than 16 KiB"
    assert sent < 20_000


def test_more_than_asked_for():
    """Bytes after the answer end the connection: what follows could be taken for the next answer."""
    assert read(OK + b"Content-Length: 2\r\n\r\nok" + OK, 1000).is_last
