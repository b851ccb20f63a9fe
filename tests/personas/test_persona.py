"""Personas: read from TOML, derived from a log, and round trips through JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.personas import ChatLog, LogError, Pair, Persona, split_pairs
from usertwin.personas.persona import derive_persona, read_persona


def pairs(*actions: str) -> list[Pair]:
    """Return pairs with these actions, two to a conversation."""
    return [
        Pair(speaker="Ann", context=(), action=action, goal="", conversation_id=f"c{n // 2}", position=n % 2, when=float(n))
        for n, action in enumerate(actions)
    ]


names = st.text(min_size=1).map(str.strip).filter(bool)


@given(st.builds(Persona, names, st.text(), st.integers(), st.lists(st.text()).map(tuple)))
def test_persona_round_trips_through_json(persona: Persona) -> None:
    assert Persona.from_json(json.loads(json.dumps(persona.to_json()))) == persona


def test_persona_is_read_from_toml(tmp_path: Path) -> None:
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
        ('name = "Ann"\nage = 3\nzodiac = "x"', 'unknown key "age", "zodiac"; a persona has name, description, '),
        ('name = "Ann"\ndescription = 3', '"description" must be text'),
        ('name = "Ann"\ntypical_words = "four"', '"typical_words" an integer'),
        ('name = "Ann"\nsample_turns = "hi"', '"sample_turns" must be a list of texts'),
        ('name = "Ann"\nsample_turns = [1]', '"sample_turns" must be a list of texts'),
    ],
)
def test_invalid_persona_file_error_names_the_file(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "ann.toml"
    path.write_text(content)
    with pytest.raises(LogError, match=reason) as failed:
        read_persona(path)
    assert str(failed.value).startswith(f"{path}: ")


def test_missing_file_folder_and_bytes_are_errors(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no such file"):
        read_persona(tmp_path / "none.toml")
    with pytest.raises(LogError, match="directory"):
        read_persona(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(LogError, match="it is not UTF-8 text"):
        read_persona(tmp_path / "bytes")


def test_derived_persona_states_only_counts() -> None:
    persona = derive_persona(pairs("hi there", "What time is it?", "please stop!", "OK"), "Ann")
    assert persona.name == "Ann"
    assert persona.typical_words == 2
    assert persona.description == (
        "Ann usually writes about 2 words a turn, starts 50% of turns in lower case, asks a question in 25% of turns, "
        "exclaims in 25%, and says please or thanks in 25%. Seen in 4 turns of 2 conversations."
    )


def test_sample_turns_have_typical_length_latest_first_on_one_line_without_repeats() -> None:
    persona = derive_persona(pairs("a b", "a\nb", "c d", "e f", "g h", "i j", "one", "a very long turn indeed"), "Ann")
    assert persona.sample_turns == ("i j", "g h", "e f", "c d", "a b")


def test_one_word_is_singular() -> None:
    assert "about 1 word a turn" in derive_persona(pairs("yes"), "Ann").description


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=12))
def test_sample_turns_are_real_for_any_turns(actions: list[str]) -> None:
    persona = derive_persona(pairs(*actions), "Ann")
    real = {" ".join(action.split()) for action in actions}
    assert 1 <= len(persona.sample_turns) == min(5, len(real))
    assert set(persona.sample_turns) <= real
    counts = [len(action.split()) for action in actions]
    assert min(counts) <= persona.typical_words <= max(counts)


def test_persona_is_derived_from_the_corpus_of_a_log(log: ChatLog) -> None:
    corpus = split_pairs(log, "Ann").corpus
    persona = derive_persona(corpus, "Ann")
    assert f"Seen in {len(corpus)} turns of {len({p.conversation_id for p in corpus})} conversations." in persona.description
    assert "says please or thanks in 67%" in persona.description
