"""memory/twin/last_turn.py: from real endings it is learned when a person leaves, and kept as plain numbers."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import small_conversation
from usertwin.memory.twin.last_turn import LEAST_ENDINGS, LastTurnModel, fit_last_turn
from usertwin.personas import Pair, Turn, TwinError
from usertwin.personas.pairs import extract_pairs

TALKS = [extract_pairs(small_conversation(number), "Ann") for number in range(20)]
CORPUS = [pair for talk in TALKS[:12] for pair in talk]
VALIDATION = [pair for talk in TALKS[12:16] for pair in talk]
UNSEEN = [pair for talk in TALKS[16:] for pair in talk]


def learned() -> LastTurnModel:
    found = fit_last_turn(CORPUS, VALIDATION)
    assert found is not None
    return found


def test_a_person_leaves_where_they_leave_in_unseen_conversations() -> None:
    model = learned()
    assert [model.leaves(pair) for pair in UNSEEN] == [pair.ends_conversation for pair in UNSEEN]
    assert (model.endings, model.validation_turns, model.f1) == (12, len(VALIDATION), 1.0)


def test_the_answer_is_not_read_from_the_label() -> None:
    model = learned()
    for pair in UNSEEN:
        assert model.probability(replace(pair, ends=not pair.ends_conversation, conversation_id="else", when=0.0)) == model.probability(pair)


@pytest.mark.parametrize("count", [1, 4, 11])
def test_the_twin_leaves_as_often_as_the_person_on_the_validation_turns(count: int) -> None:
    # No two of these turns are alike, so that no two have the same probability.
    turns = [replace(pair, action=f"{pair.action} {place}", ends=False) for place, pair in enumerate(VALIDATION)]
    ends = random.Random(count).sample(range(len(turns)), count)
    noisy = [replace(pair, ends=place in ends) for place, pair in enumerate(turns)]
    model = fit_last_turn(CORPUS, noisy)
    assert model is not None
    left = [model.leaves(pair) for pair in noisy]
    assert sum(left) == count
    assert model.f1 == pytest.approx(sum(pair.ends_conversation and said for pair, said in zip(noisy, left, strict=True)) / count)


def test_without_an_ending_among_the_validation_turns_there_is_no_f1() -> None:
    for validation in ([], [pair for pair in VALIDATION if not pair.ends_conversation]):
        model = fit_last_turn(CORPUS, validation)
        assert model is not None
        assert (model.f1, model.threshold, model.validation_turns) == (None, 0.5, len(validation))
        assert model.leaves(TALKS[19][-1])


def test_too_few_endings_teach_nothing() -> None:
    ends, goes_on = [pair for pair in CORPUS if pair.ends_conversation], [pair for pair in CORPUS if not pair.ends_conversation]
    assert fit_last_turn([], []) is None
    assert fit_last_turn(goes_on, VALIDATION) is None
    assert fit_last_turn([*goes_on, *ends[: LEAST_ENDINGS - 1]], VALIDATION) is None
    assert fit_last_turn([*goes_on, *ends[:LEAST_ENDINGS]], VALIDATION) is not None
    assert fit_last_turn(ends, VALIDATION) is None


def test_the_same_corpus_teaches_the_same() -> None:
    assert learned() == learned()


def test_a_saved_model_is_the_same_model(tmp_path: Path) -> None:
    model = learned()
    model.save(tmp_path / "ending.json")
    again = LastTurnModel.load(tmp_path / "ending.json")
    assert again == model
    assert [again.probability(pair) for pair in UNSEEN] == [model.probability(pair) for pair in UNSEEN]


def test_where_there_is_no_file_there_is_no_model(tmp_path: Path) -> None:
    assert LastTurnModel.load(tmp_path / "ending.json") is None


def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "ending.json"
    learned().save(path)
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
def test_a_probability_is_one_whatever_is_said(action: str, heard: str, position: int) -> None:
    context = (Turn("Bob", "agent", heard),) if heard else ()
    assert 0.0 <= _MODEL.probability(Pair("Ann", context, action, "", "c", position, 0.0)) <= 1.0


_MODEL = learned()
