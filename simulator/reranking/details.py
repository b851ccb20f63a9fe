"""A remembered answer said again in another conversation: its names, numbers and other details become the present ones.

Design: an answer with a false detail is worse than none, so in doubt there is no quote. An answer is said again only if each of
its words is one that the person uses in many conversations, or is part of the present one, and if it is clear what each detail
becomes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import ceil

from usertwin.memory.text.words import content_words, word_tokens
from usertwin.personas import Pair

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
_ORDINAL = r"\d{1,2}(?:st|nd|rd|th)?"
_NUMBER_WORD = r"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred)\b"
#: What is tried at a place, in this order. A name is a capitalized word inside a sentence, or several in a row.
_KINDS = {
    "email": r"(?<![\w.+-])[\w.+-]++@[\w-]+(?:\.[\w-]+)+",
    "url": r"https?://\S+|www\.\S+",
    "time": r"\d{1,2}(?::\d\d)?\s?[ap]\.?m\b\.?|\d{1,2}:\d\d\b",
    "date": rf"{_MONTH}\s{_ORDINAL}\b|{_ORDINAL}(?:\sof)?\s{_MONTH}(?!\w)|\d{{4}}-\d\d-\d\d\b",
    "day": r"(?:mon|tues|wednes|thurs|fri|satur|sun)day\b",
    "money": r"[$€£¥]\s?\d+(?:[.,]\d+)*|\d+(?:[.,]\d+)*\s?(?:dollars?|euros?|pounds?|bucks)\b",
    "code": r"(?=[a-z]*\d)(?=\d*[a-z])[a-z\d]{4,}\b",
    "digits": r"\d[\d -]{4,}\d\b",
    "number": rf"\d+(?:[.,]\d+)*\b|{_NUMBER_WORD}",
}
_NAME = r"(?<=[\w,;:] )(?!I[’'])(?-i:[A-ZÀ-ÖØ-Þ][\w’'-]*[a-zß-öø-ÿ][\w’'-]*)(?: (?!I\b)(?-i:[A-ZÀ-ÖØ-Þ][\w’'-]*))*"
_DETAIL = re.compile(
    rf"(?<!\w)(?:{'|'.join(f'(?P<{kind}>{pattern})' for kind, pattern in _KINDS.items())})|(?P<name>{_NAME})", re.IGNORECASE
)
#: Kinds whose details stand for each other only if they have the same shape, such as two letters and six digits.
_SHAPED = ("code", "digits", "number")
#: A word is the person's own from this number of conversations and this share of them. A longer answer is about something.
_MIN_CONVERSATIONS, _MIN_SHARE, _MAX_CHARACTERS = 3, 0.01, 400


@dataclass(frozen=True, slots=True)
class Detail:
    """A detail of a text: its kind, its text, and where it begins."""

    kind: str
    text: str
    start: int

    @property
    def key(self) -> tuple[str, str]:
        """What equal details have in common."""
        return self.kind, self.text.casefold()


def details_of(text: str) -> list[Detail]:
    """Return the names, numbers, times and addresses in a text, in order.

    >>> [(detail.kind, detail.text) for detail in details_of("a table for 4 at 7 pm, for Anna")]
    [('number', '4'), ('time', '7 pm'), ('name', 'Anna')]
    """
    return [Detail(match.lastgroup or "", match[0], match.start()) for match in _DETAIL.finditer(text)]


def usual_words(pairs: Iterable[Pair]) -> frozenset[str]:
    """Return the words, in small letters, that a person uses in many conversations."""
    told = {(pair.conversation_id, word) for pair in pairs for word in word_tokens(pair.action)}
    counts = Counter(word for _, word in told)
    least = max(_MIN_CONVERSATIONS, ceil(_MIN_SHARE * len({conversation for conversation, _ in told})))
    return frozenset(word for word, count in counts.items() if count >= least)


def said_again(source: Pair, query: Pair, usual: Collection[str]) -> str | None:
    """Return a remembered answer with the details of the present conversation; None in doubt.

    A detail of the present goal or chat stays. A missing one becomes the only one of its kind in the present goal that the
    person has not told yet.

    Args:
        source: the remembered pair.
        query: the present goal and chat; its action is ignored.
        usual: the person's usual words, see `usual_words`.
    """
    action = source.action
    if not action or len(action) > _MAX_CHARACTERS:
        return None
    turns = [turn.text for turn in query.context]
    here = {word for text in (query.goal, *turns) for word in word_tokens(text)}
    present = {detail.key for text in (query.goal, *turns) for detail in details_of(text)}
    told = {d.key for turn in query.context if turn.speaker == query.speaker for d in details_of(turn.text)}
    fresh = [d for d in details_of(query.goal) if d.key not in told]
    tied = {*content_words(word_tokens(source.goal))} - here
    own = {*usual} - tied
    replaced, rest, end, parts = dict[tuple[str, str], str](), list[str](), 0, list[str]()
    for detail in details_of(action):
        if detail.kind == "name" and {*word_tokens(detail.text)} <= own:  # a capitalized word, such as "Thanks"
            continue
        rest.append(action[end : detail.start])
        text = detail.text
        if detail.key not in present and not (detail.kind == "name" and {*word_tokens(text)} <= here):
            choices = {d.text for d in fresh if d.kind == detail.kind and _shape(d) == _shape(detail)}
            if len(choices) != 1 or any(kind == detail.kind and key != detail.key[1] for kind, key in replaced):
                return None
            text = replaced[detail.key] = choices.pop()
        parts += [action[end : detail.start], text]
        end = detail.start + len(detail.text)
    rest.append(action[end:])
    words = {word for part in rest for word in word_tokens(part)} - here
    return None if words - own else "".join([*parts, action[end:]])


def _shape(detail: Detail) -> str:
    if detail.kind not in _SHAPED:
        return ""
    if detail.kind == "number":
        return "digit" if detail.text[0].isdigit() else "word"
    return re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "0", detail.text.casefold()))
