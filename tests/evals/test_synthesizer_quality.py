"""evals/traces/synthesizer_quality.py: what is measured of two writers is known beforehand, and the examples are those that differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

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

ACTIONS = ("the early train to Rome please", "a quiet seat by the window thanks", "no coffee for me today thanks")
PAIRS = [replace(PAIR, conversation_id=f"talk-{i}", action=action) for i, action in enumerate(ACTIONS)]
LESSONS = [TrainingExample("log/Ann", pair) for pair in PAIRS]
OTHERS = {"log/Ann": Distractors(PAIRS, FakeEmbedder())}


def guard(trace: str, pair: Pair) -> str | None:
    return rejection_reason(trace, pair)


def one_each(*traces: str) -> list[list[str]]:
    return [[trace] for trace in traces]


def looked(*novel: float, label: str = "log/Ann", **facts: float) -> list[TraceQuality]:
    """One trace of each conversation, with these gains."""
    told = {"leak_rate": 0.0, "rejection_rate": 0.0, "gives_away": False} | facts
    return [
        TraceQuality(label=label, conversation=f"talk-{place}", guarded_gain=gain, words=10, **told)
        for place, gain in enumerate(novel)
    ]


# Looking -------------------------------------------------------------------------------------------------------------


def test_each_writer_is_looked_at_and_what_a_guard_rejects_gains_nothing() -> None:
    weighing = WordWeightScorer({"helpful": 0.5, "misleading": -0.25})
    good, bad = one_each(*["I was helpful"] * 3), one_each("I was misleading", f"I was helpful, {ACTIONS[1]}", "")
    first, second = measure_writers(LESSONS, [good, bad], weighing, FakeScorer(), OTHERS, guard)
    assert [one.guarded_gain for one in first] == pytest.approx([0.5] * 3)
    assert [one.guarded_gain for one in second] == pytest.approx([-0.25, 0.0, 0.0])
    assert [one.leak_rate for one in second] == [False, True, False]
    assert [one.gives_away for one in second] == [False, True, False]
    assert [one.words for one in second] == [3, 10, 0]
    assert [(one.label, one.conversation) for one in first] == [("log/Ann", f"talk-{place}") for place in range(3)]


def test_writers_that_wrote_the_same_are_looked_at_alike() -> None:
    traces = one_each("I was calm", "I was in a hurry", "")
    first, second = measure_writers(LESSONS, [traces, traces], FakeScorer(), FakeScorer(), OTHERS, guard)
    assert first == second


def test_a_writer_is_looked_at_alike_whoever_is_beside_it() -> None:
    traces = one_each("I was calm", "I was in a hurry", "I like tea")
    others = one_each(*(f"I want {action}" for action in ACTIONS))
    [alone] = measure_writers(LESSONS, [traces], FakeScorer(), FakeScorer(), OTHERS, guard)
    assert measure_writers(LESSONS, [others, traces], FakeScorer(), FakeScorer(), OTHERS, guard)[1] == alone


def test_of_several_traces_the_mean_is_taken_and_the_first_is_audited() -> None:
    weighing = WordWeightScorer({"helpful": 0.5, "misleading": -0.25})
    several = ["I was helpful", "I was misleading", f"I was helpful, {ACTIONS[0]}"]
    [[found]] = measure_writers(LESSONS[:1], [[several]], weighing, FakeScorer(), OTHERS, guard)
    assert (found.guarded_gain, found.leak_rate, found.gives_away) == (pytest.approx(0.25 / 3), pytest.approx(1 / 3), False)


def test_what_is_written_is_kept_and_a_line_that_a_stop_cut_off_is_written_again(tmp_path: Path) -> None:
    import asyncio

    model = scripted(*(f" was told {place}" for place in range(20)))
    path = tmp_path / "traces.jsonl"

    def write(lessons: list[TrainingExample]) -> list[list[str]]:
        return asyncio.run(write_held_out_traces(path, lessons, model, "backward", samples=2, seed=0))

    first = write(LESSONS[:2])
    assert [len(traces) for traces in first] == [2, 2]
    path.write_bytes(path.read_bytes() + b'["I was cut')
    third = write(LESSONS)
    assert third[:2] == first
    assert len(third) == 3
    assert write(LESSONS) == third


def test_progress_is_told_up_to_the_end() -> None:
    told: list[tuple[str, int, int]] = []
    measure_writers(
        LESSONS, [one_each(*["I was calm"] * 3)], FakeScorer(), FakeScorer(), OTHERS, guard, lambda *one: told.append(one)
    )  # fmt: skip
    assert told == [("measuring", done, 3) for done in range(4)]


# Comparing -----------------------------------------------------------------------------------------------------------


def test_people_weigh_the_same_however_many_pairs_they_have() -> None:
    base = [*looked(0.0, 0.0, 0.0), *looked(0.0, label="log/Bob")]
    trained = [*looked(0.1, 0.2, 0.3), *looked(0.6, label="log/Bob")]
    found = compare_traces(base, trained)
    assert found is not None
    assert (found["n"], found["people"]) == (4, 2)
    assert found["base"]["value"] == 0.0
    assert found["trained"]["value"] == pytest.approx(0.4)
    assert found["difference"]["value"] == pytest.approx(0.4)


def test_a_better_writer_has_a_difference_above_zero_and_its_interval_with_it() -> None:
    people = [f"log/{name}" for name in "abcdef"]
    base = [one for name in people for one in looked(0.1, 0.2, 0.0, label=name)]
    trained = [one for name in people for one in looked(0.3, 0.5, 0.1, label=name)]
    found, turned = compare_traces(base, trained), compare_traces(trained, base)
    assert found is not None
    assert turned is not None
    assert 0 < found["difference"]["low"] <= found["difference"]["value"] <= found["difference"]["high"]
    assert turned["difference"]["value"] == pytest.approx(-found["difference"]["value"])
    assert found["base"] == turned["trained"]


GAINS = st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.sampled_from("ab")), min_size=1, max_size=12)


@given(GAINS)
def test_the_difference_is_that_of_the_two_and_every_number_has_its_size(told: list[tuple[float, float, str]]) -> None:

    def quality(who: str, place: int, gain: float, words: float) -> TraceQuality:
        return TraceQuality(
            label=who,
            conversation=str(place),
            guarded_gain=gain,
            leak_rate=0.0,
            rejection_rate=0.0,
            gives_away=False,
            words=words,
        )

    base = [quality(who, place, before, 4) for place, (before, _, who) in enumerate(told)]
    trained = [quality(who, place, after, 8) for place, (_, after, who) in enumerate(told)]
    found = compare_traces(base, trained)
    assert found is not None
    assert found["difference"]["value"] == pytest.approx(found["trained"]["value"] - found["base"]["value"], abs=1e-9)
    assert (found["n"], found["people"]) == (len(told), len({who for _, _, who in told}))
    assert (found["words"]["base"], found["words"]["trained"], found["words"]["difference"]["value"]) == (4.0, 8.0, 4.0)


def test_rates_are_shares_of_the_traces_of_each() -> None:
    base = [*looked(0.0, leak_rate=True), *looked(0.0, 0.0, 0.0)]
    trained = [*looked(0.0, 0.0, gives_away=True), *looked(0.0, 0.0)]
    found = compare_traces(base, trained)
    assert found is not None
    for name, before, after in (("leak_rate", 0.25, 0.0), ("gives_away", 0.0, 0.5)):
        rate = found[name]
        assert (rate["base"], rate["trained"]) == (before, after)
        assert rate["difference"]["low"] <= rate["difference"]["value"] == after - before <= rate["difference"]["high"]


def test_without_any_pair_nothing_was_measured() -> None:
    assert compare_traces([], []) is None
    assert compare_by_person([], []) == {}


def test_each_person_has_numbers_of_their_own() -> None:
    base = [*looked(0.0, 0.0), *looked(0.1, label="log/Bob"), *looked(0.2)]
    trained = [*looked(0.3, 0.3), *looked(0.0, label="log/Bob"), *looked(0.5)]
    found = compare_by_person(base, trained)
    assert list(found) == ["log/Ann", "log/Bob"]
    assert (found["log/Ann"]["n"], found["log/Bob"]["n"]) == (3, 1)
    assert found["log/Ann"]["difference"]["value"] == pytest.approx(0.3)
    assert found["log/Bob"]["difference"]["value"] == pytest.approx(-0.1)


# Examples ------------------------------------------------------------------------------------------------------------


def examples(changes: Sequence[float]) -> list[str]:
    lessons = [TrainingExample("log/Ann", replace(PAIR, action=str(place))) for place in range(len(changes))]
    texts = [f"b{place}" for place in range(len(changes))], [f"t{place}" for place in range(len(changes))]
    found = contrasting_examples(lessons, *(one_each(*own) for own in texts), looked(*[0.0] * len(changes)), looked(*changes))
    assert all((one["base"], one["trained"]) == (f"b{one['action']}", f"t{one['action']}") for one in found)
    return [one["action"] for one in found]


def test_examples_are_those_that_gain_most_and_those_that_lose_most() -> None:
    assert examples([0.0, 0.3, -0.2, 0.1, -0.3, 0.2, 0.0, -0.1]) == ["1", "5", "3", "4", "2", "7"]


@given(st.lists(st.floats(-1, 1), max_size=9))
def test_no_example_is_shown_twice(changes: list[float]) -> None:
    found = examples(changes)
    assert len(set(found)) == len(found) == min(6, len(changes))


def test_an_example_shows_the_last_turns_before_the_action() -> None:
    lesson = TrainingExample("log/Ann", replace(PAIR, context=(*PAIR.context, PAIR.context[1])))
    [found] = contrasting_examples([lesson], [["b"]], [["t"]], looked(0.0), looked(0.1))
    assert found["context"] == ["Ann: hi", "Bob: When do you want to go?", "Ann: hi"]
    assert found["action"] == PAIR.action
