"""Turns: the person's words only, without labels, markers and control tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.memory.models.chat import Sample, Usage
from usertwin.simulator.turn_text import UNFINISHED, clean_turn

NAMES = ("Mira", "user-17")


def cleaned(
    text: str, *shown: str, defect: str = "", names: tuple[str, ...] = NAMES, at_limit: bool = False
) -> tuple[str, str]:
    turn = clean_turn(Sample(text, Usage(), at_limit, defect), names, shown)
    return turn.text, turn.defect


@pytest.mark.parametrize(
    "text", ["i need a bell", " Me: i need a bell", "User: i need a bell", "**Mira:** i need a bell", "user-17: i need a bell",
             "Me: Me: i need a bell", "Me: User: i need a bell", "User:\ni need a bell",
             "i need a bell<|im_end|>", "i need a bell</s> "],
)  # fmt: skip
def test_labels_and_end_tokens_are_no_words_of_the_person(text: str) -> None:
    assert cleaned(text) == ("i need a bell", "")


@pytest.mark.parametrize(
    ("text", "defect"),
    [
        ("Them: hello", "another speaker's turn"),
        ("i need a bell\nAssistant: Which one?\nMe: the red one", "another speaker's turn"),
        ("i need a bell\n**Bot:**\nwhich one do you want", "another speaker's turn"),
        ("i need a bell\nAssistant:", "another speaker's turn"),
        ("hi\nAssistant: Which one would you like?\nUser: red", "another speaker's turn"),
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


@pytest.mark.parametrize(
    "text",
    [
        "User: admin\nPassword: x",
        "AI: the movie",
        "it says\nUser: jdoe\nand then nothing",
        "the form shows\nUser:\nPassword:",
        "User: the admin of our shop\nPassword: x",
        "System: Windows 11 (64 bit)\nBrowser: it is not Firefox.",
    ],
)
def test_fields_and_titles_are_text(text: str) -> None:
    assert cleaned(text) == (text, "")


_ROLES = st.sampled_from(["User", "Human", "Assistant", "Agent", "AI", "Bot", "System"])
_WORDS = st.sampled_from(["admin", "x9@", "the", "Movie", "(64", "bit)", "j.doe"])
_VALUES = st.lists(_WORDS, min_size=1, max_size=3).map(" ".join)
_OPENINGS = st.sampled_from(["", "it fails\n", "my settings:\n\n"])


@given(_OPENINGS, st.lists(st.tuples(_ROLES | st.sampled_from(["Password", "Log-in time"]), _VALUES), min_size=1, max_size=4))
def test_a_role_before_a_short_value_is_text(opening: str, fields: list[tuple[str, str]]) -> None:
    text = opening + "\n".join(f"{name}: {value}" for name, value in fields)
    assert cleaned(text) == (text, "")


@given(_OPENINGS, _ROLES, st.sampled_from(["i would like to know", "Which one?", "Sure, that works.", "好的。"]))
def test_a_role_before_a_whole_turn_is_a_label(opening: str, role: str, turn: str) -> None:
    own = role in {"User", "Human"} and not opening
    assert cleaned(f"{opening}{role}: {turn}") == ((turn, "") if own else ("", "another speaker's turn"))


def test_a_person_who_is_named_like_a_role_keeps_the_fields() -> None:
    assert cleaned("user: admin\npassword: x", names=("user", "user")) == ("user: admin\npassword: x", "")
    assert cleaned("user: i need a bell", names=("user", "user")) == ("i need a bell", "")


def test_what_is_struck_out_stays_so() -> None:
    assert cleaned("it costs <s>20</s>") == ("it costs <s>20</s>", "")


# Turns that run on, and turns that stop ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "turn"),
    [
        ("yes i would like that Them: ok", "yes i would like that"),
        ("yes please. Them: Which one? Me: the red one", "yes please."),
        ("the red one Me: and a bell", "the red one"),
        ("the red one **Them:** sure", "the red one"),
        ("Me: the red one Them:", "the red one"),
        ("the red one. Mira: and a bell", "the red one."),
        ("Sure! Assistant: Which one would you like?", "Sure!"),
        ("好的。 Assistant: 请问您需要哪一个？", "好的。"),
    ],
)
def test_a_turn_ends_where_another_one_runs_on(text: str, turn: str) -> None:
    assert cleaned(text) == (turn, "")


@pytest.mark.parametrize(
    "text",
    ["tell them: no", "the name of the user: admin", "Ask Mira: she knows it all by heart.", "it is AI: the movie",
     "the fields are User: and Password: x", "he wrote to me: never again, and that was it", "at 10:30 Them or me"],
)  # fmt: skip
def test_a_colon_inside_a_line_is_text(text: str) -> None:
    assert cleaned(text) == (text, "")


def test_a_person_who_writes_labels_inside_a_line_keeps_them() -> None:
    assert cleaned("the film Them: was good", "have you seen Them: the film") == ("the film Them: was good", "")


def test_a_thought_after_a_run_on_label_is_cut_and_one_before_it_is_a_defect() -> None:
    assert cleaned("ok Them: sure (Me thinking: x)") == ("ok", "")
    assert cleaned("ok (Me thinking: x) Them: sure") == ("", "a thought")


@pytest.mark.parametrize(
    ("text", "turn", "defect"),
    [
        ("Yes please. I would like to have the", "Yes please.", ""),
        ("はい、お願いします。それから", "はい、お願いします。", ""),
        ("i would like to have the", "i would like to have the", UNFINISHED),
        ("1. I would like", "1. I would like", UNFINISHED),
        ("that is all.", "that is all.", ""),
        ("haha 😂", "haha 😂", ""),
    ],
)
def test_a_turn_that_stops_at_the_limit_ends_on_a_sentence(text: str, turn: str, defect: str) -> None:
    assert cleaned(text, at_limit=True) == (turn, defect)
    assert cleaned(text) == (text, "")
