"""Forgetting leaves nothing in a twin's record: no id, no turn, no time, and no count that includes what was forgotten."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from usertwin.memory import TripleStore, TwinRecord, existing_twin
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.twin.forget import forget
from usertwin.memory.twin.record import OTHER_PERSON_FILE, read_stored_conversations
from usertwin.personas import Pair, Persona
from usertwin.personas.persona import derive_persona


def pairs_of(folder: Path) -> list[Pair]:
    with TripleStore(folder, FakeEmbedder(), create=False) as store:
        return [triple.pair for triple in store.triples()]


@pytest.mark.parametrize("place", [0, 6, -1])
def test_the_record_is_that_of_the_remaining_turns(ann: str, place: int) -> None:
    folder = existing_twin(ann)
    before = TwinRecord.load(folder)
    forgotten = before.corpus[place]
    gone = [pair for pair in pairs_of(folder) if pair.conversation_id == forgotten]
    forget(folder, FakeEmbedder(), conversation=forgotten)
    record, left = TwinRecord.load(folder), pairs_of(folder)
    derived = derive_persona(left, before.persona.name)
    assert gone
    assert record.persona.description != before.persona.description
    assert (record.persona.description, record.persona.typical_words) == (derived.description, derived.typical_words)
    assert record.corpus_ends == max(pair.when for pair in left)
    text = (folder / "twin.json").read_text("utf-8")
    assert forgotten not in text
    assert not any(action in text for action in {pair.action for pair in gone} - {pair.action for pair in left})
    assert not {pair.when for pair in gone} & set(map(float, re.findall(r"\d{9,}\.\d+", text)))


def test_what_the_user_wrote_of_the_person_stays(ann: str) -> None:
    folder = existing_twin(ann)
    record = TwinRecord.load(folder)
    persona = Persona("Ann", "Ann asks for the weather.", 4, (pairs_of(folder)[0].action, "her own words"))
    replace(record, persona=persona).save(folder)
    forget(folder, FakeEmbedder(), conversation=record.corpus[-1])
    assert TwinRecord.load(folder).persona == replace(persona, sample_turns=persona.sample_turns[:1])


def test_nothing_is_said_of_a_person_of_whom_everything_is_forgotten(ann: str) -> None:
    folder = existing_twin(ann)
    forget(folder, FakeEmbedder(), after=0.0)
    record = TwinRecord.load(folder)
    assert pairs_of(folder) == []
    assert record.persona == Persona(record.persona.name)
    assert (record.corpus, record.corpus_ends, record.other_speaker) == ((), 0.0, None)


def test_the_other_person_is_named_while_a_conversation_of_theirs_remains(ann: str) -> None:
    folder = existing_twin(ann)
    ids = [c.conversation_id for c in read_stored_conversations(folder / OTHER_PERSON_FILE)]
    for place, name in enumerate(ids):
        assert TwinRecord.load(folder).other_speaker == "Bob"
        forget(folder, FakeEmbedder(), conversation=name)
        assert (TwinRecord.load(folder).other_speaker is None) == (place == len(ids) - 1)
