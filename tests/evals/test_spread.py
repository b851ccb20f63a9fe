"""Spread: the distances between people are unbiased, and replies of one voice have none."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.evals.metrics.spread import spread
from usertwin.evals.records.measured_turns import MeasuredTurn

WORDS = ("river", "stone", "cloud", "apple", "train", "house", "light", "paper", "glass", "bread", "sound", "green", "table")


def said(rng: random.Random, words: tuple[str, ...]) -> str:
    return " ".join(rng.choices(words, k=6))


def measured(
    people: int, reply: Callable[[random.Random, int, str], str], *, talks: int = 5, each: int = 3, seed: int = 0,
    corpus: str = "x",
) -> list[MeasuredTurn]:  # fmt: skip
    """Return turns of people with favourite words; the reply of the arm "a" is a function of the person and the real turn."""
    rng = random.Random(seed)
    turns: list[MeasuredTurn] = []
    for number in range(people):
        for talk in range(talks):
            for position in range(each):
                action = said(rng, favourites(number))
                turns.append(
                    MeasuredTurn(
                        person=f"{corpus}/p{number}", conversation_id=f"{number}-{talk}", position=position, context=(),
                        action=action, characters=9, replies={"a": (reply(rng, number, action), "not counted")},
                    )
                )  # fmt: skip
    return turns


def favourites(number: int) -> tuple[str, ...]:
    """Return a person's words; neighbours share most of theirs, so that some pairs are alike and some are not."""
    return WORDS[number : number + 5]


def test_replies_like_the_real_turns_have_spread_1_and_matching_1() -> None:
    result = spread(measured(6, lambda rng, number, action: action))["a"]
    assert result["spread"]["value"] == pytest.approx(1)
    assert result["matching"]["value"] == pytest.approx(1)
    assert result["spread"]["n"] == 6
    assert result["pairs"] == 15


def test_replies_of_the_same_kind_have_spread_near_1_with_an_interval() -> None:
    result = spread(measured(8, lambda rng, number, action: said(rng, favourites(number)), talks=8))["a"]
    for name, low in (("spread", 0.8), ("matching", 0.7)):
        assert result[name]["low"] < result[name]["value"] < result[name]["high"]
        assert low < result[name]["value"] < 1.2


def test_one_voice_has_spread_0_on_average() -> None:
    """Of texts as few as three a person: a distance that were biased by their number would be far above 0."""
    values = [
        spread(measured(6, lambda rng, number, action: said(rng, WORDS), talks=3, each=1, seed=seed))["a"]["spread"]["value"]
        for seed in range(40)
    ]
    assert fmean(values) == pytest.approx(0, abs=0.05)
    assert min(values) < 0


def test_twins_of_the_wrong_people_have_spread_and_no_matching() -> None:
    order = [3, 0, 5, 1, 6, 2, 4]
    result = spread(measured(7, lambda rng, number, action: said(rng, favourites(order[number])), talks=8))["a"]
    assert result["spread"]["value"] == pytest.approx(1, abs=0.15)
    assert result["matching"]["value"] < 0.5


def test_texts_of_the_same_conversation_are_not_compared() -> None:
    """Each conversation has a subject that the replies name, and nothing in them depends on the person."""
    values: list[float] = []
    for seed in range(20):
        subjects = random.Random(seed).choices(WORDS, k=4 * 6)
        turns = [
            replace(turn, replies={"a": (subjects[int(turn.conversation_id[0]) * 6 + int(turn.conversation_id[2])],)})
            for turn in measured(4, lambda rng, number, action: action, talks=6, seed=seed)
        ]
        values.append(spread(turns)["a"]["spread"]["value"])
    assert fmean(values) == pytest.approx(0, abs=0.15)


def test_people_with_a_single_conversation_have_no_distance() -> None:
    assert spread(measured(3, lambda rng, number, action: action, talks=1)) == {}


def test_only_people_of_the_same_corpus_are_compared() -> None:
    def copy(rng: random.Random, number: int, action: str) -> str:
        return action

    turns = measured(3, copy) + measured(4, copy, corpus="y")
    assert spread(turns)["a"]["pairs"] == 3 + 6
    assert spread(measured(1, copy) + measured(1, copy, corpus="y")) == {}


@pytest.mark.parametrize("people", [2, 4])
def test_few_people_have_values_without_an_interval(people: int) -> None:
    result = spread(measured(people, lambda rng, number, action: said(rng, favourites(number))))["a"]
    assert result["spread"]["value"] > 0.5
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
