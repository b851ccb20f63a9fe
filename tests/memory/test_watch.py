"""memory/training/audit.py: audits say what traces do, a training stops only on what chance does not do, and curves outlive a kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import PAIR
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import gains
from usertwin.memory.recon.guards import LEAK_REASONS, REASONS, rejection_reason
from usertwin.memory.training.audit import CHANCE, Audit, Auditor, reason_to_stop
from usertwin.memory.training.curves import Curves
from usertwin.memory.training.dataset import TrainingExample
from usertwin.personas import Pair

ACTIONS = ("the early train to Rome please", "a quiet seat by the window thanks", "no coffee for me today thanks")
PAIRS = [replace(PAIR, conversation_id=f"talk-{i}", action=action) for i, action in enumerate(ACTIONS)]
LESSONS = [TrainingExample("log/Ann", pair) for pair in PAIRS]


def auditor(lessons: Sequence[TrainingExample] = LESSONS) -> Auditor:
    others = {"log/Ann": Distractors(PAIRS, FakeEmbedder())}
    return Auditor(lessons, FakeScorer(), others, guard, "transcript", "backward", 0)


def guard(trace: str, pair: Pair) -> str | None:
    return rejection_reason(trace, pair)


def audit(gives_away: float, n: int = 32) -> Audit:
    return Audit(n=n, guarded_gain=0.1, leak_rate=0.0, rejection_rate=0.0, gives_away=gives_away, words=12.0)


# Audits --------------------------------------------------------------------------------------------------------------


def test_traces_that_say_nothing_of_the_action_give_nothing_away() -> None:
    found = auditor().audit(["I was calm", "I was calm", "I was calm"])
    assert (found.n, found.leak_rate, found.rejection_rate, found.gives_away, found.words) == (3, 0.0, 0.0, 0.0, 3.0)


def test_traces_that_quote_the_action_leak_and_give_it_away_and_gain_nothing() -> None:
    found = auditor().audit([f"I want {action}" for action in ACTIONS])
    assert (found.leak_rate, found.rejection_rate, found.gives_away, found.guarded_gain) == (1.0, 1.0, 1.0, 0.0)


def test_an_audit_is_the_mean_over_its_pairs() -> None:
    traces = ["I was in no hurry at all", f"I want {ACTIONS[1]}", ""]
    found = auditor().audit(traces)
    assert found.leak_rate == pytest.approx(1 / 3)
    assert found.rejection_rate == pytest.approx(2 / 3)  # nothing written is rejected, and no leak
    assert found.gives_away == pytest.approx(1 / 3)
    assert found.words == pytest.approx((7 + 9 + 0) / 3)
    assert found.guarded_gain == pytest.approx(gains(FakeScorer(), PAIRS[0], traces[:1])[0]["guarded_gain"] / 3)


def test_nothing_written_gives_nothing_away() -> None:
    assert auditor().audit(["", "", ""]).gives_away == 0.0


def test_the_order_of_the_pairs_is_that_of_the_traces() -> None:
    traces = [f"I want {action}" for action in ACTIONS]
    assert auditor(LESSONS[::-1]).audit(traces[::-1]) == auditor().audit(traces)
    assert auditor().audit(traces[::-1]).gives_away < 1.0


def test_as_many_traces_as_pairs_are_looked_at() -> None:
    with pytest.raises(ValueError, match="zip"):
        auditor().audit(["I was calm"])


def test_guards_that_speak_of_a_leak_are_guards() -> None:
    assert set(LEAK_REASONS) < set(REASONS)


# When to stop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "n", "stops"),
    # Fisher's test, one-sided: 4 to 13 of 32 has p = 0.0110, to 14 0.0056; 0 to 6 0.0121, to 7 0.0054; 0 to 4 of 4 0.0143.
    [(4, 13, 32, False), (4, 14, 32, True), (0, 6, 32, False), (0, 7, 32, True), (8, 8, 32, False), (14, 4, 32, False),
     (0, 4, 4, False), (0, 5, 5, True), (32, 32, 32, False), (0, 0, 32, False)],
)  # fmt: skip
def test_training_stops_where_chance_does_as_much_in_less_than_one_of_a_hundred(
    before: int, after: int, n: int, stops: bool
) -> None:
    reason = reason_to_stop(audit(before / n, n), audit(after / n, n))
    assert (reason is not None) == stops
    if reason is not None:
        assert f"from {after} of {n} traces alone the action can be told, it was {before} of {n} before" in reason


@given(st.integers(0, 32), st.integers(0, 32))
def test_an_audit_that_does_not_rise_never_stops_and_one_that_stops_stops_if_it_rises_further(before: int, after: int) -> None:
    stops = reason_to_stop(audit(before / 32), audit(after / 32)) is not None
    assert not (stops and after <= before)
    if stops:
        assert reason_to_stop(audit(before / 32), audit(min(32, after + 1) / 32)) is not None


def test_chance_is_small_since_it_is_asked_at_every_audit() -> None:
    assert 0 < CHANCE <= 0.01


def test_an_audit_that_was_read_from_its_curve_stops_like_the_one_that_was_written(tmp_path: Path) -> None:
    curves = Curves(tmp_path / "curves.jsonl")
    curves.add_audit(0, audit(1 / 30, 30))
    first = curves.first_audit()
    assert first is not None
    assert reason_to_stop(first, audit(10 / 30, 30)) == reason_to_stop(audit(1 / 30, 30), audit(10 / 30, 30)) is not None


# Curves --------------------------------------------------------------------------------------------------------------

VALUES = st.dictionaries(st.sampled_from(["loss", "reward", "tokens"]), st.floats(-1e6, 1e6), max_size=3)
ROWS = st.lists(st.fixed_dictionaries({"values": VALUES}), max_size=6)
AUDIT = audit(0.25)


def curves_of(folder: str | Path, rows: Sequence[Any]) -> Curves:
    """A file with an audit before the first step, and a line for each step."""
    curves = Curves(Path(folder, "curves.jsonl"))
    curves.add_audit(0, AUDIT)
    for step, row in enumerate(rows, 1):
        curves.add({"step": step, **row})
    return curves


@given(ROWS)
def test_what_was_added_is_read(rows: list[dict[str, Any]]) -> None:
    with TemporaryDirectory() as folder:
        curves = curves_of(folder, rows)
        assert [row["step"] for row in curves.read()] == list(range(len(rows) + 1))
        assert [row["values"] for row in curves.read()[1:]] == [row["values"] for row in rows]
        assert curves.first_audit() == AUDIT


@given(ROWS, st.data())
@example([{"values": {"loss": float("nan")}}], None)
def test_curves_that_were_cut_off_at_any_byte_go_on_from_any_step(
    rows: list[dict[str, Any]], data: st.DataObject | None
) -> None:
    with TemporaryDirectory() as folder:
        curves = curves_of(folder, rows)
        raw = curves.path.read_bytes()
        cut = len(raw) - 1 if data is None else data.draw(st.integers(0, len(raw)))
        step = 0 if data is None else data.draw(st.integers(-1, len(rows)))
        curves.path.write_bytes(raw[:cut])
        whole = [json.loads(line) for line in raw.splitlines() if raw.index(line) + len(line) <= cut]
        curves.begin_at(step)
        curves.add({"step": step + 1, "values": {}})
        found = curves.read()
        assert [row["step"] for row in found] == [row["step"] for row in whole if row["step"] <= step] + [step + 1]
        assert curves.path.read_bytes().endswith(b"}\n")
        assert [one.name for one in Path(folder).iterdir()] == ["curves.jsonl"]


def test_beginning_anew_takes_off_everything(tmp_path: Path) -> None:
    curves = curves_of(tmp_path, [{"values": {}}])
    curves.begin_at(-1)
    assert curves.read() == []
    assert curves.first_audit() is None
    assert curves.last_audit() is None


def test_a_step_is_kept_with_its_audit(tmp_path: Path) -> None:
    curves = curves_of(tmp_path, [{"values": {}}, {"values": {}}])
    curves.add_audit(2, replace(AUDIT, guarded_gain=0.5))
    curves.add({"step": 3, "values": {}})
    curves.begin_at(2)
    assert [row["step"] for row in curves.read()] == [0, 1, 2, 2]
    assert curves.last_audit() == (2, replace(AUDIT, guarded_gain=0.5))
    assert curves.first_audit() == AUDIT


def test_curves_that_were_never_begun_are_empty(tmp_path: Path) -> None:
    curves = Curves(tmp_path / "curves.jsonl")
    assert curves.read() == []
    assert curves.first_audit() is None
    curves.begin_at(-1)
    assert curves.read() == []


def test_an_audit_after_the_first_step_is_not_that_of_the_untrained_policy(tmp_path: Path) -> None:
    curves = Curves(tmp_path / "curves.jsonl")
    curves.add_audit(20, AUDIT)
    assert curves.first_audit() is None
