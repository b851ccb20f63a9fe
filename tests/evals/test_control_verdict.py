"""evals/traces/control_verdict.py: the summary is a pure function of the measurements, and the decision follows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usertwin.evals.metrics import statistics
from usertwin.evals.traces.control_verdict import (
    CHOOSERS,
    CONTROLS,
    RIVALS,
    ContextScores,
    ControlledTurn,
    TraceScores,
    decide,
    summarize_controls,
)
from usertwin.memory.triples import Candidate
from usertwin.personas import Pair, Turn

pytestmark = pytest.mark.usefixtures("two_clusters_suffice")

few = settings(max_examples=100)


def pair(conversation: str, position: int = 1) -> Pair:
    return Pair(
        speaker="Ann",
        context=(Turn("desk", "agent", "yes?"),),
        action=f"a lamp {position}",
        goal="",
        conversation_id=conversation,
        position=position,
        when=0.0,
    )


def scores(
    gain: float, guarded_gain: float | None = None, rejected: str | None = None, *, leaks: bool = False, slot: float = 0
) -> TraceScores:
    return TraceScores(
        trace="a trace",
        gain=gain,
        guarded_gain=gain if guarded_gain is None else guarded_gain,
        rejected=rejected,
        reveals_action=leaks,
        slot=slot,
    )


def turn(conversation: str, contrast: float | None = None, **traces: TraceScores) -> ControlledTurn:
    return ControlledTurn(pair(conversation), "a chair", dict(traces), contrast)


def proposal(
    score: float, benefit: float, trace: str = "a trace", overlap: float = 0.0, rejected: str | None = None
) -> ContextScores:
    return ContextScores(Candidate(trace, score, rejected), overlap, len(trace.split()), benefit)


def summarize(
    turns: Sequence[ControlledTurn] = (), downstream: Sequence[tuple[Pair, Sequence[ContextScores]]] = ()
) -> dict[str, Any]:
    """Return the summary; a round trip through JSON must not change it."""
    summary = summarize_controls(turns, downstream, 0)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    return summary


# The decision ----------------------------------------------------------------------------------------------------------

YES = {"value": 0.2, "low": 0.1, "high": 0.3, "n": 9}
#: Everything that the rule needs, by its key: 4 rivals, the swap, the validity, 2 selections.
ASKED = (
    *(("own_minus", name) for name in ("shuffled", "other", "bag", "keywords")),
    ("swap_contrast", None), ("validity", None),
    ("selection", "recon - random"), ("selection", "recon - longest"),
)  # fmt: skip


def measured(estimates: Sequence[Any]) -> dict[str, Any]:
    """Return a summary with these estimates for the keys that the rule needs."""
    summary: dict[str, Any] = {"own_minus": {}, "selection": {}}
    for (key, name), estimate in zip(ASKED, estimates, strict=True):
        if name is None:
            summary[key] = estimate
        else:
            summary[key][name] = estimate
    return summary


def test_when_everything_is_above_zero_it_is_more_than_leakage() -> None:
    summary = decide(measured([YES] * 8))
    assert summary["more_than_leakage"] is True
    assert list(summary["conditions"].values()) == [True] * 8


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize(
    "no",
    [YES | {"low": 0.0}, YES | {"low": -0.1}, {"value": -0.2, "low": -0.3, "high": -0.1, "n": 9}],
    ids=["touches zero", "holds zero", "below zero"],
)
def test_one_condition_that_does_not_hold_is_enough_for_no(index: int, no: dict[str, Any] | None) -> None:
    summary = decide(measured([no if i == index else YES for i in range(8)]))
    assert summary["more_than_leakage"] is False
    assert list(summary["conditions"].values()) == [i != index for i in range(8)]


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("unknown", [None, YES | {"low": None, "high": None}], ids=["not measured", "no interval"])
def test_a_condition_without_an_interval_leaves_the_decision_open_unless_another_fails(index: int, unknown: Any) -> None:
    estimates = [unknown if i == index else YES for i in range(8)]
    summary = decide(measured(estimates))
    assert summary["more_than_leakage"] is None
    assert list(summary["conditions"].values()) == [None if i == index else True for i in range(8)]
    estimates[index - 1] = YES | {"low": -0.1}
    assert decide(measured(estimates))["more_than_leakage"] is False


_ENDS = st.none() | st.tuples(st.floats(-1, 1), st.floats(-1, 1)).map(sorted)
_ESTIMATE = st.none() | _ENDS.map(
    lambda ends: {"value": 0.5, "low": ends and ends[0], "high": ends and ends[1], "n": 3}
)  # fmt: skip


@few
@given(st.lists(_ESTIMATE, min_size=8, max_size=8), st.dictionaries(st.sampled_from(["copy", "filler", "forward"]), _ESTIMATE))
def test_the_decision_is_the_rule_and_nothing_else(estimates: list[Any], others: dict[str, Any]) -> None:
    """Each condition needs a lower end above 0; the other controls do not count."""
    summary = measured(estimates)
    summary["own_minus"] |= others
    holds = [None if first is None or first["low"] is None else first["low"] > 0 for first in estimates]
    decided = decide(summary)
    assert list(decided["conditions"].values()) == holds
    assert decided["more_than_leakage"] is (False if False in holds else None if None in holds else True)


def test_a_rival_that_was_never_measured_is_not_beaten() -> None:
    summary = measured([YES] * 8)
    del summary["own_minus"]["other"]  # a log without another person
    assert decide(summary)["conditions"]["own beats other"] is None


# The table -------------------------------------------------------------------------------------------------------------


def test_a_row_says_what_a_control_gains_guarded_and_not() -> None:
    turns = [
        turn("a", own=scores(1.0, 0.8, slot=0.1)),
        turn("a", own=scores(3.0, 0.4, "new_words", leaks=True, slot=0.3)),
        turn("b", own=scores(2.0, 0.6, leaks=True, slot=0.2)),
        turn("b", own=scores(-2.0, -0.2, "new_words")),
        turn("b", own=scores(6.0, 0.0, "quotes_action", leaks=True)),
    ]
    row = summarize(turns)["controls"]["own"]
    assert row["gain"]["value"] == pytest.approx(2.0)
    assert row["guarded_gain"]["value"] == pytest.approx(1.6 / 5)
    assert row["passing_gain"]["value"] == pytest.approx(0.7)  # of passing traces
    assert row["passing_gain"]["n"] == 2
    assert row["slot"]["value"] == pytest.approx(0.6 / 5)
    assert (row["rejected"], row["reasons"], row["reveals_action"], row["n"]) == (
        3, {"new_words": 2, "quotes_action": 1}, 3, 5,
    )  # fmt: skip
    leaking, clean = fmean([3.0, 2.0, 6.0]), fmean([1.0, -2.0])
    assert row["gain_by_leak_mean"] == pytest.approx((leaking + clean) / 2)


def test_mean_by_leak_equals_the_mean_for_a_single_group() -> None:
    for leaks in (True, False):
        row = summarize([turn("a", own=scores(1.0, leaks=leaks)), turn("b", own=scores(2.0, leaks=leaks))])["controls"]["own"]
        assert row["gain_by_leak_mean"] == pytest.approx(1.5)


def test_control_that_is_always_rejected_has_no_passing_gain() -> None:
    row = summarize([turn("a", copy=scores(5, 1, "quotes_action")), turn("b", copy=scores(4, 1, "quotes_action"))])["controls"][
        "copy"
    ]
    assert row["passing_gain"] is None
    assert row["rejected"] == row["n"] == 2
    assert row["gain"]["value"] == pytest.approx(4.5)


def test_only_controls_that_were_written_are_in_the_table_in_its_order() -> None:
    summary = summarize([turn("a", forward=scores(1), own=scores(2)), turn("b", copy=scores(3), own=scores(2))])
    assert list(summary["controls"]) == ["own", "copy", "forward"]
    assert list(summary["own_minus"]) == ["copy", "forward"]
    assert {*RIVALS} < {*CONTROLS}


def test_own_minus_control_is_paired_on_guarded_gain() -> None:
    turns = [
        turn("a", own=scores(9, 1.0), bag=scores(9, 0.4)),
        turn("b", own=scores(9, 2.0), bag=scores(0, 0.6)),
        turn("b", own=scores(9, 50.0)),
        turn("b", bag=scores(9, 70.0)),
    ]
    summary = summarize(turns)["own_minus"]["bag"]
    assert summary["value"] == pytest.approx(fmean([0.6, 1.4]))
    assert summary["low"] < 0.6 < 1.4 < summary["high"]  # of two conversations
    assert summary["n"] == 2


def test_swap_contrast_is_over_the_turns_that_have_one() -> None:
    turns = [turn("a", 0.5, own=scores(1)), turn("b", own=scores(1)), turn("c", 0.0, own=scores(1))]
    summary = summarize(turns)["swap_contrast"]
    assert (summary["value"], summary["n"]) == (0.25, 2)


def test_intervals_go_by_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty turns of seven conversations have no interval, so no condition can hold."""
    monkeypatch.setattr(statistics, "MIN_CONVERSATIONS", 8)
    zero = scores(0)
    for conversations, sure in ((1, None), (7, None), (8, True)):
        turns = [
            turn(f"talk {i % conversations}", 1.0, own=scores(1 + i / 40), shuffled=zero, other=zero, bag=zero, keywords=zero)
            for i in range(40)
        ]
        summary = summarize(turns)
        assert (summary["turns"], summary["conversations"]) == (40, conversations)
        assert summary["decision"]["conditions"]["own beats bag"] is sure
        assert (summary["own_minus"]["bag"]["low"] is not None) is bool(sure)


def test_empty_measurement_shows_nothing() -> None:
    summary = summarize()
    assert summary["controls"] == summary["own_minus"] == {}
    assert summary["swap_contrast"] is summary["validity"] is None
    assert summary["decision"]["more_than_leakage"] is None


def test_summary_holds_every_turn_so_that_the_table_can_be_recomputed() -> None:
    turns = [
        turn("a", 0.5, own=scores(1.0, 0.5, slot=0.1), copy=scores(4.0, 0.1, "quotes_action", leaks=True)),
        turn("b", own=scores(2.0, 0.25)),
    ]
    summary = summarize(turns)
    [first, second] = summary["turn_details"]
    assert first == {
        "conversation_id": "a", "position": 1, "action": "a lamp 1", "other_action": "a chair", "contrast": 0.5,
        "traces": {
            "own": {
                "trace": "a trace", "gain": 1.0, "guarded_gain": 0.5, "rejected": None, "reveals_action": False, "slot": 0.1,
            },
            "copy": {
                "trace": "a trace", "gain": 4.0, "guarded_gain": 0.1, "rejected": "quotes_action", "reveals_action": True,
                "slot": 0,
            },
        },
    }  # fmt: skip
    assert (second["contrast"], set(second["traces"])) == (None, {"own"})
    restored = [
        ControlledTurn(
            pair(raw["conversation_id"]),
            raw["other_action"],
            {name: TraceScores(**scores) for name, scores in raw["traces"].items()},
            raw["contrast"],
        )
        for raw in summary["turn_details"]
    ]
    assert summarize_controls(restored, [], 0) == summary
    assert decide(summary) == summary["decision"]


# Downstream ------------------------------------------------------------------------------------------------------------


def test_benefit_of_a_method_is_that_of_its_selected_trace() -> None:
    first = [
        proposal(0.1, 0.4, "first"),
        proposal(0.9, 0.7, "best by score"),
        proposal(0.5, -0.2, "the longest one by words of all"),
    ]
    second = [
        proposal(0.6, 1.0, "best and first"),
        proposal(0.2, 0.5, "short"),
        proposal(-1, 0.0, "the longest one of them all", 0.2),
    ]
    summary = summarize(downstream=[(pair("a"), first), (pair("b"), second)])
    worth = {name: summary["downstream"][name]["value"] for name in CHOOSERS}
    assert worth == {
        "recon": pytest.approx(fmean([0.7, 1.0])),
        "random": pytest.approx(fmean([fmean([0.4, 0.7, -0.2]), 0.5])),
        "longest": pytest.approx(fmean([-0.2, 0.0])),
        "backward": pytest.approx(fmean([0.4, 1.0])),
    }
    for name in ("random", "longest", "backward"):
        assert summary["selection"][f"recon - {name}"]["value"] == pytest.approx(worth["recon"] - worth[name])
        assert summary["selection"][f"recon - {name}"]["n"] == 2
    assert summary["downstream_turns"] == 2


def test_downstream_selection_ignores_the_floor() -> None:
    proposals = [proposal(-0.5, 0.1, "one", rejected="misleads"), proposal(-0.2, 0.3, "two", rejected="misleads")]
    assert summarize(downstream=[(pair("a"), proposals)])["downstream"]["recon"]["value"] == pytest.approx(0.3)


@settings(max_examples=15)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.integers(1, 5)), min_size=1, max_size=4),
        min_size=1,
        max_size=4,
    )
)
def test_benefit_of_a_method_lies_between_worst_and_best_trace(
    rows: list[list[tuple[float, float, int]]],
) -> None:
    downstream = [
        (
            pair(f"talk {i}"),
            [proposal(score, benefit, f"{i} {j} " + "so " * words) for j, (score, benefit, words) in enumerate(row)],
        )
        for i, row in enumerate(rows)
    ]
    worst, best = (fmean(end(benefit for _, benefit, _ in row) for row in rows) for end in (min, max))
    for first in summarize(downstream=downstream)["downstream"].values():
        assert worst - 1e-9 <= first["value"] <= best + 1e-9


def test_a_score_that_orders_the_benefits_is_valid_and_one_that_only_orders_lengths_is_not() -> None:
    """Benefit grows with the score in the first case; in the second both grow with the length alone."""

    def proposals(index: int, *, by_length: bool) -> list[ContextScores]:
        summary: list[ContextScores] = []
        for number in range(4):
            words = (index * 7 + number * 5) % 11 + 1
            hidden = ((index * 13 + number * 29) % 17) / 17
            wobble = ((index * 31 + number * 17) % 23) / 2300
            score, benefit = (words + wobble, float(words)) if by_length else (hidden, hidden)
            summary.append(proposal(score, benefit, " ".join(["word"] * words)))
        return summary

    for by_length in (False, True):
        downstream = [(pair(f"talk {index}"), proposals(index, by_length=by_length)) for index in range(12)]
        summary = summarize(downstream=downstream)
        assert summary["decision"]["conditions"]["the score predicts the benefit downstream"] is not by_length
        if not by_length:
            assert summary["validity"]["value"] == pytest.approx(1.0)
            assert summary["validity"]["n"] == 48


def test_a_trace_without_a_score_counts_as_zero() -> None:
    row = [
        proposal(0.5, 0.5, "one"),
        replace(proposal(0, 0.0, "two"), candidate=Candidate("two", None, None)),
        proposal(-1, -1, "three"),
    ]
    assert summarize(downstream=[(pair("a"), [*row, proposal(2, 2, "f o u r")])])["validity"]["value"] == pytest.approx(1.0)
