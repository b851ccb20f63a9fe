"""The memory of a twin: triples, recalled by the similarity of their context to the present one.

SQLite is the only source of truth and holds the embeddings too (database.py). The index (vector_index.py) is derived from it,
carries a stamp of the memory and its state, and is rebuilt whenever it is missing or does not match (indexed_database.py).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from usertwin.memory.models.embedding import Embedder, query_text
from usertwin.memory.triples import Recalled, Triple
from usertwin.personas import Pair, TwinError, UsageError
from usertwin.personas.pairs import ContextKind

from .database import FORMAT
from .error_messages import changed_before, storage_errors
from .in_memory import IN_RAM
from .indexed_database import IndexedDatabase
from .ranking import SIMILARITY, Ranking, fit_token_budget
from .recall import Query, recall_ranked
from .vector_index import INDEX_KINDS, IndexKind, Tuning, hash_key

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .vector_index import Columns, Vectors

_FETCHED, _KEPT = 500, "changes made before are kept"


@dataclass(kw_only=True, frozen=True, slots=True)
class MemoryStats:
    """Counts and settings of a memory.

    Attributes:
        triples: number of triples.
        traced: number of triples with a trace.
        abandoned: number of triples in which the person left without an answer (see `Pair.abandoned`).
        conversations: number of conversations.
        first: time of the earliest triple (see `Pair.when`); None if there are no triples.
        last: time of the latest triple; None if there are no triples.
        format: format of the files.
        embedder: name of the embedding model.
        dimension: length of an embedding.
        generation: number of transactions.
        requested_kind: the requested kind of index, or "auto".
        tuning: the present index, with its measured recall.
        tail: number of triples added since the index file was written; they are searched exactly.
        database_bytes: size of memory.sqlite.
        index_bytes: size of memory.faiss.
    """

    triples: int
    traced: int
    abandoned: int
    conversations: int
    first: float | None
    last: float | None
    format: str
    embedder: str
    dimension: int
    generation: int
    requested_kind: str
    tuning: Tuning
    tail: int
    database_bytes: int
    index_bytes: int


class TripleStore:
    """Triples that can be recalled by the similarity of their context.

    Thread-safe. Several processes may read while one writes: a store holds the writer lock from its first change until it saves
    or closes. Close it, or use it as a context manager, to write the index.

    Args:
        folder: the folder of the memory; None for a memory in RAM that is never written to disk.
        embedder: the embedding model.
        create: make the memory if there is none; otherwise that is an error.
        wait: timeout in seconds while another process writes.

    Raises:
        TwinError: the memory was made with another embedding model or a newer format, or is damaged, or there is none and
            `create` is False.
    """

    def __init__(self, folder: str | Path | None, embedder: Embedder, *, create: bool = True, wait: float = 10.0) -> None:
        self.folder, self.embedder = IN_RAM if folder is None else Path(folder), embedder
        self._lock = threading.RLock()
        with self._errors():
            self._memory = IndexedDatabase(None if folder is None else self.folder, embedder, create=create, wait=wait)

    def save(self) -> None:
        """Write the index, erase removed triples from both files, and release the writer lock.

        The triples themselves are on disk already.
        """
        with self._lock, changed_before(_KEPT), self._errors():
            self._memory.save()

    def close(self) -> None:
        """Save and close. The store cannot be used afterwards."""
        with self._lock:
            try:
                self.save()
            finally:
                self._memory.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _errors(self) -> AbstractContextManager[None]:
        return storage_errors(self.folder)

    # Writing ---------------------------------------------------------------------------------------------------------

    def add(self, triples: Sequence[Triple], embeddings: NDArray[np.float32] | None = None) -> int:
        """Add triples and return how many were new; those already in the memory stay unchanged and are not embedded again.

        Args:
            triples: the triples; on return they are on disk.
            embeddings: shape (len(triples), dimension), if they are already computed; they are scaled to length 1.

        Raises:
            TwinError: the embeddings have the wrong shape, or hold a value that is not finite, or a row of zeros; the disk is
                full, the folder is read-only, or another process is writing in it.
        """
        given = None if embeddings is None else self._normalize(embeddings, len(triples))
        with self._lock, self._errors():
            new, generation = self._new_indices(triples), self._memory.state.generation
        if not new:
            return 0
        vectors = self._embed([triples[index] for index in new]) if given is None else given[new]
        with self._lock, self._errors():
            self._memory.begin()
            # Another process may have added some of them during embedding.
            still_new = set(new if self._memory.state.generation == generation else self._new_indices(triples))
            rows = [row for row, index in enumerate(new) if index in still_new]
            if rows:
                self._memory.insert([triples[new[row]] for row in rows], vectors[rows])
        return len(rows)

    def set_traces(self, triples: Sequence[Triple]) -> None:
        """Set trace, score and provenance of triples that are in the memory; on return they are on disk."""
        with self._lock, self._errors():
            self._memory.set_traces(triples)

    def edit(self, triple_id: str, triple: Triple) -> None:
        """Replace a triple by another; the old one is erased from the files when the store is saved or closed.

        Raises:
            TwinError: there is no such triple, or the new one is in the memory already.
        """
        vectors = self._embed([triple])
        with self._lock, self._errors():
            self._memory.begin()
            known = self._memory.numbers_of([triple_id, triple.id])
            if triple_id not in known:
                raise TwinError(f'{self.folder}: there is no triple "{triple_id}"; nothing was changed')
            if triple.id != triple_id and triple.id in known:
                raise TwinError(f'{self.folder}: the triple "{triple.id}" is in the memory already; nothing was changed')
            self._memory.insert([triple], vectors, replaces=[known[triple_id]])

    def delete(self, triple_ids: Sequence[str]) -> int:
        """Remove triples and return how many there were; they are erased from the files on save or close."""
        with self._lock, self._errors():
            self._memory.begin()
            numbers = list(self._memory.numbers_of(triple_ids).values())
            self._memory.remove(numbers)
        return len(numbers)

    def forget(self, conversation_id: str | None = None, *, before: float | None = None, after: float | None = None) -> int:
        """Remove the triples that match all given conditions, and return how many; they are erased on save or close.

        Args:
            conversation_id: triples of this conversation.
            before: triples of an earlier time (see `Pair.when`).
            after: triples of a later time.

        Raises:
            UsageError: no condition is given.
        """
        if conversation_id is None and before is None and after is None:
            raise UsageError("nothing to forget: give a conversation_id, before or after")
        with self._lock, self._errors():
            self._memory.begin()
            columns, matches = self._memory.index.columns, self._memory.filter_mask(before=before)
            if after is not None:
                matches &= columns["moment"] > after
            if conversation_id is not None:
                matches &= columns["conversation"] == hash_key(conversation_id)
            numbers = columns["number"][matches].tolist()
            self._memory.remove(numbers)
        return len(numbers)

    def rebuild(self, kind: IndexKind | Literal["auto"] | None = None) -> None:
        """Rebuild the index and write it; a `kind` is stored for later rebuilds, None keeps the present one."""
        if kind is not None and kind not in (*INDEX_KINDS, "auto"):
            raise UsageError(f'the kind of index is "{kind}"; it must be one of {", ".join(INDEX_KINDS)}, auto')
        with self._lock, changed_before(_KEPT), self._errors():
            self._memory.rebuild(kind)

    def _new_indices(self, triples: Sequence[Triple]) -> list[int]:
        """Return the indices of the triples that are not in the memory, without repeats."""
        ids = [triple.id for triple in triples]
        known = self._memory.numbers_of(ids)
        return list({id_: index for index, id_ in reversed(list(enumerate(ids))) if id_ not in known}.values())[::-1]

    def _embed(self, triples: Sequence[Triple]) -> Vectors:
        return self._normalize(self.embedder.embed([query_text(triple.pair) for triple in triples]), len(triples))

    def _normalize(self, embeddings: NDArray[np.float32], count: int) -> Vectors:
        """Return the embeddings scaled to length 1. TwinError if their shape or a value is wrong."""
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
        if not np.isfinite(length).all():  # also if the length overflows
            raise TwinError(f"{self.folder}: an embedding holds a value that is not finite; nothing was added")
        if not (length > 0).all():
            raise TwinError(f"{self.folder}: an embedding is all zeros, so it has no direction; nothing was added")
        return matrix / length

    # Reading ---------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._lock, self._errors():
            self._memory.refresh()
            return self._memory.state.count

    def missing(self, triples: Sequence[Triple]) -> list[Triple]:
        """Return the triples that are not in the memory, without repeats."""
        with self._lock, self._errors():
            return [triples[index] for index in self._new_indices(triples)]

    def triples(self, *, abandoned: bool | None = None, conversations: Collection[str] | None = None) -> Iterator[Triple]:
        """Yield the triples in time order: all, or those that match. No other one is read."""
        with self._lock, self._errors():
            numbers = self._memory.in_time_order(abandoned, conversations)
        for start in range(0, len(numbers), _FETCHED):
            with self._lock, self._errors():
                fetched = self._memory.fetch(numbers[start : start + _FETCHED])
            yield from (triple for triple, _ in fetched.values())

    def blocks(self) -> Iterator[tuple[Columns, Vectors]]:
        """Yield the columns (see `column_dtype`) and unit embeddings of all triples, up to 10,000 at a time."""
        with self._lock, self._errors():
            yield from self._memory.blocks()

    def recall(
        self,
        query: Pair,
        k: int = 4,
        *,
        before: float | None = None,
        role: str | None = None,
        kind: ContextKind | None = None,
        abandoned: bool | None = False,
        with_trace: bool = False,
        ranking: Ranking = SIMILARITY,
    ) -> list[Recalled]:
        """Return the k triples whose contexts are most similar to the query's, most similar first.

        A triple of the query's own conversation is never returned, nor one from `before` or later.

        Args:
            query: the present pair; its action is ignored.
            k: number of triples, at least 0.
            before: time of the query (see `Pair.when`); None if all of the memory is earlier.
            role: only answers to a speaker of this role.
            kind: only contexts of this kind (see `Pair.kind`).
            abandoned: True for triples in which the person left without an answer, False for all others, None for both.
            with_trace: if none of the k triples has a trace, replace the last by the most similar one that has.
            ranking: criteria besides similarity, and a token budget.

        Raises:
            TwinError: a recalled triple is damaged.
        """
        return self.recall_many(
            [query], k, before=[before], role=role, kind=kind, abandoned=abandoned, with_trace=with_trace, ranking=ranking
        )[0]

    def recall_many(
        self,
        queries: Sequence[Pair],
        k: int = 4,
        *,
        before: Sequence[float | None] | None = None,
        role: str | None = None,
        kind: ContextKind | None = None,
        abandoned: bool | None = False,
        with_trace: bool = False,
        ranking: Ranking = SIMILARITY,
    ) -> list[list[Recalled]]:
        """Return `recall` of many queries, which are embedded in one batch; `before` has a time for each."""
        if not queries:
            return []
        vectors = self.embedder.embed([query_text(query) for query in queries])
        results: list[list[Recalled]] = []
        with self._lock, self._errors():
            dimension = self._memory.state.dimension
            if vectors.shape != (len(queries), dimension):
                raise TwinError(
                    f"{self.folder}: a query of shape {vectors.shape[1:]} does not fit a memory of dimension {dimension}"
                )
            self._memory.refresh()
            for pair, vector, time in zip(queries, vectors, before or [None] * len(queries), strict=True):
                query = Query(pair, vector, time)
                allowed = self._memory.filter_mask(pair.conversation_id, time, role=role, kind=kind, abandoned=abandoned)
                recalled = recall_ranked(self._memory, query, k, allowed, ranking)
                traces = allowed & self._memory.traced if with_trace else None
                if traces is not None and traces.any() and recalled and not any(item.triple.reasoning for item in recalled):
                    traced = recall_ranked(self._memory, query, 1, traces, ranking)
                    recalled = [*recalled[: k - len(traced)], *traced]
                results.append(recalled[: fit_token_budget(ranking, [item.triple for item in recalled])])
        return results

    def sample(self, query: Pair, k: int, *, before: float | None = None, rng: random.Random) -> list[Triple]:
        """Return k random triples of those that `recall` may return for this query."""
        with self._lock, self._errors():
            self._memory.refresh()
            allowed = self._memory.filter_mask(query.conversation_id, before, abandoned=False)
            numbers = self._memory.index.columns["number"][allowed].tolist()
            fetched = self._memory.fetch(rng.sample(numbers, min(k, len(numbers))))
        return [triple for triple, _ in fetched.values()]

    def problems(self) -> list[str]:
        """Return one sentence for each kind of damage to memory.sqlite; reads all of it. A damaged index is rebuilt anyway."""
        with self._lock, self._errors():
            return self._memory.database.problems()

    @property
    def generation(self) -> int:
        """The number of changes of the memory, with those of other processes up to the last read; never waits for a lock."""
        return self._memory.state.generation

    def stats(self) -> MemoryStats:
        """Return counts and settings of the memory."""
        with self._lock, self._errors():
            memory = self._memory
            memory.refresh()
            columns = memory.index.columns[memory.filter_mask()]
            times, path, database = columns["moment"], memory.index_path, memory.database.path  # no files: a memory in RAM
            return MemoryStats(
                triples=memory.state.count,
                traced=int((memory.traced & memory.filter_mask()).sum()),
                abandoned=int(columns["abandoned"].sum()),
                conversations=len(set(columns["conversation"].tolist())),
                first=float(times.min()) if len(times) else None,
                last=float(times.max()) if len(times) else None,
                format=FORMAT,
                embedder=memory.state.embedder,
                dimension=memory.state.dimension,
                generation=memory.state.generation,
                requested_kind=memory.state.index,
                tuning=memory.index.tuning,
                tail=memory.index.tail_count,
                database_bytes=database.stat().st_size if database.exists() else 0,
                index_bytes=path.stat().st_size if path.exists() else 0,
            )
