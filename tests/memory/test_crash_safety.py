"""memory/store/: kill -9, Ctrl-C, and several processes on one memory."""

from __future__ import annotations

import logging
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kill_writer import (
    EMBEDDER,
    QUERY,
    Child,
    Known,
    assert_one_sentence,
    assert_recalls,
    brute_force,
    check,
    contents,
    create,
    hold,
    kill_often,
    known,
    learn_killed,
    long_log,
    look,
    make,
    read,
    run_in_child,
    triple,
    triples,
)

from usertwin.memory import TripleStore
from usertwin.memory.recon.synthesizer import Method
from usertwin.personas import TwinError, split_pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A memory of sixty triples, some with a trace, saved and closed."""
    make(tmp_path / "memory")
    return tmp_path / "memory"


# kill -9 -----------------------------------------------------------------------------------------------------------------


def test_no_acknowledged_triple_is_lost_when_the_writer_is_killed() -> None:
    counts = run_in_child(kill_often, 30, 20)  # so many that 24 changes are acknowledged on a slow machine too
    assert counts["kills"] >= 24
    assert counts["acknowledged"] > 24
    assert counts["in_a_change"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can hold the file operations of a process")
@pytest.mark.parametrize("method", ["none", "backward"])
def test_killed_learning_keeps_acknowledged_items_and_resumes_to_the_same_result(tmp_path: Path, method: Method) -> None:
    learned = run_in_child(learn_killed, str(tmp_path), method)
    assert learned["kills"] >= 3
    assert learned["acknowledged"]["memories"] > 0
    assert (learned["acknowledged"]["traces"] > 0) == (method != "none")
    assert learned["first"] >= ("memories", learned["acknowledged"]["memories"])
    assert without_cost(learned["killed"]) == without_cost(learned["whole"])
    assert {t.pair for t in learned["killed"].values()} == set(split_pairs(long_log(), "Ann", window=2).corpus)


def without_cost(known: Known) -> Known:
    """The same without what the traces cost: an answer that was kept before a kill costs nothing."""
    return {
        name: replace(t, provenance=None if t.provenance is None else replace(t.provenance, cost={}))
        for name, t in known.items()
    }


class Interrupted:
    """A connection on which Ctrl-C arrives while a transaction is being written to the disk, where most of its time goes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection, self._left = connection, 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        held = self._connection.execute(statement, *values)
        if statement == "COMMIT" and self._left:
            self._left = 0
            raise KeyboardInterrupt
        return held


@pytest.mark.parametrize("change", ["add", "delete", "edit", "set_traces", "forget"])
def test_ctrl_c_during_a_commit_leaves_a_consistent_store(folder: Path, change: str) -> None:
    values: dict[str, tuple[Any, ...]] = {
        "add": (triples(60, 61),),
        "delete": ([triple(3).id],),
        "edit": (triple(3).id, triple(99)),
        "set_traces": ([triple(3, "was late")],),
        "forget": ("c1",),
    }
    with TripleStore(folder, EMBEDDER) as store:
        inner: Any = store
        inner._memory.database.connection = Interrupted(inner._memory.database.connection)
        with pytest.raises(KeyboardInterrupt):
            getattr(store, change)(*values[change])
        held = {t.id: t for t in store.triples()}
        assert len(store) == len(held)
        assert_recalls(store, held)
        store.add(triples(70))
    assert len(check(folder, [held | {triple(70).id: triple(70)}])) == len(held) + 1


def test_failed_transaction_leaves_the_store_unchanged_and_usable(folder: Path) -> None:
    before = known(folder)
    bad = replace(triple(61), pair=replace(triple(61).pair, action="half a character \ud800"))
    with TripleStore(folder, EMBEDDER) as store:
        with pytest.raises(TwinError) as error:
            store.add([triple(60), bad])
        assert_one_sentence(error.value, folder)
        assert {t.id: t for t in store.triples()} == before
        assert_recalls(store, before)
        store.add(triples(62))
    check(folder, [before | {triple(62).id: triple(62)}])


# Several processes -------------------------------------------------------------------------------------------------------


def test_three_readers_see_each_change_of_a_writer_when_it_is_committed(folder: Path) -> None:
    readers = [Child(read, str(folder)) for _ in range(3)]
    assert [reader.hear() for reader in readers] == ["opened"] * 3
    changes: list[tuple[Any, ...]] = [
        ("add", triples(60, 61, 62)),
        ("delete", [triple(3).id, triple(60).id]),
        ("edit", triple(4).id, triple(99)),
        ("save",),
        ("set_traces", [triple(5, "was late")]),
        ("forget", "c2"),
        ("save",),
        ("add", triples(*range(100, 150))),
        ("rebuild",),
        ("forget", "c1"),
    ]
    with TripleStore(folder, EMBEDDER) as store:
        for change in changes:
            getattr(store, change[0])(*change[1:])
            expected = {t.id: t for t in store.triples()}
            for reader in readers:
                reader.connection.send("tell")
            assert [reader.hear() for reader in readers] == [(expected, len(expected), brute_force(expected, QUERY, 10))] * 3, (
                change[0]
            )
    for reader in readers:
        reader.connection.send("stop")
        assert reader.end() == []
        assert reader.process.exitcode == 0
    check(folder, [expected])
    assert look(folder)[3] == []


def test_second_writer_gets_the_holder_in_the_error_and_changes_nothing(folder: Path) -> None:
    writer = Child(hold, str(folder))
    process = writer.hear()
    with TripleStore(folder, EMBEDDER, wait=0.2) as store:
        before = contents(folder)
        for change in (lambda: store.add(triples(61)), lambda: store.delete([triple(3).id]), lambda: store.rebuild()):
            with pytest.raises(TwinError, match=rf"process {process} \(.* is writing in this memory; wait until") as error:
                change()
            assert_one_sentence(error.value, folder)
        assert contents(folder) == before
        assert len(store) == 61
        writer.connection.send("go on")
        writer.end()
        store.add(triples(61))
    assert len(known(folder)) == 62


def test_a_second_writer_waits_for_the_first(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = Child(hold, str(folder))
    process = writer.hear()
    handler = logging.Handler()
    handler.emit = lambda record: writer.connection.send("go on")  # type: ignore[method-assign]
    logging.getLogger("usertwin.memory").addHandler(handler)
    try:
        with TripleStore(folder, EMBEDDER, wait=60) as store:
            store.add(triples(61))
    finally:
        logging.getLogger("usertwin.memory").removeHandler(handler)
    assert f"waiting for process {process} " in caplog.text
    writer.end()
    assert len(known(folder)) == 62


def test_lock_of_a_killed_process_is_free(folder: Path) -> None:
    writer = Child(hold, str(folder))
    process = writer.hear()
    assert str(process) in (folder / "memory.writer").read_text("utf-8")
    writer.kill()
    with TripleStore(folder, EMBEDDER, wait=0) as store:
        assert store.add(triples(61)) == 1
        assert len(store) == 62
    assert not (folder / "memory.writer").exists()


@pytest.mark.parametrize("attempt", range(4))
def test_four_processes_create_one_memory(tmp_path: Path, attempt: int) -> None:
    children = [Child(create, str(tmp_path / "memory"), number) for number in range(4)]
    for child in children:
        child.connection.send("now")
    assert [(child.end(), child.process.exitcode) for child in children] == [([], 0)] * 4
    check(tmp_path / "memory", [{t.id: t for t in triples(*range(4))}])


def test_triple_written_during_opening_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from usertwin.memory.store import database

    with TripleStore(tmp_path / "memory", EMBEDDER) as writer:
        writer.add(triples(0))
        known = database.read_seal

        def meanwhile(folder: Path) -> object:
            monkeypatch.undo()
            writer.add(triples(1))
            return known(folder)

        monkeypatch.setattr(database, "read_seal", meanwhile)
        with TripleStore(tmp_path / "memory", EMBEDDER, wait=0) as reader:
            assert {t.id for t in reader.triples()} == {t.id for t in triples(0, 1)}
            assert len(reader) == 2
