"""The memory of a twin: triples that can be recalled by how similar their context is to the present one.

The one design choice: SQLite is the only source of truth and holds the embeddings too (database.py); the index (index.py) is
derived from it, says which memory, and which state of it, it was made from, and is built again whenever it is missing or does
not match (indexed.py). What is not in SQLite is not in the memory.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from usertwin.memory.models.embedding import Embedder, query_text
from usertwin.memory.triples import Recalled, Triple
from usertwin.personas import Pair, TwinError, UsageError
from usertwin.personas.pairs import MomentKind

from .database import FORMAT
from .error_messages import storage_errors
from .indexed_database import IndexedDatabase
from .ranking import SIMILARITY, Ranking, choose, fit_token_budget
from .vector_index import INDEX_KINDS, IndexKind, Tuning, key

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .vector_index import Mask, Vectors

_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """What a memory holds.

    Attributes:
        triples: how many there are.
        traced: how many of them have a trace.
        left: how many of them are silent leavings (see `personas.pairs.LEFT`).
        conversations: of how many conversations they are.
        first: the moment of the earliest (see `Pair.when`); None if there are none.
        last: the moment of the latest.
        format: of the files.
        embedder: the model that made the embeddings.
        dimension: their length.
        generation: how many transactions there were.
        wanted: the kind of index that was asked for, or "auto".
        tuning: the index as it is, with its measured recall.
        tail: how many triples came after the index file was written; they are compared one by one.
        database_bytes: the size of memory.sqlite.
        index_bytes: the size of memory.faiss.
    """

    triples: int
    traced: int
    left: int
    conversations: int
    first: float | None
    last: float | None
    format: str
    embedder: str
    dimension: int
    generation: int
    wanted: str
    tuning: Tuning
    tail: int
    database_bytes: int
    index_bytes: int


class TripleStore:
    """Triples that can be recalled by the similarity of their context.

    Safe to use from several threads. Several processes may read while one writes: from its first change until it saves or
    closes, a store is the only one that may write. Close it, or use it as a context manager, to write the index.

    Args:
        folder: where the memory is, or is to be.
        embedder: the model that made, or is to make, the embeddings.
        create: whether a memory that is not there is made; otherwise that is an error.
        wait: seconds to wait for another process that writes, before that is an error.

    Raises:
        TwinError: the folder was made with another embedding model or a newer format, is damaged, or holds no memory and
            none is to be made.
    """

    def __init__(self, folder: str | Path, embedder: Embedder, *, create: bool = True, wait: float = 10.0) -> None:
        self.folder, self.embedder = Path(folder), embedder
        self._lock = threading.RLock()
        with self._said():
            self._memory = IndexedDatabase(self.folder, embedder, create=create, wait=wait)

    def save(self) -> None:
        """Write the index, remove what was deleted from both files, and let other processes write.

        The triples themselves are on disk already.
        """
        with self._lock, self._said():
            self._memory.save()

    def close(self) -> None:
        """Save and close; the store cannot be used afterwards. Closing twice does nothing."""
        with self._lock:
            try:
                self.save()
            finally:
                self._memory.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _said(self) -> AbstractContextManager[None]:
        return storage_errors(self.folder)

    # Writing ---------------------------------------------------------------------------------------------------------

    def add(self, triples: Sequence[Triple], embeddings: NDArray[np.float32] | None = None) -> int:
        """Add triples; those already there stay as they are, and are not embedded again. Returns how many were new.

        Args:
            triples: what to add. When this returns, they are on disk.
            embeddings: shape (len(triples), dimension), if they are already known; they are scaled to length 1.

        Raises:
            TwinError: the embeddings have the wrong shape, or hold something that is not a number or no direction; the disk
                is full, or the folder cannot be written; somebody else writes in it.
        """
        given = None if embeddings is None else self._unit(embeddings, len(triples))
        with self._lock, self._said():
            new, generation = self._new(triples), self._memory.state.generation
        if not new:
            return 0
        matrix = self._embedded([triples[place] for place in new]) if given is None else given[new]
        with self._lock, self._said():
            self._memory.begin()
            # Somebody may have added some while these were embedded.
            still = set(new if self._memory.state.generation == generation else self._new(triples))
            kept = [row for row, place in enumerate(new) if place in still]
            if kept:
                self._memory.insert([triples[new[row]] for row in kept], matrix[kept])
        return len(kept)

    def set_traces(self, triples: Sequence[Triple]) -> None:
        """Give triples that are already in the memory their trace, score and provenance. When this returns, it is on disk."""
        with self._lock, self._said():
            self._memory.set_traces(triples)

    def edit(self, triple_id: str, triple: Triple) -> None:
        """Put a triple in the place of another; nothing of the old one is left once the store is saved or closed.

        Raises:
            TwinError: there is no such triple, or the new one is there already.
        """
        matrix = self._embedded([triple])
        with self._lock, self._said():
            self._memory.begin()
            known = self._memory.numbers_of([triple_id, triple.id])
            if triple_id not in known:
                raise TwinError(f'{self.folder}: there is no triple "{triple_id}"; nothing was changed')
            if triple.id != triple_id and triple.id in known:
                raise TwinError(f'{self.folder}: the triple "{triple.id}" is there already; nothing was changed')
            self._memory.insert([triple], matrix, instead_of=[known[triple_id]])

    def delete(self, triple_ids: Sequence[str]) -> int:
        """Remove triples; returns how many there were. Nothing of them is left on disk once the store is saved or closed."""
        with self._lock, self._said():
            self._memory.begin()
            numbers = list(self._memory.numbers_of(triple_ids).values())
            self._memory.remove(numbers)
        return len(numbers)

    def forget(self, conversation_id: str | None = None, *, before: float | None = None, after: float | None = None) -> int:
        """Remove the triples of a conversation, or of before or after a moment (or what is all of these); returns how many.

        Nothing of them is left in the files once the store is saved or closed.

        Args:
            conversation_id: triples of this conversation.
            before: triples of an earlier moment (see `Pair.when`).
            after: triples of a later moment.

        Raises:
            UsageError: nothing is said about what to forget.
        """
        if conversation_id is None and before is None and after is None:
            raise UsageError("to forget, name a conversation, or a moment before or after which to forget")
        with self._lock, self._said():
            self._memory.begin()
            columns, gone = self._memory.index.columns, self._memory.filter_mask(before=before)
            if after is not None:
                gone &= columns["moment"] > after
            if conversation_id is not None:
                gone &= columns["conversation"] == key(conversation_id)
            numbers = columns["number"][gone].tolist()
            self._memory.remove(numbers)
        return len(numbers)

    def rebuild(self, kind: IndexKind | Literal["auto"] | None = None) -> None:
        """Build the index anew and write it; its `kind` is remembered, None leaves it as it is."""
        if kind is not None and kind not in (*INDEX_KINDS, "auto"):
            raise UsageError(f'there is no index of kind "{kind}"; there are {", ".join(INDEX_KINDS)} and auto')
        with self._lock, self._said():
            self._memory.rebuild(kind)

    def _new(self, triples: Sequence[Triple]) -> list[int]:
        """The places of those triples that are not in the memory, each once."""
        ids = [triple.id for triple in triples]
        known = self._memory.numbers_of(ids)
        return list({name: place for place, name in reversed(list(enumerate(ids))) if name not in known}.values())[::-1]

    def _embedded(self, triples: Sequence[Triple]) -> Vectors:
        return self._unit(self.embedder.embed([query_text(triple.pair) for triple in triples]), len(triples))

    def _unit(self, embeddings: NDArray[np.float32], count: int) -> Vectors:
        """The embeddings with length 1. TwinError if they cannot be embeddings of this memory."""
        import numpy as np

        matrix = np.ascontiguousarray(embeddings, np.float32)
        dimension = self._memory.state.dimension
        if matrix.shape != (count, dimension):
            raise TwinError(
                f"{self.folder}: embeddings of shape {matrix.shape} do not fit {count} triples "
                f"of dimension {dimension}; nothing was added"
            )
        with np.errstate(over="ignore"):
            length = np.linalg.norm(matrix, axis=1, keepdims=True)
        if not np.isfinite(length).all():  # nor is what is too large to be scaled
            raise TwinError(f"{self.folder}: an embedding holds something that is not a number; nothing was added")
        if not (length > 0).all():
            raise TwinError(f"{self.folder}: an embedding is all zeros, so it is like nothing; nothing was added")
        return matrix / length

    # Reading ---------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._lock, self._said():
            self._memory.refresh()
            return self._memory.state.count

    def missing(self, triples: Sequence[Triple]) -> list[Triple]:
        """Those of the triples that are not in the memory, each once."""
        with self._lock, self._said():
            return [triples[place] for place in self._new(triples)]

    def triples(self) -> Iterator[Triple]:
        """All triples, in the order of time."""
        with self._lock, self._said():
            numbers = self._memory.in_time_order()
        for start in range(0, len(numbers), _AT_ONCE):
            with self._lock, self._said():
                found = self._memory.fetch(numbers[start : start + _AT_ONCE])
            yield from (triple for triple, _ in found.values())

    def recall(
        self,
        query: Pair,
        k: int = 4,
        *,
        before: float | None = None,
        role: str | None = None,
        kind: MomentKind | None = None,
        left: bool | None = False,
        with_trace: bool = False,
        ranking: Ranking = SIMILARITY,
    ) -> list[Recalled]:
        """The k triples whose contexts are most similar to the query's, most similar first.

        Never a triple of the query's own conversation, and never one that happened at or after `before`.

        Args:
            query: the present moment; its action is not looked at.
            k: how many to recall, at least 0.
            before: the query's time (see `Pair.when`); None for the living present, to which all of memory is past.
            role: only answers to somebody of this role.
            kind: only contexts of this kind (see `Pair.kind`).
            left: False for moments in which the person said something, True for those in which they silently left, None for
                both.
            with_trace: if none of the k has a trace, let the last place go to the most similar one that has, if there is one.
            ranking: what counts besides similarity, and how much text there may be.

        Raises:
            TwinError: a recalled triple is damaged.
        """
        return self.recall_many(
            [query], k, before=[before], role=role, kind=kind, left=left, with_trace=with_trace, ranking=ranking
        )[0]

    def recall_many(
        self,
        queries: Sequence[Pair],
        k: int = 4,
        *,
        before: Sequence[float | None] | None = None,
        role: str | None = None,
        kind: MomentKind | None = None,
        left: bool | None = False,
        with_trace: bool = False,
        ranking: Ranking = SIMILARITY,
    ) -> list[list[Recalled]]:
        """`recall` for many moments, whose embeddings are computed together; `before` has a moment for each."""
        if not queries:
            return []
        vectors = self.embedder.embed([query_text(query) for query in queries])
        found: list[list[Recalled]] = []
        with self._lock, self._said():
            dimension = self._memory.state.dimension
            if vectors.shape != (len(queries), dimension):
                raise TwinError(
                    f"{self.folder}: a query of shape {vectors.shape[1:]} does not fit a memory of dimension {dimension}"
                )
            self._memory.refresh()
            for query, vector, now in zip(queries, vectors, before or [None] * len(queries), strict=True):
                allowed = self._memory.filter_mask(query.conversation_id, now, role=role, kind=kind, left=left)
                some = self._ranked(query, vector, k, allowed, now, ranking)
                if with_trace and some and not any(recalled.triple.reasoning for recalled in some):
                    traced = self._ranked(query, vector, 1, allowed & self._memory.traced, now, ranking)
                    some = [*some[: k - len(traced)], *traced]
                found.append(some[: fit_token_budget(ranking, [recalled.triple for recalled in some])])
        return found

    def _ranked(
        self, query: Pair, vector: Vectors, k: int, allowed: Mask, now: float | None, ranking: Ranking
    ) -> list[Recalled]:
        """The k best of the allowed triples."""
        import numpy as np

        [(positions, similarities)] = self._memory.index.search(vector[None], ranking.pool(k), allowed)
        columns = self._memory.index.columns
        if not ranking.reorders:
            found = self._memory.fetch(columns["number"][positions].tolist())
            cosines = dict(zip(columns["number"][positions].tolist(), similarities, strict=True))
            return [Recalled(triple, cosines[number]) for number, (triple, _) in found.items()]
        words = None
        if ranking.words:
            scores = np.where(allowed, self._memory.words.scores(query_text(query)), 0)
            best = [int(p) for p in np.argsort(-scores, kind="stable")[: ranking.pool(k)] if scores[p] > 0]
            positions = list(dict.fromkeys([*positions, *best]))
            words = scores / max(float(scores.max(initial=0)), 1e-9)
        found = self._memory.fetch(columns["number"][positions].tolist())
        positions = [p for p in positions if int(columns["number"][p]) in found]  # else removed a moment ago
        if not positions:
            return []
        vectors = np.stack([np.frombuffer(blob, np.float32) for _, blob in found.values()])
        cosine, moments = vectors @ vector, columns["moment"]
        age = (float(moments.max()) if now is None else now) - moments[positions]
        chosen = choose(ranking, k, cosine, age=age, words=None if words is None else words[positions], vectors=vectors)
        triples = [triple for triple, _ in found.values()]
        return [Recalled(triples[place], float(cosine[place])) for place in chosen]

    def sample(self, query: Pair, k: int, *, before: float | None = None, rng: random.Random) -> list[Triple]:
        """K triples at random, of those that `recall` may return for this query."""
        with self._lock, self._said():
            self._memory.refresh()
            allowed = self._memory.filter_mask(query.conversation_id, before, left=False)
            numbers = self._memory.index.columns["number"][allowed].tolist()
            found = self._memory.fetch(rng.sample(numbers, min(k, len(numbers))))
        return [triple for triple, _ in found.values()]

    def problems(self) -> list[str]:
        """What is wrong with memory.sqlite, a sentence each; reads all of it. Damage to the index mends itself."""
        with self._lock, self._said():
            return self._memory.database.problems()

    def stats(self) -> MemoryStats:
        """What the memory holds, and how it is searched."""
        with self._lock, self._said():
            memory = self._memory
            memory.refresh()
            columns = memory.index.columns[memory.filter_mask()]
            moments, path = columns["moment"], memory.index_path
            return MemoryStats(
                triples=memory.state.count,
                traced=int((memory.traced & memory.filter_mask()).sum()),
                left=int(columns["left"].sum()),
                conversations=len(set(columns["conversation"].tolist())),
                first=float(moments.min()) if len(moments) else None,
                last=float(moments.max()) if len(moments) else None,
                format=FORMAT,
                embedder=memory.state.embedder,
                dimension=memory.state.dimension,
                generation=memory.state.generation,
                wanted=memory.state.index,
                tuning=memory.index.tuning,
                tail=memory.index.tail_count,
                database_bytes=memory.database.path.stat().st_size,
                index_bytes=path.stat().st_size if path.exists() else 0,
            )
