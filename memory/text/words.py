"""Words of a text, as guards and scores compare them: tokens, stems, content words, what is new in an action.

The one design choice: two words are one if they have the same stem (Snowball's English stemmer, which leaves other scripts as
they are), so that "booked" is told by "booking"; in scripts without spaces between words a character counts as a word.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any

from usertwin.personas import Pair

#: A word; in scripts that put no spaces between words, a character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+(?:'\w+)*")
#: Words that say little in a list of stop words, and everything in an answer.
_TELLING = {"no", "not", "none", "never", "nothing", "neither", "nor", "cannot", "cant", "yes", "please", "thanks", "thank"}
#: Words that others attach to every text; sklearn's list knows only whole words, not these clippings of them.
_CLIPPED = {"i'm", "i'd", "i'll", "i've", "it's", "that's", "you're", "don't", "im", "id", "ill", "ive", "its", "thats", "dont"}


def word_tokens(text: str) -> list[str]:
    """The words of a text, lower case, without punctuation; both apostrophes are one."""
    # Folded word by word: folding a whole text can change where its words begin ("İ" becomes two characters).
    return [word.casefold() for word in _WORD.findall(text.replace("’", "'"))]


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words of a text stand: (start, end), in characters."""
    return [match.span() for match in _WORD.finditer(text.replace("’", "'"))]


def spans_with_stems(text: str, wanted: Collection[str]) -> list[tuple[int, int]]:
    """Where the words of a text stand whose stem is one of those wanted: (start, end), in characters."""
    spans = word_spans(text)
    return [span for span in spans if stem(text[slice(*span)].casefold().replace("’", "'")) in wanted]


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The stem of a word in lower case."""
    return _stemmer().stemWord(word)


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer("english")


def stems(text: str) -> set[str]:
    """The stems of a text's words."""
    return {stem(word) for word in word_tokens(text)}


def content_words(words: Iterable[str]) -> list[str]:
    """The words that carry content: no stop words, except those that answer a question."""
    dull = _dull()
    return [word for word in words if word not in dull]


@lru_cache(maxsize=1)
def _dull() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return (ENGLISH_STOP_WORDS | _CLIPPED) - _TELLING


def context_and_goal(pair: Pair) -> str:
    """What could honestly be known before the action: the context and the goal."""
    return "\n".join([*(turn.text for turn in pair.context), pair.goal])


def new_stems(pair: Pair) -> set[str]:
    """The stems of the action's content words that neither context nor goal have."""
    return {stem(word) for word in content_words(word_tokens(pair.action))} - stems(context_and_goal(pair))


def ngrams(tokens: list[str], length: int) -> set[tuple[str, ...]]:
    """Every run of so many tokens."""
    return {tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)}


def longest_copied_run(trace: str, action: str, known: str) -> int:
    """The length in words of the longest run that trace and action share and that `known` does not have."""
    told = word_tokens(trace)
    shared, old = _ending_runs(told, word_tokens(action)), _ending_runs(told, word_tokens(known))
    return max((length for length, before in zip(shared, old, strict=True) if length > before), default=0)


def _ending_runs(told: list[str], other: list[str]) -> list[int]:
    """For each token told, the length of the longest run ending there that the other tokens have too."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(other):
        places.setdefault(word, []).append(place)
    found: list[int] = []
    ends: dict[int, int] = {}
    for word in told:
        ends = {place: ends.get(place - 1, 0) + 1 for place in places.get(word, ())}
        found.append(max(ends.values(), default=0))
    return found
