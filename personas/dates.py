"""Dates and times in logs: their usual forms, under the usual names.

A date is ISO 8601, an e-mail's date, a number of seconds, milliseconds, microseconds or nanoseconds since 1970, or one of
these in MongoDB's extended JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

from .extended_json import plain_value

#: Names of a date, best first, compared without case and punctuation; when something was last changed says least.
DATE_NAMES = (
    "startedat", "starttime", "startdate", "createdat", "createtime", "createddate", "createdtime", "creationtime", "created",
    "sentat", "sent", "timestamp", "timestampms", "datetime", "date", "time", "ts", "postedat", "receivedat", "firstmessageat",
    "updatedat", "updatetime", "lastmessageat", "modifiedat",
)  # fmt: skip
_KNOWN_NAMES = frozenset(DATE_NAMES)
_EPOCH = re.compile(r"[0-9]{9,19}(\.[0-9]*)?")
#: A date and a time in fourteen digits, as databases write them.
_COMPACT = re.compile(r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?:[01][0-9]|2[0-3])(?:[0-5][0-9]){2}")
#: A time on a clock of twelve hours, which the standard library's parser of e-mails would read as one of twenty-four.
_HALF_DAY = re.compile(r"\b(0?[1-9]|1[0-2])(:[0-5][0-9](?::[0-5][0-9])?)\s*([AP])\.?M\.?(?!\w)", re.IGNORECASE)
#: What exports write for a missing date.
_MISSING = {"", "null", "none", "nan", "nat"}
#: Smaller numbers are offsets and durations, not dates: 10**8 seconds is in 1973. Larger ones are in a smaller unit.
_MIN_SECONDS, _MAX_SECONDS = 10**8, 10**11


def read_date(value: object) -> str | None:
    """Return a date as ISO 8601, as it was written if it was so already; None for None. ValueError for any other value."""
    if (value := plain_value(value)) is None:
        return None
    if isinstance(value, str):
        text = value.strip()
        if "-" not in text and _COMPACT.fullmatch(text):
            return _from_compact(text)
        if "-" not in text and _EPOCH.fullmatch(text):
            return _from_epoch(float(text) if "." in text else int(text))
        for parse in (_from_iso, _from_email):
            try:
                return parse(value, text)
            except (ValueError, TypeError, IndexError, OverflowError):
                continue
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return _from_epoch(value)
    raise ValueError("is not a date: neither ISO 8601 nor seconds or milliseconds since 1970")


def is_missing(value: object) -> bool:
    """Return whether a value stands for a date that is not there: null, an empty text, or a word such as "NaT"."""
    return value is None or (isinstance(value, str) and value.strip().casefold() in _MISSING)


def find_date(record: Mapping[str, Any]) -> str | None:
    """Return the date of a record under the best name that it uses; None if no value under such a name is a date."""
    named: dict[str, Any] = {}
    for key, value in record.items():
        if (name := _plain_name(str(key))) in _KNOWN_NAMES:
            named.setdefault(name, value)
    for name in DATE_NAMES if named else ():
        try:
            if name in named and (date := read_date(named[name])) is not None:
                return date
        except ValueError:
            continue
    return None


@lru_cache(maxsize=512)
def _plain_name(key: str) -> str:
    return re.sub(r"[\W_]+", "", key.casefold())


def to_timestamp(time: str | None) -> float | None:
    """Return an ISO 8601 time as seconds since 1970 (UTC if it has no zone). Raises ValueError if it is not ISO 8601."""
    if time is None:
        return None
    parsed = datetime.fromisoformat(time)
    try:
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except OverflowError as error:  # a zone moves it out of the years 1 to 9999
        raise ValueError(str(error)) from None


def _from_iso(written: str, text: str) -> str:
    with suppress(ValueError):  # as nearly all are
        to_timestamp(written)
        return written
    for candidate in (text, text.upper(), text.removesuffix("UTC").rstrip() + "+00:00"):
        try:
            to_timestamp(candidate)
        except ValueError:
            continue
        return candidate
    raise ValueError("is not ISO 8601")


def _from_email(_: str, text: str) -> str:
    parsed = parsedate_to_datetime(_HALF_DAY.sub(_whole_day, text))
    to_timestamp(parsed.isoformat())
    return parsed.isoformat()


def _whole_day(time: re.Match[str]) -> str:
    return f"{int(time[1]) % 12 + 12 * (time[3] in 'Pp'):02d}{time[2]}"


def _from_compact(digits: str) -> str:
    return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC).isoformat()


def _from_epoch(value: float) -> str:
    if isinstance(value, int) and _COMPACT.fullmatch(str(value)):  # in milliseconds it would be after the year 2570
        return _from_compact(str(value))
    for unit in (1, 10**3, 10**6, 10**9):
        if _MIN_SECONDS * unit <= value < _MAX_SECONDS * unit:
            return datetime.fromtimestamp(value / unit, UTC).isoformat()
    raise ValueError("is no time since 1970")
