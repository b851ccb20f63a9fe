"""Estimates: values that are known, intervals that go by conversation, and properties that hold for any input."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, pearsonr, rankdata, spearmanr, ttest_1samp

from usertwin.evals import Estimate, mean, ratio
from usertwin.evals.metrics.statistics import (
    RESAMPLES,
    Drawn,
    Resampling,
    holm,
    mean_over_people,
    of_sums,
    partial_spearman,
    sign_flip,
    wilson,
)

numbers = st.floats(-1e3, 1e3, allow_nan=False, width=32)
#: Turns as (numerator, denominator above 0, conversation), of at least two conversations.
turns = st.lists(st.tuples(numbers, st.floats(0.5, 50, width=32), st.integers(0, 4)), min_size=2, max_size=20).filter(
    lambda rows: len({row[2] for row in rows}) > 1
)
few = settings(max_examples=30, deadline=None)


def test_a_mean_is_the_mean_of_the_turns() -> None:
    found = mean([1.0, 2.0, 6.0], ["a", "a", "b"])
    assert found is not None
    assert found.value == pytest.approx(3.0)
    assert found.n == 3


def test_a_ratio_divides_the_sums_and_does_not_average_the_quotients() -> None:
    found = ratio([1.0, 9.0], [1.0, 3.0], ["a", "b"])
    assert found is not None
    assert found.value == pytest.approx(2.5)  # (1 + 9) / (1 + 3); the mean of the quotients would be 2


def test_no_turn_gives_no_estimate() -> None:
    assert mean([], []) is None


def test_nothing_to_divide_by_gives_no_estimate() -> None:
    assert ratio([0.0, 0.0], [0.0, 0.0], ["a", "b"]) is None


def test_one_conversation_has_a_value_but_no_interval() -> None:
    assert mean([1.0, 3.0], ["a", "a"]) == Estimate(2.0, None, None, 2)


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0, 2.0], [1.0], ["a", "b"])


def test_equal_turns_have_an_interval_without_width() -> None:
    assert mean([0.25] * 6, [0, 0, 1, 1, 2, 2]) == Estimate(0.25, 0.25, 0.25, 6)


def test_two_conversations_have_the_interval_that_can_be_counted() -> None:
    """Of the four resamples of two conversations one is all a, one all b: a quarter each, so 95% reach both."""
    found = mean([0.0, 1.0], ["a", "b"])
    assert found == Estimate(0.5, 0.0, 1.0, 2)


def test_with_independent_turns_the_interval_is_the_one_of_the_textbook() -> None:
    rng = random.Random(7)
    values = [rng.gauss(5, 2) for _ in range(200)]
    found = mean(values, range(200))
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * stdev(values) / math.sqrt(200)
    assert found.low == pytest.approx(fmean(values) - half, abs=0.2 * half)
    assert found.high == pytest.approx(fmean(values) + half, abs=0.2 * half)


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


def test_a_conversation_with_nothing_to_divide_by_only_adds_its_numerator() -> None:
    found = ratio([2.0, 2.0, 0.0], [2.0, 4.0, 0.0], ["a", "b", "c"])
    assert found is not None
    assert found.value == pytest.approx(4 / 6)
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.high <= 1


@pytest.mark.parametrize(
    ("low", "high", "excludes"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 1.0, False)]
)
def test_an_interval_excludes_zero_if_it_lies_on_one_side(low: float, high: float, excludes: bool) -> None:
    assert Estimate(0.0, low, high, 5).excludes_zero is excludes


def test_without_an_interval_zero_is_not_excluded() -> None:
    assert not Estimate(9.0, None, None, 5).excludes_zero


def test_an_estimate_as_json_has_the_four_promised_keys() -> None:
    assert Estimate(1.5, None, 2.0, 3).to_json() == {"value": 1.5, "low": None, "high": 2.0, "n": 3}


@few
@given(turns)
def test_the_same_seed_gives_the_same_interval(rows: list[tuple[float, float, int]]) -> None:
    assert _ratio(rows, seed=5) == _ratio(rows, seed=5)


@few
@given(turns)
def test_value_and_interval_lie_between_the_extremes_of_the_conversations(rows: list[tuple[float, float, int]]) -> None:
    """Any resample is a weighted mean of the conversations' own ratios; the interval is in order and n counts turns."""
    found = _ratio(rows)
    own = [
        sum(over for over, _, c in rows if c == name) / sum(under for _, under, c in rows if c == name)
        for name in {row[2] for row in rows}
    ]
    slack = 1e-6 * (1 + max(map(abs, own)))
    assert found.low is not None
    assert found.high is not None
    assert min(own) - slack <= found.low <= found.high <= max(own) + slack
    assert min(own) - slack <= found.value <= max(own) + slack
    assert found.n == len(rows)


@few
@given(turns, st.floats(-100, 100))
def test_adding_a_constant_to_every_turn_moves_value_and_interval_by_it(
    rows: list[tuple[float, float, int]], step: float
) -> None:
    where = [row[2] for row in rows]
    plain, moved = mean([row[0] for row in rows], where), mean([row[0] + step for row in rows], where)
    assert plain is not None
    assert moved is not None
    for before, after in ((plain.value, moved.value), (plain.low, moved.low), (plain.high, moved.high)):
        assert before is not None
        assert after == pytest.approx(before + step, abs=1e-6)


@few
@given(turns, st.randoms(use_true_random=False))
def test_the_order_of_turns_within_conversations_does_not_matter(
    rows: list[tuple[float, float, int]], rng: random.Random
) -> None:
    by_conversation = sorted(rows, key=lambda row: row[2])
    shuffled = sorted(rng.sample(rows, len(rows)), key=lambda row: row[2])
    one, other = _ratio(by_conversation), _ratio(shuffled)
    assert other.value == pytest.approx(one.value, rel=1e-9, abs=1e-6)
    assert other.low == pytest.approx(one.low, rel=1e-9, abs=1e-6)
    assert other.high == pytest.approx(one.high, rel=1e-9, abs=1e-6)


# Partial rank correlation ----------------------------------------------------------------------------------------------

#: Items as (x, y, two covariates, conversation), of which there are enough to be correlated.
measured = st.lists(
    st.tuples(*[st.integers(-20, 20)] * 4, st.integers(0, 3)), min_size=4, max_size=20
)  # fmt: skip


def test_a_partial_correlation_is_the_one_that_can_be_reckoned_by_hand() -> None:
    """(r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2)) of the ranks, here of five: 1 - 6 sum d^2 / 120."""
    x, y, z = [1, 2, 3, 4, 5], [2, 1, 4, 3, 5], [3, 1, 2, 5, 4]
    xy, xz, yz = 1 - 6 * 4 / 120, 1 - 6 * 8 / 120, 1 - 6 * 10 / 120
    found = partial_spearman(x, y, [[one] for one in z], list("aabbc"))
    assert found is not None
    assert found.value == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)))
    assert found.n == 5


def test_without_covariates_it_is_the_rank_correlation() -> None:
    rng = random.Random(1)
    x = [rng.gauss(0, 1) for _ in range(30)]
    y = [one + rng.gauss(0, 1) for one in x]
    found = partial_spearman(x, y, [[] for _ in x], range(30))
    assert found is not None
    assert found.value == pytest.approx(spearmanr(x, y).statistic)


@few
@given(measured)
def test_it_is_the_correlation_of_what_is_left_of_the_ranks(rows: list[tuple[int, int, int, int, int]]) -> None:
    """Against residuals by numpy's pseudo-inverse and scipy's correlation; where nothing is left, there is no estimate."""
    x, y, *covariates, where = (list(column) for column in zip(*rows, strict=True))
    ranks = [rankdata(column) for column in covariates]
    design = np.column_stack([np.ones(len(rows)), *ranks])
    left = [rankdata(one) - design @ (np.linalg.pinv(design) @ rankdata(one)) for one in (x, y)]
    found = partial_spearman(x, y, list(zip(*covariates, strict=True)), where)
    if min(float((one**2).sum()) for one in left) < 1e-9:
        assert found is None
    else:
        assert found is not None
        assert found.value == pytest.approx(float(pearsonr(*left).statistic), abs=1e-6)


def test_what_only_a_covariate_explains_is_taken_out_and_the_rest_is_left() -> None:
    """Score and benefit both follow length, and nothing else; then both follow something hidden too."""
    rng = random.Random(2)
    length = [rng.gauss(0, 1) for _ in range(400)]
    hidden = [rng.gauss(0, 1) for _ in range(400)]
    for share, low, high in ((0.0, -0.1, 0.1), (1.0, 0.4, 0.6)):
        x, y = ([z + share * h + rng.gauss(0, 1) for z, h in zip(length, hidden, strict=True)] for _ in range(2))
        assert spearmanr(x, y).statistic > 0.35
        found = partial_spearman(x, y, [[z] for z in length], [i // 10 for i in range(400)])
        assert found is not None
        assert low < found.value < high
        assert found.excludes_zero is (share > 0)


def test_a_perfect_order_beside_an_unrelated_covariate_is_one() -> None:
    found = partial_spearman([1, 2, 3, 4, 5, 6], [10, 20, 30, 40, 50, 60], [[z] for z in (3, 1, 2, 2, 1, 3)], list("aabbcc"))
    assert found is not None
    assert found.value == pytest.approx(1)


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
def test_where_there_is_nothing_to_correlate_there_is_no_estimate(
    x: list[int], y: list[int], covariates: list[list[int]]
) -> None:
    assert partial_spearman(x, y, covariates, [i // 2 for i in range(len(x))]) is None


def test_a_correlation_in_one_conversation_has_no_interval() -> None:
    found = partial_spearman([1, 2, 3, 4], [1, 3, 2, 4], [[1], [1], [1], [1]], ["a"] * 4)
    assert found is not None
    assert (found.value, found.low, found.high, found.n) == (pytest.approx(0.8), None, None, 4)


def test_like_items_of_one_conversation_do_not_make_a_correlation_surer() -> None:
    """Twenty conversations of six like items say as much as twenty items: by conversation the interval is the wider one."""
    rng = random.Random(4)
    hidden = [rng.gauss(0, 1) for _ in range(20)]
    x, y = ([one for one in (h + rng.gauss(0, 1) for h in hidden) for _ in range(6)] for _ in range(2))
    found = [partial_spearman(x, y, [[]] * 120, where, seed=1) for where in ([i // 6 for i in range(120)], range(120))]
    clustered, loose = found
    assert clustered is not None
    assert loose is not None
    assert clustered.value == loose.value
    assert _width(clustered) > 2 * _width(loose)
    assert clustered == partial_spearman(x, y, [[]] * 120, [i // 6 for i in range(120)], seed=1)


@few
@given(measured, st.sampled_from([lambda v: 3 * v - 7, lambda v: v**3, lambda v: math.exp(v / 9), math.atan]))
def test_only_the_order_matters_and_the_value_is_a_correlation(
    rows: list[tuple[int, int, int, int, int]], monotone: Callable[[float], float]
) -> None:
    where = [row[4] for row in rows]
    plain = partial_spearman([r[0] for r in rows], [r[1] for r in rows], [r[2:4] for r in rows], where)
    bent = partial_spearman(
        [monotone(r[0]) for r in rows], [monotone(r[1]) for r in rows], [(monotone(r[2]), monotone(r[3])) for r in rows], where
    )
    flipped = partial_spearman([-r[0] for r in rows], [r[1] for r in rows], [r[2:4] for r in rows], where)
    assert (plain is None) == (bent is None) == (flipped is None)
    if plain is not None and bent is not None and flipped is not None:
        assert bent == plain
        assert flipped.value == pytest.approx(-plain.value, abs=1e-6)
        assert -1 - 1e-9 <= plain.value <= 1 + 1e-9
        for end in (plain.low, plain.high):
            assert end is None or -1 - 1e-9 <= end <= 1 + 1e-9


def _ratio(rows: list[tuple[float, float, int]], seed: int = 0) -> Estimate:
    found = ratio([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], seed=seed)
    assert found is not None
    return found


def _width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


# People, then conversations ---------------------------------------------------------------------------------------------


def test_of_one_person_only_conversations_are_drawn_so_it_is_the_ratio() -> None:
    rng = random.Random(5)
    over, under = [rng.gauss(3, 1) for _ in range(60)], [rng.uniform(1, 9) for _ in range(60)]
    where = [i // 4 for i in range(60)]
    found = mean_over_people(over, ["Ann"] * 60, where, denominators=under, seed=3)
    assert found is not None
    assert found[0].estimate() == ratio(over, under, where, seed=3)
    assert found[1] == (pytest.approx(sum(over) / sum(under)),)


def test_the_interval_of_one_person_is_scipys_cluster_bootstrap() -> None:
    rng = random.Random(6)
    over, under = ([rng.uniform(1, 9) for _ in range(30)] for _ in range(2))
    theirs = bootstrap(
        (over, under), lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis), paired=True, vectorized=True,
        n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(77),
    ).confidence_interval  # fmt: skip
    ours = ratio(over, under, range(30), seed=1)
    assert ours is not None
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * (theirs.high - theirs.low))
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * (theirs.high - theirs.low))


def test_people_weigh_the_same_whatever_they_wrote() -> None:
    found = mean_over_people([1.0] * 90 + [3.0] * 10, ["Ann"] * 90 + ["Bob"] * 10, list(range(100)))
    assert found is not None
    drawn, each = found
    assert (drawn.value, drawn.n, each) == (2.0, 100, (1.0, 3.0))


def test_two_people_without_spread_of_their_own_have_the_interval_that_can_be_counted() -> None:
    """Of the four draws of two people one is all Ann, one all Bob."""
    found = mean_over_people([1.0, 1.0, 3.0, 3.0], ["Ann", "Ann", "Bob", "Bob"], ["a", "b", "a", "b"])
    assert found is not None
    assert found[0].estimate() == Estimate(2.0, 1.0, 3.0, 4)


def test_the_same_names_of_conversations_of_two_people_are_two_conversations() -> None:
    one = mean_over_people([1.0, 2.0, 5.0, 9.0], list("AABB"), list("xyxy"), seed=2)
    two = mean_over_people([1.0, 2.0, 5.0, 9.0], list("AABB"), list("xyzw"), seed=2)
    assert one is not None
    assert two is not None
    assert one[0].estimate() == two[0].estimate()


def test_who_has_nothing_to_divide_by_is_left_out() -> None:
    found = mean_over_people([1.0, 2.0, 5.0], list("AAB"), list("xyz"), denominators=[1.0, 1.0, 0.0])
    assert found is not None
    assert (found[0].value, found[0].n, found[1]) == (1.5, 2, (1.5,))


def test_nothing_of_anybody_gives_no_estimate() -> None:
    assert mean_over_people([], [], []) is None
    assert mean_over_people([1.0], ["A"], ["x"], denominators=[0.0]) is None


def test_people_who_differ_widen_the_interval() -> None:
    """Eight people of twenty conversations each: levels that differ by person say less about people than 160 talks would."""
    rng = random.Random(8)
    people = [i // 20 for i in range(160)]
    levels = [rng.gauss(0, 1) for _ in range(8)]
    values = [levels[person] + rng.gauss(0, 0.5) for person in people]
    found, flat = mean_over_people(values, people, range(160)), mean(values, range(160))
    assert found is not None
    assert flat is not None
    expected = 2 * 1.96 * stdev(levels) * math.sqrt(7 / 8) / math.sqrt(8)
    assert _width(found[0].estimate()) == pytest.approx(expected, rel=0.15)
    assert _width(found[0].estimate()) > 2 * _width(flat)


def test_the_two_level_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """80 made-up studies of 20 people with 6 conversations of 3 turns, all three levels with spread; the truth is 0.

    By conversation alone the interval covers far too rarely, which is why there are two levels.
    """
    rng = np.random.default_rng(11)
    people, talks = np.repeat(np.arange(20), 18), np.repeat(np.arange(120), 3)
    hits = naive = 0
    for study in range(80):
        values = rng.normal(0, 0.5, 20)[people] + rng.normal(0, 0.5, 120)[talks] + rng.normal(0, 0.5, 360)
        found = mean_over_people(values.tolist(), people.tolist(), talks.tolist(), seed=study)
        loose = mean(values.tolist(), talks.tolist(), seed=study)
        assert found is not None
        assert loose is not None
        hits += _covers(found[0].estimate(), 0)
        naive += _covers(loose, 0)
    assert 0.87 <= hits / 80 <= 0.99
    assert naive / 80 < 0.8


def test_differences_of_what_was_drawn_alike_are_paired() -> None:
    """Two arms that differ by 1 everywhere: each is unsure, their difference is not."""
    rng = random.Random(9)
    base = np.array([rng.gauss(0, 5) for _ in range(30)])
    draws, ones = Resampling(4), np.ones(30)
    a, b = (draws.person(of_sums(values, ones), 30, 30) for values in (base + 1, base))
    assert a.draws is not None
    assert b.draws is not None
    assert _width(a.estimate()) > 2
    assert Drawn(a.value - b.value, a.draws - b.draws, 30).estimate() == Estimate(
        pytest.approx(1), pytest.approx(1), pytest.approx(1), 30
    )


def test_any_statistic_of_how_often_conversations_were_drawn_can_be_resampled() -> None:
    """The largest of the conversations that were drawn: it is the largest of all unless that one is not drawn."""
    values = np.arange(10.0)
    found = Resampling(0).person(lambda weights: np.where(weights > 0, values, -1).max(axis=1), 10, 10)
    assert found.value == 9
    assert found.draws is not None
    assert (found.draws == 9).mean() == pytest.approx(1 - 0.9**10, abs=0.02)


def test_each_resample_has_as_many_conversations_as_there_are() -> None:
    weights = Resampling(1).weights(7)
    assert weights.shape == (RESAMPLES, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert weights.mean() == pytest.approx(1)


def test_centred_resamples_lie_around_the_number() -> None:
    """The square of a mean is biased upwards by resampling; so are distances."""
    values = np.array([-1.0, 1.0] * 10)
    statistic = lambda weights: (weights @ values / 20) ** 2  # noqa: E731
    plain, centred = (Resampling(0).person(statistic, 20, 20, centred=how) for how in (False, True))
    assert plain.value == centred.value == 0
    assert plain.draws is not None
    assert centred.draws is not None
    assert plain.draws.mean() == pytest.approx(1 / 20, rel=0.1)
    assert centred.draws.mean() == pytest.approx(0, abs=1e-12)


def test_resamples_that_have_nothing_to_reckon_from_are_left_out_and_if_they_are_most_there_is_no_interval() -> None:
    some = Drawn(1.0, np.array([1.0, 2.0, 3.0, math.nan]), 4)
    assert some.estimate() == Estimate(1.0, pytest.approx(1.05), pytest.approx(2.95), 4)
    most = Drawn(1.0, np.array([1.0, math.nan, math.nan, math.inf]), 4)
    assert most.estimate() == Estimate(1.0, None, None, 4)
    assert most.visible is None


def test_a_person_of_whom_a_resample_has_nothing_is_left_out_of_it() -> None:
    found = Resampling(0).people([Drawn(1.0, np.full(99, 1.0), 5), Drawn(3.0, np.array([3.0] + [math.nan] * 98), 5)])
    assert found.value == 2.0
    assert found.draws is not None
    assert set(found.draws[np.isfinite(found.draws)]) <= {1.0, 2.0, 3.0}
    assert 0.15 < np.isnan(found.draws).mean() < 0.35  # where it is this person both times


def test_what_is_visible_is_two_point_eight_standard_errors() -> None:
    rng = random.Random(12)
    values = [rng.gauss(0, 3) for _ in range(400)]
    found = mean_over_people(values, ["A"] * 400, range(400))
    assert found is not None
    assert found[0].visible == pytest.approx((1.96 + 0.8416) * stdev(values) / 20, rel=0.05)


def test_one_conversation_shows_nothing() -> None:
    assert Drawn(1.0, None, 4).visible is None


# Tests ------------------------------------------------------------------------------------------------------------------


def test_eight_people_who_all_gain_have_the_smallest_p_of_eight() -> None:
    assert sign_flip([0.1, 0.2, 0.3, 0.1, 0.5, 0.2, 0.4, 0.1]) == 2 / 256


def test_the_sign_flip_p_of_three_people_can_be_counted() -> None:
    """Of the eight signs of 3, 2, -1 (mean 4/3) two give at least it: +++ (2) and ++- itself; twice that of eight."""
    assert sign_flip([3.0, 2.0, -1.0]) == pytest.approx(2 * 2 / 8)


def test_people_who_differ_by_nothing_are_not_told_apart() -> None:
    assert sign_flip([0.0] * 5) == 1.0


def test_with_many_people_signs_are_drawn_and_the_same_seed_draws_the_same() -> None:
    rng = random.Random(1)
    values = [rng.gauss(0.5, 1) for _ in range(20)]
    p = sign_flip(values, seed=2)
    assert p == sign_flip(values, seed=2)
    assert p == pytest.approx(float(ttest_1samp(values, 0).pvalue), abs=0.05)


def test_one_person_has_no_p() -> None:
    assert sign_flip([1.0]) is None


@few
@given(st.lists(st.floats(-10, 10, width=16), min_size=2, max_size=6))
def test_a_sign_flip_p_is_a_share_of_all_signs_and_does_not_change_with_the_sign(values: list[float]) -> None:
    p = sign_flip(values)
    assert p is not None
    assert 2 / 2 ** len(values) <= p <= 1
    assert p == sign_flip([-value for value in values])


def test_holm_is_what_can_be_reckoned_by_hand() -> None:
    """Sorted .01 .02 .04 times 3, 2, 1 are .03 .04 .04; in the order given; never above 1, never falling."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_wilsons_interval_is_the_one_of_the_textbook() -> None:
    """81 of 263: 0.255 to 0.366 (Newcombe 1998, table I)."""
    found = wilson(81, 263)
    assert found is not None
    assert found.value == pytest.approx(81 / 263)
    assert (found.low, found.high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert wilson(0, 0) is None


def _covers(estimate: Estimate, truth: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= truth <= estimate.high
