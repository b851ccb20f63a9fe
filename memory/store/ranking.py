"""Ranking of recalled triples: by similarity alone, or also by age, shared words and diversity, and openings first.

Ranking changes only the order, and so the selection, within a pool of the most similar triples. The similarity that a recall
reports is always the plain cosine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from usertwin.memory.triples import Triple
from usertwin.personas import Pair, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Characters in a token on average, used where no tokenizer is at hand.
_CHARACTERS_PER_TOKEN = 4
#: An opening has at most this many turns before it.
OPENING_TURNS = 1


@dataclass(frozen=True, slots=True)
class Ranking:
    """What recall ranks by besides similarity.

    Attributes:
        half_life: seconds (conversations, in a log without dates) after which a triple counts half; None ignores age.
        diversity: 0 to 1, the penalty for similarity to a triple already selected (maximal marginal relevance, Carbonell and
            Goldstein 1998).
        words: 0 to 1, the weight of shared words (BM25, Robertson and Zaragoza 2009) against similarity; needs the extra
            "hybrid".
        tokens: token budget of all recalled triples together, at four characters a token; None for no limit. The list ends at
            the first triple that does not fit; the first of all is always returned.
        openings: whether an opening, with at most one turn before it, recalls openings before all other triples.
    """

    half_life: float | None = None
    diversity: float = 0.0
    words: float = 0.0
    tokens: int | None = None
    _: KW_ONLY
    openings: bool = False

    def __post_init__(self) -> None:
        if self.half_life is not None and not self.half_life > 0:
            raise UsageError(f"half_life is {self.half_life}; it must be greater than 0")
        for name, value in (("diversity", self.diversity), ("words", self.words)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}; it must be between 0 and 1")
        if self.tokens is not None and self.tokens < 1:
            raise UsageError(f"tokens is {self.tokens}; it must be at least 1")

    @property
    def reorders(self) -> bool:
        """Whether a pool larger than k must be ranked, also for queries that are no openings."""
        return self.half_life is not None or self.diversity > 0 or self.words > 0

    def pool(self, k: int, *, opens: bool = False) -> int:
        """Return the number of most similar triples to rank; `opens`: for a query that recalls openings first."""
        return max(64, 8 * k) if (self.reorders or opens) and k > 0 else k


#: By similarity alone.
SIMILARITY = Ranking()
#: What a twin recalls by. Closings for closings, more weight on the latest turn, and the goal's state did not pay on validation
#: turns (see evals/EXPERIMENTS.md).
BY_STAGE = Ranking(openings=True)


def is_opening(pair: Pair) -> bool:
    """Return whether a pair opens its conversation: at most one turn comes before it."""
    return pair.position <= OPENING_TURNS


def rank(
    ranking: Ranking,
    k: int,
    similarity: NDArray[np.float32],
    *,
    age: NDArray[np.float64],
    words: NDArray[np.floating[Any]] | None,
    vectors: NDArray[np.float32],
    first: NDArray[np.bool_] | None = None,
) -> list[int]:
    """Return the indices of the k best triples of a pool, best first.

    Args:
        ranking: what to rank by.
        k: number of triples.
        similarity: cosine of each triple with the query.
        age: age of each triple, in the unit of the half-life.
        words: BM25 of each triple, scaled so that the largest is 1; None if words do not count.
        vectors: the embeddings of the pool, unit rows.
        first: the triples that come before all others; None for no such triples.
    """
    import numpy as np

    relevance = (1 + similarity) / 2  # 0 to 1: halving a negative cosine would increase it
    if words is not None:
        relevance = (1 - ranking.words) * relevance + ranking.words * words
    if ranking.half_life is not None:
        relevance = relevance * 0.5 ** (np.maximum(age, 0) / ranking.half_life)
    lead = np.zeros(len(relevance)) if first is None else 4.0 * first  # more than any two values differ
    if not ranking.diversity:
        return np.argsort(-(relevance + lead), kind="stable")[:k].tolist()
    selected: list[int] = []
    redundancy = np.zeros(len(relevance), np.float32)
    remaining = np.ones(len(relevance), bool)
    while remaining.any() and len(selected) < k:
        value = lead + (1 - ranking.diversity) * relevance - ranking.diversity * redundancy
        best = int(np.argmax(np.where(remaining, value, -np.inf)))
        selected.append(best)
        remaining[best] = False
        redundancy = np.maximum(redundancy, (1 + vectors @ vectors[best]) / 2)
    return selected


def fit_token_budget(ranking: Ranking, triples: Sequence[Triple]) -> int:
    """Return how many triples, counted from the first, fit the token budget."""
    if ranking.tokens is None:
        return len(triples)
    total = 0
    for count, triple in enumerate(triples):
        total += estimate_tokens(triple)
        if total > ranking.tokens and count:
            return count
    return len(triples)


def estimate_tokens(triple: Triple) -> int:
    """Return the approximate number of tokens of a triple: context, trace and action."""
    characters = sum(len(turn.text) for turn in triple.pair.context) + len(triple.reasoning or "") + len(triple.pair.action)
    return math.ceil(characters / _CHARACTERS_PER_TOKEN)


class WordIndex:
    """BM25 over texts (bm25s). UsageError if the extra is not installed."""

    def __init__(self, texts: Sequence[str]) -> None:
        try:
            import bm25s
        except ImportError:
            raise UsageError("ranking by words needs bm25s; run: pip install 'usertwin[hybrid]'") from None
        self._tokenize: Any = bm25s.tokenize
        self._index: Any = bm25s.BM25()
        tokens = self._tokenize(list(texts), stopwords=[], return_ids=False, show_progress=False)
        self._count = len(texts)
        self._empty = not any(tokens)
        if not self._empty:
            self._index.index(tokens, show_progress=False)

    def scores(self, query: str) -> NDArray[np.float32]:
        """Return the BM25 score of every text for a query."""
        import numpy as np

        [tokens] = self._tokenize([query], stopwords=[], return_ids=False, show_progress=False)
        if self._empty or not tokens:
            return np.zeros(self._count, np.float32)
        return np.asarray(self._index.get_scores(tokens), np.float32)
