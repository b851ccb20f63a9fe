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
    return replace(counted, count_tokens=word_count)


def word_count(text: str) -> int:
    return len(text.split())


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
    fitted, text = fit(200, query("early " * 90, "word " * 300 + "END"))
    assert (fitted.cut_turns, fitted.cut_recalled) == (2, 3)
    assert text.startswith("GOAL …")
    assert text.endswith("END")
    assert 110 <= len(text.split()) <= 200 - 20 - 64  # as much of it as fits


def test_a_turn_keeps_its_end_where_nothing_fits() -> None:
    fitted, text = fit(90, query("word " * 100 + "END"))
    assert (fitted.cut_turns, fitted.cut_recalled) == (1, 3)
    assert text.endswith("word END")
    assert len(text) > 200
    fitted, text = fit(90, query("word " * 20 + "END"))
    assert (fitted.cut_turns, text) == (0, "GOAL " + "word " * 20 + "END")


def test_each_message_of_a_chat_costs_tokens_of_the_template() -> None:
    def several(pair: Pair, recalled: Sequence[Triple], turns: int) -> Messages:
        return [("user", turn.text) for turn in (pair.context[-turns:] if turns else ())]

    pair = query(*["x"] * 40)
    assert fit_prompt(model(500), 20, several, pair, [], turns=40).cut_turns == 0
    assert fit_prompt(model(300), 20, several, pair, [], turns=40).cut_turns == 16  # nine tokens each


def test_few_prompts_are_built_for_many_memories_and_turns() -> None:
    built: list[int] = []

    def counting(pair: Pair, recalled: Sequence[Triple], turns: int) -> Messages:
        built.append(turns)
        return build(pair, recalled, turns)

    fit_prompt(model(800), 20, counting, query(*("word " * 10 for _ in range(500))), RECALLED * 11, turns=500)
    assert len(built) < 25


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
