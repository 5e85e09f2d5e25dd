"""What health paths say, asked of real servers."""

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.doctor.desk import Desk, severities
from tests.support.app import App
from tests.support.ports import free_port


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what its server was told."""

    def do_GET(self) -> None:
        status, headers, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that always answers so; gives its address."""
    with ExitStack() as stack:

        def make(status: int = 200, body: bytes = b"ok", **headers: str) -> str:
            address = ("127.0.0.1", free_port())
            server = http.server.ThreadingHTTPServer(address, _Handler)
            server.answer = (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)  # type: ignore[attr-defined]
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return f"{address[0]}:{address[1]}"

        yield make


def given(desk: Desk, blue: str, green: str) -> Desk:
    desk.shop["blue"], desk.shop["green"] = {"servers": [blue]}, {"servers": [green]}
    return desk


def test_applications_that_say_who_they_are(desk: Desk):
    """Two of them with their names in a header: nothing to find."""
    with App("blue") as blue, App("green") as green:
        given(desk, blue.address, green.address)
        assert desk.found("health-alike") == []
        assert desk.found("health-odd") == []


def test_answers_that_are_the_same(desk: Desk, serve: Serve):
    """Nothing is wrong with that, so it is a note."""
    given(desk, serve(), serve())
    found = desk.found("health-alike")
    assert severities(found) == ["note"]
    assert "/health answers the same on both colors" in found[0].what


def test_bodies_that_differ(desk: Desk, serve: Serve):
    assert given(desk, serve(body=b"v1"), serve(body=b"v2")).found("health-alike") == []


def test_the_same_process_behind_both(desk: Desk, serve: Serve):
    """It names itself, in a header or in JSON."""
    given(desk, serve(X_Instance_Id="7f3a", body=b"a"), serve(X_Instance_Id="7f3a", body=b"b"))
    found = desk.found("health-alike")
    assert severities(found) == ["warning"]
    assert "instance_id 7f3a" in found[0].what
    given(desk, serve(body=b'{"instance": "i-1", "n": 1}'), serve(body=b'{"instance": "i-1", "n": 2}'))
    assert severities(desk.found("health-alike")) == ["warning"]
    given(desk, serve(body=b'{"instance": "i-1"}'), serve(body=b'{"instance": "i-2"}'))
    assert desk.found("health-alike") == []


def test_the_same_machine_behind_different_addresses(desk: Desk, serve: Serve):
    """On one machine both may well have its name."""
    blue, green = serve(body=b'{"hostname": "web1", "v": 1}'), serve(body=b'{"hostname": "web1", "v": 2}')
    assert given(desk, blue, green).found("health-alike") == []
    given(desk, blue, green.replace("127.0.0.1", "localhost"))
    assert severities(desk.found("health-alike")) == ["warning"]


@pytest.mark.parametrize("status", [404, 410])
def test_a_path_that_is_not_there(desk: Desk, serve: Serve, status: int):
    given(desk, serve(status), serve(body=b"other"))
    found = desk.found("health-odd")
    assert severities(found) == ["warning"]
    assert desk.shop["blue"]["servers"][0] in found[0].what


def test_a_redirect_that_passes(desk: Desk, serve: Serve):
    """Only where it passes."""
    given(desk, serve(body=b"other"), serve(302, Location="/login"))
    found = desk.found("health-odd")
    assert severities(found) == ["warning"]
    assert "(to /login)" in found[0].what
    desk.shop["health"] = {"expect": "200-299"}
    assert desk.found("health-odd") == []


def test_servers_that_do_not_answer_say_nothing(desk: Desk):
    """That they are down is for the agent to say."""
    assert desk.found("health-odd") == []
    assert desk.found("health-alike") == []


def test_other_kinds_of_checks_are_left_alone(desk: Desk, serve: Serve):
    given(desk, serve(404), serve(404))
    desk.shop["health"] = {"type": "tcp"}
    assert desk.found("health-odd") == []
    assert desk.found("health-alike") == []
