"""What a reader of a format yields, and the count of what it leaves out.

A reader turns every message of its file either into a turn of a `Thread` or into a call of `Tally.drop`, so that what is kept
and what is dropped add up to what was written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from usertwin.personas.chat_log import BadLine
from usertwin.personas.conversation import Turn
from usertwin.personas.dates import is_missing, read_date
from usertwin.personas.errors import LogError

#: Reasons of dropped messages that several formats share.
EMPTY, PLACEHOLDER, SYSTEM, TOOL = "without text", "placeholder of the platform", "system line", "call or result of a tool"
DUPLICATE, DAMAGED, BRANCH = "copy of a conversation", "damaged", "abandoned branch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """The messages of a conversation, or of a channel that is cut into conversations.

    Attributes:
        turns: in the order of the file.
        name: the id in the log; None if it has none, and the content gives one.
        started_at: ISO 8601; None for the time of the first turn.
        extra: further keys for the log.
        whole: whether it is one conversation in a format of endless threads, and cut on request only.
    """

    turns: list[Turn]
    name: str | None = None
    started_at: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    whole: bool = False


@dataclass(slots=True, kw_only=True)
class Tally:
    """Messages that were left out, by reason, and what else is worth a sentence.

    Attributes:
        skip_bad_lines: whether records that cannot be read are listed in `skipped`; otherwise the first one is an error.
        dropped: number of messages by reason.
        merged: number of messages that were joined to the message before by the same speaker.
        damaged: turns that were read in part or not at all, with their place.
        cut: number of threads that were cut at silences.
    """

    skip_bad_lines: bool = False
    dropped: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, str] = field(default_factory=dict[str, str])
    skipped: list[BadLine] = field(default_factory=list[BadLine])
    damaged: list[BadLine] = field(default_factory=list[BadLine])
    notes: list[str] = field(default_factory=list[str])
    merged: int = 0
    cut: int = 0

    def drop(self, reason: str, example: str = "", count: int = 1) -> None:
        """Count messages that are left out; the first example of a reason is kept."""
        if count:
            self.dropped[reason] += count
            if example:
                self.examples.setdefault(reason, example)

    def refuse(self, place: str, line: int, reason: str, unit: str = "line") -> None:
        """Skip a record that cannot be read. LogError unless bad records are skipped."""
        where = f"{place}:{line}" if unit == "line" else f"{place}, {unit} {line}"
        if not self.skip_bad_lines:
            raise LogError(f"{where}: {reason}; fix this {unit}, or pass --skip-bad-lines")
        self.skipped.append(BadLine(line, reason, "line" if unit == "line" else "item"))

    def note(self, sentence: str) -> None:
        """Remember a sentence for the summary, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def sentences(self, *, for_import: bool = True) -> list[str]:
        """Return what was left out, cut and joined, in sentences."""
        hidden = set() if for_import or not self.damaged else {DAMAGED}
        reasons = [(reason, count) for reason, count in self.dropped.most_common() if reason not in hidden]
        lines = [f"{count} dropped: {self._with_example(reason)}" for reason, count in reasons]
        if for_import and self.skipped:
            lines += [f"skipped {bad.unit} {bad.line}: {bad.reason}" for bad in self.skipped[:3]]
            lines.append(f"{len(self.skipped)} records that cannot be read were skipped")
        if self.merged:
            lines.append(f"{self.merged} messages were joined to the one before, by the same speaker at the same time")
        if self.cut:
            lines.append(f"{self.cut} thread{'s were' if self.cut > 1 else ' was'} cut at silences (--gap)")
        return lines + self.notes

    def _with_example(self, reason: str) -> str:
        example = self.examples.get(reason)
        return reason if example is None else f"{reason}, such as {example}"


def as_object(value: Any) -> dict[str, Any]:
    """Return a JSON object; {} for a value of any other type."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return a JSON list; [] for a value of any other type."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def as_text(value: Any) -> str:
    """Return a text or a number as text; "" for a value of any other type."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def time_of(value: Any) -> str | None:
    """Return a date as ISO 8601; None if it is missing or unreadable."""
    if isinstance(value, datetime):
        return value.isoformat()
    try:
        return None if is_missing(value) else read_date(value)
    except (ValueError, RecursionError):
        return None


def shown(text: str, limit: int = 40) -> str:
    """Return the beginning of a message in quotes, on one line."""
    line = " ".join(text.split())
    return f'"{line if len(line) <= limit else line[: limit - 1] + "…"}"'
