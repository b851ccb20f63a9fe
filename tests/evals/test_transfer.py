"""Traces made by one model, used by another: a row for each, paired with the same moments without traces."""

from __future__ import annotations

import pytest

from usertwin.evals.metrics.closeness import closeness
from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.evals.suites.transfer import transfer_result


def turns(gain: float, cost: float = 40.0) -> list[MeasuredTurn]:
    """Twelve turns of ten characters, each so many bits cheaper with traces."""
    return [
        MeasuredTurn(
            "x/Ann", f"talk-{number // 3}", number, (), "what I say", 10,
            bits={"recalled_pairs": cost + number, "recalled_triples": cost + number - gain - number % 2},
        )
        for number in range(12)
    ]  # fmt: skip


def test_a_row_is_the_paired_difference_in_bits_per_character_below_zero_where_traces_help() -> None:
    [row] = transfer_result({("small", "tiny"): turns(3.0)}, seed=2)
    difference = row.pop("bits_per_char")
    assert row == {"proposer": "small", "scorer": "tiny", "arm": "recalled_triples", "against": "recalled_pairs"}
    assert difference["value"] == pytest.approx(-0.35)
    assert difference["n"] == 12
    assert difference["low"] <= difference["value"] <= difference["high"] < 0
    paired = closeness(turns(3.0), "recalled_triples", seed=2)["paired"]["recalled_triples - recalled_pairs"]["bits_per_char"]
    assert difference["value"] == paired["value"]


def test_a_model_that_predicts_worse_as_such_stands_in_the_same_table() -> None:
    """Twice the bits, the same gain: the difference is within the model."""
    good, bad = transfer_result({("p", "good"): turns(2.0, 20.0), ("p", "bad"): turns(2.0, 200.0)})
    assert good["bits_per_char"]["value"] == pytest.approx(bad["bits_per_char"]["value"])


def test_rows_come_in_the_order_of_the_measurements() -> None:
    rows = transfer_result({("a", "y"): turns(1.0), ("a", "x"): turns(-1.0), ("b", "y"): turns(0.0)})
    assert [(row["proposer"], row["scorer"]) for row in rows] == [("a", "y"), ("a", "x"), ("b", "y")]
    assert rows[0]["bits_per_char"]["value"] < rows[2]["bits_per_char"]["value"] < rows[1]["bits_per_char"]["value"]


def test_where_nothing_was_measured_with_traces_nothing_is_claimed() -> None:
    plain = [MeasuredTurn("x/Ann", "talk", n, (), "hi", 3, bits={"recalled_pairs": 5.0}) for n in range(3)]
    assert transfer_result({("a", "x"): plain})[0]["bits_per_char"] is None
    assert transfer_result({}) == []
