"""Turns: the person's words only, without labels, markers and control tokens."""

from __future__ import annotations

import pytest

from usertwin.memory.models.chat import Sample, Usage
from usertwin.simulator.turn_text import clean_turn

NAMES = ("Mira", "user-17")


def cleaned(text: str, *shown: str, defect: str = "") -> tuple[str, str]:
    turn = clean_turn(Sample(text, Usage(), defect=defect), NAMES, shown)
    return turn.text, turn.defect


@pytest.mark.parametrize(
    "text", ["i need a bell", " Me: i need a bell", "User: i need a bell", "**Mira:** i need a bell", "user-17: i need a bell",
             "Me: Me: i need a bell", "i need a bell<|im_end|>", "i need a bell</s> "],
)  # fmt: skip
def test_labels_and_end_tokens_are_no_words_of_the_person(text: str) -> None:
    assert cleaned(text) == ("i need a bell", "")


@pytest.mark.parametrize(
    ("text", "defect"),
    [
        ("Them: hello", "another speaker's turn"),
        ("i need a bell\nAssistant: Which one?\nMe: the red one", "another speaker's turn"),
        ("(Me thinking: be short) i need a bell", "a thought"),
        ("i need a bell (My goal: a bell)", "a thought"),
        ("i need <|im_start|> a bell", "a control token"),
    ],
)
def test_a_reply_that_is_not_one_turn_of_the_person_is_discarded_whole(text: str, defect: str) -> None:
    assert cleaned(text) == ("", defect)


def test_a_defect_of_the_completion_stays() -> None:
    assert cleaned("i need a bell", defect="unfinished reasoning") == ("", "unfinished reasoning")


def test_a_person_who_writes_labels_keeps_them() -> None:
    assert cleaned("User: jdoe", "User: admin it says") == ("User: jdoe", "")
    assert cleaned("it prints <|im_end|> at the end", "why <|im_end|>") == ("it prints <|im_end|> at the end", "")
    assert cleaned("me: no", "x") == ("me: no", "")
    assert cleaned("I am Mira (about me: 34, from Oslo)", "hi (About me: 33)") == ("I am Mira (about me: 34, from Oslo)", "")
    assert cleaned("(Me thinking: short) no", "hi (About me: 33)") == ("", "a thought")


def test_what_is_struck_out_stays_so() -> None:
    assert cleaned("it costs <s>20</s>") == ("it costs <s>20</s>", "")
