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
from scipy.stats import pearsonr, rankdata, spearmanr

from usertwin.evals import Estimate, mean, ratio
from usertwin.evals.statistics import partial_spearman

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
