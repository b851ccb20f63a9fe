"""memory/training/audit.py: what audits measure, and when they stop a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_training import audit

from conftest import PAIR
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import gains
from usertwin.memory.recon.guards import LEAK_REASONS, REASONS, rejection_reason
from usertwin.memory.training.audit import SIGNIFICANCE, Auditor, reason_to_stop
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


def test_traces_that_quote_the_action_leak_and_gain_nothing() -> None:
    result = auditor().audit([f"I want {action}" for action in ACTIONS])
    assert (result.leak_rate, result.rejection_rate, result.reveals_action, result.guarded_gain) == (1.0, 1.0, 1.0, 0.0)


def test_an_audit_is_the_mean_over_its_pairs() -> None:
    traces = ["I was in no hurry at all", f"I want {ACTIONS[1]}", ""]
    result = auditor().audit(traces)
    assert result.leak_rate == pytest.approx(1 / 3)
    assert result.rejection_rate == pytest.approx(2 / 3)  # an empty trace is rejected, but is no leak
    assert result.reveals_action == pytest.approx(1 / 3)
    assert result.words == pytest.approx((7 + 9 + 0) / 3)
    assert result.guarded_gain == pytest.approx(gains(FakeScorer(), PAIRS[0], traces[:1])[0]["guarded_gain"] / 3)


def test_an_empty_trace_gives_nothing_away() -> None:
    assert auditor().audit(["", "", ""]).reveals_action == 0.0


def test_traces_are_matched_to_pairs_by_order() -> None:
    traces = [f"I want {action}" for action in ACTIONS]
    assert auditor(EXAMPLES[::-1]).audit(traces[::-1]) == auditor().audit(traces)
    assert auditor().audit(traces[::-1]).reveals_action < 1.0


def test_an_audit_needs_one_trace_per_pair() -> None:
    with pytest.raises(ValueError, match="zip"):
        auditor().audit(["I was calm"])


def test_every_leak_reason_is_a_guard() -> None:
    assert set(LEAK_REASONS) < set(REASONS)


# When to stop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "n", "stops"),
    # Fisher's test, one-sided: 4 to 13 of 32 has p = 0.0110, to 14 0.0056; 0 to 6 0.0121, to 7 0.0054; 0 to 4 of 4 0.0143.
    [(4, 13, 32, False), (4, 14, 32, True), (0, 6, 32, False), (0, 7, 32, True), (8, 8, 32, False), (14, 4, 32, False),
     (0, 4, 4, False), (0, 5, 5, True), (32, 32, 32, False), (0, 0, 32, False)],
)  # fmt: skip
def test_a_rise_with_p_below_one_percent_stops_the_training(before: int, after: int, n: int, stops: bool) -> None:
    reason = reason_to_stop(audit(before / n, n), audit(after / n, n))
    assert (reason is not None) == stops
    if reason is not None:
        assert f"{after} of {n} traces alone identify the action, {before} of {n} did before training" in reason


@given(st.integers(0, 32), st.integers(0, 32))
def test_only_a_rise_stops_and_a_larger_rise_stops_too(before: int, after: int) -> None:
    stops = reason_to_stop(audit(before / 32), audit(after / 32)) is not None
    assert not (stops and after <= before)
    if stops:
        assert reason_to_stop(audit(before / 32), audit(min(32, after + 1) / 32)) is not None


def test_the_significance_level_is_low_since_every_audit_tests_again() -> None:
    assert 0 < SIGNIFICANCE <= 0.01
