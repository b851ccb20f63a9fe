"""Chat logs: conversations as JSON lines, read and written."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .conversation import Conversation, as_conversation, seconds
from .errors import LogError

_GZIP_MAGIC = b"\x1f\x8b"


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
