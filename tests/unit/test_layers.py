"""The directions of imports (DESIGN 6): a part knows only what is below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "agent" / "lbswitch"

_GROUND = {"errors", "core"}
# small, general, without knowledge of any adapter
_TOOLS = {"files", "procs", "child", "events", "logs", "pauses", "sdnotify"}
_BELOW_ADAPTERS = _GROUND | _TOOLS | {"ports"}
_ADAPTERS = {"balancers", "nginx", "haproxy", "health", "store", "traffic", "notify"}
_TRANSACTION = {
    *("serving", "objects", "snapshots", "records", "stopwatch", "gates", "recovery", "switch"),
    *("replacement", "differing", "restore_plan", "restore_gates", "restore"),
}
_AGENT = {"agent", "automatic", "bake", "upkeep", "edits", "drift", "drain"}
_BELOW_WIRING = _BELOW_ADAPTERS | _ADAPTERS | {"api", "configfile"} | _TRANSACTION | _AGENT

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "core": {"errors"},
    "ports": _GROUND,
    **dict.fromkeys(_TOOLS, _GROUND | _TOOLS),
    "configfile": _GROUND,
    "client": {"errors"},
    **dict.fromkeys(_ADAPTERS - {"nginx", "haproxy"}, _BELOW_ADAPTERS),
    **dict.fromkeys(("nginx", "haproxy"), _BELOW_ADAPTERS | {"balancers"}),
    "usage": _GROUND,
    "changes": _GROUND | {"ports"},
    "watching": _GROUND | _TOOLS,
    "serving": _BELOW_ADAPTERS | {"usage", "changes"},
    "objects": _GROUND | _TOOLS,
    **dict.fromkeys(("records", "stopwatch"), _BELOW_ADAPTERS),
    "snapshots": _BELOW_ADAPTERS | {"serving", "objects"},
    "gates": _BELOW_ADAPTERS | {"serving"},
    "recovery": _BELOW_ADAPTERS | {"serving", "gates", "records"},
    "replacement": _GROUND | _TOOLS,
    "differing": {"ports"},
    "switch": _BELOW_ADAPTERS | {"serving", "snapshots", "records", "stopwatch", "gates", "recovery"},
    "restore_plan": _BELOW_ADAPTERS | {"serving", "snapshots", "switch", "replacement"},
    "restore_gates": _BELOW_ADAPTERS | {"serving", "snapshots", "gates", "differing", "restore_plan"},
    "restore": _BELOW_ADAPTERS | _TRANSACTION - {"restore"},
    **dict.fromkeys(_AGENT, _BELOW_ADAPTERS | _TRANSACTION | {"watching"} | _AGENT),
    "showing": _BELOW_ADAPTERS | {"snapshots"},  # documents that API and command line share
    "api": _BELOW_ADAPTERS | _TRANSACTION | _AGENT | {"showing"},
    "wiring": _BELOW_WIRING,
    "local": _BELOW_ADAPTERS | {"changes", "configfile", "snapshots", "showing", "wiring"},  # without an agent
    "overrides": _BELOW_ADAPTERS | {"balancers", "configfile"},
    "doctor": _BELOW_ADAPTERS | _ADAPTERS | {"configfile", "client", "overrides", "wiring"},
    # reads the owner's configuration with the adapters' parsers, and finds processes as their controls do
    "setup": _BELOW_ADAPTERS | {"balancers", "nginx", "haproxy", "wiring"},
    "cli": _BELOW_ADAPTERS | {"configfile", "client", "doctor", "local", "overrides", "setup", "wiring"},
}
"""What each part may import besides itself. A new part gets its line here, by decision."""

_NOT_IN_CORE = {
    *("asyncio", "os", "time", "subprocess", "socket", "socketserver", "ssl", "select", "selectors", "signal"),
    *("threading", "multiprocessing", "pathlib", "shutil", "tempfile", "sqlite3", "urllib", "http", "httpx", "h11"),
    *("uvicorn", "fastapi", "starlette", "psutil", "logging", "random"),
}


def part_of(module: str) -> str:
    """The part that a dotted name inside the package belongs to: `balancers.nginx_files` is of `nginx`."""
    first, _, rest = module.partition(".")
    if first == "balancers":
        return next((kind for kind in ("nginx", "haproxy") if rest.startswith(kind)), first)
    return first


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that the file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by the absolute name"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in imported(path):
        package, _, inside = name.partition(".")
        if package == "lbswitch" and inside and not inside.startswith("__"):
            yield line, part_of(inside)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_direction(path: Path):
    """A module imports only what is below its part."""
    name = name_of(path)
    if not name:
        return
    part = part_of(name)
    wrong = [f"{path}:{line}: {part} imports {other}" for line, other in imported_parts(path) if not may(part, other)]
    assert not wrong, "\n".join(wrong)


def may(part: str, other: str) -> bool:
    return other == part or other in ALLOWED[part]


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=name_of)
def test_core_is_pure(path: Path):
    """The core has no clock, no files, no processes and no network."""
    wrong = [f"{path}:{line}: {name}" for line, name in imported(path) if name.partition(".")[0] in _NOT_IN_CORE]
    assert not wrong, "\n".join(wrong)


def test_every_part_has_its_place():
    """A new module or package at the top has to be put into ALLOWED, so that somebody decides where it belongs."""
    found = {part_of(name_of(path)) for path in modules()} - {""}
    unplaced = found - ALLOWED.keys()
    assert not unplaced, f"say in {Path(__file__).name} what these may import: {', '.join(sorted(unplaced))}"


def test_no_circles():
    """Parts that may import each other are one part in disguise; only the small tools and the agent's files are."""
    for part, below in ALLOWED.items():
        circular = {other for other in below if part in ALLOWED[other]} - {part}
        assert circular <= _TOOLS or circular <= _AGENT, f"{part} and {', '.join(sorted(circular))}"
