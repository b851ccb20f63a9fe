"""Words: tokens, spans, stems, content words and shared runs, in any script."""

from __future__ import annotations

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from usertwin.memory.text.words import (
    content_words,
    context_and_goal,
    longest_copied_run,
    new_stems,
    ngrams,
    spans_with_stems,
    stem,
    stems,
    word_spans,
    word_tokens,
)
from usertwin.personas import Pair, Turn


def pair(action: str, *context: str, goal: str = "") -> Pair:
    turns = tuple(Turn("Bob", "agent", text) for text in context)
    return Pair(speaker="Ann", context=turns, action=action, goal=goal, conversation_id="talk", position=len(turns), when=0.0)


# Words ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n\u2028 ?! — … 👍🏽", []),
        ('He said: "NO way" (twice).', ["he", "said", "no", "way", "twice"]),
        ("rock 'n' roll, 'quoted' words'", ["rock", "n", "roll", "quoted", "words"]),
        ("I don't; I don’t", ["i", "don't", "i", "don't"]),
        ("see https://shop.example/a?b=1", ["see", "https", "shop", "example", "a", "b", "1"]),
        ("at 14:30, for 9.99", ["at", "14", "30", "for", "9", "99"]),
        ("Straße ÉCOLE", ["strasse", "école"]),
        ("Привет, МИР", ["привет", "мир"]),
        ("안녕하세요 세계", ["안녕하세요", "세계"]),
        ("東京へ行く", ["東", "京", "へ", "行", "く"]),
        ("plan B東A", ["plan", "b", "東", "a"]),
    ],
)
def test_tokens_are_lower_case_words_or_characters_in_scripts_without_spaces(text: str, words: list[str]) -> None:
    assert word_tokens(text) == words


@given(st.text())
@example("İstanbul ŉ ẞ ǰ")
def test_spans_match_the_tokens_in_any_script(text: str) -> None:
    spans = word_spans(text)
    assert [text[start:end].casefold().replace("’", "'") for start, end in spans] == word_tokens(text)
    assert all(span[1] <= following[0] for span, following in itertools.pairwise(spans))


def test_spans_are_selected_by_stem_with_either_apostrophe() -> None:
    text = "Booked it; Oslo’s BOOKING, not oslo's book"
    assert [text[start:end] for start, end in spans_with_stems(text, {"book"})] == ["Booked", "BOOKING", "book"]
    assert [text[start:end] for start, end in spans_with_stems(text, {stem("oslo's")})] == ["Oslo’s", "oslo's"]
    assert spans_with_stems(text, set()) == []


def test_forms_of_a_word_share_a_stem_and_other_scripts_are_unchanged() -> None:
    assert {stem(word) for word in ("book", "booked", "booking", "books")} == {"book"}
    assert stem("oslo's") == stem("oslo")
    assert stems("Trains and a TRAINING; дома 東") == {"train", "and", "a", "дома", "東"}


def test_content_words_drop_stop_words_but_keep_answer_words() -> None:
    tokens = word_tokens("I'm sure it's not the one, no thanks, please never mind the dont")
    assert content_words(tokens) == ["sure", "not", "no", "thanks", "please", "never", "mind"]
    assert content_words(["東", "привет", "42"]) == ["東", "привет", "42"]


def test_threads_that_stem_at_the_same_time_get_the_stems_of_a_single_thread() -> None:
    words = sorted({word for file in Path(__file__).parent.glob("*.py") for word in word_tokens(file.read_text("utf-8"))})
    expected = [stem.__wrapped__(word) for word in words]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns within a word
    try:
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: [stem.__wrapped__(word) for word in words], range(8)))
    finally:
        sys.setswitchinterval(interval)
    assert len(words) > 3000
    assert all(result == expected for result in results)


# New stems --------------------------------------------------------------------------------------------


def test_context_and_goal_exclude_the_action() -> None:
    assert context_and_goal(pair("secret", "one", "two", goal="three")) == "one\ntwo\nthree"


def test_new_stems_are_content_words_absent_from_context_and_goal() -> None:
    action = "I booked the early trains to Oslo, please"
    assert new_stems(pair(action)) == {stem(word) for word in ("book", "early", "train", "oslo", "please")}
    assert new_stems(pair(action, "Any booking?", "An EARLY one", goal="Oslo’s museum")) == {"train", stem("please")}
    assert new_stems(pair("it is what it is")) == set()


@given(st.text(), st.text(), st.text())
@example("İstanbul", "istanbul", "")
def test_new_stems_never_occur_in_context_or_goal(action: str, context: str, goal: str) -> None:
    sample_pair = pair(action, context, goal=goal)
    assert new_stems(sample_pair) <= stems(action) - stems(context) - stems(goal)


# Runs ----------------------------------------------------------------------------------------------------------------


def naive_longest(trace: list[str], action: list[str], known: list[str]) -> int:
    """Search every run of the trace in the action and in the known text."""

    def has(words: list[str], run: list[str]) -> bool:
        return any(words[i : i + len(run)] == run for i in range(len(words) - len(run) + 1))

    every = (trace[i:j] for i in range(len(trace)) for j in range(i + 1, len(trace) + 1))
    return max((len(run) for run in every if has(action, run) and not has(known, run)), default=0)


words = st.lists(st.sampled_from(["tea", "milk", "no", "I'm", "茶"]), max_size=9)


@given(trace=words, action=words, known=words)
@example(trace=["tea", "milk", "no"], action=["tea", "milk", "no"], known=["tea", "milk", "milk", "no"])
def test_longest_copied_run_equals_a_naive_search(trace: list[str], action: list[str], known: list[str]) -> None:
    length = longest_copied_run(" ".join(trace), "... ".join(action), ", ".join(known))
    plain = [[word.lower() for word in part] for part in (trace, action, known)]
    assert length == naive_longest(*plain)


def test_run_of_three_thousand_words_is_fast() -> None:
    action = " ".join(f"word{number}" for number in range(3000))
    assert longest_copied_run(action, action, "") == 3000
    assert longest_copied_run(action, action, action) == 0
    assert longest_copied_run(action, f"{action} more", action.replace("word0 ", "")) == 3000


def test_ngrams_have_the_given_length() -> None:
    assert ngrams(["a", "b", "a", "b"], 2) == {("a", "b"), ("b", "a")}
    assert ngrams(["a"], 2) == set()
