"""Conversations and chat logs: accepted forms, writing and reading, and errors for malformed input."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from usertwin.personas import ChatLog, Conversation, LogError, Turn, as_conversation, read_conversations, write_conversations
from usertwin.personas.chat_log import sort_by_time
from usertwin.personas.dates import to_timestamp
from usertwin.personas.roles import is_unseen

T = TypeVar("T")

# Characters that break line-based readers: line ends other than \n, a BOM, NUL, surrogate pairs.
ODD_TEXTS = [
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x0c",
    "\r",
    "\r\n",
    "\n",
    "\ufeff",
    "\x00",
    "\x1f",
    "👩‍👩‍👧",
    "\\",
    '"',
    "\\ud83d",
    " ",
]
texts = st.lists(st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=8)), max_size=6).map("".join)
names = texts.filter(bool)
zones = st.none() | st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.datetimes(timezones=zones).map(lambda time: time.isoformat())
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)
TURN_KEYS, CONVERSATION_KEYS = {"speaker", "role", "text", "time"}, {"conversation_id", "started_at", "turns"}


def extras(taken: set[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Dictionaries of keys that the format does not define."""
    return st.dictionaries(texts.filter(lambda key: key not in taken), values, max_size=2)


turns = st.builds(
    Turn, names, names.filter(lambda role: not is_unseen(role)), texts, st.one_of(st.none(), times), extra=extras(TURN_KEYS)
)
conversations = st.builds(
    Conversation, texts, st.lists(turns, max_size=4).map(tuple), st.one_of(st.none(), times), extras(CONVERSATION_KEYS)
)


@st.composite
def logs(draw: st.DrawFn) -> list[Conversation]:
    """Conversations of one valid log: distinct ids, dates on all or none, and at least one turn each."""
    drawn = draw(st.lists(conversations, min_size=1, max_size=4, unique_by=lambda c: c.conversation_id))
    dates = draw(st.one_of(st.none(), st.lists(times, min_size=len(drawn), max_size=len(drawn))))
    first = draw(turns)
    return [
        Conversation(c.conversation_id, (first, *c.turns), None if dates is None else dates[place], c.extra)
        for place, c in enumerate(drawn)
    ]


def as_read(log: list[Conversation]) -> tuple[Conversation, ...]:
    """Return a log in the order of time; without dates, the first turn's time is the date of each conversation."""
    dated = [c if c.started_at else replace(c, started_at=next((t.time for t in c.turns if t.time), None)) for c in log]
    return sort_by_time(dated if all(c.started_at for c in dated) else log, "here")


def line(**changes: Any) -> str:
    """Return a valid log line, with changes."""
    turn = {"speaker": "Ann", "role": "user", "text": "hi"}
    return json.dumps({"conversation_id": "a", "started_at": None, "turns": [turn]} | changes)


def result_or_error(attempt: Callable[[], T]) -> T | LogError:
    """Return the result, or the LogError."""
    try:
        return attempt()
    except LogError as error:
        return error


def write_log(folder: Path, *lines: str) -> Path:
    """Write a log of these lines."""
    path = folder / "log.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


# Writing and reading ---------------------------------------------------------------------------------------


@given(log=logs(), suffix=st.sampled_from([".jsonl", ".jsonl.gz"]))
def test_log_round_trip_keeps_unknown_keys_and_any_character(log: list[Conversation], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"log{suffix}"
        assert write_conversations(log, path) == len(log)
        assert path.read_bytes().startswith(b"\x1f\x8b") == (suffix == ".jsonl.gz")
        read = read_conversations(path)
    assert read.conversations == as_read(log)
    assert read.skipped == ()


@given(conversations)
def test_conversation_round_trips_through_json(conversation: Conversation) -> None:
    assert as_conversation(json.loads(json.dumps(conversation.to_json())), "other") == conversation


def test_gzip_is_detected_from_bytes_not_from_the_name(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(gzip.compress((line() + "\n").encode()))
    assert read_conversations(path).conversations[0].turns[0].text == "hi"


def test_writing_a_log_twice_gives_identical_bytes(tmp_path: Path, log: ChatLog) -> None:
    write_conversations(log.conversations, tmp_path / "one.gz")
    write_conversations(log.conversations, tmp_path / "two.gz")
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()


def test_byte_order_mark_blank_lines_and_windows_line_ends_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf\r\n" + line(conversation_id="a").encode() + b"\r\n\r\n" + line(conversation_id="b").encode()
    )
    assert [c.conversation_id for c in read_conversations(path).conversations] == ["a", "b"]


def test_lone_surrogate_becomes_a_replacement_character(tmp_path: Path) -> None:
    turn = '{"speaker": "A\\ud83d", "role": "\\udc00", "text": "cut \\ud83d, whole \\ud83d\\ude00"}'
    path = write_log(tmp_path, f'{{"conversation_id": "x\\ud800", "turns": [{turn}], "note": "\\udfff"}}')
    (read,) = read_conversations(path).conversations
    assert read.conversation_id == "x\ufffd"
    assert read.turns == (Turn("A\ufffd", "\ufffd", "cut \ufffd, whole 😀"),)
    write_conversations([read], path)  # the unknown key still holds a lone surrogate; writing it must not fail
    assert read_conversations(path).conversations == (read,)


def test_log_is_sorted_by_time_across_zones_and_keeps_its_order_without_dates(tmp_path: Path) -> None:
    late = line(conversation_id="late", started_at="2024-01-01T10:00:00-05:00")
    early = line(conversation_id="early", started_at="2024-01-01T12:00:00Z")
    assert [c.conversation_id for c in read_conversations(write_log(tmp_path, late, early)).conversations] == ["early", "late"]
    undated = [line(conversation_id=name) for name in "cab"]
    assert [c.conversation_id for c in read_conversations(write_log(tmp_path, *undated)).conversations] == ["c", "a", "b"]


def test_time_without_a_zone_is_utc() -> None:
    assert to_timestamp("1970-01-01T00:01:00") == 60.0
    assert to_timestamp("1970-01-01T00:01:00+00:01") == 0.0
    assert to_timestamp("1970-01-02") == 86400.0
    assert to_timestamp(None) is None


def test_missing_id_becomes_file_name_and_line(tmp_path: Path) -> None:
    nameless = json.dumps({"turns": [{"speaker": "Ann", "text": "hi"}]})
    read = read_conversations(write_log(tmp_path, "", nameless, nameless))
    assert [c.conversation_id for c in read.conversations] == ["log-2", "log-3"]
    assert read.conversations[0].turns == (Turn("Ann", "participant", "hi"),)


@pytest.mark.parametrize("role", ["instruction", "system"])
def test_private_turns_do_not_count_as_speakers(role: str) -> None:
    conversation = Conversation("a", (Turn("guide", role, "be rude"), Turn("Ann", "user", "no")))
    assert conversation.speakers() == {"Ann"}
    assert ChatLog((conversation,), "here").turn_counts() == {"Ann": 1}


def test_turn_counts_are_sorted_by_count_then_name(log: ChatLog) -> None:
    assert list(log.turn_counts().items()) == [("Ann", 60), ("desk-0", 50), ("desk-1", 30), ("Bob", 20)]


# Messages ----------------------------------------------------------------------------------------------------------------

messages = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": names})


def turns_of(openai: list[dict[str, str]]) -> tuple[Turn, ...]:
    """Return the turns that these messages become."""
    return tuple(Turn(m["role"], m["role"], m["content"]) for m in openai)


@given(st.lists(messages, max_size=5))
def test_openai_messages_become_turns_in_order(openai: list[dict[str, str]]) -> None:
    assert as_conversation(openai, "me") == Conversation("me", turns_of(openai))
    held = as_conversation({"messages": openai, "conversation_id": 7, "topic": "x"})
    assert held == Conversation("7", turns_of(openai), None, {"topic": "x"})


@given(st.lists(messages, max_size=5))
def test_langchain_and_openai_messages_give_the_same_conversation(openai: list[dict[str, str]]) -> None:
    kinds = {"user": HumanMessage, "assistant": AIMessage, "system": SystemMessage}
    langchain = [kinds[m["role"]](m["content"]) for m in openai]
    assert as_conversation(langchain) == as_conversation(openai)


@given(st.lists(messages, min_size=1, max_size=5), st.sampled_from([None, 1]))
def test_file_can_hold_a_list_of_messages(openai: list[dict[str, str]], indent: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chat.json"
        path.write_text(json.dumps(openai, indent=indent), "utf-8")
        assert read_conversations(path).conversations == (Conversation("chat-1", turns_of(openai)),)


@settings(max_examples=30)
@given(logs(), st.sampled_from([None, 1]))
def test_file_can_hold_a_list_of_conversations(log: list[Conversation], indent: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chat.json"
        path.write_text(json.dumps([c.to_json() for c in log], indent=indent), "utf-8")
        assert read_conversations(path).conversations == as_read(log)


def test_line_can_be_a_list_of_messages(tmp_path: Path) -> None:
    lines = [json.dumps([{"role": "user", "content": text}]) for text in ("one", "two")]
    read = read_conversations(write_log(tmp_path, *lines))
    assert [(c.conversation_id, c.turns[0].text) for c in read.conversations] == [("log-1", "one"), ("log-2", "two")]


def test_tool_calls_and_tool_results_are_not_turns() -> None:
    bare = {"role": "assistant", "tool_calls": [{"id": "1"}]}
    openai: list[dict[str, Any]] = [{"role": "user", "content": "hi"}, bare, {"role": "tool", "content": "42"}]
    langchain: list[BaseMessage] = [HumanMessage("hi"), AIMessage(""), ToolMessage("42", tool_call_id="1")]
    assert as_conversation(openai).turns == as_conversation(langchain).turns == (Turn("user", "user", "hi"),)


def test_list_of_messages_with_a_tool_call_is_one_conversation(tmp_path: Path) -> None:
    bare = {"role": "assistant", "tool_calls": [{"id": "1"}]}  # a tool call may have no content
    path = write_log(tmp_path, json.dumps([{"role": "user", "content": "hi"}, bare]))
    assert read_conversations(path).conversations[0].turns == (Turn("user", "user", "hi"),)


def test_text_parts_of_content_are_joined_and_a_name_is_the_speaker() -> None:
    parts = ["look", {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "here"}]
    (turn,) = as_conversation([{"role": "user", "content": parts, "name": "Ann"}]).turns
    assert turn == Turn("Ann", "user", "look\nhere")
    assert as_conversation([HumanMessage("hi", name="Ann")]).turns == (Turn("Ann", "user", "hi"),)


def test_conversation_object_is_returned_unchanged() -> None:
    conversation = Conversation("a", ())
    assert as_conversation(conversation) is conversation


# Malformed input ---------------------------------------------------------------------------------------------------------

BAD = {
    "{": "not JSON",
    '"text"': "an object or a list of messages, not str",
    "17": "not int",
    "{}": 'needs "turns"',
    '{"turns": 3}': '"turns" must be a list',
    '{"turns": [], "started_at": "last week"}': "\"started_at\": 'last week' is not a date",
    '{"turns": [], "started_at": 12}': '"started_at": 12 is no time since 1970',
    '{"turns": [], "conversation_id": [1]}': '"conversation_id" must be a string or an integer',
    '{"messages": "hi"}': '"messages" must be a list',
    '[{"role": "user", "content": "hi"': "not JSON",
    "[" * 100_000: "not JSON",
    "1" * 10_000: "not JSON",
}
#: A damaged turn or message, and what is said about it.
DAMAGED = {
    "3": "must be an object",
    '{"text": "x"}': 'needs a "speaker"',
    '{"speaker": "", "text": "x"}': 'needs a "speaker"',
    '{"speaker": ["A"], "text": "x"}': 'needs a "speaker"',
    '{"speaker": "A"}': 'needs a "text" that is a string, not null',
    '{"speaker": "A", "text": null}': 'needs a "text" that is a string, not null',
    '{"speaker": "A", "text": NaN}': 'needs a "text" that is a string, not null',
    '{"speaker": "A", "text": {"a": 1}}': "needs a \"text\" that is a string, not {'a': 1}",
    '{"speaker": "A", "text": "x", "role": 1}': 'needs a "role" that is a string, not 1',
    '{"content": "hi"}': 'needs a "role"',
    '{"role": null, "content": "hi"}': 'needs a "role"',
    '{"role": "user", "content": 3}': 'needs a "content" that is text, not 3',
    '{"role": "user", "content": null}': 'needs a "content" that is text, not null',
    '{"role": "user"}': 'needs a "content" that is text, not null',
}


@pytest.mark.parametrize(("turn", "reason"), DAMAGED.items())
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_damaged_turn_is_left_out_and_counted_and_its_conversation_kept(
    tmp_path: Path, turn: str, reason: str, place: int
) -> None:
    turns = [{"speaker": "A", "text": "one"}, {"speaker": "B", "text": "two"}]
    key = "messages" if ("role" in turn and "speaker" not in turn) or "content" in turn else "turns"
    if key == "messages":
        turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    items = [json.dumps(item) for item in turns]
    items.insert(place, turn)
    path = write_log(tmp_path, line(), f'{{"{key}": [{", ".join(items)}]}}')
    log = read_conversations(path)
    assert [turn.text for turn in log.conversations[1].turns] == ["one", "two"]
    assert [(bad.line, bad.reason) for bad in log.damaged] == [(2, f"{key[:-1]} {place + 1} {reason}")]
    assert log.notes()[:2] == [
        f"{path}:2: {log.damaged[0].reason}",
        "1 damaged turn in 1 conversation: what cannot be read is left out, and the rest is kept",
    ]
    with pytest.raises(LogError, match=f"{key[:-1]} {place + 1}") if turn not in NO_ERROR else nullcontext():
        as_conversation(
            json.loads(f"[{', '.join(items)}]") if key == "messages" else {"turns": json.loads(f"[{', '.join(items)}]")}
        )


#: In a conversation that is passed from Python, a message without text is an empty one.
NO_ERROR = {'{"role": "user", "content": null}', '{"role": "user"}'}


def test_a_turn_with_an_unreadable_time_is_kept_without_it_and_counted(tmp_path: Path) -> None:
    turn = {"speaker": "A", "text": "x", "time": "noon"}
    log = read_conversations(write_log(tmp_path, line(turns=[turn])))
    assert log.conversations[0].turns == (Turn("A", "participant", "x"),)
    assert [bad.reason for bad in log.damaged] == ["turn 1 has a \"time\" that is not a date: neither ISO 8601 nor seconds or "
                                                   "milliseconds since 1970: 'noon'"]  # fmt: skip


def test_an_export_of_mongodb_is_read(tmp_path: Path) -> None:
    oid, later = "6633b7c0a1b2c3d4e5f60718", {"$date": {"$numberLong": "1777636800000"}}
    turns = [
        {"speaker": {"$oid": oid}, "role": "user", "text": "hi", "sentAt": {"$date": "2026-05-01T10:00:00Z"}},
        {"speaker": {"$numberInt": "7"}, "role": "agent", "text": "Hello!"},
    ]
    messages = [{"role": "user", "name": {"$oid": oid}, "content": "hi again"}]
    path = write_log(
        tmp_path,
        json.dumps({"_id": {"$oid": oid}, "turns": turns}),
        json.dumps({"conversation_id": {"$numberLong": "12"}, "createdAt": later, "messages": messages}),
        json.dumps({"_id": {"odd": [1]}, "createdAt": later, "turns": []}),
    )
    log = read_conversations(path)
    assert [(c.conversation_id, c.started_at) for c in log.conversations] == [
        (oid, "2026-05-01T10:00:00Z"), ("12", "2026-05-01T12:00:00+00:00"), ("log-3", "2026-05-01T12:00:00+00:00")
    ]  # fmt: skip
    assert [turn.speaker for c in log.conversations for turn in c.turns] == [oid, "7", oid]
    assert not log.damaged


def test_a_log_whose_turns_are_all_damaged_is_empty_and_the_error_says_why(tmp_path: Path) -> None:
    path = write_log(tmp_path, line(turns=[{"text": "x"}, {"text": "y"}]))
    with pytest.raises(LogError, match=r'is empty.*2 damaged turns were left out, first turn 1 needs a "speaker"'):
        read_conversations(path)


def test_tool_messages_under_every_name_and_analysis_are_not_turns(tmp_path: Path) -> None:
    unseen = ["tool", "Tool", "function", "ipython", "observation", "tool_result", "function-response", "reasoning"]
    messages = [{"role": role, "content": "42"} for role in unseen] + [{"role": "user", "content": "hi"}]
    messages.append({"role": "assistant", "channel": "analysis", "content": "they want a bell"})
    assert as_conversation(messages).turns == (Turn("user", "user", "hi"),)
    turns = [{"speaker": "shop", "role": role, "text": "42"} for role in unseen] + [{"speaker": "A", "text": "hi"}]
    assert [turn.text for turn in as_conversation({"turns": turns}).turns] == ["hi"]


@pytest.mark.parametrize("role", ["developer", "system", "System", "SYSTEM", "instruction", "system_prompt", "platform"])
def test_instructions_under_every_name_are_private(role: str) -> None:
    (turn,) = as_conversation([{"role": role, "content": "never promise a refund"}]).turns
    assert turn.private


@pytest.mark.parametrize(
    "name", ["created_at", "createdAt", "create_time", "timestamp", "date", "time", "ts", "sent_at", "Date"]
)
def test_dates_under_usual_names_are_read(tmp_path: Path, name: str) -> None:
    turn: dict[str, Any] = {"role": "user", "content": "hi", name: 1777600000}
    rows = [{name: f"2026-05-{day:02}T10:00:00Z", "updated_at": "2027-01-01", "messages": [turn]} for day in (3, 2, 1)]
    log = read_conversations(write_log(tmp_path, *map(json.dumps, rows)))
    assert [c.started_at for c in log.conversations] == [f"2026-05-{day:02}T10:00:00Z" for day in (1, 2, 3)]
    assert log.conversations[0].turns[0].time == "2026-05-01T01:46:40+00:00"
    assert log.dated
    assert not log.notes()


def test_a_conversation_without_a_date_has_that_of_its_first_turn(tmp_path: Path) -> None:
    rows = [{"turns": [{"speaker": "A", "text": str(day), "sent_at": f"2026-05-0{day}"}]} for day in (2, 1)]
    assert [c.turns[0].text for c in read_conversations(write_log(tmp_path, *map(json.dumps, rows))).conversations] == [
        "1",
        "2",
    ]


def test_a_log_without_dates_says_that_its_order_is_taken_for_time(tmp_path: Path) -> None:
    path = write_log(tmp_path, line())
    assert read_conversations(path).notes() == [
        f"{path}: no conversation has a date; the order of the lines is taken for time, oldest first"
    ]


@pytest.mark.parametrize(("bad", "reason"), BAD.items(), ids=[bad[:40] for bad in BAD])
def test_bad_line_error_names_file_line_and_reason(tmp_path: Path, bad: str, reason: str) -> None:
    path = write_log(tmp_path, line(), "", bad, line(conversation_id="b"))
    with pytest.raises(LogError) as failed:
        read_conversations(path)
    message = str(failed.value)
    assert message.startswith(f"{path}:3: ")
    assert reason in message
    assert "--skip-bad-lines" in message


def test_bad_item_of_a_list_is_named_by_its_number(tmp_path: Path) -> None:
    path = write_log(tmp_path, "[", line() + ",", "3", "]")
    with pytest.raises(LogError, match=r"log\.jsonl, item 2: .*; fix this item, or pass --skip-bad-lines"):
        read_conversations(path)
    assert [(bad.unit, bad.line) for bad in read_conversations(path, skip_bad_lines=True).skipped] == [("item", 2)]


@pytest.mark.parametrize("bad", BAD, ids=[bad[:40] for bad in BAD])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_bad_line_is_skipped_and_listed(tmp_path: Path, bad: str, place: int) -> None:
    lines = [line(conversation_id="a"), line(conversation_id="b")]
    lines.insert(place, bad)
    read = read_conversations(write_log(tmp_path, *lines), skip_bad_lines=True)
    assert [c.conversation_id for c in read.conversations] == ["a", "b"]
    assert [skipped.line for skipped in read.skipped] == [place + 1]
    assert BAD[bad] in read.skipped[0].reason


@given(st.lists(st.sampled_from([*BAD, "good"]), min_size=1, max_size=8).filter(lambda lines: "good" in lines))
def test_skipping_keeps_all_good_lines_and_lists_all_bad_ones(kinds: list[str]) -> None:
    lines = [line(conversation_id=str(number)) if kind == "good" else kind for number, kind in enumerate(kinds, 1)]
    with tempfile.TemporaryDirectory() as folder:
        read = read_conversations(write_log(Path(folder), *lines), skip_bad_lines=True)
    assert [c.conversation_id for c in read.conversations] == [str(n) for n, kind in enumerate(kinds, 1) if kind == "good"]
    assert [skipped.line for skipped in read.skipped] == [n for n, kind in enumerate(kinds, 1) if kind != "good"]


@given(
    st.binary(max_size=60) | st.binary(max_size=40).map(lambda raw: b"\x1f\x8b" + raw) | texts.map(str.encode), st.booleans()
)
def test_any_bytes_are_read_or_give_a_one_line_error_with_the_file(raw: bytes, skip: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_bytes(raw)
        read = result_or_error(lambda: read_conversations(path, skip_bad_lines=skip))
    if isinstance(read, LogError):
        assert str(read).startswith(str(path))
        assert "\n" not in str(read)
    else:
        assert any(c.turns for c in read.conversations)


@given(values)
def test_any_json_value_gives_a_conversation_or_a_log_error(value: Any) -> None:
    result = result_or_error(lambda: as_conversation(value))
    assert isinstance(result, Conversation) or str(result)


def test_malformed_multiline_list_error_names_the_line(tmp_path: Path) -> None:
    path = write_log(tmp_path, "[", '{"turns": []},', '{"turns": [}', "]")
    with pytest.raises(LogError, match=r":3: not JSON"):
        read_conversations(path)


@pytest.mark.parametrize("content", ["", "\n \n", "[]", '{"turns": []}'])
def test_empty_log_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(LogError, match="the log is empty"):
        read_conversations(path)


def test_log_of_only_bad_lines_is_empty_and_error_counts_them(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"the log is empty.*2 bad lines were skipped"):
        read_conversations(write_log(tmp_path, "{", "{}"), skip_bad_lines=True)


def test_missing_file_folder_and_other_encodings_are_errors(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no such file"):
        read_conversations(tmp_path / "none.jsonl")
    with pytest.raises(LogError, match="is a folder"):
        read_conversations(tmp_path)
    path = tmp_path / "latin.jsonl"
    path.write_bytes(line().encode() + b"\xe9")
    with pytest.raises(LogError, match="is not UTF-8 text"):
        read_conversations(path)


@pytest.mark.parametrize("damage", [slice(0, 40), slice(0, -4), None])
def test_damaged_gzip_file_is_an_error(tmp_path: Path, damage: slice | None) -> None:
    path = tmp_path / "log.jsonl.gz"
    whole = gzip.compress(line().encode())
    path.write_bytes(whole[:12] + b"\xff" * 20 + whole[32:] if damage is None else whole[damage])
    with pytest.raises(LogError, match="cannot be read"):
        read_conversations(path)


@pytest.mark.parametrize("missing", ["", " ", "NaT", "null", None])
def test_a_date_that_is_not_there_is_no_damage(tmp_path: Path, missing: str | None) -> None:
    turn = {"speaker": "A", "role": "user", "text": "one", "time": missing}
    log = read_conversations(write_log(tmp_path, json.dumps({"started_at": missing, "turns": [turn]})))
    assert not log.damaged
    assert [(c.started_at, c.turns[0].time) for c in log.conversations] == [(None, None)]


@pytest.mark.parametrize(
    "part",
    [{"text": "a plan", "thought": True}, {"type": "reasoning", "text": "a plan"}, {"type": "tool_result", "text": "42"}],
)
def test_reasoning_and_results_of_tools_among_the_parts_of_a_message_are_no_speech(part: object) -> None:
    message = {"role": "assistant", "content": [part, {"type": "text", "text": "hello"}]}
    assert [turn.text for turn in as_conversation([message]).turns] == ["hello"]


def test_text_with_annotations_is_text() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": {"value": "hello", "annotations": []}}]}
    assert [turn.text for turn in as_conversation([message]).turns] == ["hello"]


def test_duplicate_id_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LogError, match='two conversations have the id "a"'):
        read_conversations(write_log(tmp_path, line(), line()))


def test_dates_on_only_some_conversations_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(LogError, match='conversation "b" has no "started_at" while 1 others have one'):
        read_conversations(write_log(tmp_path, line(started_at="2024-01-01"), line(conversation_id="b")))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_log_round_trips_through_openai_messages(tmp_path: Path, log: ChatLog, suffix: str) -> None:
    path = tmp_path / f"messages{suffix}"
    assert write_conversations(log.conversations, path, messages_of="Ann") == len(log.conversations)
    again = read_conversations(path).conversations
    turns_read = [[(t.speaker, t.text, t.private) for t in c.turns] for c in again]
    assert turns_read == [[(t.speaker, t.text, t.private) for t in c.turns] for c in log.conversations]
    assert {t.role for c in again for t in c.turns if t.speaker == "Ann"} == {"user"}
    assert {t.role for c in again for t in c.turns if t.speaker.startswith("desk")} == {"assistant"}
    assert [(c.conversation_id, c.started_at) for c in again] == [(c.conversation_id, c.started_at) for c in log.conversations]
