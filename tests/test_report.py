"""Tables and sentences about a measurement: what was measured is shown, with its interval and its n, and nothing is claimed
that the interval does not carry.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from conftest import recipe
from usertwin.evals.replay import ARMS, CONTRASTS
from usertwin.evals.report import closeness_line, closeness_table, twin_view, verdicts
from usertwin.memory import EndingModel, Leaving, Provenance, Triple, TwinRecord
from usertwin.personas import Pair, Persona, Turn


def estimate(value: float, low: float | None, high: float | None, n: int = 12) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n}


def measurement(**difference: Any) -> dict[str, Any]:
    """A measurement in which every comparison came out as told."""
    told = difference or {"value": -0.2, "low": -0.3, "high": -0.1}
    arms = {
        arm: {"bits_per_char": estimate(1.5 - i / 10, 1.2, 1.8), "chrf": estimate(0.25, 0.125, 0.375, 3)}
        for i, arm in enumerate(ARMS)
    }
    return {
        "twin": "ann",
        "arms": arms,
        "paired": {f"{a} - {b}": {"bits_per_char": {"n": 12, **told}} for a, b in CONTRASTS},
        "ending": {"f1": estimate(0.75, 0.5, 1.0)},
        "turns": 12,
        "conversations": 4,
        "models": {"action": "scripted:test", "scorer": "fake:", "embedder": "fake:256", "proposer": None},
        "seed": 7,
        "measured_at": "2024-05-06T07:08:09+00:00",
    }


RECORD = TwinRecord(
    name="ann",
    persona=Persona("Ann", "Ann writes [short].", 5, ("hi there", "thank you")),
    recipe=recipe(),
    state="complete",
    learned_at="2024-05-05T00:00:00+00:00",
    dated=True,
    corpus_ends=1.0,
    corpus=("a",),
    validation=("v1",),
    test=("t1", "t2"),
    other_speaker="Bob",
    versions={"usertwin": "0.1.0"},
)


def moments(count: int, traced: int = 0) -> list[Triple]:
    """Moments, the first of which have a trace, each a better one than the last."""
    provenance = Provenance("recon", "local", "local", "propose/1", 0, 2, {"misleads": 1})
    pairs = [
        Pair("Ann", (Turn("Bob", "agent", f"how was day {i}?"),), f"it was fine {i}", "", f"talk-{i}", 1, float(i))
        for i in range(count)
    ]
    return [
        Triple(pair, f"I felt [glad] {i}", i / 100, provenance) if i < traced else Triple(pair) for i, pair in enumerate(pairs)
    ]


def shown(what: RenderableType, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain(result: dict[str, Any]) -> str:
    """The sentences as they are read, without markup."""
    return shown("\n".join(verdicts(result)), width=400)


def test_every_arm_has_a_row_with_value_and_interval() -> None:
    text = shown(closeness_table(measurement()), width=80).splitlines()
    assert max(map(len, text)) <= 80
    names = ("no memory", "another's moments", "own, at random", "own, recalled", "twin: with traces")
    for i, name in enumerate(names):
        [at] = [number for number, line in enumerate(text) if name in line]
        assert f"{1.5 - i / 10:.2f}" in text[at]
        assert "1.20 to 1.80" in text[at + 1]
        assert "0.12 to 0.38" in text[at + 1]


def test_every_measure_says_its_n_and_which_way_is_closer() -> None:
    titles, directions, sizes, *_ = shown(closeness_table(measurement())).splitlines()[2:]
    assert "chrF" in titles
    assert "low is close" in directions
    assert "high is close" in directions
    assert "n=12" in sizes
    assert "n=3" in sizes


def test_a_measure_that_was_not_taken_has_no_column_and_a_missing_one_a_dash() -> None:
    result = measurement()
    del result["arms"]["no_memory"]["chrf"]
    text = shown(closeness_table(result))
    assert "length ratio" not in text
    [row] = [line for line in text.splitlines() if line.strip().startswith("no memory")]
    assert "–" in row


def test_the_sentences_stand_below_the_table() -> None:
    assert "12 turns of 4 conversations that the twin never saw" in shown(closeness_table(measurement()), width=300)


def test_an_interval_below_zero_is_called_closer() -> None:
    text = plain(measurement(value=-0.2, low=-0.3, high=-0.1))
    assert "Recalled moments are closer than the same model without a memory" in text
    assert "-0.200 bits per character (-0.300 to -0.100), n=12" in text
    assert "With their traces they are closer than the same moments without" in text


def test_an_interval_above_zero_is_called_further_off() -> None:
    assert "further off than another person's memory" in plain(measurement(value=0.2, low=0.1, high=0.3))


@pytest.mark.parametrize(("low", "high"), [(-0.3, 0.1), (None, None), (-0.3, 0.0)])
def test_an_interval_with_zero_or_none_at_all_is_not_called_a_difference(low: float | None, high: float | None) -> None:
    text = plain(measurement(value=-0.2, low=low, high=high))
    assert "closer than" not in text
    assert "not told apart from own moments taken at random" in text


def test_one_conversation_is_said_to_have_no_interval() -> None:
    assert "(no interval)" in plain(measurement(value=-0.2, low=None, high=None))


def test_models_seed_and_ending_are_told() -> None:
    text = plain(measurement())
    assert "scored by fake:, written by scripted:test; seed 7" in text
    assert "F1 0.75 (0.50 to 1.00), n=12" in text


def test_a_twin_that_never_leaves_is_not_given_a_score_for_leaving() -> None:
    assert "leaves" not in plain(measurement() | {"ending": {}})


def test_brackets_in_the_name_of_a_model_are_kept() -> None:
    result = measurement()
    result["models"] |= {"action": "local:/my[models]/x.gguf", "scorer": "local:/[/odd]/y.gguf"}
    text = plain(result)
    assert "local:/my[models]/x.gguf" in text
    assert "local:/[/odd]/y.gguf" in text


def test_the_line_has_value_difference_n_and_day() -> None:
    assert closeness_line(measurement()) == (
        "1.100 bits per character (1.200 to 1.800), -0.200 (-0.300 to -0.100) against no memory; "
        "n=12 held-out turns, 2024-05-06"
    )


def test_a_twin_is_shown_with_everything_it_holds() -> None:
    record = replace(RECORD, closeness=measurement())
    text = shown(twin_view(record, moments(42, traced=40), EndingModel((), 0.0, 0.5, 0.9, 14, 6), None))
    for part in (
        "twin ann", "complete", '"Ann" in test', "Ann: Ann writes [short].", "hi there", "thank you",
        "42 triples, 40 with a trace (recon), mean fidelity +0.195 nats per token",
        "80 for 40 moments, prompt propose/1; rejected: 40 misleads",
        "traces that predict best", "+0.39", "how was day 39?", "I felt [glad] 39", "it was fine 39",
        "learned from 14 real endings (F1 0.90, on the turns it was tuned on, n=6)",
        "1 conversations for validation, 2 to measure on", "Bob",
        "traces scripted:test, scores fake:, vectors fake:256, seed 0",
        "usertwin 0.1.0", "1.100 bits per character",
    ):  # fmt: skip
        assert part in text


def test_what_a_twin_does_not_have_is_said() -> None:
    record = replace(RECORD, state="interrupted", other_speaker=None, recipe=recipe(method="none", model=None, scorer=None))
    text = shown(twin_view(record, moments(42), None, None))
    for part in (
        "interrupted: the same learn command goes on where it stopped", "nobody else in the log",
        "never learned when to leave (too few real endings)", "traces –, scores –", "not measured: usertwin eval ann",
    ):  # fmt: skip
        assert part in text
    assert "fidelity" not in text


def test_an_ending_that_could_not_be_checked_is_not_given_a_score() -> None:
    text = shown(twin_view(RECORD, moments(42), EndingModel((), 0.0, 0.5, None, 14, 6), Leaving(0.4, 0.75, 9, 30)))
    assert "no ending to check it on" in text
    assert "without another word, by 9 remembered leavings (F1 0.75, on the moments it was tuned on, n=30)" in text
