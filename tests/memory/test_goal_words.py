"""memory/text/goal_words.py: whether a person has mentioned the goal, in several languages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.memory.text.goal_words import goal_is_mentioned, mentions_goal
from usertwin.personas import Pair, Turn

LONG = "You want to find out whether the hotel at the harbour has a heated pool and whether dogs may stay in the room."


@pytest.mark.parametrize(
    ("goal", "turn"),
    [
        ("book a hotel", "hi, i need a hotel please"),
        ("Book a hotel in Berlin for two nights.", "two nights in berlin, what do you have?"),
        (LONG, "does your hotel have a heated pool"),
        ("order 4711 did not arrive", "it is about 4711, my order"),
        ("buy a car", "a used car maybe"),
        ("Du möchtest ein Zimmer in Köln buchen.", "ich suche zimmer in köln"),
        ("Забронировать гостиницу", "нужна гостиница на две ночи"),
        ("ホテルを予約する", "ホテルはありますか"),
        ("预订一家酒店", "你好，我想订酒店，预订两晚"),
        ("호텔을 예약하기", "호텔에서 묵고 싶어요"),
    ],
)
def test_a_goal_is_mentioned_in_other_words_and_forms(goal: str, turn: str) -> None:
    assert mentions_goal(goal, ["hello", turn])


@pytest.mark.parametrize(
    ("goal", "turn"),
    [
        ("book a hotel", "50150"),
        ("book a hotel", "hello, how are you? i hope that you are well"),
        ("order 4711 did not arrive", "471"),
        (LONG, "hello there i want to find something out"),
        ("Du möchtest ein Zimmer in Köln buchen.", "guten tag"),
        ("Забронировать гостиницу", "здравствуйте, как дела"),
        ("ホテルを予約する", "こんにちは"),
        ("预订一家酒店", "你好"),
        ("호텔을 예약하기", "안녕하세요"),
    ],
)
def test_a_greeting_mentions_no_goal(goal: str, turn: str) -> None:
    assert not mentions_goal(goal, [turn])
    assert not mentions_goal(goal, [])


@given(st.text(min_size=1))
def test_a_goal_mentions_itself(goal: str) -> None:
    assert mentions_goal(goal, [goal])
    assert mentions_goal("", [goal])


def pair(goal: str, *turns: tuple[str, str], action: str = "", earlier: int = 0) -> Pair:
    context = tuple(Turn(speaker, speaker, text) for speaker, text in turns)
    return Pair(
        speaker="Ann", context=context, action=action, goal=goal, conversation_id="c", position=len(turns) + earlier, when=0.0
    )


def test_only_the_person_mentions_a_goal() -> None:
    told = pair("book a hotel", ("desk", "Do you want to book a hotel?"), action="a hotel, yes")
    assert not goal_is_mentioned(told, with_action=False)
    assert goal_is_mentioned(told, with_action=True)
    assert goal_is_mentioned(pair("book a hotel", ("Ann", "a hotel?"), ("desk", "no")), with_action=False)


def test_without_a_goal_or_with_unknown_turns_before_it_counts_as_mentioned() -> None:
    assert goal_is_mentioned(pair("", ("desk", "hello")), with_action=False)
    assert goal_is_mentioned(pair("book a hotel", ("desk", "hello"), earlier=1), with_action=False)
    assert not goal_is_mentioned(pair("book a hotel", ("desk", "hello")), with_action=False)
