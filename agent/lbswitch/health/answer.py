"""What a server answers to one HTTP request, read within bounds."""

from __future__ import annotations

import re

import h11

from lbswitch.health.checking import shown

BODY_LIMIT = 65536
_HEAD_LIMIT = 16384
_TOO_LONG = 431  # how h11 marks a head or chunk header that is longer than its limit
_PLAIN_HEAD = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9])[^\r\n]*(?:\r\n[^\r\n:]+:[^\r\n]*)*")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,5})[ \t]*(?=\r\n|\Z)", re.IGNORECASE)
_SPECIAL = re.compile(rb"\r\n(?:transfer-encoding|connection|upgrade):(?![ \t]*keep-alive(?:\r\n|\Z))", re.IGNORECASE)


class Question:
    """One HTTP request that is sent again and again; `sent` are its bytes."""

    def __init__(self, method: str, target: str, host: str, agent: str) -> None:
        """Fix the request line and headers. Raises: h11.LocalProtocolError for what no request may hold."""
        headers = [("Host", host), ("User-Agent", agent), ("Accept", "*/*")]
        self._request = h11.Request(method=method, target=target, headers=headers)
        self.expects_body = method != "HEAD"
        self.sent = self._asked()[1]

    def parser(self) -> h11.Connection:
        """A parser that expects the answer."""
        return self._asked()[0]

    def _asked(self) -> tuple[h11.Connection, bytes]:
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_LIMIT)
        return parser, (parser.send(self._request) or b"") + (parser.send(h11.EndOfMessage()) or b"")


class Answer:
    """One answer. It has enough with the whole message, with `BODY_LIMIT` bytes of its body, or with a fault.

    `status` is None until the head is there; `fault` says why the answer can't be used; `is_last` whether the
    connection can't carry another request.
    """

    def __init__(self, question: Question) -> None:
        """Expect the answer to `question`."""
        self._question = question
        self._parser: h11.Connection | None = None
        self.status: int | None = None
        self.body: bytes | bytearray = b""
        self.fault: str | None = None
        self.is_last = True
        self._first = b""

    @property
    def is_empty(self) -> bool:
        """Whether the connection ended without a single byte."""
        return not self._first

    def receive(self, data: bytes) -> bool:
        """Take the next bytes; True when it is enough."""
        if not self._first and self._is_plain(data):
            return True
        if len(self._first) < 80:
            self._first += data[:320]
        return self._parse(data)

    def end(self) -> None:
        """The server closed: the end of a body without a length, else a fault."""
        if not self._first or not self._parse(b""):
            self.fault = self.fault or "closed without an answer"

    def _is_plain(self, data: bytes) -> bool:
        """Take an answer that came in one piece and says its length. It is what nearly all checks get.

        Parsing it with h11 takes a third of the processor time of a whole check (100 of 380 us with 20 servers).
        """
        head, end, body = data.partition(b"\r\n\r\n")
        if not end or len(head) > _HEAD_LIMIT or len(body) > BODY_LIMIT or not self._question.expects_body:
            return False
        match = _PLAIN_HEAD.fullmatch(head)
        lengths = _LENGTH.findall(head)
        if not match or len(lengths) != 1 or int(lengths[0]) != len(body) or _SPECIAL.search(head):
            return False
        status = int(match[1])
        if status in (204, 304):
            return False
        self._first, self.status, self.body, self.is_last = head[:320], status, body, False
        return True

    def _parse(self, data: bytes) -> bool:
        if self._parser is None:
            self._parser = self._question.parser()
            self.body = bytearray()
        try:
            self._parser.receive_data(data)
            while len(self.body) < BODY_LIMIT:
                event = self._parser.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return False
                if isinstance(event, h11.EndOfMessage):
                    self.is_last = self._parser.their_state is not h11.DONE or self._parser.trailing_data != (
                        b"",
                        False,
                    )
                    break
                self._take(event)
        except h11.RemoteProtocolError as error:
            self.fault = self._fault(error, is_end=not data)
        return True

    def _take(self, event: object) -> None:
        if isinstance(event, h11.Response):
            self.status = event.status_code
        elif isinstance(event, h11.Data):
            self.body += event.data[: BODY_LIMIT - len(self.body)]

    def _fault(self, error: h11.RemoteProtocolError, *, is_end: bool) -> str:
        if is_end and self._first.startswith(b"HTTP/"):
            return "closed in the middle of its answer"
        if error.error_status_hint == _TOO_LONG:
            return f"header longer than {_HEAD_LIMIT // 1024} KiB"
        return f'not HTTP: "{shown(self._first)}"' if self.status is None else "broken body"
