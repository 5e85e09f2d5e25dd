"""What has to change in the owner's HAProxy files, so that lbswitch chooses the color."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lbswitch.balancers.haproxy_lines import owner_lines
from lbswitch.core.config import Config
from lbswitch.core.model import Color
from lbswitch.core.values import parse_endpoint
from lbswitch.errors import InvalidRequest
from lbswitch.setup.adoption import Adoption, Pools, Seen, choose_pools, choose_service, live_color
from lbswitch.setup.asking import Ask, Option
from lbswitch.setup.edits import after_line, indentation, new_line
from lbswitch.setup.haproxy_text import Line, Section, sections
from lbswitch.setup.wishes import Wishes

_RULES = frozenset(
    [
        "use_backend",
        "default_backend",
        "http-request",
        "http-response",
        "http-after-response",
        "tcp-request",
        "tcp-response",
        "redirect",
        "monitor-uri",
        "monitor",
    ]
)
_HOST = re.compile(r"(?:req\.)?hdr(?:_dom|_beg)?\(host\)(?:,[a-z_,()]+)?", re.IGNORECASE)
_PLAIN_HOST = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Rule:
    """A `use_backend` or `default_backend` that sends traffic to a named backend."""

    frontend: Section
    line: Line
    backend: str

    @property
    def condition(self) -> tuple[str, ...]:
        """`if ...` or `unless ...`, or nothing."""
        return self.line.words[2:]


def adopt(texts: Mapping[Path, bytes], wishes: Wishes, ask: Ask) -> tuple[str, Pools, Adoption]:
    """The name of the service, its pools, and what has to be done. Raises: Missing, InvalidRequest."""
    found = sections(texts)
    backends = {each.name: each for each in found if each.kind == "backend" and not each.name.startswith("lbswitch_")}
    rules = _rules(found)
    known = {name: _servers(backend) for name, backend in backends.items()}
    pools = choose_pools(wishes, ask, known, [rule.backend for rule in rules], "backend")
    mine = [rule for rule in rules if rule.backend in pools.targets and wishes.server in (None, rule.frontend.name)]
    frontends = list({rule.frontend.head.where: rule.frontend for rule in mine}.values())
    frontends = frontends or [_choose_frontend(found, wishes, ask)]
    service = choose_service(wishes, ask, pools.stem, frontends[0].name)
    adopted = Adoption(initial=live_color(_by_color(mine, pools)))
    adopted.seen = _seen(frontends, mine, wishes)
    if frontends[0].mode() == "tcp":
        adopted.service["mode"] = "tcp"
    adopted.original = str(mine[0].line) if mine else "default_backend or use_backend"
    adopted.finish = partial(_finish, texts, service, frontends[0], mine, adopted)
    if wishes.tune:
        _tune(texts, found, frontends, adopted)
    for name in pools.targets:
        if name in backends and (lost := _settings(backends[name])):
            adopted.notes.append(
                f"settings of backend {name} that lbswitch's own backend does not have: {'; '.join(lost)} "
                f"({backends[name].head.where}); templates can add them (lbswitch templates)"
            )
    return service, pools, adopted


def _rules(found: list[Section]) -> list[Rule]:
    return [
        Rule(section, line, line.words[1])
        for section in found
        if section.kind in ("frontend", "listen")
        for line in section.lines
        if line.words[0] in ("use_backend", "default_backend") and len(line.words) > 1
    ]


def _servers(backend: Section) -> tuple[str, ...]:
    """Addresses of the servers that take part in normal operation."""
    taking_part = [line for line in backend.all("server") if not {"backup", "disabled"}.intersection(line.words)]
    return tuple(_address(line.words[2]) for line in taking_part if len(line.words) > 2)


def _address(text: str) -> str:
    for prefix in ("ipv4@", "ipv6@"):
        text = text.removeprefix(prefix)
    return f"unix:{text.removeprefix('unix@')}" if text.startswith(("unix@", "/")) else text


def _settings(backend: Section) -> list[str]:
    lost = [str(line) for line in backend.lines if line.words[0] not in ("server", "mode")]
    return lost + [str(line) for line in backend.all("server") if [word for word in line.words[3:] if word != "check"]]


def _by_color(rules: list[Rule], pools: Pools) -> Mapping[Color, list[str]]:
    found: dict[Color, list[str]] = {}
    for rule in rules:
        found.setdefault(pools.targets[rule.backend], []).append(f"{rule.line.where} (`{rule.line}`)")
    return found


def _choose_frontend(found: list[Section], wishes: Wishes, ask: Ask) -> Section:
    frontends = {each.name: each for each in found if each.kind == "frontend"}
    if wishes.server and wishes.server not in frontends:
        raise InvalidRequest(f"there is no frontend {wishes.server!r}; known: {', '.join(frontends) or 'none'}")
    if not frontends:
        raise InvalidRequest(
            "the configuration of HAProxy has no frontend that a service could be part of: write one first, such as "
            "`frontend web` with `bind *:80`"
        )
    names = [wishes.server] if wishes.server else list(frontends)
    options = [Option(name, f"{', '.join(_binds(frontends[name]))} ({frontends[name].head.where})") for name in names]
    why = "No backend of these servers is used by a frontend yet."
    default = names[0] if len(names) == 1 else None
    return frontends[ask.choose("--server", "Which frontend is it in?", why, options, default)]


# -- where it is seen --------------------------------------------------------------------------------------------


def _binds(frontend: Section) -> list[str]:
    return [
        address
        for line in frontend.all("bind")
        if len(line.words) > 1 and "accept-proxy" not in line.words
        for address in line.words[1].split(",")
    ]


def _seen(frontends: list[Section], rules: list[Rule], wishes: Wishes) -> Seen:
    """Where to ask, and with which name and path. Raises: InvalidRequest."""
    host, prefix = _asked_for(next(iter(rules), None))
    host, prefix = wishes.verify_host or host, wishes.verify_prefix or prefix
    if wishes.bind:
        return Seen(wishes.bind, host, bool(wishes.verify_tls), prefix)
    for frontend in frontends:
        for line in frontend.all("bind"):
            bind = next((each for each in map(_endpoint, _addresses(line)) if each), None)
            if bind is not None:
                tls = "ssl" in line.words if wishes.verify_tls is None else wishes.verify_tls
                return Seen(bind, host, tls, prefix)
    raise InvalidRequest(
        f"no bind of frontend {frontends[0].name} can be asked what is live ({frontends[0].head.where}): add one "
        "without accept-proxy, such as `bind 127.0.0.1:8081`, or name one with --bind"
    )


def _addresses(line: Line) -> list[str]:
    return line.words[1].split(",") if len(line.words) > 1 and "accept-proxy" not in line.words else []


def _endpoint(text: str) -> str | None:
    text = _address(text)
    text = f"*{text}" if re.fullmatch(r":[0-9]+", text) else text
    text = f"[::]:{text[3:]}" if re.fullmatch(r":::[0-9]+", text) else text
    try:
        return str(parse_endpoint(text))
    except ValueError:
        return None


def _asked_for(rule: Rule | None) -> tuple[str | None, str | None]:
    """Host and path of a request that meets the condition, as far as it is plain."""
    if rule is None or rule.condition[:1] != ("if",):
        return None, None
    host = prefix = None
    for words in _tests(rule):
        values = [word for word in words[1:] if not word.startswith("-")]
        if not values:
            continue
        if _HOST.fullmatch(words[0]) and _PLAIN_HOST.fullmatch(values[0]):
            host = host or values[0]
        elif words[0] in ("path_beg", "path") or (words[0] == "path" and "beg" in words):
            prefix = prefix or values[0].rstrip("/") or None
    return host, prefix


def _tests(rule: Rule) -> list[tuple[str, ...]]:
    """The tests of a condition: those in braces, and those of the acls it names; none when it holds an `or` or `!`."""
    words = rule.condition[1:]
    if {"||", "or"}.intersection(words) or any(word.startswith("!") for word in words):
        words = words[: next(i for i, word in enumerate(words) if word in ("||", "or"))] if "||" in words else words
    acls = {line.words[1]: line.words[2:] for line in rule.frontend.all("acl") if len(line.words) > 2}
    found: list[tuple[str, ...]] = [acls[word] for word in words if word in acls]
    text = " ".join(words)
    return found + [tuple(inside.split()) for inside in re.findall(r"(?<!!)\{\s+(.*?)\s+\}", text)]


# -- the edits ---------------------------------------------------------------------------------------------------


def _last_rule(frontend: Section) -> Line:
    """The last rule of the frontend: what is sent to the default comes after everything else."""
    return next(line for line in reversed(frontend.lines) if line.words[0] in _RULES)


def _finish(
    texts: Mapping[Path, bytes],
    service: str,
    frontend: Section,
    rules: list[Rule],
    adopted: Adoption,
    config: Config,
) -> None:
    *_, line = owner_lines(config, service)
    for rule in rules:
        _insert(
            texts, rule.line if rule.line.words[0] == "use_backend" else _last_rule(rule.frontend), rule, line, adopted
        )
    if not rules:
        adopted.by_hand.append(
            f"no frontend sends traffic to these servers yet: write `{line}`, with a condition if it needs one, in "
            f"frontend {frontend.name} ({frontend.head.where}), then reload HAProxy"
        )


def _tune(texts: Mapping[Path, bytes], found: list[Section], frontends: list[Section], adopted: Adoption) -> None:
    """Settings without which a reload loses requests or leaves workers behind: `lbswitch doctor` asks for them."""
    option = "option idle-close-on-response"
    for frontend in frontends:
        if frontend.mode() == "http" and not any(_has(each, option) for each in (frontend, frontend.defaults) if each):
            _append(texts, (frontend.all("bind") or [frontend.head])[-1], option, adopted)
    parts = [section for section in found if section.kind == "global"]
    if not parts:
        return
    if not any(_has(part, "hard-stop-after") for part in parts):
        _append(texts, parts[-1].lines[-1] if parts[-1].lines else parts[-1].head, "hard-stop-after 30m", adopted)


def _has(section: Section, words: str) -> bool:
    return any(str(line) == words or str(line).startswith(f"{words} ") for line in section.lines)


def _append(texts: Mapping[Path, bytes], after: Line, words: str, adopted: Adoption) -> None:
    """A line more, indented like the one before it."""
    text = texts[after.file]
    indent = indentation(text, after.start) or b"    "
    adopted.edits.setdefault(after.file, []).append(
        new_line(text, after_line(text, after.start), indent + words.encode())
    )


def _insert(texts: Mapping[Path, bytes], beside: Line, rule: Rule, line: str, adopted: Adoption) -> None:
    """Before the rule that it takes the place of, which stays as the fallback; after other rules if it is the default.

    A use_backend of ours with a condition has to come where theirs is: the first that fits wins.
    """
    text = texts[beside.file]
    own = f"{line} {' '.join(rule.condition)}".rstrip()
    is_before = beside is rule.line
    place = beside.start if is_before else after_line(text, beside.start)
    edit = new_line(text, place, indentation(text, beside.start) + own.encode(errors="surrogateescape"))
    edits = adopted.edits.setdefault(beside.file, [])
    if edit not in edits:
        edits.append(edit)
