"""Single values: what they mean, and that none can break out of where it lands."""

import math

import pytest
from pydantic import TypeAdapter, ValidationError

from lbswitch.core import values
from lbswitch.core.durations import format_duration, parse_duration
from lbswitch.core.values import Endpoint, parse_endpoint

_LANDS_IN_A_FILE = {
    "ServerAddress": ["127.0.0.1:80", "[::1]:80", "host:80", "unix:/run/a.sock"],
    "BindAddress": ["127.0.0.1:80", "[::1]:80", "*:80", "unix:/run/a.sock"],
    "FilePath": ["/var/lib/lbswitch"],
    "SocketPath": ["/run/lbswitch/agent.sock"],
    "UrlPath": ["/health"],
    "HostHeader": ["shop.example"],
    "Token": ["www-data"],
    "ServiceName": ["shop"],
    "Stickiness": ["cookie:sid", "header:X-User"],
}
_HARMFUL = [
    *(";", "{", "}", '"', "'", "`", "#", " ", "\t", "\n", "\r", "\0", "\x1b", "\x7f", "\\", "|", "<", ">", "^"),
    *(
        "\u0085",
        "\u00a0",
        "\u2028",
        "\u200b",
        "\u202e",
        "\ufeff",
        "\uff1b",
        "\u037e",
        "\uff0f",
        "\u0430",
        "\u0661",
        "é",
    ),
]


def short(value):
    """An id for a test that fits a line."""
    return ascii(value)[:40]


@pytest.mark.parametrize("kind", _LANDS_IN_A_FILE)
@pytest.mark.parametrize("harmful", _HARMFUL, ids=ascii)
def test_nothing_breaks_out(kind, harmful):
    """No character that ends a directive, quotes, comments, hides or looks like another is let through, anywhere."""
    adapter = TypeAdapter(getattr(values, kind))
    for good in _LANDS_IN_A_FILE[kind]:
        adapter.validate_python(good)
        for position in range(len(good) + 1):
            with pytest.raises(ValidationError):
                adapter.validate_python(good[:position] + harmful + good[position:])


@pytest.mark.parametrize("harmful", [c for c in _HARMFUL if c not in "\t\n\r "], ids=ascii)
def test_nothing_breaks_out_of_a_duration(harmful):
    """A duration is digits and a unit, nothing before, between or after."""
    for text in (harmful + "1s", "1" + harmful + "s", "1s" + harmful):
        with pytest.raises(ValueError, match="is not a duration"):
            parse_duration(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("1s", 1.0), ("5m", 300.0), ("2h", 7200.0), ("30d", 2592000.0), ("0.3s", 0.3), ("1.5m", 90.0)],
)
def test_durations(text, seconds):
    """A number and a unit are seconds, exactly."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *(1, 1.5, True, None, [], "1", "s", "", "nan", "nans", "infs", "-1s", "+1s", "1e3s", "1 s", "1s ", "1s\n"),
        *(".5s", "1.s", "1S", "1sec", "1m30s", "0x1s", "1_000s", "١s", "9" * 400 + "s"),
    ],
    ids=short,
)
def test_no_durations(text):
    """Numbers without a unit, signs, exponents and everything else are not guessed at."""
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def test_a_duration_has_an_end():
    """Nobody means centuries."""
    assert parse_duration("366d") == 366 * 86400
    with pytest.raises(ValueError, match="longer than 366d"):
        parse_duration("367d")


@pytest.mark.parametrize("text", ["0s", "0.0s", "0ms", "0.5ms"])
def test_shortest_duration(text):
    """What must last is a millisecond at least, since balancers know nothing shorter."""
    with pytest.raises(ValidationError, match="shorter than 1ms"):
        TypeAdapter(values.Duration).validate_python(text)


@pytest.mark.parametrize("number", [math.nan, math.inf, -1.0, True])
def test_seconds_from_code_are_checked_too(number):
    """Code may pass seconds, but only such as exist."""
    with pytest.raises(ValidationError):
        TypeAdapter(values.DurationOrZero).validate_python(number)
    assert TypeAdapter(values.DurationOrZero).validate_python(0.25) == 0.25


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "500ms"),
        (1.0, "1s"),
        (300.0, "5m"),
        (90.0, "90s"),
        (7200.0, "2h"),
        (0.0, "0s"),
        (1.5, "1500ms"),
        (0.1, "100ms"),
    ],
)
def test_duration_as_text(seconds, text):
    """The shortest exact way to write it."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize("seconds", [0.001, 0.0015, 0.3, 1.1, 123456.7, 3600.25, 86400.0, 1 / 3, 31622400.0])
def test_duration_round_trip(seconds):
    """What is written reads back as the same number, to the last bit."""
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:80", Endpoint("127.0.0.1", 80)),
        ("[::1]:80", Endpoint("::1", 80)),
        ("[2001:DB8::0:1]:65535", Endpoint("2001:db8::1", 65535)),
        ("*:1", Endpoint("*", 1)),
        ("App.Example:80", Endpoint("app.example", 80)),
        ("web_1:80", Endpoint("web_1", 80)),
        ("unix:/run/app.sock", Endpoint(path="/run/app.sock")),
    ],
)
def test_addresses(text, endpoint):
    """An address has one canonical form, which reads back as itself."""
    assert parse_endpoint(text) == endpoint
    assert parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", ":80", "80", "host", "host:", "host:0", "host:65536", "host:080", "host:+80", "host:8_0"),
        *("::1:80", "[::1]", "[::1]80", "[::g]:80", "[]:80", "[127.0.0.1]:80", "[fe80::1%eth0]:80", "[fe80::1%;}]:80"),
        *("[::ffff:1.2.3.4]:80", "1.2.3:80", "1.2.3.4.5:80", "256.1.1.1:80", "127.0.0.01:80", "0x7f.1:80", "a.7:80"),
        *("127.1:80", "-a:80", "a-:80", "a..b:80", ".a:80", "a/b:80", "a*:80", "**:80", "x" * 64 + ":80", "a:80/x"),
        *("http://a:80", "${HOST}:80", "$HOST:80", "host:" + "9" * 5000),
        *("unix:", "unix:run/a", "unix:/", "unix:/run/", "unix:/a:b", "unix:/a,b", "unix:@a", "unix:/" + "a" * 107),
    ],
    ids=short,
)
def test_no_addresses(text):
    """What is not an address is refused, also where libc would guess."""
    with pytest.raises(ValueError, match="is "):
        parse_endpoint(text)


@pytest.mark.parametrize("text", ["*:80", "0.0.0.0:80", "[::]:80"])
def test_a_server_is_one_host(text):
    """Nobody can connect to every address."""
    assert TypeAdapter(values.BindAddress).validate_python(text) == text
    with pytest.raises(ValidationError, match="name one host"):
        TypeAdapter(values.ServerAddress).validate_python(text)


def test_a_socket_path_fits():
    """107 bytes are what the system allows, and not one more."""
    longest = "/" + "a" * 106
    assert values.socket_path(longest) == longest
    with pytest.raises(ValueError, match="has 108 bytes, the system allows 107"):
        values.socket_path(longest + "a")


@pytest.mark.parametrize("kind", [*_LANDS_IN_A_FILE, "Argument"])
@pytest.mark.parametrize("value", [5, 1.5, True, None, ["a"], {"a": 1}])
def test_text_is_text(kind, value):
    """A number where text belongs is no text, and no traceback."""
    with pytest.raises(ValidationError, match="is not "):
        TypeAdapter(getattr(values, kind)).validate_python(value)
