"""Estimates with intervals.

The one design choice: turns of one conversation are not independent, so every interval resamples whole conversations (a
cluster bootstrap, by scipy), and every estimate is a ratio of sums over turns, of which a mean is the case with ones below.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

#: Bootstrap resamples, and how much of them an interval holds.
RESAMPLES, CONFIDENCE = 4999, 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate.
        low: the lower end of its 95% interval; None if there are fewer than two conversations.
        high: the upper end; likewise.
        n: the number of turns it rests on.
    """

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def to_json(self) -> dict[str, float | int | None]:
        """As the object that `--json` writes."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def ratio(
    numerators: Sequence[float], denominators: Sequence[float], conversations: Sequence[Hashable], *, seed: int = 0
) -> Estimate | None:
    """The ratio of two sums over turns, with a percentile interval from resampling conversations.

    Args:
        numerators: one for each turn.
        denominators: one for each turn; their sum must not be 0.
        conversations: which conversation each turn belongs to.
        seed: for the resampling.

    Returns:
        The estimate, or None if there is no turn, or nothing to divide by.
    """
    if not numerators or not sum(denominators):
        return None
    import numpy as np
    from scipy.stats import bootstrap

    above: dict[Hashable, float] = {}
    below: dict[Hashable, float] = {}
    for over, under, conversation in zip(numerators, denominators, conversations, strict=True):
        above[conversation] = above.get(conversation, 0.0) + over
        below[conversation] = below.get(conversation, 0.0) + under
    value = sum(above.values()) / sum(below.values())
    if len(above) < 2:
        return Estimate(value, None, None, len(numerators))

    def of_sums(over: np.ndarray, under: np.ndarray, axis: int = -1) -> np.ndarray:
        return over.sum(axis=axis) / np.maximum(under.sum(axis=axis), 1e-12)

    data = (np.fromiter(above.values(), float), np.fromiter(below.values(), float))
    found = bootstrap(
        data, of_sums, paired=True, vectorized=True, n_resamples=RESAMPLES, batch=500, confidence_level=CONFIDENCE,
        method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    return Estimate(value, float(found.confidence_interval.low), float(found.confidence_interval.high), len(numerators))


def mean(values: Sequence[float], conversations: Sequence[Hashable], *, seed: int = 0) -> Estimate | None:
    """The mean over turns, with an interval from resampling conversations; None if there is no turn."""
    return ratio(values, [1.0] * len(values), conversations, seed=seed)
