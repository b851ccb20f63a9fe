"""memory/text/sentences.py: ends of sentences, broken-off texts, and lengths in several scripts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.memory.text.sentences import breaks_off, sentences, size_in_words, up_to_last_sentence
from usertwin.memory.text.words import is_spaceless, word_tokens


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Hi. How are you?", ["Hi.", "How are you?"]),
        ("it costs 3.50 at example.com ok", ["it costs 3.50 at example.com ok"]),
        ('He said "no!" and left', ['He said "no!"', "and left"]),
        ("one\ntwo\n\nthree...", ["one", "two", "three..."]),
        ("はい。お願いします！では", ["はい。", "お願いします！", "では"]),
        ("كيف حالك؟ بخير", ["كيف حالك؟", "بخير"]),
        ("नमस्ते। आप कैसे हैं", ["नमस्ते।", "आप कैसे हैं"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences_end_at_marks_and_lines(text: str, parts: list[str]) -> None:
    assert sentences(text) == parts


@given(st.text("ab .?!。\n"))
def test_sentences_lose_nothing_but_space(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize("text", ["i would like", "yes, ", "the one (", "it is -", "Ich möchte eine", "それは本当", "and 2"])
def test_a_text_breaks_off_after_a_letter_or_an_open_mark(text: str) -> None:
    assert breaks_off(text)


@pytest.mark.parametrize("text", ["yes.", "really?!", "haha 😂", "ok :)", "はい。", "(no)", ""])
def test_a_text_that_ends_is_whole(text: str) -> None:
    assert not breaks_off(text)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("Yes please. And then i", "Yes please."),
        ('He said "no." And', 'He said "no."'),
        ("one line\nand then", "one line"),
        ("はい。それから", "はい。"),
        ("i would like to have", ""),
        ("1. I would", ""),
        ("... and", ""),
        ("Done.", "Done."),
    ],
)
def test_a_text_is_cut_to_its_last_whole_sentence(text: str, whole: str) -> None:
    assert up_to_last_sentence(text) == whole


def test_lengths_are_comparable_between_scripts() -> None:
    assert size_in_words("yes, that's it") == 3
    assert size_in_words("はい、お願いします") == 2
    assert size_in_words("ありがとうございます") <= 3 < size_in_words("明日の天気を教えてもらえますか")


@given(st.text())
def test_the_size_is_the_sum_over_the_words(text: str) -> None:
    assert size_in_words(text) == sum(0.25 if is_spaceless(word) else 1 for word in word_tokens(text))
