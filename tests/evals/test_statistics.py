"""Estimates and tests: known values, clustered intervals, and properties of any input. Coverage is in test_coverage.py."""

from __future__ import annotations

import math
import random
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import binom, t, ttest_1samp, ttest_ind
from statsmodels.stats.proportion import proportion_confint

from usertwin.evals import Estimate, mean, ratio
from usertwin.evals.metrics.statistics import (
    MIN_CONVERSATIONS,
    Inference,
    Jackknife,
    add_holm,
    holm,
    jackknife,
    mean_of_people,
    mean_over_people,
    ratio_inference,
    ratio_of_sums,
    sign_flip,
)

numbers = st.floats(-1e3, 1e3, allow_nan=False, width=32)
#: Turns as (numerator, denominator above 0, conversation), of enough conversations for an interval.
turns = st.lists(st.tuples(numbers, st.floats(0.5, 50, width=32), st.integers(0, 9)), min_size=8, max_size=20).filter(
    lambda rows: len({row[2] for row in rows}) >= MIN_CONVERSATIONS
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


@pytest.mark.parametrize("conversations", range(1, MIN_CONVERSATIONS))
def test_few_conversations_have_a_value_but_no_interval(conversations: int) -> None:
    where = [number % conversations for number in range(60)]
    assert mean(list(map(float, range(60))), where) == Estimate(29.5, None, None, 60)
    assert mean([1.0] * 60, where, share=True) == Estimate(1.0, None, None, 60)


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0, 2.0], [1.0], ["a", "b"])


def test_conversations_that_agree_have_no_interval_unless_they_are_a_share() -> None:
    """Nothing says how far the next conversation may be from them. A share has Wilson's interval of so many cases."""
    where = [number // 2 for number in range(16)]
    assert mean([0.25] * 16, where) == Estimate(0.25, None, None, 16)
    for value in (0.0, 1.0):
        low, high = proportion_confint(8 * value, 8, method="wilson")
        assert mean([value] * 16, where, share=True) == Estimate(value, pytest.approx(low), pytest.approx(high), 16)
        assert high - low > 0.3
    half = mean([0.0, 1.0] * 8, where, share=True)
    low, high = proportion_confint(4, 8, method="wilson")
    assert half == Estimate(0.5, pytest.approx(low), pytest.approx(high), 16)


def test_a_share_has_the_t_interval_of_its_logit() -> None:
    shares = [0.1, 0.4, 0.2, 0.3, 0.3, 0.5, 0.2, 0.4]
    hits = [number < 10 * share for share in shares for number in range(10)]
    result = mean([float(hit) for hit in hits], [number // 10 for number in range(80)], share=True)
    half = float(t.ppf(0.975, 7)) * stdev(shares) / math.sqrt(8) / (0.3 * 0.7)
    low, high = expit(logit(0.3) - half), expit(logit(0.3) + half)
    assert result == Estimate(pytest.approx(0.3), pytest.approx(low), pytest.approx(high), 80)


def test_interval_of_equal_conversations_is_that_of_students_t() -> None:
    values = [1.0, 2.0, 4.0, 3.0, 5.0, 2.5, 3.5, 0.5]
    for result in (mean(values, range(8)), mean(values * 3, [*range(8)] * 3)):
        assert result is not None
        low, high = ttest_1samp(values, 0).confidence_interval()
        assert (result.low, result.high) == (pytest.approx(low), pytest.approx(high))
    inference = ratio_inference(values, [1.0] * 8, range(8))
    assert inference is not None
    assert inference.p(2.0) == pytest.approx(float(ttest_1samp(values, 2.0).pvalue))


def test_unequal_conversations_count_as_fewer() -> None:
    """Ten conversations, one with half of the turns, have the degrees of freedom of about three."""
    sizes = np.array([9.0, *[1.0] * 9])
    assert Jackknife(0.0, np.zeros(10), sizes).freedom == pytest.approx(18**2 / (81 + 9) - 1)
    assert Jackknife(0.0, np.zeros(10), np.ones(10)).freedom == pytest.approx(9)
    assert Jackknife(0.0, np.zeros(10), sizes, share=True).freedom == 9
    assert Jackknife(0.0, np.zeros(9), np.array([1e6, *[1.0] * 8])).freedom == 1


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


def test_to_json_has_four_keys() -> None:
    assert Estimate(1.5, None, 2.0, 3).to_json() == {"value": 1.5, "low": None, "high": 2.0, "n": 3}


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
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=6, max_size=60))
def test_the_interval_of_a_share_lies_within_0_and_1_and_has_a_width(rows: list[tuple[bool, int]]) -> None:
    result = mean([float(hit) for hit, _ in rows], [where for _, where in rows], share=True)
    assert result is not None
    assert (result.low is None) == (len({where for _, where in rows}) < MIN_CONVERSATIONS)
    if result.low is not None:
        assert result.high is not None
        assert 0 <= result.low <= result.value <= result.high <= 1
        assert result.low < result.high


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


def _ratio(rows: list[tuple[float, float, int]]) -> Estimate:
    result = ratio([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
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
    result = mean_over_people(over, ["Ann"] * 60, where, denominators=under)
    assert result is not None
    assert result.estimate() == ratio(over, under, where)
    assert (result.people, result.unit) == ((pytest.approx(sum(over) / sum(under)),), "conversations")


def test_people_have_equal_weight() -> None:
    result = mean_over_people([1.0] * 90 + [3.0] * 10, ["Ann"] * 90 + ["Bob"] * 10, list(range(100)))
    assert result is not None
    assert (result.value, result.n, result.people) == (2.0, 100, (1.0, 3.0))


@pytest.mark.parametrize("conversations", [1, 40])
def test_interval_of_five_people_is_students_t_of_their_own_means(conversations: int) -> None:
    """However many conversations each has: people are what differs."""
    levels = [1.0, 2.5, 2.0, 4.0, 3.0]
    people = [person for person in range(5) for _ in range(40)]
    result = mean_over_people([levels[person] for person in people], people, [number % conversations for number in range(200)])
    assert result is not None
    low, high = ttest_1samp(levels, 0).confidence_interval()
    assert result.estimate() == Estimate(2.5, pytest.approx(low), pytest.approx(high), 200)
    assert (result.unit, result.freedom, result.p()) == ("people", 4, 2 / 2**5)
    assert result.error is not None
    detectable = (t.ppf(0.975, 4) + t.ppf(0.8, 4)) * result.error
    assert result.min_detectable_effect == pytest.approx(detectable)


def test_people_who_agree_have_no_interval_unless_they_are_a_share() -> None:
    people = [number // 2 for number in range(12)]
    for share, low in ((False, None), (True, pytest.approx(proportion_confint(6, 6, method="wilson")[0]))):
        result = mean_over_people([1.0] * 12, people, range(12), share=share)
        assert result is not None
        assert result.estimate().low == low
        assert result.p() == 2 / 2**6


def test_two_people_have_an_interval_over_their_conversations() -> None:
    """The mean of two people is half the difference of one and the negated other: Welch's interval, halved."""
    ann, bob = [1.0, 2.0, 4.0, 3.0, 5.0], [7.0, 9.0, 2.0, 8.0]
    result = mean_over_people([*ann, *bob], ["Ann"] * 5 + ["Bob"] * 4, range(9))
    assert result is not None
    welch = ttest_ind(ann, [-value for value in bob], equal_var=False)
    low, high = welch.confidence_interval()
    assert result.estimate() == Estimate(4.75, pytest.approx(low / 2), pytest.approx(high / 2), 9)
    assert (result.unit, result.cases, result.p()) == ("conversations", 9, pytest.approx(float(welch.pvalue)))


def test_few_people_say_nothing_about_others_and_so_need_not_differ() -> None:
    """Three people who differ much, but each of whom is alike in all conversations, have a short interval: of these three."""
    rng = random.Random(4)
    values = [10.0 * (number % 3) + rng.gauss(0, 0.1) for number in range(60)]
    result = mean_over_people(values, [number % 3 for number in range(60)], [number // 3 for number in range(60)])
    assert result is not None
    assert _width(result.estimate()) < 0.1
    assert result.p(10.0) is not None


@pytest.mark.parametrize(
    ("conversations", "sure"),
    [((7,), False), ((4, 3), False), ((9, 3), False), ((4, 4), True), ((4, 4, 4, 4), True), ((8,), True)],
)
def test_few_people_need_eight_conversations_and_four_each(conversations: tuple[int, ...], sure: bool) -> None:
    people = [person for person, own in enumerate(conversations) for _ in range(own)]
    values = [float(number**2 % 7) for number in range(len(people))]
    for share in (False, True):
        result = mean_over_people([value / 6 for value in values], people, range(len(people)), share=share)
        assert result is not None
        estimate = result.estimate()
        assert (estimate.low is not None, estimate.high is not None, result.p(0.5) is not None) == (sure, sure, sure)
    assert result.estimate().value == pytest.approx(fmean(result.people))


def test_a_number_of_few_of_many_people_has_no_interval() -> None:
    """A measurement of five people is about people; what only four of them have is not mixed with it."""
    people = [number // 10 for number in range(50)]
    denominators = [float(person > 0) for person in people]
    values = [float(number * 7 % 10) for number in range(50)]
    result = mean_over_people(values, people, range(50), denominators=denominators)
    assert result is not None
    assert (result.estimate().low, result.p(), result.unit, len(result.people)) == (None, None, "people", 4)
    four = [jackknife(ratio_of_sums(np.arange(8.0), np.ones(8)), np.ones(8))] * 4
    assert mean_of_people(four).error is not None
    assert mean_of_people(four, measured=5).error is None


def test_equal_conversation_names_of_two_people_are_separate() -> None:
    values, people = [1.0, 2.0, 5.0, 9.0] * 3, list("AABB") * 3
    one = mean_over_people(values, people, [number % 4 % 2 + 2 * (number // 4) for number in range(12)])
    two = mean_over_people(values, people, range(12))
    assert one is not None
    assert two is not None
    assert one.estimate().low is not None
    assert one.estimate() == two.estimate()


def test_a_person_with_a_zero_denominator_is_left_out() -> None:
    result = mean_over_people([1.0, 2.0, 5.0], list("AAB"), list("xyz"), denominators=[1.0, 1.0, 0.0])
    assert result is not None
    assert (result.value, result.n, result.people) == (1.5, 2, (1.5,))


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
    assert _width(result.estimate()) == pytest.approx(expected, rel=0.15)
    assert _width(result.estimate()) > 2 * _width(flat)


# The jackknife ----------------------------------------------------------------------------------------------------------


def test_any_statistic_of_weights_can_be_left_out() -> None:
    """The largest of the conversations: it is the second largest without that one. More than a block of rows."""
    values = np.arange(600.0)
    result = jackknife(lambda weights: np.where(weights > 0, values, -1).max(axis=1), np.ones(600))
    assert (result.value, result.n, len(result.left_out)) == (599, 600, 600)
    assert (result.left_out == [*[599] * 599, 598]).all()


def test_a_ratio_without_each_conversation_is_the_ratio_of_the_others() -> None:
    above, below = np.array([1.0, 4.0, 2.0]), np.array([2.0, 3.0, 5.0])
    result = jackknife(ratio_of_sums(above, below), np.array([1.0, 2.0, 1.0]))
    assert result.left_out == pytest.approx([6 / 8, 3 / 7, 5 / 5])
    assert (result.value, result.n) == (pytest.approx(0.7), 4)


def test_differences_are_paired() -> None:
    """Two arms that differ by about 1 everywhere: each is unsure, their difference is not."""
    rng = random.Random(9)
    base, noise = np.array([rng.gauss(0, 5) for _ in range(30)]), np.array([rng.gauss(0, 0.01) for _ in range(30)])
    a, b = (jackknife(ratio_of_sums(values, np.ones(30)), np.ones(30)) for values in (base + 1 + noise, base))
    assert _width(a.inference().estimate()) > 2
    difference = Jackknife(a.value - b.value, a.left_out - b.left_out, a.sizes).inference().estimate()
    assert difference.value == pytest.approx(1, abs=0.01)
    assert _width(difference) < 0.02


def test_data_of_a_single_conversation_give_no_standard_error() -> None:
    sizes = np.ones(9)
    assert jackknife(ratio_of_sums(np.ones(9), np.array([2.0, *[0.0] * 8])), sizes).standard_error is None
    assert jackknife(ratio_of_sums(np.arange(9.0), np.array([2.0, 2.0, *[0.0] * 7])), sizes).standard_error is not None
    assert jackknife(ratio_of_sums(np.ones(1), np.ones(1)), np.ones(1)).standard_error is None
    alone = Jackknife(1.0, np.array([math.nan]), np.array([12.0])).inference()
    assert (alone.estimate(), alone.p(), alone.min_detectable_effect) == (Estimate(1.0, None, None, 12), None, None)


def test_min_detectable_effect_is_2_8_standard_errors() -> None:
    rng = random.Random(12)
    values = [rng.gauss(0, 3) for _ in range(400)]
    result = mean_over_people(values, ["A"] * 400, range(400))
    assert result is not None
    assert result.min_detectable_effect == pytest.approx((1.96 + 0.8416) * stdev(values) / 20, rel=0.01)


# Tests ------------------------------------------------------------------------------------------------------------------

numbers_and_errors = st.tuples(st.floats(-2, 2), st.floats(0.05, 3), st.integers(2, 40), st.floats(0.05, 0.95))


@few
@given(numbers_and_errors, st.booleans())
def test_over_conversations_p_is_below_five_percent_where_the_interval_excludes_the_hypothesis(
    drawn: tuple[float, float, int, float], share: bool
) -> None:
    value, error, freedom, null = drawn
    result = Inference(
        abs(value) / 2 if share else value, 99, error=error, freedom=freedom, cases=20, people=(value,), unit="conversations",
        share=share,
    )  # fmt: skip
    estimate, p = result.estimate(), result.p(null)
    assert p is not None
    assert estimate.low is not None
    assert estimate.high is not None
    assert 0 <= p <= 1
    assert (p < 0.05) == (not estimate.low <= null <= estimate.high)


def test_conversations_without_any_difference_have_p_1_and_others_without_spread_none() -> None:
    for value, p in ((0.0, 1.0), (0.3, None)):
        result = ratio_inference([value] * 9, [1.0] * 9, range(9))
        assert result is not None
        assert (result.estimate().low, result.p()) == (None, p)
    share = ratio_inference([1.0] * 9, [1.0] * 9, range(9), share=True)
    assert share is not None
    assert share.p(0.5) == pytest.approx(2 * binom.cdf(0, 9, 0.5), abs=0.002)  # Wilson's score test of nine cases
    assert share.estimate() != Estimate(1.0, 1.0, 1.0, 9)


def test_five_people_who_all_gain_have_a_p_above_five_percent() -> None:
    assert sign_flip([0.1, 0.2, 0.3, 0.1, 0.5]) == 2 / 32


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
    assert sign_flip([1.0]) is sign_flip([1.0, 2.0, 3.0, 4.0]) is None


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


def test_a_family_is_adjusted_without_the_tests_that_have_no_p() -> None:
    family: list[dict[str, float | None]] = [{"p": 0.01}, {"p": None}, {"p": 0.04}]
    add_holm(family)
    assert [test["p_holm"] for test in family] == [0.02, None, 0.04]
