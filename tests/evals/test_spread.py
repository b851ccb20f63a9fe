"""Spread: the distances between people are unbiased, and replies of one voice have none."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from statistics import fmean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.evals.metrics.spread import spread
from usertwin.evals.records.measured_turns import MeasuredTurn

#: A function of the person's number and the real turn, with random choices.
Reply = Callable[[random.Random, int, str], str]


def said(rng: random.Random, number: int) -> str:
    """Return a turn in a person's style: the higher the number the longer, and the louder."""
    text = " ".join(rng.choices(("river", "stone", "cloud", "apple"), k=rng.randint(1, 3) + 2 * number))
    return (text.capitalize() if rng.random() < number / 8 else text) + "!" * (rng.random() < number / 8)


def measured(
    people: int, reply: Reply, *, talks: int = 5, each: int = 3, seed: int = 0, corpus: str = "x"
) -> list[MeasuredTurn]:
    """Return turns of people with a style; the arm "a" replies by a function of the person and the real turn."""
    rng = random.Random(seed)
    turns: list[MeasuredTurn] = []
    for number, talk, position in product(range(people), range(talks), range(each)):
        action = said(rng, number)
        turns.append(
            MeasuredTurn(
                person=f"{corpus}/p{number}", conversation_id=f"{number}-{talk}", position=position, context=(), action=action,
                characters=9, replies={"a": (reply(rng, number, action), "not counted")},
            )
        )  # fmt: skip
    return turns


def as_real(rng: random.Random, number: int, action: str) -> str:
    return action


def in_style(rng: random.Random, number: int, action: str) -> str:
    return said(rng, number)


def one_voice(rng: random.Random, number: int, action: str) -> str:
    return said(rng, rng.randint(0, 7))


def test_replies_like_the_real_turns_have_spread_1_and_matching_1() -> None:
    result = spread(measured(6, as_real))["a"]
    assert result["spread"]["value"] == pytest.approx(1)
    assert result["matching"]["value"] == pytest.approx(1)
    assert result["spread"]["n"] == 6
    assert result["pairs"] == 15


def test_replies_in_the_style_of_each_person_have_spread_near_1_with_an_interval() -> None:
    result = spread(measured(8, in_style, talks=12))["a"]
    for name in ("spread", "matching"):
        assert result[name]["low"] < result[name]["value"] < result[name]["high"]
        assert result[name]["value"] == pytest.approx(1, abs=0.25)
    assert result["matching"]["high"] <= 1


def test_one_voice_has_spread_0_on_average() -> None:
    """Of three texts a person: the usual, biased estimate would be above 1."""
    values = [spread(measured(6, one_voice, talks=3, each=1, seed=seed))["a"]["spread"]["value"] for seed in range(40)]
    assert fmean(values) == pytest.approx(0, abs=3 * stdev(values) / 40**0.5)
    assert stdev(values) < 0.6


def test_twins_of_the_wrong_people_have_spread_and_no_matching() -> None:
    order = [3, 0, 5, 1, 6, 2, 4]
    result = spread(measured(7, lambda rng, number, action: said(rng, order[number]), talks=8))["a"]
    assert result["spread"]["value"] == pytest.approx(1, abs=0.2)
    assert result["matching"]["value"] < 0.5


def test_texts_of_the_same_conversation_are_not_compared() -> None:
    """All replies of a conversation are alike, as its subject may cause, and no person is: one voice."""
    values: list[float] = []
    for seed in range(30):
        talks = random.Random(seed)
        by_talk = {f"{number}-{talk}": said(talks, talks.randint(0, 7)) for number in range(5) for talk in range(5)}
        turns = [replace(turn, replies={"a": (by_talk[turn.conversation_id],)}) for turn in measured(5, as_real, seed=seed)]
        values.append(spread(turns)["a"]["spread"]["value"])
    assert fmean(values) == pytest.approx(0, abs=0.15)


def test_people_with_a_single_conversation_have_no_distance() -> None:
    assert spread(measured(3, as_real, talks=1)) == {}


def test_only_people_of_the_same_corpus_are_compared() -> None:
    assert spread(measured(3, as_real) + measured(4, as_real, corpus="y"))["a"]["pairs"] == 3 + 6
    assert spread(measured(1, as_real) + measured(1, as_real, corpus="y")) == {}


@pytest.mark.parametrize("people", [2, 4])
def test_few_people_have_values_without_an_interval(people: int) -> None:
    result = spread(measured(people, in_style))["a"]
    assert result["spread"]["low"] is result["spread"]["high"] is None
    assert (result["matching"] is None) == (people == 2)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.text(max_size=9), st.text(max_size=9)), max_size=20))
def test_any_turns_have_figures_or_none(rows: list[tuple[int, int, str, str]]) -> None:
    turns = [
        MeasuredTurn(
            person=f"x/p{person}", conversation_id=f"c{talk}", position=place, context=(), action=action, characters=9,
            replies={"a": (reply,)},
        )
        for place, (person, talk, action, reply) in enumerate(rows)
    ]  # fmt: skip
    estimates: list[Any] = [row[name] for row in spread(turns).values() for name in ("spread", "matching") if row[name]]
    assert all(one["low"] is None or one["low"] < one["value"] < one["high"] for one in estimates)
    assert all(abs(row["matching"]["value"]) < 1 + 1e-9 for row in spread(turns).values() if row["matching"])
