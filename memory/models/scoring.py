"""How likely a text is under a model: the protocol, a transformers model behind it, and a cache on disk.

The one design choice: a scorer continues plain text, token by token, and prompt and continuation are tokenized apart and
then joined, so that the same continuation is the same tokens whatever stands before it and differences are paired exactly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, log
from typing import Literal, Protocol

#: How finely a model's numbers are kept: "bfloat16" is about twice as fast on processors that can reckon with it.
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a continuation was.

    Attributes:
        nats: its log-probability (at most 0).
        tokens: over how many tokens.
        each: the log-probability of each token, in nats.
        ends: where in the continuation each token ends, in characters.
    """

    nats: float
    tokens: int
    token_nats: tuple[float, ...] = ()
    token_ends: tuple[int, ...] = ()

    @property
    def bits(self) -> float:
        """The cost of the continuation in bits (at least 0)."""
        return -self.nats / log(2)


class Scorer(Protocol):
    """Scores continuations of plain text. `name` says which model does it."""

    @property
    def name(self) -> str:
        """Which model scores."""
        ...

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """The likelihood of each continuation given its prompt, in the order of the (prompt, continuation) items."""
        ...


class FakeScorer:
    """A model of words: one that stands in the prompt is likely, any other is not. For tests and trials; needs no weights."""

    name = "fake:"

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`."""
        found: list[Likelihood] = []
        for prompt, continuation in items:
            known = set(prompt.casefold().split())
            words = list(re.finditer(r"\S+", continuation))
            each = [-log(20 if word[0].casefold() in known else 2000) for word in words]
            found.append(Likelihood(fsum(each), max(1, len(each)), tuple(each), tuple(word.end() for word in words)))
        return found
