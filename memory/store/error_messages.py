"""What may go wrong with a memory, each in one sentence that names the folder and the way out.

The one design choice: SQLite, FAISS and the system raise what they like; one door turns it into a `TwinError`, and what it says
of the state of the files is true, since every change is a transaction.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from usertwin.personas import TwinError, UsertwinError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: What SQLite says if there is no room for another reason than a full disk, or for the file it shares with other processes.
_NOT_WRITTEN = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)


@contextmanager
def storage_errors(folder: Path) -> Generator[None]:
    """Say in one sentence what SQLite, FAISS or the system would say in a traceback."""
    try:
        yield
    except (sqlite3.Error, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        if isinstance(error, UsertwinError):  # says it better
            raise
        raise TwinError(f"{folder}: {_sentence(folder, error)}") from error


def _sentence(folder: Path, error: Exception) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    number = error.errno if isinstance(error, OSError) else None
    if code == sqlite3.SQLITE_FULL or number in _NO_ROOM:
        return "the disk is full, and nothing was changed; make room and do it again"
    if getattr(error, "sqlite_errorcode", 0) in _NOT_WRITTEN or any(os.strerror(n) in str(error) for n in _NO_ROOM):
        return "the disk is full, or a quota is used up, and nothing was changed; make room and do it again"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM) or number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "the memory is read-only, and nothing was changed; give yourself the right to write there, or copy it elsewhere"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "another program holds memory.sqlite, and nothing was changed; try again when it has finished"
    return f"the memory is damaged or cannot be used ({error}); {way_out(folder)}"


def way_out(folder: Path) -> str:
    """What to do about a damaged memory."""
    return (
        f'see what is left of it with "usertwin memory check {folder.name}", keep that with "usertwin memory rebuild '
        f'{folder.name}", restore it from a copy, or learn the twin again with --overwrite'
    )
