"""One recall: the nearest triples of the index, ranked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from usertwin.memory.models.embedding import query_text
from usertwin.memory.triples import Recalled
from usertwin.personas import Pair

from .indexed_database import IndexedDatabase
from .ranking import Ranking, is_opening, rank

if TYPE_CHECKING:
    from .vector_index import Mask, Vectors


@dataclass(frozen=True, slots=True)
class Query:
    """A pair to recall for.

    Attributes:
        pair: the pair; its action is ignored.
        vector: its embedding, of length 1.
        before: the time of the query; None if all of the memory is earlier.
    """

    pair: Pair
    vector: Vectors
    before: float | None


def recall_ranked(memory: IndexedDatabase, query: Query, k: int, allowed: Mask, ranking: Ranking) -> list[Recalled]:
    """Return the k best of the allowed triples, best first."""
    import numpy as np

    opens = ranking.openings and is_opening(query.pair)
    pool, columns = ranking.pool(k, opens=opens), memory.index.columns
    [(positions, similarities)] = memory.index.search(query.vector[None], pool, allowed)
    if not (ranking.reorders or opens):
        numbers = columns["number"][positions].tolist()
        cosines = dict(zip(numbers, similarities, strict=True))
        return [Recalled(triple, cosines[number]) for number, (triple, _) in memory.fetch(numbers).items()]
    if opens:
        [(nearest, _)] = memory.index.search(query.vector[None], pool, allowed & memory.openings)
        positions = list(dict.fromkeys([*positions, *nearest]))
    words = None
    if ranking.words:
        scores = np.where(allowed, memory.words.scores(query_text(query.pair)), 0)
        by_words = [int(p) for p in np.argsort(-scores, kind="stable")[:pool] if scores[p] > 0]
        positions = list(dict.fromkeys([*positions, *by_words]))
        words = scores / max(float(scores.max(initial=0)), 1e-9)
    fetched = memory.fetch(columns["number"][positions].tolist())
    positions = [p for p in positions if int(columns["number"][p]) in fetched]  # another process may have removed some
    if not positions:
        return []
    triples = [triple for triple, _ in fetched.values()]
    vectors = np.stack([np.frombuffer(blob, np.float32) for _, blob in fetched.values()])
    cosine, times = vectors @ query.vector, columns["moment"]
    age = (float(times.max()) if query.before is None else query.before) - times[positions]
    first = np.array([is_opening(triple.pair) for triple in triples]) if opens else None
    words = None if words is None else words[positions]
    best = rank(ranking, k, cosine, age=age, words=words, vectors=vectors, first=first)
    return [Recalled(triples[index], float(cosine[index])) for index in best]
