"""What has to change in the owner's nginx files, so that lbswitch chooses the color."""

from __future__ import annotations

import fnmatch
import os
import posixpath
from collections.abc import Callable, Mapping
from pathlib import Path

from lbswitch.balancers.nginx_config import Directive, NginxConfig, encode, full_path
from lbswitch.core.model import Color
from lbswitch.core.names import variable_name
from lbswitch.errors import InvalidRequest
from lbswitch.setup import nginx_sites
from lbswitch.setup.adoption import Adoption, Pools, Seen, choose_pools, choose_service, live_color
from lbswitch.setup.asking import Ask, Option
from lbswitch.setup.changes import Content, FileChange, look
from lbswitch.setup.edits import Edit, after_line, indentation, line_start, new_line
from lbswitch.setup.nginx_sites import Pass
from lbswitch.setup.nginx_text import Statement, statements
from lbswitch.setup.wishes import Wishes

_FILE = "lbswitch.conf"


def adopt(config: NginxConfig, wishes: Wishes, ask: Ask, output: Path) -> tuple[str, Pools, Adoption]:
    """The name of the service, its pools, and the edits. Raises: Missing, InvalidRequest."""
    upstreams = nginx_sites.upstreams(config)
    passes = nginx_sites.passes(config)
    known = {name: upstream.servers for name, upstream in upstreams.items() if not name.startswith("lbswitch_")}
    pools = choose_pools(wishes, ask, known, [each.target for each in passes], "upstream")
    mine = [each for each in passes if each.target in pools.targets and _is_of(each.server, wishes.server)]
    servers = _distinct([each.server for each in mine]) or [_choose_server(config, wishes, ask)]
    service = choose_service(wishes, ask, pools.stem, nginx_sites.plain_name(servers[0]))
    _refuse_unfit(config, mine)
    adopted = Adoption(initial=live_color(_by_color(mine, pools)))
    adopted.seen = _seen(servers, wishes)
    adopted.original = f"proxy_pass http://{mine[0].target}" if mine else ""
    editing = _Editing(config, service, output, adopted)
    adopted.finish = lambda _: editing.all(servers, mine)
    for name in pools.targets:
        if name in upstreams and upstreams[name].settings:
            adopted.notes.append(
                f"settings of upstream {name} that lbswitch's own pool does not have: "
                f"{'; '.join(upstreams[name].settings)} ({upstreams[name].where}); templates can add them "
                "(lbswitch templates)"
            )
    if any(each.scheme == "https" for each in mine):
        adopted.service["health"] = {"tls": True}
        adopted.notes.append("the servers are asked over TLS; nginx will send the pool's name to them (proxy_ssl_name)")
    return service, pools, adopted


def _by_color(passes: list[Pass], pools: Pools) -> Mapping[Color, list[str]]:
    found: dict[Color, list[str]] = {}
    for each in passes:
        found.setdefault(pools.targets[each.target], []).append(f"{each.where} (to {each.target})")
    return found


def _distinct(servers: list[Directive]) -> list[Directive]:
    return list({server.where: server for server in servers}.values())


def _is_of(server: Directive, wanted: str | None) -> bool:
    return wanted is None or wanted in nginx_sites.names(server) or server.where.endswith(wanted)


def _choose_server(config: NginxConfig, wishes: Wishes, ask: Ask) -> Directive:
    """Nobody passes to these pools yet: the server that will."""
    known = {server.where: server for server in nginx_sites.servers(config)}
    fitting = [where for where, server in known.items() if wishes.server and _is_of(server, wishes.server)]
    if wishes.server and not fitting:
        listed = "; ".join(nginx_sites.described(server) for server in known.values())
        raise InvalidRequest(f"there is no server {wishes.server!r}; known: {listed or 'none'}")
    options = [Option(where, nginx_sites.described(known[where])) for where in fitting or known]
    if not options:
        raise InvalidRequest(f"{config.main} has no server block that a service could be part of")
    default = options[0].value if len(options) == 1 else None
    why = "No proxy_pass goes to these servers yet, so you will write one there."
    return known[ask.choose("--server", "Which server is it in?", why, options, default)]


def _seen(servers: list[Directive], wishes: Wishes) -> Seen:
    """Where to ask. Raises: InvalidRequest."""
    for server in servers:
        listener = nginx_sites.best_listener(server)
        if listener is not None or wishes.bind:
            bind = wishes.bind or str(listener.bind)  # type: ignore[union-attr]  # one of the two is there
            tls = listener.tls if wishes.verify_tls is None and listener is not None else bool(wishes.verify_tls)
            return Seen(bind, wishes.verify_host or nginx_sites.plain_name(server), tls)
    raise InvalidRequest(
        f"no listener of {nginx_sites.described(servers[0])} can be asked what is live (all want the PROXY protocol): "
        "add one that does not, such as `listen 127.0.0.1:8081;`, or name one with --bind"
    )


# -- what can't be adopted ---------------------------------------------------------------------------------------


def _refuse_unfit(config: NginxConfig, passes: list[Pass]) -> None:
    """Raises: InvalidRequest with all places that would not mean the same any more, and what to write there."""
    problems = [problem for each in passes for problem in _problems(config, each)]
    if problems:
        raise InvalidRequest("this can't be adopted as it is; nothing was changed:\n" + "\n".join(problems))


def _problems(config: NginxConfig, each: Pass) -> list[str]:
    found = []
    if each.uri:
        found.append(
            f"{each.where}: `proxy_pass {each.scheme}://{each.target}{each.uri};` has a path behind the name, and with "
            f"a variable nginx would send just that path for every request; write instead: {_without_uri(each)}"
        )
    redirect = config.effective("proxy_redirect", each.place.around)
    if redirect is not None and redirect.args == ("default",):
        found.append(
            f"{redirect.where}: `proxy_redirect default;` is not possible with a variable in proxy_pass; write "
            f"instead: proxy_redirect {each.scheme}://{each.target}/ /;"
        )
    if _host_is_lost(each) and not _can_take_headers(each):
        headers = config.effective("proxy_set_header", each.place.around)
        where = headers.where if headers is not None else each.where
        found.append(
            f"{each.where}: no `proxy_set_header Host` applies here, so the application now gets `Host: {each.target}` "
            f"and would get the name of lbswitch's pool; write beside {where}: proxy_set_header Host {each.target};"
        )
    return found


def _without_uri(each: Pass) -> str:
    location = each.place.around[-1]
    plain = f"proxy_pass {each.scheme}://{each.target};"
    prefix = location.args[-1] if location.name == "location" and location.args else "/"
    if prefix == each.uri:
        return f"`{plain}` (it means the same here)"
    return f"`rewrite ^{prefix}(.*)$ {each.uri}$1 break;` and `{plain}`"


def _host_is_lost(each: Pass) -> bool:
    """Whether the Host header is `$proxy_host` there: the name in proxy_pass."""
    return not any(header.args and header.args[0].lower() == "host" for header in _headers(each))


def _headers(each: Pass) -> list[Directive]:
    """The `proxy_set_header`s that apply: those of the innermost block that has any."""
    for block in reversed(each.place.around):
        found = [directive for directive in nginx_sites.flat(block) if directive.name == "proxy_set_header"]
        if found:
            return found
    return []


def _can_take_headers(each: Pass) -> bool:
    """Whether a `proxy_set_header` beside the proxy_pass takes none of the others away."""
    block = each.place.around[-1]
    headers = _headers(each)
    return block.name == "location" and (not headers or any(each in headers for each in nginx_sites.flat(block)))


# -- the edits ---------------------------------------------------------------------------------------------------


class _Editing:
    """Collects edits, file by file."""

    def __init__(self, config: NginxConfig, service: str, output: Path, adopted: Adoption) -> None:
        self._config = config
        self._service = service
        self._variable = f"$lbswitch_{variable_name(service)}"
        self._current = output / "current"
        self._adopted = adopted
        self._parsed: dict[str, list[Statement]] = {}

    def all(self, servers: list[Directive], passes: list[Pass]) -> None:
        self._http()
        snippet = str(self._current / f"{self._service}.server.conf")
        included = {block.where for place in self._config.includes(snippet) for block in place.around}
        for server in servers:
            if server.where not in included:
                self._insert_in(server, f"include {snippet};")
        for each in passes:
            self._pass(each)
        if not passes:
            self._adopted.by_hand.append(
                f"no proxy_pass was changed: write `proxy_pass http://{self._variable};` where this service's requests "
                f"are answered in {nginx_sites.described(servers[0])}, then reload nginx"
            )

    def _http(self) -> None:
        """Have our upstreams read: by a file where the owner collects such files, else by a line."""
        path = str(self._current / "http.conf")
        if self._config.includes(path):
            return
        blocks = [place.directive for place in self._config.find("http")]
        if not blocks:
            raise InvalidRequest(f"{self._config.main} has no http block, so it serves no HTTP that could be switched")
        collected = self._collecting()
        if collected is None:
            self._insert_in(blocks[0], f"include {path};")
            return
        text = f"# Written by lbswitch init; lbswitch uninstall removes it.\ninclude {path};\n"
        before = look(collected)
        if before is not None:
            raise InvalidRequest(f"{collected} is there already and is not lbswitch's: move it away first")
        self._adopted.new_files.append(FileChange(collected, None, Content(text.encode())))

    def _collecting(self) -> Path | None:
        """A file that an include of the http block would match, such as /etc/nginx/conf.d/lbswitch.conf."""
        for place in self._config.find("include"):
            pattern = full_path(place.directive.args[0], self._config.main) if place.directive.args else ""
            directory, name = posixpath.split(pattern)
            if place.path != ("http",) or name == "*" or not fnmatch.fnmatchcase(_FILE, name):
                continue
            if name != _FILE and Path(directory).is_dir():
                return Path(os.path.realpath(directory)) / _FILE
        return None

    def _insert_in(self, block: Directive, line: str) -> None:
        """As the first directive of a block: what comes later may depend on it, and rewrites may end the phase."""
        content = self._content(block.file)
        opening = self._statement(block.file, block.line, block.name, lambda each: each.opens)
        rest = content[opening.end : after_line(content, opening.end)].strip()
        if rest and not rest.startswith(b"#"):
            edit = Edit(opening.end, b"", b" " + line.encode())
        else:
            start = after_line(content, opening.end)
            edit = new_line(content, start, self._indent(block, content, opening) + line.encode())
        self._add(block.file, edit)

    def _indent(self, block: Directive, content: bytes, opening: Statement) -> bytes:
        """Like the next directive of the block, if it stands on a line of its own."""
        outer = indentation(content, opening.words[0].start)
        for each in self._statements(block.file):
            if each.words[0].start > opening.end and each.line > opening.line:
                inner = indentation(content, each.words[0].start)
                return inner if len(inner) > len(outer) else outer + (b"\t" if outer.startswith(b"\t") else b"    ")
        return outer + b"    "

    def _pass(self, each: Pass) -> None:
        directive = each.place.directive
        statement = self._statement(directive.file, directive.line, "proxy_pass", _has(directive.args[0]))
        content, word = self._content(directive.file), statement.words[1]
        old = f"{each.scheme}://{each.target}".encode()
        start = content.index(old, word.start, word.end)
        self._add(directive.file, Edit(start, old, f"{each.scheme}://{self._variable}".encode()))
        if _host_is_lost(each):
            self._keep_host(each, statement)

    def _keep_host(self, each: Pass, statement: Statement) -> None:
        """The application goes on getting the name that it got, and redirects to it go on being rewritten."""
        lines = [f"proxy_set_header Host {each.target};"]
        if self._config.effective("proxy_redirect", each.place.around) is None:
            lines.append(f"proxy_redirect {each.scheme}://{each.target}/ /;")
        file, content = each.place.directive.file, self._content(each.place.directive.file)
        at = statement.words[0].start
        if content[line_start(content, at) : at].strip():
            self._add(file, Edit(at, b"", "".join(f"{line} " for line in lines).encode()))
            return
        for line in lines:
            self._add(file, new_line(content, line_start(content, at), indentation(content, at) + line.encode()))

    def _add(self, file: str, edit: Edit) -> None:
        edits = self._adopted.edits.setdefault(Path(file), [])
        if edit not in edits:
            edits.append(edit)

    def _content(self, file: str) -> bytes:
        return encode(self._config.texts[file])

    def _statements(self, file: str) -> list[Statement]:
        if file not in self._parsed:
            self._parsed[file] = list(statements(self._content(file)))
        return self._parsed[file]

    def _statement(self, file: str, line: int, name: str, fits: Callable[[Statement], bool]) -> Statement:
        """Where a directive is. Raises: InvalidRequest, when the text does not read as crossplane read it."""
        for each in self._statements(file):
            if (each.line, each.name) == (line, name) and fits(each):
                return each
        raise InvalidRequest(f"{file}:{line}: this `{name}` can't be found again in the text; write the line by hand")


def _has(argument: str) -> Callable[[Statement], bool]:
    return lambda statement: len(statement.words) > 1 and statement.words[1].text == argument
