"""Modifiers of a person: seeded, recorded, and never at the cost of what the person knows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.simulator.scenarios import MODIFIERS, Scenario, mixed_in_turn, modified_turn
from usertwin.simulator.scenarios.modifiers import manner

TEXT = "Hello there, I would like to return the parcel with the number 4711 because it does not fit me at all"
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=200) | st.lists(
    st.sampled_from([*TEXT.split(), "sarah@web.org", "https://x.org/a", "привет", "Brown,"])
).map(" ".join)
modifiers = st.lists(st.sampled_from(MODIFIERS), unique=True)
seeds = st.integers(0, 2**31)


@given(texts, modifiers, seeds, st.integers(0, 50))
def test_the_same_seed_gives_the_same_turn(text: str, names: list[str], seed: int, turn: int) -> None:
    assert modified_turn(text, names, seed, turn) == modified_turn(text, names, seed, turn)
    assert mixed_in_turn(names, seed, turn) == mixed_in_turn(names, seed, turn)


@given(texts, st.lists(st.sampled_from(["impatient", "off_topic", "pushes"]), unique=True), seeds, st.integers(0, 50))
def test_a_turn_without_modifiers_of_text_is_unchanged(text: str, names: list[str], seed: int, turn: int) -> None:
    modified = modified_turn(text, names, seed, turn)
    assert (modified.texts, modified.notes) == ((text,), ())


@given(texts, texts, st.text(min_size=1, max_size=20), modifiers, seeds)
def test_protected_texts_survive(before: str, after: str, value: str, names: list[str], seed: int) -> None:
    modified = modified_turn(f"{before} {value} {after}", names, seed, 0, [value])
    assert value.strip() in "\n".join(modified.texts)


@given(texts, seeds)
def test_every_change_is_recorded(text: str, seed: int) -> None:
    modified = modified_turn(text, ["typos", "interrupts"], seed, 0)
    assert bool(modified.notes) == (modified.texts != (text,))
    assert all(modified.texts) or not text


@given(texts, seeds)
def test_words_with_digits_and_addresses_have_no_typing_errors(text: str, seed: int) -> None:
    [modified] = modified_turn(text, ["typos"], seed, 0).texts
    exact = [word for word in text.split() if any(map(str.isdigit, word)) or "@" in word or "/" in word]
    assert [word for word in modified.split() if word in exact] == exact


def test_typing_errors_are_few_and_small() -> None:
    changed = [modified_turn(TEXT, ["typos"], seed, 0) for seed in range(200)]
    errors = sum(len(turn.notes) for turn in changed)
    words = sum(len(word) >= 4 and word != "4711" for word in TEXT.split()) * 200
    assert 0.05 < errors / words < 0.11
    assert all(abs(len(turn.texts[0]) - len(TEXT)) <= len(turn.notes) for turn in changed)
    assert len({turn.texts for turn in changed}) > 50


def test_an_interruption_splits_a_turn_or_stops_it_inside_a_sentence() -> None:
    turns = [modified_turn(TEXT, ["interrupts"], seed, 0).texts for seed in range(200)]
    split, cut = ([t for t in turns if len(t) == 2], [t for t in turns if len(t) == 1 and t != (TEXT,)])
    assert 20 < len(split) < 100
    assert 5 < len(cut) < 60
    assert all(" ".join(parts) == TEXT for parts in split)
    assert all(TEXT.startswith(text) and "4711" in text for [text] in cut)  # never before a number that would be lost


def test_short_turns_are_not_interrupted() -> None:
    assert {modified_turn("yes that is it", ["interrupts"], seed, 0).texts for seed in range(50)} == {("yes that is it",)}


def test_a_person_without_instructions_says_turns_of_the_list_now_and_then() -> None:
    said = [mixed_in_turn(["impatient", "pushes"], 3, turn) for turn in range(40)]
    turns = [turn for turn in said if turn is not None]
    assert said[0] is None
    assert 5 < len(turns) <= 13
    assert len({turn.texts for turn in turns}) == len(turns)
    assert all(turn.notes for turn in turns)
    assert mixed_in_turn(["typos", "interrupts"], 3, 5) is None
    assert mixed_in_turn([], 3, 5) is None


@pytest.mark.parametrize("name", ["impatient", "off_topic", "pushes"])
def test_a_manner_is_in_the_goal_of_models_that_follow_instructions(name: str) -> None:
    scenario = Scenario(name="x", goal="You want a refund.", modifiers=(name,))
    assert scenario.goal_text(0, []) == f"You want a refund.\n{manner([name])[0]}"
    assert scenario.goal_text(0, [], style="transcript") == "You want a refund."
