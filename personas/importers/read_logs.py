"""Logs of any known format read into conversations: into memory for `learn`, or as JSON lines for `usertwin import`."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from usertwin.personas.chat_log import ChatLog, sort_by_time
from usertwin.personas.conversation import Conversation
from usertwin.personas.dates import to_timestamp
from usertwin.personas.errors import LogError
from usertwin.personas.files import replacement
from usertwin.personas.roles import is_user

from .assemble import DEFAULT_GAP, Rules, assemble
from .collect import Collector, FileShelf, MemoryShelf
from .formats import Format, find_format
from .source import Source, open_source
from .thread import Tally

#: A log of conversations with fewer than this is cut at silences like a thread: it cannot be split otherwise.
_FEW = 3
#: Share of the turns of a person that are one identical text, above which a note says so, and the fewest turns for it.
_SAME_TEXT, _MIN_TURNS = 0.1, 20


@dataclass(slots=True)
class Speaker:
    """What a person wrote: number of turns and conversations, and the role of most turns."""

    turns: int = 0
    conversations: int = 0
    roles: Counter[str] = field(default_factory=Counter[str])
    texts: Counter[int] = field(default_factory=Counter[int])

    @property
    def role(self) -> str:
        """The role of most turns."""
        return self.roles.most_common(1)[0][0]


@dataclass(slots=True, kw_only=True)
class ImportSummary:
    """What was read.

    Attributes:
        formats: the format of each file.
        conversations, turns: their numbers, after dropping and joining.
        first, last: the period, ISO 8601; None without dates.
        undated: number of conversations without a date.
        speakers: by name.
        tally: what was dropped, joined and cut.
    """

    tally: Tally
    formats: dict[str, str] = field(default_factory=dict[str, str])
    conversations: int = 0
    turns: int = 0
    first: str | None = None
    last: str | None = None
    undated: int = 0
    zoneless: bool = False
    speakers: dict[str, Speaker] = field(default_factory=dict[str, Speaker])
    _ends: tuple[float, float] = (0.0, 0.0)
    _numbers: Counter[bool] = field(default_factory=Counter[bool])
    _number: int | None = None

    def count(self, conversation: Conversation, sign: int = 1) -> None:
        """Add a conversation to the numbers, or take it away with sign -1."""
        self.conversations += sign
        self.turns += sign * len(conversation.turns)
        self.undated += sign * (conversation.started_at is None)
        if conversation.started_at is None and (match := _NUMBER.search(conversation.conversation_id)):
            number = int(match[0])
            if self._number is not None:
                self._numbers[number > self._number] += sign
            self._number = number
        here = set[str]()
        for turn in conversation.turns:
            if turn.private:
                continue
            speaker = self.speakers.get(turn.speaker)
            if speaker is None:
                speaker = self.speakers[turn.speaker] = Speaker()
            speaker.turns += sign
            speaker.roles[turn.role] += sign
            if len(turn.text) < 60:
                speaker.texts[hash(turn.text)] += sign
            here.add(turn.speaker)
        for name in here:
            self.speakers[name].conversations += sign
        ends = (conversation.started_at, next((t.time for t in reversed(conversation.turns) if t.time), None))
        for time in filter(None, ends):
            at = to_timestamp(time) or 0.0
            self.zoneless = self.zoneless or not _ZONE.search(time)
            if self.first is None or at < self._ends[0]:
                self.first, self._ends = time, (at, self._ends[1])
            if self.last is None or at > self._ends[1]:
                self.last, self._ends = time, (self._ends[0], at)

    def ranked(self) -> list[tuple[str, Speaker]]:
        """Return the speakers with the most turns first."""
        present = [(name, speaker) for name, speaker in self.speakers.items() if speaker.turns > 0]
        return sorted(present, key=lambda item: (-item[1].turns, item[0]))

    def suggestions(self, *, min_turns: int, min_conversations: int, limit: int = 3) -> list[str]:
        """Return speakers who wrote enough for a twin, users of an agent first, then by their number of turns."""
        enough = [
            (name, speaker)
            for name, speaker in self.ranked()
            if speaker.turns >= min_turns and speaker.conversations >= min_conversations and speaker.role not in _AGENTS
        ]
        enough.sort(key=lambda item: not is_user(item[1].role))
        return [name for name, _ in enough[:limit]]

    def notes(self, *, for_import: bool = True) -> list[str]:
        """Return what was left out and assumed, in sentences; `ChatLog.notes` says itself what is damaged or skipped."""
        notes = self.tally.sentences(for_import=for_import)
        if self.undated and self.undated == self.conversations:
            if for_import:
                notes.append("no conversation has a date; the order of the lines is taken for time, oldest first")
            if self._numbers[False] >= _FEW and not self._numbers[True]:
                notes.append("the numbers in the ids fall, so the undated log may be newest first: turn it round then")
        if self.zoneless and for_import:
            notes.append("times without a time zone count as UTC (--timezone Europe/Berlin sets another one)")
        for name, speaker in self.ranked()[:20] if for_import else ():
            same = max(speaker.texts.values(), default=0)
            if speaker.turns >= _MIN_TURNS and same > _SAME_TEXT * speaker.turns:
                notes.append(f'{same} of the {speaker.turns} turns of "{name}" are one identical text')
        return notes


#: The number at the end of an id, which shows whether an undated log is newest first.
_NUMBER = re.compile(r"[0-9]{1,15}$")
_ZONE = re.compile(r"(?:Z|[+-]\d\d:?\d\d(?::\d\d)?)$", re.IGNORECASE)
_AGENTS = frozenset({"assistant", "agent", "gpt", "bot", "model", "chatgpt", "ai", "bing", "bard", "admin", "AIMessageChunk"})


class _Import:
    """An import in progress: reads logs one after the other into a collector."""

    def __init__(self, collector: Collector, rules: Rules) -> None:
        self.collector, self.rules, self.summary = collector, rules, ImportSummary(tally=collector.tally)

    def read(self, paths: Sequence[str | Path], format_name: str | None) -> None:
        for number, path in enumerate(paths):
            source = open_source(path)
            known = find_format(source, format_name)
            self.summary.formats[str(path)] = known.title
            self._read_one(source, known, number)

    def _read_one(self, source: Source, known: Format, number: int) -> None:
        tally = self.collector.tally
        threads, waiting = known.read(source, tally), []
        if not known.is_thread and self.rules.gap is None:
            for thread in threads:
                waiting.append(thread)
                if len(waiting) == _FEW:
                    break
        few = 0 < len(waiting) < _FEW  # one endless thread under one id, as a messenger exports it
        rules = replace(self.rules, gap=DEFAULT_GAP) if few else self.rules
        for part in (waiting, threads):
            for thread in part:
                for conversation in assemble(thread, rules, tally, is_thread=known.is_thread, joiner=known.joiner):
                    self._keep(conversation, number)

    def _keep(self, conversation: Conversation, number: int) -> None:
        replaced = self.collector.add(conversation, number)
        if replaced is conversation:
            return
        if replaced is not None:
            self.summary.count(replaced, -1)
        self.summary.count(conversation)


def import_log(
    source: str | Path, *, rules: Rules | None = None, format_name: str | None = None, skip_bad_lines: bool = False
) -> ChatLog:
    """Return the conversations of a file, folder or zip of any known format, in time order.

    Raises:
        LogError: the log cannot be read, is of no known format, or holds no conversation.
    """
    tally, shelf = Tally(skip_bad_lines=skip_bad_lines), MemoryShelf()
    work = _Import(Collector(shelf, tally), rules or Rules())
    work.read([source], format_name)
    _check_filled(work.summary, str(source))
    conversations = sort_by_time(shelf.dated(tally), str(source))
    left_out = tuple(work.summary.notes(for_import=False))
    return ChatLog(conversations, str(source), tuple(tally.skipped), damaged=tuple(tally.damaged), left_out=left_out)


def import_to_file(
    paths: Sequence[str | Path], out: Path, *, rules: Rules | None = None, format_name: str | None = None,
    skip_bad_lines: bool = False,
) -> ImportSummary:  # fmt: skip
    """Write the conversations of logs to a file of JSON lines, plain or gzip, oldest first, and return what was read.

    Memory holds one conversation at a time, and the places of the others; of formats that are one JSON value, a whole file.

    Raises:
        LogError: a log cannot be read, is of no known format, or all of them hold no conversation.
    """
    tally = Tally(skip_bad_lines=skip_bad_lines)
    with closing(FileShelf()) as shelf:
        work = _Import(Collector(shelf, tally), rules or Rules())
        work.read(paths, format_name)
        _check_filled(work.summary, ", ".join(map(str, paths)))
        with replacement(out) as partial, gzip.open(partial, "wb") if out.suffix == ".gz" else partial.open("wb") as file:
            for line in shelf.sorted_lines(tally):
                file.write(line)
    return work.summary


def _check_filled(summary: ImportSummary, source: str) -> None:
    if not summary.turns:
        why = "".join(f"; {sentence}" for sentence in summary.tally.sentences()[:3])
        raise LogError(f"{source}: the log is empty: it holds no conversation with a turn{why}")
