"""Sources of chat logs: the built-in corpus, files, and the shared logs if present."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from conftest import SHARED_DATA
from usertwin.personas import ChatLog, LogError, load_log, split_pairs
from usertwin.personas.dates import to_timestamp
from usertwin.personas.importers.chitchat import load_chitchat


@pytest.fixture(scope="module")
def chitchat() -> ChatLog:
    return load_log("chitchat")


def test_built_in_corpus_holds_two_person_chats(chitchat: ChatLog) -> None:
    assert len(chitchat.conversations) > 4000
    assert all(len(c.speakers()) == 2 for c in chitchat.conversations)
    assert all(turn.text.strip() for c in chitchat.conversations for turn in c.turns)
    assert sum(count >= 500 for count in chitchat.turn_counts().values()) == 44


def test_consecutive_lines_of_a_message_are_one_turn(chitchat: ChatLog) -> None:
    assert any("\n" in turn.text for c in chitchat.conversations for turn in c.turns)
    assert not any(
        line.strip() != line or not line for c in chitchat.conversations for t in c.turns for line in t.text.split("\n")
    )


def test_built_in_chat_starts_at_its_first_turn_and_times_increase(chitchat: ChatLog) -> None:
    for conversation in chitchat.conversations:
        times = [to_timestamp(turn.time) or 0.0 for turn in conversation.turns]
        assert conversation.started_at == conversation.turns[0].time
        assert times == sorted(times)
    starts = [to_timestamp(c.started_at) or 0.0 for c in chitchat.conversations]
    assert starts == sorted(starts)


def test_missing_corpus_error_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chitchat_dataset", None)
    with pytest.raises(LogError, match=r"pip install 'chitchat-dataset==0\.9\.0'"):
        load_chitchat()


def test_any_other_source_is_a_file(log_file: Path, log: ChatLog) -> None:
    read = load_log(log_file)
    assert read.source == str(log_file)
    assert [c.turns for c in read.conversations] == [c.turns for c in log.conversations]
    with pytest.raises(LogError, match="chitchatt: no such file"):
        load_log("chitchatt")


def test_bad_lines_are_skipped_on_request(log_file: Path) -> None:
    log_file.write_text(log_file.read_text("utf-8") + "{\n", "utf-8")
    with pytest.raises(LogError, match=":31: not JSON"):
        load_log(log_file)
    assert [bad.line for bad in load_log(log_file, skip_bad_lines=True).skipped] == [31]


def test_split_of_the_built_in_corpus_has_no_leak(chitchat: ChatLog) -> None:
    # Some speakers took part in several chats at once, so conversation order alone does not prevent a leak.
    for speaker in list(chitchat.turn_counts())[:12]:
        _assert_no_leak(chitchat, speaker)


SHARED = {
    "agent_support": (4619, 103_479, "user-91b16ed4-3c20"),
    "online_debate": (600, 5413, "Nibbles Nuggetson"),
    "tech_meetings": (163, 16_882, "Parithosh Jayanthi"),
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_log_is_read_completely_and_split(name: str) -> None:
    path = SHARED_DATA / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside this checkout")
    conversations, turns, speaker = SHARED[name]
    log = load_log(path)
    assert len(log.conversations) == conversations
    assert sum(len(c.turns) for c in log.conversations) == turns
    assert all(c.extra["domain"] and c.extra["source"] for c in log.conversations)
    _assert_no_leak(log, speaker)


def test_tasks_of_the_support_log_are_goals_and_never_context() -> None:
    path = SHARED_DATA / "agent_support.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside this checkout")
    split = split_pairs(load_log(path), SHARED["agent_support"][2])
    pairs = [*split.corpus, *split.validation, *split.test]
    assert all(pair.goal for pair in pairs)
    assert not any(turn.private or turn.speaker == "UserGuide" for pair in pairs for turn in pair.context)


def _assert_no_leak(log: ChatLog, speaker: str) -> None:
    split = split_pairs(log, speaker)
    parts = (split.corpus, split.validation, split.test)
    for earlier, later in ((0, 1), (0, 2), (1, 2)):
        if parts[earlier] and parts[later]:
            assert max(p.when for p in parts[earlier]) < min(p.when for p in parts[later])
        assert not {p.conversation_id for p in parts[earlier]} & {p.conversation_id for p in parts[later]}
