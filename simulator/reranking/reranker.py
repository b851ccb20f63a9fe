"""The best of several candidates for a reply, by a twin's rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from usertwin.memory import Triple, TripleStore
from usertwin.memory.twin.reranking import FEATURES, Reranking
from usertwin.personas import Pair
from usertwin.personas.style_card import StyleCard, count_style

from .details import said_again, usual_words
from .features import Candidate, WordModel, feature_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The latest turns of the person that style and words are counted from.
_COUNTED = 2000


class Reranker:
    """Chooses among candidates with what a memory tells of the person; it is counted anew after each change of the memory."""

    def __init__(self, store: TripleStore) -> None:
        self._store = store
        self._counts = lru_cache(maxsize=2)(self._count)

    def candidates(
        self, written: Sequence[str], query: Pair, recalled: Sequence[Triple], *, quotes: bool,
        is_usable: Callable[[str], bool] = lambda text: True,
    ) -> list[Candidate]:  # fmt: skip
        """Return the written replies, and with `quotes` the recalled answers with the details of the present conversation.

        Those that are not usable are left out; equal replies are one candidate.
        """
        counts = Counter(text for text in written if text)
        found = [Candidate(text, votes=count) for text, count in counts.items() if is_usable(text)]
        if not quotes:
            return found
        _, _, usual = self._counts(self._store.generation, query.when)
        for place, triple in enumerate(recalled):
            text = "" if triple.pair.abandoned else said_again(triple.pair, query, usual)
            if text and all(text != candidate.text for candidate in found) and is_usable(text):
                found.append(Candidate(text, place))
        return found

    def features(self, candidates: Sequence[Candidate], query: Pair, recalled: Sequence[Triple]) -> NDArray[np.float64]:
        """Return the features of candidates (see `feature_table`), from turns of the person before the query only."""
        card, words, _ = self._counts(self._store.generation, query.when)
        return feature_table(candidates, query, recalled, card=card, words=words, embedder=self._store.embedder)

    def _count(self, generation: int, before: float) -> tuple[StyleCard | None, WordModel, frozenset[str]]:
        pairs = [t.pair for t in self._store.triples(abandoned=False) if t.pair.when < before]
        turns = [pair.action for pair in pairs[-_COUNTED:]]
        return count_style(turns), WordModel(turns), usual_words(pairs)


@dataclass(frozen=True, slots=True)
class BestOf:
    """A rule, and what it needs to know of the person."""

    reranker: Reranker
    rule: Reranking

    def choose(
        self, written: Sequence[str], query: Pair, recalled: Sequence[Triple], is_usable: Callable[[str], bool]
    ) -> tuple[Candidate | None, int]:
        """Return the best candidate, None if there is none, and the number of candidates: see `Reranker.candidates`."""
        found = self.reranker.candidates(written, query, recalled, quotes=self.rule.quotes, is_usable=is_usable)
        return (self.best(found, query, recalled) if found else None), len(found)

    def best(self, candidates: Sequence[Candidate], query: Pair, recalled: Sequence[Triple]) -> Candidate:
        """Return the candidate with the largest score, the first of equal ones."""
        weights = [self.rule.weights.get(name, 0.0) for name in FEATURES]
        return candidates[int((self.reranker.features(candidates, query, recalled) @ weights).argmax())]
