"""The weights with which n-gram models of turns are mixed into a model's next-token probabilities, and how they are fitted.

    q(w) = (1 - own[i]) model(w) + own[i] own_words(w)
    p(w) = (1 - others[j]) q(w)  + others[j] others_words(w)

where i and j are the lengths of the longest matches of the two n-gram models. Both are proper distributions, so p is one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
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
    _: KW_ONLY
    others: float = 0.0
    others_match: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WordWeights:
    """Weights by length of the longest match, from 0 on; a longer match has the last weight.

    Attributes:
        own: of the person's own words against the model.
        others: of other people's words against the mixture of these two; empty for none.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    own: tuple[float, ...]
    others: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(0 <= weight < 1 for weight in (*self.own, *self.others)):
            raise ValueError("a weight of words must be at least 0 and below 1")

    def of_own(self, match: int) -> float:
        """Return the weight of the person's own words after a match of this length."""
        return self.own[min(match, len(self.own) - 1)] if self.own else 0.0

    def of_others(self, match: int) -> float:
        """Return the weight of other people's words after a match of this length."""
        return self.others[min(match, len(self.others) - 1)] if self.others else 0.0

    def mixed(self, token: TokenEvidence) -> float:
        """Return the probability of a token under the mixture."""
        own, others = self.of_own(token.own_match), self.of_others(token.others_match)
        return (1 - others) * ((1 - own) * token.model + own * token.own) + others * token.others

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
    for _ in range(_ITERATIONS):
        own_sum, own_count = [0.0] * len(prior.own), [0.0] * len(prior.own)
        others_sum, others_count = [0.0] * len(prior.others), [0.0] * len(prior.others)
        for token in tokens:
            total = max(weights.mixed(token), _SMALLEST)
            share_of_others = weights.of_others(token.others_match) * token.others / total
            if prior.others:
                place = min(token.others_match, len(prior.others) - 1)
                others_sum[place] += share_of_others
                others_count[place] += 1
            if prior.own:
                place = min(token.own_match, len(prior.own) - 1)
                own_part = (1 - weights.of_others(token.others_match)) * weights.of_own(token.own_match) * token.own / total
                own_sum[place] += own_part
                own_count[place] += 1 - share_of_others
        weights = WordWeights(
            own=_posterior(own_sum, own_count, prior.own, prior_tokens),
            others=_posterior(others_sum, others_count, prior.others, prior_tokens),
        )
    return weights


def _posterior(
    sums: Sequence[float], counts: Sequence[float], prior: Sequence[float], prior_tokens: float
) -> tuple[float, ...]:
    rows = zip(sums, counts, prior, strict=True)
    return tuple((total + prior_tokens * before) / (count + prior_tokens) for total, count, before in rows)
