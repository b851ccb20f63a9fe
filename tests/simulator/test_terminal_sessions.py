"""Sessions in the terminal on disk: they resume, forget what was taken back, and hold nothing but plain private JSON."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import PAIR
from usertwin.memory import Recalled, Triple
from usertwin.memory.models.chat import Usage
from usertwin.personas import TwinError, UsageError, load_log
from usertwin.personas.chat_log import read_conversations
from usertwin.personas.pairs import group_pairs
from usertwin.simulator import Answer
from usertwin.simulator.scenarios.read import read_scenarios
from usertwin.simulator.terminal.session import Session, SessionTurn, save_log
from usertwin.simulator.terminal.store import SessionStore


def exchange(said: str, replied: str | None = None, **fields: Any) -> SessionTurn:
    """Return an exchange of a chat: the person says something, and the twin replies, or leaves."""
    answer = Answer(
        action=replied or "", reasoning="thinks", recalled=(Recalled(Triple(PAIR, "a trace", 0.5), 0.9),), done=replied is None,
        usage=Usage(3, 4),
    )  # fmt: skip
    replies = () if replied is None else ({"role": "user", "content": replied},)
    return SessionTurn(messages=({"role": "assistant", "content": said}, *replies), answer=answer, **fields)


def person(said: str, *replies: str) -> SessionTurn:
    """Return an exchange of a person with an agent."""
    agent = ({"role": "assistant", "content": reply} for reply in replies)
    return SessionTurn(messages=({"role": "user", "content": said}, *agent))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    """The sessions in a folder, of a twin of Ann."""
    store = SessionStore(tmp_path, "Ann")
    yield store
    store.close()


def chat(*turns: SessionTurn, **fields: Any) -> Session:
    return Session(kind="chat", twin="ann", turns=list(turns), **fields)


def bytes_of(store: SessionStore) -> bytes:
    """Return all bytes of the closed file of a store."""
    store.close()
    return b"".join(path.read_bytes() for path in store.path.parent.glob(f"{store.path.name}*"))


# On disk ------------------------------------------------------------------------------------------------------------------


def test_a_session_is_read_back_as_it_was(store: SessionStore) -> None:
    session = chat(exchange("Hello", "hi \udcff"), exchange("Bye", goal="go"), goal="stay", seed=3, undone=2)
    store.save(session)
    other = SessionStore(store.path.parent, "Ann")  # of another process, while this one is open
    loaded = other.load("", "chat")
    other.close()
    assert loaded.turns[0].messages[1]["content"] in {"hi \udcff", "hi ?"}
    session.turns[0] = loaded.turns[0]
    assert loaded.turns[1:] == session.turns[1:]
    assert loaded.to_json() == session.to_json()
    assert loaded.has_left


def test_the_latest_session_of_a_kind_or_a_named_one_is_loaded(store: SessionStore) -> None:
    first, second, third = chat(exchange("1", "a")), chat(exchange("2", "b")), Session(kind="play", turns=[person("3")])
    for session in (first, second, third, first):  # the first one goes on
        store.save(session)
    assert [session.id for session in store.sessions()] == [first.id, third.id, second.id]
    assert store.load("", "chat").id == first.id
    assert store.load(second.id, "chat").id == second.id
    with pytest.raises(UsageError, match=rf"the session {third.id} is of usertwin play; resume it there"):
        store.load(third.id, "chat")
    with pytest.raises(UsageError, match=rf"no session 'x' of usertwin chat .*there: {first.id}, {second.id}"):
        store.load("x", "chat")


def test_without_a_session_nothing_is_written(store: SessionStore) -> None:
    with pytest.raises(UsageError, match=r"no session of usertwin chat .* \(there: none yet\)"):
        store.load("", "chat")
    assert not store.path.exists()


def test_what_was_taken_back_is_erased_and_earlier_checkpoints_are_not_kept(store: SessionStore) -> None:
    session = chat(exchange("Hello", "hi"))
    store.save(session)
    session.turns.append(exchange("Wombat?", "Quokka!"))
    store.save(session)
    session.undo()
    store.save(session)
    assert [len(one.turns) for one in store.sessions()] == [1]
    content = bytes_of(store)
    assert b"Hello" in content
    assert b"Wombat" not in content
    assert b"Quokka" not in content


def test_a_process_that_is_killed_before_it_erased_the_earlier_checkpoint_does_no_harm(store: SessionStore) -> None:
    session = chat(exchange("Hello", "hi"))
    store.save(session)
    store.close()
    database = sqlite3.connect(store.path)
    values = "thread_id, checkpoint_ns, '0', NULL, type, checkpoint, metadata"
    database.execute(f"INSERT INTO checkpoints SELECT {values} FROM checkpoints")
    database.commit()
    database.close()
    other = SessionStore(store.path.parent, "Ann")
    [resumed] = other.sessions()
    resumed.turns.append(exchange("again", "ok"))
    other.save(resumed)
    other.close()
    [count] = sqlite3.connect(store.path).execute("SELECT count(*) FROM checkpoints").fetchone()
    assert count == 1


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_the_files_are_private(store: SessionStore) -> None:
    before = os.umask(0)
    try:
        store.save(chat(exchange("Hello", "hi")))
        paths = list(store.path.parent.glob("sessions.sqlite*"))
    finally:
        os.umask(before)
    assert len(paths) == 3  # with its write-ahead log
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}


def test_no_secret_is_stored(store: SessionStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CANARY_API_KEY", "sk-canary-of-a-key")
    session = chat(exchange("my key is sk-canary-of-a-key", "thanks"))
    store.save(session)
    save_log(session, tmp_path / "log.jsonl")
    assert b"canary-of" not in bytes_of(store)
    assert "my key is ***" in (tmp_path / "log.jsonl").read_text("utf-8")


def test_two_processes_do_not_overwrite_each_others_turns(store: SessionStore) -> None:
    session = chat(exchange("Hello", "hi"))
    store.save(session)
    other = SessionStore(store.path.parent, "Ann")
    elsewhere = other.load(session.id, "chat")
    elsewhere.turns.append(exchange("from there", "ok"))
    other.save(elsewhere)
    with pytest.raises(TwinError, match="another process has continued the session"):
        store.save(session)
    assert [m["content"] for m in other.load(session.id, "chat").messages][2:] == ["from there", "ok"]
    other.close()


def test_sessions_that_were_erased_meanwhile_do_not_come_back(store: SessionStore) -> None:
    session = chat(exchange("Hello", "hi"))
    store.save(session)
    for path in store.path.parent.glob("sessions.sqlite*"):
        path.unlink()
    with pytest.raises(TwinError, match="was deleted meanwhile"):
        store.save(session)
    assert not store.path.exists()


@pytest.mark.parametrize(
    "statement",
    [
        'UPDATE checkpoints SET checkpoint = CAST(\'{"id": "1"}\' AS BLOB)',
        "UPDATE checkpoints SET checkpoint = x'80049589', type = 'pickle'",
        "UPDATE checkpoints SET checkpoint = x'c70000', type = 'msgpack'",
        'UPDATE checkpoints SET checkpoint = CAST(replace(checkpoint, \'"seed": 0\', \'"seed": "x"\') AS BLOB)',
        "UPDATE checkpoints SET checkpoint = CAST(replace(checkpoint, '\"kind\"', '\"sort\"') AS BLOB)",
        "UPDATE checkpoints SET checkpoint = CAST(replace(checkpoint, '\"role\"', '\"part\"') AS BLOB)",
        "UPDATE checkpoints SET metadata = CAST('{' AS BLOB)",
        "DROP TABLE writes; CREATE TABLE writes (x)",
    ],
)
def test_a_damaged_or_planted_file_is_one_sentence(store: SessionStore, statement: str) -> None:
    store.save(chat(exchange("Hello", "hi")))
    store.close()
    database = sqlite3.connect(store.path)
    database.executescript(statement)
    database.close()
    with pytest.raises(TwinError, match=r"sessions\.sqlite: the sessions cannot be used \(.*\); move the file away"):
        store.load("", "chat")


def test_a_file_that_is_no_database_is_one_sentence(store: SessionStore) -> None:
    store.path.write_bytes(b"no database at all" * 100)
    with pytest.raises(TwinError, match="the sessions cannot be used"):
        store.load("", "chat")
    with pytest.raises(TwinError, match="the sessions cannot be used"):
        store.save(chat(exchange("Hello", "hi")))


def test_a_link_is_refused(store: SessionStore, tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    store.path.symlink_to(tmp_path / "target")
    for work in (lambda: store.save(chat(exchange("Hello", "hi"))), lambda: store.load("", "chat")):
        with pytest.raises(UsageError, match="is a symbolic link"):
            work()


# As a chat log ------------------------------------------------------------------------------------------------------------


def test_a_saved_chat_can_be_learned_from_and_starts_a_scenario(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    first, second = (
        exchange("Hello\x1b[0m", "I want a boat", goal="A boat."),
        exchange("Which?", "the red one", goal="A red one."),
    )
    session = chat(first, second)
    save_log(session, path)
    log = load_log(path)
    assert log.turn_counts() == {"ann": 2, "me": 2}
    [pairs] = group_pairs(log.conversations, "ann", window=3)
    assert [(pair.action, pair.goal) for pair in pairs] == [
        ("I want a boat", "A boat."),
        ("the red one", "A boat.\nA red one."),
    ]
    [conversation] = read_conversations(path).conversations
    assert [turn.text for turn in conversation.turns if turn.private] == ["A boat.", "A red one."]
    scenarios = tmp_path / "scenarios.toml"
    scenarios.write_text('[[scenario]]\nname = "on"\ntwins = ["ann"]\nstart_file = "talk.jsonl"\n', "utf-8")
    [scenario] = read_scenarios(scenarios)
    assert [(m["role"], m["content"]) for m in scenario.start if m["role"] != "system"] == [
        ("assistant", "Hello\x1b[0m"), ("user", "I want a boat"), ("assistant", "Which?"), ("user", "the red one"),
    ]  # fmt: skip


def test_a_saved_game_tells_the_person_from_the_twin() -> None:
    boat = exchange("", "boat")
    turns = [person("Hi", "Hello."), SessionTurn(messages=boat.messages[1:], answer=boat.answer)]
    spoken = Session(kind="play", twin="ann", turns=turns).conversation().turns
    assert [(turn.speaker, turn.role) for turn in spoken] == [("me", "user"), ("agent", "agent"), ("ann", "user")]


def test_save_never_overwrites_and_never_writes_into_a_twin(tmp_path: Path) -> None:
    session, path = chat(exchange("Hello", "hi")), tmp_path / "a b.jsonl"
    save_log(session, path)
    before = path.read_bytes()
    assert json.loads(before)["conversation_id"] == f"chat-{session.id}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin" / "twin.json").touch()
    for target, error in (
        (path, "exists already, and is not overwritten"), (tmp_path / "twin" / "x", "lies in the folder of the twin twin"),
        (tmp_path, "exists already"), (tmp_path / "no" / "x", "cannot be written"), (Path("\0"), "cannot be written"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=error):
            save_log(session, target)
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match="nothing was said"):
        save_log(chat(), tmp_path / "empty")
