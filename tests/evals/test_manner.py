"""How somebody writes: what is counted in a turn, distances with known values, diversity, and calibration."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import brier_score_loss

from usertwin.evals.metrics import writing_style as manner
from usertwin.evals.metrics.writing_style import (
    FUNCTION_WORDS,
    asks,
    brier,
    capitalized,
    cosine_distance,
    counts,
    function_word_distance,
    function_words,
    grams,
    greets,
    has_emoji,
    is_polite,
    jensen_shannon,
    mattr,
    reliability,
    style_distance,
    window_ratios,
)

texts = st.text(max_size=30)
tokens = st.lists(st.sampled_from("abcde"), max_size=30)


@pytest.mark.parametrize(("text", "holds"), [("why?", True), ("为什么？", True), ("لماذا؟", True), ("why", False), ("", False)])
def test_a_question_has_a_question_mark_in_any_script(text: str, holds: bool) -> None:
    assert asks(text) is holds


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("Hello, can you help", True),
        ("hiii", True),
        ("...hey!", True),
        ("Good morning all", True),
        ("good point", False),
        ("hidden costs", False),
        ("history", False),
        ("she said hi", False),
        ("", False),
    ],
)
def test_a_greeting_is_a_whole_word_at_the_beginning(text: str, holds: bool) -> None:
    assert greets(text) is holds


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("could you PLEASE look", True),
        ("thx", True),
        ("ok, thank you", True),
        ("Sorry about that", True),
        ("I apologise", True),
        ("displeased", False),
        ("a pleasant day", False),
        ("pretty tyres", False),
    ],
)
def test_politeness_is_told_by_whole_words(text: str, holds: bool) -> None:
    assert is_polite(text) is holds


@pytest.mark.parametrize(
    ("text", "holds"),
    [("  Yes", True), ("Éa", True), ("yes", False), ("3 of them", None), ('"Yes"', None), ("你好", None), ("", None)],
)
def test_capitals_are_asked_of_turns_that_begin_with_a_letter_that_has_a_case(text: str, holds: bool | None) -> None:
    assert capitalized(text) is holds


@pytest.mark.parametrize(
    "text",
    ["😀", "ok 👍🏽", "♥", "🇳🇴", "☀️ today", ":)", "sure :-D", "no :(", ";)", "<3", "XD", "^^", "lol :P", ":'(", "thanks:)"],
)
def test_emoji_and_smileys_are_found(text: str) -> None:
    assert has_emoji(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "plain", "at 10:30", "f(x): y", "see http://a.b/c", "(1) one", "a:b", "é ü 你好", "1<3 apples", "C:/x",
        "item 8) eggs", "10:(b)", "a: (b)", "- yes -", "XDocument", "EXD", "price: $3",
    ],
)  # fmt: skip
def test_ordinary_punctuation_is_no_smiley(text: str) -> None:
    assert not has_emoji(text)


def test_the_pieces_of_a_text_are_three_characters_with_a_blank_on_either_side() -> None:
    assert grams("to  to") == {" to": 2, "to ": 2, "o t": 1}
    assert not grams("")


def test_a_style_has_no_distance_from_itself_and_a_whole_one_from_nothing_in_common() -> None:
    assert style_distance(["see you", "soon"], ["soon", "see you"]) == pytest.approx(0, abs=1e-6)
    assert style_distance(["aaaa"], ["zzzz"]) == pytest.approx(1)
    assert style_distance([""], ["zzzz"]) == 1.0
    assert style_distance([], []) == 0.0


def test_who_types_alike_is_closer_than_who_does_not() -> None:
    real = ["hey whats up", "lol no way", "im ok thx"]
    alike, unlike = ["hey im up", "no way lol"], ["Good evening. How do you do?", "I am well, thank you."]
    assert style_distance(alike, real) < style_distance(unlike, real)


def test_half_in_common_has_the_distance_that_can_be_reckoned() -> None:
    """Shares (1, 0) and (1/2, 1/2): entropies 0 and 1 bit, of their mean (3/4, 1/4) 0.8113 bits."""
    found = jensen_shannon(np.array([[2.0, 0.0]]), np.array([[3.0, 3.0]]))
    mixed = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert found[0] == pytest.approx(math.sqrt(mixed - 0.5))


rows = st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any)


@given(rows, rows, st.sampled_from(["f4", "f8"]))
def test_the_distance_is_scipys_in_either_width(one: list[int], other: list[int], width: str) -> None:
    found = jensen_shannon(np.array([one], width), np.array([other], width))
    assert found[0] == pytest.approx(float(jensenshannon(one, other, base=2)), abs=1e-3 if width == "f4" else 1e-7)


def test_function_words_are_counted_whatever_their_case_and_apostrophe() -> None:
    assert function_words("I don’t; I DON'T know the cat") == {"i": 2, "don't": 2, "the": 1}


def test_the_list_of_function_words_has_each_once_as_texts_are_split() -> None:
    assert len(set(FUNCTION_WORDS)) == len(FUNCTION_WORDS) > 100
    assert all(function_words(word) == {word: 1} for word in FUNCTION_WORDS)


def test_the_subject_does_not_change_the_distance_of_function_words() -> None:
    assert function_word_distance(["the dog and the bone"], ["the law and the court"]) == 0.0
    assert function_word_distance(["the dog"], ["my dog"]) == 1.0
    assert function_word_distance(["dog"], ["my dog"]) == 1.0
    assert function_word_distance(["dog"], ["cat"]) == 0.0


def test_a_cosine_distance_is_the_one_of_the_textbook() -> None:
    found = cosine_distance(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 1.0], [3.0, 3.0]]))
    assert found == pytest.approx([1 - 1 / math.sqrt(2), 0], abs=1e-9)


def test_counters_become_rows_over_all_pieces() -> None:
    found, pieces = counts([grams("ab"), grams("b")])
    assert pieces == [" ab", " b ", "ab "]
    assert found.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_diversity_is_the_mean_over_windows() -> None:
    """Windows of three of "a b a c": aba has 2 different of 3, bac 3 of 3."""
    assert mattr(list("abac"), window=3) == pytest.approx((2 / 3 + 1) / 2)


def test_a_text_shorter_than_the_window_has_its_plain_share_of_different_words() -> None:
    assert mattr(list("aab")) == pytest.approx(2 / 3)
    assert mattr([]) == 0.0


def test_diversity_does_not_fall_with_length() -> None:
    cycle = [f"w{i % 60}" for i in range(600)]
    assert mattr(cycle) == mattr(cycle[:100]) == 1.0


@given(tokens, st.integers(1, 8))
def test_sliding_windows_are_those_counted_one_by_one(words: list[str], window: int) -> None:
    if len(words) <= window:
        by_hand = [len(set(words)) / len(words)] if words else []
    else:
        by_hand = [len(set(words[i : i + window])) / window for i in range(len(words) - window + 1)]
    assert window_ratios(words, window) == pytest.approx(by_hand)


@given(texts, texts)
def test_no_text_is_too_odd_to_be_measured(one: str, other: str) -> None:
    for holds in (asks, greets, is_polite, has_emoji):
        assert holds(one) in (True, False)
    for distance in (style_distance, function_word_distance):
        assert 0 <= distance([one], [other]) <= 1
        assert distance([one], [other]) == pytest.approx(distance([other], [one]), abs=1e-6)
        assert distance([one], [one]) == pytest.approx(0, abs=1e-6)


def test_forecasts_cost_the_square_of_what_they_are_off() -> None:
    found = brier([0.9, 0.2, 0.5], [True, True, False])
    assert found == pytest.approx([0.01, 0.64, 0.25])
    assert sum(found) / 3 == pytest.approx(brier_score_loss([1, 1, 0], [0.9, 0.2, 0.5]))


def test_a_reliability_table_tells_what_was_told_and_what_happened() -> None:
    found = reliability([0.1, 0.15, 0.9, 1.0], [False, True, True, True], bins=2)
    assert found == [
        {"low": 0.0, "high": 0.5, "told": pytest.approx(0.125), "left": 0.5, "n": 2},
        {"low": 0.5, "high": 1.0, "told": pytest.approx(0.95), "left": 1.0, "n": 2},
    ]
    assert reliability([], []) == []


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=30))
def test_every_forecast_is_in_one_bin_that_holds_it(forecasts: list[tuple[float, bool]]) -> None:
    found = reliability([told for told, _ in forecasts], [real for _, real in forecasts])
    assert sum(row["n"] for row in found) == len(forecasts)
    assert all(row["low"] - 1e-9 <= row["told"] <= row["high"] + 1e-9 for row in found)


def test_the_examples_in_the_docstrings_are_true() -> None:
    found = doctest.testmod(manner)
    assert found.attempted
    assert not found.failed
