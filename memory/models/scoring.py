"""The scorer protocol: log-probabilities of continuations of plain text; and a fake for tests.

Design: prompt and continuation are tokenized separately and then concatenated. So a continuation has the same tokens after
every prompt, and differences between prompts are paired token by token.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, log
from typing import Literal, Protocol, runtime_checkable

#: The data type of weights and activations; bfloat16 is about twice as fast on CPUs with bfloat16 instructions.
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The log-probability of a continuation given its prompt, in nats (at most 0), in total and for each token.

    `token_ends` holds the end of each token in the continuation, in characters.
    """

    nats: float
    tokens: int
    token_nats: tuple[float, ...] = ()
    token_ends: tuple[int, ...] = ()

    @property
    def bits(self) -> float:
        """The negative log-probability in bits (at least 0)."""
        return -self.nats / log(2)


class Scorer(Protocol):
    """Scores continuations of plain text; `name` identifies the model."""

    @property
    def name(self) -> str:
        """The name of the model."""
        ...

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Return the likelihood of each continuation given its prompt, in the order of the (prompt, continuation) items."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """Splits the text of completions into tokens."""

    @property
    def vocabulary_size(self) -> int:
        """The number of token ids."""
        ...

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, read as plain text, without tokens at its ends."""
        ...


class TokenScorer(Scorer, Tokenizer, Protocol):
    """A scorer whose `Likelihood.token_nats` are those of the tokens of `tokenize`."""


class FakeScorer:
    """A word model for tests and demos: words that occur in the prompt are likely, others are not. Needs no weights."""

    name = "fake:"
    vocabulary_size = 2000

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`."""
        likelihoods: list[Likelihood] = []
        for prompt, continuation in items:
            prompt_words = set(prompt.casefold().split())
            words = list(re.finditer(r"\S+", continuation))
            nats = [-log(20 if word[0].casefold() in prompt_words else 2000) for word in words]
            likelihoods.append(Likelihood(fsum(nats), max(1, len(nats)), tuple(nats), tuple(word.end() for word in words)))
        return likelihoods

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer.tokenize`."""
        return [[zlib.crc32(word.encode()) % self.vocabulary_size for word in re.findall(r"\S+", text)] for text in texts]
