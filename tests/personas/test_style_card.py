"""Style cards: counts over turns, own spellings, and the real turns that show the manner."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.personas.style_card import EXAMPLES, StyleCard, count_style, is_own_spelling, length_in, quantile

TURNS = [
    "hi, can u book a table?", "yes", "for 2 people pls", "hi, are u open tomorrow", "no", "ok thanks",
    "hi, what about sunday?",
    "gonna be late :)", "Is there parking", "thats all, thanks",
]  # fmt: skip


def card(turns: list[str]) -> StyleCard:
    counted = count_style(turns)
    assert counted is not None
    return counted


def test_counts_are_shares_of_turns() -> None:
    counted = card(TURNS)
    assert (counted.turns, counted.unit) == (10, "words")
    assert counted.lengths == (1, 2, 3, 4, 5)
    assert (counted.questions, counted.exclamations, counted.with_emoji) == (0.2, 0.0, 0.1)
    assert counted.uncapitalized == pytest.approx(0.9)
    assert counted.unpunctuated == pytest.approx(0.8)
    assert counted.emoji == ((":)", 0.1),)
    assert counted.scripts == (("Latin", 1.0),)


def test_frequent_openings_closings_and_spellings_are_listed_with_their_shares() -> None:
    counted = card(TURNS * 3)
    assert counted.openings[0] == ("hi", 0.3)
    assert dict(counted.spellings) == {"u": 0.2, "gonna": 0.1, "ok": 0.1, "pls": 0.1, "thats": 0.1}
    closings = card(["send it to me please", "what time is it please", "come on over please", "and one more thing"]).closings
    assert closings == (("please", 0.75),)
    together = card(["good morning to you"] * 4 + ["a b c d"] * 4).openings
    assert ("good morning", 0.5) in together
    assert "good" not in dict(together)  # its two words stand for it


def test_what_is_rare_is_not_listed() -> None:
    counted = card([f"word{i} and so on it goes" for i in range(100)] + ["hey gonna go now then"] * 2)
    assert (counted.spellings, counted.closings[0][0]) == ((), "it goes")


@pytest.mark.parametrize("word", ["u", "gonna", "Pls", "dont", "sooo", "hmmm", "jajaja", "ㅋㅋㅋ", "thats", "y’all", "хаха"])
def test_spellings_of_chats_are_recognised(word: str) -> None:
    assert is_own_spelling(word)


@pytest.mark.parametrize("word", ["hotel", "see", "good", "banana", "10000", "www", "naïve", "html", "y", "na"])
def test_words_of_a_dictionary_are_not(word: str) -> None:
    assert not is_own_spelling(word)


def test_a_small_i_is_a_spelling() -> None:
    assert dict(card(["i think so", "i'm here", "i do"]).spellings)["i"] == 1.0
    assert "i" not in dict(card(["I think so", "I'm here", "I do"]).spellings)


def test_other_scripts_are_counted_in_characters_and_named() -> None:
    counted = card(["明日は行けます", "はい", "どこですか？", "無理かも"] * 3)
    assert (counted.unit, counted.lengths[2]) == ("characters", 6)
    assert counted.uncapitalized is None
    assert counted.questions == pytest.approx(0.25)
    assert {name for name, _ in counted.scripts} == {"Hiragana", "Chinese characters"}
    assert (counted.openings, counted.closings) == ((), ())
    assert "- scripts: Hiragana" in counted.text()
    assert "characters in a message" in counted.text()
    assert card(["привет", "hello there"]).scripts == (("Latin", 0.625), ("Cyrillic", 0.375))


def test_emoji_are_those_of_unicode() -> None:
    counted = card(["great 😂😂", "ok 👍🏽", "no", "fine"])
    assert counted.with_emoji == 0.5
    assert dict(counted.emoji) == {"😂": 0.25, "👍🏽": 0.25}


def test_examples_are_real_short_turns_from_all_of_the_time_without_near_duplicates() -> None:
    first, second = ("table", "some hotel", "Zug nach Rom", "museum?"), ("at noon", "for 3", "bitte", "monday", "why not")
    third = ("ok", "please", "my friend", "u know", "jetzt")
    turns = [f"{a} {b} {c}" for a in first for b in second for c in third]
    turns[3:3] = ["yes please thanks", "Yes, please, thanks!", "a long story " * 30]
    examples = card(turns).examples
    assert 12 <= len(examples) <= EXAMPLES
    assert set(examples) <= set(turns)
    positions = [turns.index(example) for example in examples]
    assert positions == sorted(positions)
    assert positions[0] < 15
    assert positions[-1] > 85
    assert not any("long story" in example for example in examples)
    assert examples == card(turns).examples


@given(st.lists(st.text(max_size=30), max_size=60))
def test_any_turns_have_a_card_and_no_two_examples_are_the_same(turns: list[str]) -> None:
    counted = count_style(turns)
    assert (counted is None) == (not any(turn.strip() for turn in turns))
    if counted is not None:
        assert list(counted.lengths) == sorted(counted.lengths)
        assert all(0 <= share <= 1 for share in (counted.questions, counted.unpunctuated, counted.with_emoji))
        assert {*counted.examples} <= {turn.strip() for turn in turns}
        assert all(a.casefold() != b.casefold() for a, b in combinations(counted.examples, 2))
        assert counted.text()


def test_one_turn_is_enough() -> None:
    counted = card(["hello"])
    assert (counted.turns, counted.examples, counted.lengths) == (1, ("hello",), (1, 1, 1, 1, 1))


def test_the_text_states_the_counts() -> None:
    text = card(TURNS * 3).text()
    assert text.startswith("- words in a message: usually 2 to 4, half have at most 3; one in ten has at most 1,")
    for line in (
        "- question marks in 20%, exclamation marks in none", "- a small letter at the start in 90%",
        "- emoji or smileys in 10%: :) (10%)", "- own spellings: u (20%), gonna (10%)", "- often begins: hi (30%)",
    ):  # fmt: skip
        assert line in text
    assert "scripts" not in text
    assert "2% (almost none)" in replace(card(TURNS), exclamations=0.02).text()


def test_lengths_and_quantiles() -> None:
    assert (length_in("words", " a  bc d "), length_in("characters", " a  bc d ")) == (3, 4)
    assert [quantile([1, 2, 3, 4, 5], share) for share in (0.0, 0.2, 0.5, 1.0)] == [1, 2, 3, 5]
