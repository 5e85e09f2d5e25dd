"""Numbers over HTTP: what is one is read, and whatever else comes is told in a sentence and never taken for one."""

import asyncio
import json
import ssl
import subprocess
from pathlib import Path

import pytest

from lbswitch.traffic.sources.document import resolve
from tests.health.raw import asynchronous
from tests.support.ports import free_port
from tests.traffic.web import error, read, saying, source, value, web

DOCUMENT = json.dumps({"pool": {"active": 41, "max": 50, "text": "0.82", "on": True}, "q": [{"n": 1.5}, None, "abc"]})


def vector(*values: str) -> str:
    result = [{"metric": {"le": str(number)}, "value": [1.5, text]} for number, text in enumerate(values)]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}})


def prometheus_says(kind: str, result: object) -> str:
    return json.dumps({"status": "success", "data": {"resultType": kind, "result": result}})


class TestDocument:
    @pytest.mark.parametrize(
        ("where", "number"),
        [
            ({"pointer": "/pool/active"}, 41),
            ({"pointer": "/pool/text"}, 0.82),
            ({"pointer": "/q/0/n"}, 1.5),
            ({"jmespath": "q[0].n"}, 1.5),
            ({"jmespath": "length(q)"}, 3),
        ],
    )
    @asynchronous
    async def test_value(self, where, number):
        """A number, or a text that is one."""
        async with web(saying(DOCUMENT)) as server:
            assert await value(source("http", url=f"http://{server.address}/stats", **where)) == number

    @pytest.mark.parametrize(
        ("where", "words"),
        [
            ({"pointer": "/pool/idle"}, "has no 'idle' at '/pool': see `pointer`"),
            ({"pointer": "/q/3"}, "has no '3' at '/q'"),
            ({"pointer": "/q/-"}, "has no '-' at '/q'"),
            ({"pointer": "/pool/on"}, "has true, which is not a number: see `url` and `pointer`"),
            ({"pointer": "/pool"}, "has a mapping, which is not a number"),
            ({"pointer": ""}, "has a mapping, which is not a number"),
            ({"pointer": "/q/1"}, "has null, which is not a number"),
            ({"pointer": "/q/2"}, "has 'abc', which is not a number"),
            ({"jmespath": "pool.idle"}, "has nothing at 'pool.idle': see `jmespath`"),
            ({"jmespath": "abs(pool.text)"}, "is not what 'abs(pool.text)' is for"),
        ],
    )
    @asynchronous
    async def test_no_number(self, where, words):
        async with web(saying(DOCUMENT)) as server:
            said = await error(source("http", url=f"http://{server.address}/stats", **where))
        assert words in said
        assert said.startswith(f"http://{server.address}/stats ")

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ("", "holds no JSON"),
            ("<html>", "holds no JSON"),
            ('{"a": NaN}', "it has NaN, which JSON does not know"),
            ('{"a": 1e999}', "has a number without bounds"),
            ('{"a": "Inf"}', "has Inf, which is not a finite number"),
            ('{"a": ' + "9" * 400 + "}", "has a number without bounds"),
            ('{"a": ' + "9" * 5000 + "}", "holds no JSON"),
            ("[" * 200_000, "holds no JSON"),
            (b'{"a": "\xff"}', "holds no JSON"),
            (b" " * 1_100_000, "answers more than 1 MiB: ask for less"),
        ],
    )
    @asynchronous
    async def test_garbage(self, body, words):
        async with web(saying(body)) as server:
            assert words in await error(source("http", url=f"http://{server.address}", pointer="/a"))

    @pytest.mark.parametrize(
        ("status", "words"),
        [
            ("500 Internal Server Error", "answers 500 Internal Server Error: its own log says why"),
            ("401 Unauthorized", "answers 401 Unauthorized: see token_file"),
            ("404 Not Found", "answers 404 Not Found: mend `url`"),
            ("799 Odd", "answers 799: "),
        ],
    )
    @asynchronous
    async def test_status(self, status, words):
        """A number in an answer that is an error is none."""
        async with web(saying('{"a": 1}', status)) as server:
            assert words in await error(source("http", url=f"http://{server.address}", pointer="/a"))

    @asynchronous
    async def test_redirects_are_not_followed(self):
        """A token would go where nobody meant it to."""
        async with web(saying('{"a": 1}')) as other:
            location = f"Location: http://{other.address}/b"
            async with web(saying("", "302 Found", location)) as server:
                said = await error(source("http", url=f"http://{server.address}", pointer="/a"))
            assert f"redirects to 'http://{other.address}/b', which is not followed" in said
            assert other.requests == []

    @asynchronous
    async def test_compression_is_not_unpacked(self):
        """A megabyte can hide a gigabyte."""
        async with web(saying(b"\x1f\x8b", "200 OK", "Content-Encoding: gzip")) as server:
            said = await error(source("http", url=f"http://{server.address}", pointer="/a"))
        assert "compresses though it was not asked to" in said

    @asynchronous
    async def test_proxies_of_the_environment_are_not_used(self, monkeypatch):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
        async with web(saying('{"a": 1}')) as server:
            assert await value(source("http", url=f"http://{server.address}", pointer="/a")) == 1

    @asynchronous
    async def test_nobody_listens(self):
        url = f"http://127.0.0.1:{free_port()}/x"
        said = await error(source("http", url=url, pointer="/a"))
        assert said == f"{url} can't be reached (Connection refused): see that it runs, and that `url` is right"

    @asynchronous
    async def test_no_such_host(self):
        said = await error(source("http", url="http://nowhere.invalid:1/", pointer="/a"))
        assert said.startswith("the host nowhere.invalid is not found (")

    @asynchronous
    async def test_a_name_with_several_addresses(self):
        """The next is tried where nobody listens on the first."""
        async with web(saying('{"a": 1}')) as server:
            port = server.address.rpartition(":")[2]
            assert await value(source("http", url=f"http://localhost:{port}", pointer="/a")) == 1
            assert f"Host: localhost:{port}\r\n".encode() in server.requests[0]

    @pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"], ids=["hangs", "halfway"])
    @asynchronous
    async def test_hanging(self, first):
        """Its time is the timeout, however far it got; the connection is closed."""
        hung = asyncio.Event()

        async def hang(head: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(first)
            await writer.drain()
            await hung.wait()

        async with web(hang) as server:
            said = await error(source("http", url=f"http://{server.address}", pointer="/a", timeout=0.5))
            assert said == "no answer within 500ms: see why it is slow, or allow more with `timeout`"
            hung.set()

    @asynchronous
    async def test_drop_by_drop(self):
        """A byte now and then does not buy more time."""

        async def drip(head: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nX: ")
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)

        async with web(drip) as server:
            said = await error(source("http", url=f"http://{server.address}", pointer="/a", timeout=0.5))
        assert said.startswith("no answer within 500ms")

    @asynchronous
    async def test_what_is_no_http(self):
        async def shout(head: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-OpenSSH\r\n")

        async with web(shout) as server:
            assert "does not speak HTTP" in await error(source("http", url=f"http://{server.address}", pointer="/a"))


class TestSecrets:
    @asynchronous
    async def test_token(self, tmp_path: Path):
        """It is read anew each time, and sent as a header."""
        token = tmp_path / "token"
        async with web(saying('{"a": 1}')) as server:
            config = source("http", url=f"http://{server.address}", pointer="/a", token_file=str(token))
            assert f"token_file {token} can't be read (No such file or directory)" in await error(config)
            token.write_text("one\ntwo")
            assert "does not hold one line of text" in await error(config)
            token.write_text("s3cret\n")
            assert await value(config) == 1
            assert b"Authorization: Bearer s3cret\r\n" in server.requests[0]

    @asynchronous
    async def test_password(self, tmp_path: Path):
        (tmp_path / "password").write_text("b:c\n")
        async with web(saying('{"a": 1}')) as server:
            files = {"user": "me", "password_file": str(tmp_path / "password")}
            assert await value(source("http", url=f"http://{server.address}", pointer="/a", **files)) == 1
            assert b"Authorization: Basic bWU6Yjpj\r\n" in server.requests[0]

    @asynchronous
    async def test_what_a_url_holds_behind_its_question_mark(self):
        """It may be a key, and no message repeats it."""
        async with web(saying("", "500 Oh")) as server:
            said = await error(source("http", url=f"http://{server.address}/x?key=s3cret", pointer="/a"))
            assert b"GET /x?key=s3cret HTTP/1.1" in server.requests[0]
        assert "s3cret" not in said


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    subprocess.run([*argv, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True, timeout=30)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


@asynchronous
async def test_tls(certificate):
    """The server's name and CA are verified; what fails is named."""
    cert, context = certificate
    async with web(saying('{"a": 1}'), tls=context) as server:
        port = server.address.rpartition(":")[2]
        https = {"url": f"https://localhost:{port}", "pointer": "/a"}
        assert await value(source("http", **https, ca_file=str(cert))) == 1
        said = await error(source("http", **https))
        assert "TLS fails (self-signed certificate)" in said.replace("self signed", "self-signed")
        said = await error(source("http", url=f"https://127.0.0.1:{port}", pointer="/a", ca_file=str(cert)))
        assert "TLS fails (IP address mismatch" in said
        said = await error(source("http", url=f"http://localhost:{port}", pointer="/a"))
        assert "does not speak HTTP" in said
        assert "can't be used" in await error(source("http", **https, ca_file="/nowhere/ca.pem"))
    async with web(saying('{"a": 1}')) as plain:
        said = await error(source("http", url=f"https://{plain.address}", pointer="/a"))
        assert "TLS fails (" in said
        assert "see the scheme and port of `url`" in said


class TestPrometheus:
    @pytest.mark.parametrize(
        ("body", "number"),
        [(vector("0.25"), 0.25), (prometheus_says("scalar", [1.5, "-3e2"]), -300), (vector("1"), 1)],
    )
    @asynchronous
    async def test_value(self, body, number):
        """The query goes to the API below the URL."""
        async with web(saying(body)) as server:
            config = source("prometheus", url=f"http://{server.address}/p/", query='sum(x{a="b c"}) > 1')
            assert await value(config) == number
            path = b"GET /p/api/v1/query?query=sum%28x%7Ba%3D%22b+c%22%7D%29+%3E+1&timeout=8.000s HTTP/1.1\r\n"
            assert server.requests[0].startswith(path)

    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            (vector(), "200 OK", "the query gives nothing: no series matches it now"),
            (vector("1", "2", "3"), "200 OK", "gives 3 series, but one number is needed: aggregate, as sum(...) does"),
            (vector("NaN"), "200 OK", "gives NaN, which is not a finite number, such as a division by zero"),
            (vector("+Inf"), "200 OK", "the query gives Inf, which is not a finite number"),
            (vector("x"), "200 OK", "the query gives 'x', which is not a number"),
            (prometheus_says("matrix", []), "200 OK", "gives a 'matrix', but a scalar or a vector is needed"),
            (prometheus_says("string", [1, "7"]), "200 OK", "gives a 'string'"),
            (prometheus_says("vector", [{"metric": {}, "histogram": []}]), "200 OK", "gives a histogram"),
            (prometheus_says("vector", [7]), "200 OK", "gives a histogram"),
            (prometheus_says("scalar", 7), "200 OK", "does not answer as Prometheus does"),
            (
                '{"status": "error", "errorType": "bad_data", "error": "parse error: unclosed"}',
                "400 Bad Request",
                "Prometheus refuses the query: 'parse error: unclosed'",
            ),
            ("nope", "503 Service Unavailable", "answers 503 Service Unavailable"),
            ("nope", "200 OK", "holds no JSON"),
            ("[]", "200 OK", "does not answer as Prometheus does: see that `url` is the address of Prometheus"),
            ("{}", "404 Not Found", "answers 404 Not Found: mend `url`"),
        ],
    )
    @asynchronous
    async def test_no_value(self, body, status, words):
        async with web(saying(body, status)) as server:
            assert words in await error(source("prometheus", url=f"http://{server.address}", query="x"))


@asynchronous
async def test_when_it_was_read():
    """`at` is when the read began: what it tells may be as old as that."""
    async with web(saying("1")) as server:
        reading = await read(source("http", url=f"http://{server.address}", pointer=""))
    assert (reading.name, reading.value, reading.error) == ("x", 1, None)


RFC = {
    "foo": ["bar", "baz"],
    **{"": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, 'k"l': 6, " ": 7, "m~n": 8},
}


class TestPointer:
    """RFC 6901, section 5."""

    @pytest.mark.parametrize(
        ("pointer", "found"),
        [
            *(("", RFC), ("/foo", ["bar", "baz"]), ("/foo/0", "bar"), ("/", 0), ("/a~1b", 1), ("/c%d", 2)),
            *(("/e^f", 3), ("/g|h", 4), ("/i\\j", 5), ('/k"l', 6), ("/ ", 7), ("/m~0n", 8)),
        ],
    )
    def test_examples(self, pointer, found):
        assert resolve(RFC, pointer) == found

    @pytest.mark.parametrize("pointer", ["/foo/2", "/foo/-", "/foo/01", "/foo/-1", "/foo/bar", "/bar", "//"])
    def test_nothing_there(self, pointer):
        with pytest.raises(LookupError):
            resolve(RFC, pointer)

    def test_escapes_in_their_order(self):
        assert resolve({"~1": 1}, "/~01") == 1
