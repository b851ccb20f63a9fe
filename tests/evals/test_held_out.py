"""Held-out pairs of a twin, and the memory of the other person."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import other_conversation, recipe, scripted, small_conversation
from usertwin.evals.metrics.statistics import evenly_spaced
from usertwin.evals.replay.held_out import held_out_pairs, other_person_store, with_time_after
from usertwin.memory import alearn
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.twin.record import default_home
from usertwin.personas import ChatLog, LogError, TwinError, write_conversations
from usertwin.personas.chat_log import sort_by_time
from usertwin.simulator import SimulatedUser


def opened(name: str) -> SimulatedUser:
    return SimulatedUser.load(name, model=scripted("hi"))


def test_held_out_pairs_are_those_of_the_recorded_ids(ann: str) -> None:
    with opened(ann) as user:
        pairs, dropped = held_out_pairs(user, default_home() / ann)
        assert dropped == 0
        assert {pair.conversation_id for pair in pairs} == set(user.record.test) == {f"talk-{n}" for n in range(16, 20)}
        assert len(pairs) == 12
        user.record = replace(user.record, test=("talk-18",))
        assert {pair.conversation_id for pair in held_out_pairs(user, default_home() / ann)[0]} == {"talk-18"}


def test_held_out_pairs_are_later_than_the_memory(ann: str) -> None:
    with opened(ann) as user:
        pairs, _ = held_out_pairs(user, default_home() / ann)
        known = [triple.pair for triple in user.store.triples()]
    assert not {pair.conversation_id for pair in pairs} & {pair.conversation_id for pair in known}
    assert min(pair.when for pair in pairs) > max(pair.when for pair in known)


def test_undated_held_out_pairs_are_later_than_the_memory() -> None:
    talks = [replace(small_conversation(number), started_at=None) for number in range(20)]
    asyncio.run(
        alearn("bare", ChatLog(tuple(talks), "test"), recipe(method="none", model=None, scorer=None), embedder=FakeEmbedder())
    )
    with opened("bare") as user:
        pairs, _ = held_out_pairs(user, default_home() / "bare")
        assert min(pair.when for pair in pairs) > user.record.corpus_ends
        assert [pair.when for pair in pairs] == sorted(pair.when for pair in pairs)
        assert with_time_after(pairs[0], dated=True, corpus_ends=99.0) == pairs[0]


def test_known_conversations_of_another_log_are_dropped(ann: str, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    talks = [small_conversation(number) for number in range(10, 24)]
    write_conversations(sort_by_time([*talks, other_conversation(1)], "test"), other)
    with opened(ann) as user:
        pairs, dropped = held_out_pairs(user, default_home() / ann, other)
        assert dropped == 6  # four of the corpus, two of validation
        assert {pair.conversation_id for pair in pairs} == {f"talk-{number}" for number in range(16, 24)}


def test_another_log_without_new_conversations_is_an_error(ann: str, tmp_path: Path) -> None:
    known = tmp_path / "known.jsonl"
    write_conversations([small_conversation(number) for number in range(5)], known)
    with (
        opened(ann) as user,
        pytest.raises(LogError, match="the twin was learned from every conversation of Ann in it; name another log"),
    ):
        held_out_pairs(user, default_home() / ann, known)


def test_the_other_persons_store_closes_with_the_stack(ann: str) -> None:
    with opened(ann) as user, ExitStack() as stack:
        store = other_person_store(user, default_home() / ann, FakeEmbedder(), stack)
        assert store is not None
        assert {triple.pair.speaker for triple in store.triples()} == {"Bob"}
        assert len(store) == 20
        stack.close()
        with pytest.raises(TwinError):
            list(store.triples())


def test_the_other_persons_turns_are_in_no_temporary_folder(ann: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with opened(ann) as user, ExitStack() as stack:
        before = sorted(tmp_path.rglob("*"))
        store = other_person_store(user, default_home() / ann, FakeEmbedder(), stack)
        assert store is not None
        assert len(store) == 20
        assert sorted(tmp_path.rglob("*")) == before


def test_without_another_person_there_is_no_store(ann: str) -> None:
    with opened(ann) as user, ExitStack() as stack:
        user.record = replace(user.record, other_speaker=None)
        assert other_person_store(user, default_home() / ann, FakeEmbedder(), stack) is None


@given(st.integers(0, 60), st.integers(1, 70) | st.none())
def test_evenly_spaced_keeps_order_and_the_first_item(count: int, most: int | None) -> None:
    result = evenly_spaced(range(count), most)
    assert len(result) == (count if most is None else min(count, most))
    assert result == sorted(set(result))
    assert result[:1] == list(range(count))[:1]
    gaps = [b - a for a, b in pairwise([*result, count])]
    assert not gaps or max(gaps) - min(gaps) <= 1
