"""Estimates: values that are known, intervals that go by conversation, and properties that hold for any input."""

from __future__ import annotations

import math
import random
from statistics import fmean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usertwin.evals import Estimate, mean, ratio

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


def _ratio(rows: list[tuple[float, float, int]], seed: int = 0) -> Estimate:
    found = ratio([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], seed=seed)
    assert found is not None
    return found


def _width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low
