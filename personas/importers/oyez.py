"""Importer of US Supreme Court oral arguments in the public JSON of Oyez, one file for each argument.

A file holds the response of `https://api.oyez.org/case_media/oral_argument_audio/ID`, as public mirrors keep it. The roles are
"justice" and "advocate". Stage directions of the transcribers ("[Laughter]", "(Inaudible)") are removed; all other text is
verbatim.
"""

from __future__ import annotations

import json
import os.path
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, time
from math import inf
from pathlib import Path
from typing import Any, TypeVar, cast

from usertwin.personas.chat_log import BadLine, ChatLog, sort_by_time
from usertwin.personas.conversation import Conversation, Turn, replace_lone_surrogates
from usertwin.personas.errors import LogError

T = TypeVar("T")
#: The roles of speakers. Turns of unknown speakers are never merged.
JUSTICE, ADVOCATE, UNKNOWN = "justice", "advocate", "unknown"
UNKNOWN_SPEAKER = "Unknown Speaker"

_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_DATE = re.compile(rf"\b({'|'.join(_MONTHS)})\s+(\d{{1,2}}),?\s+(\d{{4}})\b", re.IGNORECASE)
#: Stage directions. Only these words: other brackets hold spoken text, such as "(a)" or "(recess appointments)".
_STAGE_DIRECTION = re.compile(
    r"[\[({]\s{0,3}(?:"
    r"inau(?:d|id)\w{0,20}|(?:general |more )?l(?:au|ua)gh\w{0,20}|voices? overlap\w{0,20}|overlapping voices|cross[ -]?talk"
    r"|(?:lunch |luncheon |short |brief )?recess|lunch|luncheon|cough\w{0,20}|applause|noise|audio cut|no audio|pause"
    r")[\s.,;:!?-]{0,5}[\])}]",
    re.IGNORECASE,
)
_MAX_SECONDS = 10.0**9  # larger values are not times
_DAY_SECONDS = 86_400


def read_oyez(path: str | Path, *, skip_bad_lines: bool = False) -> ChatLog:
    """Return the arguments of an Oyez file, or of a folder of them, by date and then by file name.

    Files without a transcript (cases, summaries, unavailable arguments) are dropped and counted in
    `ChatLog.files_without_turns`. The file's stem is the conversation id. Titles, times and identifiers are kept as extra keys.
    "~" in the path is the home folder. With `skip_bad_lines`, malformed files are skipped and listed in `ChatLog.skipped`.

    Raises:
        LogError: the folder is missing or has no argument, or a file is malformed; the message names it and the way out.
    """
    path = Path(os.path.expanduser(path))
    conversations: list[Conversation] = []
    skipped: list[BadLine] = []
    without_turns = 0
    for file in _files(path):
        try:
            conversation = _argument(_read(file), file.stem)
        except _MalformedFileError as error:
            if not skip_bad_lines:
                raise LogError(f"{file}:{error.line}: {error}; fix or remove the file, or pass --skip-bad-lines") from None
            skipped.append(BadLine(error.line, f"{file.name}: {error}"))
            continue
        if conversation.turns:
            conversations.append(conversation)
        else:
            without_turns += 1
    if not conversations:
        unread = f"; {len(skipped)} malformed files were skipped" if skipped else ""
        raise LogError(
            f"{path}: no argument with a transcript ({without_turns} files without one{unread}); "
            'name a folder of JSON files that have a "transcript", the oral_argument_audio responses of api.oyez.org'
        )
    undated = [conversation.conversation_id for conversation in conversations if conversation.started_at is None]
    if 0 < len(undated) < len(conversations):
        if not skip_bad_lines:
            raise LogError(
                f"{path / (undated[0] + '.json')}: no date in its title, while {len(conversations) - len(undated)} other "
                "arguments have one; add a date, remove the file, or pass --skip-bad-lines"
            )
        skipped += [BadLine(1, f"{name}.json: no date in its title") for name in undated]
        conversations = [conversation for conversation in conversations if conversation.started_at is not None]
    return ChatLog(sort_by_time(conversations, str(path)), str(path), tuple(skipped), without_turns)


class _MalformedFileError(Exception):
    """A malformed file: the reason, and the line (1 for a fault of the object's structure)."""

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
    raise LogError(f"{path}: no such file or folder; name the folder of the Oyez JSON files, as in --from oyez:FOLDER")


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _MalformedFileError(f"not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise _MalformedFileError(f"not JSON ({error.msg} at column {error.colno})", error.lineno) from None
    except (ValueError, RecursionError) as error:  # a number is too long, or lists are nested too deeply
        raise _MalformedFileError(f"not JSON ({error})") from None
    except OSError as error:
        raise _MalformedFileError(f"cannot be read ({error.strerror})") from None


def _argument(value: Any, name: str) -> Conversation:
    """Return the argument in a file's JSON; it has no turns if the file has no transcript."""
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
                turns[-1] = _merge(turns[-1], turn)
            elif turn.text:
                turns.append(turn)
    titles = {"title": title, "case": _text(transcript.get("title"), 'the "title" of the transcript')}
    number = record.get("id")
    extra: dict[str, Any] = {"source": "oyez"} | {key: text for key, text in titles.items() if text}
    if isinstance(number, int | str):
        extra["oyez_id"] = replace_lone_surrogates(str(number))
    return Conversation(replace_lone_surrogates(name), tuple(turns), started.isoformat() if started else None, extra)


def _turn(raw: Mapping[str, Any], day: date | None) -> Turn:
    speaker = _object(raw.get("speaker"), 'a "speaker"')
    name = _text(speaker.get("name"), 'the "name" of a speaker').strip()
    blocks = (_object(block, "a text block") for block in _list(raw.get("text_blocks"), '"text_blocks"'))
    texts = (_spoken_text(_text(block.get("text"), 'the "text" of a text block')) for block in blocks)
    extra: dict[str, Any] = {key: seconds for key in ("start", "stop") if (seconds := _seconds(raw.get(key))) is not None}
    if identifier := _text(speaker.get("identifier"), 'the "identifier" of a speaker'):
        extra["identifier"] = identifier
    role = UNKNOWN if not name or name.casefold().startswith("unknown ") else _role(speaker, day)
    return Turn(name or UNKNOWN_SPEAKER, role, " ".join(filter(None, texts)), time=None, extra=extra)


def _merge(first: Turn, second: Turn) -> Turn:
    """Return two consecutive turns of one speaker as one, from the start of the first to the stop of the second."""
    stop = {"stop": second.extra["stop"]} if "stop" in second.extra else {}
    return replace(first, text=f"{first.text}\n{second.text}", extra={**first.extra, **stop})


def _role(speaker: Mapping[str, Any], day: date | None) -> str:
    """Return JUSTICE if the speaker was one on that day: some had argued before the court they later joined."""
    end = inf if day is None else datetime.combine(day, time(), UTC).timestamp() + _DAY_SECONDS
    roles = (_object(raw, "a role") for raw in _list(speaker.get("roles"), 'the "roles" of a speaker'))
    starts = (role.get("date_start") for role in roles if role.get("type") == "scotus_justice")
    return JUSTICE if any(not isinstance(start, int | float) or start <= end for start in starts) else ADVOCATE


def _spoken_text(text: str) -> str:
    """Return the text without stage directions; each becomes one space, or nothing before punctuation."""
    parts = [part.strip() for part in _STAGE_DIRECTION.split(text)]
    spoken = ""
    for part in filter(None, parts):
        spoken += part if not spoken or part[0] in ".,;:?!" else f" {part}"
    return spoken if re.search(r"\w", spoken) or len(parts) == 1 else ""  # the period after "(Inaudible)" is not a turn


def _date_of(title: str) -> date | None:
    for month, day, year in _DATE.findall(title):
        with suppress(ValueError):  # not a calendar day
            return date(int(year), _MONTHS.index(month.lower()) + 1, int(day))
    return None


def _seconds(value: Any) -> float | None:
    valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MAX_SECONDS
    return float(value) if valid else None


def _object(value: Any, what: str) -> Mapping[str, Any]:
    return _checked(value, dict[str, Any](), "an object", what)


def _list(value: Any, what: str) -> list[Any]:
    return _checked(value, list[Any](), "a list", what)


def _text(value: Any, what: str) -> str:
    return replace_lone_surrogates(_checked(value, "", "text", what))


def _checked(value: Any, empty: T, noun: str, what: str) -> T:
    """Return a JSON value of the type of `empty`, or `empty` for null."""
    if value is None:
        return empty
    if not isinstance(value, type(empty)):
        raise _MalformedFileError(f"{what} must be {noun} or null, not {type(value).__name__}")
    return value
