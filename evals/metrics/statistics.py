"""Estimates with confidence intervals over conversations of one person, or over people; none from few of them.

Design: turns of one conversation are not independent, nor are conversations of one person. So the unit of every interval and
test is a cluster: a conversation where one person is measured, a person where several are. A statistic is a function of how
often each cluster is drawn: all numbers of a run share the draws, so differences are paired, and a ratio of sums is two matrix
products. The draws give a standard error, and Student's t with (clusters - 1) degrees of freedom the interval (Cameron and
Miller 2015, "A practitioner's guide to cluster-robust inference", VI): percentiles of the draws cover too rarely with few
clusters. Shares get the interval of Korn and Graubard (1998), which never has the width 0.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

T = TypeVar("T")

#: The fewest clusters with an interval, a test or a verdict. Below six even an exact test of clusters that all agree cannot
#: reach 5% (sign-flip test: 2 / 2^5 = 6%), so that a verdict would rest on the assumption of a normal distribution alone.
MIN_CLUSTERS = 6
#: Bootstrap resamples (a standard error needs 200; Efron and Tibshirani 1993, chapter 6), and the level of an interval.
RESAMPLES, CONFIDENCE = 999, 0.95
#: A sign-flip test enumerates all signs up to twelve people, and draws this number of signs for more.
FLIPS = 2**12
#: The power of the smallest detectable difference.
POWER = 0.80

#: From how often each conversation was drawn, (resamples, conversations), to the statistic of each resample, (resamples,).
Statistic: TypeAlias = "Callable[[Floats], Floats]"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number of n turns with the ends of its 95% interval; these are None for fewer than `MIN_CLUSTERS` clusters."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def to_json(self) -> dict[str, float | int | None]:
        """Return the JSON object that `--json` writes."""
        return asdict(self)


def optional_json(estimate: Estimate | None) -> dict[str, float | int | None] | None:
    """Return the JSON object of an estimate, and null without one."""
    return None if estimate is None else estimate.to_json()


def ratio(
    numerators: Sequence[float], denominators: Sequence[float], conversations: Sequence[Hashable], *,
    share: bool = False, seed: int = 0,
) -> Estimate | None:  # fmt: skip
    """Return the ratio of two sums over turns, with an interval over conversations.

    All sequences are by turn. `share`: whether the ratio is a share of all cases. None without turns, or if all denominators
    are 0.
    """
    distribution = ratio_distribution(numerators, denominators, conversations, share=share, seed=seed)
    return distribution and distribution.estimate()


def ratio_distribution(
    numerators: Sequence[float], denominators: Sequence[float], conversations: Sequence[Hashable], *,
    share: bool = False, seed: int = 0,
) -> BootstrapDistribution | None:  # fmt: skip
    """Return the distribution of `ratio`."""
    if not numerators or not sum(denominators):
        return None
    above, below = sums_by_conversation(numerators, conversations), sums_by_conversation(denominators, conversations)
    return Resampling(seed).resample(ratio_of_sums(above, below), len(above), len(numerators), share=share)


def mean(values: Sequence[float], conversations: Sequence[Hashable], *, share: bool = False, seed: int = 0) -> Estimate | None:
    """Return the mean over turns, with an interval over conversations; None without turns. `share`: see `ratio`."""
    return ratio(values, [1.0] * len(values), conversations, share=share, seed=seed)


def mean_over_people(
    numerators: Sequence[float], people: Sequence[Hashable], conversations: Sequence[Hashable], *,
    denominators: Sequence[float] | None = None, share: bool = False, seed: int = 0,
) -> tuple[BootstrapDistribution, tuple[float, ...]] | None:  # fmt: skip
    """Return the mean over people of each person's ratio of sums; people have equal weight.

    All sequences are by turn. Names of conversations need to differ within a person only. Denominators are ones if None; people
    whose denominators sum to 0 are left out. `share`: see `ratio`.

    Returns:
        The distribution of the mean, and each person's own ratio in order of appearance, for `sign_flip`; None if no person
        has a ratio.
    """
    denominators = [1.0] * len(numerators) if denominators is None else denominators
    rows: dict[Hashable, list[tuple[float, float, Hashable]]] = {}
    for numerator, denominator, person, conversation in zip(numerators, denominators, people, conversations, strict=True):
        rows.setdefault(person, []).append((numerator, denominator, conversation))
    resampling = Resampling(seed)
    distributions: list[BootstrapDistribution] = []
    for own in rows.values():
        own_numerators, own_denominators, where = zip(*own, strict=True)
        if sum(own_denominators):
            above, below = sums_by_conversation(own_numerators, where), sums_by_conversation(own_denominators, where)
            distributions.append(resampling.resample(ratio_of_sums(above, below), len(above), len(own), share=share))
    if not distributions:
        return None
    return resampling.resample_people(distributions), tuple(distribution.value for distribution in distributions)


def sums_by_conversation(values: Sequence[float], conversations: Sequence[Hashable]) -> Floats:
    """Return the sum of the values of each conversation, in order of appearance; shape (conversations,)."""
    import numpy as np

    sums: dict[Hashable, float] = {}
    for value, conversation in zip(values, conversations, strict=True):
        sums[conversation] = sums.get(conversation, 0.0) + value
    return np.fromiter(sums.values(), float, len(sums))


def ratio_of_sums(above: Floats, below: Floats) -> Statistic:
    """Return the ratio of two sums over conversations as a statistic; it is 0 where both sums are 0."""

    def statistic(weights: Floats) -> Floats:
        import numpy as np

        return (weights @ above) / np.maximum(weights @ below, 1e-12)

    return statistic


@dataclass(frozen=True, slots=True)
class BootstrapDistribution:
    """A number of n turns in some clusters, and its value in each bootstrap resample of the clusters.

    `draws` has shape (resamples,); it is not finite where a resample has no data. `share`: whether the number is a share of all
    cases, from 0 to 1.
    """

    value: float
    draws: Floats
    n: int
    _: KW_ONLY
    clusters: int
    share: bool = False

    @property
    def standard_error(self) -> float | None:
        """The standard deviation of the draws, times sqrt(G / (G - 1)) for G clusters.

        None for fewer than `MIN_CLUSTERS` clusters, or if most draws are not finite.
        """
        import numpy as np

        finite = self.draws[np.isfinite(self.draws)]
        if self.clusters < MIN_CLUSTERS or 2 * len(finite) <= len(self.draws):
            return None
        error = float(finite.std(ddof=1)) * (self.clusters / (self.clusters - 1)) ** 0.5
        return 0.0 if error <= 1e-9 * max(1.0, abs(self.value)) else error  # without the rounding error of equal draws

    def estimate(self) -> Estimate:
        """Return the number with its interval; without one if all clusters agree, since their spread is then unknown."""
        error = self.standard_error
        if error is None or not (error or self.share):
            return Estimate(self.value, None, None, self.n)
        if self.share:
            return Estimate(self.value, *self._share_interval(error), self.n)
        half = _t_quantile((1 + CONFIDENCE) / 2, self.clusters - 1) * error
        return Estimate(self.value, self.value - half, self.value + half, self.n)

    def _share_interval(self, error: float) -> tuple[float, float]:
        """Return the interval of Korn and Graubard (1998): exact binomial, with the effective number of cases.

        If all cases agree, each cluster counts as one case. Else they count as their variance says, and at most as n.
        """
        from scipy.stats import norm
        from statsmodels.stats.proportion import proportion_confint

        value = min(1.0, max(0.0, self.value))
        cases, variance = float(self.clusters), value * (1 - value)
        if variance > 1e-9:
            shrink = float(norm.ppf((1 + CONFIDENCE) / 2)) / _t_quantile((1 + CONFIDENCE) / 2, self.clusters - 1)
            cases = min(float(self.n), variance / error**2 if error else float(self.n)) * shrink**2
        low, high = cast("tuple[float, float]", proportion_confint(value * cases, cases, 1 - CONFIDENCE, method="beta"))
        return float(low), float(high)

    @property
    def min_detectable_effect(self) -> float | None:
        """The smallest difference that a two-sided 5% test detects with 80% power; None without a standard error.

        It is the sum of two quantiles of t times the standard error; with many clusters (1.96 + 0.84) standard errors (Cohen
        1988, chapter 1; Miller 2024, arXiv 2411.00640).
        """
        error = self.standard_error
        if not error:
            return None
        return (_t_quantile((1 + CONFIDENCE) / 2, self.clusters - 1) + _t_quantile(POWER, self.clusters - 1)) * error


def _t_quantile(level: float, freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(level, freedom))


class Resampling:
    """Bootstrap draws of clusters, shared by all numbers of a measurement.

    Numbers of the same clusters share their draws, so the difference of two `BootstrapDistribution.draws` is the paired
    difference.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._weights: dict[int, Floats] = {}

    def weights(self, clusters: int) -> Floats:
        """Return how often each cluster is drawn, shape (resamples, clusters); rows sum to `clusters`."""
        if clusters not in self._weights:
            import numpy as np

            drawn = np.random.default_rng(self._seed).integers(0, clusters, (RESAMPLES, clusters))
            places = (drawn + clusters * np.arange(RESAMPLES)[:, None]).ravel()
            counts = np.bincount(places, minlength=RESAMPLES * clusters)
            self._weights[clusters] = counts.reshape(RESAMPLES, clusters).astype(np.float64)
        return self._weights[clusters]

    def resample(self, statistic: Statistic, clusters: int, n: int, *, share: bool = False) -> BootstrapDistribution:
        """Return the distribution of a number of n turns in some clusters (at least one)."""
        import numpy as np

        value = float(statistic(np.ones((1, clusters)))[0])
        return BootstrapDistribution(value, statistic(self.weights(clusters)), n, clusters=clusters, share=share)

    def resample_people(self, people: Sequence[BootstrapDistribution]) -> BootstrapDistribution:
        """Return the distribution of the mean over people (at least one); of one person, that over conversations.

        The people's own numbers are resampled. Their spread contains that of conversations within people, so conversations are
        not resampled again.
        """
        if len(people) == 1:
            return people[0]
        import numpy as np

        values, turns = np.array([person.value for person in people]), sum(person.n for person in people)
        share = all(person.share for person in people)
        return self.resample(ratio_of_sums(values, np.ones(len(people))), len(people), turns, share=share)


def sign_flip(values: Sequence[float], *, seed: int = 0) -> float | None:
    """Return the two-sided p of "differences of people are symmetric around zero", by scipy; None for few (`MIN_CLUSTERS`).

    It is Fisher's randomization test of the mean. Up to twelve people it enumerates all signs, so the smallest p of n people
    is 2 / 2^n; for more it draws random signs.
    """
    if len(values) < MIN_CLUSTERS:
        return None
    import numpy as np
    from scipy.stats import permutation_test

    result = permutation_test(
        (np.asarray(values, float),), np.mean, permutation_type="samples", vectorized=True, n_resamples=FLIPS,
        batch=FLIPS, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.pvalue)


def without_few(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result of `closeness`, maybe of an earlier version, without intervals and tests from few clusters."""
    people: Mapping[str, Any] = result.get("people", {})
    clusters = len(people) if len(people) > 1 else result.get("conversations", 0)
    parts = {key: result[key] for key in ("arms", "paired")}
    if clusters < MIN_CLUSTERS:
        withheld = ("low", "high", "p", "p_holm", "visible")
        parts = {
            key: {
                name: {
                    measure: {part: None if part in withheld else value for part, value in estimate.items()}
                    for measure, estimate in row.items()
                }
                for name, row in rows.items()
            }
            for key, rows in parts.items()
        }
    return {**result, **parts} | ({"people": {name: without_few(own) for name, own in people.items()}} if people else {})


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values adjusted for the family-wise error rate (Holm 1979), by statsmodels."""
    from statsmodels.stats.multitest import multipletests

    if not ps:
        return []
    adjusted: Any = multipletests(list(ps), method="holm")[1]
    return adjusted.tolist()


def partial_spearman(
    xs: Sequence[float], ys: Sequence[float], covariates: Sequence[Sequence[float]], conversations: Sequence[Hashable],
    *, seed: int = 0,
) -> Estimate | None:  # fmt: skip
    """Return the partial rank correlation of two measures given covariates, with an interval from resampled conversations.

    All values are ranked; the correlation is that of the residuals of x and y after a least-squares fit on the covariates
    (Conover 1999). All sequences are by item. None for fewer than four items, or if x or y has no variance left.
    """
    if len(xs) < 4:
        return None
    import numpy as np
    from scipy.stats import rankdata

    members: dict[Hashable, list[int]] = {}
    for item, conversation in enumerate(conversations):
        members.setdefault(conversation, []).append(item)
    groups = [np.array(items) for items in members.values()]
    columns = np.column_stack([xs, ys, *zip(*covariates, strict=True)])

    def correlation(items: np.ndarray) -> float:
        ranks = rankdata(columns[items], axis=0)
        design = np.column_stack([np.ones(len(items)), ranks[:, 2:]])
        residuals = ranks[:, :2] - design @ np.linalg.lstsq(design, ranks[:, :2], rcond=None)[0]
        spread = np.sqrt((residuals**2).sum(axis=0)).prod()
        return float((residuals[:, 0] * residuals[:, 1]).sum() / spread) if spread > 1e-9 else float("nan")

    value = correlation(np.arange(len(xs)))
    if np.isnan(value):
        return None
    rng = np.random.default_rng(seed)
    draws = [
        correlation(np.concatenate([groups[place] for place in rng.integers(0, len(groups), len(groups))]))
        for _ in range(RESAMPLES)
    ]
    estimate = BootstrapDistribution(value, np.array(draws), len(xs), clusters=len(groups)).estimate()
    low, high = (None if end is None else min(1.0, max(-1.0, end)) for end in (estimate.low, estimate.high))
    return replace(estimate, low=low, high=high)


def evenly_spaced(items: Sequence[T], max_items: int | None) -> list[T]:
    """Return at most `max_items` items, evenly spaced; all of them for None."""
    if max_items is None or len(items) <= max_items:
        return list(items)
    return [items[(i * len(items)) // max_items] for i in range(max_items)]
