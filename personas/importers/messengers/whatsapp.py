"""Importer of WhatsApp's text export, from Android and iOS, in the date formats of all regions; the zip as well.

A message begins with a date, and further lines belong to it. Source: https://faq.whatsapp.com/1180414079177245, and exports in
about twenty languages. Whether the day or the month comes first is found from all dates of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from usertwin.personas.conversation import Turn

from ..placeholders import is_placeholder
from ..source import Source
from ..thread import PLACEHOLDER, SYSTEM, Tally, Thread, shown

_MARKS = "\u200e\u200f\u202a\u202c"
_SPACE = "[ \u00a0\u202f]"
_HALF = rf"[ap]\.?{_SPACE}?m\.?|上午|下午|午前|午後|오전|오후|ö[öÖ]|ös|ص|م"
_HEADER = re.compile(
    rf"[{_MARKS}]*(?P<open>\[)?(?P<a>\d{{1,4}})(?P<sep>[./-]){_SPACE}?(?P<b>\d{{1,2}})(?P=sep){_SPACE}?(?P<c>\d{{1,4}})\.?"
    rf"[,،]?{_SPACE}+(?:klo{_SPACE}|at{_SPACE}|um{_SPACE}|à{_SPACE})?(?:(?P<half1>{_HALF}){_SPACE}?)?"
    rf"(?P<hour>\d{{1,2}})[:.](?P<minute>\d\d)(?:[:.](?P<second>\d\d))?(?:{_SPACE}?(?P<half2>{_HALF}))?"
    rf"(?(open)\]{_SPACE}?|{_SPACE}[-–]{_SPACE})(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_AFTERNOON = re.compile(r"p|下午|午後|오후|ös|م", re.IGNORECASE)
_ENCRYPTED = "Messages and calls are end-to-end encrypted."
_EDITED = re.compile(
    r"\s*\u200e?<(?:This message was edited|Diese Nachricht wurde bearbeitet\.?|Se editó este mensaje\.?"
    r"|Ce message a été modifié|Mensagem editada|Messaggio modificato|Bericht bewerkt|Сообщение изменено)>$"
)


@dataclass(slots=True)
class _Line:
    """A message as written: the three numbers of its date, its time, and its text."""

    date: tuple[int, int, int]
    time: tuple[int, int, int]
    text: str


def _files(source: Source) -> list[str]:
    return list(source.names) if len(source.names) == 1 and not source.packed else source.ending(".txt")


def recognises(source: Source) -> bool:
    """Return whether one of the first lines of the text is the beginning of a message."""
    files = _files(source)
    if not files or len(files) > 1:
        return False
    lines = [line for line in source.only(files[0]).text.splitlines() if line.strip()]
    return any(_HEADER.match(line) for line in lines[:5])


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the chat of each text file."""
    for name in _files(source):
        lines = _messages(source, name, tally)
        order = _date_order([line.date for line in lines], tally)
        turns = [turn for line in lines if (turn := _turn(line, order, tally)) is not None]
        stem = name.rsplit("/", 1)[-1].removesuffix(".txt")
        yield Thread(turns=turns, name=source.stem if stem == "_chat" else stem)


def _messages(source: Source, name: str, tally: Tally) -> list[_Line]:
    messages: list[_Line] = []
    for line in source.text_lines(name):
        match = _HEADER.match(line)
        if match is None:
            if messages:
                messages[-1].text += f"\n{line}"
            elif line.strip():
                tally.drop(SYSTEM, shown(line))
            continue
        hour = int(match["hour"])
        if half := match["half1"] or match["half2"]:
            hour = hour % 12 + 12 * (_AFTERNOON.match(half) is not None)
        time = (hour, int(match["minute"]), int(match["second"] or 0))
        messages.append(_Line((int(match["a"]), int(match["b"]), int(match["c"])), time, match["rest"]))
    return messages


def _date_order(dates: Sequence[tuple[int, int, int]], tally: Tally) -> str:
    """Return the places of day, month and year: "dmy", "mdy" or "ymd"."""
    if any(first > 31 for first, _, _ in dates):
        return "ymd"
    day_first, month_first = any(first > 12 for first, _, _ in dates), any(second > 12 for _, second, _ in dates)
    if day_first != month_first:
        return "dmy" if day_first else "mdy"
    turned = {"dmy": [date[::-1] for date in dates], "mdy": [(year, month, day) for month, day, year in dates]}
    rising = [order for order, days in turned.items() if days == sorted(days)]
    if len(rising) != 1 and dates:
        tally.note("days and months cannot be told apart in any of its dates; the day is taken to come first")
    return rising[0] if len(rising) == 1 else "dmy"


def _turn(line: _Line, order: str, tally: Tally) -> Turn | None:
    sender, separator, text = line.text.partition(": ")
    if not separator and line.text.endswith(":"):
        sender, separator, text = line.text[:-1], ":", ""
    if not separator or len(sender) > 100 or "\n" in sender:
        tally.drop(SYSTEM, shown(line.text))
        return None
    text = _EDITED.sub("", text)
    if text.startswith(("\u200e", _ENCRYPTED)):  # iOS marks so what the app wrote itself
        tally.drop(PLACEHOLDER, shown(text))
        return None
    text = text.split("\u200e")[0] if "\u200e" in text else text
    first, _, caption = text.partition("\n")
    if caption.strip() and is_placeholder(first):  # the file's name, then what was written under it
        text = caption
    try:
        time = _date(line, order)
    except ValueError:
        time = None
    return Turn(sender.strip(_MARKS + " ~\u202f\u00a0"), "participant", text.strip(), time=time)


def _date(line: _Line, order: str) -> str:
    number = dict(zip(order, line.date, strict=True))
    year = number["y"] + 2000 * (number["y"] < 100)
    if 2400 < year < 2700:  # the Buddhist calendar
        year -= 543
    return datetime(year, number["m"], number["d"], *line.time).isoformat()
