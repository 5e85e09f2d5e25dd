"""The tests behind the verdicts: are these latencies slower, do these requests fail more often, or is it chance.

All are one-sided: a small `p` says that chance alone would hardly make the new side look so much worse. `math` alone is
used; the tests compare with scipy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lbswitch.core.histogram import Histogram

_NEGLIGIBLE = 1e-17


@dataclass(frozen=True, slots=True)
class MannWhitney:
    """Whether the new latencies tend to be larger.

    `superiority` is the probability that one of the new is larger than one of the old, ties counting one half;
    `rank_biserial` is the same as -1 .. 1, 0 when neither is.
    """

    u: float
    z: float
    p: float
    superiority: float

    @property
    def rank_biserial(self) -> float:
        """2 * superiority - 1."""
        return 2 * self.superiority - 1


def mann_whitney(new: Histogram, old: Histogram) -> MannWhitney | None:
    """Compare all new with all old values; those of one bucket are ties. None when a side is empty.

    Normal approximation with correction for ties and continuity: H. B. Mann, D. R. Whitney, Annals of Mathematical
    Statistics 18 (1947); ties as in E. L. Lehmann, Nonparametrics (1975), 1.4. With less than 8 values on a side it is
    rough.
    """
    n_new, n_old = new.count, old.count
    if not n_new or not n_old:
        return None
    doubled_u, ties = _doubled_u(dict(new.buckets()), dict(old.buckets()))
    u, pairs, n = doubled_u / 2, n_new * n_old, n_new + n_old
    variance = pairs / 12 * (n + 1 - ties / (n * (n - 1)))
    if variance <= 0:  # a single bucket holds everything
        return MannWhitney(u, 0.0, 1.0, u / pairs)
    z = (u - pairs / 2 - 0.5) / math.sqrt(variance)
    return MannWhitney(u, z, math.erfc(z / math.sqrt(2)) / 2, u / pairs)


def _doubled_u(new: dict[int, int], old: dict[int, int]) -> tuple[int, int]:
    """Twice the pairs in which the new value is larger (ties one half), and the sum of t^3 - t over the ties."""
    doubled, ties, old_below = 0, 0, 0
    for index in sorted(new.keys() | old.keys()):
        mine, theirs = new.get(index, 0), old.get(index, 0)
        doubled += mine * (2 * old_below + theirs)
        old_below += theirs
        ties += (mine + theirs) ** 3 - (mine + theirs)
    return doubled, ties


@dataclass(frozen=True, slots=True)
class Proportions:
    """Whether a larger share of the new failed; `difference` is new share minus old share."""

    p: float
    difference: float


def two_proportions(new_failed: int, new_total: int, old_failed: int, old_total: int) -> Proportions | None:
    """Fisher's exact test, one-sided (R. A. Fisher, Statistical Methods for Research Workers, 21.02).

    Good to 1e-6 of itself up to some 1e8 requests. None when a side is empty. Raises: ValueError when more failed
    than there were.
    """
    _checked(new_failed, new_total)
    _checked(old_failed, old_total)
    if not new_total or not old_total:
        return None
    failed, total = new_failed + old_failed, new_total + old_total
    least, most = max(0, failed - old_total), min(failed, new_total)

    def ratio(k: int) -> float:  # P(k + 1) / P(k)
        return (failed - k) * (new_total - k) / ((k + 1) * (old_total - failed + k + 1))

    def log(k: int) -> float:
        return _log_choose(failed, k) + _log_choose(total - failed, new_total - k) - _log_choose(total, new_total)

    p = _tail(new_failed, least, most, new_total * failed / total, log, ratio)
    return Proportions(p, new_failed / new_total - old_failed / old_total)


def binomial_at_least(k: int, n: int, share: float) -> float:
    """How probable `k` or more of `n` are when each is one with probability `share`."""
    if k <= 0 or share >= 1:
        return 1.0 if k <= n else 0.0
    if k > n or share <= 0:
        return 0.0
    odds, log_share, log_rest = share / (1 - share), math.log(share), math.log1p(-share)
    return _tail(
        k,
        0,
        n,
        n * share,
        lambda i: _log_choose(n, i) + i * log_share + (n - i) * log_rest,
        lambda i: (n - i) / (i + 1) * odds,
    )


def poisson_at_least(k: int, mean: float) -> float:
    """How probable `k` or more events are when there are `mean` on average."""
    if k <= 0 or mean <= 0:
        return 1.0 if k <= 0 else 0.0
    log_mean = math.log(mean)
    return _tail(k, 0, None, mean, lambda i: i * log_mean - mean - math.lgamma(i + 1), lambda i: mean / (i + 1))


def _tail(
    k: int,
    least: int,
    most: int | None,
    mean: float,
    log: Callable[[int], float],
    ratio: Callable[[int], float],
) -> float:
    """P(X >= k) of a distribution with one peak; sums away from the peak, where each term is smaller than the last."""
    if k <= least:
        return 1.0
    if k > mean:
        return min(1.0, _sum(math.exp(log(k)), k, most, 1, ratio))
    return max(0.0, 1.0 - _sum(math.exp(log(k - 1)), k - 1, least, -1, lambda i: 1 / ratio(i - 1)))


def _sum(term: float, k: int, end: int | None, step: int, factor: Callable[[int], float]) -> float:
    total = 0.0
    while term > total * _NEGLIGIBLE:
        total += term
        if k == end:
            break
        term *= factor(k)
        k += step
    return total


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _checked(failed: int, total: int) -> None:
    if not 0 <= failed <= total:
        raise ValueError(f"{failed} of {total} is no share")
