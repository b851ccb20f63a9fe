"""`memory.sqlite`, the source of truth of a memory: opened, verified, changed in transactions, sealed.

A clean close seals the file (seal.py). Damage is detected on opening; above 512 MiB only the size is compared, and rows are
checked when read. Without a seal (the last writer was killed) every row is checked first.

Files: `memory.sqlite` (write-ahead log, every commit on disk before it is acknowledged), `memory.seal`, `memory.lock`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from usertwin.memory.atomic_files import checksum
from usertwin.memory.triples import Triple
from usertwin.personas import TwinError
from usertwin.personas.files import create_database, private_folder, replace_file

from . import schema
from .error_messages import recovery_hint, storage_errors
from .seal import break_seal, log_bytes, matches_seal, read_seal, write_seal
from .writer_lock import WriterLock

_LOG = logging.getLogger("usertwin.memory")
FORMAT = "2"
_FETCHED_ROWS = 5000
#: Checkpoint the write-ahead log at this many pages (16 MiB): four times SQLite's default, so that it happens less often.
_CHECKPOINT_PAGES = 4000


@dataclass(frozen=True, slots=True)
class State:
    """The metadata of a memory.

    Attributes:
        memory: a random id, by which the index of another memory is noticed.
        embedder: name of the embedding model.
        dimension: length of an embedding.
        generation: number of transactions.
        removals: number of transactions that removed or replaced triples.
        count: number of triples.
        needs_vacuum: whether the files may still hold parts of removed triples.
        index: the requested kind of index, or "auto".
    """

    memory: str
    embedder: str
    dimension: int
    _: KW_ONLY
    generation: int = 0
    removals: int = 0
    count: int = 0
    needs_vacuum: bool = False
    index: str = "auto"


class Database:
    """The SQLite side of a memory. Not thread-safe; the store holds a lock around every call.

    Args:
        folder: the folder of `memory.sqlite`.
        embedder: name of the embedding model; must be that of the memory.
        dimension: returns the length of an embedding; called only when a memory is made.
        create: make the memory if there is none.
        wait: timeout in seconds while another process writes.
    """

    def __init__(self, folder: Path, embedder: str, dimension: Callable[[], int], *, create: bool, wait: float) -> None:
        self.folder, self.path = folder, folder / "memory.sqlite"
        if not create and not self.path.is_file():
            raise TwinError(f"{folder}: there is no memory here, or memory.sqlite is missing; {recovery_hint(folder)}")
        with storage_errors(folder):
            private_folder(folder)
            self.writable = os.access(folder, os.W_OK) and (not self.path.exists() or os.access(self.path, os.W_OK))
            self.lock = WriterLock(folder, wait)
            if not self.path.exists() or self.path.stat().st_size == 0:
                self._create(State(uuid4().hex, embedder, int(dimension())))
            self._seal_matches = matches_seal(folder)
            self._immutable_stat: tuple[Any, ...] | None = None
            self.connection = self._connect()
            try:
                self._read_meta(embedder)
            except BaseException:
                self.connection.close()
                raise

    # Opening and closing ---------------------------------------------------------------------------------------------

    def _create(self, state: State) -> None:
        if (self.folder / "memory.faiss").exists():  # an index is only written beside a database
            raise TwinError(
                f"{self.folder}: the memory is damaged: memory.sqlite is missing or empty; {recovery_hint(self.folder)}"
            )
        self._refuse_if_not_writable()
        self.lock.acquire()
        try:
            if not self.path.exists() or self.path.stat().st_size == 0:  # otherwise another process was faster
                rewrite(self.folder, state, ())
        finally:
            self.lock.release()

    def _connect(self) -> sqlite3.Connection:
        if self.writable:
            create_database(self.path)
            connection = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA secure_delete=ON")  # overwrites removed rows
            connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
            return connection
        # Without write permission, SQLite cannot follow the log of a later writer: see `snapshot`.
        mode = "mode=ro" if log_bytes(self.folder) else "immutable=1"
        self._immutable_stat = self._file_stat() if mode == "immutable=1" else None
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?{mode}", uri=True, check_same_thread=False, isolation_level=None
        )

    def _read_meta(self, embedder: str) -> None:
        # The version is read before the data: a change between the two is then noticed at the next `refresh`.
        self._version = self._data_version()
        meta = dict(self.connection.execute("SELECT key, value FROM meta"))
        if meta.get("format") == "1":
            meta = self._upgrade(meta)
            self._version = -1  # versions of different connections cannot be compared
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
        # After a power cut the seal may be older than the memory, which is no damage; a newer seal is of another memory.
        if self._seal_matches is False and seal is not None and self.state.generation <= seal.generation:
            raise TwinError(
                f"{self.folder}: the memory is damaged: memory.sqlite differs from its seal; {recovery_hint(self.folder)}"
            )
        self.sealed = bool(self._seal_matches)

    def refresh(self) -> bool:
        """Read the metadata again if another process has written; return whether it has."""
        version = self._data_version()
        if version == self._version:
            return False
        self._version = version
        self.state = read_state(self.connection)
        return True

    @contextmanager
    def snapshot(self) -> Generator[None]:
        """Read from one consistent state, whatever other processes write meanwhile."""
        if self.connection.in_transaction:
            yield
            return
        if self._immutable_stat is not None and self._immutable_stat != self._file_stat():
            self.connection.close()
            self.connection = self._connect()
            self._version = -1
        self.connection.execute("BEGIN")
        try:
            yield
        finally:
            if self.connection.in_transaction:  # otherwise SQLite has ended it after an error
                self.connection.execute("COMMIT")

    def _file_stat(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Return inode, size and time of the files, which change when another process writes."""
        stats: list[tuple[int, int, int] | None] = []
        for path in (self.path, self.folder / "memory.sqlite-wal"):
            try:
                stat = path.stat()
                stats.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
            except OSError:
                stats.append(None)
        return tuple(stats)

    def _data_version(self) -> int:
        return int(self.connection.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Close, and release the writer lock."""
        self.connection.close()
        self.lock.release()

    # The seal --------------------------------------------------------------------------------------------------------

    def seal(self) -> None:
        """Checkpoint the log into `memory.sqlite` and seal it. Requires the lock. Skipped while others read old pages."""
        busy, _, _ = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy and not log_bytes(self.folder):
            write_seal(self.folder, self.state.generation)
            self.sealed = True

    # Writing ---------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take the writer lock and break the seal, unless that was done before."""
        self._refuse_if_not_writable()
        self.lock.acquire()
        if self.sealed or (self.folder / "memory.seal").exists():
            break_seal(self.folder)
            self.sealed = False

    @contextmanager
    def change(self) -> Generator[Change]:
        """Run a transaction: on exit it is on disk as a whole; after an error nothing is changed."""
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
            write_state(self.connection, state)
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            self._version = -1  # Ctrl-C may arrive during the commit: let `refresh` read the state
            raise
        self.state = state

    def vacuum(self) -> bool:
        """Rewrite the file without any part of removed triples; return False while other processes read old pages."""
        self.connection.execute("VACUUM")
        if self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            return False
        state = replace(self.state, needs_vacuum=False, generation=self.state.generation + 1)
        self.connection.execute("BEGIN IMMEDIATE")
        write_state(self.connection, state)
        self.connection.execute("COMMIT")
        self.state = state
        return True

    def _refuse_if_not_writable(self) -> None:
        if not self.writable:
            raise PermissionError(errno.EACCES, "is read-only")

    # Reading ---------------------------------------------------------------------------------------------------------

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield all rows of `schema.SELECT`; read in batches, so that other processes can write in between."""
        return all_rows(self.connection)

    def problems(self, *, with_seal: bool = True) -> list[str]:
        """Return one sentence for each kind of damage; reads the whole file, and by default compares it with its seal."""
        problems, _ = find_problems(self.connection, read_state(self.connection))  # another process may have written
        if not problems and with_seal and matches_seal(self.folder, at_any_size=True) is False:
            problems.append("memory.sqlite differs from its seal, though every triple in it is intact")
        return problems

    # From an earlier format ------------------------------------------------------------------------------------------

    def _upgrade(self, meta: dict[str, str]) -> dict[str, str]:
        """Rewrite a memory of format 1, which had no checksums, in this format."""
        self._refuse_if_not_writable()
        self.lock.acquire()
        try:
            self.connection.close()
            self._seal_matches, self.connection = matches_seal(self.folder), self._connect()
            meta = dict(self.connection.execute("SELECT key, value FROM meta"))
            if meta.get("format") != "1":  # another process was faster
                return meta
            old = self.connection.execute(
                "SELECT number, speaker, conversation, position, moment, context, action, goal, ends, reasoning, score, "
                "provenance, embedding FROM triples ORDER BY number"
            ).fetchall()
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.connection.close()
            content = ((row[0], schema.decode_format_1(row), row[-1]) for row in old)
            rewrite(self.folder, State(uuid4().hex, meta["embedder"], int(meta["dimension"])), content)
            _LOG.warning("%s: the memory was upgraded to format %s (%d triples)", self.folder, FORMAT, len(old))
            self._seal_matches = matches_seal(self.folder)
            self.connection = self._connect()
            return dict(self.connection.execute("SELECT key, value FROM meta"))
        finally:
            self.lock.release()


@dataclass(slots=True)
class Change:
    """A transaction and its effect on `State`, which `Database.change` stores."""

    connection: sqlite3.Connection
    added: int = 0
    removed: int = 0
    index: str | None = None


def rewrite(folder: Path, state: State, content: Iterable[tuple[int, Triple, bytes]]) -> None:
    """Replace `memory.sqlite`, if there is one, by a database of this content (number, triple, embedding).

    Requires the lock, and an empty write-ahead log.
    """
    partial = folder / "memory.sqlite.partial"
    for leftover in (partial, folder / "memory.sqlite.partial-journal"):
        leftover.unlink(missing_ok=True)
    count = 0
    create_database(partial)
    with closing(sqlite3.connect(partial, isolation_level=None)) as connection:
        connection.executescript(schema.SCHEMA)
        connection.execute("BEGIN")
        for number, triple, embedding in content:
            connection.execute(schema.INSERT, schema.encode(number, triple, embedding))
            count += 1
        state = replace(state, count=count)
        connection.execute("INSERT INTO meta VALUES ('format', ?)", (FORMAT,))
        write_state(connection, state)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL")
    break_seal(folder)
    for old in ("memory.sqlite-wal", "memory.sqlite-shm"):  # SQLite would take them for those of the new file
        (folder / old).unlink(missing_ok=True)
    replace_file(partial, folder / "memory.sqlite")
    write_seal(folder, state.generation)


def all_rows(connection: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """Yield all rows of `schema.SELECT` in the order of their numbers, read in batches."""
    last = -1
    query = f"{schema.SELECT} WHERE number > ? ORDER BY number LIMIT ?"
    while rows := connection.execute(query, (last, _FETCHED_ROWS)).fetchall():
        yield from rows
        if rows[-1][0] <= last:  # in a damaged file this would go on for ever
            raise sqlite3.DatabaseError("its rows are not in the order of their numbers")
        last = rows[-1][0]


def find_problems(connection: sqlite3.Connection, state: State) -> tuple[list[str], int]:
    """Return one sentence for each kind of damage, and the number of intact triples; reads the whole database."""
    problems: list[str] = []
    count = damaged = 0
    try:
        problems += [f"SQLite reports: {text}" for (text,) in connection.execute("PRAGMA integrity_check(5)") if text != "ok"]
        for row in all_rows(connection):
            count += 1
            damaged += not schema.is_intact(row, state.dimension)
        if damaged:
            problems.append(f"{damaged} of {count} triples differ from what was written")
        if count != state.count and read_state(connection) == state:  # otherwise another process wrote meanwhile
            problems.append(f"it holds {count} triples instead of {state.count}")
    except sqlite3.Error as error:
        problems.append(f"SQLite cannot read it ({error})")
    return problems, count - damaged


def read_state(connection: sqlite3.Connection) -> State:
    """Return the metadata of a memory. ValueError if it differs from what was written."""
    return _state(dict(connection.execute("SELECT key, value FROM meta")))


def write_state(connection: sqlite3.Connection, state: State) -> None:
    """Store the metadata of a memory."""
    text = json.dumps(asdict(state))
    connection.executemany(
        "INSERT OR REPLACE INTO meta VALUES (?, ?)", [("state", text), ("checksum", checksum(text.encode()))]
    )


def _state(meta: dict[str, str]) -> State:
    text = meta.get("state", "")
    if checksum(text.encode()) != meta.get("checksum"):
        raise ValueError("the metadata differs from what was written")
    raw: dict[str, Any] = json.loads(text)
    if "unswept" in raw:  # the name of this field in development snapshots before 0.1.0
        raw["needs_vacuum"] = raw.pop("unswept")
    if raw.get("index") in ("hnsw", "ivf"):  # kinds of development snapshots before 0.1.0
        raw["index"] = "auto"
    return State(**raw)
