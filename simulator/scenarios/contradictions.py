"""Whether a turn contradicts the goal or a fact: another number, date, time, address or name where theirs has one.

Design: a detail in a turn contradicts only if it is new (the goal, the facts and the agent have not mentioned it), stands where
the goal's or the fact's own detail belongs (beside the same word, or in answer to a question for it), and the right one is not
in the turn. People change their minds in words ("rather Friday"), so such a sentence does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

from usertwin.memory.text.goal_words import mentions_goal
from usertwin.memory.text.sentences import sentences
from usertwin.memory.text.words import content_words, stem, word_tokens

from .facts import Fact
from .literals import Detail, Kind, comparable, details, digits, same_value, topic_stems, values

#: Words with which people say what is not so or offer a choice; change their mind; or speak of other days and times.
_DENIED = re.compile(
    r"\b(?:not|no|isn't|wasn't|or|if|maybe|perhaps|wrong|old|previous|forgot|forget|guess|think|other|another|different|instead"
    r"|actually|change[ds]?|changing|joke|kidding)\b|n't\b",
    re.IGNORECASE,
)
_CHANGED = re.compile(r"\b(?:rather|else|won't|never ?mind|anyway|how about|what about|sorry)\b", re.IGNORECASE)
_MOVED = re.compile(
    r"\b(?:could|later|earlier|before|after|last|next|new|try|also|any|anytime|then)\b|^(?:\W*\w+){1,5}\?", re.IGNORECASE
)
#: Words of an agent that refuses, offers a choice, or has finished, after which a person may want something else.
_REOPENS = re.compile(
    r"\b(?:sorry|unfortunately|apologi[sz]e|unable|not able|cannot|can't|couldn't|unavailable|not available|too \w+"
    r"|no \w+(?: \w+)? available|another|different|other|alternative\w*|instead|anything else|something else|is now"
    r"|has been|have been|all done|all set|booked|reserved|scheduled|confirmed|submitted|correct)\b",
    re.IGNORECASE,
)
#: A sentence of a goal whose details the person need not keep to.
_LOOSE = re.compile(
    r"\b(?:today(?: is|'s)|it is now|current(?:ly)?|e\.g|for example|for instance|such as|or|if|ideally|prefer\w*|flexible"
    r"|also|maybe|perhaps|about|around|at least|at most|up to|between|usually|other|another|not)\b|n't\b",
    re.IGNORECASE,
)
#: A word that is no name, and would stand where a name is expected.
_NO_NAMES = {
    "yes",
    "no",
    "yeah",
    "yep",
    "yup",
    "nope",
    "ok",
    "okay",
    "sure",
    "correct",
    "right",
    "hi",
    "hello",
    "hey",
    "thanks",
}
_CLAUSE = re.compile(r"[,;]\s|\b(?:but|though|because)\b", re.IGNORECASE)
#: Ways to say one's name, and an answer that is nothing but a name.
_CAPITALIZED = r"((?:[A-Z][\w'-]+)(?: [A-Z][\w'-]+){0,2})"
_SAYS_NAME = re.compile(
    rf"(?i:\b(?:my (?:full |first |last )?name is|my name's|(?:this|it) is|it's|its|i am|i'm|name:)) {_CAPITALIZED}"
)
_ONLY_NAME = re.compile(rf"\W*{_CAPITALIZED}\W*")
_NAME = re.compile(r"[^\W\d_][\w'.-]*(?: [^\W\d_][\w'.-]*){0,3}")
#: A fact or a request that is about the person's own name.
_OWN_NAME = re.compile(
    r"\b(?:your (?:full |first |last |own |legal )*names?|you are|you're|who am i|who do i)\b", re.IGNORECASE
)
#: The share of equal letters from which on two names are one.
_SAME_NAME = 0.75
#: Stems of words around an answer.
_FILLERS = frozenset({"yes", "yeah", "sure", "ok", "okay", "pleas", "hi", "hello", "hey", "thank", "well", "oh", "number"})
#: Characters of a number that counts something; longer ones are names of things, such as orders.
_SHORT_NUMBER = 2
#: Kinds of which a goal has one of its own, so that a new one contradicts it beside any word.
_SINGULAR: frozenset[Kind] = frozenset({"email", "weekday", "time", "date"})


def says_value(fact: Fact, text: str) -> bool:
    """Return whether a text holds the value of a fact; without a value, most of its distinctive words."""
    if not fact.value:
        wanted = {stem(word) for word in content_words(word_tokens(fact.text)) if len(word) > 1}
        said = {stem(word) for word in word_tokens(text)}
        return len(wanted) > 2 and len(wanted & said) >= 0.75 * len(wanted)
    own = details(fact.value)
    if len(own) == 1 and own[0].written == fact.value.strip():
        number = digits(fact.value)
        if own[0].kind in {"number", "code"} and len(number) >= 4 and number in digits(text):
            return True
        is_short = own[0].kind == "number" and len(number) < 3
        return any(
            detail.kind == own[0].kind
            and detail.value == own[0].value
            and (not is_short or bool(detail.beside & topic_stems(fact.topic)))
            for detail in details(text)
        )
    return re.search(rf"(?<!\w){re.escape(fact.value)}(?!\w)", text, re.IGNORECASE) is not None


def contradicted_fact(fact: Fact, text: str, asked: Sequence[str], known: Iterable[str]) -> str:
    """Return what a turn says where a fact says otherwise; "" if it does not contradict it.

    `asked` are the requests that the turn answers, and `known` the texts that the person may have a detail from.
    """
    if not fact.value or says_value(fact, text):
        return ""
    is_asked = len(asked) == 1 and mentions_goal(fact.topic, asked)
    own = details(fact.value)
    if not own:
        return _other_name(fact, text, asked)
    kinds: list[Kind] = [detail.kind for detail in own]
    familiar, topic = values(known), topic_stems(fact.topic)
    for clause in (clause for sentence in sentences(text) for clause in _CLAUSE.split(sentence)):
        if _DENIED.search(clause):
            continue
        for detail in details(clause):
            if not comparable(detail.kind, kinds) or (detail.kind, detail.value) in familiar:
                continue
            if any(same_value(detail, mine) for mine in own) or not _alike(detail, own):
                continue
            before = topic_stems(clause[: clause.find(detail.written)])
            if detail.beside & topic or (is_asked and not before - _FILLERS - topic):
                return detail.written
    return ""


def contradicted_goal(goal: str, text: str, latest: Sequence[str], known: Iterable[str]) -> tuple[str, str] | None:
    """Return what a turn says and what the goal says in its place; None if it does not contradict the goal.

    `latest` are the texts that the turn answers, and `known` those that the person may have a detail from.
    """
    if any(_REOPENS.search(answered) for answered in latest):
        return None
    own, familiar = [detail for detail in details(goal) if not _LOOSE.search(detail.sentence)], values(known)
    for sentence in sentences(text):
        said = () if _DENIED.search(sentence) or _CHANGED.search(sentence) else details(sentence)
        about = topic_stems(" ".join([sentence, *latest]))
        for detail in said:
            if (detail.kind, detail.value) in familiar or any(same_value(detail, mine) for mine in own):
                continue
            if detail.kind in _SINGULAR and _MOVED.search(sentence):
                continue
            for mine in own:
                if mine.kind != detail.kind or not _alike(detail, [mine]) or any(same_value(mine, one) for one in said):
                    continue
                is_only = mine.kind in _SINGULAR and sum(other.kind == mine.kind for other in own) == 1
                if detail.beside & mine.beside or (is_only and about & topic_stems(mine.sentence)):
                    return detail.written, mine.written
    return None


def _alike(detail: Detail, own: Sequence[Detail]) -> bool:
    """Return whether a detail may stand for one of `own`: long numbers and short ones are of different things."""
    if detail.kind not in {"number", "code"}:
        return True
    return any((len(mine.value) > _SHORT_NUMBER) == (len(detail.value) > _SHORT_NUMBER) for mine in own)


def _other_name(fact: Fact, text: str, asked: Sequence[str]) -> str:
    """Return the name that a turn says where a fact has another; "" if there is none."""
    if not re.search(r"\bnames?\b|\byou are\b|\byou're\b", fact.topic, re.IGNORECASE) or not _NAME.fullmatch(fact.value):
        return ""
    is_own = _OWN_NAME.search(fact.topic) is not None
    is_asked = bool(asked) and all(
        _OWN_NAME.search(request) if is_own else topic_stems(fact.topic) <= topic_stems(request) for request in asked
    )
    match = _SAYS_NAME.search(text) if is_own else None
    if match is not None and not is_asked and "name" not in match[0].casefold():
        is_full = " " in match[1] and match[0].casefold().startswith("i")  # not "I am Sorry", nor "It is North Hill"
        match = match if is_full and not match[0].casefold().startswith("it") else None
    match = match or (_ONLY_NAME.fullmatch(text) if is_asked else None)
    said, own = word_tokens(match[1]) if match else [], word_tokens(fact.value)
    if match is None or not content_words(said) or _NO_NAMES & {*said}:
        return ""
    return "" if any(_same_name(a, b) for a in said for b in own) else match[1]


def _same_name(a: str, b: str) -> bool:
    """Return whether two names are one: a short form, or nearly the same letters."""
    return a.startswith(b) or b.startswith(a) or SequenceMatcher(None, a, b, autojunk=False).ratio() >= _SAME_NAME
