"""Tests of evals/suites/transfer.py: a row for each proposer and scorer, paired with the same pairs without traces."""

from __future__ import annotations

import pytest

from usertwin.evals.metrics.closeness import closeness
from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.evals.suites.transfer import transfer_result

pytestmark = pytest.mark.usefixtures("two_clusters_suffice")


def turns(gain: float, cost: float = 40.0) -> list[MeasuredTurn]:
    """Return twelve turns of ten characters with this many fewer bits with traces."""
    return [
        MeasuredTurn(
            person="x/Ann", conversation_id=f"talk-{number // 3}", position=number, context=(), action="what I say",
            characters=10,
            bits={"recalled_pairs": cost + number, "recon": cost + number - gain - number % 2},
        )
        for number in range(12)
    ]  # fmt: skip


def test_a_row_is_the_paired_difference_and_below_zero_if_traces_help() -> None:
    [row] = transfer_result({("small", "tiny"): turns(3.0)}, seed=2)
    difference = row.pop("bits_per_char")
    assert row == {"proposer": "small", "scorer": "tiny", "arm": "recon", "against": "recalled_pairs"}
    assert difference["value"] == pytest.approx(-0.35)
    assert difference["n"] == 12
    assert difference["low"] <= difference["value"] <= difference["high"] < 0
    paired = closeness(turns(3.0), "recon", seed=2)["paired"]["recon - recalled_pairs"]["bits_per_char"]
    assert difference["value"] == paired["value"]


def test_the_strength_of_the_scorer_does_not_change_the_difference() -> None:
    """Ten times the bits, the same gain: the difference is within the model."""
    good, bad = transfer_result({("p", "good"): turns(2.0, 20.0), ("p", "bad"): turns(2.0, 200.0)})
    assert good["bits_per_char"]["value"] == pytest.approx(bad["bits_per_char"]["value"])


def test_rows_are_in_the_order_of_the_measurements() -> None:
    rows = transfer_result({("a", "y"): turns(1.0), ("a", "x"): turns(-1.0), ("b", "y"): turns(0.0)})
    assert [(row["proposer"], row["scorer"]) for row in rows] == [("a", "y"), ("a", "x"), ("b", "y")]
    assert rows[0]["bits_per_char"]["value"] < rows[2]["bits_per_char"]["value"] < rows[1]["bits_per_char"]["value"]


def test_a_row_without_traces_has_no_difference() -> None:
    plain = [
        MeasuredTurn(
            person="x/Ann", conversation_id="talk", position=number, context=(), action="hi", characters=3,
            bits={"recalled_pairs": 5.0},
        )
        for number in range(3)
    ]  # fmt: skip
    assert transfer_result({("a", "x"): plain})[0]["bits_per_char"] is None
    assert transfer_result({}) == []
