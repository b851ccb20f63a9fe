"""Tests of deleting, editing and forgetting: after a save or a close, no file of the memory holds the removed text."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from kill_writer import EMBEDDER, Child, check, known, read

from usertwin.memory import Provenance, Triple, TripleStore
from usertwin.memory.models.embedding import query_text
from usertwin.personas import Pair, Turn

PROVENANCE = Provenance(
    method="recon", proposer="scripted:secret", scorer=None, prompt_version="1", seed=0, candidates=1, rejected={}
)


def secret(number: int) -> Triple:
    """Return a triple that shares no text with another; some texts are longer than a page of the database."""
    words = " ".join(f"word{number}x{place}" for place in range(20))  # distinct embeddings
    asked = f"asked-{number:03d} " * (1 + 500 * (number % 7 == 0)) + words
    context = (Turn(f"desk-{number:03d}", f"role-{number:03d}", asked),)
    pair = Pair(
        speaker=f"ann-{number:03d}",
        context=context,
        action=f"said-{number:03d}",
        goal=f"goal-{number:03d}",
        conversation_id=f"talk-{number:03d}",
        position=number,
        when=1e6 + number,
    )
    return Triple(pair, f"thought-{number:03d} " * (1 + 1000 * (number % 5 == 0)), 0.5, PROVENANCE)


def embedding(triple: Triple) -> bytes:
    """Return the stored bytes of a triple's embedding."""
    vector = EMBEDDER.embed([query_text(triple.pair)])
    return (vector / np.linalg.norm(vector, axis=1, keepdims=True)).tobytes()


def remains_of(folder: Path, removed: Sequence[Triple]) -> list[str]:
    """Return what remains of these triples, and in which file."""
    remains: list[str] = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for triple in removed:
            number = triple.pair.position
            words = [f"{word}-{number:03d}" for word in ("desk", "role", "asked", "ann", "said", "goal", "talk", "thought")]
            needles = {word: word.encode() for word in (*words, triple.id)}
            needles["embedding"] = embedding(triple)
            remains += [f"{name} in {path.name}" for name, needle in needles.items() if needle in data]
    return remains


ALL = [secret(number) for number in range(60)]
Change = Callable[[TripleStore], object]
CHANGES: dict[str, tuple[Change, list[Triple]]] = {
    "delete one": (lambda store: store.delete([ALL[7].id]), [ALL[7]]),
    "delete many": (lambda store: store.delete([t.id for t in ALL[5:50]]), ALL[5:50]),
    "delete all": (lambda store: store.delete([t.id for t in ALL]), ALL),
    "edit": (lambda store: store.edit(ALL[35].id, secret(99)), [ALL[35]]),
    "forget a conversation": (lambda store: store.forget("talk-035"), [ALL[35]]),
    "forget what was before": (lambda store: store.forget(before=1e6 + 20), ALL[:20]),
    "forget what was after": (lambda store: store.forget(after=1e6 + 20), ALL[21:]),
}
each_change = pytest.mark.parametrize("name", CHANGES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a memory of sixty triples with nothing in common."""
    with TripleStore(tmp_path / "memory", EMBEDDER) as store:
        store.add(ALL)
    return tmp_path / "memory"


def test_stored_triples_are_in_the_files(folder: Path) -> None:
    remains = remains_of(folder, ALL)  # otherwise the tests below could not fail
    assert sum(where.startswith("embedding in memory.sqlite") for where in remains) > 40  # a long row spans several pages
    assert sum(where.startswith("embedding in memory.faiss") for where in remains) == 60
    assert sum(where.startswith("said-") for where in remains) == 60


@each_change
def test_nothing_remains_after_closing(folder: Path, name: str) -> None:
    change, removed = CHANGES[name]
    with TripleStore(folder, EMBEDDER) as store:
        change(store)
    assert remains_of(folder, removed) == []
    kept = {t.id: t for t in ALL if t not in removed} | ({secret(99).id: secret(99)} if name == "edit" else {})
    check(folder, [kept])


@each_change
def test_nothing_remains_after_saving_while_a_reader_has_the_memory_open(folder: Path, name: str) -> None:
    change, removed = CHANGES[name]
    with TripleStore(folder, EMBEDDER, create=False) as reader, TripleStore(folder, EMBEDDER) as store:
        assert len(reader) == 60
        change(store)
        store.save()
        assert remains_of(folder, removed) == []
        query = replace(ALL[35].pair, conversation_id="now")
        assert not {recalled.triple.id for recalled in reader.recall(query, 60)} & {t.id for t in removed}
    assert remains_of(folder, removed) == []


def forget_and_wait(connection: Connection, folder: str, name: str) -> None:
    """Change the memory, report it, and wait to be killed."""
    store = TripleStore(folder, EMBEDDER)
    CHANGES[name][0](store)
    connection.send("done")
    connection.recv()


@each_change
def test_nothing_remains_after_opening_a_memory_whose_writer_was_killed_before_saving(folder: Path, name: str) -> None:
    _, removed = CHANGES[name]
    writer = Child(forget_and_wait, str(folder), name)
    assert writer.hear() == "done"
    writer.kill()
    TripleStore(folder, EMBEDDER).close()
    assert remains_of(folder, removed) == []
    assert not set(known(folder)) & {t.id for t in removed}


def test_nothing_remains_of_the_partial_index_of_a_killed_process(folder: Path) -> None:
    (folder / "memory.faiss.partial").write_bytes((folder / "memory.faiss").read_bytes())
    with TripleStore(folder, EMBEDDER) as store:
        store.forget("talk-035")
    assert remains_of(folder, [ALL[35]]) == []


def test_a_replaced_trace_leaves_no_byte(folder: Path) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        store.set_traces([replace(t, reasoning="another", score=None, provenance=None) for t in ALL])
    assert [where for where in remains_of(folder, ALL) if where.startswith("thought")] == []


def test_a_reader_in_another_process_recalls_no_removed_triple(folder: Path) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        store.add(
            [replace(t, pair=replace(t.pair, action=f"answer {t.pair.position}", position=t.pair.position)) for t in ALL[:5]]
        )
        store.delete([t.id for t in ALL])
    reader = Child(read, str(folder))
    assert reader.hear() == "opened"
    with TripleStore(folder, EMBEDDER) as store:
        store.forget("talk-003")
        store.save()
        reader.connection.send("tell")
        found, length, _ = reader.hear()
        assert length == len(found) == 4
        assert "talk-003" not in {t.pair.conversation_id for t in found.values()}
        assert remains_of(folder, [ALL[3]]) == []
    reader.connection.send("stop")
    assert reader.end() == []


def test_removal_that_another_reader_blocked_happens_on_the_next_close(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with TripleStore(folder, EMBEDDER) as reader, TripleStore(folder, EMBEDDER) as store:
        program = sqlite3.connect(folder / "memory.sqlite")
        program.execute("BEGIN")
        program.execute("SELECT count(*) FROM triples").fetchone()  # keeps old pages until it ends
        store._memory.database.connection.execute("PRAGMA busy_timeout = 50")
        store.forget("talk-035")
        with caplog.at_level(logging.WARNING, "usertwin.memory"):
            store.save()
        assert "other processes are reading; removed triples are erased once they have finished" in caplog.text
        assert remains_of(folder, [ALL[35]]) != []
        program.close()
        store.close()
        assert remains_of(folder, [ALL[35]]) == []
        assert len(reader) == 59
    check(folder, [{t.id: t for t in ALL if t != ALL[35]}])
