"""A number in a JSON document that is got over HTTP."""

from __future__ import annotations

import re
from typing import Any

from lbswitch.core.config_problems import show
from lbswitch.core.source_config import HttpSource
from lbswitch.ports import SourceDown
from lbswitch.traffic.sources.fetch import Fetcher
from lbswitch.traffic.sources.number import as_number

_INDEX = re.compile(r"0|[1-9][0-9]{0,9}")


class DocumentMetric:
    """Finds it by a JSON pointer or a JMESPath expression."""

    def __init__(self, config: HttpSource) -> None:
        """Nothing is asked yet."""
        self._config = config
        self._fetcher = Fetcher(config)

    async def read(self) -> float:
        """See `MetricSource`. Raises: SourceDown."""
        answer = await self._fetcher.get()
        refused = self._fetcher.refused(answer)
        if refused:
            raise SourceDown(refused)
        key = "pointer" if self._config.pointer is not None else "jmespath"
        try:
            document = answer.json()
            return as_number(self._found(document))
        except LookupError as error:
            raise self._fetcher.unusable(str(error.args[0]), f"see `{key}`") from None
        except ValueError as error:
            words = str(error) if str(error).startswith("holds") else f"has {error}"
            raise self._fetcher.unusable(words, f"see `url` and `{key}`") from None

    async def close(self) -> None:
        """Let go of the client."""
        await self._fetcher.close()

    def _found(self, document: Any) -> object:
        if self._config.pointer is not None:
            return resolve(document, self._config.pointer)
        return _searched(document, self._config.jmespath or "")


def resolve(document: Any, pointer: str) -> Any:
    """What a JSON pointer (RFC 6901) leads to. Raises: LookupError with words such as `has no 'a' at '/b'`."""
    here = document
    walked = ""
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(here, dict) and key in here:
            here = here[key]
        elif isinstance(here, list) and _INDEX.fullmatch(key) and int(key) < len(here):
            here = here[int(key)]
        else:
            raise LookupError(f"has no {show(key)} at {show(walked)}" if walked else f"has no {show(key)}")
        walked += f"/{token}"
    return here


def _searched(document: Any, expression: str) -> Any:
    """What a JMESPath expression gives. Raises: LookupError."""
    import jmespath
    from jmespath.exceptions import JMESPathError

    try:
        found = jmespath.search(expression, document)
    except (JMESPathError, ArithmeticError, RecursionError) as error:
        raise LookupError(f"is not what {show(expression)} is for ({str(error).splitlines()[0]})") from None
    if found is None:
        raise LookupError(f"has nothing at {show(expression)}")
    return found
