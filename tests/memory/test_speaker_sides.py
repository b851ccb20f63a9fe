"""memory/text/speaker_sides.py: sentences of the other side, in logs of help desks and of equals."""

from __future__ import annotations

import random

import pytest

from usertwin.memory.text.speaker_sides import SpeakerSides

CITIES = ("Oslo", "Rome", "Lima", "Cairo", "Kyoto", "Paris", "Quito", "Turin")
OWN = ("i need a room in {c} please", "yes the {d} works for me", "no i want the cheap one in {c}", "ok thanks a lot for that",
       "is breakfast in it, i hope so", "can i get it for the {d} too", "my name is ann and i am in {c}")  # fmt: skip
OTHER = (
    "Hello, how can I help you today?", "Which day would you like in {c}?", "Your room in {c} is booked for the {d}.",
    "Is there anything else that I can do for you?", "May I have your name, please?", "We have a room on the {d}.",
)  # fmt: skip


def turns(kinds: tuple[str, ...], count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [rng.choice(kinds).format(c=rng.choice(CITIES), d=f"{rng.randint(1, 28)}th") for _ in range(count)]


@pytest.fixture(scope="module")
def desk() -> SpeakerSides:
    return SpeakerSides(turns(OWN, 300, 1), turns(OTHER, 300, 2))


@pytest.mark.parametrize(
    "line",
    [
        "How can I help you today?",
        "Hello, how can I help you today?",
        "Is there anything else that I can do for you?",
        "Your room in Rome is booked for the 9th.",
        "I'm an AI assistant.",
        "As a customer service representative, I will be happy to help you.",
        "Wie kann ich Ihnen heute helfen?",
        "您好，请问今天有什么可以帮助您的吗？",
        "Чем я могу вам помочь сегодня?",
    ],
)
def test_a_line_of_the_other_side_is_found(desk: SpeakerSides, line: str) -> None:
    assert desk.of_the_other_side(line) == line
    assert desk.of_the_other_side(f"ok thanks. {line}") == line


@pytest.mark.parametrize(
    "line",
    ["yes", "hi", "Your name?", "i need a room in Turin please", "can i get the cheap one for the 4th",
     "the purple elephant sings loudly tonight", "私は部屋が欲しいです", ""],
)  # fmt: skip
def test_a_line_of_the_person_a_short_one_and_one_about_new_things_stay(desk: SpeakerSides, line: str) -> None:
    assert desk.of_the_other_side(line) == ""


def test_hardly_any_unseen_turn_of_the_person_is_taken_for_the_other_sides(desk: SpeakerSides) -> None:
    unseen = turns(OWN, 300, 3)
    assert sum(bool(desk.of_the_other_side(turn)) for turn in unseen) <= 6


def test_between_equals_nothing_is_found() -> None:
    equals = SpeakerSides(turns((*OWN, *OTHER), 400, 1), turns((*OWN, *OTHER), 400, 2))
    assert sum(bool(equals.of_the_other_side(turn)) for turn in turns((*OWN, *OTHER), 200, 3)) <= 4


def test_a_person_who_talks_like_an_assistant_may() -> None:
    sides = SpeakerSides([*turns(OWN, 200, 1), *["How can I help you today?"] * 20], turns(OTHER[1:], 220, 2))
    assert sides.of_the_other_side("How can I help you today?") == ""


def test_too_few_sentences_tell_nothing() -> None:
    assert SpeakerSides(turns(OWN, 40, 1), turns(OTHER, 300, 2)).of_the_other_side(OTHER[0]) == ""
    assert SpeakerSides(turns(OWN, 300, 1), []).of_the_other_side(OTHER[0]) == ""
    assert SpeakerSides([], []).of_the_other_side("I'm an AI assistant.") == ""


def test_the_scripts_without_spaces_work_too() -> None:
    own = [f"{n}号室を予約したいのですが、いいですか" for n in range(120)]
    other = [f"{n}号室のご予約を承りました。ありがとうございます" for n in range(120)]
    sides = SpeakerSides(own, other)
    assert sides.of_the_other_side("ご予約を承りましたのでご安心ください")
    assert sides.of_the_other_side("5号室を予約したいのですが") == ""
