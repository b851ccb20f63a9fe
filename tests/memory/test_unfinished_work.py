"""memory/twin/: forgetting and adding that a kill or a full disk stopped are finished, and nothing half done stays."""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from cli_runner import run as run_command
from kill_writer import Child, killed_at

from conftest import recipe, scripted, small_conversation, small_log
from usertwin.memory import Settings, TripleStore, TwinRecord, alearn, existing_twin
from usertwin.memory.models.completion_cache import COMPLETIONS_FILE, CompletionCache
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.twin import forget as forgetting
from usertwin.memory.twin.abandonment import AbandonmentModel, fit_leaving_models
from usertwin.memory.twin.append import aappend
from usertwin.memory.twin.forget import ForgetResult, Journal, forget, open_memory, remains, unfinished_forgetting
from usertwin.memory.twin.record import ABANDONMENT_FILE, LAST_TURN_FILE, twin_folder
from usertwin.personas import ChatLog, Conversation, TwinError, UsageError
from usertwin.personas.chat_log import sort_by_time

EMBEDDER = FakeEmbedder()
SECRET, SECRET_TIME = "xylograph", "2024-03-12T10:00:00+00:00"
FORGOTTEN = "talk-10"


def secret_log() -> ChatLog:
    """Return the small log with a word in every turn of one conversation that no other one holds."""

    def with_secret(conversation: Conversation) -> Conversation:
        if conversation.conversation_id != FORGOTTEN:
            return conversation
        return replace(conversation, turns=tuple(replace(turn, text=f"{SECRET} {turn.text}") for turn in conversation.turns))

    return ChatLog(tuple(map(with_secret, small_log().conversations)), "test")


def places_of(word: str, home: Path) -> list[str]:
    """Return the files below a folder that hold a word, compressed ones too."""
    found: list[str] = []
    for path in sorted(home.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        found += [str(path.relative_to(home))] if word.encode() in data else []
    return found


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home with a twin whose secret is in its memory, its record, its traces, a hidden folder and the cache."""
    home = tmp_path_factory.mktemp("secret")
    model = scripted(f"wants {SECRET}s", "is in a hurry")
    asyncio.run(
        alearn("ann", secret_log(), recipe(), embedder=EMBEDDER, model=model, scorer=FakeScorer(), home=home)
    )  # fmt: skip
    folder = home / "ann"
    record = TwinRecord.load(folder)
    persona = replace(record.persona, sample_turns=(f"{SECRET} tomorrow, day 10", "tomorrow, day 3"))
    measured = Settings(measured={"turns": 3})
    replace(record, persona=persona, closeness={"of": SECRET}, settings=measured).save(folder)
    with TripleStore(folder, EMBEDDER) as store:
        traced = [t for t in store.triples() if t.pair.conversation_id != FORGOTTEN]
        store.set_traces([replace(t, reasoning="is in a hurry", provenance=None) for t in traced])
    with closing(CompletionCache(folder / COMPLETIONS_FILE)) as cache:
        cache.put(["a request"], f"{SECRET} answer")
    shutil.copytree(folder, home / ".ann.partial")
    (folder / "twin.json.partial").write_text(SECRET, "utf-8")
    return home


@pytest.fixture
def secret(learned: Path, tmp_path: Path) -> Path:
    """Return the folder of a copy of that twin."""
    shutil.copytree(learned, tmp_path / "twins")
    return tmp_path / "twins" / "ann"


def assert_forgotten(folder: Path) -> None:
    """Assert that a twin and all beside it hold nothing of what was forgotten, and that the rest is there."""
    assert places_of(SECRET, folder.parent) == []
    assert places_of(FORGOTTEN, folder.parent) == []
    assert unfinished_forgetting(folder) is None
    record = TwinRecord.load(folder)
    assert len(record.corpus) == 13
    assert record.persona.sample_turns == ("tomorrow, day 3",)
    assert (record.closeness, record.settings) == (None, Settings())
    with TripleStore(folder, EMBEDDER, create=False) as store:
        assert len(store) == 39
        models = {file: (folder / file).read_bytes() for file in (LAST_TURN_FILE, ABANDONMENT_FILE) if (folder / file).exists()}
        fit_leaving_models(folder, record, store)
    assert {file: (folder / file).read_bytes() for file in models} == models


# Forgetting --------------------------------------------------------------------------------------------------------------


def test_the_secret_is_in_many_files(secret: Path) -> None:
    places = places_of(SECRET, secret.parent)  # otherwise the tests below could not fail
    assert {"ann/memory.sqlite", "ann/twin.json", "ann/answers.sqlite", "ann/twin.json.partial"} < {*places}
    assert ".ann.partial/memory.sqlite" in places


def test_forgetting_leaves_nothing(secret: Path) -> None:
    assert forget(secret, EMBEDDER, conversation=FORGOTTEN) == ForgetResult(3, 0)
    assert_forgotten(secret)


def forget_until_killed(connection: Connection, folder: str, step: int) -> None:
    with killed_at(step):
        connection.send(forget(Path(folder), EMBEDDER, conversation=FORGOTTEN))


@pytest.mark.parametrize("by", ["the same call", "opening"])
def test_forgetting_that_was_killed_at_any_step_is_finished(learned: Path, tmp_path: Path, by: str) -> None:
    step, kills, finished = 1 if by == "opening" else 2, 0, 0
    while True:
        home = Path(shutil.copytree(learned, tmp_path / str(step)))
        folder = home / "ann"
        child = Child(forget_until_killed, str(folder), step)
        if child.end():
            break
        assert child.process.exitcode == -signal.SIGKILL
        kills += 1
        begun = unfinished_forgetting(folder)
        if begun is not None:
            finished += 1
            if by == "opening":
                open_memory(folder, EMBEDDER).close()
            else:
                assert forget(folder, EMBEDDER, conversation=FORGOTTEN) == ForgetResult(3, 0)
            assert_forgotten(folder)
        elif SECRET in (folder / "twin.json").read_text("utf-8"):  # not begun: whole as before
            assert len(places_of(SECRET, home)) >= 6
        else:
            assert_forgotten(folder)
        shutil.rmtree(home)
        step += 17
    assert finished > kills // 3 > 0


def test_a_full_disk_at_any_write_is_told_truly_and_forgetting_is_finished_afterwards(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, failures = os.fsync, list[str]()
    for place in range(60):
        home = Path(shutil.copytree(learned, tmp_path / str(place)))
        folder, left = home / "ann", place

        def full_from_now_on(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full_from_now_on)
            try:
                forget(folder, EMBEDDER, conversation=FORGOTTEN)
                break
            except TwinError as error:
                failures.append(str(error))
        if "nothing was changed" in failures[-1]:
            assert unfinished_forgetting(folder) is None
            assert len(places_of(SECRET, home)) >= 6
        else:
            assert "the disk is full, and forgetting is not finished; make room and do it again" in failures[-1]
        assert forget(folder, EMBEDDER, conversation=FORGOTTEN) == ForgetResult(3, 0)
        assert_forgotten(folder)
    assert "nothing was changed" in failures[0]
    assert len(failures) > 5


def test_check_lists_the_files_that_still_hold_what_was_to_be_forgotten(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TripleStore, "delete", stopped)
        with pytest.raises(KeyboardInterrupt):
            forget(secret, EMBEDDER, conversation=FORGOTTEN)
    result = run_command("memory", "check", "ann")
    assert result.exit_code == 1
    words = " ".join(result.output.split())
    assert "forgetting was stopped; what was to be forgotten is still in:" in words
    assert "ann/twin.json" in words
    assert "usertwin memory stats ann" in words
    result = run_command("memory", "stats", "ann")
    assert result.exit_code == 0
    assert "forgetting was stopped before and is finished now; 3 pairs erased" in " ".join(result.output.split())
    assert_forgotten(secret)
    assert run_command("memory", "check", "ann").exit_code == 0


def test_another_request_finishes_the_one_that_was_stopped(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(forgetting, "fit_leaving_models", stopped)
        with pytest.raises(Stopped):
            forget(secret, EMBEDDER, conversation=FORGOTTEN)
    with pytest.raises(UsageError, match='there is no conversation "nowhere" in the twin; nothing was changed'):
        forget(secret, EMBEDDER, conversation="nowhere")
    assert_forgotten(secret)


def test_another_request_keeps_what_is_still_to_be_erased(secret: Path) -> None:
    with TripleStore(secret, EMBEDDER, create=False) as store:
        erased = next(triple.id for triple in store.triples() if triple.pair.conversation_id == FORGOTTEN)
    (blocked := secret / "copy.jsonl").write_text(erased)  # as a reader keeps the write-ahead log
    forget(secret, EMBEDDER, conversation=FORGOTTEN)
    assert unfinished_forgetting(secret) == [blocked]
    assert forget(secret, EMBEDDER, conversation="talk-08").triples == 3
    assert unfinished_forgetting(secret) == [blocked]
    blocked.unlink()
    open_memory(secret, EMBEDDER).close()
    assert unfinished_forgetting(secret) is None


def test_turns_in_the_context_of_later_pairs_are_forgotten_too(tmp_path: Path) -> None:
    """A conversation that goes on after the span holds what was said in it."""
    conversations = [small_conversation(number) for number in range(20)]
    turns = [
        replace(turn, time=f"2024-03-02T{10 + place}:00:00+00:00", text=f"{SECRET} {turn.text}" if place < 4 else turn.text)
        for place, turn in enumerate(conversations[1].turns)
    ]
    conversations[1] = replace(conversations[1], turns=tuple(turns))
    log = ChatLog(sort_by_time(conversations, "test"), "test")
    asyncio.run(alearn("ann", log, recipe(method="none"), embedder=EMBEDDER, home=tmp_path))
    assert places_of(SECRET, tmp_path)
    before = 1709377200.0 + 1800  # 11:30 on that day in another zone: after the first two turns at least
    forget(tmp_path / "ann", EMBEDDER, before=before + 3 * 3600)
    assert places_of(SECRET, tmp_path) == []


def test_a_damaged_journal_is_an_error_with_a_way_out(secret: Path) -> None:
    (secret / "forgetting.json").write_text('{"triples": 3}', "utf-8")
    with pytest.raises(TwinError, match=r"forgetting.json: is damaged .*; delete it, and forget the same turns again"):
        Journal.load(secret)


# Adding ------------------------------------------------------------------------------------------------------------------

MORE = ChatLog(tuple(map(small_conversation, range(20, 24))), "more")


def add(home: Path | None = None, log: ChatLog = MORE, progress: Callable[..., None] = lambda *_: None) -> int:
    model = scripted("wants the weather for a city", "is in a hurry")
    return asyncio.run(
        aappend(
            "ann", log, embedder=EMBEDDER, model=model, scorer=FakeScorer(), home=home, max_traces=3, progress=progress
        )
    )[1]  # fmt: skip


def state_of(folder: Path) -> dict[str, Any]:
    """Return what adding changes: the record, the triples without the cost of their traces, and the models of leaving."""
    with TripleStore(folder, EMBEDDER, create=False) as store:
        triples = [(t.pair, t.reasoning, t.provenance is not None) for t in store.triples()]
    files = {path.name for path in folder.iterdir()} - {COMPLETIONS_FILE}
    return {
        "record": TwinRecord.load(folder), "triples": triples, "files": files,
        "leaving": (folder / LAST_TURN_FILE).read_bytes(), "folders": {path.name for path in folder.parent.iterdir()},
    }  # fmt: skip


def add_until_killed(connection: Connection, home: str, step: int) -> None:
    os.environ["USERTWIN_ONLY_SCRIPTED"] = "1"
    with killed_at(step):
        connection.send(add(Path(home)))


def test_adding_that_was_killed_at_any_step_is_completed_by_the_same_call(learned: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(learned, tmp_path / "whole"))
    assert add(whole) == 12
    expected = state_of(whole / "ann")
    assert sum(tried for pair, _, tried in expected["triples"] if pair.conversation_id >= "talk-20") == 3
    step, kills = 3, 0
    while True:
        home = Path(shutil.copytree(learned, tmp_path / str(step)))
        child = Child(add_until_killed, str(home), step)
        if child.end():
            break
        assert child.process.exitcode == -signal.SIGKILL
        kills += 1
        assert add(home) in (12, 0)  # 0 if nothing was left to do
        assert state_of(home / "ann") == expected
        shutil.rmtree(home)
        step += 23
    assert kills > 2


class Stopped(BaseException):
    """What stops an `add` where a kill could."""


def stop_after(count: int) -> Callable[..., None]:
    calls = list[int]()

    def progress(*_: object) -> None:
        calls.append(1)
        if len(calls) > count:
            raise Stopped

    return progress


@pytest.mark.parametrize("count", [1, 3])
def test_adding_without_dates_that_was_stopped_is_completed(ann: str, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The rest of a conversation is added at the time of its beginning."""
    monkeypatch.setattr("usertwin.memory.twin.learn._CHUNK", 4)
    folder = twin_folder(ann)
    replace(TwinRecord.load(folder), dated=False).save(folder)
    undated = ChatLog(tuple(replace(c, started_at=None) for c in MORE.conversations), "more")
    other = Path(shutil.copytree(folder.parent, folder.parent.with_name("other")))
    assert add(other, undated) == 12
    with pytest.raises(Stopped):
        add(None, undated, stop_after(count))
    assert add(None, undated) == 12
    assert state_of(folder) == state_of(other / ann)


def test_what_was_forgotten_is_not_in_the_journal_of_adding(ann: str) -> None:
    folder = existing_twin(ann)
    with pytest.raises(Stopped):
        add(None, MORE, stop_after(2))
    with TripleStore(folder, EMBEDDER, create=False) as store:
        [known] = {triple.id for triple in store.triples() if triple.pair.action == "tomorrow, day 21"}
    assert known in (folder / "adding.json").read_text("utf-8")
    assert forget(folder, EMBEDDER, conversation="talk-21").triples == 3
    assert known not in (folder / "adding.json").read_text("utf-8")
    assert places_of("day 21", folder) == []


# Models of leaving -------------------------------------------------------------------------------------------------------


def test_a_model_of_leaving_stays_until_the_new_one_is_written(ann: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = existing_twin(ann)
    AbandonmentModel(0.5, 1.0, 4, 9).save(folder / ABANDONMENT_FILE)
    before = {file: (folder / file).read_bytes() for file in (LAST_TURN_FILE, ABANDONMENT_FILE)}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with TripleStore(folder, EMBEDDER, create=False) as store, monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(TwinError, match="the disk is full"):
            fit_leaving_models(folder, TwinRecord.load(folder), store)
    assert {file: (folder / file).read_bytes() for file in before} == before


def test_an_id_across_two_blocks_of_a_large_file_is_found(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(request=forgetting._Request(FORGOTTEN, None, None), triples=("0123456789abcdef",), touched=(), removed=())
    for size in (1, 7, 16, 17, 1000):
        monkeypatch.setattr(forgetting, "_BLOCK", size)
        for before in (b"", b"ff", b"x" * 11):
            (secret / "large").write_bytes(before + b"0123456789abcdef" + b"0" * 20)
            assert secret / "large" in remains(secret, journal)
        (secret / "large").write_bytes(b"0123456789abcde" * 3)
        assert secret / "large" not in remains(secret, journal)
