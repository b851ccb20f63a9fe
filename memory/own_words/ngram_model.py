"""A token n-gram model with Witten-Bell smoothing.

Source: I. H. Witten, T. C. Bell, "The zero-frequency problem" (1991), method C, interpolated down to a uniform distribution:

    P(w | h) = (c(h w) + t(h) P(w | h')) / (c(h) + t(h))

where c counts, t(h) is the number of distinct tokens after h, and h' is h without its first token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

#: The token before the first one of a turn.
START = -1


class NgramModel:
    """Counts of the n-grams in sequences of token ids.

    Args:
        sequences: complete turns, each with the token that ends it.
        vocabulary_size: the number of token ids of the tokenizer.
        order: the length of the longest n-gram.
    """

    def __init__(self, sequences: Iterable[Sequence[int]], vocabulary_size: int, order: int) -> None:
        self._uniform = 1 / vocabulary_size
        self._longest = order - 1
        self._following: dict[tuple[int, ...], Counter[int]] = {}
        for sequence in sequences:
            tokens = (START, *sequence)
            for place in range(1, len(tokens)):
                for length in range(min(self._longest, place) + 1):
                    context = tokens[place - length : place]
                    self._following.setdefault(context, Counter())[tokens[place]] += 1
        self._totals = {context: following.total() for context, following in self._following.items()}

    def match_length(self, history: Sequence[int]) -> int:
        """Return the length of the longest end of the history that was seen before some token, at most the order minus 1.

        The history is the turn so far, without `START`, which is part of a match at the beginning.
        """
        return max(0, len(self._matches(history)) - 1)

    def probability(self, history: Sequence[int], token: int) -> float:
        """Return the probability of a token after the turn so far."""
        probability = self._uniform
        for context in self._matches(history):
            following, total = self._following[context], self._totals[context]
            probability = (following[token] + len(following) * probability) / (total + len(following))
        return probability

    def continuations(self, history: Sequence[int]) -> set[int]:
        """Return the tokens that were seen after an end of the history of at least one token."""
        return {token for context in self._matches(history)[1:] for token in self._following[context]}

    def _matches(self, history: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the ends of the history that were seen, the empty one first."""
        tokens = (START, *history[-self._longest :]) if len(history) < self._longest else tuple(history[-self._longest :])
        matches: list[tuple[int, ...]] = []
        for length in range(min(self._longest, len(tokens)) + 1):
            context = tokens[len(tokens) - length :]
            if context not in self._following:
                break
            matches.append(context)
        return matches
