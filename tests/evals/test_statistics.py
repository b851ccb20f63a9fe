"""Estimates and tests: known values, clustered intervals, and properties of any input."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, rankdata, spearmanr, t, ttest_1samp

from usertwin.evals import Estimate, mean, ratio
from usertwin.evals.metrics import statistics
from usertwin.evals.metrics.statistics import (
    MIN_CLUSTERS,
    RESAMPLES,
    BootstrapDistribution,
    Resampling,
    holm,
    mean_over_people,
    partial_spearman,
    ratio_of_sums,
    sign_flip,
    without_few,
)

numbers = st.floats(-1e3, 1e3, allow_nan=False, width=32)
#: Turns as (numerator, denominator above 0, conversation), of enough conversations for an interval.
turns = st.lists(st.tuples(numbers, st.floats(0.5, 50, width=32), st.integers(0, 9)), min_size=6, max_size=20).filter(
    lambda rows: len({row[2] for row in rows}) >= MIN_CLUSTERS
)
few = settings(max_examples=30, deadline=None)


def test_a_mean_is_the_mean_of_the_turns() -> None:
    result = mean([1.0, 2.0, 6.0], ["a", "a", "b"])
    assert result is not None
    assert result.value == pytest.approx(3.0)
    assert result.n == 3


def test_a_ratio_divides_the_sums_and_does_not_average_the_quotients() -> None:
    result = ratio([1.0, 9.0], [1.0, 3.0], ["a", "b"])
    assert result is not None
    assert result.value == pytest.approx(2.5)  # (1 + 9) / (1 + 3); the mean of the quotients would be 2


def test_no_turn_gives_no_estimate() -> None:
    assert mean([], []) is None


def test_a_zero_denominator_gives_no_estimate() -> None:
    assert ratio([0.0, 0.0], [0.0, 0.0], ["a", "b"]) is None


@pytest.mark.parametrize("conversations", range(1, MIN_CLUSTERS))
def test_few_conversations_have_a_value_but_no_interval(conversations: int) -> None:
    where = [number % conversations for number in range(60)]
    assert mean(list(map(float, range(60))), where) == Estimate(29.5, None, None, 60)
    assert mean([1.0] * 60, where, share=True) == Estimate(1.0, None, None, 60)


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0, 2.0], [1.0], ["a", "b"])


def test_conversations_that_agree_have_no_interval_unless_they_are_a_share() -> None:
    """Nothing says how far the next conversation may be from them. A share has the exact interval of so many cases."""
    where = [number // 2 for number in range(16)]
    assert mean([0.25] * 16, where) == Estimate(0.25, None, None, 16)
    assert mean([1.0] * 16, where, share=True) == Estimate(1.0, pytest.approx(0.025 ** (1 / 8)), 1.0, 16)
    assert mean([0.0] * 16, where, share=True) == Estimate(0.0, 0.0, pytest.approx(1 - 0.025 ** (1 / 8)), 16)
    half = mean([0.0, 1.0] * 8, where, share=True)
    assert half is not None
    assert half.low is not None
    assert 0.15 < half.low < 0.25  # no surer than 16 independent cases


def test_interval_of_few_conversations_is_that_of_students_t() -> None:
    values = [1.0, 2.0, 4.0, 3.0, 5.0, 2.5, 3.5]
    result = mean(values, range(7))
    assert result is not None
    low, high = ttest_1samp(values, 0).confidence_interval()
    assert (result.low, result.high) == (pytest.approx(low, abs=0.1), pytest.approx(high, abs=0.1))


def test_interval_of_independent_turns_is_1_96_standard_errors() -> None:
    rng = random.Random(7)
    values = [rng.gauss(5, 2) for _ in range(200)]
    result = mean(values, range(200))
    assert result is not None
    assert result.low is not None
    assert result.high is not None
    half = 1.96 * stdev(values) / math.sqrt(200)
    assert result.low == pytest.approx(fmean(values) - half, abs=0.2 * half)
    assert result.high == pytest.approx(fmean(values) + half, abs=0.2 * half)


def test_turns_of_one_conversation_do_not_count_as_independent() -> None:
    """Ten conversations of ten like turns say as much as ten turns: the interval is about sqrt(10) times as wide."""
    rng = random.Random(3)
    levels = [rng.gauss(0, 1) for _ in range(10)]
    values = [level for level in levels for _ in range(10)]
    clustered, loose = mean(values, [i // 10 for i in range(100)]), mean(values, range(100))
    assert clustered is not None
    assert loose is not None
    assert clustered.value == pytest.approx(loose.value)
    assert _width(clustered) / _width(loose) == pytest.approx(math.sqrt(10), rel=0.2)


def test_a_conversation_with_a_zero_denominator_adds_its_numerator() -> None:
    result = ratio([2.0, 2.0, 0.0] * 4, [2.0, 4.0, 0.0] * 4, range(12), share=True)
    assert result is not None
    assert result.value == pytest.approx(4 / 6)
    assert result.low is not None
    assert result.high is not None
    assert 0 <= result.low < result.value < result.high <= 1


@pytest.mark.parametrize(
    ("low", "high", "excludes"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 1.0, False)]
)
def test_an_interval_excludes_zero_if_it_lies_on_one_side(low: float, high: float, excludes: bool) -> None:
    assert Estimate(0.0, low, high, 5).excludes_zero is excludes


def test_without_an_interval_zero_is_not_excluded() -> None:
    assert not Estimate(9.0, None, None, 5).excludes_zero


def test_to_json_has_four_keys() -> None:
    assert Estimate(1.5, None, 2.0, 3).to_json() == {"value": 1.5, "low": None, "high": 2.0, "n": 3}


@few
@given(turns)
def test_the_same_seed_gives_the_same_interval(rows: list[tuple[float, float, int]]) -> None:
    assert _ratio(rows, seed=5) == _ratio(rows, seed=5)


@few
@given(turns)
def test_the_interval_is_around_the_value_and_n_counts_turns(rows: list[tuple[float, float, int]]) -> None:
    result = _ratio(rows)
    assert result.n == len(rows)
    if result.low is not None:  # the conversations differ
        assert result.high is not None
        assert result.low < result.value < result.high
        assert result.value - result.low == pytest.approx(result.high - result.value)


@few
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=6, max_size=40))
def test_the_interval_of_a_share_lies_within_0_and_1_and_has_a_width(rows: list[tuple[bool, int]]) -> None:
    result = mean([float(hit) for hit, _ in rows], [where for _, where in rows], share=True)
    assert result is not None
    assert (result.low is None) == (len({where for _, where in rows}) < MIN_CLUSTERS)
    if result.low is not None:
        assert result.high is not None
        assert 0 <= result.low <= result.value <= result.high <= 1
        assert result.high - result.low > 0.05


@few
@given(turns, st.floats(-100, 100))
def test_adding_a_constant_shifts_value_and_interval(rows: list[tuple[float, float, int]], step: float) -> None:
    where = [row[2] for row in rows]
    plain, moved = mean([row[0] for row in rows], where), mean([row[0] + step for row in rows], where)
    assert plain is not None
    assert moved is not None
    for before, after in ((plain.value, moved.value), (plain.low, moved.low), (plain.high, moved.high)):
        assert (before is None) == (after is None)
        assert before is None or after == pytest.approx(before + step, abs=1e-4)


@few
@given(turns, st.randoms(use_true_random=False))
def test_the_order_of_turns_within_conversations_does_not_matter(
    rows: list[tuple[float, float, int]], rng: random.Random
) -> None:
    by_conversation = sorted(rows, key=lambda row: row[2])
    shuffled = sorted(rng.sample(rows, len(rows)), key=lambda row: row[2])
    one, other = _ratio(by_conversation), _ratio(shuffled)
    assert other.value == pytest.approx(one.value, rel=1e-9, abs=1e-6)
    assert other.low == (one.low and pytest.approx(one.low, rel=1e-9, abs=1e-6))
    assert other.high == (one.high and pytest.approx(one.high, rel=1e-9, abs=1e-6))


# Partial rank correlation ----------------------------------------------------------------------------------------------

#: Items as (x, y, two covariates, conversation), of which there are enough to be correlated.
measured = st.lists(
    st.tuples(*[st.integers(-20, 20)] * 4, st.integers(0, 7)), min_size=4, max_size=20
)  # fmt: skip


def test_partial_correlation_equals_the_textbook_formula() -> None:
    """(r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2)) of the ranks, here of five: 1 - 6 sum d^2 / 120."""
    x, y, z = [1, 2, 3, 4, 5], [2, 1, 4, 3, 5], [3, 1, 2, 5, 4]
    xy, xz, yz = 1 - 6 * 4 / 120, 1 - 6 * 8 / 120, 1 - 6 * 10 / 120
    result = partial_spearman(x, y, [[one] for one in z], list("aabbc"))
    assert result is not None
    assert result.value == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)))
    assert result.n == 5


def test_without_covariates_it_is_spearmans_correlation() -> None:
    rng = random.Random(1)
    x = [rng.gauss(0, 1) for _ in range(30)]
    y = [one + rng.gauss(0, 1) for one in x]
    result = partial_spearman(x, y, [[] for _ in x], range(30))
    assert result is not None
    assert result.value == pytest.approx(spearmanr(x, y).statistic)


@few
@given(measured)
def test_partial_correlation_is_the_correlation_of_rank_residuals(rows: list[tuple[int, int, int, int, int]]) -> None:
    """Against residuals by numpy's pseudo-inverse and scipy's correlation; where nothing is left, there is no estimate."""
    x, y, *covariates, _ = (list(column) for column in zip(*rows, strict=True))
    ranks = [rankdata(column) for column in covariates]
    design = np.column_stack([np.ones(len(rows)), *ranks])
    left = [rankdata(one) - design @ (np.linalg.pinv(design) @ rankdata(one)) for one in (x, y)]
    result = partial_spearman(x, y, list(zip(*covariates, strict=True)), [0] * len(rows))  # a single conversation: no resamples
    if min(float((one**2).sum()) for one in left) < 1e-9:
        assert result is None
    else:
        assert result is not None
        assert result.value == pytest.approx(float(pearsonr(*left).statistic), abs=1e-6)


def test_partial_correlation_removes_only_the_covariates() -> None:
    """Score and benefit both follow length, and nothing else; then both follow something hidden too."""
    rng = random.Random(2)
    length = [rng.gauss(0, 1) for _ in range(400)]
    hidden = [rng.gauss(0, 1) for _ in range(400)]
    for share, low, high in ((0.0, -0.1, 0.1), (1.0, 0.4, 0.6)):
        x, y = ([z + share * h + rng.gauss(0, 1) for z, h in zip(length, hidden, strict=True)] for _ in range(2))
        assert spearmanr(x, y).statistic > 0.35
        result = partial_spearman(x, y, [[z] for z in length], [i // 10 for i in range(400)])
        assert result is not None
        assert low < result.value < high
        assert result.excludes_zero is (share > 0)


def test_a_perfect_order_beside_an_unrelated_covariate_is_one() -> None:
    result = partial_spearman([1, 2, 3, 4, 5, 6], [10, 20, 30, 40, 50, 60], [[z] for z in (3, 1, 2, 2, 1, 3)], list("aabbcc"))
    assert result is not None
    assert result.value == pytest.approx(1)


@pytest.mark.parametrize(
    ("x", "y", "covariates"),
    [
        ([], [], []),
        ([1, 2, 3], [1, 2, 3], [[1], [2], [1]]),
        ([1, 1, 1, 1, 1], [1, 2, 3, 4, 5], [[1], [2], [1], [2], [1]]),
        ([1, 2, 3, 4, 5], [7, 7, 7, 7, 7], [[1], [2], [1], [2], [1]]),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], [[1], [2], [3], [4], [5]]),
    ],
    ids=["nothing", "three items", "x is all one", "y is all one", "x is the covariate"],
)
def test_no_variance_gives_no_correlation(x: list[int], y: list[int], covariates: list[list[int]]) -> None:
    assert partial_spearman(x, y, covariates, [i // 2 for i in range(len(x))]) is None


def test_a_correlation_in_one_conversation_has_no_interval() -> None:
    result = partial_spearman([1, 2, 3, 4], [1, 3, 2, 4], [[1], [1], [1], [1]], ["a"] * 4)
    assert result is not None
    assert (result.value, result.low, result.high, result.n) == (pytest.approx(0.8), None, None, 4)


def test_equal_items_of_a_conversation_do_not_narrow_the_interval() -> None:
    """Twenty conversations of six like items say as much as twenty items: the interval by conversation is wider."""
    rng = random.Random(4)
    hidden = [rng.gauss(0, 1) for _ in range(20)]
    x, y = ([one for one in (h + rng.gauss(0, 1) for h in hidden) for _ in range(6)] for _ in range(2))
    result = [partial_spearman(x, y, [[]] * 120, where, seed=1) for where in ([i // 6 for i in range(120)], range(120))]
    clustered, loose = result
    assert clustered is not None
    assert loose is not None
    assert clustered.value == loose.value
    assert _width(clustered) > 2 * _width(loose)
    assert clustered == partial_spearman(x, y, [[]] * 120, [i // 6 for i in range(120)], seed=1)


@few
@given(measured, st.sampled_from([lambda v: 3 * v - 7, lambda v: v**3, lambda v: math.exp(v / 9), math.atan]))
def test_partial_correlation_depends_on_ranks_only(
    rows: list[tuple[int, int, int, int, int]], monotone: Callable[[float], float]
) -> None:
    x, y, covariates, where = [r[0] for r in rows], [r[1] for r in rows], [r[2:4] for r in rows], [r[4] for r in rows]
    bent_covariates = [(monotone(first), monotone(second)) for first, second in covariates]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 99)  # equal ranks give equal intervals with any number of resamples
        plain = partial_spearman(x, y, covariates, where)
        bent = partial_spearman([*map(monotone, x)], [*map(monotone, y)], bent_covariates, where)
        flipped = partial_spearman([-value for value in x], y, covariates, where)
    assert (plain is None) == (bent is None) == (flipped is None)
    if plain is not None and bent is not None and flipped is not None:
        assert bent == plain
        assert flipped.value == pytest.approx(-plain.value, abs=1e-6)
        assert -1 - 1e-9 <= plain.value <= 1 + 1e-9
        for end in (plain.low, plain.high):
            assert end is None or -1 - 1e-9 <= end <= 1 + 1e-9


def _ratio(rows: list[tuple[float, float, int]], seed: int = 0) -> Estimate:
    result = ratio([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], seed=seed)
    assert result is not None
    return result


def _width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


# Several people ---------------------------------------------------------------------------------------------------------


def test_for_one_person_the_mean_over_people_equals_the_ratio() -> None:
    rng = random.Random(5)
    over, under = [rng.gauss(3, 1) for _ in range(60)], [rng.uniform(1, 9) for _ in range(60)]
    where = [i // 4 for i in range(60)]
    result = mean_over_people(over, ["Ann"] * 60, where, denominators=under, seed=3)
    assert result is not None
    assert result[0].estimate() == ratio(over, under, where, seed=3)
    assert result[1] == (pytest.approx(sum(over) / sum(under)),)


def test_people_have_equal_weight() -> None:
    result = mean_over_people([1.0] * 90 + [3.0] * 10, ["Ann"] * 90 + ["Bob"] * 10, list(range(100)))
    assert result is not None
    drawn, each = result
    assert (drawn.value, drawn.n, each) == (2.0, 100, (1.0, 3.0))


def test_interval_of_several_people_is_students_t_of_their_own_means() -> None:
    """However many conversations each has: people are what differs."""
    levels = [1.0, 2.5, 2.0, 4.0, 3.0, 1.5, 3.5]
    people = [person for person in range(7) for _ in range(40)]
    result = mean_over_people([levels[person] for person in people], people, list(range(280)))
    assert result is not None
    estimate = result[0].estimate()
    low, high = ttest_1samp(levels, 0).confidence_interval()
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=0.1), pytest.approx(high, abs=0.1))
    few = mean_over_people([1.0, 2.0] * 100, ["Ann", "Bob"] * 100, [number // 2 for number in range(200)])
    assert few is not None
    assert few[0].estimate() == Estimate(1.5, None, None, 200)


def test_equal_conversation_names_of_two_people_are_separate() -> None:
    one = mean_over_people([1.0, 2.0, 5.0, 9.0], list("AABB"), list("xyxy"), seed=2)
    two = mean_over_people([1.0, 2.0, 5.0, 9.0], list("AABB"), list("xyzw"), seed=2)
    assert one is not None
    assert two is not None
    assert one[0].estimate() == two[0].estimate()


def test_a_person_with_a_zero_denominator_is_left_out() -> None:
    result = mean_over_people([1.0, 2.0, 5.0], list("AAB"), list("xyz"), denominators=[1.0, 1.0, 0.0])
    assert result is not None
    assert (result[0].value, result[0].n, result[1]) == (1.5, 2, (1.5,))


def test_no_person_with_data_gives_no_estimate() -> None:
    assert mean_over_people([], [], []) is None
    assert mean_over_people([1.0], ["A"], ["x"], denominators=[0.0]) is None


def test_differences_between_people_widen_the_interval() -> None:
    """Eight people of twenty conversations each: levels that differ by person say less about people than 160 talks would."""
    rng = random.Random(8)
    people = [i // 20 for i in range(160)]
    levels = [rng.gauss(0, 1) for _ in range(8)]
    values = [levels[person] + rng.gauss(0, 0.5) for person in people]
    result, flat = mean_over_people(values, people, range(160)), mean(values, range(160))
    assert result is not None
    assert flat is not None
    expected = 2 * float(t.ppf(0.975, 7)) * stdev(levels) / math.sqrt(8)
    assert _width(result[0].estimate()) == pytest.approx(expected, rel=0.15)
    assert _width(result[0].estimate()) > 2 * _width(flat)


@pytest.mark.parametrize("people", [6, 8, 20])
def test_interval_has_nominal_coverage_with_few_people_too(people: int) -> None:
    """200 made-up studies of people with 6 conversations of 3 turns, all three levels with spread; the truth is 0.

    By conversation alone the interval covers far too rarely. Percentiles of the draws cover 84% with six people.
    """
    rng = np.random.default_rng(11)
    who, talks = np.repeat(np.arange(people), 18), np.repeat(np.arange(6 * people), 3)
    hits = naive = 0
    for study in range(200):
        levels, moods = rng.normal(0, 0.5, people), rng.normal(0, 0.5, 6 * people)
        values = levels[who] + moods[talks] + rng.normal(0, 0.5, 18 * people)
        result = mean_over_people(values.tolist(), who.tolist(), talks.tolist(), seed=study)
        loose = mean(values.tolist(), talks.tolist(), seed=study)
        assert result is not None
        assert loose is not None
        hits += _covers(result[0].estimate(), 0)
        naive += _covers(loose, 0)
    assert 0.91 <= hits / 200 <= 0.99
    assert naive / 200 < 0.8


def test_differences_of_shared_draws_are_paired() -> None:
    """Two arms that differ by about 1 everywhere: each is unsure, their difference is not."""
    rng = random.Random(9)
    base, noise = np.array([rng.gauss(0, 5) for _ in range(30)]), np.array([rng.gauss(0, 0.01) for _ in range(30)])
    draws, ones = Resampling(4), np.ones(30)
    a, b = (draws.resample(ratio_of_sums(values, ones), 30, 30) for values in (base + 1 + noise, base))
    assert _width(a.estimate()) > 2
    difference = BootstrapDistribution(a.value - b.value, a.draws - b.draws, 30, clusters=30).estimate()
    assert difference.value == pytest.approx(1, abs=0.01)
    assert _width(difference) < 0.02


def test_any_statistic_of_weights_can_be_resampled() -> None:
    """The largest of the conversations that were drawn: it is the largest of all unless that one is not drawn."""
    values = np.arange(10.0)
    result = Resampling(0).resample(lambda weights: np.where(weights > 0, values, -1).max(axis=1), 10, 10)
    assert result.value == 9
    assert (result.draws == 9).mean() == pytest.approx(1 - 0.9**10, abs=0.05)


def test_each_resample_draws_as_many_conversations() -> None:
    weights = Resampling(1).weights(7)
    assert weights.shape == (RESAMPLES, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert weights.mean() == pytest.approx(1)


def test_resamples_without_data_are_left_out_and_a_majority_of_them_gives_no_interval() -> None:
    some = BootstrapDistribution(1.0, np.array([1.0, 2.0, 3.0, math.nan]), 9, clusters=9)
    assert some.standard_error == pytest.approx(math.sqrt(9 / 8))
    most = BootstrapDistribution(1.0, np.array([1.0, math.nan, math.nan, math.inf]), 9, clusters=9)
    assert most.estimate() == Estimate(1.0, None, None, 9)
    assert most.min_detectable_effect is most.standard_error is None


def test_min_detectable_effect_is_2_8_standard_errors() -> None:
    rng = random.Random(12)
    values = [rng.gauss(0, 3) for _ in range(400)]
    result = mean_over_people(values, ["A"] * 400, range(400))
    assert result is not None
    assert result[0].min_detectable_effect == pytest.approx((1.96 + 0.8416) * stdev(values) / 20, rel=0.05)


def test_few_conversations_have_no_detectable_effect() -> None:
    assert BootstrapDistribution(1.0, np.array([1.0, 2.0]), 40, clusters=5).min_detectable_effect is None


def test_older_results_lose_the_intervals_and_tests_of_few() -> None:
    estimate = {"value": -1.0, "low": -1.2, "high": -0.8, "n": 9}
    rows = {
        "arms": {"a": {"bits": estimate}},
        "paired": {"a - b": {"bits": estimate | {"p": 0.01, "p_holm": 0.02, "visible": 0.1}}},
    }
    bare = {"value": -1.0, "low": None, "high": None, "n": 9}
    without = {
        "arms": {"a": {"bits": bare}},
        "paired": {"a - b": {"bits": bare | {"p": None, "p_holm": None, "visible": None}}},
    }
    own = {**rows, "conversations": 40}
    assert without_few({**rows, "conversations": 5, "seed": 3}) == {**without, "conversations": 5, "seed": 3}
    assert without_few({**own, "people": {"Ann": own}}) == {**own, "people": {"Ann": own}}
    few = {**rows, "conversations": 5}
    assert without_few({**own, "people": {"Ann": own, "Bob": few}}) == {
        **without, "conversations": 40, "people": {"Ann": own, "Bob": {**without, "conversations": 5}}
    }  # fmt: skip


# Tests ------------------------------------------------------------------------------------------------------------------


def test_eight_people_who_all_gain_have_the_smallest_p_of_eight() -> None:
    assert sign_flip([0.1, 0.2, 0.3, 0.1, 0.5, 0.2, 0.4, 0.1]) == 2 / 256


def test_the_sign_flip_p_of_six_people_can_be_counted() -> None:
    """Of the 64 signs of 32, 16, 8, 4, 2, -1 two give at least their sum: all plus, and this one; twice that of 64."""
    assert sign_flip([32.0, 16.0, 8.0, 4.0, 2.0, -1.0]) == pytest.approx(2 * 2 / 64)


def test_zero_differences_have_p_1() -> None:
    assert sign_flip([0.0] * 6) == 1.0


def test_sign_flip_of_many_people_is_reproducible_and_near_the_t_test() -> None:
    rng = random.Random(1)
    values = [rng.gauss(0.5, 1) for _ in range(20)]
    p = sign_flip(values, seed=2)
    assert p == sign_flip(values, seed=2)
    assert p == pytest.approx(float(ttest_1samp(values, 0).pvalue), abs=0.05)


def test_few_people_have_no_p() -> None:
    assert sign_flip([1.0]) is sign_flip([1.0, 2.0, 3.0, 4.0, 5.0]) is None


@few
@given(st.lists(st.floats(-10, 10, width=16), min_size=6, max_size=8))
def test_sign_flip_p_is_symmetric_and_bounded(values: list[float]) -> None:
    p = sign_flip(values)
    assert p is not None
    assert 2 / 2 ** len(values) <= p <= 1
    assert p == sign_flip([-value for value in values])


def test_holm_equals_hand_computed_values() -> None:
    """Sorted .01 .02 .04 times 3, 2, 1 are .03 .04 .04; in the order given; never above 1, never falling."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def _covers(estimate: Estimate, truth: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= truth <= estimate.high
