"""A remembered answer said in another conversation: its names, numbers and other details replaced by the present ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from usertwin.personas import Pair

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
_ORDINAL = r"\d{1,2}(?:st|nd|rd|th)?"
#: What is tried at a place, in this order. A name is a capitalized word inside a sentence, or several in a row.
_KINDS = {
    "address": r"[\w.+-]+@[\w-]+\.[\w.-]*\w|https?://\S+|www\.\S+",
    "time": r"\d{1,2}(?::\d\d)?\s?[ap]\.?m\b\.?|\d{1,2}:\d\d\b",
    "date": rf"{_MONTH}\s{_ORDINAL}\b|{_ORDINAL}(?:\sof)?\s{_MONTH}(?!\w)|\d{{4}}-\d\d-\d\d\b",
    "day": r"(?:mon|tues|wednes|thurs|fri|satur|sun)day\b",
    "money": r"[$€£¥]\s?\d+(?:[.,]\d+)*|\d+(?:[.,]\d+)*\s?(?:dollars?|euros?|pounds?|bucks)\b",
    "code": r"(?=[a-z]*\d)(?=\d*[a-z])[a-z\d]{4,}\b",
    "digits": r"\d[\d -]{4,}\d\b",
    "number": r"\d+(?:[.,]\d+)*\b",
}
_NAME = r"(?<=[\w,;:] )(?!I[’'])(?-i:[A-ZÀ-ÖØ-Þ][\w’'-]*[a-zß-öø-ÿ][\w’'-]*)(?: (?!I\b)(?-i:[A-ZÀ-ÖØ-Þ][\w’'-]*))*"
_DETAIL = re.compile(
    rf"(?<!\w)(?:{'|'.join(f'(?P<{kind}>{pattern})' for kind, pattern in _KINDS.items())})|(?P<name>{_NAME})", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Detail:
    """A detail of a text."""

    kind: str
    text: str
    start: int


def details_of(text: str) -> list[Detail]:
    """Return the names, numbers, times and addresses in a text, in order.

    >>> [(detail.kind, detail.text) for detail in details_of("a table for 4 at 7 pm, for Anna")]
    [('number', '4'), ('time', '7 pm'), ('name', 'Anna')]
    """
    return [Detail(match.lastgroup or "", match[0], match.start()) for match in _DETAIL.finditer(text)]


def said_again(action: str, query: Pair, habits: Collection[str] = ()) -> str | None:
    """Return a remembered answer with the details of the present conversation; None if it needs one that is not there.

    A detail that is part of the present goal or chat stays. Any other one becomes the next of its kind in the goal, or else in
    the latest turn of the other side, that the person has not told yet.

    Args:
        action: the remembered answer.
        query: the present goal and chat; its action is ignored.
        habits: details, in small letters, that the person gives in any conversation; they stay.
    """
    present = "\n".join([query.goal, *(turn.text for turn in query.context)]).casefold()
    told = "\n".join(turn.text for turn in query.context if turn.speaker == query.speaker).casefold()
    asked = [turn.text for turn in query.context if turn.speaker != query.speaker][-1:]
    fresh = [detail for text in (query.goal, *asked) for detail in details_of(text) if detail.text.casefold() not in told]
    replaced, end, parts = dict[str, str](), 0, list[str]()
    for detail in details_of(action):
        key = detail.text.casefold()
        if key in habits or _holds(present, key):
            continue
        if key not in replaced:
            usable = [other for other in fresh if other.kind == detail.kind and other.text not in replaced.values()]
            if not usable:
                return None
            replaced[key] = usable[0].text
        parts += [action[end : detail.start], replaced[key]]
        end = detail.start + len(detail.text)
    return "".join([*parts, action[end:]])


def habitual_details(answers: Iterable[Pair]) -> frozenset[str]:
    """Return the details, in small letters, that the person gives in answers of at least two conversations."""
    told = {(pair.conversation_id, detail.text.casefold()) for pair in answers for detail in details_of(pair.action)}
    counts = Counter(detail for _, detail in told)
    return frozenset(detail for detail, count in counts.items() if count > 1)


def _holds(text: str, detail: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(detail)}(?!\w)", text) is not None
