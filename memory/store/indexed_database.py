"""The database of a memory together with its index: opened, kept consistent, saved.

Both are changed in one place, SQLite first. A kill between the two leaves an index whose stamp shows that it is outdated; it is
then caught up, or rebuilt from SQLite.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usertwin.memory.models.embedding import Embedder, query_text
from usertwin.memory.triples import Triple
from usertwin.personas import TwinError
from usertwin.personas.pairs import ABANDONED

from . import schema
from .database import Change, Database, State
from .error_messages import recovery_hint
from .in_memory import InMemoryDatabase
from .ranking import OPENING_TURNS, WordIndex
from .vector_index import UnusableIndexError, VectorIndex, column_dtype, column_values, hash_key, kind_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .vector_index import Columns, Mask, Vectors

_LOG = logging.getLogger("usertwin.memory")
#: Up to this many triples every save rewrites the index file; in larger memories only a tail of more than a tenth does.
_ALWAYS_REWRITTEN = 20_000
#: Variables in one SQL statement, and rows that are read at once.
_VARIABLES, _ROWS = 500, 10_000


class IndexedDatabase:
    """Triples in SQLite and their embeddings in an index. Not thread-safe; the store holds a lock around every call.

    Args:
        folder: the folder of the memory; None for a memory in RAM.
        embedder: the embedding model; its dimension is read only when a memory is made.
        create: make the memory if there is none.
        wait: timeout in seconds while another process writes.
    """

    def __init__(self, folder: Path | None, embedder: Embedder, *, create: bool, wait: float) -> None:
        if folder is None:
            self.database: Database = InMemoryDatabase(embedder.name, embedder.dimension)
        else:
            self.database = Database(folder, embedder.name, lambda: embedder.dimension, create=create, wait=wait)
        self.folder = self.database.folder
        self.index_path = self.folder / "memory.faiss"
        self._outdated_file = False  # the index file must be rewritten
        self._alive: Mask | None = None  # positions that were not removed since the index was made; None for all
        self._traced: Mask | None = None
        self._openings: Mask | None = None
        self._words: WordIndex | None = None
        try:
            # No seal, and no writer at work: the last writer was killed.
            was_killed = not self.database.sealed and self._may_write()
            if was_killed:
                self._check_rows()
            with self.database.snapshot():  # another process may be writing
                self.database.refresh()
                self.index = self._open_index()
            if was_killed or (self._outdated_file and self._may_write()):
                self._save_if_possible()
        except BaseException:
            self.database.close()
            raise

    def _save_if_possible(self) -> None:
        """Save a repaired memory; without room for its index file, the memory can still be used."""
        try:
            self.save()
        except (OSError, RuntimeError, sqlite3.OperationalError) as error:
            _LOG.warning(
                "%s: the repaired files could not be written (%s); the next process to open it will try again",
                self.folder,
                error,
            )
            self.database.lock.release()

    @property
    def state(self) -> State:
        """The state of the memory."""
        return self.database.state

    # Opening, refreshing, saving -------------------------------------------------------------------------------------

    def _may_write(self) -> bool:
        return self.database.writable and self.database.lock.try_acquire()

    def _check_rows(self) -> None:
        self.database.refresh()
        problems = self.database.problems(with_seal=False)  # a seal, if there is one, is of an earlier content
        if problems:
            raise TwinError(f"{self.folder}: the memory is damaged: {'; '.join(problems)}; {recovery_hint(self.folder)}")
        _LOG.warning("%s: the last writer did not close it; all %d triples are intact", self.folder, self.state.count)

    def _open_index(self) -> VectorIndex:
        """Return the index from its file and the triples added since, or rebuild it from the embeddings."""
        try:
            index, stamp = VectorIndex.open(self.index_path)
            if (stamp.memory, stamp.dimension) != (self.state.memory, self.state.dimension):
                raise UnusableIndexError("is of another memory")
            if stamp.generation > self.state.generation:
                raise UnusableIndexError("is newer than the database")
            if stamp.removals != self.state.removals:
                raise UnusableIndexError("still has triples that were removed")
            if stamp.witness != self._witness(stamp.last):
                raise UnusableIndexError("is of another copy of this memory")
            self._catch_up(index, stamp.last)
            if len(index) != self.state.count:
                raise UnusableIndexError("does not match the database")
            self._outdated_file = index.tail_count > self._max_tail
            return index
        except UnusableIndexError as error:
            if not self.state.count and not self.index_path.exists():
                return VectorIndex(self.state.dimension)
            self._outdated_file = True
            _LOG.warning("%s %s; it was rebuilt from %d triples", self.index_path, error, self.state.count)
            return self._build_index()

    def _witness(self, number: int) -> int:
        row = self.database.connection.execute("SELECT checksum FROM triples WHERE number = ?", (number,)).fetchone()
        return int(row[0]) if row else 0

    @property
    def _max_tail(self) -> int:
        return 0 if self.state.count <= _ALWAYS_REWRITTEN else self.state.count // 10

    def _build_index(self) -> VectorIndex:
        kind = kind_for(self.state.count, self.state.index)
        return VectorIndex.build(kind, self.state.dimension, self.state.count, self.blocks())

    def blocks(self, after: int = 0) -> Iterator[tuple[Columns, Vectors]]:
        """Yield columns and embeddings of the triples with a number greater than `after`, in order of numbers."""
        import numpy as np

        dimension = self.state.dimension
        while rows := self.database.connection.execute(
            "SELECT number, moment, conversation, role, kind, ends AND action = ?, embedding FROM triples "
            "WHERE number > ? ORDER BY number LIMIT ?",
            (ABANDONED, after, _ROWS),
        ).fetchall():
            if any(len(row[-1]) != 4 * dimension for row in rows):
                raise ValueError("an embedding has the wrong length")
            values = [
                (number, moment, hash_key(conversation), hash_key(role), hash_key(kind), bool(abandoned))
                for number, moment, conversation, role, kind, abandoned, _ in rows
            ]
            vectors = np.frombuffer(b"".join(row[-1] for row in rows), np.float32).reshape(len(rows), dimension)
            yield np.array(values, column_dtype()), vectors
            after = rows[-1][0]

    def _catch_up(self, index: VectorIndex, last: int) -> None:
        for columns, vectors in self.blocks(last):
            index.add(columns, vectors)

    def refresh(self) -> None:
        """Read the changes of other processes."""
        import numpy as np

        removals, length = self.state.removals, len(self.index)
        with self.database.snapshot():
            if not self.database.refresh():
                return
            columns = self.index.columns
            self._catch_up(self.index, int(columns["number"][-1]) if length else 0)
            self._traced = self._openings = self._words = None
            if self.state.removals != removals:
                self._alive = np.isin(self.index.columns["number"], self._select_numbers("SELECT number FROM triples"))
            elif self._alive is not None:
                self._alive = np.concatenate([self._alive, np.ones(len(self.index) - length, bool)])

    def begin(self) -> None:
        """Take the writer lock, and read the changes made until then."""
        self.database.begin()
        self.refresh()

    def save(self) -> None:
        """Write the index if needed, erase removed triples from both files, and release the writer lock."""
        if not self.database.lock.held and not (self.state.needs_vacuum and self._may_write()):
            return
        self.begin()
        if self._outdated_file or self._alive is not None or self.index.tail_count > self._max_tail:
            if self._alive is not None or self.index.tail_count:
                self.index, self._alive = self._build_index(), None
                self._traced = self._openings = self._words = None
            last = int(self.index.columns["number"][-1]) if len(self.index) else 0
            self.index.write(
                self.index_path,
                self.state.memory,
                generation=self.state.generation,
                removals=self.state.removals,
                witness=self._witness(last),
            )
            self._outdated_file = False
            if self.index.tuning.kind != "flat":
                self.index = VectorIndex.open(self.index_path)[0]  # memory-mapped, without the memory that building took
        if self.state.needs_vacuum and not self.database.vacuum():
            _LOG.warning("%s: other processes are reading; removed triples are erased once they have finished", self.folder)
        self.database.seal()
        self.database.lock.release()

    def rebuild(self, kind: str | None) -> None:
        """Rebuild the index and save; a kind is stored for later rebuilds, None keeps the present one."""
        self.begin()
        if kind is not None:
            with self.database.change() as change:
                change.index = kind
        self.index, self._alive, self._outdated_file = self._build_index(), None, True
        self._traced = self._openings = self._words = None
        self.save()

    # Changing --------------------------------------------------------------------------------------------------------

    def insert(self, triples: Sequence[Triple], vectors: Vectors, replaces: Sequence[int] = ()) -> None:
        """Add new triples with unit embeddings, and remove others in the same transaction. Requires `begin`."""
        import numpy as np

        with self.database.change() as change:
            row = change.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'triples'").fetchone()
            first = 1 + (row[0] if row else 0)
            _delete(change, replaces)
            values = [
                schema.encode(number, triple, vector.tobytes())
                for number, (triple, vector) in enumerate(zip(triples, vectors, strict=True), first)
            ]
            change.connection.executemany(schema.INSERT, values)
            change.added = len(values)
        self._mark_removed(replaces)
        columns = [column_values(number, triple.pair) for number, triple in enumerate(triples, first)]
        self.index.add(np.array(columns, column_dtype()), vectors)
        if self._alive is not None:
            self._alive = np.concatenate([self._alive, np.ones(len(triples), bool)])
        self._traced = self._openings = self._words = None

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove triples by their numbers. Requires `begin`."""
        if numbers:
            with self.database.change() as change:
                _delete(change, numbers)
            self._mark_removed(numbers)

    def _mark_removed(self, numbers: Sequence[int]) -> None:
        import numpy as np

        if numbers:
            kept = ~np.isin(self.index.columns["number"], np.array(numbers, np.int64))
            self._alive = kept if self._alive is None else self._alive & kept
            self._traced = self._openings = self._words = None

    def set_traces(self, triples: Sequence[Triple]) -> None:
        """Set trace, score and provenance of triples that are in the memory."""
        self.begin()
        with self.database.change() as change:
            change.connection.executemany(schema.SET_TRACE, [schema.encode_trace(triple) for triple in triples])
        self._traced = None

    # Reading ---------------------------------------------------------------------------------------------------------

    def filter_mask(
        self,
        conversation_id: str | None = None,
        before: float | None = None,
        *,
        role: str | None = None,
        kind: str | None = None,
        abandoned: bool | None = None,
    ) -> Mask:
        """Return the triples that pass the filters: not of this conversation, earlier than `before`, and so on.

        Shape (positions,).
        """
        import numpy as np

        columns = self.index.columns
        allowed = np.ones(len(columns), bool) if self._alive is None else self._alive.copy()
        if conversation_id is not None:
            allowed &= columns["conversation"] != hash_key(conversation_id)
        if before is not None:
            allowed &= columns["moment"] < before
        if abandoned is not None:
            allowed &= columns["abandoned"] == abandoned
        for name, text in (("role", role), ("kind", kind)):
            if text is not None:
                allowed &= columns[name] == hash_key(text)
        return allowed

    @property
    def traced(self) -> Mask:
        """Shape (positions,): the triples that have a trace."""
        import numpy as np

        if self._traced is None:
            numbers = self._select_numbers("SELECT number FROM triples WHERE reasoning IS NOT NULL")
            self._traced = np.isin(self.index.columns["number"], numbers)
        return self._traced

    @property
    def openings(self) -> Mask:
        """Shape (positions,): the triples that open their conversation (see `is_opening`)."""
        import numpy as np

        if self._openings is None:
            numbers = self._select_numbers(f"SELECT number FROM triples WHERE position <= {OPENING_TURNS}")
            self._openings = np.isin(self.index.columns["number"], numbers)
        return self._openings

    @property
    def words(self) -> WordIndex:
        """BM25 over the contexts, in the order of positions."""
        if self._words is None:
            texts = {row[0]: query_text(schema.decode(row).pair) for row in self.database.rows()}
            self._words = WordIndex([texts.get(number, "") for number in self.index.columns["number"].tolist()])
        return self._words

    def fetch(self, numbers: Sequence[int]) -> dict[int, tuple[Triple, bytes]]:
        """Return triples and embeddings by number, in the given order, without those that another process has removed."""
        rows: dict[int, tuple[Any, ...]] = {}
        for start in range(0, len(numbers), _VARIABLES):
            batch = numbers[start : start + _VARIABLES]
            marks = ",".join("?" * len(batch))
            for row in self.database.connection.execute(f"{schema.SELECT} WHERE number IN ({marks})", batch):
                rows[row[0]] = row
        if len(rows) < len(numbers):
            self.refresh()
            alive = set(self.index.columns["number"][self.filter_mask()].tolist())
            lost = [number for number in numbers if number not in rows and number in alive]
            if lost:
                raise schema.DamagedRowError(f"triple {lost[0]} is missing")
        return {number: (schema.decode(rows[number]), rows[number][-1]) for number in numbers if number in rows}

    def numbers_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the numbers of the triples with these ids, without those that are not in the memory."""
        numbers: dict[str, int] = {}
        for start in range(0, len(ids), _VARIABLES):
            batch = ids[start : start + _VARIABLES]
            marks = ",".join("?" * len(batch))
            numbers |= dict(self.database.connection.execute(f"SELECT id, number FROM triples WHERE id IN ({marks})", batch))
        return numbers

    def in_time_order(self, abandoned: bool | None = None, conversations: Collection[str] | None = None) -> list[int]:
        """Return the numbers of all triples, or of those that match, in time order."""
        import numpy as np

        numbers = self._select_numbers("SELECT number FROM triples ORDER BY moment, conversation, position")
        if abandoned is None and conversations is None:
            return numbers.tolist()
        self.refresh()
        matching, columns = self.filter_mask(abandoned=abandoned), self.index.columns
        if conversations is not None:
            matching &= np.isin(columns["conversation"], np.array([hash_key(name) for name in conversations], np.int64))
        return numbers[np.isin(numbers, columns["number"][matching])].tolist()

    def _select_numbers(self, query: str) -> NDArray[np.int64]:
        import numpy as np

        return np.array([number for (number,) in self.database.connection.execute(query)], np.int64)


def _delete(change: Change, numbers: Sequence[int]) -> None:
    for number in numbers:
        change.removed += change.connection.execute("DELETE FROM triples WHERE number = ?", (number,)).rowcount
