"""The memory of a twin: triples in SQLite, their embeddings in a FAISS index beside it.

The one design choice: SQLite is the only source of truth and holds the embeddings too; the index file is derived from it,
carries a checksum there, is written atomically, and is built again whenever it is missing or does not match. What is not
in SQLite is not in the memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import sqlite3
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from usertwin.personas import Pair, Turn, TwinError, UsertwinError

from .embed import Embedder, query_text
from .triples import Provenance, Recalled, Triple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LOG = logging.getLogger("usertwin.memory")
_FORMAT = "1"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS triples (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, speaker TEXT NOT NULL, conversation TEXT NOT NULL,
    position INTEGER NOT NULL, moment REAL NOT NULL, context TEXT NOT NULL, action TEXT NOT NULL, goal TEXT NOT NULL,
    ends INTEGER NOT NULL, reasoning TEXT, score REAL, provenance TEXT, embedding BLOB NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS triples_by_moment ON triples (moment, conversation);
"""
_COLUMNS = "speaker, conversation, position, moment, context, action, goal, ends, reasoning, score, provenance"
_INSERT = f"INSERT OR IGNORE INTO triples (id, {_COLUMNS}, embedding) VALUES (?{', ?' * 12})"


class TripleStore:
    """Triples that can be recalled by the similarity of their context.

    Safe to use from several threads. Close it, or use it as a context manager, to write the index.

    Args:
        folder: where `memory.sqlite` and `memory.faiss` are, or are to be.
        embedder: the model that made, or is to make, the embeddings.
        create: whether a memory that is not there is made; otherwise that is an error.

    Raises:
        TwinError: the folder was made with another embedding model or a newer format, is damaged, or holds no memory and
            none is to be made.
    """

    def __init__(self, folder: str | Path, embedder: Embedder, *, create: bool = True) -> None:
        self.folder = Path(folder)
        if not create and not (self.folder / "memory.sqlite").is_file():
            raise TwinError(f"{self.folder}: there is no memory here, or only half of one; {_RELEARN}")
        self.embedder = embedder
        self._lock = threading.RLock()
        self._dirty = False
        with self._guarded():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.folder / "memory.sqlite", check_same_thread=False)
        try:
            with self._guarded():
                self._database.execute("PRAGMA journal_mode=WAL")
                self._database.execute("PRAGMA synchronous=FULL")
                self._database.executescript(_SCHEMA)
                self._check_meta()
                self._index = self._open_index()
        except BaseException:
            self._database.close()
            raise

    # Opening and closing ---------------------------------------------------------------------------------------------

    def _check_meta(self) -> None:
        meta = dict(self._database.execute("SELECT key, value FROM meta"))
        if not meta:
            if self._index_path.exists():  # is only ever written beside a database that knows what it is
                raise TwinError(f"{self.folder}: the memory is damaged: memory.sqlite is missing or empty; {_RELEARN}")
            wanted = {"format": _FORMAT, "embedder": self.embedder.name, "dimension": str(self.embedder.dimension)}
            self._database.executemany("INSERT INTO meta VALUES (?, ?)", wanted.items())
            self._database.commit()
            meta = wanted
        if meta.get("format") != _FORMAT:
            raise TwinError(
                f"{self.folder}: the memory has format {meta.get('format')}, and this version of usertwin reads {_FORMAT}; "
                "upgrade usertwin, or learn the twin again with --overwrite"
            )
        if meta.get("embedder") != self.embedder.name:
            raise TwinError(
                f'{self.folder}: the memory was made with the embedding model "{meta.get("embedder")}", not '
                f'"{self.embedder.name}"; open it with that model, or learn the twin again with --overwrite'
            )
        self._dimension = int(meta["dimension"])

    @property
    def _index_path(self) -> Path:
        return self.folder / "memory.faiss"

    def _open_index(self) -> Any:
        """The index from its file if it is the one SQLite knows, else built again from the embeddings."""
        import faiss
        import numpy as np

        known = self._meta("index_checksum")
        try:
            raw = self._index_path.read_bytes()
            if known is not None and hashlib.sha256(raw).hexdigest() == known:
                index = faiss.deserialize_index(np.frombuffer(raw, np.uint8))
                if index.ntotal == len(self):  # fewer, if the last one to add did not come to save
                    return index
            reason = "does not match the database"
        except FileNotFoundError:
            reason = "is missing"
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(self._dimension))
        rows = self._database.execute("SELECT number, embedding FROM triples ORDER BY number").fetchall()
        if rows:
            _LOG.warning("%s %s; it was built again from %d triples", self._index_path, reason, len(rows))
            if any(len(blob) != 4 * self._dimension for _, blob in rows):
                raise TwinError(f"{self.folder}: the memory is damaged: an embedding has the wrong length; {_RELEARN}")
            matrix = np.frombuffer(b"".join(blob for _, blob in rows), np.float32).reshape(len(rows), -1)
            index.add_with_ids(matrix, np.array([number for number, _ in rows], np.int64))
            self._dirty = True
        return index

    def save(self) -> None:
        """Write the index beside the database, atomically. The triples themselves are already on disk."""
        import faiss

        with self._lock, self._guarded():
            if not self._dirty:
                return
            raw = faiss.serialize_index(self._index).tobytes()
            partial = self._index_path.with_suffix(".faiss.partial")
            partial.write_bytes(raw)
            os.replace(partial, self._index_path)
            self._database.execute(
                "INSERT OR REPLACE INTO meta VALUES ('index_checksum', ?)", (hashlib.sha256(raw).hexdigest(),)
            )
            self._database.commit()
            self._dirty = False

    def close(self) -> None:
        """Save and close; the store cannot be used afterwards. Closing twice does nothing."""
        with self._lock:
            try:
                self.save()
            finally:
                self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # Writing ---------------------------------------------------------------------------------------------------------

    def add(self, triples: Sequence[Triple], embeddings: NDArray[np.float32] | None = None) -> int:
        """Add triples; those already there stay as they are. Returns how many were new.

        Args:
            triples: what to add. When this returns, they are on disk.
            embeddings: shape (len(triples), dimension), unit rows, if they are already known.

        Raises:
            TwinError: the embeddings have the wrong shape or hold something that is not a number.
        """
        import numpy as np

        if not triples:
            return 0
        if embeddings is None:
            embeddings = self.embedder.embed([query_text(triple.pair) for triple in triples])
        matrix = np.ascontiguousarray(embeddings, np.float32)
        if matrix.shape != (len(triples), self._dimension):
            raise TwinError(
                f"{self.folder}: embeddings of shape {matrix.shape} do not fit {len(triples)} triples "
                f"of dimension {self._dimension}; nothing was added"
            )
        if not np.isfinite(matrix).all():
            raise TwinError(f"{self.folder}: an embedding holds something that is not a number; nothing was added")
        with self._lock, self._guarded():
            new: dict[int, int] = {}
            with self._database:  # one transaction: all of them, or none
                for row, triple in enumerate(triples):
                    cursor = self._database.execute(_INSERT, (*_row(triple), matrix[row].tobytes()))
                    if cursor.rowcount:
                        new[row] = int(cursor.lastrowid or 0)
            if new:
                self._index.add_with_ids(matrix[list(new)], np.array(list(new.values()), np.int64))
                self._dirty = True
            return len(new)

    def set_traces(self, triples: Sequence[Triple]) -> None:
        """Give triples that are already in the memory their trace, score and provenance. When this returns, it is on disk."""
        with self._lock, self._guarded(), self._database:
            self._database.executemany(
                "UPDATE triples SET reasoning = ?, score = ?, provenance = ? WHERE id = ?",
                [(*_why(triple), triple.id) for triple in triples],
            )

    # Reading ---------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._lock:
            return int(self._database.execute("SELECT count(*) FROM triples").fetchone()[0])

    def triples(self) -> Iterator[Triple]:
        """All triples, in the order of time."""
        with self._lock, self._guarded():
            rows = self._database.execute(f"SELECT {_COLUMNS} FROM triples ORDER BY moment, conversation, position").fetchall()
        with self._guarded():
            yield from map(_triple, rows)

    def recall(self, query: Pair, k: int = 4, *, before: float | None = None, with_trace: bool = False) -> list[Recalled]:
        """The k triples whose contexts are most similar to the query's, most similar first.

        Never a triple of the query's own conversation, and never one that happened at or after `before`.

        Args:
            query: the present moment; its action is not looked at.
            k: how many to recall, at least 0.
            before: the query's time (see `Pair.when`); None for the living present, to which all of memory is past.
            with_trace: if none of the k has a trace, let the last place go to the most similar one that has, if there is one.
        """
        vector = self.embedder.embed([query_text(query)])[0]
        return self.recall_vector(vector, query.conversation_id, k, before=before, with_trace=with_trace)

    def recall_vector(
        self,
        vector: NDArray[np.float32],
        conversation_id: str,
        k: int = 4,
        *,
        before: float | None = None,
        with_trace: bool = False,
    ) -> list[Recalled]:
        """`recall` for a query whose embedding, of shape (dimension,), is already known."""
        if vector.shape != (self._dimension,):
            raise TwinError(
                f"{self.folder}: a query of shape {vector.shape} does not fit a memory of dimension {self._dimension}"
            )
        with self._lock, self._guarded():
            found = self._search(vector, self._allowed(conversation_id, before), k)
            if with_trace and found and not any(recalled.triple.reasoning for recalled in found):
                traced = self._search(vector, self._allowed(conversation_id, before, traced=True), 1)
                found = [*found[: k - len(traced)], *traced]
        return found

    def _search(self, vector: NDArray[np.float32], allowed: Sequence[int], k: int) -> list[Recalled]:
        """The k most similar of the allowed triples."""
        import faiss
        import numpy as np

        k = min(k, len(allowed))
        if k <= 0:
            return []
        selector = faiss.IDSelectorBatch(np.array(allowed, np.int64))
        parameters = cast("Any", faiss).SearchParameters(sel=selector)  # its stub does not know the keyword
        similarities, numbers = self._index.search(np.asarray(vector, np.float32)[None], k, params=parameters)
        found = [(int(n), float(s)) for n, s in zip(numbers[0], similarities[0], strict=True) if n >= 0]
        triples = self._fetch([number for number, _ in found])
        return [Recalled(triple, similarity) for triple, (_, similarity) in zip(triples, found, strict=True)]

    def draw(self, query: Pair, k: int, *, before: float | None = None, rng: random.Random) -> list[Triple]:
        """K triples at random, of those that `recall` may return for this query."""
        with self._lock, self._guarded():
            allowed = self._allowed(query.conversation_id, before)
            return self._fetch(rng.sample(allowed, min(k, len(allowed))))

    def _allowed(self, conversation_id: str, before: float | None, *, traced: bool = False) -> list[int]:
        """The numbers of the triples that a query may see: of other conversations, and earlier; or those with a trace."""
        rows = self._database.execute(
            "SELECT number FROM triples WHERE moment < ? AND conversation != ?"
            f"{' AND reasoning IS NOT NULL' if traced else ''} ORDER BY number",
            (float("inf") if before is None else before, conversation_id),
        )
        return [number for (number,) in rows]

    def _fetch(self, numbers: Sequence[int]) -> list[Triple]:
        """The triples with these numbers, in this order."""
        marks = ",".join("?" * len(numbers))
        rows = self._database.execute(f"SELECT number, {_COLUMNS} FROM triples WHERE number IN ({marks})", list(numbers))
        by_number = {row[0]: _triple(row[1:]) for row in rows}
        return [by_number[number] for number in numbers]

    def _meta(self, key: str) -> str | None:
        row = self._database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    @contextmanager
    def _guarded(self) -> Generator[None]:
        """Say in one sentence what SQLite or FAISS would say in a traceback."""
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            if isinstance(error, UsertwinError):  # says it better
                raise
            raise TwinError(f"{self.folder}: the memory is damaged or cannot be used ({error}); {_RELEARN}") from error


_RELEARN = "restore it from a copy, or learn the twin again with --overwrite"


def _why(triple: Triple) -> tuple[str | None, float | None, str | None]:
    return triple.reasoning, triple.score, json.dumps(triple.provenance.to_json()) if triple.provenance else None


def _row(triple: Triple) -> tuple[Any, ...]:
    """A triple as the values of `id` and `_COLUMNS`."""
    pair = triple.pair
    context = json.dumps([[t.speaker, t.role, t.text, t.time] for t in pair.context], ensure_ascii=False)
    what = (pair.speaker, pair.conversation_id, pair.position, pair.when, context, pair.action, pair.goal, int(pair.ends))
    return (triple.id, *what, *_why(triple))


def _triple(row: Sequence[Any]) -> Triple:
    speaker, conversation, position, moment, context, action, goal, ends, reasoning, score, provenance = row
    pair = Pair(
        speaker=speaker,
        context=tuple(Turn(*turn) for turn in json.loads(context)),
        action=action,
        goal=goal,
        conversation_id=conversation,
        position=position,
        when=moment,
        ends=bool(ends),
    )
    return Triple(pair, reasoning, score, Provenance(**json.loads(provenance)) if provenance else None)
