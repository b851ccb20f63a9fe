"""Whether a person has mentioned their goal: a comparison of words that needs no list of endings or stop words of a language.

Design: English stop words are left out, and in every other language a goal needs more than one word to be mentioned, if it has
more than four. Words match by their start, since languages differ in their endings ("гостиница", "гостиницу"). In scripts
without spaces a word is two neighbouring characters; Korean words lose their last syllable, which is often a particle.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import ceil

from usertwin.personas import Pair

from .words import content_words, is_spaceless, word_tokens

#: The share of a goal's words that mentions it, and the most words that are needed.
_SHARE, _MOST = 0.25, 3
#: From this length on, words may differ in their last letter.
_LONG, _LONG_KOREAN = 5, 3


def mentions_goal(goal: str, texts: Iterable[str]) -> bool:
    """Return whether texts hold a quarter of a goal's words, at least one and at most three; True for a goal without words."""
    wanted = _terms(goal)
    said = [term for text in texts for term in _terms(text)]
    needed = min(_MOST, ceil(_SHARE * len(wanted)))
    return sum(term in said or any(_match(term, other) for other in said) for term in wanted) >= needed


def goal_is_mentioned(pair: Pair, *, with_action: bool) -> bool:
    """Return whether the person has mentioned the goal in the context, or with the action.

    True without a goal, and where the context leaves out earlier turns, which may have mentioned it.
    """
    if not pair.goal or pair.position > len(pair.context):
        return True
    own = [turn.text for turn in pair.context if turn.speaker == pair.speaker]
    return mentions_goal(pair.goal, [*own, pair.action] if with_action else own)


def _terms(text: str) -> list[str]:
    """Return the distinct content words of a text, and in scripts without spaces the pairs of neighbouring characters."""
    words = word_tokens(text)
    terms = [a + b for a, b in pairwise(words) if is_spaceless(a) and is_spaceless(b)]
    terms += [word for word in content_words(words) if len(word) > 1 or word.isdecimal()]
    return list(dict.fromkeys(terms))


def _match(a: str, b: str) -> bool:
    """Return whether two words are forms of one: the shorter one starts the other, but for its last letter if it is long."""
    shorter, longer = sorted((a, b), key=len)
    if not shorter.isalpha() or is_spaceless(longer[0]):
        return shorter == longer
    is_long = len(shorter) >= (_LONG_KOREAN if "가" <= shorter[0] <= "힣" else _LONG)
    start = shorter[:-1] if is_long else shorter
    return longer.startswith(start) and len(longer) <= 2 * len(shorter) + 1
