"""Several writers of one twin: measuring, tuning, adding, forgetting and learning at the same time lose nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from cli_runner import run as run_command
from kill_writer import Child

from conftest import recipe, small_conversation, small_log
from usertwin.evals.replay import evaluate as evaluation
from usertwin.memory import Settings, TripleStore, TwinRecord, alearn, existing_twin, list_twins
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.twin import locks
from usertwin.memory.twin.append import aappend
from usertwin.memory.twin.forget import forget
from usertwin.memory.twin.locks import record_lock, writing
from usertwin.memory.twin.record import twin_folder, update_record
from usertwin.personas import ChatLog, TwinError

MORE = ChatLog(tuple(map(small_conversation, range(20, 23))), "more")
NONE = recipe(method="none", model=None, scorer=None)
MEASURED = {"bits_per_char": 1.0}


def add(progress: Callable[[str, int, int], None] = lambda *_: None) -> tuple[TwinRecord, int]:
    return asyncio.run(aappend("ann", MORE, embedder=FakeEmbedder(), progress=progress))


class Pause:
    """A progress callback that stops the first caller until it is released."""

    def __init__(self) -> None:
        self.reached, self.released = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> None:
        self.reached.set()
        assert self.released.wait(60)


def count_up(connection: Connection, folder: str, times: int) -> None:
    """Add one to a number in the record, again and again."""
    for _ in range(times):
        update_record(Path(folder), lambda record: record.with_closeness({"n": (record.closeness or {"n": 0})["n"] + 1}))


def test_no_change_of_four_processes_is_lost(ann: str) -> None:
    folder = existing_twin(ann)
    before = TwinRecord.load(folder)
    children = [Child(count_up, str(folder), 25) for _ in range(4)]
    assert [(child.end(), child.process.exitcode) for child in children] == [([], 0)] * 4
    assert TwinRecord.load(folder) == before.with_closeness({"n": 100})
    assert [path.name for path in folder.parent.iterdir()] == ["ann"]  # no lock stays behind


def test_a_record_that_cannot_be_written_stays_as_it_was(ann: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = existing_twin(ann)
    before = (folder / "twin.json").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(TwinError, match="the disk is full, and nothing was changed; make room and do it again"):
        update_record(folder, lambda record: record.with_closeness(MEASURED))
    assert (folder / "twin.json").read_bytes() == before
    assert not list(folder.glob(".twin.json*"))


def test_what_eval_and_tune_store_while_pairs_are_added_is_kept(ann: str) -> None:
    folder, settings = existing_twin(ann), Settings(k=4, traces="none", reasons=False)

    def measure(*_: object) -> None:
        update_record(folder, lambda record: replace(record.with_closeness(MEASURED), settings=settings))

    record, added = add(measure)
    assert added == 9
    stored = TwinRecord.load(folder)
    assert stored == record
    assert (stored.closeness, stored.settings) == (MEASURED, settings)
    assert {"talk-20", "talk-21", "talk-22"} < set(stored.corpus)


def test_forgotten_turns_do_not_come_back_when_pairs_are_added_meanwhile(ann: str) -> None:
    folder, pause = existing_twin(ann), Pause()
    forgotten = TwinRecord.load(folder).corpus[4]
    with ThreadPoolExecutor() as pool:
        adding = pool.submit(add, pause)
        assert pause.reached.wait(60)
        forgetting = pool.submit(forget, folder, FakeEmbedder(), conversation=forgotten)
        pause.released.set()
        assert adding.result()[1] == 9
        assert forgetting.result().triples == 3
    record = TwinRecord.load(folder)
    assert forgotten not in record.corpus
    assert "talk-21" in record.corpus
    with TripleStore(folder, FakeEmbedder(), create=False) as store:
        conversations = {triple.pair.conversation_id for triple in store.triples()}
    assert conversations == set(record.corpus)


def test_a_second_writer_names_the_first_and_changes_nothing(ann: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, pause = existing_twin(ann), Pause()
    with ThreadPoolExecutor() as pool:
        learning = pool.submit(
            lambda: asyncio.run(
                alearn("ann", small_log(), replace(NONE, seed=7), embedder=FakeEmbedder(), overwrite=True, progress=pause)
            )
        )
        assert pause.reached.wait(60)
        monkeypatch.setattr(locks, "_WAIT", 0.0)
        message = rf"{folder}: process {os.getpid()} \(.*\) is writing in this memory; wait until it has finished, or stop it"
        for write in (
            add,
            lambda: forget(folder, FakeEmbedder(), conversation="talk-04"),
            lambda: asyncio.run(alearn("ann", small_log(), NONE, embedder=FakeEmbedder(), overwrite=True)),
        ):
            with pytest.raises(TwinError, match=message):
                write()
        update_record(folder, lambda record: record.with_closeness(MEASURED))  # a measurement need not wait
        pause.released.set()
        learned = learning.result()
    assert TwinRecord.load(folder) == learned
    assert learned.recipe.seed == 7
    assert [path.name for path in folder.parent.iterdir()] == ["ann"]


def learn_slowly(connection: Connection, home: str, seed: int) -> None:
    """Learn a twin; wait for a message at the first progress, and send the result."""

    def progress(*_: object) -> None:
        if seed == 1 and not sent:
            sent.append(1)
            connection.send("learning")
            connection.recv()

    sent: list[int] = []
    try:
        record = asyncio.run(
            alearn("ann", small_log(), replace(NONE, seed=seed), embedder=FakeEmbedder(), home=home, progress=progress)
        )
        connection.send(record.recipe.seed)
    except TwinError as error:
        connection.send(str(error))


def test_two_processes_that_learn_one_name_leave_a_whole_twin(tmp_path: Path) -> None:
    first = Child(learn_slowly, str(tmp_path), 1)
    assert first.hear() == "learning"
    second = Child(learn_slowly, str(tmp_path), 2)
    assert f"process {first.process.pid} " in second.hear()
    first.connection.send("go on")
    assert first.hear() == 1
    assert first.end() == second.end() == []
    assert TwinRecord.load(tmp_path / "ann").state == "complete"
    with TripleStore(tmp_path / "ann", FakeEmbedder(), create=False) as store:
        assert len(store) == 42
    assert [path.name for path in tmp_path.iterdir()] == ["ann"]


# Measuring while the memory is changed ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("repeats_count")
@pytest.mark.parametrize("change", ["add", "forget"])
def test_closeness_of_a_memory_that_was_changed_meanwhile_is_not_stored(
    ann: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    folder, evaluate = existing_twin(ann), evaluation.evaluate
    script = tmp_path / "script.txt"
    script.write_text("fine\n", "utf-8")
    command = ("eval", ann, "--model", f"scripted:{script}", "--scorer", "fake:", "--limit", "3", "--generate", "0")
    assert run_command(*command).exit_code == 0
    known = TwinRecord.load(folder).closeness
    assert known is not None

    async def changed_meanwhile(*arguments: Any, **options: Any) -> dict[str, Any]:
        if change == "add":
            await aappend("ann", MORE, embedder=FakeEmbedder())
        else:
            forget(folder, FakeEmbedder(), conversation="talk-04")
        return await evaluate(*arguments, **options)

    monkeypatch.setattr(evaluation, "evaluate", changed_meanwhile)
    result = run_command(*command)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "the memory of ann was changed meanwhile, so this result is not stored in the twin; measure it again" in words
    assert TwinRecord.load(folder).closeness == (known if change == "add" else None)


# A replacement that was stopped ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", ["old away", "new in place", "interrupted before it was whole"])
def test_a_replacement_that_was_stopped_is_finished_by_the_next_command(ann: str, moved: str) -> None:
    folder = existing_twin(ann)
    staged, old = folder.parent / ".ann.partial", folder.parent / ".ann.old"
    shutil.copytree(folder, staged)
    state = "interrupted" if moved.startswith("interrupted") else "complete"
    replace(TwinRecord.load(folder), state=state, learned_at="2030-01-01").save(staged)
    folder.rename(old)
    if moved == "new in place":
        staged.rename(folder)
    assert list_twins() == ["ann"]
    assert (TwinRecord.load(existing_twin(ann)).learned_at == "2030-01-01") == (state == "complete")
    assert not old.exists()
    assert run_command("show", ann).exit_code == 0


def test_the_completions_of_an_overwrite_that_was_stopped_twice_are_kept(ann: str) -> None:
    """A folder that is begun again keeps the answers that were paid for."""
    folder = twin_folder(ann)
    staged = folder.parent / ".ann.partial"
    shutil.copytree(folder, staged)
    (staged / "answers.sqlite").write_bytes(b"answers")
    replace(TwinRecord.load(folder), state="interrupted", recipe=recipe(seed=5)).save(staged)

    class Stopped(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    for seed in (6, 8):
        with pytest.raises(Stopped):
            asyncio.run(
                alearn(
                    ann, small_log(), replace(NONE, seed=seed), embedder=FakeEmbedder(), overwrite=True, progress=stop
                )
            )  # fmt: skip
        assert (staged / "answers.sqlite").read_bytes() == b"answers"


# The locks ---------------------------------------------------------------------------------------------------------------


def test_the_record_can_be_changed_while_the_writer_lock_is_held_but_not_twice_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_WAIT", 0.0)
    with writing(tmp_path / "ann"), record_lock(tmp_path / "ann"):
        with pytest.raises(TwinError, match="is writing in this memory"), writing(tmp_path / "ann"):
            pass
        with pytest.raises(TwinError, match="another process is changing"), record_lock(tmp_path / "ann"):
            pass
        with writing(tmp_path / "bob"):
            pass
    assert list(tmp_path.iterdir()) == []
