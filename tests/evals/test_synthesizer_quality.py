"""evals/traces/synthesizer_quality.py: comparison of two writers with known results, and the examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import PAIR, WordWeightScorer, scripted
from usertwin.evals.traces.synthesizer_quality import (
    compare_by_person,
    compare_traces,
    contrasting_examples,
    measure_writers,
    write_held_out_traces,
)
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.guards import rejection_reason
from usertwin.memory.training.audit import TraceQuality
from usertwin.memory.training.dataset import TrainingExample
from usertwin.personas import Pair

pytestmark = pytest.mark.usefixtures("two_clusters_suffice")

ACTIONS = ("the early train to Rome please", "a quiet seat by the window thanks", "no coffee for me today thanks")
PAIRS = [replace(PAIR, conversation_id=f"talk-{i}", action=action) for i, action in enumerate(ACTIONS)]
EXAMPLES = [TrainingExample("log/Ann", pair) for pair in PAIRS]
OTHERS = {"log/Ann": Distractors(PAIRS, FakeEmbedder())}


def guard(trace: str, pair: Pair) -> str | None:
    return rejection_reason(trace, pair)


def one_each(*traces: str) -> list[list[str]]:
    return [[trace] for trace in traces]


def qualities(*gains: float, label: str = "log/Ann", **facts: float) -> list[TraceQuality]:
    """One trace of each conversation, with these gains."""
    defaults = {"leak_rate": 0.0, "rejection_rate": 0.0, "reveals_action": False} | facts
    return [
        TraceQuality(label=label, conversation=f"talk-{index}", guarded_gain=gain, words=10, **defaults)
        for index, gain in enumerate(gains)
    ]


# Looking -------------------------------------------------------------------------------------------------------------


def test_each_writer_is_measured_and_rejected_traces_have_no_gain() -> None:
    weighing = WordWeightScorer({"helpful": 0.5, "misleading": -0.25})
    good, bad = one_each(*["I was helpful"] * 3), one_each("I was misleading", f"I was helpful, {ACTIONS[1]}", "")
    first, second = measure_writers(EXAMPLES, [good, bad], weighing, FakeScorer(), OTHERS, guard)
    assert [item.guarded_gain for item in first] == pytest.approx([0.5] * 3)
    assert [item.guarded_gain for item in second] == [pytest.approx(-0.25), None, None]
    assert [item.rejection_rate for item in second] == [0.0, 1.0, 1.0]
    assert [item.leak_rate for item in second] == [False, True, False]
    assert [item.reveals_action for item in second] == [False, True, False]
    assert [item.words for item in second] == [3, 10, 0]
    assert [(item.label, item.conversation) for item in first] == [("log/Ann", f"talk-{index}") for index in range(3)]


def test_equal_traces_get_equal_measurements() -> None:
    traces = one_each("I was calm", "I was in a hurry", "")
    first, second = measure_writers(EXAMPLES, [traces, traces], FakeScorer(), FakeScorer(), OTHERS, guard)
    assert first == second


def test_measurement_is_independent_of_other_writers() -> None:
    traces = one_each("I was calm", "I was in a hurry", "I like tea")
    others = one_each(*(f"I want {action}" for action in ACTIONS))
    [alone] = measure_writers(EXAMPLES, [traces], FakeScorer(), FakeScorer(), OTHERS, guard)
    assert measure_writers(EXAMPLES, [others, traces], FakeScorer(), FakeScorer(), OTHERS, guard)[1] == alone


def test_of_several_passing_traces_the_mean_is_taken_and_the_first_is_audited() -> None:
    weighing = WordWeightScorer({"helpful": 0.5, "misleading": -0.25})
    several = ["I was helpful", "I was misleading", f"I was helpful, {ACTIONS[0]}"]
    [[result]] = measure_writers(EXAMPLES[:1], [[several]], weighing, FakeScorer(), OTHERS, guard)
    assert (result.guarded_gain, result.leak_rate, result.reveals_action) == (
        pytest.approx(0.125),
        pytest.approx(1 / 3),
        False,
    )


def test_written_traces_are_kept_and_a_cut_line_is_rewritten(tmp_path: Path) -> None:
    import asyncio

    model = scripted(*(f" was told {index}" for index in range(20)))
    path = tmp_path / "traces.jsonl"

    def write(rows: list[TrainingExample]) -> list[list[str]]:
        return asyncio.run(write_held_out_traces(path, rows, model, "backward", samples=2, seed=0))

    first = write(EXAMPLES[:2])
    assert [len(traces) for traces in first] == [2, 2]
    path.write_bytes(path.read_bytes() + b'["I was cut')
    third = write(EXAMPLES)
    assert third[:2] == first
    assert len(third) == 3
    assert write(EXAMPLES) == third


def test_progress_is_reported_to_the_end() -> None:
    reports: list[tuple[str, int, int]] = []
    written = [one_each(*["I was calm"] * 3)]
    measure_writers(
        EXAMPLES, written, FakeScorer(), FakeScorer(), OTHERS, guard, lambda *item: reports.append(item)
    )  # fmt: skip
    assert reports == [("measuring", done, 3) for done in range(4)]


def test_forward_traces_are_measured_with_the_words_that_they_foresee() -> None:
    scorer = WordWeightScorer({}, copied=0.5)
    traces = [one_each(f"I want {ACTIONS[0]}")]
    accept: Any = lambda trace, pair: None  # noqa: E731
    [[seen]] = measure_writers(EXAMPLES[:1], traces, scorer, scorer, OTHERS, accept)
    [[foreseen]] = measure_writers(EXAMPLES[:1], traces, scorer, scorer, OTHERS, accept, saw_action=False)
    assert (seen.guarded_gain or 0.0) < (foreseen.guarded_gain or 0.0)


# Comparing -----------------------------------------------------------------------------------------------------------


def test_people_have_equal_weight() -> None:
    base = [*qualities(0.0, 0.0, 0.0), *qualities(0.0, label="log/Bob")]
    trained = [*qualities(0.1, 0.2, 0.3), *qualities(0.6, label="log/Bob")]
    result = compare_traces(base, trained)
    assert result is not None
    assert (result["n"], result["people"]) == (4, 2)
    assert result["base"]["value"] == 0.0
    assert result["trained"]["value"] == pytest.approx(0.4)
    assert result["difference"]["value"] == pytest.approx(0.4)


def test_a_better_writer_has_a_difference_above_zero_and_its_interval_with_it() -> None:
    people = [f"log/{name}" for name in "abcdef"]
    base = [item for name in people for item in qualities(0.1, 0.2, 0.0, label=name)]
    trained = [item for place, name in enumerate(people) for item in qualities(0.3, 0.5 + place / 50, 0.1, label=name)]
    result, turned = compare_traces(base, trained), compare_traces(trained, base)
    assert result is not None
    assert turned is not None
    assert 0 < result["difference"]["low"] < result["difference"]["value"] < result["difference"]["high"]
    assert turned["difference"]["value"] == pytest.approx(-result["difference"]["value"])
    assert result["base"] == turned["trained"]


GAINS = st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.sampled_from("ab")), min_size=1, max_size=12)


@given(GAINS)
def test_difference_is_trained_minus_base_with_its_n(defaults: list[tuple[float, float, str]]) -> None:

    def quality(person: str, index: int, gain: float, words: float) -> TraceQuality:
        return TraceQuality(
            label=person,
            conversation=str(index),
            guarded_gain=gain,
            leak_rate=0.0,
            rejection_rate=0.0,
            reveals_action=False,
            words=words,
        )

    base = [quality(person, index, before, 4) for index, (before, _, person) in enumerate(defaults)]
    trained = [quality(person, index, after, 8) for index, (_, after, person) in enumerate(defaults)]
    result = compare_traces(base, trained)
    assert result is not None
    assert result["difference"]["value"] == pytest.approx(result["trained"]["value"] - result["base"]["value"], abs=1e-9)
    assert (result["n"], result["people"]) == (len(defaults), len({person for _, _, person in defaults}))
    assert (result["words"]["base"], result["words"]["trained"], result["words"]["difference"]["value"]) == (4.0, 8.0, 4.0)


def test_rates_are_shares_of_the_traces_of_each() -> None:
    base = [*qualities(0.0, leak_rate=True), *qualities(0.0, 0.0, 0.0)]
    trained = [*qualities(0.0, 0.0, reveals_action=True), *qualities(0.0, 0.0)]
    result = compare_traces(base, trained)
    assert result is not None
    for name, before, after in (("leak_rate", 0.25, 0.0), ("reveals_action", 0.0, 0.5)):
        rate = result[name]
        assert (rate["base"], rate["trained"]) == (before, after)
        assert rate["difference"]["low"] <= rate["difference"]["value"] == after - before <= rate["difference"]["high"]


def test_no_pairs_give_no_comparison() -> None:
    assert compare_traces([], []) is None
    assert compare_by_person([], []) == {}


def test_each_person_has_numbers_of_their_own() -> None:
    base = [*qualities(0.0, 0.0), *qualities(0.1, label="log/Bob"), *qualities(0.2)]
    trained = [*qualities(0.3, 0.3), *qualities(0.0, label="log/Bob"), *qualities(0.5)]
    result = compare_by_person(base, trained)
    assert list(result) == ["log/Ann", "log/Bob"]
    assert (result["log/Ann"]["n"], result["log/Bob"]["n"]) == (3, 1)
    assert result["log/Ann"]["difference"]["value"] == pytest.approx(0.3)
    assert result["log/Bob"]["difference"]["value"] == pytest.approx(-0.1)


def test_a_rejected_trace_is_no_better_than_an_honest_one_that_gains_less_than_nothing() -> None:
    """The trained writer is rejected where the base loses; elsewhere both gain the same."""
    base = qualities(-0.4, -0.4, 0.2, 0.2)
    trained = [replace(own, guarded_gain=None, rejection_rate=1.0) for own in base[:2]] + base[2:]
    result = compare_traces(base, trained)
    assert result is not None
    assert (result["n"], result["compared"]) == (4, 2)
    assert (result["base"]["value"], result["trained"]["value"], result["difference"]["value"]) == (0.2, 0.2, 0.0)
    assert (result["passing"]["base"], result["passing"]["trained"]) == (1.0, 0.5)
    rejected = compare_traces(trained[:2], trained[:2])
    assert rejected is not None
    assert (rejected["n"], rejected["compared"], rejected["difference"]) == (2, 0, None)


# Examples ------------------------------------------------------------------------------------------------------------


def examples(changes: Sequence[float]) -> list[str]:
    rows = [TrainingExample("log/Ann", replace(PAIR, action=str(index))) for index in range(len(changes))]
    texts = [f"b{index}" for index in range(len(changes))], [f"t{index}" for index in range(len(changes))]
    result = contrasting_examples(
        rows, *(one_each(*own) for own in texts), qualities(*[0.0] * len(changes)), qualities(*changes)
    )
    assert all((item["base"], item["trained"]) == (f"b{item['action']}", f"t{item['action']}") for item in result)
    return [item["action"] for item in result]


def test_examples_are_those_that_gain_most_and_lose_most() -> None:
    assert examples([0.0, 0.3, -0.2, 0.1, -0.3, 0.2, 0.0, -0.1]) == ["1", "5", "3", "4", "2", "7"]


@given(st.lists(st.floats(-1, 1), max_size=9))
def test_no_example_is_shown_twice(changes: list[float]) -> None:
    result = examples(changes)
    assert len(set(result)) == len(result) == min(6, len(changes))


def test_an_example_shows_the_last_turns_before_the_action() -> None:
    example = TrainingExample("log/Ann", replace(PAIR, context=(*PAIR.context, PAIR.context[1])))
    [result] = contrasting_examples([example], [["b"]], [["t"]], qualities(0.0), qualities(0.1))
    assert result["context"] == ["Ann: hi", "Bob: When do you want to go?", "Ann: hi"]
    assert result["action"] == PAIR.action
