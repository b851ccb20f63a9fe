"""memory/recon/distractors.py: similar actions of the same person from other conversations."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.text.transcript import single_line
from usertwin.personas import Pair, Turn
from usertwin.personas.pairs import ABANDONED


def pair(action: str, conversation: str = "here", *, ends: bool = False) -> Pair:
    return Pair(
        speaker="Ann",
        context=(Turn("Bob", "agent", "And you?"),),
        action=action,
        goal="",
        conversation_id=conversation,
        position=1,
        when=0.0,
        ends_conversation=ends,
    )


def elsewhere(*actions: str) -> list[Pair]:
    return [pair(action, f"talk {index}") for index, action in enumerate(actions)]


def of(pairs: list[Pair], action: str, count: int = 9) -> list[str]:
    return Distractors(pairs, FakeEmbedder(8192)).nearest(pair(action), count)


texts = st.lists(st.sampled_from(["tea", "milk", "no", "thanks", "a\ntea", " "]), max_size=4).map(" ".join)
pairs = st.lists(st.builds(pair, texts, st.sampled_from(["here", "there", "far"])), max_size=12)


@given(pairs, texts.filter(str.strip), st.integers(0, 12))
def test_distractors_are_few_different_and_from_other_conversations(candidates: list[Pair], action: str, count: int) -> None:
    others = of(candidates, action, count)
    assert len(others) <= count
    assert len({single_line(other) for other in others}) == len(others)
    assert single_line(action) not in {single_line(other) for other in others}
    assert {*others} <= {candidate.action for candidate in candidates if candidate.conversation_id != "here"}
    assert "" not in map(single_line, others)
    assert others == of(candidates, action, 12)[:count]  # the best matched come first, however many are wanted


def test_the_nearest_in_topic_come_first() -> None:
    candidates = elsewhere("no train for me", "the red cat sat", "the train was red", "a dog ran off")
    assert of(candidates, "the train is late", 2) == ["the train was red", "no train for me"]


def test_action_of_similar_length_comes_first() -> None:
    long = "the train is late and " * 6
    assert of(elsewhere(long, "the cat is here"), "the train is late") == ["the cat is here", long]
    assert of(elsewhere("the", "the cat is here"), "the train is late") == ["the cat is here", "the"]


def test_near_duplicate_is_no_distractor() -> None:
    assert of(elsewhere("late is the train", "the train is early"), "the train is late") == ["the train is early"]


def test_neither_silence_nor_an_empty_turn_is_an_action_to_choose() -> None:
    silent = pair(ABANDONED, "talk 9", ends=True)
    assert silent.abandoned
    assert of([silent, *elsewhere("", " \n", "yes")], "no thanks") == ["yes"]


def test_repeated_action_is_a_distractor_once() -> None:
    assert of(elsewhere("yes please", "yes  please", "no idea"), "thank you") == ["yes  please", "no idea"]


def test_no_other_actions_give_no_distractors() -> None:
    assert of([], "no thanks") == []
    assert of([pair("yes")], "no thanks") == []
    assert of(elsewhere("yes"), "no thanks", 0) == []


def test_only_the_latest_actions_are_drawn_from() -> None:
    many = elsewhere(*(f"word{number}" for number in range(520)))
    candidates = of(many, "hello", 1000)
    assert len(candidates) == 500
    assert {"word19", "word519"} & {*candidates} == {"word519"}


def test_an_action_said_again_lately_is_a_late_one() -> None:
    many = elsewhere("hi there", *(f"word{number}" for number in range(510)), "hi there")
    assert "hi there" in of(many, "hello", 1000)


@pytest.mark.parametrize("action", ["ok", "👍", "https://example.org/a?b=c", "word " * 3000, "Привет, как дела"])
def test_any_action_has_distractors(action: str) -> None:
    assert of(elsewhere("yes", "no idea", replace(pair(action)).action), action) == [
        *sorted(["yes", "no idea"], key=lambda other: abs(len(other) - len(single_line(action))))
    ]


def test_action_of_another_speaker_is_no_distractor() -> None:
    others = [replace(candidate, speaker="Bob") for candidate in elsewhere("the train is early", "the cat sat")]
    assert of([*others, *elsewhere("a dog ran off")], "the train is late") == ["a dog ran off"]
