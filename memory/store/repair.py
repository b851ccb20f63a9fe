"""Looking at a memory that may be damaged, and keeping what is left of it.

The one design choice: nothing here trusts the index, the seal or what the memory says about itself; a triple is kept if its own
checksums hold, and a row that cannot be reached from its neighbours is asked for by its number.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from usertwin.personas import TwinError

from . import schema as rows
from .database import State, examine, read_state, rewrite
from .error_messages import storage_errors
from .seal import holds, log_bytes
from .vector_index import UnusableIndexError, VectorIndex
from .writer_lock import WriterLock

#: Where a damaged file does not say how many triples there were, numbers up to this one past the last found are tried.
_TRIED_PAST_THE_END = 1000


@dataclass(frozen=True, slots=True)
class DamageReport:
    """What a look at every byte of a memory has shown.

    Attributes:
        problems: what is wrong with memory.sqlite, a sentence each.
        whole: how many triples are whole.
        index: what is wrong with memory.faiss, or None.
        unclosed: whether the last writer did not close the memory, or is still at work.
    """

    problems: tuple[str, ...]
    whole: int
    index: str | None
    unclosed: bool


def inspect(folder: Path) -> DamageReport:
    """Read every byte of a memory. TwinError if there is none, or SQLite cannot even open it for reading.

    Nothing is changed or mended, so that one may look again after a copy was made.
    """
    path = folder / "memory.sqlite"
    if not path.is_file():
        raise TwinError(f"{folder}: there is no memory here; learn the twin again with --overwrite")
    problems, whole, state = list[str](), 0, None
    with storage_errors(folder), closing(_reader(path)) as connection:
        try:
            state = read_state(connection)
        except (sqlite3.Error, ValueError, TypeError) as error:
            problems.append(f"what the memory knows about itself is lost ({error})")
        if state is not None:
            problems, whole = examine(connection, state)
        else:
            whole = sum(1 for _ in _whole_rows(connection, None))
    whole_file = holds(folder, at_any_size=True)
    if whole_file is False and not problems:
        problems.append("it is not as it was closed, though every triple in it is whole")
    return DamageReport(tuple(problems), whole, _index_trouble(folder, state), whole_file is None)


def _index_trouble(folder: Path, state: State | None) -> str | None:
    try:
        _, stamp = VectorIndex.open(folder / "memory.faiss")
    except UnusableIndexError as error:
        return None if state is not None and not state.count and "missing" in str(error) else str(error)
    if state is not None and (stamp.memory, stamp.removals) != (state.memory, state.removals):
        return "is not of this memory as it is now"
    return None


def salvage(folder: Path, embedder: str) -> tuple[int, int]:
    """Write a damaged memory anew from the triples that are whole.

    Args:
        folder: where the memory is.
        embedder: the name of the embedding model, should the memory not know it any more.

    Returns:
        How many triples were kept, and how many are lost, as far as that can be told.

    Raises:
        TwinError: nothing is left, or somebody else writes in the memory.
    """
    path = folder / "memory.sqlite"
    lock = WriterLock(folder, wait=10.0)
    with storage_errors(folder), ExitStack() as stack:
        lock.acquire()
        stack.callback(lock.release)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            try:
                state = read_state(connection)
            except (sqlite3.Error, ValueError, TypeError):
                state = None
            kept = list(_whole_rows(connection, state))
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if not kept:
            raise TwinError(f"{folder}: no triple of the memory can be read any more; learn the twin again with --overwrite")
        if state is None:
            state = State(uuid4().hex, embedder, len(kept[0][-1]) // 4, count=len(kept))
        lost = max(0, state.count - len(kept))
        state = replace(state, removals=state.removals + 1, generation=state.generation + 1)
        rewrite(folder, state, ((row[0], rows.decode(row), row[-1]) for row in kept))
    return len(kept), lost


def _whole_rows(connection: sqlite3.Connection, state: State | None) -> Iterator[tuple[Any, ...]]:
    """The rows that are what was written, each asked for by itself, so that one that cannot be read hides no other."""
    last = _last_number(connection)
    end = last if last is not None else _TRIED_PAST_THE_END + (state.count if state else 0)
    number = misses = 0
    while number < end or (last is None and misses < _TRIED_PAST_THE_END):
        number += 1
        try:
            row = connection.execute(f"{rows.SELECT} WHERE number = ?", (number,)).fetchone()
        except sqlite3.Error:
            row = None
        misses += 1
        if row is not None and rows.is_whole(row, len(row[-1]) // 4 if state is None else state.dimension):
            misses = 0
            yield row


def _last_number(connection: sqlite3.Connection) -> int | None:
    for query in ("SELECT seq FROM sqlite_sequence WHERE name = 'triples'", "SELECT max(number) FROM triples"):
        try:
            found = connection.execute(query).fetchone()
        except sqlite3.Error:
            continue
        if found is not None and isinstance(found[0], int):
            return found[0]
    return None


def _reader(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, and leaves nothing behind where it can."""
    how = "mode=ro" if log_bytes(path.parent) else "immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None)
