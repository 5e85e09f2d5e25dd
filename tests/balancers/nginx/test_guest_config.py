"""An nginx configuration read as nginx reads it."""

import os
import subprocess
from pathlib import Path

import pytest

from lbswitch.balancers import nginx_config
from lbswitch.balancers.nginx_config import NginxConfig

MAIN = "/etc/nginx/nginx.conf"


def config(main: str, **files: str) -> NginxConfig:
    """Of this main file and others beside it: `a_b` is a/b.conf."""
    texts = {f"/etc/nginx/{name.replace('_', '/')}.conf": text for name, text in files.items()}
    return nginx_config.load({MAIN: main, **texts}, MAIN)


def test_includes_are_in_their_place():
    """What a file holds is where it is included, with its own file and line; includes are no blocks."""
    found = config("http {\n  include a;\n  include b/*.conf;\n}\n", b_two="two 2;", b_one="\none 1;", b_zip="")
    places = {str(place.directive): place for place in found.walk()}
    assert places["one 1"].path == ("http",)
    assert places["one 1"].directive.where == "/etc/nginx/b/one.conf:2"
    assert [place.directive.name for place in found.walk()] == ["http", "include", "include", "one", "two"]
    assert places["include a"].directive.files == ("/etc/nginx/a",)
    assert found.includes("/etc/nginx/b/two.conf") == [places["include b/*.conf"]]


def test_effective():
    """The innermost block that has a directive decides, also when it is in an included file."""
    found = config(
        "x 0; http { include a.conf; server { x 2; location / { y; } } server { location / { z; } } } w;",
        a="x 1;",
    )
    inside = {name: next(found.find(name)).around for name in ("y", "z", "w")}
    values = {name: found.effective("x", around) for name, around in inside.items()}
    assert {name: value and value.args for name, value in values.items()} == {"y": ("2",), "z": ("1",), "w": ("0",)}
    assert found.effective("nothing", inside["y"]) is None


def test_quotes_comments_and_lua():
    """Arguments are unquoted; what is in comments and Lua is no directive."""
    found = config(
        "# include no;\na 'b c' \"d;e\"; if (-f /x) { set $v 1; }\ncontent_by_lua_block { -- it's {} \n}\nlast;"
    )
    assert [(each.directive.name, each.directive.args) for each in found.walk()][:3] == [
        ("a", ("b c", "d;e")),
        ("if", ("-f", "/x")),
        ("set", ("$v", "1")),
    ]
    assert next(found.find("last")).directive.line == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("http {\n  a;\n", f'{MAIN}:3: unexpected end of file, expecting "}}"'),
        ("http {\n}\n}\n", f'{MAIN}:3: unexpected "}}"'),
    ],
)
def test_syntax_errors(text, problem):
    """They are told with their line, and what was read before them is there."""
    found = config(text)
    assert [each.split(": ", 1)[1] for each in found.problems] == [problem.split(": ", 1)[1]]


def test_circle():
    """A file that includes itself is read once."""
    found = config("include nginx.conf; a;")
    assert [place.directive.name for place in found.walk()] == ["include", "a"]


def test_bytes_that_are_no_text(tmp_path):
    """What is read can be written again as it was."""
    (tmp_path / "nginx.conf").write_bytes(b"a \xff\r\n;")
    texts = nginx_config.gather(str(tmp_path / "nginx.conf"), lambda path: Path(path).read_bytes(), os.listdir)
    assert nginx_config.encode(texts[str(tmp_path / "nginx.conf")]) == b"a \xff\r\n;"


def test_as_nginx_dumps_it(owner, guest):
    """The files that are gathered are those of `nginx -T`, byte for byte."""
    guest().install()
    read = nginx_config.gather(str(owner.main), lambda path: Path(path).read_bytes(), os.listdir)
    dump = subprocess.run([owner.binary, "-T", "-c", str(owner.main)], capture_output=True, text=True, check=True)
    assert nginx_config.dumped(dump.stdout) == read


def test_hidden_files():
    """As for the shell, a star does not match what begins with a dot."""
    names = {"/d": [".hidden", "b", "a"]}
    assert nginx_config.expand("/d/*", names.__getitem__) == ["/d/a", "/d/b"]
    assert nginx_config.expand("/d/.h*", names.__getitem__) == ["/d/.hidden"]
    assert nginx_config.expand("/no/thing", names.__getitem__) == ["/no/thing"]
