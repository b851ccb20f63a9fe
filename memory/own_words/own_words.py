"""The words of a person, and of other people in their log, as n-gram models over the tokens of one model.

Design: they are derived from the memory whenever they are needed, and never stored. So they hold what the memory holds, also
after adding and forgetting.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from math import exp, fsum
from typing import Any, TypeAlias

from usertwin.memory.models.scoring import Likelihood
from usertwin.memory.triples import Triple

from .ngram_model import NgramModel
from .word_weights import TokenEvidence, WordWeights

#: The length of the longest n-gram.
ORDER = 5
#: Weights for any person, where the prompt holds turns of the person, and where it holds none: fitted on validation turns of
#: development people (evals/EXPERIMENTS.md).
DEFAULT_WEIGHTS = WordWeights(own=(0.001, 0.066, 0.095, 0.169, 0.274))
WEIGHTS_WITHOUT_MEMORY = WordWeights(own=(0.002, 0.09, 0.118, 0.213, 0.335))

#: Turns -> the token ids that a model writes for each, with those that end it.
Encode: TypeAlias = Callable[[Sequence[str]], list[list[int]]]


class OwnWords:
    """What a person said, token by token.

    Args:
        encode: splits turns as the model does into whose probabilities the words are mixed.
        vocabulary_size: the number of the model's token ids.
        triples: the memory.
    """

    def __init__(self, encode: Encode, vocabulary_size: int, triples: Sequence[Triple]) -> None:
        self._encode, self._vocabulary_size = encode, vocabulary_size
        pairs = sorted((t.pair for t in triples if not t.pair.abandoned), key=lambda pair: pair.when)
        self._times, self._actions = [pair.when for pair in pairs], [pair.action for pair in pairs]
        self._tokens = encode(self._actions)
        self._of_first = lru_cache(maxsize=2)(self._model_of_first)
        self._digest_of_first = lru_cache(maxsize=2)(self._hash_of_first)

    def own(self, before: float) -> NgramModel:
        """Return the n-gram model of the turns that the person wrote before a time (see `Pair.when`)."""
        return self._of_first(bisect_left(self._times, before))

    def digest(self, before: float) -> str:
        """Return a hash of the turns that the words before a time come from: equal turns have the same words in any model."""
        return self._digest_of_first(bisect_left(self._times, before))

    def _hash_of_first(self, count: int) -> str:
        return sha256(json.dumps([ORDER, self._actions[:count]]).encode()).hexdigest()

    def _model_of_first(self, count: int) -> NgramModel:
        return NgramModel(self._tokens[:count], self._vocabulary_size, ORDER)

    def evidence(self, likelihood: Likelihood, action: str, before: float) -> list[TokenEvidence]:
        """Return the probabilities of each token of a turn; `likelihood` is that of the model, whose tokens these are."""
        [tokens] = self._encode([action])
        own = self.own(before)
        evidence: list[TokenEvidence] = []  # of the first tokens only, if the turn is too long to be scored whole
        for place, (token, nats) in enumerate(zip(tokens, likelihood.token_nats, strict=False)):
            history = tokens[:place]
            evidence.append(TokenEvidence(exp(nats), own.probability(history, token), own.match_length(history)))
        return evidence


@dataclass(frozen=True, slots=True)
class WordMixture:
    """A model's probabilities, mixed with the words of a person."""

    words: OwnWords
    weights: WordWeights

    def likelihood(self, likelihood: Likelihood, action: str, before: float) -> Likelihood:
        """Return the likelihood of a turn under the mixture; `likelihood` is that under the model alone."""
        nats = self.weights.nats(self.words.evidence(likelihood, action, before))
        return Likelihood(fsum(nats), len(nats), tuple(nats), likelihood.token_ends)

    def next_token(self, before: float = float("inf")) -> MixedProbabilities:
        """Return the mixture for writing a turn, with the words that the person wrote before a time."""
        return MixedProbabilities(self, self.words.own(before), before)


@dataclass(frozen=True, slots=True)
class MixedProbabilities:
    """A mixture for writing a turn (see `NextToken`): the model's likely tokens, and those that followed the same words."""

    mixture: WordMixture
    own: NgramModel
    before: float

    @property
    def content(self) -> dict[str, Any]:
        """What determines the mixture beside the model: the weights, and a hash of the turns that the words come from."""
        return {"weights": asdict(self.mixture.weights), "turns": self.mixture.words.digest(self.before)}

    def __call__(self, history: Sequence[int], model: Mapping[int, float]) -> dict[int, float]:
        """Return the probabilities of the next token."""
        own, weights = self.own, self.mixture.weights
        match = own.match_length(history)
        return {
            token: weights.mixed(TokenEvidence(model.get(token, 0.0), own.probability(history, token), match))
            for token in {*model, *own.continuations(history)}
        }
