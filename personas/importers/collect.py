"""Conversations of several files put together: copies are dropped, and a conversation that grew replaces its earlier state."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from usertwin.personas.chat_log import content_id
from usertwin.personas.conversation import Conversation, Turn, as_conversation
from usertwin.personas.dates import to_timestamp

from .thread import DUPLICATE, Tally


class Shelf(Protocol):
    """Where conversations are kept by their id until all files are read."""

    def get(self, name: str) -> Conversation:
        """Return the conversation of an id that was put there."""
        ...

    def put(self, name: str, conversation: Conversation) -> None:
        """Keep a conversation, in place of the one with this id."""
        ...


class MemoryShelf:
    """Conversations in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, Conversation] = {}

    def get(self, name: str) -> Conversation:
        """Return the conversation of an id that was put there."""
        return self._kept[name]

    def put(self, name: str, conversation: Conversation) -> None:
        """Keep a conversation, in place of the one with this id."""
        self._kept[name] = conversation

    def dated(self, tally: Tally) -> list[Conversation]:
        """Return the conversations in the order of their first `put`, all of them with a date or none."""
        dates = _complete({name: c.started_at for name, c in self._kept.items()}, tally)
        return [
            c if c.started_at == dates[name] else replace(c, started_at=dates[name]) for name, c in self._kept.items()
        ]  # fmt: skip


class FileShelf:
    """Conversations in a temporary file, of which only the places and dates are in memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the shelf
        self._places: dict[str, tuple[int, int, str | None]] = {}
        self._end = 0

    def get(self, name: str) -> Conversation:
        """Return the conversation of an id that was put there."""
        return as_conversation(json.loads(self._read(name)))

    def put(self, name: str, conversation: Conversation) -> None:
        """Keep a conversation, in place of the one with this id."""
        data = _dumped(conversation)
        self._file.seek(self._end)
        self._file.write(data)
        self._places[name] = (self._end, len(data), conversation.started_at)
        self._end += len(data)

    def sorted_lines(self, tally: Tally) -> Iterator[bytes]:
        """Yield the JSON lines of the conversations, oldest first; without dates in the order of their first `put`."""
        dates = _complete({name: place[2] for name, place in self._places.items()}, tally)
        for name in sorted(dates, key=lambda name: to_timestamp(dates[name]) or 0.0):
            if dates[name] == self._places[name][2]:
                yield self._read(name)
            else:
                yield _dumped(replace(self.get(name), started_at=dates[name]))

    def close(self) -> None:
        """Delete the file."""
        self._file.close()

    def _read(self, name: str) -> bytes:
        start, length, _ = self._places[name]
        self._file.seek(start)
        return self._file.read(length)


def _complete(dates: dict[str, str | None], tally: Tally) -> dict[str, str | None]:
    """Return the dates with each missing one replaced by the one before it in the file, if any conversation has a date."""
    missing = sum(date is None for date in dates.values())
    if not 0 < missing < len(dates):
        return dates
    last = next(filter(None, dates.values()))
    complete: dict[str, str | None] = {}
    for name, date in dates.items():
        complete[name] = last = date or last
    tally.note(f"{missing} conversations have no date; they count as of the time of the one before them in the file")
    return complete


def _dumped(conversation: Conversation) -> bytes:
    """Return the line of a conversation in the interchange format."""
    import orjson

    try:
        return orjson.dumps(conversation.to_json(), option=orjson.OPT_APPEND_NEWLINE)
    except (TypeError, ValueError):  # numbers of more than 64 bits, halves of surrogate pairs
        return (json.dumps(conversation.to_json(), default=str) + "\n").encode()


class Collector:
    """Puts conversations on a shelf, each once and in its longest state.

    Two conversations are copies if they have the same turns at the same times, under whatever id. Of two with one id and a turn
    in common, the one with more turns is kept; without a common turn they are different, and the second gets an id of its own.
    A conversation without an id gets one from its content; in another file, a conversation that continues it has the same id.
    """

    def __init__(self, shelf: Shelf, tally: Tally) -> None:
        self.shelf, self.tally = shelf, tally
        self._seen: dict[bytes, str] = {}
        self._file_of: dict[str, int] = {}

    def add(self, conversation: Conversation, file: int) -> Conversation | None:
        """Keep a conversation of the file with this number; return the state that it replaces, or itself for a copy."""
        digest = _digest(conversation)
        if digest in self._seen:
            self.tally.drop(DUPLICATE, f'"{self._seen[digest]}"', len(conversation.turns))
            return conversation
        name, known = self._place(conversation, file)
        self._seen[digest] = name
        if known is not None:
            shorter = min((known, conversation), key=lambda c: len(c.turns))
            self.tally.drop("other state of a conversation", f'"{name}"', len(shorter.turns))
            if shorter is conversation:
                return conversation
        self._file_of[name] = file
        self.shelf.put(name, Conversation(name, conversation.turns, conversation.started_at, conversation.extra))
        return known

    def _place(self, conversation: Conversation, file: int) -> tuple[str, Conversation | None]:
        """Return the id of a conversation, and what is known under it."""
        if conversation.conversation_id and not conversation.conversation_id.startswith("@"):
            name = conversation.conversation_id
            while name in self._file_of:
                known = self.shelf.get(name)
                if not {turn.text for turn in known.turns}.isdisjoint(turn.text for turn in conversation.turns):
                    return name, known
                name = f"{name}-{content_id(conversation)[:8]}"  # another conversation that happens to have this id
            return name, None
        count, name = 2, ""
        while True:
            name = content_id(conversation, count) + conversation.conversation_id
            if name not in self._file_of:
                return name, None
            known = self.shelf.get(name)
            if self._file_of[name] != file and _continues(known.turns, conversation.turns):
                return name, known
            if count >= len(conversation.turns):
                break
            count *= 2
        number = 2
        while f"{name}-{number}" in self._file_of:
            number += 1
        return f"{name}-{number}", None


def _continues(first: Sequence[Turn], second: Sequence[Turn]) -> bool:
    """Return whether one of two conversations is the beginning of the other; its last turn may have grown."""
    count = min(len(first), len(second))
    pairs = list(zip(first[:count], second[:count], strict=True))
    if any(a.text != b.text or a.speaker != b.speaker for a, b in pairs[:-1]):
        return False
    last, other = pairs[-1][0].text, pairs[-1][1].text
    return last.startswith(other) or other.startswith(last)


def _digest(conversation: Conversation) -> bytes:
    import xxhash

    parts = [f"{turn.speaker}\x1f{turn.text}\x1f{turn.time}" for turn in conversation.turns]
    return xxhash.xxh3_128_digest("\x1e".join([str(conversation.started_at), *parts]).encode("utf-8", "surrogatepass"))
