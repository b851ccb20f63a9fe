"""Inspection and repair of a memory that may be damaged.

Nothing here trusts the index, the seal or the metadata: a triple is kept if its own checksums match. Rows are read one by one,
by their number, so that a damaged page hides no other row.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from usertwin.personas import TwinError
from usertwin.personas.files import create_database

from . import schema
from .database import State, find_problems, read_state, rewrite
from .error_messages import storage_errors
from .seal import log_bytes, matches_seal
from .vector_index import UnusableIndexError, VectorIndex
from .writer_lock import WriterLock

#: Where the number of triples is lost, reading stops after this many numbers without an intact row.
_MAX_GAP = 1000


@dataclass(frozen=True, slots=True)
class DamageReport:
    """The result of reading every byte of a memory.

    Attributes:
        problems: damage to memory.sqlite, one sentence each.
        intact: number of intact triples.
        index_problem: why memory.faiss cannot be used, or None.
        not_closed: whether the last writer did not close the memory, or is still at work.
    """

    problems: tuple[str, ...]
    intact: int
    index_problem: str | None
    not_closed: bool


def inspect_memory(folder: Path) -> DamageReport:
    """Read every byte of a memory and change nothing. TwinError if there is none, or SQLite cannot open it."""
    path = folder / "memory.sqlite"
    if not path.is_file():
        raise TwinError(f"{folder}: there is no memory here; learn the twin again with --overwrite")
    problems, state = list[str](), None
    with storage_errors(folder), closing(_connect_read_only(path)) as connection:
        try:
            state = read_state(connection)
        except (sqlite3.Error, ValueError, TypeError) as error:
            problems.append(f"the metadata is lost ({error})")
        if state is not None:
            problems, intact = find_problems(connection, state)
        else:
            intact = sum(1 for _ in _intact_rows(connection, None))
    matches = matches_seal(folder, at_any_size=True)
    if matches is False and not problems:
        problems.append("it differs from its seal, though every triple in it is intact")
    return DamageReport(tuple(problems), intact, _index_problem(folder, state), matches is None)


def memory_version(folder: Path) -> tuple[str, int]:
    """Return the id of the memory in a folder and the number of its transactions, which tell whether it has changed."""
    path = folder / "memory.sqlite"
    with storage_errors(folder), ExitStack() as stack:
        if os.access(folder, os.W_OK):  # a writer may be at work
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)
        else:
            connection = _connect_read_only(path)
        stack.enter_context(closing(connection))
        state = read_state(connection)
    return state.memory, state.generation


def _index_problem(folder: Path, state: State | None) -> str | None:
    try:
        _, stamp = VectorIndex.open(folder / "memory.faiss")
    except UnusableIndexError as error:
        return None if state is not None and not state.count and "missing" in str(error) else str(error)
    if state is not None and (stamp.memory, stamp.removals) != (state.memory, state.removals):
        return "does not match the present memory"
    return None


def repair_memory(folder: Path, embedder: str) -> tuple[int, int]:
    """Rewrite a damaged memory from its intact triples.

    Args:
        folder: the folder of the memory.
        embedder: name of the embedding model, used if the memory has lost it.

    Returns:
        The number of triples that were kept, and the number that are lost, as far as it is known.

    Raises:
        TwinError: no triple is intact, or another process is writing in the memory.
    """
    path = folder / "memory.sqlite"
    lock = WriterLock(folder, wait=10.0)
    with storage_errors(folder), ExitStack() as stack:
        lock.acquire()
        stack.callback(lock.release)
        create_database(path)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            try:
                state = read_state(connection)
            except (sqlite3.Error, ValueError, TypeError):
                state = None
            rows = list(_intact_rows(connection, state))
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if not rows:
            raise TwinError(f"{folder}: no triple of the memory is intact; learn the twin again with --overwrite")
        if state is None:
            state = State(uuid4().hex, embedder, len(rows[0][-1]) // 4, count=len(rows))
        lost = max(0, state.count - len(rows))
        state = replace(state, removals=state.removals + 1, generation=state.generation + 1)
        rewrite(folder, state, ((row[0], schema.decode(row), row[-1]) for row in rows))
    return len(rows), lost


def _intact_rows(connection: sqlite3.Connection, state: State | None) -> Iterator[tuple[Any, ...]]:
    """Yield the intact rows; each is read by itself, so that an unreadable one hides no other."""
    last = _last_number(connection)
    end = last if last is not None else _MAX_GAP + (state.count if state else 0)
    number = misses = 0
    while number < end or (last is None and misses < _MAX_GAP):
        number += 1
        try:
            row = connection.execute(f"{schema.SELECT} WHERE number = ?", (number,)).fetchone()
        except sqlite3.Error:
            row = None
        misses += 1
        if row is not None and schema.is_intact(row, len(row[-1]) // 4 if state is None else state.dimension):
            misses = 0
            yield row
        elif last is not None and misses % _MAX_GAP == 0:  # numbers of erased triples, or a damaged last number
            number, end = _after_gap(connection, number, end)


def _after_gap(connection: sqlite3.Connection, number: int, end: int) -> tuple[int, int]:
    """Return the number before the next row, and the number at which to stop; both are `number` if no row follows."""
    try:
        row = connection.execute("SELECT number FROM triples WHERE number > ? ORDER BY number LIMIT 1", (number,)).fetchone()
        if row is None:
            return number, number
        return max(number, row[0] - 1), end
    except sqlite3.Error:  # read on one by one; a file has fewer rows than bytes
        pages, page_size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        return number, min(end, max(number, pages * page_size))


def _last_number(connection: sqlite3.Connection) -> int | None:
    """Return the greatest triple number, or None if it cannot be read."""
    for query in ("SELECT seq FROM sqlite_sequence WHERE name = 'triples'", "SELECT max(number) FROM triples"):
        try:
            row = connection.execute(query).fetchone()
        except sqlite3.Error:
            continue
        if row is not None and isinstance(row[0], int):
            return row[0]
    return None


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """Return a connection that changes nothing and, where possible, leaves no files behind."""
    mode = "mode=ro" if log_bytes(path.parent) else "immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)
