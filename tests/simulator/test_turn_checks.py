"""simulator/turn_checks.py: echoes, the goal's text, lines of the other side, repetitions, and what a person may do."""

from __future__ import annotations

import random
from difflib import SequenceMatcher

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.memory import Triple
from usertwin.memory.models.chat import Sample, Usage
from usertwin.memory.text.speaker_sides import SpeakerSides
from usertwin.personas import Pair, Turn
from usertwin.simulator.turn_checks import (
    ECHO,
    GOAL_TEXT,
    LOOP,
    OTHER_SIDE,
    REPEATED,
    USABLE,
    badness,
    copies,
    sides_of,
    usable_defect,
)
from usertwin.simulator.turn_text import UNFINISHED

ASKS = "Welcome to the harbour hotel. Is there anything else that I can do for you?"


def pair(*turns: tuple[str, str], goal: str = "", action: str = "") -> Pair:
    context = tuple(Turn(speaker, "user" if speaker == "Ann" else "agent", text) for speaker, text in turns)
    return Pair(speaker="Ann", context=context, action=action, goal=goal, conversation_id="c", position=len(context), when=0.0)


NOW = pair(("Ann", "i would like to stay for two nights"), ("desk", ASKS), goal="You want to book a double room by the sea.")


@pytest.mark.parametrize(
    ("text", "defect"),
    [
        ("Is there anything else that I can do for you?", ECHO),
        ("is there anything else that i can do for you", ECHO),
        ("is there anything else i can do for you", ECHO),
        ("No. Is there anything else that I can do for you?", ECHO),
        (ASKS, ECHO),
        ("Welcome to the harbour hotel.", ECHO),
        ("You want to book a double room by the sea.", GOAL_TEXT),
        ("hi! you want to book a double room by the sea", GOAL_TEXT),
        ("I would like to stay for two nights", REPEATED),
        ("no no no no no no no no no no no no", LOOP),
    ],
)
def test_a_turn_that_repeats_the_wrong_thing_has_a_defect(text: str, defect: str) -> None:
    assert usable_defect(text, NOW, []) == defect


@pytest.mark.parametrize(
    "text",
    ["yes", "hi", "no, that is all", "a double room by the sea please", "i want to book a room, is there one by the sea?",
     "anything else? yes, breakfast", "the harbour hotel, right?", "can you do that for me", "for two nights"],
)  # fmt: skip
def test_an_answer_in_the_others_words_is_none(text: str) -> None:
    assert usable_defect(text, NOW, []) == ""


def test_the_answer_to_a_choice_may_be_a_part_of_the_question() -> None:
    asked = pair(("desk", "Do you want to book the room at the Shadyside Inn or the one at the Old Town Inn?"))
    assert usable_defect("the room at the Shadyside Inn please", asked, []) == ""
    short = pair(("desk", "Tuesday, Wednesday?"), goal="buy a car")
    assert usable_defect("Tuesday, Wednesday", short, []) == usable_defect("buy a car", short, []) == ""


def test_lines_in_scripts_without_spaces_are_compared_by_characters() -> None:
    asked = pair(("desk", "本日はどのようなご用件でしょうか。"), goal="明日の東京の天気を知りたい。")
    assert usable_defect("本日はどのようなご用件でしょうか", asked, []) == ECHO
    assert usable_defect("明日の東京の天気を知りたい", asked, []) == GOAL_TEXT
    assert usable_defect("はい", asked, []) == usable_defect("東京の明日の天気はどうですか", asked, []) == ""


def test_a_person_who_echoes_recites_or_says_so_may() -> None:
    echoes = Triple(pair(("desk", "So you want it for three days?"), action="So you want it for three days"))
    recites = Triple(pair(("desk", "Hi"), action="you want to buy a bell", goal="You want to buy a bell."))
    says = Triple(pair(("desk", "ok"), action="Well, is there anything else that I can do for you?"))
    echo, goal = "Is there anything else that I can do for you?", "You want to book a double room by the sea."
    assert usable_defect(echo, NOW, [echoes]) == usable_defect(goal, NOW, [recites]) == usable_defect(echo, NOW, [says]) == ""
    assert usable_defect(echo, NOW, [recites]) == ECHO
    assert usable_defect(goal, NOW, [echoes, says]) == GOAL_TEXT


def memory() -> list[Triple]:
    """Return a memory of a hundred and fifty turns of Ann, each after a turn of the desk."""
    rng = random.Random(0)
    asks = (
        "Which day would you like for room {}?",
        "May I have the number of room {}, please?",
        "Can I help you with room {}?",
    )
    says = ("i need room {} on monday please", "it is room {} and i want it now", "no thanks, not the room {} again")
    return [
        Triple(pair(("desk", rng.choice(asks).format(n)), action=rng.choice(says).format(n))) for n in range(150)
    ]  # fmt: skip


def test_a_line_of_the_other_side_of_the_memory_is_a_defect() -> None:
    sides = sides_of(memory())
    for line in ("Which day would you like, sir?", "Ok. May I have the number, please?", "I'm an AI assistant."):
        assert usable_defect(line, pair(("desk", "Hello")), [], sides) == OTHER_SIDE
        assert usable_defect(line, pair(("desk", "Hello")), []) == ""
    assert usable_defect("i want it on monday please", pair(("desk", "Hello")), [], sides) == ""


def test_the_sides_leave_out_abandonments_and_the_persons_own_last_turn() -> None:
    left = Triple(Pair(speaker="Ann", context=(Turn("desk", "agent", "hello"),), action="(left)", goal="", conversation_id="c",
                       position=1, when=0.0, ends_conversation=True))  # fmt: skip
    monologue = Triple(pair(("Ann", "and another thing"), action="so there"))
    assert isinstance(sides_of([left, monologue, Triple(pair(action="first"))]), SpeakerSides)


def test_a_turn_without_a_defect_is_best_and_no_turn_is_worst() -> None:
    replies = [Sample("hi", Usage()), *(Sample("hi", Usage(), defect=defect) for defect in USABLE), Sample("", Usage())]
    assert [badness(reply) for reply in replies] == list(range(len(USABLE) + 2))
    assert badness(Sample("", Usage(), defect="a thought")) == badness(Sample("", Usage()))
    assert USABLE[0] == UNFINISHED


WORDS = st.lists(st.sampled_from(["one", "two", "three", "four", "five", "six"]), min_size=4, max_size=12)


@given(WORDS, st.lists(WORDS, max_size=3))
def test_a_copy_is_found_as_by_comparing_all_runs_of_words(words: list[str], others: list[list[str]]) -> None:
    def is_copy(other: list[str]) -> bool:
        blocks = SequenceMatcher(None, words, other, autojunk=False).get_matching_blocks()
        return sum(block.size for block in blocks if block.size >= 3) >= 0.8 * max(len(words), len(other))

    assert copies(" ".join(words), [" ".join(other) for other in others]) == any(map(is_copy, others))
