"""Errors of the storage layer as one sentence each, with the folder and the way out.

SQLite, FAISS and the operating system raise errors of many types; `storage_errors` turns them into `StorageError`. Every change
of the memory is a transaction, so it may say that nothing was changed; a function of several changes uses `changed_before`.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from usertwin.personas import TwinError, UsertwinError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: SQLite's codes where a quota ends a write, or the shared-memory file cannot grow.
_WRITE_FAILED = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)


class StorageError(TwinError):
    """A file of a twin cannot be written: what is wrong, the state it is left in, and the way out."""

    def __init__(self, folder: Path, problem: str, way_out: str, state: str = "nothing was changed") -> None:
        super().__init__(f"{folder}: {problem}, and {state}; {way_out}")
        self.folder, self.problem, self.way_out = folder, problem, way_out


@contextmanager
def storage_errors(folder: Path) -> Generator[None]:
    """Raise errors of SQLite, FAISS and the operating system as a TwinError of one sentence."""
    try:
        yield
    except (sqlite3.Error, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        if isinstance(error, UsertwinError):  # has a better message already
            raise
        raise _storage_error(folder, error) from error


@contextmanager
def changed_before(state: str) -> Generator[None]:
    """Let a StorageError say that the twin is left in this state, since changes before it were finished."""
    try:
        yield
    except StorageError as error:
        raise StorageError(error.folder, error.problem, error.way_out, state) from error


def _storage_error(folder: Path, error: Exception) -> TwinError:
    code = getattr(error, "sqlite_errorcode", 0)
    primary_code = code & 0xFF
    number = error.errno if isinstance(error, OSError) else None
    make_room = "make room and do it again"
    if primary_code == sqlite3.SQLITE_FULL or number in _DISK_FULL:
        return StorageError(folder, "the disk is full", make_room)
    if code in _WRITE_FAILED or any(os.strerror(n) in str(error) for n in _DISK_FULL):
        return StorageError(folder, "the disk is full, or a quota is used up", make_room)
    if primary_code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM) or number in (errno.EACCES, errno.EPERM, errno.EROFS):
        refused = "the memory is read-only, and nothing was changed"  # not a StorageError: it comes before the first change
        return TwinError(f"{folder}: {refused}; get write permission there, or copy the memory elsewhere")
    if primary_code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageError(folder, "another program has locked memory.sqlite", "try again when it has finished")
    return TwinError(f"{folder}: the memory is damaged or cannot be used ({error}); {recovery_hint(folder)}")


def recovery_hint(folder: Path) -> str:
    """Return the commands that inspect and repair a damaged memory."""
    return (
        f'list the damage with "usertwin memory check {folder.name}", keep the intact triples with "usertwin memory rebuild '
        f'{folder.name}", restore it from a copy, or learn the twin again with --overwrite'
    )
