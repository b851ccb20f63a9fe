"""Oral arguments before the Supreme Court of the United States, in the public JSON of Oyez, a file for each argument.

The one design choice: a file is what `https://api.oyez.org/case_media/oral_argument_audio/ID` answers, as public mirrors keep
it; justices and advocates are roles, so that a twin of either can be learned and is compared with somebody of its own kind.
What the transcribers added in brackets ("[Laughter]", "(Inaudible)") was not said and is taken out; all else is verbatim.
"""

from __future__ import annotations

import json
import os.path
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, cast

from usertwin.personas.chat_log import BadLine, ChatLog, in_time_order
from usertwin.personas.conversation import Conversation, Turn, whole
from usertwin.personas.errors import LogError

#: The roles of who speaks. Somebody unknown is nobody's turn: such turns stay apart, and no person is made of them.
JUSTICE, ADVOCATE, UNKNOWN = "justice", "advocate", "unknown"
UNKNOWN_SPEAKER = "Unknown Speaker"

_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_DATE = re.compile(rf"\b({'|'.join(_MONTHS)})\s+(\d{{1,2}}),?\s+(\d{{4}})\b", re.IGNORECASE)
#: What transcribers note: only these words, since other brackets hold what was said, such as "(a)" or "(recess appointments)".
_DIRECTION = re.compile(
    r"[\[({]\s{0,3}(?:"
    r"inau(?:d|id)\w{0,20}|(?:general |more )?l(?:au|ua)gh\w{0,20}|voices? overlap\w{0,20}|overlapping voices|cross[ -]?talk"
    r"|(?:lunch |luncheon |short |brief )?recess|lunch|luncheon|cough\w{0,20}|applause|noise|audio cut|no audio|pause"
    r")[\s.,;:!?-]{0,5}[\])}]",
    re.IGNORECASE,
)
_LONGEST_TIME = 10.0**9  # seconds; times beyond it are no times
_DAY = 86_400


def read_oyez(path: str | Path, *, skip_bad_lines: bool = False) -> ChatLog:
    """The arguments of a folder of Oyez files, or of one file, in the order of time; those of one day by file name.

    Files without a transcript (cases, summaries, arguments that are not available) are left out, and counted in
    `ChatLog.left_out`. The file's stem is the conversation's id; titles, times and identifiers are kept as extra keys.

    Args:
        path: the folder or file; "~" is the home.
        skip_bad_lines: read the rest where files are broken, and list those in `ChatLog.skipped`.

    Raises:
        LogError: there is no such folder, no argument in it, or a broken file; the message names it and the way out.
    """
    path = Path(os.path.expanduser(path))
    found: list[Conversation] = []
    skipped: list[BadLine] = []
    left_out = 0
    for file in _files(path):
        try:
            conversation = _argument(_read(file), file.stem)
        except _BrokenFileError as error:
            if not skip_bad_lines:
                raise LogError(f"{file}, line {error.line}: {error}; mend or remove it, or pass --skip-bad-lines") from None
            skipped.append(BadLine(error.line, f"{file.name}: {error}"))
            continue
        if conversation.turns:
            found.append(conversation)
        else:
            left_out += 1
    if not found:
        unread = f"; {len(skipped)} broken files were skipped" if skipped else ""
        raise LogError(
            f"{path}: no argument with a transcript is there ({left_out} files without one{unread}); "
            'name a folder of JSON files that have a "transcript", as api.oyez.org answers for oral_argument_audio'
        )
    dated = _all_dated(found, path, skipped if skip_bad_lines else None)
    return ChatLog(in_time_order(dated, str(path)), str(path), tuple(skipped), left_out)


class _BrokenFileError(Exception):
    """What is wrong with a file, and on which line: the first, where the one object of the file is not what it should be."""

    def __init__(self, reason: str, line: int = 1) -> None:
        super().__init__(reason)
        self.line = line


def _files(path: Path) -> list[Path]:
    try:
        if path.is_dir():
            return sorted(file for file in path.iterdir() if file.suffix.lower() == ".json" and file.is_file())
        if path.is_file():
            return [path]
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error}") from None
    raise LogError(f"{path}: no such file or folder; name where the JSON files of Oyez are, as in --from oyez:FOLDER")


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _BrokenFileError(f"not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise _BrokenFileError(f"not JSON ({error.msg} at column {error.colno})", error.lineno) from None
    except (ValueError, RecursionError) as error:  # a number too long, lists too deep
        raise _BrokenFileError(f"not JSON ({error})") from None
    except OSError as error:
        raise _BrokenFileError(f"cannot be read ({error.strerror})") from None


def _all_dated(found: list[Conversation], path: Path, skipped: list[BadLine] | None) -> list[Conversation]:
    """All arguments, if all or none have a date; else those that have one, if the others may be skipped."""
    dated = [one for one in found if one.started_at is not None]
    if not dated or len(dated) == len(found):
        return found
    without = [one.conversation_id for one in found if one.started_at is None]
    if skipped is None:
        raise LogError(
            f"{path / (without[0] + '.json')}: no date in its title, while {len(dated)} other arguments have one; "
            "write one there, remove the file, or pass --skip-bad-lines"
        )
    skipped += [BadLine(1, f"{name}.json: no date in its title") for name in without]
    return dated


def _argument(value: Any, name: str) -> Conversation:
    """The argument of a file; one without turns if the file holds no transcript."""
    record = cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
    if record.get("transcript") is None:
        return Conversation(name, ())
    transcript = _object(record["transcript"], '"transcript"')
    title = _text(record.get("title"), '"title"')
    started = _date_of(title)
    turns: list[Turn] = []
    for section in _list(transcript.get("sections"), '"sections"'):
        for raw in _list(_object(section, "a section").get("turns"), '"turns"'):
            turn = _turn(_object(raw, "a turn"), started)
            if turn.text and turns and turn.role != UNKNOWN and turns[-1].speaker == turn.speaker:
                turns[-1] = _merged(turns[-1], turn)
            elif turn.text:
                turns.append(turn)
    known = {"title": title, "case": _text(transcript.get("title"), 'the "title" of the transcript')}
    number = record.get("id")
    extra: dict[str, Any] = {"source": "oyez"} | {key: text for key, text in known.items() if text}
    if isinstance(number, int | str):
        extra["oyez_id"] = whole(str(number))
    return Conversation(whole(name), tuple(turns), started.isoformat() if started else None, extra)


def _turn(raw: Mapping[str, Any], day: date | None) -> Turn:
    speaker = _object(raw.get("speaker"), 'a "speaker"')
    name = _text(speaker.get("name"), 'the "name" of a speaker').strip()
    blocks = (_object(block, "a text block") for block in _list(raw.get("text_blocks"), '"text_blocks"'))
    said = (_spoken(_text(block.get("text"), 'the "text" of a text block')) for block in blocks)
    extra: dict[str, Any] = {key: second for key in ("start", "stop") if (second := _seconds(raw.get(key))) is not None}
    if identifier := _text(speaker.get("identifier"), 'the "identifier" of a speaker'):
        extra["identifier"] = identifier
    role = UNKNOWN if not name or name.casefold().startswith("unknown ") else _role(speaker, day)
    return Turn(name or UNKNOWN_SPEAKER, role, " ".join(filter(None, said)), None, extra)


def _merged(first: Turn, then: Turn) -> Turn:
    """Two turns of one person in a row as one: from the start of the first to the stop of the second."""
    stop = {"stop": then.extra["stop"]} if "stop" in then.extra else {}
    return replace(first, text=f"{first.text}\n{then.text}", extra={**first.extra, **stop})


def _role(speaker: Mapping[str, Any], day: date | None) -> str:
    """Justice for who was one on that day: some had argued before the court they later sat on."""
    at = None if day is None else datetime.combine(day, time(), UTC).timestamp()
    for raw in _list(speaker.get("roles"), 'the "roles" of a speaker'):
        role = _object(raw, "a role")
        if role.get("type") != "scotus_justice":
            continue
        began = role.get("date_start")
        if at is None or not isinstance(began, int | float) or began <= at + _DAY:
            return JUSTICE
    return ADVOCATE


def _spoken(text: str) -> str:
    """A text without stage directions; where one was, one blank is left, or none before a point or a comma."""
    parts = [part.strip() for part in _DIRECTION.split(text)]
    spoken = ""
    for part in filter(None, parts):
        spoken += part if not spoken or part[0] in ".,;:?!" else f" {part}"
    return spoken if re.search(r"\w", spoken) or len(parts) == 1 else ""  # the point after "(Inaudible)" is no turn


def _date_of(title: str) -> date | None:
    for month, day, year in _DATE.findall(title):
        try:
            return date(int(year), _MONTHS.index(month.lower()) + 1, int(day))
        except ValueError:  # there is no such day
            continue
    return None


def _seconds(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LONGEST_TIME
    return float(value) if fits else None


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _BrokenFileError(f"{what} must be an object or null, not {type(value).__name__}")
    return cast("Mapping[str, Any]", value)


def _list(value: Any, what: str) -> Iterator[Any]:
    if value is not None and not isinstance(value, list):
        raise _BrokenFileError(f"{what} must be a list or null, not {type(value).__name__}")
    return iter(cast("list[Any]", value or []))


def _text(value: Any, what: str) -> str:
    if value is not None and not isinstance(value, str):
        raise _BrokenFileError(f"{what} must be text or null, not {type(value).__name__}")
    return whole(value or "")
