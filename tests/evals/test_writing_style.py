"""Style features, distances, diversity and calibration: known values and properties."""

from __future__ import annotations

import doctest
import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import brier_score_loss

from usertwin.evals.metrics import writing_style
from usertwin.evals.metrics.writing_style import (
    FUNCTION_WORDS,
    MATTR_WINDOW,
    char_ngrams,
    cosine_distance,
    count_matrix,
    function_word_counts,
    has_emoji,
    has_greeting,
    has_question,
    is_polite,
    jensen_shannon,
    reliability_table,
    squared_errors,
    starts_with_capital,
    style_distance,
    window_ratios,
)

texts = st.text(max_size=30)
tokens = st.lists(st.sampled_from("abcde"), max_size=30)


def function_word_distance(replies: Sequence[str], reals: Sequence[str]) -> float:
    """Return one minus the cosine of the function word counts of two sets of texts."""
    matrix = count_matrix([function_word_counts(" ".join(texts)) for texts in (replies, reals)])
    return round(float(cosine_distance(matrix[:1], matrix[1:])[0]), 12)


def mattr(words: Sequence[str], window: int = MATTR_WINDOW) -> float:
    ratios = window_ratios(words, window)
    return fmean(ratios) if ratios else 0.0


@pytest.mark.parametrize(("text", "holds"), [("why?", True), ("为什么？", True), ("لماذا؟", True), ("why", False), ("", False)])
def test_a_question_has_a_question_mark_in_any_script(text: str, holds: bool) -> None:
    assert has_question(text) is holds


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
    assert has_greeting(text) is holds


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
def test_politeness_needs_whole_words(text: str, holds: bool) -> None:
    assert is_polite(text) is holds


@pytest.mark.parametrize(
    ("text", "holds"),
    [("  Yes", True), ("Éa", True), ("yes", False), ("3 of them", None), ('"Yes"', None), ("你好", None), ("", None)],
)
def test_capitals_are_undefined_without_a_cased_first_letter(text: str, holds: bool | None) -> None:
    assert starts_with_capital(text) is holds


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
def test_ordinary_punctuation_is_not_a_smiley(text: str) -> None:
    assert not has_emoji(text)


def test_character_ngrams_include_a_blank_on_either_side() -> None:
    assert char_ngrams("to  to") == {" to": 2, "to ": 2, "o t": 1}
    assert not char_ngrams("")


def test_style_distance_is_0_for_equal_texts_and_1_for_disjoint_ones() -> None:
    assert style_distance(["see you", "soon"], ["soon", "see you"]) == pytest.approx(0, abs=1e-6)
    assert style_distance(["aaaa"], ["zzzz"]) == pytest.approx(1)
    assert style_distance([""], ["zzzz"]) == 1.0
    assert style_distance([], []) == 0.0


def test_similar_typing_has_a_smaller_style_distance() -> None:
    real = ["hey whats up", "lol no way", "im ok thx"]
    alike, unlike = ["hey im up", "no way lol"], ["Good evening. How do you do?", "I am well, thank you."]
    assert style_distance(alike, real) < style_distance(unlike, real)


def test_jensen_shannon_equals_a_hand_computed_value() -> None:
    """Shares (1, 0) and (1/2, 1/2): entropies 0 and 1 bit, of their mean (3/4, 1/4) 0.8113 bits."""
    result = jensen_shannon(np.array([[2.0, 0.0]]), np.array([[3.0, 3.0]]))
    mixed = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert result[0] == pytest.approx(math.sqrt(mixed - 0.5))


rows = st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any)


@given(rows, rows, st.sampled_from(["f4", "f8"]))
def test_jensen_shannon_equals_scipy_in_float32_and_float64(one: list[int], other: list[int], width: str) -> None:
    result = jensen_shannon(np.array([one], width), np.array([other], width))
    assert result[0] == pytest.approx(float(jensenshannon(one, other, base=2)), abs=1e-3 if width == "f4" else 1e-7)


def test_function_word_counts_ignore_case_and_apostrophe_style() -> None:
    assert function_word_counts("I don’t; I DON'T know the cat") == {"i": 2, "don't": 2, "the": 1}


def test_function_words_are_unique_and_tokenized_like_texts() -> None:
    assert len(set(FUNCTION_WORDS)) == len(FUNCTION_WORDS) > 100
    assert all(function_word_counts(word) == {word: 1} for word in FUNCTION_WORDS)


def test_function_word_distance_ignores_the_subject() -> None:
    assert function_word_distance(["the dog and the bone"], ["the law and the court"]) == 0.0
    assert function_word_distance(["the dog"], ["my dog"]) == 1.0
    assert function_word_distance(["dog"], ["my dog"]) == 1.0
    assert function_word_distance(["dog"], ["cat"]) == 0.0


def test_cosine_distance_equals_hand_computed_values() -> None:
    result = cosine_distance(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 1.0], [3.0, 3.0]]))
    assert result == pytest.approx([1 - 1 / math.sqrt(2), 0], abs=1e-9)


def test_count_matrix_has_a_row_per_counter() -> None:
    """The sorted pieces are " ab", " b " and "ab "."""
    result = count_matrix([char_ngrams("ab"), char_ngrams("b")])
    assert result.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_mattr_is_the_mean_over_windows() -> None:
    """Windows of three of "a b a c": aba has 2 different of 3, bac 3 of 3."""
    assert mattr(list("abac"), window=3) == pytest.approx((2 / 3 + 1) / 2)


def test_mattr_of_a_short_text_is_its_type_token_ratio() -> None:
    assert mattr(list("aab")) == pytest.approx(2 / 3)
    assert mattr([]) == 0.0


def test_mattr_does_not_fall_with_length() -> None:
    cycle = [f"w{i % 60}" for i in range(600)]
    assert mattr(cycle) == mattr(cycle[:100]) == 1.0


@given(tokens, st.integers(1, 8))
def test_window_ratios_equal_a_direct_count(words: list[str], window: int) -> None:
    if len(words) <= window:
        by_hand = [len(set(words)) / len(words)] if words else []
    else:
        by_hand = [len(set(words[i : i + window])) / window for i in range(len(words) - window + 1)]
    assert window_ratios(words, window) == pytest.approx(by_hand)


@given(texts, texts)
def test_any_text_can_be_measured(one: str, other: str) -> None:
    for holds in (has_question, has_greeting, is_polite, has_emoji):
        assert holds(one) in (True, False)
    for distance in (style_distance, function_word_distance):
        assert 0 <= distance([one], [other]) <= 1
        assert distance([one], [other]) == pytest.approx(distance([other], [one]), abs=1e-6)
        assert distance([one], [one]) == pytest.approx(0, abs=1e-6)


def test_squared_errors_average_to_sklearns_brier_score() -> None:
    result = squared_errors([0.9, 0.2, 0.5], [True, True, False])
    assert result == pytest.approx([0.01, 0.64, 0.25])
    assert sum(result) / 3 == pytest.approx(brier_score_loss([1, 1, 0], [0.9, 0.2, 0.5]))


def test_reliability_table_holds_predictions_and_outcomes() -> None:
    result = reliability_table([0.1, 0.15, 0.9, 1.0], [False, True, True, True], bins=2)
    assert result == [
        {"low": 0.0, "high": 0.5, "predicted": pytest.approx(0.125), "observed": 0.5, "n": 2},
        {"low": 0.5, "high": 1.0, "predicted": pytest.approx(0.95), "observed": 1.0, "n": 2},
    ]
    assert reliability_table([], []) == []


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=30))
def test_every_forecast_is_in_exactly_one_matching_bin(forecasts: list[tuple[float, bool]]) -> None:
    result = reliability_table([forecast for forecast, _ in forecasts], [real for _, real in forecasts])
    assert sum(row["n"] for row in result) == len(forecasts)
    assert all(row["low"] - 1e-9 <= row["predicted"] <= row["high"] + 1e-9 for row in result)


def test_docstring_examples_pass() -> None:
    result = doctest.testmod(writing_style)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("text", ["★ ☆", "✓ done", "→ next"])
def test_symbols_outside_unicodes_emoji_list_are_not_emoji(text: str) -> None:
    assert not has_emoji(text)
