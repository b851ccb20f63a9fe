"""Personas: read from a file, drawn from the log, there and back through JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.personas import ChatLog, LogError, Pair, Persona, split_pairs
from usertwin.personas.persona import draw_persona, read_persona


def pairs(*actions: str) -> list[Pair]:
    """Pairs with these actions, two to a conversation."""
    return [Pair("Ann", (), action, "", f"c{n // 2}", n % 2, float(n)) for n, action in enumerate(actions)]


names = st.text(min_size=1).map(str.strip).filter(bool)


@given(st.builds(Persona, names, st.text(), st.integers(), st.lists(st.text()).map(tuple)))
def test_a_persona_is_the_same_after_json(persona: Persona) -> None:
    assert Persona.from_json(json.loads(json.dumps(persona.to_json()))) == persona


def test_a_persona_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "ann.toml"
    path.write_text('name = " Ann "\ndescription = "short é"\ntypical_words = 4\nsample_turns = ["hi", "no"]\n', "utf-8")
    assert read_persona(path) == Persona("Ann", "short é", 4, ("hi", "no"))
    path.write_text('name = "Ann"')
    assert read_persona(path) == Persona("Ann")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("name = ", "Invalid value"),
        ("", 'a persona needs a "name"'),
        ('name = " "', 'a persona needs a "name"'),
        ("name = 3", 'a persona needs a "name"'),
        ('name = "Ann"\nage = 3\nzodiac = "x"', "a persona has no 'age', 'zodiac'"),
        ('name = "Ann"\ndescription = 3', '"description" is text'),
        ('name = "Ann"\ntypical_words = "four"', '"typical_words" a whole number'),
        ('name = "Ann"\nsample_turns = "hi"', '"sample_turns" is a list of texts'),
        ('name = "Ann"\nsample_turns = [1]', '"sample_turns" is a list of texts'),
    ],
)
def test_a_file_that_is_no_persona_is_refused_by_name(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "ann.toml"
    path.write_text(content)
    with pytest.raises(LogError, match=reason) as failed:
        read_persona(path)
    assert str(failed.value).startswith(f"{path}: ")


def test_a_missing_file_a_folder_and_bytes_are_no_persona(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no such file"):
        read_persona(tmp_path / "none.toml")
    with pytest.raises(LogError, match="directory"):
        read_persona(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(LogError, match="decode"):
        read_persona(tmp_path / "bytes")


def test_a_drawn_persona_says_only_what_was_counted() -> None:
    drawn = draw_persona(pairs("hi there", "What time is it?", "please stop!", "OK"), "Ann")
    assert drawn.name == "Ann"
    assert drawn.typical_words == 2
    assert drawn.description == (
        "Ann usually writes about 2 words a turn, starts 50% of turns in lower case, asks a question in 25% of turns, "
        "exclaims in 25%, and says please or thanks in 25%. Seen in 4 turns of 2 conversations."
    )


def test_sample_turns_are_of_typical_length_the_latest_first_on_one_line_and_never_twice() -> None:
    drawn = draw_persona(pairs("a b", "a\nb", "c d", "e f", "g h", "i j", "one", "a very long turn indeed"), "Ann")
    assert drawn.sample_turns == ("i j", "g h", "e f", "c d", "a b")


def test_one_word_is_not_called_words() -> None:
    assert "about 1 word a turn" in draw_persona(pairs("yes"), "Ann").description


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=12))
def test_any_turns_make_a_persona_of_real_samples(actions: list[str]) -> None:
    drawn = draw_persona(pairs(*actions), "Ann")
    real = {" ".join(action.split()) for action in actions}
    assert 1 <= len(drawn.sample_turns) == min(5, len(real))
    assert set(drawn.sample_turns) <= real
    counts = [len(action.split()) for action in actions]
    assert min(counts) <= drawn.typical_words <= max(counts)


def test_the_persona_of_the_test_s_person_is_drawn_from_her_corpus(log: ChatLog) -> None:
    corpus = split_pairs(log, "Ann").corpus
    drawn = draw_persona(corpus, "Ann")
    assert f"Seen in {len(corpus)} turns of {len({p.conversation_id for p in corpus})} conversations." in drawn.description
    assert "says please or thanks in 67%" in drawn.description
