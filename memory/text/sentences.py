"""Sentences of chat turns: where they end, in several scripts."""

from __future__ import annotations

import re
from itertools import pairwise

from .words import is_spaceless, spaceless_characters, word_tokens

_CLOSERS = r"[\"'”’»)\]）」』*_]*"
#: A mark that ends a sentence, with what closes it: before a space or the end, or in scripts without spaces anywhere.
_END = re.compile(rf"[.?!…؟۔।]+{_CLOSERS}(?=\s|\Z)|[。？！｡]+{_CLOSERS}|\n")
#: Marks after which a sentence goes on.
_OPEN = ",;:-–—(['\"“‘/&+،、，；："


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text, without the space around them."""
    ends = [0, *(match.end() for match in _END.finditer(text)), len(text)]
    parts = (text[start:end].strip() for start, end in pairwise(ends))
    return [part for part in parts if part]


def breaks_off(text: str) -> bool:
    """Return whether a text stops inside a sentence: after a letter, a digit, or a mark after which more follows."""
    last = text.rstrip()[-1:]
    return last.isalnum() or (last != "" and last in _OPEN)


def up_to_last_sentence(text: str) -> str:
    """Return a text up to the end of its last whole sentence; "" if no sentence of at least one word ends in it."""
    ends = [match.end() for match in _END.finditer(text)]
    kept = text[: ends[-1]].rstrip() if ends else ""
    return kept if any(len(word) > 1 or is_spaceless(word) for word in word_tokens(kept)) else ""


def size_in_words(text: str) -> float:
    """Return the number of words; in scripts without spaces four characters count as a word."""
    words, spaceless = len(word_tokens(text)), spaceless_characters(text)
    return words - 0.75 * spaceless if spaceless else words
