"""What both kinds of balancer are asked for alike: two pools, a name for the service, and where it is seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lbswitch.core.config import Config
from lbswitch.core.model import Color
from lbswitch.errors import InvalidRequest
from lbswitch.setup.asking import Ask, Option
from lbswitch.setup.changes import FileChange
from lbswitch.setup.edits import Edit
from lbswitch.setup.wishes import Wishes

_SUFFIX = re.compile(r"(.+?)[-_.]?(blue|green)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Pools:
    """Both colors: the addresses of their servers, and the names by which the owner's configuration knows them.

    `stem` is what a pair of names has in common, such as `shop` of shop_blue and shop_green.
    """

    servers: Mapping[Color, tuple[str, ...]]
    targets: Mapping[str, Color]
    stem: str


@dataclass(frozen=True, slots=True)
class Seen:
    """Where the owner's listener is asked for the service."""

    bind: str
    host: str | None = None
    tls: bool = False
    prefix: str | None = None


@dataclass(slots=True)
class Adoption:
    """What plugging in takes. `finish` adds the edits once the configuration is known.

    `service` and `balancer` are keys for lbswitch.yaml. `by_hand` are sentences: what the owner still has to do.
    `restart` says why the balancer has to be restarted once. `original` is the owner's line that chooses a pool now.
    """

    finish: Callable[[Config], None] = lambda _: None

    initial: Color = Color.BLUE
    seen: Seen | None = None
    service: dict[str, object] = field(default_factory=dict)
    balancer: dict[str, object] = field(default_factory=dict)
    edits: dict[Path, list[Edit]] = field(default_factory=dict)
    new_files: list[FileChange] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    by_hand: list[str] = field(default_factory=list)
    restart: str | None = None
    original: str = ""


def choose_pools(
    wishes: Wishes, ask: Ask, pools: Mapping[str, tuple[str, ...]], used: Sequence[str], word: str
) -> Pools:
    """Which servers are blue and which are green.

    `pools` are the owner's by name, `used` those that get traffic, `word` is what the owner calls one.
    Raises: Missing, InvalidRequest.
    """
    names = {Color.BLUE: wishes.adopt_blue, Color.GREEN: wishes.adopt_green}
    given = {Color.BLUE: wishes.blue, Color.GREEN: wishes.green}
    if not any([*names.values(), *given.values()]):
        names = _proposed(ask, pools, used, word)
    elif names[Color.BLUE] is not None and names[Color.GREEN] is None and not wishes.green:
        names[Color.GREEN] = next((green for blue, green in pairs_in(pools) if blue == names[Color.BLUE]), None)
    servers = {color: given[color] or _of(names[color], pools, word) for color in Color}
    for color in Color:
        servers[color] = servers[color] or _asked(ask, color)
    targets = {name: color for color, name in names.items() if name is not None}
    targets |= {servers[color][0]: color for color in Color if len(servers[color]) == 1 and names[color] is None}
    return Pools(servers, targets, _stem([name for name in names.values() if name is not None]))


def _of(name: str | None, pools: Mapping[str, tuple[str, ...]], word: str) -> tuple[str, ...]:
    if name is None:
        return ()
    if name not in pools:
        raise InvalidRequest(f"there is no {word} {name!r}; known: {', '.join(sorted(pools)) or 'none'}")
    if not pools[name]:
        raise InvalidRequest(f"{word} {name} has no server that takes part in normal operation")
    return pools[name]


def _asked(ask: Ask, color: Color) -> tuple[str, ...]:
    why = "host:port; several with commas between."
    return addresses(ask.text(f"--{color}", f"Where do the servers of {color} listen?", why, None))


def addresses(text: str) -> tuple[str, ...]:
    """`A,B` as a tuple."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _proposed(
    ask: Ask, pools: Mapping[str, tuple[str, ...]], used: Sequence[str], word: str
) -> dict[Color, str | None]:
    """A pair like shop_blue and shop_green, else one that has traffic as blue."""
    pairs = pairs_in(pools)
    options = [Option(pair[0], f"{pair[0]} is blue, {pair[1]} is green") for pair in pairs]
    paired = {name for pair in pairs for name in pair}
    options += [
        Option(name, f"{name} ({', '.join(pools[name])}) is blue, green is new")
        for name in pools
        if name in used and name not in paired and pools[name]
    ]
    if not options:
        return {Color.BLUE: None, Color.GREEN: None}
    default = options[0].value if len(options) == 1 or len(pairs) == 1 else None
    why = "lbswitch takes over the choice between two pools; the servers stay where they are."
    blue = ask.choose("--adopt-blue", f"Which {word} is it about?", why, options, default)
    return {Color.BLUE: blue, Color.GREEN: next((pair[1] for pair in pairs if pair[0] == blue), None)}


def pairs_in(names: Mapping[str, object]) -> list[tuple[str, str]]:
    """Names that differ in `blue` and `green` only."""
    found = []
    for name in names:
        match = _SUFFIX.fullmatch(name)
        if match and match[2].lower() == "blue":
            partner = next((each for each in names if _is_partner(name, each)), None)
            if partner is not None:
                found.append((name, partner))
    return found


def _is_partner(blue: str, green: str) -> bool:
    return blue != green and re.sub("blue$", "green", blue.lower()) == green.lower()


def _stem(names: Sequence[str]) -> str:
    first = next(iter(names), "")
    match = _SUFFIX.fullmatch(first)
    return match[1] if match else first


def choose_service(wishes: Wishes, ask: Ask, *candidates: str | None) -> str:
    """The name, by default from the first candidate that makes one."""
    if wishes.service:
        return wishes.service
    cleaned = (re.sub(r"[^a-z0-9_-]+", "-", (each or "").lower()).strip("-_0123456789") for each in candidates)
    default = next((each[:48] for each in cleaned if each), "app")
    return ask.text(
        "--service", "What is the service called?", "Commands, files and variables carry its name.", default
    )


def live_color(found: Mapping[Color, Sequence[str]]) -> Color:
    """Where traffic goes now. `found` has for each color the places that send it there. Raises: InvalidRequest."""
    both = [f"{color}: {', '.join(found[color])}" for color in Color if found.get(color)]
    if len(both) > 1:
        raise InvalidRequest(
            f"traffic goes to both colors, and a service has one live color: {'; '.join(both)}; "
            "name one place with --server, or make two services of it"
        )
    return next((color for color in Color if found.get(color)), Color.BLUE)
