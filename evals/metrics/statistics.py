"""Estimates with confidence intervals, by a bootstrap over people and conversations.

Design: turns of one conversation are not independent, nor are conversations of one person. So every interval resamples whole
conversations and, for several people, people (a two-level bootstrap). A statistic is a function of how often each conversation
was drawn: all numbers of a run share the draws, so differences are paired, and a ratio of sums is two matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

T = TypeVar("T")

#: Bootstrap resamples, and the level of an interval.
RESAMPLES, CONFIDENCE = 4999, 0.95
#: Resamples of a statistic that is slow to compute.
FEW_RESAMPLES = 999
#: A sign-flip test enumerates all signs up to twelve people, and draws this number of signs for more.
FLIPS = 2**12
#: The power of the smallest detectable difference.
POWER = 0.80

#: From how often each conversation was drawn, (resamples, conversations), to the statistic of each resample, (resamples,).
Statistic: TypeAlias = "Callable[[Floats], Floats]"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number of n turns with the ends of its 95% interval; these are None for fewer than two conversations."""

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
    numerators: Sequence[float], denominators: Sequence[float], conversations: Sequence[Hashable], *, seed: int = 0
) -> Estimate | None:
    """Return the ratio of two sums over turns, with a percentile interval from resampled conversations.

    All sequences are by turn. None without turns, or if the denominators sum to 0.
    """
    if not numerators or not sum(denominators):
        return None
    above, below = sums_by_conversation(numerators, conversations), sums_by_conversation(denominators, conversations)
    return Resampling(seed).resample_person(ratio_of_sums(above, below), len(above), len(numerators)).estimate()


def mean(values: Sequence[float], conversations: Sequence[Hashable], *, seed: int = 0) -> Estimate | None:
    """Return the mean over turns, with an interval from resampled conversations; None without turns."""
    return ratio(values, [1.0] * len(values), conversations, seed=seed)


def mean_over_people(
    numerators: Sequence[float], people: Sequence[Hashable], conversations: Sequence[Hashable], *,
    denominators: Sequence[float] | None = None, seed: int = 0,
) -> tuple[BootstrapDistribution, tuple[float, ...]] | None:  # fmt: skip
    """Return the mean over people of each person's ratio of sums, by the two-level bootstrap; people have equal weight.

    All sequences are by turn. Names of conversations need to differ within a person only. Denominators are ones if None; people
    whose denominators sum to 0 are left out.

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
            distributions.append(resampling.resample_person(ratio_of_sums(above, below), len(above), len(own)))
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
    """A number of n turns, and its value in each bootstrap resample.

    `draws` has shape (resamples,). It is not finite where a resample has no data, and None for a single conversation.
    """

    value: float
    draws: Floats | None
    n: int

    def estimate(self) -> Estimate:
        """Return the number with its percentile interval; without one if most resamples are not finite."""
        import numpy as np

        finite = self._finite()
        if finite is None:
            return Estimate(self.value, None, None, self.n)
        low, high = np.percentile(finite, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
        return Estimate(self.value, float(low), float(high), self.n)

    @property
    def min_detectable_effect(self) -> float | None:
        """The smallest difference that a two-sided 5% test detects with 80% power; None without resamples.

        It is (1.96 + 0.84) standard errors (Cohen 1988, chapter 1; Miller 2024, arXiv 2411.00640). The standard error is the
        standard deviation of the resamples.
        """
        finite = self._finite()
        if finite is None:
            return None
        normal = NormalDist()
        return (normal.inv_cdf((1 + CONFIDENCE) / 2) + normal.inv_cdf(POWER)) * float(finite.std(ddof=1))

    def _finite(self) -> Floats | None:
        if self.draws is None:
            return None
        import numpy as np

        finite = self.draws[np.isfinite(self.draws)]
        return finite if 2 * len(finite) > len(self.draws) else None


class Resampling:
    """Bootstrap draws of conversations and of people, shared by all numbers of a measurement.

    Numbers of the same conversations share their draws, so the difference of two `BootstrapDistribution.draws` is the paired
    difference. For several people, each resample draws as many people with replacement, and other conversations each time a
    person is drawn (Davison and Hinkley 1997, 3.8). With few people the interval is too narrow, as with every bootstrap of
    few clusters: report the sign-flip test beside it.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._weights: dict[tuple[int, int], Floats] = {}
        self._people: dict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def weights(self, conversations: int, resamples: int = RESAMPLES) -> Floats:
        """Return how often each conversation is drawn, shape (resamples, conversations); rows sum to `conversations`."""
        key = conversations, resamples
        if key not in self._weights:
            import numpy as np

            drawn = np.random.default_rng(self._seed).integers(0, conversations, (resamples, conversations))
            places = (drawn + conversations * np.arange(resamples)[:, None]).ravel()
            counts = np.bincount(places, minlength=resamples * conversations)
            self._weights[key] = counts.reshape(resamples, conversations).astype(np.float64)
        return self._weights[key]

    def resample_person(
        self, statistic: Statistic, conversations: int, n: int, *, resamples: int = RESAMPLES, bias_corrected: bool = False
    ) -> BootstrapDistribution:
        """Return the distribution of one person's number of n turns, from resampled conversations (at least 1).

        Distributions that are paired or averaged need the same number of resamples. `bias_corrected` subtracts the bias of
        the resamples (their mean minus the number; Efron and Tibshirani 1993, chapter 10). It is for distances of
        distributions: a resample has fewer distinct conversations, which alone increases the distance.
        """
        import numpy as np

        value = float(statistic(np.ones((1, conversations)))[0])
        draws = statistic(self.weights(conversations, resamples)) if conversations > 1 else None
        if bias_corrected and draws is not None:
            draws = draws - (draws.mean() - value)
        return BootstrapDistribution(value, draws, n)

    def resample_people(self, people: Sequence[BootstrapDistribution]) -> BootstrapDistribution:
        """Return the distribution of the mean over people (at least one), from resampled people and conversations.

        All people have equally many resamples; one with a single conversation contributes the same value to every resample.
        """
        if len(people) == 1:
            return people[0]
        import numpy as np

        resamples = max((len(person.draws) for person in people if person.draws is not None), default=RESAMPLES)
        pools = np.stack([np.full(resamples, person.value) if person.draws is None else person.draws for person in people])
        key = len(people), resamples
        if key not in self._people:
            rng, size = np.random.default_rng([self._seed, len(people)]), (resamples, len(people))
            self._people[key] = rng.integers(0, len(people), size), rng.integers(0, resamples, size)
        who, which = self._people[key]  # the people drawn, and the resample of the conversations of each
        value = float(np.mean([person.value for person in people]))
        draws = np.ma.masked_invalid(pools[who, which]).mean(axis=1)  # over the people who have a finite value
        return BootstrapDistribution(value, np.ma.filled(draws, np.nan), sum(person.n for person in people))


def sign_flip(values: Sequence[float], *, seed: int = 0) -> float | None:
    """Return the two-sided p of "differences of people are symmetric around zero", by scipy; None for fewer than two people.

    It is Fisher's randomization test of the mean. Up to twelve people it enumerates all signs, so the smallest p of n people
    is 2 / 2^n; for more it draws random signs.
    """
    if len(values) < 2:
        return None
    import numpy as np
    from scipy.stats import permutation_test

    result = permutation_test(
        (np.asarray(values, float),), np.mean, permutation_type="samples", vectorized=True, n_resamples=FLIPS,
        batch=FLIPS, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.pvalue)


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
        for _ in range(FEW_RESAMPLES)
    ]
    return BootstrapDistribution(value, np.array(draws) if len(groups) > 1 else None, len(xs)).estimate()


def evenly_spaced(items: Sequence[T], max_items: int | None) -> list[T]:
    """Return at most `max_items` items, evenly spaced; all of them for None."""
    if max_items is None or len(items) <= max_items:
        return list(items)
    return [items[(i * len(items)) // max_items] for i in range(max_items)]
