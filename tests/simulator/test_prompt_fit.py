"""Prompts within a model's context: the oldest goes first, and what is cut is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import PAIR, function_model
from usertwin.memory import ChatModel, Triple
from usertwin.personas import Pair, Turn
from usertwin.simulator.prompt_fit import FittedPrompt, fit_prompt
from usertwin.simulator.prompts import Messages


def build(query: Pair, recalled: Sequence[Triple], turns: int) -> Messages:
    latest = query.context[-turns:] if turns else ()
    return [("user", " ".join([query.goal, *(t.pair.action for t in reversed(recalled)), *(turn.text for turn in latest)]))]


def model(context: int | None) -> ChatModel:
    counted = replace(function_model(lambda prompt, seed: "")[0], context_tokens=context)
    return replace(counted, count_tokens=lambda text: len(text.split()))


def query(*texts: str) -> Pair:
    return replace(PAIR, context=tuple(Turn("Bob", "agent", text) for text in texts), goal="GOAL")


RECALLED = [Triple(replace(PAIR, action=f"recalled{i} " * 50)) for i in range(3)]
TALK = query(*(f"turn{i} " * 50 for i in range(4)))


def fit(context: int | None, pair: Pair = TALK, turns: int = 9) -> tuple[FittedPrompt, str]:
    fitted = fit_prompt(model(context), 20, build, pair, RECALLED, turns=turns)
    return fitted, fitted.messages[0][1]


def test_a_prompt_that_fits_or_of_an_unknown_context_is_whole() -> None:
    for context in (None, 1000):
        fitted, text = fit(context)
        assert (fitted.cut_turns, fitted.cut_recalled) == (0, 0)
        assert all(f"turn{i}" in text for i in range(4))


def test_the_least_similar_pair_goes_first_then_the_oldest_turn_then_the_start_of_the_last() -> None:
    fitted, text = fit(400)
    assert (fitted.cut_turns, fitted.cut_recalled) == (0, 1)
    assert "recalled1" in text
    assert "recalled2" not in text
    fitted, text = fit(200)
    assert (fitted.cut_turns, fitted.cut_recalled) == (2, 3)
    assert text.split()[:2] == ["GOAL", "turn2"]
    fitted, text = fit(100, query("early " * 90, "word " * 100 + "END"))
    assert (fitted.cut_turns, fitted.cut_recalled) == (2, 3)
    assert text.startswith("GOAL …")
    assert text.endswith("END")


def test_turns_beyond_the_number_asked_for_are_counted() -> None:
    fitted, _ = fit(None, turns=3)
    assert fitted.cut_turns == 1


@given(st.integers(90, 500), st.lists(st.integers(1, 80), max_size=6))
def test_a_larger_context_never_cuts_more(context: int, lengths: list[int]) -> None:
    pair = query(*(f"t{i} " * length for i, length in enumerate(lengths)))
    cuts = [(f.cut_turns, f.cut_recalled) for f, _ in (fit(size, pair) for size in (context, context + 50, None))]
    assert all(more[0] >= less[0] and more[1] >= less[1] for more, less in pairwise(cuts))


@pytest.mark.parametrize("context", [70, 80])
def test_goal_and_persona_stay_whatever_the_context(context: int) -> None:
    assert fit(context)[1].startswith("GOAL")
