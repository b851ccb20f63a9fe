"""Importer of transcripts in WebVTT and SRT whose cues name their speakers, as Zoom, Teams and Meet write them.

A speaker is a voice tag (`<v Ann>`) or a name before a colon. A cue without one goes on with the speaker before. The date is
taken from the name of the file or its folder, if it holds one. Source: https://www.w3.org/TR/webvtt1/, read with `webvtt-py`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from datetime import datetime, timedelta

from usertwin.personas.conversation import Turn
from usertwin.personas.errors import LogError

from ..source import Source
from ..thread import DAMAGED, PLACEHOLDER, Tally, Thread, shown

_NAMED = re.compile(r"(?:- ?)?\[?([^\W\d_][\w .,'’()\-/|&]{0,60}?)\]?:\s+(.*)", re.DOTALL)
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>(.*?)(?:</v>|(?=<v[\s.])|$)", re.DOTALL)
_TAG = re.compile(r"</?[a-z][^>]*>|<\d\d:[\d:.]+>", re.IGNORECASE)
_SOUND = re.compile(r"[\[(♪][^\])]{0,60}[\])♪]?")
_DAY = re.compile(r"(20\d\d)[-_.]?([01]\d)[-_.]?([0-3]\d)(?:[-_T ]?([0-2]\d)[-_.:h]?([0-5]\d))?")
#: Seconds after which no recording goes on.
_LONGEST = 10**7
_NO_SPEAKER = "cue without a speaker"


def _files(source: Source) -> list[str]:
    return source.ending(".vtt", ".srt") or (list(source.names) if len(source.names) == 1 else [])


def recognises(source: Source) -> bool:
    """Return whether the text is WebVTT, or SRT by its first lines."""
    files = _files(source)
    text = source.only(files[0]).text.lstrip() if files else ""
    return text.startswith("WEBVTT") or re.match(r"\d+\s*\r?\n\d+:\d\d:\d\d[,.]\d+ --> ", text) is not None


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the transcript of each file."""
    for name in _files(source):
        turns: list[Turn] = []
        day, speaker = _day(name) or _day(source.path.parent.name), ""
        for start, text in _cues(source, name, tally):
            for named, words in _voices(text):
                speaker = named or speaker
                if _SOUND.fullmatch(words):
                    tally.drop(PLACEHOLDER, shown(words))
                elif not speaker:
                    tally.drop(_NO_SPEAKER, shown(words))
                else:
                    time = None if day is None or start > _LONGEST else (day + timedelta(seconds=start)).isoformat()
                    turns.append(Turn(speaker, "participant", words, time=time, extra={"start": start}))
        yield Thread(turns=turns, whole=True)


def _day(name: str) -> datetime | None:
    """Return the date, and the time if there is one, in a file's name."""
    if (match := _DAY.search(name)) is None:
        return None
    try:
        return datetime(*(int(part or 0) for part in match.groups()))  # pyright: ignore[reportArgumentType] - five numbers
    except ValueError:
        return None


def _cues(source: Source, name: str, tally: Tally) -> Iterator[tuple[float, str]]:
    """Yield the start of each cue in seconds, and its text; cues that cannot be read are counted."""
    text = "\n".join(source.text_lines(name)).lstrip()
    try:
        import webvtt
        from webvtt.errors import MalformedFileError
    except ImportError:
        raise LogError(f"{source.place(name)}: transcripts need webvtt-py: pip install 'usertwin[import]'") from None
    try:
        captions = webvtt.from_buffer(io.StringIO(text), format="vtt" if text.startswith("WEBVTT") else "srt").captions
    except (MalformedFileError, ValueError, LookupError, ArithmeticError, AttributeError, TypeError) as error:
        kind = type(error).__name__
        raise LogError(f"{source.place(name)}: is no transcript that can be read ({kind}); export it again") from None
    tally.drop(DAMAGED, f"a cue of {source.place(name)}", max(0, text.count("-->") - len(captions)))
    for caption in captions:
        yield float(caption.start_in_seconds), caption.raw_text


def _voices(text: str) -> list[tuple[str, str]]:
    """Return the speakers of a cue with their words; "" for the speaker of the cue before."""
    if voices := _VOICE.findall(text):
        return [(name.strip(), words) for name, raw in voices if (words := _plain(raw))] or [("", "")]
    plain = _plain(text)
    match = _NAMED.fullmatch(plain)
    return [(match[1].strip(), match[2])] if match else [("", plain)]


def _plain(text: str) -> str:
    return " ".join(_TAG.sub("", text).split())
