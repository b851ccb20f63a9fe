"""Errors of the storage layer as one sentence each, with the folder and the way out.

SQLite, FAISS and the operating system raise errors of many types; `storage_errors` turns them into `TwinError`. A message may
say that nothing was changed, because every change is a transaction.
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


@contextmanager
def storage_errors(folder: Path) -> Generator[None]:
    """Raise errors of SQLite, FAISS and the operating system as a TwinError of one sentence."""
    try:
        yield
    except (sqlite3.Error, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        if isinstance(error, UsertwinError):  # has a better message already
            raise
        raise TwinError(f"{folder}: {_sentence(folder, error)}") from error


def _sentence(folder: Path, error: Exception) -> str:
    code = getattr(error, "sqlite_errorcode", 0)
    primary_code = code & 0xFF
    number = error.errno if isinstance(error, OSError) else None
    if primary_code == sqlite3.SQLITE_FULL or number in _DISK_FULL:
        return "the disk is full, and nothing was changed; make room and do it again"
    if code in _WRITE_FAILED or any(os.strerror(n) in str(error) for n in _DISK_FULL):
        return "the disk is full, or a quota is used up, and nothing was changed; make room and do it again"
    if primary_code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM) or number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "the memory is read-only, and nothing was changed; get write permission there, or copy the memory elsewhere"
    if primary_code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "another program has locked memory.sqlite, and nothing was changed; try again when it has finished"
    return f"the memory is damaged or cannot be used ({error}); {recovery_hint(folder)}"


def recovery_hint(folder: Path) -> str:
    """Return the commands that inspect and repair a damaged memory."""
    return (
        f'list the damage with "usertwin memory check {folder.name}", keep the intact triples with "usertwin memory rebuild '
        f'{folder.name}", restore it from a copy, or learn the twin again with --overwrite'
    )
