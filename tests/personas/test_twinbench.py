"""personas/importers/twinbench.py: the published formats of TwinBench, with invented text in the same shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from usertwin.personas import LogError, load_log
from usertwin.personas.conversation import DISTRACTORS

NOVEL: dict[str, Any] = {
    "chunk_id": "00009",
    "speaker": "Maud",
    "speaker_match_key": "Maud Ember",
    "utterance": "Then we row at dawn.",
    "context": "The lamp is out and the boat is ready.",
    "mcq": {"options": {"A": "I shall sleep.", "B": "Then we row at dawn.", "C": "Who goes?", "D": "Never."}, "answer": "B"},
    "distractor_by": ["Old Pike", "Maud Ember", "Old Pike"],
    "source_novel": "Ferry",
}
CHAT: dict[str, Any] = {
    "line_idx": 3,
    "user_id": 77,
    "context": "anyone up for tennis?",
    "choices": ["no idea", "me! after six", "who won", "+1"],
    "answer_idx": 1,
    "history": ["Context:lunch? UserReply:in ten\nminutes", "Context: rain again UserReply: typical"],
}
POST: dict[str, Any] = {
    "user_id": "12",
    "anchor_post": "new timetable",
    "choices": ["at last", "oh no"],
    "answer_idx": 0,
    "history": ["AnchorPost: the old bridge UserReply: I miss it"],
}


def written(path: Path, *rows: dict[str, Any] | str) -> str:
    """Write rows to a file and return the source's name."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (path / "rows.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return f"twinbench:{path / 'rows.jsonl'}"


def test_an_utterance_follows_its_narration_and_keeps_the_other_options(tmp_path: Path) -> None:
    [conversation] = load_log(written(tmp_path, NOVEL)).conversations
    narration, utterance = conversation.turns
    assert (narration.speaker, narration.role, narration.text) == ("Narrator", "narrator", NOVEL["context"])
    assert (utterance.speaker, utterance.role, utterance.text) == ("Maud Ember", "user", "Then we row at dawn.")
    assert utterance.extra == {DISTRACTORS: ["I shall sleep.", "Who goes?", "Never."]}
    assert conversation.started_at is None


def test_utterances_are_in_the_order_of_their_novel(tmp_path: Path) -> None:
    rows = [
        NOVEL | {"chunk_id": chunk, "source_novel": novel} for chunk, novel in (("10", "B"), ("7", "A"), ("9", "B"), (2, "A"))
    ]
    log = load_log(written(tmp_path, *rows))
    assert [conversation.conversation_id for conversation in log.conversations] == ["B/9/3", "B/10/1", "A/2/4", "A/7/2"]


@pytest.mark.parametrize(
    ("utterance", "context", "quoted"),
    [
        ("Then we row at dawn, I say.", "She said that then we row at dawn.", True),
        ("Then we row at dawn.", "Then we row at noon.", False),
        ("We row now.", "He heard: “We ROW now!”", True),
        ("Why?", "She asked why.", False),  # a word is no quotation
        ("Then we row at dawn.", "", False),
    ],
)
def test_an_utterance_that_the_text_before_it_quotes_is_no_choice(
    tmp_path: Path, utterance: str, context: str, quoted: bool
) -> None:
    [conversation] = load_log(written(tmp_path, NOVEL | {"utterance": utterance, "context": context})).conversations
    assert (DISTRACTORS not in conversation.turns[-1].extra) == quoted
    assert conversation.turns[-1].text == utterance


def test_the_replies_of_a_row_are_conversations_and_the_choice_is_the_last(tmp_path: Path) -> None:
    log = load_log(written(tmp_path, CHAT, POST))
    texts = [[(turn.speaker, turn.text) for turn in conversation.turns] for conversation in log.conversations]
    assert texts == [
        [("Other", "lunch?"), ("77", "in ten\nminutes")],
        [("Other", "rain again"), ("77", "typical")],
        [("Other", "anyone up for tennis?"), ("77", "me! after six")],
        [("Other", "the old bridge"), ("12", "I miss it")],
        [("Other", "new timetable"), ("12", "at last")],
    ]
    given = [conversation.turns[-1].extra.get(DISTRACTORS) for conversation in log.conversations]
    assert given == [None, None, ["no idea", "who won", "+1"], None, ["oh no"]]
    assert list(log.turn_counts("user")) == ["77", "12"]


def test_a_person_without_an_id_is_named_by_the_line(tmp_path: Path) -> None:
    row = {key: value for key, value in POST.items() if key != "user_id"}
    assert list(load_log(written(tmp_path, row)).turn_counts("user")) == ["line 1"]


def test_a_history_item_without_a_reply_is_left_out_and_counted(tmp_path: Path) -> None:
    log = load_log(written(tmp_path, CHAT | {"history": ["hello", *CHAT["history"]]}))
    assert len(log.conversations) == 3
    assert [(bad.line, bad.reason) for bad in log.damaged] == [(1, 'history item 1 is not "Context: ... UserReply: ..."')]


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ("{", "rows.jsonl:2: "),
        ("[]", "rows.jsonl:2: "),
        ("{}", "rows.jsonl:2: "),
        (NOVEL | {"mcq": {"options": {"A": "x"}, "answer": "B"}}, 'the answer "B" is not an option'),
        (NOVEL | {"utterance": None}, "utterance"),
        (CHAT | {"answer_idx": 4}, "answer_idx is 4, and there are 4 choices"),
        (CHAT | {"answer_idx": -1}, "answer_idx is -1"),
        (CHAT | {"history": "hello"}, "history"),
    ],
)
def test_a_broken_row_is_named_or_skipped(tmp_path: Path, row: dict[str, Any] | str, error: str) -> None:
    source = written(tmp_path, NOVEL, row)
    with pytest.raises(LogError) as raised:
        load_log(source)
    assert error in str(raised.value)
    assert str(raised.value).endswith("fix this line, or pass --skip-bad-lines")
    log = load_log(source, skip_bad_lines=True)
    assert len(log.conversations) == 1
    assert [bad.line for bad in log.skipped] == [2]


@pytest.mark.parametrize(("content", "error"), [("", "no utterance in it"), ("\n\n", "no utterance"), (None, "cannot be read")])
def test_a_file_without_utterances_is_refused(tmp_path: Path, content: str | None, error: str) -> None:
    path = tmp_path / "choices.jsonl"
    if content is not None:
        path.write_text(content, "utf-8")
    with pytest.raises(LogError, match=error):
        load_log(f"twinbench:{path}")
