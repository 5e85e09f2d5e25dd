"""Render the balancer's configuration from Jinja templates, strictly."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from lbswitch.errors import RenderFailed

STOCK_TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


def refuse_control_characters(value: object) -> object:
    """Jinja finalizer: no expression may put a line break or another control character into a file.

    Raises: ValueError.
    """
    text = str(value)
    found = _CONTROL.search(text)
    if found:
        raise ValueError(f"an expression gave {text!r}, which holds the control character {found[0]!r}")
    return value


class Templates:
    """The templates of one balancer kind; those in `override` come before the stock ones."""

    def __init__(self, kind: str, override: Path | None = None) -> None:
        """Look in `override` (as `override/NAME` or `override/KIND/NAME`), then in the wheel."""
        self.directories = (
            *((override / kind, override) if override is not None else ()),
            STOCK_TEMPLATES / kind,
        )
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(self.directories),
            undefined=jinja2.StrictUndefined,
            finalize=refuse_control_characters,
            autoescape=False,  # noqa: S701 - not HTML; values are validated where they are read
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self._compiled_from: object = None

    def fingerprint(self) -> tuple[tuple[str, int, int], ...]:
        """Path, time and size of every template: changes when an edit could change what is rendered."""
        found = []
        for directory in self.directories:
            for path in sorted(directory.glob("*.j2")):
                status = path.stat()
                found.append((str(path), status.st_mtime_ns, status.st_size))
        return tuple(found)

    def render(self, name: str, variables: Mapping[str, Any]) -> bytes:
        """Render one template. Raises: RenderFailed, naming file and line."""
        self._forget_when_changed()
        try:
            return self._environment.get_template(name).render(variables).encode()
        except jinja2.TemplateNotFound as error:
            looked = ", ".join(str(directory) for directory in self.directories)
            raise RenderFailed(f"template {error.name} was not found in {looked}") from error
        except jinja2.TemplateSyntaxError as error:
            raise RenderFailed(f"{error.filename or name}:{error.lineno}: {error.message}") from error
        except Exception as error:  # a template can raise anything; all of it is the template's fault
            raise RenderFailed(f"{self._where(error, name)}: {error}") from error

    def _forget_when_changed(self) -> None:
        """Jinja looks again at files it has compiled, but not for one that now comes before them."""
        found = self.fingerprint()
        if self._compiled_from != found and self._environment.cache is not None:
            self._environment.cache.clear()
        self._compiled_from = found

    def _where(self, error: Exception, name: str) -> str:
        """File and line of the innermost template frame."""
        places = [
            f"{frame.filename}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename.endswith(".j2")
        ]
        return places[-1] if places else name
