"""Tests of memory/twin/last_turn.py: the fitted model of last turns, its threshold, and its file."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import small_conversation
from usertwin.memory.twin.last_turn import MIN_ENDINGS, LastTurnModel, fit_last_turn
from usertwin.personas import Pair, Turn, TwinError
from usertwin.personas.pairs import extract_pairs

TALKS = [extract_pairs(small_conversation(number), "Ann") for number in range(20)]
CORPUS = [pair for talk in TALKS[:12] for pair in talk]
VALIDATION = [pair for talk in TALKS[12:16] for pair in talk]
UNSEEN = [pair for talk in TALKS[16:] for pair in talk]


def fitted() -> LastTurnModel:
    model = fit_last_turn(CORPUS, VALIDATION)
    assert model is not None
    return model


def test_endings_of_unseen_conversations_are_predicted() -> None:
    model = fitted()
    assert [model.leaves(pair) for pair in UNSEEN] == [pair.ends_conversation for pair in UNSEEN]
    assert (model.endings, model.validation_turns, model.f1) == (12, len(VALIDATION), 1.0)


def test_the_prediction_does_not_depend_on_the_label() -> None:
    model = fitted()
    for pair in UNSEEN:
        assert model.probability(
            replace(pair, ends_conversation=not pair.ends_conversation, conversation_id="else", when=0.0)
        ) == model.probability(pair)


def test_probabilities_of_many_pairs_are_exactly_those_of_each_pair() -> None:
    model = fitted()
    assert model.probabilities(VALIDATION) == [model.probability(pair) for pair in VALIDATION]
    assert model.probabilities([]) == []


@pytest.mark.parametrize("count", [1, 4, 11])
def test_the_threshold_predicts_as_many_endings_as_there_are_on_the_validation_turns(count: int) -> None:
    # Distinct texts, so that no two turns have the same probability.
    turns = [
        replace(pair, action=f"{pair.action} {place}", ends_conversation=False, goal="")
        for place, pair in enumerate(VALIDATION)
    ]
    ends = random.Random(count).sample(range(len(turns)), count)
    noisy = [replace(pair, ends_conversation=place in ends) for place, pair in enumerate(turns)]
    model = fit_last_turn(CORPUS, noisy)
    assert model is not None
    predicted = [model.leaves(pair) for pair in noisy]
    assert sum(predicted) == count
    assert model.f1 == pytest.approx(
        sum(pair.ends_conversation and leaves for pair, leaves in zip(noisy, predicted, strict=True)) / count
    )


def leaving(goal: str, *turns: tuple[str, str], action: str = "no thats all thank you bye", earlier: int = 0) -> bool:
    """Return whether a twin that leaves after nearly any words leaves here."""
    context = tuple(Turn(speaker, "user" if speaker == "Ann" else "agent", text) for speaker, text in turns)
    place = len(turns) + earlier
    pair = Pair(speaker="Ann", context=context, action=action, goal=goal, conversation_id="c", position=place, when=0.0)
    return replace(fitted(), threshold=1e-9).leaves(pair)


CLOSED = ("desk-0", "It will be sunny. Anything else?")


def test_nobody_leaves_before_the_goal_is_mentioned() -> None:
    goal = "You want the weather for Oslo."
    assert leaving("", CLOSED)
    assert not leaving(goal, CLOSED)
    assert not leaving(goal, ("desk-0", "The weather for Oslo?"), ("Ann", "hello"), CLOSED)
    assert leaving(goal, ("Ann", "the weather in Oslo"), CLOSED)
    assert leaving(goal, CLOSED, action="no more weather for Oslo, thats all thank you bye")
    assert leaving(goal, CLOSED, earlier=1)  # it may have been mentioned before


def test_nobody_leaves_with_a_goal_while_nobody_closes() -> None:
    said = ("Ann", "hi, the weather in Oslo please")
    goal, open_question = "You want the weather for Oslo.", ("desk-1", "Which day do you mean for Oslo?")
    for later in (0, 10, 10_000):
        assert not leaving(goal, said, open_question, action="tomorrow, day 3", earlier=later)
    assert leaving("", said, open_question, action="tomorrow, day 3", earlier=10_000)
    assert leaving(goal, said, CLOSED)


def test_the_rule_keeps_the_real_endings_of_unseen_conversations() -> None:
    model = fitted()
    assert all(pair.goal for pair in UNSEEN)
    assert all(model.closes(pair) == pair.ends_conversation for pair in UNSEEN)


def test_validation_turns_without_an_ending_give_no_f1() -> None:
    for validation in ([], [pair for pair in VALIDATION if not pair.ends_conversation]):
        model = fit_last_turn(CORPUS, validation)
        assert model is not None
        assert (model.f1, model.threshold, model.validation_turns) == (None, 0.5, len(validation))
        assert model.leaves(TALKS[19][-1])


def test_too_few_endings_give_no_model() -> None:
    endings, others = (
        [pair for pair in CORPUS if pair.ends_conversation],
        [pair for pair in CORPUS if not pair.ends_conversation],
    )
    assert fit_last_turn([], []) is None
    assert fit_last_turn(others, VALIDATION) is None
    assert fit_last_turn([*others, *endings[: MIN_ENDINGS - 1]], VALIDATION) is None
    assert fit_last_turn([*others, *endings[:MIN_ENDINGS]], VALIDATION) is not None
    assert fit_last_turn(endings, VALIDATION) is None


def test_fitting_is_deterministic() -> None:
    assert fitted() == fitted()


def test_a_model_survives_saving_and_loading(tmp_path: Path) -> None:
    model = fitted()
    model.save(tmp_path / "ending.json")
    loaded = LastTurnModel.load(tmp_path / "ending.json")
    assert loaded == model
    assert [loaded.probability(pair) for pair in UNSEEN] == [model.probability(pair) for pair in UNSEEN]


def test_a_missing_file_is_no_model(tmp_path: Path) -> None:
    assert LastTurnModel.load(tmp_path / "ending.json") is None


def test_a_damaged_file_is_a_twin_error_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "ending.json"
    fitted().save(path)
    whole = path.read_text("utf-8")
    raw = json.loads(whole)
    for text in (
        "",
        whole[:-20],
        "[]",
        "null",
        json.dumps({key: value for key, value in raw.items() if key != "weights"}),
        json.dumps({key: value for key, value in raw.items() if key != "bias"}),
        json.dumps(raw | {"weights": ["heavy"]}),
        json.dumps(raw | {"weights": raw["weights"][:-1]}),
        json.dumps(raw | {"more": 1}),
    ):
        path.write_text(text, "utf-8")
        with pytest.raises(TwinError, match=r"ending\.json: is damaged .*--overwrite"):
            LastTurnModel.load(path)


@given(st.text(), st.text(), st.integers(0, 10**6))
def test_any_text_gives_a_probability(action: str, previous: str, position: int) -> None:
    context = (Turn("Bob", "agent", previous),) if previous else ()
    assert (
        0.0
        <= _MODEL.probability(
            Pair(speaker="Ann", context=context, action=action, goal="", conversation_id="c", position=position, when=0.0)
        )
        <= 1.0
    )


_MODEL = fitted()
