"""Shares of conversations with 95% intervals, pass^k, and the paired difference of two agents.

Design: conversations of one scenario or one twin are alike, so n of them say less about other scenarios and twins than n
independent ones. From `MIN_CONVERSATIONS` scenarios, twins, or pairs of the two on, an interval over these is computed, too
(Student's t with jackknife standard errors; see evals/metrics/statistics.py). The widest one is reported, and the largest p.
With fewer, an interval is over conversations and holds for these scenarios and twins alone. In 400 simulated studies of each
of six shapes (1 to 20 scenarios, 1 to 10 twins, 1 to 20 repetitions; logits of both with a standard deviation of 0.7 or 1) the
intervals hold the truth in 95 to 99.8%.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import cast

from usertwin.evals.metrics.statistics import (
    CONFIDENCE,
    MIN_CONVERSATIONS,
    Estimate,
    Inference,
    Jackknife,
    sign_flip,
    sums_by_conversation,
    turns_by_conversation,
)
from usertwin.simulator.records import Simulation

#: What an interval is over.
OVER = ("conversations", "pairs of scenario and twin", "scenarios", "twins")

#: Clusters whose signs are flipped at random; the memory that takes grows with them, and Student's t does as well for more.
_MOST_FLIPPED = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A share of n conversations.

    Attributes:
        value: the share.
        low: the lower end of its 95% interval.
        high: the upper end.
        count: the conversations of the share.
        n: all conversations.
        over: what the interval is over, one of `OVER`.
    """

    value: float
    low: float
    high: float
    count: int
    n: int
    over: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PassPower:
    """pass^k: the probability that the agent passes k conversations of the same scenario and twin, all of them.

    The ends of its interval are None for 2 to 7 pairs of scenario and twin. `pairs`: those with k usable conversations or more.
    """

    k: int
    value: float
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """The difference of two shares at the same conversations, second minus first.

    Attributes:
        value: the difference.
        low: the lower end of its 95% interval.
        high: the upper end.
        p: two-sided, of "no difference".
        n: conversations in both runs.
        gained: those that only the second run passes.
        lost: those that only the first run passes.
        over: what the interval is over.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    gained: int
    lost: int
    over: str


def rate(simulations: Sequence[Simulation], hits: Sequence[bool]) -> Rate | None:
    """Return the share of conversations that are hits; None without conversations."""
    if not simulations:
        return None
    low, high, over = *_wilson(sum(hits), len(hits)), OVER[0]
    for unit, clusters in _clusterings(simulations):
        inference = _over_clusters([float(hit) for hit in hits], clusters, share=True)
        low, high, over = _wider((low, high, over), inference.estimate(), unit)
    value = sum(hits) / len(hits)
    return Rate(value=value, low=min(low, value), high=max(high, value), count=sum(hits), n=len(hits), over=over)


def pass_powers(simulations: Sequence[Simulation], hits: Sequence[bool], most: int = 8) -> tuple[PassPower, ...]:
    """Return pass^k for k from 2 to the number of repetitions, at most `most`.

    Each pair of scenario and twin with n conversations, of which c are passed, gives the unbiased estimate C(c, k) / C(n, k)
    (Yao et al. 2024, arXiv 2406.12045); pairs have equal weight.
    """
    cells: dict[tuple[str, str], list[bool]] = {}
    for simulation, hit in zip(simulations, hits, strict=True):
        cells.setdefault((simulation.scenario, simulation.twin), []).append(hit)
    powers: list[PassPower] = []
    for k in range(2, min(most, max(map(len, cells.values()), default=0)) + 1):
        values = {pair: comb(sum(cell), k) / comb(len(cell), k) for pair, cell in cells.items() if len(cell) >= k}
        low, high = _power_interval(values)
        if len(cells) == 1:  # pass^k of one pair is the k-th power of its pass rate
            low, high = (end**k for end in _wilson(sum(hits), len(hits)))
        powers.append(PassPower(k=k, value=sum(values.values()) / len(values), low=low, high=high, pairs=len(values)))
    return tuple(powers)


def _power_interval(values: Mapping[tuple[str, str], float]) -> tuple[float, float] | tuple[None, None]:
    """Return the widest interval of the mean over pairs, scenarios and twins; None for few pairs."""
    estimates = [
        _over_clusters(list(values.values()), clusters, share=True).estimate()
        for clusters in (list(values), [scenario for scenario, _ in values], [twin for _, twin in values])
    ]
    ends = [(e.low, e.high) for e in estimates if e.low is not None and e.high is not None]
    return max(ends, key=lambda end: end[1] - end[0]) if ends else (None, None)


def paired_difference(
    simulations: Sequence[Simulation], first: Sequence[bool], second: Sequence[bool], *, seed: int = 0
) -> PairedDifference | None:
    """Return the difference of two shares at the same conversations; None without conversations.

    Over conversations the interval is that of Bonett and Price (2012, "Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data") and the test McNemar's, exact; over clusters, Student's t and sign flips.
    """
    from scipy.stats import binomtest

    n = len(simulations)
    if not n:
        return None
    differences = [float(b) - float(a) for a, b in zip(first, second, strict=True)]
    gained, lost = differences.count(1.0), differences.count(-1.0)
    low, high, over = *_bonett_price(gained, lost, n), OVER[0]
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    for unit, clusters in _clusterings(simulations):
        inference = _over_clusters(differences, clusters)
        low, high, over = _wider((low, high, over), inference.estimate(), unit)
        means = (sums_by_conversation(differences, clusters) / turns_by_conversation(clusters)).tolist()
        over_clusters = sign_flip(means, seed=seed) if len(means) <= _MOST_FLIPPED else inference.p()
        p = max(p, over_clusters or 0.0)
    return PairedDifference(value=sum(differences) / n, low=low, high=high, p=p, n=n, gained=gained, lost=lost, over=over)


def _clusterings(simulations: Sequence[Simulation]) -> list[tuple[str, list[Hashable]]]:
    """Return what an interval can be over besides conversations: names of the clusters by conversation.

    Clusters of one conversation each are left out, since an interval over conversations is one over these.
    """
    keys: Mapping[str, list[Hashable]] = {
        OVER[1]: [(simulation.scenario, simulation.twin) for simulation in simulations],
        OVER[2]: [simulation.scenario for simulation in simulations],
        OVER[3]: [simulation.twin for simulation in simulations],
    }
    return [(unit, own) for unit, own in keys.items() if MIN_CONVERSATIONS <= len(set(own)) < len(own)]


def _over_clusters(values: Sequence[float], clusters: Sequence[Hashable], *, share: bool = False) -> Inference:
    """Return the mean of values with its jackknife over clusters, in linear time: a mean without a cluster is a difference."""
    import numpy as np

    sums, sizes = sums_by_conversation(values, clusters), turns_by_conversation(clusters)
    with np.errstate(invalid="ignore", divide="ignore"):  # a single cluster leaves nothing
        left_out = (sums.sum() - sums) / (sizes.sum() - sizes)
    return Jackknife(float(sums.sum() / sizes.sum()), left_out, sizes, share=share).inference()


def _wider(known: tuple[float, float, str], estimate: Estimate, unit: str) -> tuple[float, float, str]:
    """Return the wider one of two intervals, with what it is over."""
    if estimate.low is None or estimate.high is None:
        return known
    return (estimate.low, estimate.high, unit) if estimate.high - estimate.low > known[1] - known[0] else known


@lru_cache(maxsize=4096)
def _wilson(count: int, n: int) -> tuple[float, float]:
    from statsmodels.stats.proportion import proportion_confint

    low, high = cast("tuple[float, float]", proportion_confint(count, n, 1 - CONFIDENCE, method="wilson"))
    return max(0.0, float(low)), min(1.0, float(high))


def _bonett_price(gained: int, lost: int, n: int) -> tuple[float, float]:
    from scipy.special import ndtri

    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = float(ndtri((1 + CONFIDENCE) / 2)) * ((up + down - (up - down) ** 2) / (n + 2)) ** 0.5
    return max(-1.0, up - down - half), min(1.0, up - down + half)
