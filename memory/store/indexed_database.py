"""The database of a memory together with its index: opened, kept in step, saved.

The one design choice: both are changed in one place, SQLite first, so that a kill between the two leaves an index that says of
itself that it is too old; it is then brought up to date, or built again, from SQLite.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usertwin.memory.models.embedding import Embedder, query_text
from usertwin.memory.triples import Triple
from usertwin.personas import TwinError
from usertwin.personas.pairs import LEFT

from . import schema as rows
from .database import Change, Database, State
from .error_messages import way_out
from .ranking import WordIndex
from .vector_index import UnusableIndexError, VectorIndex, column_of, column_type, key, kind_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .vector_index import Columns, Mask, Vectors

_LOG = logging.getLogger("usertwin.memory")
#: Up to so many triples the index file is written anew whenever something was added; later, when the tail is a tenth.
_ALWAYS_WHOLE = 20_000
#: Variables of one SQL statement, and rows that are read at once.
_VARIABLES, _ROWS = 500, 10_000


class IndexedDatabase:
    """Triples in SQLite and their embeddings in an index. Not thread-safe; the store holds a lock around every call.

    Args:
        folder: where the memory is, or is to be.
        embedder: the embedding model; asked for its dimension only if a memory is made.
        create: whether one is made if there is none.
        wait: seconds to wait for another process that writes.
    """

    def __init__(self, folder: Path, embedder: Embedder, *, create: bool, wait: float) -> None:
        self.folder, self.index_path = folder, folder / "memory.faiss"
        self.database = Database(folder, embedder.name, lambda: embedder.dimension, create=create, wait=wait)
        self._stale = False  # the file is to be written anew
        self._alive: Mask | None = None  # positions that were not removed since the index was made; None: all
        self._traced: Mask | None = None
        self._words: WordIndex | None = None
        try:
            # No seal, and nobody at work: the last writer was killed.
            alone = not self.database.sealed and self._may_write()
            if alone:
                self._check_all()
            with self.database.snapshot():  # somebody else may be writing
                self.database.refresh()
                self.index = self._open_index()
            if alone or (self._stale and self._may_write()):
                self._save_if_possible()
        except BaseException:
            self.database.close()
            raise

    def _save_if_possible(self) -> None:
        """Save what was mended; a memory whose index cannot be written can still be used."""
        try:
            self.save()
        except (OSError, RuntimeError, sqlite3.OperationalError) as error:
            _LOG.warning(
                "%s: what was mended could not be written (%s); the next to open it will try again", self.folder, error
            )
            self.database.lock.release()

    @property
    def state(self) -> State:
        """What the memory knows about itself."""
        return self.database.state

    # Opening, keeping in step, saving --------------------------------------------------------------------------------

    def _may_write(self) -> bool:
        return self.database.writable and self.database.lock.try_acquire()

    def _check_all(self) -> None:
        self.database.refresh()
        problems = self.database.problems(with_seal=False)  # if there is one, it is of an earlier time
        if problems:
            raise TwinError(f"{self.folder}: the memory is damaged: {'; '.join(problems)}; {way_out(self.folder)}")
        _LOG.warning("%s: the last writer did not close it; all %d triples are whole", self.folder, self.state.count)

    def _open_index(self) -> VectorIndex:
        """The index from its file and what was added since, or else built again from the embeddings."""
        try:
            index, stamp = VectorIndex.open(self.index_path)
            if (stamp.memory, stamp.dimension) != (self.state.memory, self.state.dimension):
                raise UnusableIndexError("is of another memory")
            if stamp.generation > self.state.generation:
                raise UnusableIndexError("is newer than the database")
            if stamp.removals != self.state.removals:
                raise UnusableIndexError("still has what was removed")
            if stamp.witness != self._witness(stamp.last):
                raise UnusableIndexError("is of another copy of this memory")
            self._catch_up(index, stamp.last)
            if len(index) != self.state.count:
                raise UnusableIndexError("does not match the database")
            self._stale = index.tail_count > self._longest_tail
            return index
        except UnusableIndexError as error:
            if not self.state.count and not self.index_path.exists():
                return VectorIndex(self.state.dimension)
            self._stale = True
            _LOG.warning("%s %s; it was built again from %d triples", self.index_path, error, self.state.count)
            return self._built()

    def _witness(self, number: int) -> int:
        found = self.database.connection.execute("SELECT checksum FROM triples WHERE number = ?", (number,)).fetchone()
        return int(found[0]) if found else 0

    @property
    def _longest_tail(self) -> int:
        return 0 if self.state.count <= _ALWAYS_WHOLE else self.state.count // 10

    def _built(self) -> VectorIndex:
        kind = kind_for(self.state.count, self.state.index)
        return VectorIndex.build(kind, self.state.dimension, self.state.count, self._blocks(0))

    def _blocks(self, after: int) -> Iterator[tuple[Columns, Vectors]]:
        """Columns and embeddings of the triples with a greater number."""
        import numpy as np

        dimension = self.state.dimension
        while found := self.database.connection.execute(
            "SELECT number, moment, conversation, role, kind, ends AND action = ?, embedding FROM triples "
            "WHERE number > ? ORDER BY number LIMIT ?",
            (LEFT, after, _ROWS),
        ).fetchall():
            if any(len(row[-1]) != 4 * dimension for row in found):
                raise ValueError("an embedding has the wrong length")
            columns = np.array([(n, m, key(c), key(r), key(k), bool(left)) for n, m, c, r, k, left, _ in found], column_type())
            yield columns, np.frombuffer(b"".join(row[-1] for row in found), np.float32).reshape(len(found), dimension)
            after = found[-1][0]

    def _catch_up(self, index: VectorIndex, last: int) -> None:
        for columns, matrix in self._blocks(last):
            index.add(columns, matrix)

    def refresh(self) -> None:
        """Take notice of what another process wrote."""
        import numpy as np

        removals, length = self.state.removals, len(self.index)
        with self.database.snapshot():
            if not self.database.refresh():
                return
            columns = self.index.columns
            self._catch_up(self.index, int(columns["number"][-1]) if length else 0)
            self._traced = self._words = None
            if self.state.removals != removals:
                self._alive = np.isin(self.index.columns["number"], self._select("SELECT number FROM triples"))
            elif self._alive is not None:
                self._alive = np.concatenate([self._alive, np.ones(len(self.index) - length, bool)])

    def begin(self) -> None:
        """Become the one who may write, and take notice of what was written until then."""
        self.database.begin()
        self.refresh()

    def save(self) -> None:
        """Write the index if need be, remove what was deleted from both files, and let other processes write."""
        if not self.database.lock.held and not (self.state.needs_vacuum and self._may_write()):
            return
        self.begin()
        if self._stale or self._alive is not None or self.index.tail_count > self._longest_tail:
            if self._alive is not None or self.index.tail_count:
                self.index, self._alive = self._built(), None
                self._traced = self._words = None
            last = int(self.index.columns["number"][-1]) if len(self.index) else 0
            self.index.write(
                self.index_path,
                self.state.memory,
                generation=self.state.generation,
                removals=self.state.removals,
                witness=self._witness(last),
            )
            self._stale = False
            if self.index.tuning.kind != "flat":
                self.index = VectorIndex.open(self.index_path)[0]  # mapped, without the slack of building
        if self.state.needs_vacuum and not self.database.vacuum():
            _LOG.warning("%s: others are reading; what was removed leaves memory.sqlite when they are done", self.folder)
        self.database.seal()
        self.database.lock.release()

    def rebuild(self, kind: str | None) -> None:
        """Build the index anew, of this kind from now on if one is given, and save."""
        self.begin()
        if kind is not None:
            with self.database.change() as change:
                change.index = kind
        self.index, self._alive, self._stale = self._built(), None, True
        self._traced = self._words = None
        self.save()

    # Changing --------------------------------------------------------------------------------------------------------

    def insert(self, triples: Sequence[Triple], matrix: Vectors, instead_of: Sequence[int] = ()) -> None:
        """Add new triples with unit embeddings, in the transaction in which others are removed. Call `begin` before."""
        import numpy as np

        with self.database.change() as change:
            row = change.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'triples'").fetchone()
            first = 1 + (row[0] if row else 0)
            _delete(change, instead_of)
            values = [rows.encode(n, t, v.tobytes()) for n, (t, v) in enumerate(zip(triples, matrix, strict=True), first)]
            change.connection.executemany(rows.INSERT, values)
            change.added = len(values)
        self._drop(instead_of)
        self.index.add(np.array([column_of(n, t.pair) for n, t in enumerate(triples, first)], column_type()), matrix)
        if self._alive is not None:
            self._alive = np.concatenate([self._alive, np.ones(len(triples), bool)])
        self._traced = self._words = None

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove triples by their numbers. Call `begin` before."""
        if numbers:
            with self.database.change() as change:
                _delete(change, numbers)
            self._drop(numbers)

    def _drop(self, numbers: Sequence[int]) -> None:
        import numpy as np

        if numbers:
            kept = ~np.isin(self.index.columns["number"], np.array(numbers, np.int64))
            self._alive = kept if self._alive is None else self._alive & kept
            self._traced = self._words = None

    def set_traces(self, triples: Sequence[Triple]) -> None:
        """Set trace, score and provenance of triples that are there."""
        self.begin()
        with self.database.change() as change:
            change.connection.executemany(rows.SET_WHY, [rows.encode_trace(triple) for triple in triples])
        self._traced = None

    # Reading ---------------------------------------------------------------------------------------------------------

    def filter_mask(
        self,
        conversation_id: str | None = None,
        before: float | None = None,
        *,
        role: str | None = None,
        kind: str | None = None,
        left: bool | None = None,
    ) -> Mask:
        """Shape (positions,): the triples that may be seen: of other conversations, earlier, and as the filters say."""
        import numpy as np

        columns = self.index.columns
        allowed = np.ones(len(columns), bool) if self._alive is None else self._alive.copy()
        if conversation_id is not None:
            allowed &= columns["conversation"] != key(conversation_id)
        if before is not None:
            allowed &= columns["moment"] < before
        if left is not None:
            allowed &= columns["left"] == left
        for name, wanted in (("role", role), ("kind", kind)):
            if wanted is not None:
                allowed &= columns[name] == key(wanted)
        return allowed

    @property
    def traced(self) -> Mask:
        """Shape (positions,): the triples that have a trace."""
        import numpy as np

        if self._traced is None:
            numbers = self._select("SELECT number FROM triples WHERE reasoning IS NOT NULL")
            self._traced = np.isin(self.index.columns["number"], numbers)
        return self._traced

    @property
    def words(self) -> WordIndex:
        """BM25 over the contexts, in the order of positions."""
        if self._words is None:
            found = {row[0]: query_text(rows.decode(row).pair) for row in self.database.rows()}
            self._words = WordIndex([found.get(number, "") for number in self.index.columns["number"].tolist()])
        return self._words

    def fetch(self, numbers: Sequence[int]) -> dict[int, tuple[Triple, bytes]]:
        """The triples with these numbers and their embeddings, in this order; those that others removed are left out."""
        found: dict[int, tuple[Any, ...]] = {}
        for start in range(0, len(numbers), _VARIABLES):
            some = numbers[start : start + _VARIABLES]
            marks = ",".join("?" * len(some))
            for row in self.database.connection.execute(f"{rows.SELECT} WHERE number IN ({marks})", some):
                found[row[0]] = row
        if len(found) < len(numbers):
            self.refresh()
            there = set(self.index.columns["number"][self.filter_mask()].tolist())
            lost = [number for number in numbers if number not in found and number in there]
            if lost:
                raise rows.DamagedRowError(f"triple {lost[0]} is not there")
        return {number: (rows.decode(found[number]), found[number][-1]) for number in numbers if number in found}

    def numbers_of(self, ids: Sequence[str]) -> dict[str, int]:
        """The numbers of those of these triples that are there."""
        found: dict[str, int] = {}
        for start in range(0, len(ids), _VARIABLES):
            some = ids[start : start + _VARIABLES]
            marks = ",".join("?" * len(some))
            found |= dict(self.database.connection.execute(f"SELECT id, number FROM triples WHERE id IN ({marks})", some))
        return found

    def in_time_order(self) -> list[int]:
        """All numbers, in the order of time."""
        return self._select("SELECT number FROM triples ORDER BY moment, conversation, position").tolist()

    def _select(self, query: str) -> NDArray[np.int64]:
        import numpy as np

        return np.array([number for (number,) in self.database.connection.execute(query)], np.int64)


def _delete(change: Change, numbers: Sequence[int]) -> None:
    for number in numbers:
        change.removed += change.connection.execute("DELETE FROM triples WHERE number = ?", (number,)).rowcount
