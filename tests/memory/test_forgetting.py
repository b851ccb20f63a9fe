"""What was deleted, edited or forgotten: after a save or a close no file of the memory has a byte of it."""

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

TOLD = Provenance("recon", "scripted:secret", None, "1", 0, 1, {})


def secret(number: int) -> Triple:
    """A triple all of whose texts are its own, and some of them longer than a page of the database."""
    words = " ".join(f"word{number}x{place}" for place in range(20))  # so that no two embeddings are the same
    asked = f"asked-{number:03d} " * (1 + 500 * (number % 7 == 0)) + words
    context = (Turn(f"desk-{number:03d}", f"role-{number:03d}", asked),)
    pair = Pair(
        f"ann-{number:03d}", context, f"said-{number:03d}", f"goal-{number:03d}", f"talk-{number:03d}", number, 1e6 + number
    )
    return Triple(pair, f"thought-{number:03d} " * (1 + 1000 * (number % 5 == 0)), 0.5, TOLD)


def embedding(triple: Triple) -> bytes:
    """The embedding of a triple as it is kept."""
    vector = EMBEDDER.embed([query_text(triple.pair)])
    return (vector / np.linalg.norm(vector, axis=1, keepdims=True)).tobytes()


def traces_of(folder: Path, gone: Sequence[Triple]) -> list[str]:
    """Where in which file something is left of these triples."""
    found: list[str] = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for triple in gone:
            number = triple.pair.position
            words = [f"{word}-{number:03d}" for word in ("desk", "role", "asked", "ann", "said", "goal", "talk", "thought")]
            bits = {word: word.encode() for word in (*words, triple.id)}
            bits["embedding"] = embedding(triple)
            found += [f"{name} in {path.name}" for name, bit in bits.items() if bit in data]
    return found


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
    """A memory of sixty triples with nothing in common."""
    with TripleStore(tmp_path / "memory", EMBEDDER) as store:
        store.add(ALL)
    return tmp_path / "memory"


def test_what_is_remembered_is_found_in_the_files(folder: Path) -> None:
    found = traces_of(folder, ALL)  # else the tests below could not fail
    assert sum(where.startswith("embedding in memory.sqlite") for where in found) > 40  # long rows are on several pages
    assert sum(where.startswith("embedding in memory.faiss") for where in found) == 60
    assert sum(where.startswith("said-") for where in found) == 60


@each_change
def test_nothing_is_left_after_closing(folder: Path, name: str) -> None:
    change, gone = CHANGES[name]
    with TripleStore(folder, EMBEDDER) as store:
        change(store)
    assert traces_of(folder, gone) == []
    kept = {t.id: t for t in ALL if t not in gone} | ({secret(99).id: secret(99)} if name == "edit" else {})
    check(folder, [kept])


@each_change
def test_nothing_is_left_after_saving_while_another_process_has_the_memory_open(folder: Path, name: str) -> None:
    change, gone = CHANGES[name]
    with TripleStore(folder, EMBEDDER, create=False) as reader, TripleStore(folder, EMBEDDER) as store:
        assert len(reader) == 60
        change(store)
        store.save()
        assert traces_of(folder, gone) == []
        query = replace(ALL[35].pair, conversation_id="now")
        assert not {recalled.triple.id for recalled in reader.recall(query, 60)} & {t.id for t in gone}
    assert traces_of(folder, gone) == []


def forget_and_wait(there: Connection, folder: str, name: str) -> None:
    """Change the memory, say so, and wait to be killed."""
    store = TripleStore(folder, EMBEDDER)
    CHANGES[name][0](store)
    there.send("done")
    there.recv()


@each_change
def test_nothing_is_left_when_a_memory_is_opened_whose_writer_was_killed_before_it_saved(folder: Path, name: str) -> None:
    _, gone = CHANGES[name]
    writer = Child(forget_and_wait, str(folder), name)
    assert writer.hear() == "done"
    writer.kill()
    TripleStore(folder, EMBEDDER).close()
    assert traces_of(folder, gone) == []
    assert not set(known(folder)) & {t.id for t in gone}


def test_nothing_is_left_of_an_index_that_was_being_written_by_a_killed_process(folder: Path) -> None:
    (folder / "memory.faiss.partial").write_bytes((folder / "memory.faiss").read_bytes())
    with TripleStore(folder, EMBEDDER) as store:
        store.forget("talk-035")
    assert traces_of(folder, [ALL[35]]) == []


def test_a_trace_that_was_replaced_leaves_no_byte(folder: Path) -> None:
    with TripleStore(folder, EMBEDDER) as store:
        store.set_traces([replace(t, reasoning="another", score=None, provenance=None) for t in ALL])
    left = [where for where in traces_of(folder, ALL) if where.startswith("thought")]
    assert left == []


def test_a_reader_in_another_process_recalls_nothing_that_was_forgotten(folder: Path) -> None:
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
        reader.said.send("tell")
        found, length, _ = reader.hear()
        assert length == len(found) == 4
        assert "talk-003" not in {t.pair.conversation_id for t in found.values()}
        assert traces_of(folder, [ALL[3]]) == []
    reader.said.send("stop")
    assert reader.end() == []


def test_what_another_program_kept_from_being_removed_is_removed_by_the_next_who_closes(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with TripleStore(folder, EMBEDDER) as reader, TripleStore(folder, EMBEDDER) as store:
        program = sqlite3.connect(folder / "memory.sqlite")
        program.execute("BEGIN")
        program.execute("SELECT count(*) FROM triples").fetchone()  # reads old pages until it ends
        store._memory.database.connection.execute("PRAGMA busy_timeout = 50")
        store.forget("talk-035")
        with caplog.at_level(logging.WARNING, "usertwin.memory"):
            store.save()
        assert "others are reading; what was removed leaves memory.sqlite when they are done" in caplog.text
        assert traces_of(folder, [ALL[35]]) != []
        program.close()
        store.close()
        assert traces_of(folder, [ALL[35]]) == []
        assert len(reader) == 59
    check(folder, [{t.id: t for t in ALL if t != ALL[35]}])
