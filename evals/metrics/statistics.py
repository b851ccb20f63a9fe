"""Estimates with intervals.

The one design choice: turns of one conversation are not independent, nor are conversations of one person, so every interval
resamples whole conversations and, where there are several people, people (a two-level bootstrap); and a statistic is a
function of how often each conversation was drawn. So all that is measured in one run is drawn alike, hence paired, and a
ratio of sums is two matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

#: Bootstrap resamples, and how much of them an interval holds.
RESAMPLES, CONFIDENCE = 4999, 0.95
#: Resamples where each takes long.
FEW_RESAMPLES = 999
#: A sign-flip test takes every sign for up to twelve people, and so many at random for more.
FLIPS = 2**12
#: The power at which the smallest visible difference is told.
POWER = 0.80

#: From how often each conversation was drawn, (resamples, conversations), to the statistic of each resample, (resamples,).
Statistic: TypeAlias = "Callable[[Floats], Floats]"


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
    above, below = sums(numerators, conversations), sums(denominators, conversations)
    return Resampling(seed).person(of_sums(above, below), len(above), len(numerators)).estimate()


def mean(values: Sequence[float], conversations: Sequence[Hashable], *, seed: int = 0) -> Estimate | None:
    """The mean over turns, with an interval from resampling conversations; None if there is no turn."""
    return ratio(values, [1.0] * len(values), conversations, seed=seed)


def mean_over_people(
    numerators: Sequence[float],
    people: Sequence[Hashable],
    conversations: Sequence[Hashable],
    *,
    denominators: Sequence[float] | None = None,
    seed: int = 0,
) -> tuple[Drawn, tuple[float, ...]] | None:
    """The mean over people of each person's ratio of sums, by the two-level bootstrap; people weigh the same.

    Args:
        numerators: one for each turn.
        people: whose turn each is.
        conversations: which conversation each is from; the names need only differ within a person.
        denominators: one for each turn; ones if there are none. A person for whom they sum up to 0 is left out.
        seed: for the resampling.

    Returns:
        What was drawn (`.estimate()`, `.visible`), and each person's own ratio in order of appearance, for `sign_flip`;
        None if nothing was measured of anybody.
    """
    under = [1.0] * len(numerators) if denominators is None else denominators
    rows: dict[Hashable, list[tuple[float, float, Hashable]]] = {}
    for over, below, person, conversation in zip(numerators, under, people, conversations, strict=True):
        rows.setdefault(person, []).append((over, below, conversation))
    draws = Resampling(seed)
    found: list[Drawn] = []
    for own in rows.values():
        if sum(row[1] for row in own):
            where = [row[2] for row in own]
            over, below = sums([row[0] for row in own], where), sums([row[1] for row in own], where)
            found.append(draws.person(of_sums(over, below), len(over), len(own)))
    return (draws.people(found), tuple(one.value for one in found)) if found else None


def sums(values: Sequence[float], conversations: Sequence[Hashable]) -> Floats:
    """The sum of the values of each conversation, in order of appearance; shape (conversations,)."""
    import numpy as np

    found: dict[Hashable, float] = {}
    for value, conversation in zip(values, conversations, strict=True):
        found[conversation] = found.get(conversation, 0.0) + value
    return np.fromiter(found.values(), float, len(found))


def of_sums(above: Floats, below: Floats) -> Statistic:
    """The ratio of two sums over conversations, as a statistic of how often each was drawn; 0 where nothing is below."""

    def statistic(weights: Floats) -> Floats:
        import numpy as np

        return (weights @ above) / np.maximum(weights @ below, 1e-12)

    return statistic


@dataclass(frozen=True, slots=True)
class Drawn:
    """A number, and what it is in each resample.

    Attributes:
        value: the number.
        draws: it in each resample, shape (resamples,); not finite where a resample has nothing to reckon it from. None if
            there is only one conversation.
        n: the number of turns it rests on.
    """

    value: float
    draws: Floats | None
    n: int

    def estimate(self) -> Estimate:
        """With the percentile interval; without one if most resamples have nothing to reckon the number from."""
        import numpy as np

        finite = self._finite()
        if finite is None:
            return Estimate(self.value, None, None, self.n)
        low, high = np.percentile(finite, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
        return Estimate(self.value, float(low), float(high), self.n)

    @property
    def visible(self) -> float | None:
        """The smallest difference that a two-sided 5% test of this spread sees with 80% power: 2.8 standard errors.

        (1.96 + 0.84) standard errors (Cohen 1988, chapter 1; Miller 2024, arXiv 2411.00640), the standard error being the
        standard deviation of the resamples. None without resamples.
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
    """Draws of conversations and of people, made once for a measurement and used for every number in it.

    Two numbers of the same conversations are thus drawn alike, so that the difference of two `Drawn.draws` is the paired
    difference. Of several people, each resample draws as many people, with replacement, and for each time a person is drawn
    other conversations of theirs (Davison and Hinkley 1997, 3.8). With few people the interval is too narrow, as any
    bootstrap of few things is: report the sign-flip test beside it.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._weights: dict[tuple[int, int], Floats] = {}
        self._chosen: dict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def weights(self, conversations: int, resamples: int = RESAMPLES) -> Floats:
        """How often each of so many conversations is drawn, (resamples, conversations); a row sums up to their number."""
        key = conversations, resamples
        if key not in self._weights:
            import numpy as np

            drawn = np.random.default_rng(self._seed).integers(0, conversations, (resamples, conversations))
            places = (drawn + conversations * np.arange(resamples)[:, None]).ravel()
            counts = np.bincount(places, minlength=resamples * conversations)
            self._weights[key] = counts.reshape(resamples, conversations).astype(np.float64)
        return self._weights[key]

    def person(
        self, statistic: Statistic, conversations: int, n: int, *, resamples: int = RESAMPLES, centred: bool = False
    ) -> Drawn:
        """One person's number: conversations are resampled.

        Args:
            statistic: what to reckon of conversations that were drawn so and so often.
            conversations: how many there are, at least 1.
            n: the number of turns it rests on.
            resamples: how many; the same for all that is to be paired or averaged.
            centred: take out the bias of the resamples (their mean minus the number itself; Efron and Tibshirani 1993,
                chapter 10). For distances of distributions: a resample has fewer different conversations than there are, which
                alone puts distributions further apart.
        """
        import numpy as np

        value = float(statistic(np.ones((1, conversations)))[0])
        draws = statistic(self.weights(conversations, resamples)) if conversations > 1 else None
        if centred and draws is not None:
            draws = draws - (draws.mean() - value)
        return Drawn(value, draws, n)

    def people(self, found: Sequence[Drawn]) -> Drawn:
        """The mean over people of their numbers: people are resampled, and the conversations of each who is drawn.

        Args:
            found: each person's number, at least one, all with as many resamples; who has one conversation keeps it.
        """
        if len(found) == 1:
            return found[0]
        import numpy as np

        resamples = max((len(one.draws) for one in found if one.draws is not None), default=RESAMPLES)
        pools = np.stack([np.full(resamples, one.value) if one.draws is None else one.draws for one in found])
        who, which = self._drawn_people(len(found), resamples)
        value = float(np.mean([one.value for one in found]))
        drawn = np.ma.masked_invalid(pools[who, which]).mean(axis=1)  # of those of whom the resample has something
        return Drawn(value, np.ma.filled(drawn, np.nan), sum(one.n for one in found))

    def _drawn_people(self, people: int, resamples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Who is drawn, and which resample of their conversations each time; both of shape (resamples, people)."""
        key = people, resamples
        if key not in self._chosen:
            import numpy as np

            rng = np.random.default_rng([self._seed, people])
            size = (resamples, people)
            self._chosen[key] = rng.integers(0, people, size), rng.integers(0, resamples, size)
        return self._chosen[key]


def sign_flip(values: Sequence[float], *, seed: int = 0) -> float | None:
    """The two-sided p of "these people's differences are as likely below zero as above it", by flipping their signs.

    Fisher's randomisation test of the mean, by scipy: every sign for up to twelve people, so that the smallest p of n people
    is 2 / 2^n, and random signs for more.

    Returns:
        p; None for fewer than two people.
    """
    if len(values) < 2:
        return None
    import numpy as np
    from scipy.stats import permutation_test

    found = permutation_test(
        (np.asarray(values, float),), np.mean, permutation_type="samples", vectorized=True, n_resamples=FLIPS,
        batch=FLIPS, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """The ps of a family of tests, adjusted so that the chance of any false finding is bounded (Holm 1979), by statsmodels."""
    if not ps:
        return []
    import numpy as np
    from statsmodels.stats.multitest import multipletests

    _, adjusted, *_ = multipletests(list(ps), method="holm")
    return np.asarray(adjusted).tolist()


def wilson(successes: float, n: int) -> Estimate | None:
    """A share with Wilson's interval (1927), by statsmodels; it takes turns for independent, so show it beside another one.

    Args:
        successes: how many; a tie may count a half.
        n: of how many.

    Returns:
        The estimate; None if there were none.
    """
    if not n:
        return None
    from statsmodels.stats.proportion import proportion_confint

    ends: Any = proportion_confint(successes, n, alpha=1 - CONFIDENCE, method="wilson")
    return Estimate(successes / n, float(ends[0]), float(ends[1]), n)


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
        for _ in range(FEW_RESAMPLES)
    ]
    low, high = np.nanpercentile(drawn, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return Estimate(value, float(low), float(high), len(xs))


T = TypeVar("T")


def evenly_spaced(items: Sequence[T], most: int | None) -> list[T]:
    """At most so many items, spread evenly."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[(i * len(items)) // most] for i in range(most)]
