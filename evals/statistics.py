"""Estimates with intervals.

The one design choice: turns of one conversation are not independent, so every interval resamples whole conversations (a
cluster bootstrap, by scipy), and every estimate is a ratio of sums over turns, of which a mean is the case with ones below.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

#: Bootstrap resamples, and how much of them an interval holds.
RESAMPLES, CONFIDENCE = 4999, 0.95
_CORRELATION_RESAMPLES = 999  # each is a fit of its own


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


def partial_spearman(
    xs: Sequence[float],
    ys: Sequence[float],
    covariates: Sequence[Sequence[float]],
    conversations: Sequence[Hashable],
    *,
    seed: int = 0,
) -> Estimate | None:
    """The rank correlation of two measures, what covariates explain of each taken out, resampling conversations.

    All are ranked; x and y are then the residuals of a least-squares fit on the covariates (Conover 1999).

    Args:
        xs: one for each item.
        ys: one for each item.
        covariates: for each item the same number of values.
        conversations: which conversation each item belongs to.
        seed: for the resampling.

    Returns:
        The estimate; None for fewer than four items, or where x or y is all one.
    """
    if len(xs) < 4:
        return None
    import numpy as np
    from scipy.stats import rankdata

    members: dict[Hashable, list[int]] = {}
    for item, conversation in enumerate(conversations):
        members.setdefault(conversation, []).append(item)
    groups = [np.array(items) for items in members.values()]
    raw = np.column_stack([xs, ys, *zip(*covariates, strict=True)])

    def correlation(items: np.ndarray) -> float:
        ranks = rankdata(raw[items], axis=0)
        design = np.column_stack([np.ones(len(items)), ranks[:, 2:]])
        residuals = ranks[:, :2] - design @ np.linalg.lstsq(design, ranks[:, :2], rcond=None)[0]
        spread = np.sqrt((residuals**2).sum(axis=0)).prod()
        return float((residuals[:, 0] * residuals[:, 1]).sum() / spread) if spread > 1e-9 else float("nan")

    value = correlation(np.arange(len(xs)))
    if np.isnan(value):
        return None
    if len(groups) < 2:
        return Estimate(value, None, None, len(xs))
    rng = np.random.default_rng(seed)
    drawn = [
        correlation(np.concatenate([groups[place] for place in rng.integers(0, len(groups), len(groups))]))
        for _ in range(_CORRELATION_RESAMPLES)
    ]
    low, high = np.nanpercentile(drawn, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return Estimate(value, float(low), float(high), len(xs))
