"""A template error names file, line and variable, and what was probably meant."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from lbswitch.balancers.templating import Templates
from lbswitch.errors import RenderFailed


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    address: str


VARIABLES = {"services": [{"name": "shop", "listen": "127.0.0.1:80"}], "nginx": {"workers": 2}, "text": "a\nb"}
SERVER = {"server": Server("s1", "127.0.0.1:9101")}


def failure(directory: Path, **files: str) -> str:
    """What rendering `main` says, with the directory taken out."""
    for name, text in files.items():
        (directory / f"{name}.j2").write_text(text)
    with pytest.raises(RenderFailed) as raised:
        Templates("nginx", directory).render("main.j2", VARIABLES | SERVER)
    return str(raised.value).replace(f"{directory}/", "")


def test_an_unknown_variable(tmp_path: Path):
    said = failure(tmp_path, main="one\n{{ servces }}\n")
    assert said == "main.j2:2: there is no variable 'servces'; did you mean 'services' or 'server'? (`{{ servces }}`)"


def test_an_unknown_variable_like_no_other(tmp_path: Path):
    """Then all that there are."""
    said = failure(tmp_path, main="{{ zzz }}\n")
    assert said == "main.j2:1: there is no variable 'zzz'; there are: nginx, server, services, text (`{{ zzz }}`)"


def test_an_unknown_variable_of_a_loop(tmp_path: Path):
    """Names that the template made itself count, too."""
    said = failure(tmp_path, main="{% for service in services %}\n{{ servic.name }}\n{% endfor %}\n")
    assert "main.j2:2: there is no variable 'servic'; did you mean 'service' or 'services'?" in said


def test_an_unknown_attribute(tmp_path: Path):
    said = failure(tmp_path, main="\n\nworker_processes {{ nginx.worker }};\n")
    assert said == (
        "main.j2:3: nginx.worker: nginx has no 'worker'; did you mean 'workers'? "
        "(`worker_processes {{ nginx.worker }};`)"
    )


def test_an_unknown_attribute_of_an_object(tmp_path: Path):
    said = failure(tmp_path, main="server {{ server.nothing }};\n")
    assert "main.j2:1: server.nothing: server has no 'nothing'; it has: address, name" in said


def test_an_unknown_attribute_in_a_condition_and_a_loop(tmp_path: Path):
    """Not only where something is written."""
    assert "main.j2:1: nginx.wrkers: " in failure(tmp_path, main="{% if nginx.wrkers %}x{% endif %}\n")
    assert "main.j2:2: nginx.pools: " in failure(tmp_path, main="\n{% for one in nginx.pools %}x{% endfor %}\n")


def test_an_attribute_of_what_is_not_there(tmp_path: Path):
    assert "there is no variable 'ngnix'; did you mean 'nginx'?" in failure(tmp_path, main="{{ ngnix.workers }}\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ nginx.workers | defalt(1) }}", "No filter named 'defalt'; did you mean 'default'?"),
        ("{{ 1 if nginx is maping }}", "No test named 'maping' found; did you mean 'mapping'?"),
        ("{% if nginx %}", "Unexpected end of template"),
        ("{{ nginx.workers }", "unexpected '}'"),
        ("{% foo %}", "Encountered unknown tag 'foo'"),
    ],
)
def test_a_mistake_in_the_syntax(tmp_path: Path, text: str, words: str):
    said = failure(tmp_path, main=f"one\n{text}\n")
    assert re.match(r"main\.j2:[23]: ", said)
    assert words in said


def test_a_filter_that_fails(tmp_path: Path):
    said = failure(tmp_path, main="{{ (nginx.workers | join('x')) + 1 }}\n")
    assert said.startswith("main.j2:1: ")
    assert "(`{{ (nginx.workers | join('x')) + 1 }}`)" in said


def test_an_error_in_an_included_template(tmp_path: Path):
    """Where it is, and who includes it."""
    main = '\n{% include "part.j2" %}\n'
    said = failure(tmp_path, main=main, part="a\n{{ nginx.worker }}\n")
    assert said.startswith("part.j2:2: nginx.worker: ")
    assert said.endswith(", included from main.j2:2")
    said = failure(tmp_path, main=main, part="a\n{% endif %}\n")
    assert said.startswith("part.j2:2: Encountered unknown tag 'endif'")
    assert said.endswith(", included from main.j2:2")


def test_an_include_that_is_not_there(tmp_path: Path):
    said = failure(tmp_path, main='\n{% include "prt.j2" %}\n', part="")
    assert said.startswith("main.j2:2: template prt.j2 was not found in ")
    assert "did you mean 'part.j2'?" in said


def test_a_template_that_includes_itself(tmp_path: Path):
    said = failure(tmp_path, main='{% include "main.j2" %}\n')
    assert re.match(r"main\.j2:1: the template includes itself", said)


def test_a_control_character(tmp_path: Path):
    """A value that would begin a line of its own is refused, and the line says which expression gave it."""
    said = failure(tmp_path, main="x\nproxy_pass {{ text }};\n")
    assert said.startswith(r"main.j2:2: an expression gave 'a\nb', which holds the control character '\n'")
    assert said.endswith("(`proxy_pass {{ text }};`)")


def test_a_template_that_is_not_utf8(tmp_path: Path):
    (tmp_path / "part.j2").write_bytes(b"one\n# \xe4\n")
    said = failure(tmp_path, main='{% include "part.j2" %}\n')
    assert said.startswith("part.j2:2: is not UTF-8: ")


def test_a_template_that_nobody_may_read_or_that_is_none(tmp_path: Path):
    """The message is one line with the name, whatever the system said."""
    (tmp_path / "main.j2").mkdir()
    with pytest.raises(RenderFailed, match=r"main\.j2"):
        Templates("nginx", tmp_path).render("main.j2", {})
