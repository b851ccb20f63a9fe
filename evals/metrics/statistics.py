"""Estimates with confidence intervals and tests over people, or over conversations where there are few people.

Design: turns of one conversation are not independent, nor are conversations of one person. So what counts as independent is a
person where at least `MIN_PEOPLE` are measured: Student's t of the people's own values, and a test by exact sign flips. Fewer
people say nothing about others, so the interval holds for these people alone and is over their conversations, of which there
must be `MIN_CONVERSATIONS`: Student's t with the standard error of the jackknife that leaves out a conversation at a time. Its
degrees of freedom are those of the effective number of conversations, which is smaller where their sizes differ (Carter,
Schnepel and Steigerwald 2017, "Asymptotic behavior of a t-test robust to cluster heterogeneity"). A share has the interval of
its logit. Coverage is 93 to 97% in simulations; see tests/evals/test_coverage.py, and EXPERIMENTS.md for what covers less: the
bootstrap instead of the jackknife, and the bootstrap-t instead of Student's t.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

T = TypeVar("T")

#: The fewest people with an interval and a test over people. The sign flips of five people cannot reach 5% (2 / 2^5 = 6%): a
#: verdict needs six.
MIN_PEOPLE = 5
#: The fewest conversations with an interval, a test and a verdict about fewer people: of all together, and of each of several.
#: With two of one person and twenty of another, an interval covers only 88 to 91%.
MIN_CONVERSATIONS, MIN_OWN = 8, 4
#: The level of an interval, and the power of the smallest detectable difference.
CONFIDENCE, POWER = 0.95, 0.80
#: A sign-flip test enumerates all signs up to twelve people, and draws this number of signs for more.
FLIPS = 2**12
#: Rows of weights that a statistic takes at once.
_BLOCK = 256

#: From weights of the conversations, (rows, conversations), to the statistic of each row, (rows,).
Statistic: TypeAlias = "Callable[[Floats], Floats]"
#: What an interval and a test are over.
Unit: TypeAlias = Literal["people", "conversations"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number of n turns with the ends of its 95% interval; these are None for too few people or conversations."""

    value: float
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """Return the JSON object that `--json` writes."""
        return asdict(self)


def optional_json(estimate: Estimate | None) -> dict[str, float | int | None] | None:
    """Return the JSON object of an estimate, and null without one."""
    return None if estimate is None else estimate.to_json()


@dataclass(frozen=True, slots=True)
class Inference:
    """A number of n turns with what its interval and its test need.

    Attributes:
        value: the number.
        n: its turns.
        error: its standard error; None for too few people or conversations.
        freedom: the degrees of freedom of the standard error.
        cases: the number of people or conversations; as many cases has a share without spread.
        people: each person's own number.
        unit: what the standard error and the test are over.
        share: whether the number is a share of all cases, from 0 to 1.
    """

    value: float
    n: int
    _: KW_ONLY
    error: float | None
    freedom: float
    cases: int
    people: tuple[float, ...]
    unit: Unit
    share: bool = False

    def estimate(self) -> Estimate:
        """Return the number with its interval; without one if all people or conversations agree: their spread is unknown.

        A share has the interval of its logit, and if all agree, Wilson's: each person or conversation is then one case. An
        exact binomial interval with an effective number of cases (Korn and Graubard 1998) covers 97 to 99% here.
        """
        from scipy.special import expit, logit

        if self.error is None or not (self.error or self.share):
            return Estimate(self.value, None, None, self.n)
        if self._all_agree:
            return Estimate(self.value, *self._wilson_interval(), self.n)
        half = t_quantile((1 + CONFIDENCE) / 2, self.freedom) * self.error
        low, high = self.value - half, self.value + half
        if self.share:
            half /= self.value * (1 - self.value)
            low, high = (float(expit(logit(self.value) + shift)) for shift in (-half, half))
        return Estimate(self.value, low, high, self.n)

    def p(self, null: float = 0.0, *, seed: int = 0) -> float | None:
        """Return the two-sided p of the hypothesis that the number is `null`; None for too few people or conversations.

        Over people it is that of `sign_flip`. Over conversations it is below 5% where the interval excludes `null`, which for a
        share is between 0 and 1.
        """
        from scipy.special import logit, ndtr, stdtr

        if self.unit == "people":
            return sign_flip([value - null for value in self.people], seed=seed)
        if self.error is None:
            return None
        distance, error = abs(self.value - null), self.error
        if self._all_agree:
            return float(2 * ndtr(-distance * (self.cases / (null * (1 - null))) ** 0.5))
        if self.share:
            distance, error = abs(float(logit(self.value) - logit(null))), error / (self.value * (1 - self.value))
        if not error:
            return None if distance else 1.0
        return float(2 * stdtr(self.freedom, -distance / error))

    @property
    def min_detectable_effect(self) -> float | None:
        """The smallest difference that a two-sided 5% test detects with 80% power; None without a standard error.

        It is the sum of two quantiles of t times the standard error; with many clusters (1.96 + 0.84) standard errors (Cohen
        1988, chapter 1; Miller 2024, arXiv 2411.00640).
        """
        if not self.error:
            return None
        return (t_quantile((1 + CONFIDENCE) / 2, self.freedom) + t_quantile(POWER, self.freedom)) * self.error

    @property
    def _all_agree(self) -> bool:
        """Whether a share has no spread."""
        return self.share and (not self.error or self.value * (1 - self.value) < 1e-9)

    def _wilson_interval(self) -> tuple[float, float]:
        from statsmodels.stats.proportion import proportion_confint

        ends = proportion_confint(min(1.0, max(0.0, self.value)) * self.cases, self.cases, 1 - CONFIDENCE, method="wilson")
        low, high = cast("tuple[float, float]", ends)
        return float(low), float(high)


def t_quantile(level: float, freedom: float) -> float:
    """Return the quantile of Student's t at a level from 0 to 1."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, level))


@dataclass(frozen=True, slots=True)
class Jackknife:
    """A number of one person, and its value without each of the person's conversations.

    `left_out` and `sizes`, the turns of each conversation, have the shape (conversations,). A value is not finite where the
    other conversations have no data. `share`: see `Inference`.
    """

    value: float
    left_out: Floats
    sizes: Floats
    _: KW_ONLY
    share: bool = False

    @property
    def n(self) -> int:
        """The number of turns."""
        return int(self.sizes.sum())

    @property
    def standard_error(self) -> float | None:
        """The standard error over conversations; None for a single one, or if a single one has all data."""
        import numpy as np

        conversations = len(self.sizes)
        if conversations < 2 or not np.isfinite(self.left_out).all():
            return None
        return _without_rounding(float(((conversations - 1) * self.left_out.var()) ** 0.5), self.value)

    @property
    def freedom(self) -> float:
        """The degrees of freedom of the standard error: the effective number of conversations minus one, at least 1.

        That number is the square of the turns, divided by the sum of squares of the conversations' turns. A share has one
        degree for each conversation but one: with fewer it covers 97 to 99%.
        """
        effective = len(self.sizes) if self.share else float(self.sizes.sum() ** 2 / (self.sizes**2).sum())
        return max(1.0, effective - 1)

    def inference(self) -> Inference:
        """Return what the conversations say of this person; without a standard error for few of them."""
        return mean_of_people([self])


def jackknife(statistic: Statistic, sizes: Floats, *, share: bool = False) -> Jackknife:
    """Return a statistic of one person with its value without each conversation; `sizes` are the turns of each."""
    import numpy as np

    conversations, value = np.arange(len(sizes)), float(statistic(np.ones((1, len(sizes))))[0])
    if len(sizes) == 1:
        return Jackknife(value, np.array([np.nan]), sizes, share=share)
    blocks = np.array_split(conversations, -(-len(sizes) // _BLOCK))
    left_out = [statistic((conversations != block[:, None]).astype(np.float64)) for block in blocks]
    return Jackknife(value, np.concatenate(left_out), sizes, share=share)


def person_value(value: float, n: float, *, share: bool = False) -> Jackknife:
    """Return a person's number of n turns whose values without a conversation are not known: alone it has no interval."""
    import numpy as np

    return Jackknife(value, np.array([np.nan]), np.array([float(n)]), share=share)


def unit_of(people: int) -> Unit:
    """Return what the intervals of a measurement of some people are over."""
    return "people" if people >= MIN_PEOPLE else "conversations"


def mean_of_people(people: Sequence[Jackknife], *, measured: int = 0) -> Inference:
    """Return the mean over people (at least one) of each person's own number.

    From `MIN_PEOPLE` people on, the standard error is over people: the spread of their own numbers contains that of
    conversations within people. For fewer it is over the conversations of these people, if there are `MIN_CONVERSATIONS` of
    them and of several people `MIN_OWN` each, with the degrees of freedom of Welch and Satterthwaite.

    Args:
        people: the people who have the number.
        measured: the number of people of the whole measurement, if that is larger. All its intervals have the same unit, so a
            number that fewer than `MIN_PEOPLE` of many people have is without an interval.
    """
    import numpy as np

    values = np.array([person.value for person in people])
    count, n, value = len(people), sum(person.n for person in people), float(values.mean())
    share, error = all(person.share for person in people), None
    unit = unit_of(max(count, measured))
    if unit == "people":
        if count >= MIN_PEOPLE:
            error = _without_rounding(float(values.std(ddof=1)) / count**0.5, value)
        freedom, cases = count - 1.0, count
    else:
        errors = [person.standard_error for person in people]
        freedoms = np.array([person.freedom for person in people])
        freedom, cases = float(freedoms.sum()), sum(len(person.sizes) for person in people)
        own = min(len(person.sizes) for person in people)
        if cases >= MIN_CONVERSATIONS and (count == 1 or own >= MIN_OWN) and None not in errors:
            variances = np.array(errors, float) ** 2
            error = float(variances.sum()) ** 0.5 / count
            freedom = float(variances.sum() ** 2 / (variances**2 / freedoms).sum()) if error else freedom
    return Inference(value, n, error=error, freedom=freedom, cases=cases, people=tuple(values.tolist()), unit=unit, share=share)


def _without_rounding(error: float, value: float) -> float:
    """Return a standard error, 0 where it is only the rounding error of equal values."""
    return 0.0 if error <= 1e-9 * max(1.0, abs(value)) else error


def ratio(
    numerators: Sequence[float], denominators: Sequence[float], conversations: Sequence[Hashable], *, share: bool = False
) -> Estimate | None:
    """Return the ratio of two sums over turns, with an interval over conversations.

    All sequences are by turn. `share`: whether the ratio is a share of all cases. None without turns, or if all denominators
    are 0.
    """
    inference = ratio_inference(numerators, denominators, conversations, share=share)
    return inference and inference.estimate()


def ratio_inference(
    numerators: Sequence[float], denominators: Sequence[float], conversations: Sequence[Hashable], *, share: bool = False
) -> Inference | None:
    """Return `ratio` with what its interval and its test need."""
    return mean_over_people(numerators, [None] * len(numerators), conversations, denominators=denominators, share=share)


def mean(values: Sequence[float], conversations: Sequence[Hashable], *, share: bool = False) -> Estimate | None:
    """Return the mean over turns, with an interval over conversations; None without turns. `share`: see `ratio`."""
    return ratio(values, [1.0] * len(values), conversations, share=share)


def mean_over_people(
    numerators: Sequence[float], people: Sequence[Hashable], conversations: Sequence[Hashable], *,
    denominators: Sequence[float] | None = None, share: bool = False, measured: int = 0,
) -> Inference | None:  # fmt: skip
    """Return the mean over people of each person's ratio of sums; people have equal weight.

    All sequences are by turn. Names of conversations need to differ within a person only. Denominators are ones if None; people
    whose denominators sum to 0 are left out. `share`: see `ratio`; `measured`: see `mean_of_people`. None if no person has a
    ratio.
    """
    denominators = [1.0] * len(numerators) if denominators is None else denominators
    rows: dict[Hashable, list[tuple[float, float, Hashable]]] = {}
    for numerator, denominator, person, conversation in zip(numerators, denominators, people, conversations, strict=True):
        rows.setdefault(person, []).append((numerator, denominator, conversation))
    ratios: list[Jackknife] = []
    for own in rows.values():
        above, below, where = zip(*own, strict=True)
        if sum(below):
            statistic = ratio_of_sums(sums_by_conversation(above, where), sums_by_conversation(below, where))
            ratios.append(jackknife(statistic, turns_by_conversation(where), share=share))
    return mean_of_people(ratios, measured=max(measured, len(rows))) if ratios else None


def sums_by_conversation(values: Sequence[float], conversations: Sequence[Hashable]) -> Floats:
    """Return the sum of the values of each conversation, in order of appearance; shape (conversations,)."""
    import numpy as np

    sums: dict[Hashable, float] = {}
    for value, conversation in zip(values, conversations, strict=True):
        sums[conversation] = sums.get(conversation, 0.0) + value
    return np.fromiter(sums.values(), float, len(sums))


def turns_by_conversation(conversations: Sequence[Hashable]) -> Floats:
    """Return the number of turns of each conversation, in order of appearance; shape (conversations,)."""
    return sums_by_conversation([1.0] * len(conversations), conversations)


def ratio_of_sums(above: Floats, below: Floats) -> Statistic:
    """Return the ratio of two sums over conversations as a statistic; it is not finite where the second sum is 0."""

    def statistic(weights: Floats) -> Floats:
        import numpy as np

        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ above) / (weights @ below)

    return statistic


def sign_flip(values: Sequence[float], *, seed: int = 0) -> float | None:
    """Return the two-sided p of "differences of people are symmetric around zero", by scipy; None for few (`MIN_PEOPLE`).

    It is Fisher's randomization test of the mean. Up to twelve people it enumerates all signs, so the smallest p of n people
    is 2 / 2^n; for more it draws random signs.
    """
    if len(values) < MIN_PEOPLE:
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


def add_holm(family: Sequence[dict[str, Any]]) -> None:
    """Add to each test of a family, an object with `p`, its adjusted `p_holm`; None for a test without p."""
    tested = [test for test in family if test["p"] is not None]
    for test in family:
        test["p_holm"] = None
    for test, p in zip(tested, holm([test["p"] for test in tested]), strict=True):
        test["p_holm"] = p


def evenly_spaced(items: Sequence[T], max_items: int | None) -> list[T]:
    """Return at most `max_items` items, evenly spaced; all of them for None."""
    if max_items is None or len(items) <= max_items:
        return list(items)
    return [items[(i * len(items)) // max_items] for i in range(max_items)]
