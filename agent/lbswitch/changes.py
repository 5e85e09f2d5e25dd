"""What one rendered configuration changes in another, for people to read."""

from __future__ import annotations

import difflib

from lbswitch.ports import Rendered, RenderedFile


def unified(before: Rendered, after: Rendered) -> str:
    """A unified diff of all files; of secret ones only whether they differ."""
    old = {file.name: file for file in before.files}
    new = {file.name: file for file in after.files}
    return "".join(_of_file(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys()))


def _of_file(name: str, before: RenderedFile | None, after: RenderedFile | None) -> str:
    if before is not None and after is not None and before.content == after.content:
        return ""
    if any(file is not None and file.is_hidden for file in (before, after)):
        return f"{name}: differs (secret, not shown)\n"
    return "".join(difflib.unified_diff(_lines(before), _lines(after), f"installed/{name}", f"rendered/{name}"))


def _lines(file: RenderedFile | None) -> list[str]:
    return [] if file is None else file.content.decode(errors="replace").splitlines(keepends=True)
