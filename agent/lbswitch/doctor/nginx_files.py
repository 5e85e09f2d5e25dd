"""What nginx reads: lbswitch's files are included where they belong, and nothing there works against them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from lbswitch.balancers.nginx_config import Directive, Place
from lbswitch.balancers.nginx_guest_files import HTTP_FILE, server_file
from lbswitch.core.names import variable_name
from lbswitch.doctor.case import Case
from lbswitch.doctor.finding import Finding, error, warning
from lbswitch.errors import LbswitchError

_PASSES = ("proxy_pass", "grpc_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass")


def cached_pointer(case: Case) -> Iterator[Finding]:
    """`open_file_cache` is active where the pointer is tested."""
    for place, test in _pointer_tests(case):
        cache = case.nginx.effective("open_file_cache", place.inside)
        if cache is None or cache.args[:1] == ("off",):
            continue
        valid = case.nginx.effective("open_file_cache_valid", place.inside)
        yield error(
            f"{cache.where}: `{cache};` is active where the pointer is tested ({test.where}): requests go on to the "
            f"old color for up to {valid.args[0] if valid and valid.args else '60s'} after a switch",
            f"in the server block at {_server(place).where}:\n    open_file_cache off;",
            _service_in(case, test),
        )


def _pointer_tests(case: Case) -> Iterator[tuple[Place, Directive]]:
    """Every `if (-f POINTER)`, with the place of the `if`."""
    live = f"{case.state_dir}/live/"
    if case.is_guest:
        try:
            live = f"{case.control.seen(case.state_dir / 'live')}/"
        except LbswitchError:
            return
    for place in case.nginx.find("if"):
        words = place.directive.args
        if words[:1] == ("-f",) and any(word.startswith(live) for word in words[1:]):
            yield Place(place.directive, place.around), place.directive


def _server(place: Place) -> Directive:
    """The server block around it, or the innermost block there is."""
    return next((block for block in place.around if block.name == "server"), (*place.around, place.directive)[0])


def _service_in(case: Case, test: Directive) -> str | None:
    named = [name for name in case.config.services if any(f"/live/{name}/" in word for word in test.args)]
    return named[0] if named else None


def _places(case: Case, name: str) -> list[Place]:
    """The includes that reach one of our files, by whatever path or pattern."""
    return [
        place
        for place in case.nginx.find("include")
        if any(case.nginx_files.name_of(file) == name for file in place.directive.files)
    ]


def not_included(case: Case) -> Iterator[Finding]:
    """No include reaches a file of lbswitch's, or it names another place."""
    for name, service, block in _wanted(case):
        if _places(case, name):
            continue
        path = f"{case.nginx_files.output}/current/{name}"
        line = f"in {block} ({case.nginx.main}, or a file that it includes):\n    include {path};"
        astray = [place.directive for place in case.nginx.find("include") if _means(place.directive, name)]
        if astray:
            yield error(
                f"{astray[0].where}: `{astray[0]};` is not where lbswitch writes, which is {path}"
                + _because(astray[0], case),
                line,
                service,
            )
        else:
            yield error(
                f"nothing includes {path}, so lbswitch has no part in {service or 'any service'}", line, service
            )


def _wanted(case: Case) -> Iterator[tuple[str, str | None, str]]:
    yield HTTP_FILE, None, "the http block"
    for name in case.services:
        yield server_file(name), name, f"the server block of {name}"


def _means(include: Directive, name: str) -> bool:
    """Whether somebody probably meant that file of ours: its name, below a directory that says so."""
    path = include.args[0] if include.args else ""
    return posixpath.basename(path) == name and (name != HTTP_FILE or "lbswitch" in path or "/current/" in path)


def _because(include: Directive, case: Case) -> str:
    if include.args[0].startswith(f"{case.nginx_files.output}/rendered/"):
        return "; a revision of its own stays as it is when lbswitch writes the next one"
    return ""


def misplaced(case: Case) -> Iterator[Finding]:
    """Included in the wrong block."""
    for name, service, block in _wanted(case):
        allowed = ("http",) if name == HTTP_FILE else ("http", "server")
        for place in _places(case, name):
            if place.path != allowed:
                yield error(
                    f"{place.directive.where}: `{place.directive};` is in {_said(place.path)}, but belongs in {block}",
                    f"move it to {block}",
                    service,
                )


def _said(path: tuple[str, ...]) -> str:
    return f"`{' > '.join(path)}`" if path else "no block"


def not_passed(case: Case) -> Iterator[Finding]:
    """A server has lbswitch's choice and does not use it."""
    for name in case.services:
        servers = _servers_with(case, name)
        variable = f"$lbswitch_{variable_name(name)}"
        if servers and not any(_uses(case, place.directive, variable) for place in servers):
            server = servers[0].directive
            passes = [each for each in _theirs(case, server) if each.name in _PASSES]
            now = f"; there is `{passes[0]};` ({passes[0].where})" if passes else ""
            yield error(
                f"{server.where}: the server includes lbswitch's choice for {name}, but no proxy_pass uses {variable}: "
                f"a switch moves nothing{now}",
                f"proxy_pass http://{variable};",
                name,
            )


def _servers_with(case: Case, service: str) -> list[Place]:
    """The servers that include the choice of a service."""
    found = _places(case, server_file(service))
    servers = [Place(around, ()) for place in found for around in place.around if around.name == "server"]
    return list({id(place.directive): place for place in servers}.values())


def _inside(directive: Directive) -> Iterator[Directive]:
    for each in directive.block or ():
        yield each
        yield from _inside(each)


def _theirs(case: Case, directive: Directive) -> Iterator[Directive]:
    """What is inside, without what our own files say."""
    return (each for each in _inside(directive) if case.nginx_files.name_of(each.file) is None)


def _uses(case: Case, server: Directive, variable: str) -> bool:
    """Whether something is passed there by this variable, or by one that is set from it."""
    for each in _theirs(case, server):
        words = " ".join(each.args).replace("${", "$").replace("}", "")
        if each.name in _PASSES and _holds(words, variable):
            return True
        if each.name == "set" and _holds(" ".join(each.args[1:]), variable) and each.args[0] != variable:
            return True
    return False


def _holds(words: str, variable: str) -> bool:
    after = words.partition(variable)[2]
    return variable in words and not (after[:1].isalnum() or after[:1] == "_")


def bare_slash(case: Case) -> Iterator[Finding]:
    """A guest's proxy_pass with a path part takes the path away from the client's."""
    for name in case.services:
        variable = f"$lbswitch_{variable_name(name)}"
        for place in _servers_with(case, name):
            for each in _inside(place.directive):
                target = each.args[0] if each.args else ""
                if each.name == "proxy_pass" and target in (f"http://{variable}/", f"https://{variable}/"):
                    yield warning(
                        f"{each.where}: `{each};` ends in /, and with a variable nginx then asks for / whatever the "
                        "client asked for",
                        f"{each.name} {target[:-1]};",
                        name,
                    )


def symlinks(case: Case) -> Iterator[Finding]:
    """`disable_symlinks` keeps nginx from following the pointer, which is one."""
    for name in case.services:
        for place in _places(case, server_file(name)):
            found = case.nginx.effective("disable_symlinks", place.around)
            if found is not None and found.args[:1] != ("off",):
                yield error(
                    f"{found.where}: `{found};` is active where {name} is included ({place.directive.where}): nginx "
                    "can't follow the pointer, so every request goes to blue",
                    f"in the server block at {_server(place).where} (and the rule in the locations that need it):\n"
                    "    disable_symlinks off;",
                    name,
                )


def underscores(case: Case) -> Iterator[Finding]:
    """Nginx drops headers with _, by which a service is to be sticky."""
    for name, service in case.services.items():
        sticky = service.weights.sticky if service.weights is not None else ""
        if not sticky.startswith("header:") or "_" not in sticky:
            continue
        for place in _places(case, server_file(name)):
            found = case.nginx.effective("underscores_in_headers", place.around)
            if found is None or found.args[:1] != ("on",):
                yield warning(
                    f"services.{name}.weights.sticky is {sticky}, and nginx drops headers with _ at "
                    f"{place.directive.where}: every request draws anew",
                    "in the first server block of that address:\n    underscores_in_headers on;",
                    name,
                )


def few_files(case: Case) -> Iterator[Finding]:
    """Workers can't have as many connections open as they are told to accept."""
    limit = case.nginx.effective("worker_rlimit_nofile", ())
    found = (
        int(limit.args[0]) if limit is not None and limit.args[0].isdigit() else case.host.open_files_limit(case.master)
    )
    for place in case.nginx.find("worker_connections"):
        wanted = place.directive.args[0]
        if found is not None and wanted.isdigit() and int(wanted) > found:
            yield warning(
                f"{place.directive.where}: worker_connections is {wanted}, and a worker may open {found} files: "
                "connections beyond that fail with `Too many open files`",
                f"at the top of {case.nginx.main}:\n    worker_rlimit_nofile {2 * int(wanted)};",
            )
