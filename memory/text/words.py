"""Word-level text comparison for guards and scores: tokens, stems, content words and shared runs of words.

Words match by stem (Snowball's English stemmer, which leaves other scripts unchanged), so "booked" matches "booking". In
scripts without spaces between words, each character is a word.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache

from usertwin.personas import Pair

#: Characters of scripts without spaces between words.
_SPACELESS = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
#: A word, or a character in scripts without spaces between words.
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+(?:'\w+)*")
_SPACELESS_WORD = re.compile(rf"[{_SPACELESS}]")
#: Words of scikit-learn's stop list that carry content: those that can answer a question, numbers, and names of things.
_CONTENT_WORDS = {
    "no", "not", "none", "never", "nothing", "neither", "nor", "cannot", "cant", "yes", "please", "thanks", "thank",
    "two", "three", "four", "five", "six", "eight", "nine", "ten", "eleven", "twelve", "fifteen", "twenty", "forty", "fifty",
    "sixty", "hundred", "third", "amount", "bill", "bottom", "call", "cry", "describe", "detail", "empty", "fill", "fire",
    "front", "full", "interest", "mill", "move", "name", "serious", "sincere", "system", "thick", "thin", "top",
}  # fmt: skip
#: Contractions that the list lacks.
_CONTRACTIONS = {
    "i'm", "i'd", "i'll", "i've", "it's", "that's", "you're", "don't", "im", "id", "ill", "ive", "its", "thats", "dont",
}  # fmt: skip


def word_tokens(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation; both apostrophe characters are equal."""
    # Case-fold each word: folding the whole text can shift word boundaries ("İ" becomes two characters).
    return [word.casefold() for word in _WORD.findall(text.replace("’", "'"))]


def is_spaceless(word: str) -> bool:
    """Return whether a word is a character of a script without spaces between words."""
    return _SPACELESS_WORD.fullmatch(word) is not None


def spaceless_characters(text: str) -> int:
    """Return the number of characters of scripts without spaces between words; each is a word."""
    return 0 if text.isascii() else len(_SPACELESS_WORD.findall(text))


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of each word, in characters."""
    return [match.span() for match in _WORD.finditer(text.replace("’", "'"))]


def spans_with_stems(text: str, stems: Collection[str]) -> list[tuple[int, int]]:
    """Return (start, end) of each word whose stem is in `stems`, in characters."""
    return [span for span in word_spans(text) if stem(text[slice(*span)].casefold().replace("’", "'")) in stems]


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """Return the stem of a lower-case word."""
    import snowballstemmer

    # A stemmer keeps its word in attributes, so two threads must not share one; making one costs less than a lock.
    return snowballstemmer.stemmer("english").stemWord(word)


def stems(text: str) -> set[str]:
    """Return the stems of a text's words."""
    return {stem(word) for word in word_tokens(text)}


def content_words(words: Iterable[str]) -> list[str]:
    """Return the words without stop words; words of the list that carry content ("no", "bill") are kept."""
    return [word for word in words if word not in _stop_words()]


@lru_cache(maxsize=1)
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return (ENGLISH_STOP_WORDS | _CONTRACTIONS) - _CONTENT_WORDS


def context_and_goal(pair: Pair) -> str:
    """Return the text known before the action: the context and the goal."""
    return "\n".join([*(turn.text for turn in pair.context), pair.goal])


def new_stems(pair: Pair) -> set[str]:
    """Return the stems of the action's content words that occur neither in the context nor in the goal."""
    return {stem(word) for word in content_words(word_tokens(pair.action))} - stems(context_and_goal(pair))


def ngrams(tokens: list[str], length: int) -> set[tuple[str, ...]]:
    """Return the set of n-grams of `length` tokens."""
    return {tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)}


def longest_copied_run(trace: str, action: str, known: str) -> int:
    """Return the length, in words, of the longest run of words in both trace and action that is not in `known`."""
    words = word_tokens(trace)
    in_action, in_known = _run_lengths(words, word_tokens(action)), _run_lengths(words, word_tokens(known))
    return max((length for length, before in zip(in_action, in_known, strict=True) if length > before), default=0)


def _run_lengths(words: list[str], other: list[str]) -> list[int]:
    """Return, for each word, the length of the longest run that ends there and also occurs in `other`."""
    positions: dict[str, list[int]] = {}
    for position, word in enumerate(other):
        positions.setdefault(word, []).append(position)
    lengths: list[int] = []
    run_at: dict[int, int] = {}  # position in `other` -> length of the run that ends at both places
    for word in words:
        run_at = {position: run_at.get(position - 1, 0) + 1 for position in positions.get(word, ())}
        lengths.append(max(run_at.values(), default=0))
    return lengths
