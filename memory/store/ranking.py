"""How the triples that are similar to a moment are ranked: by similarity alone, or also by age, words and variety.

The one design choice: ranking is a value that is passed in and changes only the order, and with it the choice, of a pool of
the most similar triples; what a recall reports stays the plain cosine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from usertwin.memory.triples import Triple
from usertwin.personas import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Characters to a token, roughly, where no tokenizer is at hand.
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Ranking:
    """What counts besides similarity.

    Attributes:
        half_life: seconds (in a log without dates, conversations) after which a triple counts half; None: age does not matter.
        diversity: 0 to 1, how much a triple loses for being like one already chosen (maximal marginal relevance, Carbonell
            and Goldstein 1998).
        words: 0 to 1, how much common words (BM25, Robertson and Zaragoza 2009) count against similarity; needs the extra
            "hybrid".
        tokens: the most tokens that the recalled triples may have together, a token taken for four characters; None for no
            limit. The first that does not fit ends the list, unless it is the first of all.
    """

    half_life: float | None = None
    diversity: float = 0.0
    words: float = 0.0
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.half_life is not None and not self.half_life > 0:
            raise UsageError(f"a half-life of {self.half_life}: it is greater than 0")
        for name, value in (("diversity", self.diversity), ("words", self.words)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} of {value}: it is between 0 and 1")
        if self.tokens is not None and self.tokens < 1:
            raise UsageError(f"{self.tokens} tokens: a recall needs at least one")

    @property
    def reorders(self) -> bool:
        """Whether more than the k most similar triples must be looked at."""
        return self.half_life is not None or self.diversity > 0 or self.words > 0

    def pool(self, k: int) -> int:
        """How many of the most similar triples to look at."""
        return max(64, 8 * k) if self.reorders and k > 0 else k


#: By similarity alone.
SIMILARITY = Ranking()


def choose(
    ranking: Ranking,
    k: int,
    similarity: NDArray[np.float32],
    *,
    age: NDArray[np.float64],
    words: NDArray[np.floating[Any]] | None,
    vectors: NDArray[np.float32],
) -> list[int]:
    """The places of the k best of a pool, best first.

    Args:
        ranking: what counts.
        k: how many to choose.
        similarity: cosine of each with the present moment.
        age: of each, in the unit of the half-life.
        words: BM25 of each, scaled so that the best of all is 1; None if words do not count.
        vectors: the embeddings of the pool, unit rows.
    """
    import numpy as np

    relevance = (1 + similarity) / 2  # 0 to 1, so that halving it never makes it better
    if words is not None:
        relevance = (1 - ranking.words) * relevance + ranking.words * words
    if ranking.half_life is not None:
        relevance = relevance * 0.5 ** (np.maximum(age, 0) / ranking.half_life)
    if not ranking.diversity:
        return np.argsort(-relevance, kind="stable")[:k].tolist()
    chosen: list[int] = []
    likeness = np.zeros(len(relevance), np.float32)
    left = np.ones(len(relevance), bool)
    while left.any() and len(chosen) < k:
        value = (1 - ranking.diversity) * relevance - ranking.diversity * likeness
        best = int(np.argmax(np.where(left, value, -np.inf)))
        chosen.append(best)
        left[best] = False
        likeness = np.maximum(likeness, (1 + vectors @ vectors[best]) / 2)
    return chosen


def fit_token_budget(ranking: Ranking, triples: Sequence[Triple]) -> int:
    """How many of these triples, from the first, the limit of tokens lets through."""
    if ranking.tokens is None:
        return len(triples)
    total = 0
    for count, triple in enumerate(triples):
        total += tokens_of(triple)
        if total > ranking.tokens and count:
            return count
    return len(triples)


def tokens_of(triple: Triple) -> int:
    """About how many tokens a triple has: context, trace and action."""
    characters = sum(len(turn.text) for turn in triple.pair.context) + len(triple.reasoning or "") + len(triple.pair.action)
    return math.ceil(characters / _CHARACTERS_PER_TOKEN)


class WordIndex:
    """BM25 over texts (bm25s). UsageError if the extra is not installed."""

    def __init__(self, texts: Sequence[str]) -> None:
        try:
            import bm25s
        except ImportError:
            raise UsageError("to rank by words too, run: pip install 'usertwin[hybrid]'") from None
        self._tokenize: Any = bm25s.tokenize
        self._index: Any = bm25s.BM25()
        tokens = self._tokenize(list(texts), stopwords=[], return_ids=False, show_progress=False)
        self._count = len(texts)
        self._empty = not any(tokens)
        if not self._empty:
            self._index.index(tokens, show_progress=False)

    def scores(self, text: str) -> NDArray[np.float32]:
        """The score of every text for this one."""
        import numpy as np

        [tokens] = self._tokenize([text], stopwords=[], return_ids=False, show_progress=False)
        if self._empty or not tokens:
            return np.zeros(self._count, np.float32)
        return np.asarray(self._index.get_scores(tokens), np.float32)
