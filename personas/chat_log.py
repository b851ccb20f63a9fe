"""Chat logs: conversations read from and written to JSON lines."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .conversation import Conversation, as_conversation, to_timestamp
from .errors import LogError

_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class BadLine:
    """A log line that could not be read, and the reason."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class ChatLog:
    """The conversations of one source, oldest first.

    Attributes:
        conversations: the conversations in time order.
        source: the file, folder or corpus they come from.
        skipped: the bad lines that were skipped on request.
        files_without_turns: how many files of a folder hold no conversation.
    """

    conversations: tuple[Conversation, ...]
    source: str
    skipped: tuple[BadLine, ...] = ()
    files_without_turns: int = 0

    def turn_counts(self, role: str | None = None) -> dict[str, int]:
        """Return the number of public turns of each speaker, highest first; with `role`, only turns in that role."""
        counts: dict[str, int] = {}
        for conversation in self.conversations:
            for turn in conversation.turns:
                if not turn.private and role in {None, turn.role}:
                    counts[turn.speaker] = counts.get(turn.speaker, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def sort_by_time(conversations: Iterable[Conversation], source: str) -> tuple[Conversation, ...]:
    """Return the conversations sorted by `started_at`; without any dates they keep their order.

    Raises:
        LogError: only some conversations have a date, or two share an id.
    """
    unsorted = tuple(conversations)
    dated = [c for c in unsorted if c.started_at is not None]
    if dated and len(dated) != len(unsorted):
        missing = next(c.conversation_id for c in unsorted if c.started_at is None)
        raise LogError(
            f'{source}: conversation "{missing}" has no "started_at" while {len(dated)} others have one; '
            "give every conversation a date, or none (then the order in the file is the time order)"
        )
    ids: set[str] = set()
    for conversation in unsorted:
        if conversation.conversation_id in ids:
            raise LogError(f'{source}: two conversations have the id "{conversation.conversation_id}"; ids must differ')
        ids.add(conversation.conversation_id)
    if not dated:
        return unsorted
    return tuple(sorted(unsorted, key=lambda c: (to_timestamp(c.started_at) or 0.0, c.conversation_id)))


def read_conversations(path: str | Path, *, skip_bad_lines: bool = False) -> ChatLog:
    """Read a log: JSON lines with one conversation each, or a JSON list of conversations or messages.

    Args:
        path: the file, plain or gzip; compression is detected from the first bytes.
        skip_bad_lines: skip lines that cannot be read, and list them in `ChatLog.skipped`.

    Raises:
        LogError: the file is missing, empty or malformed; the message names the file and the line.
    """
    path = Path(path)
    text = _read_text(path)
    skipped: list[BadLine] = []
    conversations: list[Conversation] = []
    for number, value in _json_values(text, path, skipped if skip_bad_lines else None):
        try:
            conversations.append(as_conversation(value, f"{path.stem}-{number}"))
        except LogError as error:
            if not skip_bad_lines:
                raise LogError(f"{path}, line {number}: {error}; fix the line, or pass --skip-bad-lines") from None
            skipped.append(BadLine(number, str(error)))
    if not any(conversation.turns for conversation in conversations):
        unread = f" ({len(skipped)} bad lines were skipped)" if skipped else ""
        raise LogError(f"{path}: the log is empty: it holds no conversation with a turn{unread}")
    return ChatLog(sort_by_time(conversations, str(path)), str(path), tuple(skipped))


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if raw.startswith(_GZIP_MAGIC) else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise LogError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise LogError(f"{path}: is a folder; name the log file inside it") from None
    except UnicodeDecodeError as error:
        raise LogError(f"{path}: is not UTF-8 text (byte {error.start}); convert it to UTF-8 first") from None
    except (OSError, EOFError, zlib.error) as error:
        raise LogError(f"{path}: cannot be read: {error}") from None


def _json_values(text: str, path: Path, skipped: list[BadLine] | None) -> Iterator[tuple[int, Any]]:
    """Yield the JSON values of a log with their line numbers; the items of a single list are numbered instead.

    Bad lines go to `skipped`; None means that the first one raises LogError.
    """
    stripped = text.lstrip()
    if stripped.startswith("[") and not _is_json(stripped.split("\n", 1)[0]):
        try:
            items = _parse_json(text)
        except json.JSONDecodeError as error:
            if skipped is None:
                raise _not_json(path, error.lineno, error) from None
        else:
            yield from _split_list(items)
            return
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, line in lines:
        try:
            value = _parse_json(line)
        except json.JSONDecodeError as error:
            if skipped is None:
                raise _not_json(path, number, error) from None
            skipped.append(BadLine(number, f"not JSON ({error.msg})"))
            continue
        if len(lines) == 1 and isinstance(value, list):
            yield from _split_list(value)
        else:
            yield number, value


def _not_json(path: Path, line: int, error: json.JSONDecodeError) -> LogError:
    reason = f"not JSON ({error.msg} at column {error.colno})"
    return LogError(f"{path}, line {line}: {reason}; fix the line, or pass --skip-bad-lines")


def _split_list(value: Any) -> Iterator[tuple[int, Any]]:
    """Yield the conversations of a JSON list, numbered; a list of messages is a single conversation."""
    items = cast("list[Any]", value)
    if items and all(isinstance(item, Mapping) and "role" in item and "turns" not in item for item in items):
        yield 1, items
    else:
        yield from enumerate(items, 1)


def _parse_json(text: str) -> Any:
    """Like `json.loads`, but values nested too deeply and numbers too long raise JSONDecodeError too."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), text, 0) from None


def _is_json(text: str) -> bool:
    try:
        _parse_json(text)
    except json.JSONDecodeError:
        return False
    return True


def _messages_record(conversation: Conversation, user: str) -> dict[str, Any]:
    record = conversation.to_json() | {"messages": conversation.to_messages(user)}
    del record["turns"]
    return record


def write_conversations(conversations: Iterable[Conversation], path: str | Path, *, messages_of: str | None = None) -> int:
    """Write conversations as JSON lines and return their number.

    Args:
        conversations: the conversations.
        path: the file; compressed with gzip if the name ends in .gz.
        messages_of: write OpenAI-style `{"messages": [...]}` lines in which this speaker is the user.
    """
    path = Path(path)
    records = [c.to_json() if messages_of is None else _messages_record(c, messages_of) for c in conversations]
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    data = "".join(lines).encode("utf-8", "backslashreplace")  # lone surrogates become JSON escapes
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return len(lines)
