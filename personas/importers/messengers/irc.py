"""Importer of IRC logs of weechat, irssi, and clients that write alike (ZNC, HexChat, Textual), a channel a file.

Source: the logger plugin of https://weechat.org/doc ("date TAB nick TAB message") and irssi's default `log_timestamp`, in whose
logs the day is in lines of their own ("--- Day changed ..."). Joins, parts and notices are system lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta

from usertwin.personas.conversation import Turn

from ..source import Source
from ..thread import SYSTEM, Tally, Thread, shown

_WEECHAT = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[+-]\d\d:?\d\d|Z)?)\t([^\t]*)\t(.*)")
_CLOCK = r"\[?(?:(\d{4}-\d\d-\d\d)[ T])?(\d\d):(\d\d)(?::(\d\d))?\]?"
_MESSAGE = re.compile(rf"{_CLOCK} (?:<[ @+%~&!]?([^<>\s]{{1,40}})>|\s?\* ([^\s*!]\S{{0,39}})) (.*)")
_DAY = re.compile(r"(?:--- (?:Log opened|Day changed)|\*{4} (?:BEGIN LOGGING AT|ENDING LOGGING AT)) (.+)")
_DAY_FORMS = ("%a %b %d %Y", "%a %b %d %H:%M:%S %Y")
#: What weechat writes in place of a nick for lines of its own, and the mark of an action.
_WEECHAT_SYSTEM, _ACTION = {"-->", "<--", "--", "", "=!=", "⚡", "->", "<-", "—"}, {"*", " *"}
_PREFIXES = "@+%~&!"


def recognises(source: Source) -> bool:
    """Return whether two of the first lines look like IRC."""
    lines = [line for line in source.text.splitlines() if line.strip()][:20]
    known = [line for line in lines if _WEECHAT.fullmatch(line) or _MESSAGE.match(line) or _DAY.match(line)]
    return len(source.names) == 1 and 2 * len(known) > len(lines) if lines and len(known) > 1 else False


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the channel of each file."""
    for name in source.names:
        turns: list[Turn] = []
        clock = _Clock()
        for line in source.text_lines(name):
            if not line.strip():
                continue
            if day := _DAY.match(line):
                clock.new_day(day[1])
                tally.drop(SYSTEM, shown(line))
            elif (turn := _turn(line, clock)) is not None:
                turns.append(turn)
            else:
                tally.drop(SYSTEM, shown(line))
        yield Thread(turns=turns, name=name.rsplit("/", 1)[-1].removesuffix(".weechatlog").removesuffix(".log"))


class _Clock:
    """The day of a log that writes only the time in its lines; midnight passes when the time falls by hours."""

    def __init__(self) -> None:
        self.day: datetime | None = None
        self._last = -1

    def new_day(self, text: str) -> None:
        for form in _DAY_FORMS:
            try:
                parsed = datetime.strptime(text.strip(), form)
            except ValueError:
                continue
            self.day, self._last = datetime(parsed.year, parsed.month, parsed.day), -1

    def time(self, day: str | None, hour: int, minute: int, second: int) -> str | None:
        if hour > 23 or minute > 59 or second > 59:
            return None
        if day is not None:
            try:
                return datetime.fromisoformat(day).replace(hour=hour, minute=minute, second=second).isoformat()
            except ValueError:
                return None
        now = hour * 60 + minute
        if self.day is None:
            return None
        if now < self._last - 720:
            self.day += timedelta(days=1)
        self._last = now
        return self.day.replace(hour=hour, minute=minute, second=second).isoformat()


def _turn(line: str, clock: _Clock) -> Turn | None:
    """Return the message of a line; None for a system line."""
    if match := _WEECHAT.fullmatch(line):
        time, nick, text = match.groups()
        if nick.strip() in _WEECHAT_SYSTEM:
            return None
        if nick in _ACTION:
            nick, _, text = text.partition(" ")
        try:
            return Turn(nick.lstrip(_PREFIXES) or nick, "participant", text, time=datetime.fromisoformat(time).isoformat())
        except ValueError:
            return None
    if match := _MESSAGE.match(line):
        day, hour, minute, second, nick, actor, text = match.groups()
        time = clock.time(day, int(hour), int(minute), int(second or 0))
        return Turn(nick or actor, "participant", text, time=time)
    return None
