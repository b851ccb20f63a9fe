"""Literal details in a text: e-mail addresses, amounts, times, weekdays, dates, codes and numbers, and what they are about.

Design: one regular expression for each kind, the most specific first, so that the digits of a date are no number. Equal details
have equal values, however they are written: "9 pm" is "21:00", "nine" is "9", and "$1,300.00" is "1300".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from usertwin.memory.text.sentences import sentences
from usertwin.memory.text.words import content_words, stem, word_tokens

Kind = Literal["email", "money", "time", "weekday", "date", "code", "number"]

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = r"(?P<{0}>jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec)(?:uary|ruary|ch|il|e|y|ust|tember|ober|ember)?\.?"
_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
_AMOUNT = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_PATTERN = re.compile(
    rf"""
    (?P<email>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)
    | [$€£]\s?(?P<money>{_AMOUNT})
    | (?P<money_after>{_AMOUNT})\s?(?:[$€£]|(?:dollars?|euros?|pounds?|usd|eur|gbp)\b)
    | \b(?P<hour>\d{{1,2}})(?:[:.](?P<minute>\d\d))?\s?(?P<half>[ap])\.?m\b\.?
    | \b(?P<hour24>\d{{1,2}}):(?P<minute24>\d\d)\b
    | \b(?P<weekday>mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)s?\b
    | \b(?P<iso>\d{{4}}-\d\d-\d\d)\b
    | \b{_MONTH.format("month_first")}\s(?P<day_second>\d{{1,2}})(?:st|nd|rd|th)?\b
    | \b(?P<day_first>\d{{1,2}})(?:st|nd|rd|th)?\s(?:of\s)?{_MONTH.format("month_second")}(?!\w)
    | \b(?P<ordinal>\d{{1,2}})(?:st|nd|rd|th)\b
    | \b(?P<code>(?=[\w-]*\d)(?=[\w-]*[a-z])[\w-]{{4,}})\b
    | \b(?P<number>{_AMOUNT})\b
    | (?<![-'])\b(?P<word>{"|".join(_NUMBERS[2:])})\b(?![-'])
    """,
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """A detail in a text.

    Attributes:
        kind: its kind.
        value: its value as it is compared.
        written: how it is written.
        sentence: the sentence that it is in.
        beside: the stems of the content words next to it in this sentence, at most two.
    """

    kind: Kind
    value: str
    written: str
    sentence: str
    beside: frozenset[str]


@lru_cache(maxsize=4096)
def details(text: str) -> tuple[Detail, ...]:
    """Return the details of a text, in order."""
    return tuple(detail for sentence in sentences(text) for detail in _in_sentence(sentence))


def values(texts: Iterable[str]) -> set[tuple[Kind, str]]:
    """Return the kinds and values of all details in texts."""
    return {(detail.kind, detail.value) for text in texts for detail in details(text)}


def topic_stems(text: str) -> frozenset[str]:
    """Return the stems of a text's content words that are no numbers."""
    return frozenset(stem(word) for word in content(text) if not any(map(str.isdigit, word)))


def content(text: str) -> list[str]:
    """Return the content words of a text; "id" is one here, and no short form of "I would"."""
    tokens = word_tokens(text)
    kept = {*content_words(tokens), "id"}
    return [word for word in tokens if word in kept]


def digits(text: str) -> str:
    """Return the digits of a text."""
    return "".join(filter(str.isdecimal, text))


def _in_sentence(sentence: str) -> list[Detail]:
    found: list[Detail] = []
    words = _PATTERN.sub(lambda match: " " * len(match[0]), sentence)
    for match in _PATTERN.finditer(sentence):
        kind, value = _read(match)
        beside = {*_nearest(words[: match.start()], last=True), *_nearest(words[match.end() :], last=False)}
        written = match[0].strip().rstrip(".")
        found.append(Detail(kind=kind, value=value, written=written, sentence=sentence, beside=frozenset(beside)))
    return found


def _nearest(text: str, *, last: bool) -> list[str]:
    """Return the stem of the content word of a text that is nearest to its end or its start; [] if there is none."""
    words = content(text)
    return [stem(words[-1 if last else 0])] if words else []


def _read(match: re.Match[str]) -> tuple[Kind, str]:
    """Return the kind and the value of a match."""
    part = {name: text for name, text in match.groupdict().items() if text is not None}
    if "email" in part:
        return "email", part["email"].casefold().rstrip(".")
    if money := part.get("money") or part.get("money_after"):
        return "money", _number(money)
    if "hour" in part:
        hour = int(part["hour"]) % 12 + (12 if part["half"].casefold() == "p" else 0)
        return "time", f"{hour}:{part.get('minute', '00')}"
    if "hour24" in part:
        return "time", f"{int(part['hour24'])}:{part['minute24']}"
    if "weekday" in part:
        return "weekday", part["weekday"].casefold()[:3]
    if "iso" in part:
        _, month, day = part["iso"].split("-")
        return "date", f"{int(month)}-{int(day)}"
    if month := part.get("month_first") or part.get("month_second"):
        day = part.get("day_second") or part["day_first"]
        return "date", f"{_MONTHS.index(month.casefold()[:3]) + 1}-{int(day)}"
    if "ordinal" in part:
        return "number", str(int(part["ordinal"]))
    if "code" in part:
        return "code", part["code"].casefold()
    if "word" in part:
        return "number", str(_NUMBERS.index(part["word"].casefold()))
    return "number", _number(part["number"])


def _number(text: str) -> str:
    """Return a number without separators of thousands, and without decimals that are zero."""
    whole, _, decimals = text.replace(",", "").partition(".")
    return f"{whole}.{decimals}" if decimals.strip("0") else whole


def same_value(detail: Detail, other: Detail) -> bool:
    """Return whether two details of a kind agree, also if one is the end of the other, as in "the card that ends in 4711"."""
    if detail.value == other.value:
        return True
    a, b = digits(detail.value), digits(other.value)
    return detail.kind in {"number", "code"} and min(len(a), len(b)) >= 3 and (a in b or b in a)


def comparable(kind: Kind, kinds: Sequence[Kind]) -> bool:
    """Return whether a kind is among others; codes and numbers are alike."""
    return kind in kinds or (kind in {"code", "number"} and bool({"code", "number"} & set(kinds)))
