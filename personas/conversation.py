"""Turns and conversations, and the interchange format they are read from and written to.

The one design choice: every shape a conversation can come in (our JSON lines, OpenAI-style message lists, LangChain
messages) becomes one frozen `Conversation` at the door, so that nothing further in knows about formats. A line is
`{"conversation_id", "started_at", "turns": [{"speaker", "role", "text"}]}`; unknown keys are kept and written back.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from .errors import LogError

#: Roles whose turns only the person saw (a task, an instruction). They become the goal, and never reach the agent.
PRIVATE_ROLES = frozenset({"instruction", "system"})

_LANGCHAIN_ROLES = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant", "HumanMessageChunk": "user"}
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing somebody said. `time` is ISO 8601 where the log knows it, else None."""

    speaker: str
    role: str
    text: str
    time: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)

    @property
    def private(self) -> bool:
        """Whether only the person saw this turn (see `PRIVATE_ROLES`)."""
        return self.role in PRIVATE_ROLES


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in the order they were said. `started_at` is ISO 8601, or None for a log without dates."""

    conversation_id: str
    turns: tuple[Turn, ...]
    started_at: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)

    def speakers(self) -> frozenset[str]:
        """Everybody who said something that others could see."""
        return frozenset(turn.speaker for turn in self.turns if not turn.private)

    def to_json(self) -> dict[str, Any]:
        """The conversation as one object of the interchange format."""
        turns = [
            {"speaker": t.speaker, "role": t.role, "text": t.text}
            | ({} if t.time is None else {"time": t.time})
            | dict(t.extra)
            for t in self.turns
        ]
        return {"conversation_id": self.conversation_id, "started_at": self.started_at, "turns": turns} | dict(self.extra)

    def to_messages(self, user: str) -> list[dict[str, str]]:
        """As OpenAI-style messages: `user` is the user, what only they saw is "system", everybody else is the assistant."""
        roles = {True: "system", False: "assistant"}
        return [
            {"role": "user" if turn.speaker == user else roles[turn.private], "content": turn.text, "name": turn.speaker}
            for turn in self.turns
        ]


def seconds(moment: str | None) -> float | None:
    """An ISO 8601 moment as seconds since 1970, UTC where no zone is given. ValueError if it is not one."""
    if moment is None:
        return None
    parsed = datetime.fromisoformat(moment)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def as_conversation(value: Any, conversation_id: str = "conversation") -> Conversation:
    """A `Conversation` from any accepted shape.

    Args:
        value: a Conversation, an object of the interchange format, a list of OpenAI-style or LangChain messages, or an
            object with such a list under "messages".
        conversation_id: the id to give where the value brings none.

    Raises:
        LogError: the value has none of these shapes; the message says what is wrong with it.
    """
    if isinstance(value, Conversation):
        return value
    if isinstance(value, Mapping):
        record = cast("Mapping[str, Any]", value)
        if "turns" in record:
            return _from_record(record, conversation_id)
        if "messages" in record:
            return _from_messages(record["messages"], record, conversation_id)
        raise LogError('a conversation needs "turns" (or "messages"), and has neither')
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return _from_messages(cast("Sequence[Any]", value), {}, conversation_id)
    raise LogError(f"a conversation is an object or a list of messages, not {type(value).__name__}")


def _from_record(record: Mapping[str, Any], conversation_id: str) -> Conversation:
    if not isinstance(record["turns"], list):
        raise LogError('"turns" must be a list')
    turns: list[Turn] = []
    for number, raw in enumerate(cast("list[Any]", record["turns"]), 1):
        if not isinstance(raw, Mapping):
            raise LogError(f"turn {number} must be an object")
        item = dict(cast("Mapping[str, Any]", raw))
        speaker, role, text = (item.pop(key, None) for key in ("speaker", "role", "text"))
        if not isinstance(speaker, str) or not speaker:
            raise LogError(f'turn {number} needs a "speaker"')
        if not isinstance(text, str):
            raise LogError(f'turn {number} needs a "text" that is a string')
        if role is not None and not isinstance(role, str):
            raise LogError(f'the "role" of turn {number} must be a string')
        time = _moment(item.pop("time", None), f"turn {number}")
        turns.append(Turn(whole(speaker), whole(role or "participant"), whole(text), time, item))
    return _conversation(record, tuple(turns), conversation_id, ("turns",))


def _from_messages(messages: Any, record: Mapping[str, Any], conversation_id: str) -> Conversation:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise LogError('"messages" must be a list')
    turns: list[Turn] = []
    for number, message in enumerate(cast("Sequence[Any]", messages), 1):
        if isinstance(message, Mapping):
            item = cast("Mapping[str, Any]", message)
            role, content, name = item.get("role"), item.get("content"), item.get("name")
        else:  # a LangChain message, recognised by its shape so that langchain need not be imported
            kind = getattr(message, "type", None)
            role, content, name = (
                _LANGCHAIN_ROLES.get(str(kind), kind),
                getattr(message, "content", None),
                getattr(message, "name", None),
            )
        if not isinstance(role, str) or not role:
            raise LogError(f'message {number} needs a "role"')
        if role == "tool":
            continue  # what a tool returned was never said to the person
        text = text_of(content)
        if text is None:
            raise LogError(f'message {number} needs a "content" that is text')
        if text:
            speaker = name if isinstance(name, str) and name else role
            turns.append(Turn(whole(speaker), whole(role), whole(text)))
    return _conversation(record, tuple(turns), conversation_id, ("messages",))


def text_of(content: Any) -> str | None:
    """The text of a message's content: a string, None (a bare tool call) or a list of parts; None if it is neither."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts: list[str] = []
        for part in cast("Sequence[Any]", content):
            if isinstance(part, str):
                parts.append(part)
            elif isinstance(part, Mapping):
                piece = cast("Mapping[str, Any]", part).get("text")
                if isinstance(piece, str):
                    parts.append(piece)
        return "\n".join(parts)
    return None


def whole(text: str) -> str:
    """The text with U+FFFD for half characters (a log cut within an emoji has them), which no file and no model takes."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _conversation(record: Mapping[str, Any], turns: tuple[Turn, ...], fallback: str, used: tuple[str, ...]) -> Conversation:
    extra = {key: value for key, value in record.items() if key not in {"conversation_id", "started_at", *used}}
    name = record.get("conversation_id", fallback)
    if not isinstance(name, str | int):
        raise LogError('"conversation_id" must be a string')
    return Conversation(whole(str(name)), turns, _moment(record.get("started_at"), "started_at"), extra)


def _moment(value: Any, where: str) -> str | None:
    if value is None:
        return None
    try:
        if not isinstance(value, str):
            raise ValueError
        seconds(value)
    except ValueError:
        raise LogError(f"{where}: {value!r} is not an ISO 8601 date or time") from None
    return value


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line of a log that could not be read, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class ChatLog:
    """Conversations in the order of time, the lines that were skipped on request, and how many files hold no conversation."""

    conversations: tuple[Conversation, ...]
    source: str
    skipped: tuple[BadLine, ...] = ()
    left_out: int = 0

    def turn_counts(self, role: str | None = None) -> dict[str, int]:
        """Turns of each speaker that others could see, most first; of one role only, if one is given."""
        counts: dict[str, int] = {}
        for conversation in self.conversations:
            for turn in conversation.turns:
                if not turn.private and role in {None, turn.role}:
                    counts[turn.speaker] = counts.get(turn.speaker, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def in_time_order(conversations: Iterable[Conversation], source: str) -> tuple[Conversation, ...]:
    """Sorted by `started_at`; a log without any dates keeps its order, one with some is refused.

    Raises:
        LogError: some conversations have a date and some have none, or two share an id.
    """
    found = tuple(conversations)
    dated = [c for c in found if c.started_at is not None]
    if dated and len(dated) != len(found):
        missing = next(c.conversation_id for c in found if c.started_at is None)
        raise LogError(
            f'{source}: conversation "{missing}" has no "started_at" while {len(dated)} others have one; '
            "give every conversation a date, or none (then the order in the file is the order of time)"
        )
    seen: set[str] = set()
    for conversation in found:
        if conversation.conversation_id in seen:
            raise LogError(f'{source}: two conversations have the id "{conversation.conversation_id}"; ids must differ')
        seen.add(conversation.conversation_id)
    if not dated:
        return found
    return tuple(sorted(found, key=lambda c: (seconds(c.started_at) or 0.0, c.conversation_id)))


def read_conversations(path: str | Path, *, skip_bad_lines: bool = False) -> ChatLog:
    """Read a log: JSON lines, plain or gzip, one conversation a line; or one JSON list of conversations or messages.

    Args:
        path: the file. Whether it is compressed is read from its first bytes, not from its name.
        skip_bad_lines: read the rest of a log with broken lines, and list those in `ChatLog.skipped`.

    Raises:
        LogError: the file is missing, empty or broken; the message names the file and the line.
    """
    path = Path(path)
    text = _text_of_file(path)
    skipped: list[BadLine] = []
    found: list[Conversation] = []
    for number, value in _values(text, path, skipped if skip_bad_lines else None):
        try:
            found.append(as_conversation(value, f"{path.stem}-{number}"))
        except LogError as error:
            if not skip_bad_lines:
                raise LogError(f"{path}, line {number}: {error}; mend it, or pass --skip-bad-lines") from None
            skipped.append(BadLine(number, str(error)))
    if not any(conversation.turns for conversation in found):
        unread = f" ({len(skipped)} bad lines were skipped)" if skipped else ""
        raise LogError(f"{path}: the log is empty: no conversation with a turn was found in it{unread}")
    return ChatLog(in_time_order(found, str(path)), str(path), tuple(skipped))


def _text_of_file(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if raw.startswith(_GZIP_MAGIC) else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise LogError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise LogError(f"{path}: is a folder; name the log file inside it") from None
    except UnicodeDecodeError as error:
        raise LogError(f"{path}: is not UTF-8 text (byte {error.start}); convert it first") from None
    except (OSError, EOFError, zlib.error) as error:
        raise LogError(f"{path}: cannot be read: {error}") from None


def _values(text: str, path: Path, skipped: list[BadLine] | None) -> Iterator[tuple[int, Any]]:
    """The JSON values of a log with the line each starts on: lines, or the items of one big list."""
    stripped = text.lstrip()
    if stripped.startswith("[") and not _is_json(stripped.split("\n", 1)[0]):
        try:
            items = _parsed(text)
        except json.JSONDecodeError as error:
            if skipped is None:
                raise LogError(
                    f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno}); "
                    "mend it, or pass --skip-bad-lines"
                ) from None
        else:
            yield from _items(items)
            return
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, line in lines:
        try:
            value = _parsed(line)
        except json.JSONDecodeError as error:
            if skipped is None:
                raise LogError(
                    f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}); mend it, or pass --skip-bad-lines"
                ) from None
            skipped.append(BadLine(number, f"not JSON ({error.msg})"))
            continue
        if len(lines) == 1 and isinstance(value, list):
            yield from _items(value)
        else:
            yield number, value


def _items(value: Any) -> Iterator[tuple[int, Any]]:
    """The conversations of one JSON list: a list of messages is one conversation, any other list holds several."""
    items = cast("list[Any]", value)
    if items and all(isinstance(item, Mapping) and "role" in item and "turns" not in item for item in items):
        yield 1, items
    else:
        yield from enumerate(items, 1)


def _parsed(text: str) -> Any:
    """`json.loads`, whose other refusals (too deep, a number too long) become JSONDecodeError too."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), text, 0) from None


def _is_json(text: str) -> bool:
    try:
        _parsed(text)
    except json.JSONDecodeError:
        return False
    return True


def _messages_record(conversation: Conversation, user: str) -> dict[str, Any]:
    record = conversation.to_json() | {"messages": conversation.to_messages(user)}
    del record["turns"]
    return record


def write_conversations(conversations: Iterable[Conversation], path: str | Path, *, messages_of: str | None = None) -> int:
    """Write JSON lines, gzip if the name ends in .gz; returns how many conversations were written.

    Args:
        conversations: what to write.
        path: the file.
        messages_of: write OpenAI-style `{"messages": [...]}` lines in which this speaker is the user.
    """
    path = Path(path)
    records = [c.to_json() if messages_of is None else _messages_record(c, messages_of) for c in conversations]
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    data = "".join(lines).encode("utf-8", "backslashreplace")  # half characters as the escapes that JSON has for them
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return len(lines)
