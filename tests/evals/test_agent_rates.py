"""Rates of simulated conversations: intervals over conversations, scenarios and twins, pass^k, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.evals.agent_tests.rates import OVER, paired_difference, pass_powers, rate
from usertwin.simulator.records import Simulation


def talks(scenarios: int, twins: int, repeats: int = 1) -> list[Simulation]:
    """Return empty conversations of each scenario with each twin."""
    return [
        Simulation(twin=f"t{twin}", goal="", seed=repeat, thread_id="", scenario=f"s{scenario}", repeat=repeat)
        for scenario in range(scenarios)
        for twin in range(twins)
        for repeat in range(repeats)
    ]


def hits(count: int, n: int) -> list[bool]:
    return [number < count for number in range(n)]


def test_without_conversations_there_is_no_rate() -> None:
    assert rate([], []) is None
    assert paired_difference([], [], []) is None
    assert pass_powers([], []) == ()


def test_one_scenario_and_twin_have_wilsons_interval() -> None:
    share = rate(talks(1, 1, 10), hits(8, 10))
    assert share is not None
    assert (share.value, share.count, share.n, share.over) == (0.8, 8, 10, "conversations")
    assert (share.low, share.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_twins_that_are_all_good_or_all_bad_widen_the_interval() -> None:
    """Ten twins, six conversations each: eight always pass, two never. Sixty conversations are then ten independent ones."""
    simulations = talks(1, 10, 6)
    share = rate(simulations, [simulation.twin not in {"t0", "t1"} for simulation in simulations])
    alone = rate(talks(1, 1, 60), hits(48, 60))
    assert share is not None
    assert alone is not None
    assert share.value == alone.value
    assert share.high - share.low > 2 * (alone.high - alone.low)
    assert share.over in OVER[1:]


def test_fewer_than_eight_twins_leave_the_interval_over_conversations() -> None:
    share = rate(talks(1, 7, 4), hits(20, 28))
    assert share is not None
    assert share.over == "conversations"


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.data())
def test_an_interval_has_a_width_and_holds_its_value(scenarios: int, twins: int, repeats: int, data: st.DataObject) -> None:
    simulations = talks(scenarios, twins, repeats)
    draws = st.lists(st.booleans(), min_size=len(simulations), max_size=len(simulations))
    share = rate(simulations, data.draw(draws | st.just([True] * len(simulations)) | st.just([False] * len(simulations))))
    assert share is not None
    assert 0 <= share.low <= share.value <= share.high <= 1
    assert share.high - share.low > 0.01


def test_the_interval_covers_the_truth_when_scenarios_and_twins_differ() -> None:
    """200 studies of ten scenarios with ten twins; the truth is the mean over all scenarios and twins."""
    rng = np.random.default_rng(0)
    simulations = talks(10, 10)
    population = 1 / (1 + np.exp(-(1.2 + rng.normal(0, 1, 10**6) + rng.normal(0, 1, 10**6))))
    covered = 0
    for _ in range(200):
        logits = 1.2 + rng.normal(0, 1, (10, 1)) + rng.normal(0, 1, (1, 10))
        share = rate(simulations, (rng.random((10, 10)) < 1 / (1 + np.exp(-logits))).ravel().tolist())
        assert share is not None
        covered += share.low <= population.mean() <= share.high
    assert 0.90 <= covered / 200 <= 0.99


def brute_force(cells: Sequence[Sequence[bool]], k: int) -> float:
    """Return the share of all samples of k conversations in which all pass, averaged over pairs with k or more."""
    return fmean(fmean(all(sample) for sample in combinations(cell, k)) for cell in cells if len(cell) >= k)


def test_pass_k_is_the_share_of_samples_without_replacement_in_which_all_pass() -> None:
    simulations = talks(2, 2, 4)
    passed = [True, True, True, False, True, True, True, True, False, False, False, False, True, False, True, False]
    cells = [passed[start : start + 4] for start in range(0, 16, 4)]
    powers = pass_powers(simulations, passed)
    assert [power.k for power in powers] == [2, 3, 4]
    assert [power.value for power in powers] == pytest.approx([brute_force(cells, k) for k in (2, 3, 4)])
    assert all((power.low, power.high, power.pairs) == (None, None, 4) for power in powers)  # four pairs are too few


def test_pairs_with_fewer_usable_conversations_are_left_out_of_larger_k() -> None:
    simulations = [*talks(1, 1, 2), *talks(1, 2, 3)[3:]]
    powers = pass_powers(simulations, [True, True, True, True, False])
    assert [(power.k, power.pairs) for power in powers] == [(2, 2), (3, 1)]
    assert [power.value for power in powers] == pytest.approx([(1 + 1 / 3) / 2, 0.0])


def test_pass_k_of_one_pair_has_the_powers_of_wilsons_interval_and_of_many_pairs_one_over_these() -> None:
    [two] = pass_powers(talks(1, 1, 2), [True, True])
    assert (two.low, two.high) == pytest.approx((0.3424**2, 1.0), abs=1e-3)
    simulations = talks(4, 5, 3)
    passed = [number % 7 != 0 for number in range(60)]
    power = pass_powers(simulations, passed)[0]
    assert power.low is not None
    assert power.high is not None
    assert power.low < power.value < power.high
    assert comb(3, 2) == 3  # of three repetitions there are three samples of two


def test_a_paired_difference_has_mcnemars_exact_p_and_an_interval_with_a_width() -> None:
    simulations = talks(1, 1, 40)
    first, second = hits(20, 40), hits(30, 40)
    difference = paired_difference(simulations, first, second)
    assert difference is not None
    assert (difference.value, difference.gained, difference.lost, difference.n) == (0.25, 10, 0, 40)
    assert difference.p == pytest.approx(2 / 2**10)
    assert 0 < difference.low < 0.25 < difference.high
    same = paired_difference(simulations, first, first)
    assert same is not None
    assert (same.value, same.p) == (0.0, 1.0)
    assert same.low < -0.01 < 0.01 < same.high


def test_the_order_of_the_runs_changes_the_sign_alone() -> None:
    simulations = talks(3, 10, 2)
    first, second = [n % 3 > 0 for n in range(60)], [n % 4 > 0 for n in range(60)]
    there, back = paired_difference(simulations, first, second), paired_difference(simulations, second, first)
    assert there is not None
    assert back is not None
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert there.p == pytest.approx(back.p, abs=0.02)


def test_twins_that_all_changed_at_once_are_no_independent_evidence() -> None:
    """Eight of twenty twins lose all their ten conversations: 80 lost conversations, but eight twins."""
    simulations = talks(1, 20, 10)
    second = [simulation.twin not in {f"t{number}" for number in range(8)} for simulation in simulations]
    difference = paired_difference(simulations, [True] * 200, second)
    assert difference is not None
    assert difference.lost == 80
    assert 0.001 < difference.p < 0.05
    assert difference.over in OVER[1:]
    assert difference.high - difference.low > 0.3


def test_many_pairs_are_tested_without_flipping_signs() -> None:
    simulations = talks(1, 1500, 2)
    first, second = [n % 2 > 0 for n in range(3000)], [n % 3 > 0 for n in range(3000)]
    difference = paired_difference(simulations, first, second)
    assert difference is not None
    assert difference.p < 1e-6
