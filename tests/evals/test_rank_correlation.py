"""The partial rank correlation: known values, and properties of any input."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, rankdata, spearmanr

from usertwin.evals import Estimate
from usertwin.evals.metrics.rank_correlation import partial_spearman

few = settings(max_examples=30, deadline=None)

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
    result = partial_spearman(x, y, list(zip(*covariates, strict=True)), [0] * len(rows))
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
        assert result.low is not None
        assert (result.low > 0) is (share > 0)


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
    result = [partial_spearman(x, y, [[]] * 120, where) for where in ([i // 6 for i in range(120)], range(120))]
    clustered, loose = result
    assert clustered is not None
    assert loose is not None
    assert clustered.value == loose.value
    assert _width(clustered) > 2 * _width(loose)


@few
@given(measured, st.sampled_from([lambda v: 3 * v - 7, lambda v: v**3, lambda v: math.exp(v / 9), math.atan]))
def test_partial_correlation_depends_on_ranks_only(
    rows: list[tuple[int, int, int, int, int]], monotone: Callable[[float], float]
) -> None:
    x, y, covariates, where = [r[0] for r in rows], [r[1] for r in rows], [r[2:4] for r in rows], [r[4] for r in rows]
    bent_covariates = [(monotone(first), monotone(second)) for first, second in covariates]
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


def _width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low
