"""Chat logs: conversations read from and written to JSON lines."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import IO, Any, Literal, cast

from .conversation import Conversation, as_conversation
from .dates import to_timestamp
from .errors import LogError
from .files import write_private
from .unpacking import Gunzip

_GZIP_MAGIC = b"\x1f\x8b"
_BUFFER = 1 << 16
#: The id of a scanned conversation that has none in its log.
NO_ID = "\x00no id"
#: Damaged turns that a summary names one by one.
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line of a log, or an item of a JSON list, that could not be read in whole or in part, and the reason.

    `lost` is the number of messages in it that became no turn.
    """

    line: int
    reason: str
    unit: Literal["line", "item"] = "line"
    lost: int = 0

    def place(self, source: object) -> str:
        """Return the source and the line or item, as in an error message."""
        return f"{source}:{self.line}" if self.unit == "line" else f"{source}, item {self.line}"


@dataclass(frozen=True, slots=True)
class ChatLog:
    """The conversations of one source, oldest first.

    `source` is their file, folder or corpus, `skipped` the bad lines that were skipped on request, `files_without_turns` the
    number of files of a folder that hold no conversation, `damaged` the damaged turns that were left out of conversations, and
    `left_out` sentences about what an importer dropped and assumed.
    """

    conversations: tuple[Conversation, ...]
    source: str
    skipped: tuple[BadLine, ...] = ()
    files_without_turns: int = 0
    _: KW_ONLY
    damaged: tuple[BadLine, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def dated(self) -> bool:
        """Whether the conversations have dates; without dates their order in the source is taken for time."""
        return any(conversation.started_at is not None for conversation in self.conversations)

    def notes(self) -> list[str]:
        """Return what was left out of the source and what was assumed, in sentences; empty for a flawless log."""
        notes = [f"skipped {bad.unit} {bad.line}: {bad.reason}" for bad in self.skipped]
        if self.skipped:
            notes.append(f"{len(self.skipped)} broken lines were skipped")
        notes += [f"{bad.place(self.source)}: {bad.reason}" for bad in self.damaged[:_SHOWN]]
        if self.damaged:
            count, lines = len(self.damaged), len({bad.line for bad in self.damaged})
            notes.append(
                f"{count} damaged turn{'s' if count > 1 else ''} in {lines} conversation{'s' if lines > 1 else ''}: "
                "what cannot be read is left out, and the rest is kept"
            )
        if self.files_without_turns:
            notes.append(f"{self.files_without_turns} files without a conversation were left out")
        notes += self.left_out
        if not self.dated:
            notes.append(f"{self.source}: no conversation has a date; the order of the lines is taken for time, oldest first")
        return notes

    def turn_counts(self, role: str | None = None) -> dict[str, int]:
        """Return the number of public turns of each speaker, highest first; with `role`, only turns in that role."""
        turns = (turn for conversation in self.conversations for turn in conversation.turns)
        counts = Counter(turn.speaker for turn in turns if not turn.private and role in {None, turn.role})
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def sort_by_time(conversations: Iterable[Conversation], source: str) -> tuple[Conversation, ...]:
    """Return the conversations sorted by `started_at`; without any dates they keep their order.

    Raises:
        LogError: only some conversations have a date, or two share an id.
    """
    unsorted = tuple(conversations)
    undated = [c.conversation_id for c in unsorted if c.started_at is None]
    if 0 < len(undated) < len(unsorted):
        raise LogError(
            f'{source}: conversation "{undated[0]}" has no "started_at" while {len(unsorted) - len(undated)} others have one; '
            "give every conversation a date, or none (then the order in the file is the time order)"
        )
    ids: set[str] = set()
    for conversation in unsorted:
        if conversation.conversation_id in ids:
            raise LogError(f'{source}: two conversations have the id "{conversation.conversation_id}"; ids must differ')
        ids.add(conversation.conversation_id)
    if undated:
        return unsorted
    return tuple(sorted(unsorted, key=lambda c: (to_timestamp(c.started_at) or 0.0, c.conversation_id)))


def read_conversations(path: str | Path, *, skip_bad_lines: bool = False) -> ChatLog:
    """Read a log: JSON lines with one conversation each, or a JSON list of conversations or messages, plain or gzip.

    Damaged turns are left out and listed in `ChatLog.damaged`; the rest of their conversation is kept. With `skip_bad_lines`,
    lines that cannot be read are skipped and listed in `ChatLog.skipped`.

    Raises:
        LogError: the file is missing, empty or malformed; the message names the file and the line or item.
    """
    path = Path(path)
    skipped: list[BadLine] = []
    damaged: list[BadLine] = []
    with _open(path) as file:
        scanned = scan_conversations(file, path, skip_bad_lines=skip_bad_lines, skipped=skipped, damaged=damaged)
        conversations = [
            replace(c, conversation_id=f"{path.stem}-{bad.line}") if c.conversation_id == NO_ID else c
            for bad, c in scanned
        ]  # fmt: skip
    if not any(conversation.turns for conversation in conversations):
        left_out = [f"{len(skipped)} bad lines were skipped"] if skipped else []
        left_out += [f"{len(damaged)} damaged turns were left out, first {damaged[0].reason}"] if damaged else []
        unread = f" ({'; '.join(left_out)})" if left_out else ""
        raise LogError(f"{path}: the log is empty: it holds no conversation with a turn{unread}")
    ordered = sort_by_time(_dated_by_turns(conversations), str(path))
    return ChatLog(ordered, str(path), tuple(skipped), damaged=tuple(damaged))


def scan_conversations(
    file: IO[bytes], place: str | Path, *, skip_bad_lines: bool, skipped: list[BadLine], damaged: list[BadLine]
) -> Iterator[tuple[BadLine, Conversation]]:
    """Yield the conversations of a log as they are read, each with its line or item; the id of one without is `NO_ID`.

    `skipped` and `damaged` receive what is left out; `place` names the file in errors.

    Raises:
        LogError: a line cannot be read, unless bad lines are skipped.
    """
    for unit, number, value in _json_values(file, place, skip_bad_lines):
        try:
            if isinstance(value, json.JSONDecodeError):
                raise LogError(f"not JSON ({value.msg} at column {value.colno})")
            sentences: list[str] = []
            conversation = as_conversation(value, NO_ID, damaged=sentences)
            damaged += [BadLine(number, sentence, unit) for sentence in sentences]
        except LogError as error:
            bad = BadLine(number, str(error), unit)
            if not skip_bad_lines:
                raise LogError(f"{bad.place(place)}: {error}; fix this {unit}, or pass --skip-bad-lines") from None
            skipped.append(bad)
        else:
            yield BadLine(number, "", unit, _written(value) - len(conversation.turns)), conversation


def _written(value: Any) -> int:
    """Return the number of messages that the JSON of a conversation holds."""
    if isinstance(value, Mapping):
        record = cast("Mapping[str, Any]", value)
        value = record["turns"] if "turns" in record else record["messages"]
    return len(cast("list[Any]", value))


def content_id(conversation: Conversation, turns: int = 2) -> str:
    """Return an id made of the first turns of a conversation and the time of the first one, so that it stays as it grows."""
    first = conversation.turns[:turns]
    time = next((turn.time for turn in first if turn.time), None) or conversation.started_at
    parts = [str(time), *(f"{turn.speaker}\x1f{turn.text}" for turn in first)]
    return hashlib.sha256("\x1e".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _dated_by_turns(conversations: list[Conversation]) -> list[Conversation]:
    """Date undated conversations by their first turn that has a time, if then all have a date; else return them unchanged."""
    dated = [
        c if c.started_at else replace(c, started_at=next((turn.time for turn in c.turns if turn.time), None))
        for c in conversations
    ]
    return dated if all(c.started_at for c in dated) else conversations


@contextmanager
def _open(path: Path) -> Generator[IO[bytes]]:
    """Open a plain or gzip file. LogError if it cannot be read, here or while it is read."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if not packed:
                yield raw
                return
            with io.BufferedReader(Gunzip(raw), _BUFFER) as unpacked:
                yield unpacked
    except FileNotFoundError:
        raise LogError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise LogError(f"{path}: is a folder; name the log file inside it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise LogError(f"{path}: cannot be read: {error}") from None


def _lines(file: IO[bytes], place: str | Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that are not blank, with their numbers. LogError if it is not UTF-8 text."""
    offset = 0
    for number, raw in enumerate(file, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            byte = offset + error.start + 3 * (number == 1 and raw.startswith(b"\xef\xbb\xbf"))
            raise LogError(f"{place}: is not UTF-8 text (byte {byte}); convert it to UTF-8 first") from None
        offset += len(raw)
        if line.strip():
            yield number, line


def _json_values(
    file: IO[bytes], place: str | Path, skip_bad_lines: bool
) -> Iterator[tuple[Literal["line", "item"], int, Any]]:  # fmt: skip
    """Yield the JSON values of a log with the number of their line, or of their item in a single list.

    A line that is not JSON yields its JSONDecodeError.
    """
    lines = _lines(file, place)
    if (first := next(lines, None)) is None:
        return
    value, rest = _parse_json(first[1]), lines
    if first[1].lstrip().startswith("[") and isinstance(value, json.JSONDecodeError):
        read = [first, *lines]  # a list over several lines; its blank lines count in messages
        whole = _parse_json("".join("\n" * (n - before) + line for (before, _), (n, line) in pairwise([(1, ""), *read])))
        if not (skip_bad_lines and isinstance(whole, json.JSONDecodeError)):
            if isinstance(whole, list):
                yield from _split_list(whole)
            else:
                yield "line", getattr(whole, "lineno", 1), whole
            return
        rest = iter(read[1:])
    second = next(rest, None)
    if second is None and isinstance(value, list):
        yield from _split_list(value)
        return
    yield "line", first[0], value
    for number, line in () if second is None else chain([second], rest):
        yield "line", number, _parse_json(line)


def _split_list(value: Any) -> Iterator[tuple[Literal["line", "item"], int, Any]]:
    """Yield the conversations of a JSON list, numbered; a list of messages is a single conversation."""
    items = cast("list[Any]", value)
    if items and all(isinstance(item, Mapping) and "role" in item and "turns" not in item for item in items):
        yield "line", 1, items
    else:
        for number, item in enumerate(items, 1):
            yield "item", number, item


def _parse_json(text: str) -> Any:
    """Return the value, or a JSONDecodeError; it also stands for values nested too deeply and numbers too long.

    NaN is read as null: exports of tables write a missing value so.
    """
    try:
        return json.loads(text, parse_constant=lambda name: None if name == "NaN" else float(name))
    except json.JSONDecodeError as error:
        return error
    except (ValueError, RecursionError) as error:
        return json.JSONDecodeError(str(error), text, 0)


def write_conversations(conversations: Iterable[Conversation], path: str | Path, *, messages_of: str | None = None) -> int:
    """Write conversations as JSON lines, compressed with gzip if the name ends in .gz, and return their number.

    With `messages_of`, the lines are OpenAI-style `{"messages": [...]}` objects in which this speaker is the user.
    """
    path, lines = Path(path), list[str]()
    for conversation in conversations:
        record = conversation.to_json()
        if messages_of is not None:
            del record["turns"]
            record["messages"] = conversation.to_messages(messages_of)
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    data = "".join(lines).encode("utf-8", "backslashreplace")  # lone surrogates become JSON escapes
    write_private(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return len(lines)
