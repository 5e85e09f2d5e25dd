"""Edits, scanners and lbswitch.yaml as text."""

import pytest

from lbswitch.core.config_text import parse
from lbswitch.errors import InvalidRequest
from lbswitch.setup import yaml_text
from lbswitch.setup.edits import Edit, NotOurs, apply, new_line, take_out
from lbswitch.setup.nginx_text import statements


def test_edits_are_taken_out_wherever_they_are():
    text = b"a {\r\n  pass http://shop;\r\n}"
    edits = [new_line(text, 5, b"  include x;"), Edit(12, b"http://shop", b"http://$lbswitch_shop")]
    edited = apply(text, edits)
    assert edited == b"a {\r\n  include x;\r\n  pass http://$lbswitch_shop;\r\n}"
    assert take_out(edited, edits) == text
    assert take_out(b"# mine\r\n" + edited, edits) == b"# mine\r\n" + text


def test_a_name_that_only_begins_like_ours_is_left():
    edits = [Edit(0, b"http://shop", b"http://$lbswitch_shop")]
    assert take_out(b"http://$lbswitch_shop2 http://$lbswitch_shop;", edits) == b"http://$lbswitch_shop2 http://shop;"


def test_what_stood_for_different_things_has_to_be_found_exactly():
    edits = [Edit(0, b"http://a", b"http://$x"), Edit(20, b"http://b", b"http://$x")]
    assert take_out(b"http://$x; http://$x;", edits) == b"http://a; http://b;"
    with pytest.raises(NotOurs, match="1 times instead of 2"):
        take_out(b"http://$x;", edits)


def test_edits_for_another_text_are_refused():
    with pytest.raises(ValueError, match="does not fit"):
        apply(b"something else", [Edit(0, b"http://a", b"")])


def test_nginx_words_are_found_with_quotes_comments_and_braces():
    text = b"""server { # { not a block
  return 200 "a; } # b";
  if ($a ~ "x{2}") { set $y ${z}q; }
  location ~ \\.php$ { proxy_pass 'http://shop'; }
  content_by_lua_block { if a then b = "}" .. "{" end }
  listen 80;
}"""
    found = [(each.line, each.name) for each in statements(text)]
    assert found == [
        (1, "server"),
        (2, "return"),
        (3, "if"),
        (3, "set"),
        (4, "location"),
        (4, "proxy_pass"),
        (5, "content_by_lua_block"),
        (6, "listen"),
    ]
    passing = next(each for each in statements(text) if each.name == "proxy_pass")
    assert passing.words[1].text == "http://shop"
    assert text[passing.words[1].start : passing.words[1].end] == b"'http://shop'"


FILE = """\
# ours
balancer: {kind: nginx}
services:
    shop:   # the first
        bind: 127.0.0.1:80
        blue: {servers: [127.0.0.1:1]}
        green:
            servers:
            - 127.0.0.1:2
# about what comes
agent: {socket: /run/a.sock}"""

SERVICE = {"bind": "*:81", "blue": {"servers": ["[::1]:3"]}, "green": {"servers": ["unix:/run/b.sock"]}}


def test_a_service_is_added_where_services_end():
    """Comments, order and indentation stay; the result reads as it should."""
    text = yaml_text.with_service(FILE, "x.yaml", "cart", SERVICE)
    lines, before = text.splitlines(), FILE.splitlines()
    assert lines[:9] == before[:9]
    assert lines[-2:] == before[-2:]
    config = parse(text, "x.yaml")
    assert list(config.services) == ["shop", "cart"]
    assert config.services["cart"].bind == "*:81"
    assert config.agent.socket == "/run/a.sock"


@pytest.mark.parametrize("text", ["services: {}\n", "balancer: {kind: nginx}\n", "services: {shop: {bind: x}}\n"])
def test_a_file_that_is_written_otherwise_is_left_to_people(text: str):
    with pytest.raises(InvalidRequest, match="by hand"):
        yaml_text.with_service(text, "x.yaml", "cart", SERVICE)
