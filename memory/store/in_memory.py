"""A memory that is never written to disk, for turns that belong to no twin: those of the person a twin is compared with."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from . import schema
from .database import Database, State, write_state
from .writer_lock import WriterLock

#: Stands for the folder in messages.
IN_RAM = Path("memory in RAM")


class _NoLock(WriterLock):
    """A lock that is never held, so that nothing is saved."""

    def __init__(self) -> None:
        pass

    @property
    def held(self) -> bool:
        """False."""
        return False

    def try_acquire(self) -> bool:
        """Return False."""
        return False

    def release(self) -> None:
        """Do nothing."""


class InMemoryDatabase(Database):
    """The SQLite side of a memory in RAM, for one thread at a time, without a seal.

    Args:
        embedder: name of the embedding model.
        dimension: length of an embedding.
    """

    def __init__(self, embedder: str, dimension: int) -> None:
        self.folder = self.path = IN_RAM
        self.writable, self.sealed, self.lock = True, True, _NoLock()
        self.connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self.connection.executescript(f"PRAGMA temp_store=MEMORY; {schema.SCHEMA}")
        self.state = State(uuid4().hex, embedder, dimension)
        write_state(self.connection, self.state)

    def refresh(self) -> bool:
        """Return False: nobody else writes."""
        return False

    @contextmanager
    def snapshot(self) -> Generator[None]:
        """See `Database.snapshot`."""
        yield

    def begin(self) -> None:
        """There is nothing to lock."""

    def close(self) -> None:
        """Close; the memory is gone."""
        self.connection.close()
