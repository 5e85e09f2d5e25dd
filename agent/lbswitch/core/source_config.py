"""The section `sources`: metrics from elsewhere. No secret is in it, only the names of files with secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lbswitch.core.durations import format_duration
from lbswitch.core.sections import Misfit, Section, refuse
from lbswitch.core.values import Argument, Duration, FilePath, HttpUrl, Token

_SHORTEST_INTERVAL_S = 0.1
_PASSWORD = re.compile(r"(?:^|[\s?&])(?:ssl)?password\s*=|^[a-z]+://[^@/?]*:[^@/?]*@", re.IGNORECASE)
_POINTER = re.compile(r"(?:/(?:[^~/]|~[01])*)*")
_Query = Annotated[str, Field(min_length=1, max_length=4000)]


class _Source(Section):
    interval: Duration = Field(10.0, description="How often it is read.")
    timeout: Duration = Field(2.0, description="How long one read may take.")
    stale_after: Duration | None = Field(
        None, description="Up to which age the last value counts while reads fail; by default a failed read voids it."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        refuse(self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        if self.interval < _SHORTEST_INTERVAL_S:
            yield Misfit(("interval",), "is shorter than 100ms")
        if self.timeout > self.interval:
            interval = format_duration(self.interval)
            yield Misfit(("timeout",), f"is longer than the interval ({interval}): a read ends before the next begins")
        if self.stale_after is not None and self.stale_after < self.interval + self.timeout:
            least = format_duration(self.interval + self.timeout)
            words = f"is shorter than interval and timeout together ({least}): a value would be stale before the next"
            yield Misfit(("stale_after",), words)


class _WebSource(_Source):
    url: HttpUrl = Field(description="http://HOST[:PORT]/PATH or https://...")
    token_file: FilePath | None = Field(None, description="A file with a token, sent as `Authorization: Bearer`.")
    user: Token | None = Field(None, description="The user of basic authentication; needs password_file.")
    password_file: FilePath | None = Field(None, description="A file with that user's password.")
    ca_file: FilePath | None = Field(None, description="The CA of an https URL; by default the system's.")

    def _misfits(self) -> Iterator[Misfit]:
        yield from super()._misfits()
        if self.user is not None and self.password_file is None:
            yield Misfit(("user",), "needs password_file")
        if self.password_file is not None and self.user is None:
            yield Misfit(("password_file",), "needs user")
        if self.token_file is not None and self.user is not None:
            yield Misfit(("token_file",), "can't be sent together with user and password_file")
        if self.ca_file is not None and self.url.startswith("http:"):
            yield Misfit(("ca_file",), "is for an https URL")


class PrometheusSource(_WebSource):
    """The value of an instant query: a scalar, or a vector of one element."""

    kind: Literal["prometheus"]
    query: _Query = Field(description="PromQL that gives one number.")

    def _misfits(self) -> Iterator[Misfit]:
        yield from super()._misfits()
        if "?" in self.url:
            yield Misfit(("url",), "holds a `?`: write the address of Prometheus alone, and the expression in query")


def _pointer(text: str) -> str:
    if not _POINTER.fullmatch(text):
        raise ValueError("is not a JSON pointer (RFC 6901): write /KEY/KEY; in a key ~1 is / and ~0 is ~")
    return text


def _jmespath(text: str) -> str:
    import jmespath  # only who uses it loads it
    from jmespath.exceptions import JMESPathError

    try:
        jmespath.compile(text)
    except JMESPathError as error:
        words = str(error).splitlines()[0].removeprefix("Invalid jmespath expression: ").rstrip(":")
        raise ValueError(f"is not a JMESPath expression: {words}") from None
    return text


class HttpSource(_WebSource):
    """A number in a JSON document."""

    kind: Literal["http"]
    pointer: Annotated[str, Field(max_length=1000), AfterValidator(_pointer)] | None = Field(
        None, description="A JSON pointer (RFC 6901) to the number, such as /pool/active."
    )
    jmespath: Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_jmespath)] | None = Field(
        None, description="A JMESPath expression that gives the number."
    )

    def _misfits(self) -> Iterator[Misfit]:
        yield from super()._misfits()
        if self.pointer is None and self.jmespath is None:
            yield Misfit(("pointer",), "is missing: pointer or jmespath says where in the document the number is")
        if self.pointer is not None and self.jmespath is not None:
            yield Misfit(("jmespath",), "stands beside pointer: write one of them")


class CommandSource(_Source):
    """The number that a program prints."""

    kind: Literal["command"]
    command: tuple[Argument, ...] = Field(min_length=1, description="argv, such as [/usr/local/bin/queue-length].")


def _dsn(text: str) -> str:
    if _PASSWORD.search(text):
        raise ValueError("holds a password: it goes in password_file, in ~/.pgpass, or with the whole DSN in dsn_file")
    if "\0" in text:
        raise ValueError("is not a connection string: it holds a NUL")
    return text


class PostgresSource(_Source):
    """The connections of a PostgreSQL server as a fraction of those that ordinary roles may have."""

    kind: Literal["postgres"]
    dsn: Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_dsn)] | None = Field(
        None, description="A connection string of libpq without a password, such as service=shop."
    )
    dsn_file: FilePath | None = Field(None, description="A file with the connection string.")
    password_file: FilePath | None = Field(None, description="A file with the password.")

    def _misfits(self) -> Iterator[Misfit]:
        yield from super()._misfits()
        if self.dsn is None and self.dsn_file is None:
            yield Misfit(("dsn",), "is missing: dsn or dsn_file says where the server is")
        if self.dsn is not None and self.dsn_file is not None:
            yield Misfit(("dsn_file",), "stands beside dsn: write one of them")


class HostSource(_Source):
    """What this machine is busy with, as a fraction."""

    kind: Literal["host"]
    metric: Literal["cpu", "memory", "load", "disk"] = Field(description="cpu, memory, load (per core) or disk.")
    path: FilePath | None = Field(None, description="metric: disk. A path on the file system; / by default.")

    def _misfits(self) -> Iterator[Misfit]:
        yield from super()._misfits()
        if self.path is not None and self.metric != "disk":
            yield Misfit(("path",), f"is for metric: disk, but metric is {self.metric}")


SourceConfig = PrometheusSource | HttpSource | CommandSource | PostgresSource | HostSource

SOURCE_KINDS: dict[str, type[SourceConfig]] = {
    "prometheus": PrometheusSource,
    "http": HttpSource,
    "command": CommandSource,
    "postgres": PostgresSource,
    "host": HostSource,
}
