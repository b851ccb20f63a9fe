"""evals/traces/control_verdict.py: what control traces tell is a pure function of what was measured, and the decision follows its rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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

few = settings(max_examples=100)


def pair(conversation: str, position: int = 1) -> Pair:
    return Pair("Ann", (Turn("desk", "agent", "yes?"),), f"a lamp {position}", "", conversation, position, 0.0)


def told(
    gain: float, novel: float | None = None, rejected: str | None = None, *, leaks: bool = False, slot: float = 0
) -> TraceScores:
    return TraceScores("a trace", gain, gain if novel is None else novel, rejected, leaks, slot)


def moment(conversation: str, contrast: float | None = None, **traces: TraceScores) -> ControlledTurn:
    return ControlledTurn(pair(conversation), "a chair", dict(traces), contrast)


def shown(
    score: float, benefit: float, trace: str = "a trace", overlap: float = 0.0, rejected: str | None = None
) -> ContextScores:
    return ContextScores(Candidate(trace, score, rejected), overlap, len(trace.split()), benefit)


def holding(
    moments: Sequence[ControlledTurn] = (), downstream: Sequence[tuple[Pair, Sequence[ContextScores]]] = ()
) -> dict[str, Any]:
    """What comes out, through JSON, which must not change it."""
    found = summarize_controls(moments, downstream, 0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


# The decision ----------------------------------------------------------------------------------------------------------

YES = {"value": 0.2, "low": 0.1, "high": 0.3, "n": 9}
#: Everything that the rule asks for, by where it stands; 4 rivals, the swap, the validity, 2 selections.
ASKED = (
    *(("own_minus", name) for name in ("shuffled", "other", "bag", "keywords")),
    ("swap_contrast", None), ("validity", None),
    ("selection", "recon - random"), ("selection", "recon - longest"),
)  # fmt: skip


def measured(estimates: Sequence[Any]) -> dict[str, Any]:
    """A result with these estimates for what the rule asks for."""
    found: dict[str, Any] = {"own_minus": {}, "selection": {}}
    for (key, name), estimate in zip(ASKED, estimates, strict=True):
        if name is None:
            found[key] = estimate
        else:
            found[key][name] = estimate
    return found


def test_when_everything_is_above_zero_it_is_more_than_leakage() -> None:
    found = decide(measured([YES] * 8))
    assert found["more_than_leakage"] is True
    assert list(found["conditions"].values()) == [True] * 8


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize(
    "no",
    [
        None,
        YES | {"low": 0.0},
        YES | {"low": -0.1},
        YES | {"low": None, "high": None},
        {"value": -0.2, "low": -0.3, "high": -0.1, "n": 9},
    ],
    ids=["not measured", "touches zero", "holds zero", "no interval", "below zero"],
)
def test_one_condition_that_does_not_hold_is_enough_for_no(place: int, no: dict[str, Any] | None) -> None:
    found = decide(measured([no if i == place else YES for i in range(8)]))
    assert found["more_than_leakage"] is False
    assert list(found["conditions"].values()) == [i != place for i in range(8)]


_ENDS = st.none() | st.tuples(st.floats(-1, 1), st.floats(-1, 1)).map(sorted)
_ESTIMATE = st.none() | _ENDS.map(
    lambda ends: {"value": 0.5, "low": ends and ends[0], "high": ends and ends[1], "n": 3}
)  # fmt: skip


@few
@given(st.lists(_ESTIMATE, min_size=8, max_size=8), st.dictionaries(st.sampled_from(["copy", "filler", "forward"]), _ESTIMATE))
def test_the_decision_is_the_rule_and_nothing_else(estimates: list[Any], others: dict[str, Any]) -> None:
    """Each 95% interval above 0: so the lower end is, which there must be; the other controls have no say."""
    found = measured(estimates)
    found["own_minus"] |= others
    holds = [one is not None and one["low"] is not None and one["low"] > 0 for one in estimates]
    decided = decide(found)
    assert list(decided["conditions"].values()) == holds
    assert decided["more_than_leakage"] is all(holds)


def test_a_rival_that_was_never_measured_is_not_beaten() -> None:
    found = measured([YES] * 8)
    del found["own_minus"]["other"]  # a log without anybody else
    assert decide(found)["conditions"]["own beats other"] is False


# The table -------------------------------------------------------------------------------------------------------------


def test_a_row_says_what_a_control_gains_guarded_and_not() -> None:
    moments = [
        moment("a", own=told(1.0, 0.8, slot=0.1)),
        moment("a", own=told(3.0, 0.4, "new_words", leaks=True, slot=0.3)),
        moment("b", own=told(2.0, 0.6, leaks=True, slot=0.2)),
        moment("b", own=told(-2.0, -0.2, "new_words")),
        moment("b", own=told(6.0, 0.0, "quotes_action", leaks=True)),
    ]
    row = holding(moments)["controls"]["own"]
    assert row["gain"]["value"] == pytest.approx(2.0)
    assert row["guarded_gain"]["value"] == pytest.approx(1.6 / 5)
    assert row["guarded"]["value"] == pytest.approx(0.7)  # of what no guard rejects
    assert row["guarded"]["n"] == 2
    assert row["slot"]["value"] == pytest.approx(0.6 / 5)
    assert (row["rejected"], row["reasons"], row["gives_away"], row["n"]) == (
        3, {"new_words": 2, "quotes_action": 1}, 3, 5,
    )  # fmt: skip
    leaking, clean = fmean([3.0, 2.0, 6.0]), fmean([1.0, -2.0])
    assert row["gain_by_leak_mean"] == pytest.approx((leaking + clean) / 2)


def test_of_traces_that_all_leak_or_none_does_the_mean_by_leak_is_the_mean() -> None:
    for leaks in (True, False):
        row = holding([moment("a", own=told(1.0, leaks=leaks)), moment("b", own=told(2.0, leaks=leaks))])["controls"]["own"]
        assert row["gain_by_leak_mean"] == pytest.approx(1.5)


def test_a_control_that_is_always_rejected_has_no_guarded_gain() -> None:
    row = holding([moment("a", copy=told(5, 1, "quotes_action")), moment("b", copy=told(4, 1, "quotes_action"))])["controls"][
        "copy"
    ]
    assert row["guarded"] is None
    assert row["rejected"] == row["n"] == 2
    assert row["gain"]["value"] == pytest.approx(4.5)


def test_only_controls_that_were_written_are_in_the_table_in_its_order() -> None:
    found = holding([moment("a", forward=told(1), own=told(2)), moment("b", copy=told(3), own=told(2))])
    assert list(found["controls"]) == ["own", "copy", "forward"]
    assert list(found["own_minus"]) == ["copy", "forward"]
    assert {*RIVALS} < {*CONTROLS}


def test_the_own_trace_is_compared_on_novel_words_where_both_were_written() -> None:
    moments = [
        moment("a", own=told(9, 1.0), bag=told(9, 0.4)),
        moment("b", own=told(9, 2.0), bag=told(0, 0.6)),
        moment("b", own=told(9, 50.0)),
        moment("b", bag=told(9, 70.0)),
    ]
    found = holding(moments)["own_minus"]["bag"]
    assert found["value"] == pytest.approx(fmean([0.6, 1.4]))
    assert (found["low"], found["high"], found["n"]) == (pytest.approx(0.6), pytest.approx(1.4), 2)


def test_the_contrast_of_swapped_traces_is_over_the_moments_that_have_one() -> None:
    moments = [moment("a", 0.5, own=told(1)), moment("b", own=told(1)), moment("c", 0.0, own=told(1))]
    found = holding(moments)["swap_contrast"]
    assert (found["value"], found["n"]) == (0.25, 2)


def test_intervals_go_by_conversation() -> None:
    """Forty turns of one conversation have no interval, and then nothing is shown to be more than leakage."""
    traces = {"own": told(1.0), "shuffled": told(0), "other": told(0), "bag": told(0), "keywords": told(0)}
    for conversations, sure in ((1, False), (4, True)):
        moments = [moment(f"talk {i % conversations}", 1.0, **traces) for i in range(40)]
        found = holding(moments)
        assert (found["turns"], found["conversations"]) == (40, conversations)
        assert found["decision"]["conditions"]["own beats bag"] is sure
        assert (found["own_minus"]["bag"]["low"] is not None) is sure


def test_nothing_measured_is_nothing_shown() -> None:
    found = holding()
    assert found["controls"] == found["own_minus"] == {}
    assert found["swap_contrast"] is found["validity"] is None
    assert found["decision"]["more_than_leakage"] is False


def test_every_moment_is_in_the_result_with_its_traces_so_that_the_table_can_be_made_again() -> None:
    moments = [
        moment("a", 0.5, own=told(1.0, 0.5, slot=0.1), copy=told(4.0, 0.1, "quotes_action", leaks=True)),
        moment("b", own=told(2.0, 0.25)),
    ]
    found = holding(moments)
    [first, second] = found["moments"]
    assert first == {
        "conversation_id": "a", "position": 1, "action": "a lamp 1", "other_action": "a chair", "contrast": 0.5,
        "traces": {
            "own": {"trace": "a trace", "gain": 1.0, "guarded_gain": 0.5, "rejected": None, "gives_away": False, "slot": 0.1},
            "copy": {
                "trace": "a trace", "gain": 4.0, "guarded_gain": 0.1, "rejected": "quotes_action", "gives_away": True, "slot": 0,
            },
        },
    }  # fmt: skip
    assert (second["contrast"], set(second["traces"])) == (None, {"own"})
    again = [
        ControlledTurn(pair(one["conversation_id"]), one["other_action"], {k: TraceScores(**v) for k, v in one["traces"].items()},
               one["contrast"])
        for one in found["moments"]
    ]  # fmt: skip
    assert summarize_controls(again, [], 0) == found
    assert decide(found) == found["decision"]


# Downstream ------------------------------------------------------------------------------------------------------------


def test_each_way_of_choosing_is_worth_what_the_trace_it_takes_is_worth() -> None:
    one = [shown(0.1, 0.4, "first"), shown(0.9, 0.7, "best by score"), shown(0.5, -0.2, "the longest one by words of all")]
    other = [shown(0.6, 1.0, "best and first"), shown(0.2, 0.5, "short"), shown(-1, 0.0, "the longest one of them all", 0.2)]
    found = holding(downstream=[(pair("a"), one), (pair("b"), other)])
    worth = {name: found["downstream"][name]["value"] for name in CHOOSERS}
    assert worth == {
        "recon": pytest.approx(fmean([0.7, 1.0])),
        "random": pytest.approx(fmean([fmean([0.4, 0.7, -0.2]), 0.5])),
        "longest": pytest.approx(fmean([-0.2, 0.0])),
        "backward": pytest.approx(fmean([0.4, 1.0])),
    }
    for name in ("random", "longest", "backward"):
        assert found["selection"][f"recon - {name}"]["value"] == pytest.approx(worth["recon"] - worth[name])
        assert found["selection"][f"recon - {name}"]["n"] == 2
    assert found["downstream_turns"] == 2


def test_what_is_below_the_floor_may_be_chosen_too_so_that_choosing_is_by_score_alone() -> None:
    proposals = [shown(-0.5, 0.1, "one", rejected="misleads"), shown(-0.2, 0.3, "two", rejected="misleads")]
    assert holding(downstream=[(pair("a"), proposals)])["downstream"]["recon"]["value"] == pytest.approx(0.3)


@settings(max_examples=15)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.integers(1, 5)), min_size=1, max_size=4),
        min_size=1,
        max_size=4,
    )
)
def test_no_way_of_choosing_is_worth_more_than_the_best_trace_or_less_than_the_worst(
    rows: list[list[tuple[float, float, int]]],
) -> None:
    downstream = [
        (
            pair(f"talk {i}"),
            [shown(score, benefit, f"{i} {j} " + "so " * words) for j, (score, benefit, words) in enumerate(row)],
        )
        for i, row in enumerate(rows)
    ]
    worst, best = (fmean(end(benefit for _, benefit, _ in row) for row in rows) for end in (min, max))
    for one in holding(downstream=downstream)["downstream"].values():
        assert worst - 1e-9 <= one["value"] <= best + 1e-9


def test_a_score_that_orders_the_benefits_is_valid_and_one_that_only_orders_lengths_is_not() -> None:
    """The benefit of the first kind grows with the score; that of the second with the length alone, as the score does."""

    def proposals(place: int, *, by_length: bool) -> list[ContextScores]:
        found: list[ContextScores] = []
        for number in range(4):
            words = (place * 7 + number * 5) % 11 + 1
            hidden = ((place * 13 + number * 29) % 17) / 17
            wobble = ((place * 31 + number * 17) % 23) / 2300
            score, benefit = (words + wobble, float(words)) if by_length else (hidden, hidden)
            found.append(shown(score, benefit, " ".join(["word"] * words)))
        return found

    for by_length in (False, True):
        downstream = [(pair(f"talk {place}"), proposals(place, by_length=by_length)) for place in range(12)]
        found = holding(downstream=downstream)
        assert found["decision"]["conditions"]["the score predicts the benefit downstream"] is not by_length
        if not by_length:
            assert found["validity"]["value"] == pytest.approx(1.0)
            assert found["validity"]["n"] == 48


def test_a_trace_without_a_score_counts_as_zero() -> None:
    row = [
        shown(0.5, 0.5, "one"),
        replace(shown(0, 0.0, "two"), candidate=Candidate("two", None, None)),
        shown(-1, -1, "three"),
    ]
    assert holding(downstream=[(pair("a"), [*row, shown(2, 2, "f o u r")])])["validity"]["value"] == pytest.approx(1.0)
