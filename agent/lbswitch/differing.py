"""Whether two renderings do the same, and if not, where: comments, names of revisions and secrets aside."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from lbswitch.ports import Rendered

_LINES = 20


def differences(before: Rendered, after: Rendered) -> str:
    """A short diff; empty when there is none that matters.

    A renewed certificate is no difference: it shows in comments and in secret files alone.
    """
    old, new = _texts(before), _texts(after)
    lines = [line for name in sorted(old.keys() | new.keys()) for line in _diff(name, old.get(name), new.get(name))]
    if len(lines) > _LINES:
        lines[_LINES:] = [f"... and {len(lines) - _LINES} more lines"]
    return "\n".join(lines)


def _texts(rendered: Rendered) -> dict[str, list[str]]:
    return {
        file.name: [] if file.is_hidden else list(_lines(file.content.decode(errors="replace"), rendered.revision))
        for file in rendered.files
    }


def _lines(text: str, revision: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.replace(revision, "REVISION") if revision else line


def _diff(name: str, before: list[str] | None, after: list[str] | None) -> Iterator[str]:
    if before is None or after is None:
        yield f"{name}: is rendered only {'today' if before is None else 'then'}"
        return
    yield from difflib.unified_diff(before, after, f"then/{name}", f"today/{name}", n=1, lineterm="")
