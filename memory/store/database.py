"""`memory.sqlite`, the one source of truth of a memory: opened, checked, changed in whole transactions, sealed.

The one design choice: whoever closes a memory cleanly seals it (seal.py). Whoever opens a sealed memory compares it, so a
damaged byte anywhere is noticed; whoever finds no seal (the last writer was killed) checks every row before anything else.

Files: `memory.sqlite` (write-ahead log, every commit on disk before it is acknowledged), `memory.seal`, `memory.lock`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sqlite3
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from usertwin.memory.atomic_files import digest_of, replace_file
from usertwin.memory.triples import Triple
from usertwin.personas import TwinError

from . import schema as rows
from .error_messages import storage_errors, way_out
from .seal import break_seal, holds, log_bytes, read_seal, write_seal
from .writer_lock import WriterLock

_LOG = logging.getLogger("usertwin.memory")
FORMAT = "2"
_FETCH = 5000
#: The log is brought into the file when it has this many pages (16 MiB); four times SQLite's usual, and so done less often.
_LOG_PAGES = 4000


@dataclass(frozen=True, slots=True)
class State:
    """What a memory knows about itself.

    Attributes:
        memory: a name drawn at random, so that the index of another memory is noticed.
        embedder: the model that made the embeddings.
        dimension: their length.
        generation: how many transactions there were.
        removals: how many of them removed or replaced triples.
        count: how many triples there are.
        needs_vacuum: whether something was removed, and traces of it may still be in the files.
        index: the kind of index that is wanted, or "auto".
    """

    memory: str
    embedder: str
    dimension: int
    generation: int = 0
    removals: int = 0
    count: int = 0
    needs_vacuum: bool = False
    index: str = "auto"


class Database:
    """The SQLite side of a memory. Not thread-safe; the store holds a lock around every call.

    Args:
        folder: where `memory.sqlite` is, or is to be.
        embedder: the name of the embedding model; checked against the memory's own.
        dimension: called for the length of an embedding, if a memory is made.
        create: whether one is made if there is none.
        wait: seconds to wait for another process that writes.
    """

    def __init__(self, folder: Path, embedder: str, dimension: Any, *, create: bool, wait: float) -> None:
        self.folder, self.path = folder, folder / "memory.sqlite"
        if not create and not self.path.is_file():
            raise TwinError(f"{folder}: there is no memory here, or only half of one; {way_out(folder)}")
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.writable = os.access(folder, os.W_OK) and (not self.path.exists() or os.access(self.path, os.W_OK))
            self.lock = WriterLock(folder, wait)
            if not self.path.exists() or self.path.stat().st_size == 0:
                self._make(State(uuid4().hex, embedder, int(dimension())))
            self._holds = holds(folder)
            self._frozen: tuple[Any, ...] | None = None
            self.connection = self._connect()
            try:
                self._read_meta(embedder)
            except BaseException:
                self.connection.close()
                raise

    # Opening and closing ---------------------------------------------------------------------------------------------

    def _make(self, state: State) -> None:
        if (self.folder / "memory.faiss").exists():  # is only ever written beside a database that knows what it is
            raise TwinError(f"{self.folder}: the memory is damaged: memory.sqlite is missing or empty; {way_out(self.folder)}")
        self._refuse_if_not_writable()
        self.lock.acquire()
        try:
            if not self.path.exists() or self.path.stat().st_size == 0:  # else somebody was faster
                rewrite(self.folder, state, ())
        finally:
            self.lock.release()

    def _connect(self) -> sqlite3.Connection:
        if self.writable:
            connection = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA secure_delete=ON")  # what was removed is overwritten
            connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
            return connection
        # Without the right to write, SQLite cannot join the log of a writer that is yet to come: see `snapshot`.
        how = "mode=ro" if log_bytes(self.folder) else "immutable=1"
        self._frozen = self._on_disk() if how == "immutable=1" else None
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?{how}", uri=True, check_same_thread=False, isolation_level=None
        )

    def _read_meta(self, embedder: str) -> None:
        # Before what it is the version of is read: what is written between the two is then noticed at the next look.
        self._version = self._data_version()
        meta = dict(self.connection.execute("SELECT key, value FROM meta"))
        if meta.get("format") == "1":
            meta = self._upgrade(meta)
            self._version = -1  # that of a connection which is closed now says nothing of this one
        if meta.get("format") != FORMAT:
            raise TwinError(
                f"{self.folder}: the memory has format {meta.get('format')}, and this version of usertwin reads {FORMAT}; "
                "upgrade usertwin, or learn the twin again with --overwrite"
            )
        self.state = _state(meta)
        if self.state.embedder != embedder:
            raise TwinError(
                f'{self.folder}: the memory was made with the embedding model "{self.state.embedder}", not '
                f'"{embedder}"; open it with that model, or learn the twin again with --overwrite'
            )
        seal = read_seal(self.folder)
        # Only a power cut brings back a seal that is older than the memory; a newer one is not of this memory.
        if self._holds is False and seal is not None and self.state.generation <= seal.generation:
            raise TwinError(
                f"{self.folder}: the memory is damaged: memory.sqlite is not as it was closed; {way_out(self.folder)}"
            )
        self.sealed = bool(self._holds)

    def refresh(self) -> bool:
        """Take notice of what other processes wrote; whether they did."""
        version = self._data_version()
        if version == self._version:
            return False
        self._version = version
        self.state = read_state(self.connection)
        return True

    @contextmanager
    def snapshot(self) -> Generator[None]:
        """Read everything as it was at one moment, whatever others write meanwhile."""
        if self.connection.in_transaction:
            yield
            return
        if self._frozen is not None and self._frozen != self._on_disk():
            self.connection.close()
            self.connection = self._connect()
            self._version = -1
        self.connection.execute("BEGIN")
        try:
            yield
        finally:
            if self.connection.in_transaction:  # else SQLite has ended it, after an error
                self.connection.execute("COMMIT")

    def _on_disk(self) -> tuple[tuple[int, int, int] | None, ...]:
        """What changes when somebody writes."""
        found: list[tuple[int, int, int] | None] = []
        for path in (self.path, self.folder / "memory.sqlite-wal"):
            try:
                stat = path.stat()
                found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
            except OSError:
                found.append(None)
        return tuple(found)

    def _data_version(self) -> int:
        return int(self.connection.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Close, and let others write."""
        self.connection.close()
        self.lock.release()

    # The seal --------------------------------------------------------------------------------------------------------

    def seal(self) -> None:
        """Bring everything into `memory.sqlite` and seal it. Needs the lock. Not done while other processes read old pages."""
        busy, _, _ = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy and not log_bytes(self.folder):
            write_seal(self.folder, self.state.generation)
            self.sealed = True

    # Writing ---------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take the lock and break the seal, if that was not done yet."""
        self._refuse_if_not_writable()
        self.lock.acquire()
        if self.sealed or (self.folder / "memory.seal").exists():
            break_seal(self.folder)
            self.sealed = False

    @contextmanager
    def change(self) -> Generator[Change]:
        """A transaction: all of it is on disk when this ends, or, after an error, nothing of it."""
        self.begin()
        change = Change(self.connection)
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield change
            state = replace(
                self.state,
                generation=self.state.generation + 1,
                removals=self.state.removals + bool(change.removed),
                count=self.state.count + change.added - change.removed,
                needs_vacuum=self.state.needs_vacuum or bool(change.removed),
                index=change.index or self.state.index,
            )
            _write_state(self.connection, state)
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            self._version = -1  # Ctrl-C while it was committed: `refresh` sees what is there
            raise
        self.state = state

    def vacuum(self) -> bool:
        """Rewrite the file so that nothing of what was removed is left in it; False while others still read the old pages."""
        self.connection.execute("VACUUM")
        if self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            return False
        state = replace(self.state, needs_vacuum=False, generation=self.state.generation + 1)
        self.connection.execute("BEGIN IMMEDIATE")
        _write_state(self.connection, state)
        self.connection.execute("COMMIT")
        self.state = state
        return True

    def _refuse_if_not_writable(self) -> None:
        if not self.writable:
            raise PermissionError(errno.EACCES, "is read-only")

    # Reading ---------------------------------------------------------------------------------------------------------

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """All rows of `rows.SELECT`, some thousand at a time, so that others may write in between."""
        return all_rows(self.connection)

    def problems(self, *, with_seal: bool = True) -> list[str]:
        """What is wrong with the file, a sentence each; reads all of it, and compares it with its seal if that is wanted."""
        found, _ = examine(self.connection, read_state(self.connection))  # others may have written
        if not found and with_seal and holds(self.folder, at_any_size=True) is False:
            found.append("memory.sqlite is not as it was closed, though every triple in it is whole")
        return found

    # From an earlier format ------------------------------------------------------------------------------------------

    def _upgrade(self, meta: dict[str, str]) -> dict[str, str]:
        """Write a memory of format 1 (no checksums) as one of this format."""
        self._refuse_if_not_writable()
        self.lock.acquire()
        try:
            self.connection.close()
            self._holds, self.connection = holds(self.folder), self._connect()
            meta = dict(self.connection.execute("SELECT key, value FROM meta"))
            if meta.get("format") != "1":  # somebody was faster
                return meta
            old = self.connection.execute(
                "SELECT number, speaker, conversation, position, moment, context, action, goal, ends, reasoning, score, "
                "provenance, embedding FROM triples ORDER BY number"
            ).fetchall()
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.connection.close()
            content = ((row[0], rows.from_format_1(row), row[-1]) for row in old)
            rewrite(self.folder, State(uuid4().hex, meta["embedder"], int(meta["dimension"])), content)
            _LOG.warning("%s: the memory was written anew in format %s (%d triples)", self.folder, FORMAT, len(old))
            self._holds = holds(self.folder)
            self.connection = self._connect()
            return dict(self.connection.execute("SELECT key, value FROM meta"))
        finally:
            self.lock.release()


@dataclass(slots=True)
class Change:
    """What a transaction did; `Database.change` counts on it."""

    connection: sqlite3.Connection
    added: int = 0
    removed: int = 0
    index: str | None = None


def rewrite(folder: Path, state: State, content: Iterable[tuple[int, Triple, bytes]]) -> None:
    """Put a database of this content (number, triple, embedding) in the place of the one that is there, if any.

    Needs the lock; the write-ahead log of the one that is there must be empty.
    """
    partial = folder / "memory.sqlite.partial"
    for leftover in (partial, folder / "memory.sqlite.partial-journal"):
        leftover.unlink(missing_ok=True)
    count = 0
    with closing(sqlite3.connect(partial, isolation_level=None)) as fresh:
        fresh.executescript(rows.SCHEMA)
        fresh.execute("BEGIN")
        for number, triple, embedding in content:
            fresh.execute(rows.INSERT, rows.encode(number, triple, embedding))
            count += 1
        state = replace(state, count=count)
        fresh.execute("INSERT INTO meta VALUES ('format', ?)", (FORMAT,))
        _write_state(fresh, state)
        fresh.execute("COMMIT")
        fresh.execute("PRAGMA journal_mode=WAL")
    break_seal(folder)
    for old in ("memory.sqlite-wal", "memory.sqlite-shm"):  # they would be taken for the new one's
        (folder / old).unlink(missing_ok=True)
    replace_file(partial, folder / "memory.sqlite")
    write_seal(folder, state.generation)


def all_rows(connection: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """All rows of `rows.SELECT`, in the order of their numbers, some thousand at a time."""
    last = -1
    while found := connection.execute(f"{rows.SELECT} WHERE number > ? ORDER BY number LIMIT ?", (last, _FETCH)).fetchall():
        yield from found
        last = found[-1][0]


def examine(connection: sqlite3.Connection, state: State) -> tuple[list[str], int]:
    """What is wrong with a database, a sentence each, and how many triples are whole; reads all of it."""
    found: list[str] = []
    count = bad = 0
    try:
        found += [f"SQLite says: {text}" for (text,) in connection.execute("PRAGMA integrity_check(5)") if text != "ok"]
        for row in all_rows(connection):
            count += 1
            bad += not rows.is_whole(row, state.dimension)
        if bad:
            found.append(f"{bad} of {count} triples are not what was written")
        if count != state.count and read_state(connection) == state:  # else others wrote meanwhile
            found.append(f"{count} triples are there instead of {state.count}")
    except sqlite3.Error as error:
        found.append(f"SQLite cannot read it ({error})")
    return found, count - bad


def read_state(connection: sqlite3.Connection) -> State:
    """What the memory knows about itself. ValueError if that is not what was written."""
    return _state(dict(connection.execute("SELECT key, value FROM meta")))


def _write_state(connection: sqlite3.Connection, state: State) -> None:
    text = json.dumps(asdict(state))
    connection.executemany(
        "INSERT OR REPLACE INTO meta VALUES (?, ?)", [("state", text), ("checksum", digest_of(text.encode()))]
    )


def _state(meta: dict[str, str]) -> State:
    text = meta.get("state", "")
    if digest_of(text.encode()) != meta.get("checksum"):
        raise ValueError("what the memory knows about itself is not what was written")
    raw: dict[str, Any] = json.loads(text)
    if "unswept" in raw:  # the name of this field until version 0.1
        raw["needs_vacuum"] = raw.pop("unswept")
    return State(**raw)
