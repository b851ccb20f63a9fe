"""The weights with which an n-gram model of turns is mixed into a model's next-token probabilities, and how they are fitted.

    p(w) = (1 - own[i]) model(w) + own[i] own_words(w)

where i is the length of the n-gram model's longest match. Both are proper distributions, so p is one.

Design: a second layer, of what others in the same log said, added nothing that could be shown (-0.005 bits per character,
-0.011 to +0.002) and would copy other people's turns into each twin's folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import ClassVar

from usertwin.personas.reading import STRICT

#: Tokens that the weights given as prior count for, at each length of match.
PRIOR_TOKENS = 20.0
_ITERATIONS = 40
_SMALLEST = sys.float_info.min


@dataclass(frozen=True, slots=True)
class TokenEvidence:
    """The probabilities of one token of a real turn, and the lengths of the matches before it."""

    model: float
    own: float
    own_match: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WordWeights:
    """Weights by length of the longest match, from 0 on; a longer match has the last weight.

    Attributes:
        own: of the person's own words against the model.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    own: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(0 <= weight < 1 for weight in self.own):
            raise ValueError("a weight of words must be at least 0 and below 1")

    def of_own(self, match: int) -> float:
        """Return the weight of the person's own words after a match of this length."""
        return self.own[min(match, len(self.own) - 1)] if self.own else 0.0

    def mixed(self, token: TokenEvidence) -> float:
        """Return the probability of a token under the mixture."""
        own = self.of_own(token.own_match)
        return (1 - own) * token.model + own * token.own

    def nats(self, tokens: Sequence[TokenEvidence]) -> list[float]:
        """Return the log-probability of each token, in nats; a probability of 0 counts as the smallest number above it."""
        return [log(max(self.mixed(token), _SMALLEST)) for token in tokens]


def fit_weights(tokens: Sequence[TokenEvidence], prior: WordWeights, *, prior_tokens: float = PRIOR_TOKENS) -> WordWeights:
    """Return the weights that make real turns most likely, by expectation maximization.

    Args:
        tokens: of turns that neither the n-gram models nor the later measurement hold.
        prior: weights that are kept where there is no evidence; its lengths are those of the result.
        prior_tokens: the tokens, at each length of match, that the prior counts for.
    """
    weights = prior
    for _ in range(_ITERATIONS if prior.own else 0):
        sums, counts = [0.0] * len(prior.own), [0.0] * len(prior.own)
        for token in tokens:
            place = min(token.own_match, len(prior.own) - 1)
            sums[place] += weights.of_own(token.own_match) * token.own / max(weights.mixed(token), _SMALLEST)
            counts[place] += 1
        weights = WordWeights(own=_posterior(sums, counts, prior.own, prior_tokens))
    return weights


def _posterior(
    sums: Sequence[float], counts: Sequence[float], prior: Sequence[float], prior_tokens: float
) -> tuple[float, ...]:
    rows = zip(sums, counts, prior, strict=True)
    return tuple((total + prior_tokens * before) / (count + prior_tokens) for total, count, before in rows)
