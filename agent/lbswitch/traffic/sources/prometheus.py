"""An instant query of Prometheus, or of what speaks its API (https://prometheus.io/docs/prometheus/latest/querying/api/)."""

from __future__ import annotations

from typing import Any

from lbswitch.core.config_problems import show
from lbswitch.core.source_config import PrometheusSource
from lbswitch.ports import SourceDown
from lbswitch.traffic.sources.fetch import Answer, Fetcher
from lbswitch.traffic.sources.number import as_number

_PATH = "/api/v1/query"


class PrometheusMetric:
    """The query's value: a scalar, or a vector of one element."""

    def __init__(self, config: PrometheusSource) -> None:
        """Nothing is asked yet."""
        self._config = config
        self._fetcher = Fetcher(config)

    async def read(self) -> float:
        """See `MetricSource`. Raises: SourceDown."""
        answer = await self._fetcher.get(_PATH, query=self._config.query, timeout=f"{self._config.timeout:.3f}s")
        data = self._data(answer)
        text = self._value(data.get("resultType"), data.get("result"))
        try:
            return as_number(text)
        except ValueError as error:
            hint = ", such as a division by zero without traffic" if str(text).lower() == "nan" else ""
            raise SourceDown(f"the query gives {error}{hint}: change it so that it gives one") from None

    async def close(self) -> None:
        """Let go of the client."""
        await self._fetcher.close()

    def _data(self, answer: Answer) -> dict[str, Any]:
        try:
            document = answer.json()
        except ValueError as error:
            refused = self._fetcher.refused(answer)
            raise SourceDown(refused) if refused else self._not_prometheus(str(error)) from None
        if isinstance(document, dict) and document.get("status") == "error":
            raise SourceDown(
                f"Prometheus refuses the query: {show(str(document.get('error')))}: try it in its web page"
            )
        refused = self._fetcher.refused(answer)
        if refused:
            raise SourceDown(refused)
        data = document.get("data") if isinstance(document, dict) else None
        if not isinstance(data, dict):
            raise self._not_prometheus("does not answer as Prometheus does")
        return data

    def _value(self, kind: object, result: object) -> object:
        """The number's text. Raises: SourceDown."""
        if kind == "scalar":
            return self._sample(result)
        if kind != "vector" or not isinstance(result, list):
            raise SourceDown(f"the query gives a {show(str(kind))}, but a scalar or a vector is needed: see `query`")
        if not result:
            raise SourceDown("the query gives nothing: no series matches it now; see its names and labels")
        if len(result) > 1:
            raise SourceDown(
                f"the query gives {len(result)} series, but one number is needed: aggregate, as sum(...) does"
            )
        if not isinstance(result[0], dict) or "value" not in result[0]:
            raise SourceDown(
                "the query gives a histogram, but a number is needed: such as histogram_quantile(0.95, ...)"
            )
        return self._sample(result[0]["value"])

    def _sample(self, pair: object) -> object:
        if isinstance(pair, list) and len(pair) == 2:
            return pair[1]
        raise self._not_prometheus("does not answer as Prometheus does")

    def _not_prometheus(self, words: str) -> SourceDown:
        return self._fetcher.unusable(words, "see that `url` is the address of Prometheus")
