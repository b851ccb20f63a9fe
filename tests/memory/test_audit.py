"""memory/training/audit.py: what audits measure, and when they stop a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import audit

from conftest import PAIR
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import gains
from usertwin.memory.recon.guards import LEAK_REASONS, REASONS, rejection_reason
from usertwin.memory.training.audit import SIGNIFICANCE, Audit, Auditor, reason_to_stop
from usertwin.memory.training.dataset import TrainingExample
from usertwin.personas import Pair

ACTIONS = ("the early train to Rome please", "a quiet seat by the window thanks", "no coffee for me today thanks")
PAIRS = [replace(PAIR, conversation_id=f"talk-{i}", action=action) for i, action in enumerate(ACTIONS)]
EXAMPLES = [TrainingExample("log/Ann", pair) for pair in PAIRS]


def auditor(examples: Sequence[TrainingExample] = EXAMPLES) -> Auditor:
    distractors = {"log/Ann": Distractors(PAIRS, FakeEmbedder())}
    return Auditor(examples, FakeScorer(), distractors, guard, "transcript", "backward", 0)


def guard(trace: str, pair: Pair) -> str | None:
    return rejection_reason(trace, pair)


# Audits --------------------------------------------------------------------------------------------------------------


def test_traces_unrelated_to_the_action_give_nothing_away() -> None:
    result = auditor().audit(["I was calm", "I was calm", "I was calm"])
    assert (result.n, result.leak_rate, result.rejection_rate, result.reveals_action, result.words) == (3, 0.0, 0.0, 0.0, 3.0)


def test_traces_that_quote_the_action_leak_and_have_no_gain() -> None:
    result = auditor().audit([f"I want {action}" for action in ACTIONS])
    assert (result.leak_rate, result.rejection_rate, result.reveals_action, result.guarded_gain) == (1.0, 1.0, 1.0, None)


def test_an_audit_is_the_mean_over_its_pairs() -> None:
    traces = ["I was in no hurry at all", f"I want {ACTIONS[1]}", ""]
    result = auditor().audit(traces)
    assert result.leak_rate == pytest.approx(1 / 3)
    assert result.rejection_rate == pytest.approx(2 / 3)  # an empty trace is rejected, but is no leak
    assert result.reveals_action == pytest.approx(1 / 3)
    assert result.words == pytest.approx((7 + 9 + 0) / 3)
    assert result.guarded_gain == pytest.approx(gains(FakeScorer(), PAIRS[0], traces[:1])[0]["guarded_gain"])
    assert result.margins[2] is None
    assert [margin > 0 for margin in result.margins[:2] if margin is not None] == [False, True]


def test_an_empty_trace_gives_nothing_away() -> None:
    assert auditor().audit(["", "", ""]).reveals_action == 0.0


def test_traces_are_matched_to_pairs_by_order() -> None:
    traces = [f"I want {action}" for action in ACTIONS]
    first, reverse = auditor().audit(traces), auditor(EXAMPLES[::-1]).audit(traces[::-1])
    assert replace(reverse, margins=reverse.margins[::-1]) == first
    assert auditor().audit(traces[::-1]).reveals_action < 1.0


def test_an_audit_needs_one_trace_per_pair() -> None:
    with pytest.raises(ValueError, match="zip"):
        auditor().audit(["I was calm"])


def test_every_leak_reason_is_a_guard() -> None:
    assert set(LEAK_REASONS) < set(REASONS)


# When to stop --------------------------------------------------------------------------------------------------------


def watched(margins: Sequence[float | None]) -> Audit:
    """An audit of pairs with these margins."""
    share = sum(margin is not None and margin > 0 for margin in margins) / len(margins)
    return replace(audit(share, len(margins)), margins=tuple(margins))


@pytest.mark.parametrize(
    ("before", "after", "stops"),
    [
        ([-1.0] * 32, [-0.5 - place / 100 for place in range(31)] + [0.1], True),  # every pair rises, and one is identified
        ([-1.0] * 32, [-0.5] * 32, False),  # a rise that identifies no action
        ([-1.0, 2.0] * 16, [2.0, -1.0] * 16, False),  # as many rises as falls
        ([1.0] * 32, [-1.0] * 32, False),
        ([1.0] * 32, [1.0] * 32, False),
        ([-1.0] * 4, [2.0] * 4, False),  # too few to tell
        ([None] * 32, [None] * 32, False),
        ([-1.0] * 12 + [None], [1.0] * 12 + [None], True),
    ],
)
def test_a_rise_of_the_margins_of_the_same_pairs_stops_the_training(
    before: list[float | None], after: list[float | None], stops: bool
) -> None:
    first, latest = watched(before), watched(after)
    reason = reason_to_stop(first, latest)
    assert (reason is not None) == stops
    if reason is not None:
        identified = round(latest.reveals_action * latest.n)
        assert f"{identified} of {latest.n} traces alone identify the action, 0 of {first.n} did before training" in reason


def test_an_audit_of_an_earlier_version_without_margins_stops_nothing() -> None:
    assert reason_to_stop(replace(audit(0.1), margins=()), audit(0.9)) is None


@settings(max_examples=12)  # with ties scipy counts all permutations, which takes seconds
@given(st.integers(0, 32), st.integers(0, 32))
def test_only_a_rise_stops_and_a_larger_rise_stops_too(before: int, after: int) -> None:
    stops = reason_to_stop(audit(before / 32), audit(after / 32)) is not None
    assert not (stops and after <= before)
    if stops:
        assert reason_to_stop(audit(before / 32), audit(min(32, after + 1) / 32)) is not None


@pytest.mark.slow
@pytest.mark.parametrize(("n", "related", "least"), [(32, 0.3, 0.4), (32, 0.6, 0.65), (64, 0.3, 0.75), (64, 0.6, 0.95)])
def test_the_power_of_the_stop_rule(n: int, related: float, least: float) -> None:
    """Margins are normal, and correlated between the audits of a pair; the share that is above 0 rises from 0.15 to 0.30."""
    import numpy as np
    from scipy.stats import norm

    rng = np.random.default_rng(0)

    def stopped(before: float, after: float, runs: int = 400) -> float:
        stops = 0
        for _ in range(runs):
            draws = rng.multivariate_normal([0, 0], [[1, related], [related, 1]], n)
            first, latest = (list(draws[:, column] + norm.ppf(share)) for column, share in enumerate((before, after)))
            stops += reason_to_stop(watched(first), watched(latest)) is not None
        return stops / runs

    assert stopped(0.15, 0.15) <= 0.025
    assert stopped(0.15, 0.30) >= least


def test_the_significance_level_is_low_since_every_audit_tests_again() -> None:
    assert 0 < SIGNIFICANCE <= 0.01
