"""The locks of a twin, and the replacement of its folder, which one of them guards.

Two hidden files beside the folder, since the folder itself is moved. The writer lock is held while a twin is learned, extended
or erased. The record lock is held for a moment, while `twin.json` is read and replaced or the folder is moved: so a measurement
can be stored while pairs are added.

Design: a lock's file is unlinked before the lock is released, so a home holds nothing but twins. filelock discards a lock on an
unlinked file and tries again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from usertwin.memory.store.error_messages import storage_errors
from usertwin.memory.store.writer_lock import WriterLock
from usertwin.personas import TwinError
from usertwin.personas.files import fsync_folder, private_folder, refuse_link, refuse_links_in

_WAIT = 10.0
#: The ends of the names of hidden files and folders beside a twin's folder: two locks, its holder, two folders.
_BESIDE = ("lock", "writer", "record", "partial", "old")


@contextmanager
def writing(folder: Path, *, wait: float | None = None) -> Generator[None]:
    """Hold the writer lock of a twin. TwinError, with the holder, if it is not free within `wait` seconds (default 10)."""
    files = folder.with_name(f".{folder.name}")
    with storage_errors(folder):
        private_folder(folder.parent)
        lock = WriterLock(folder, _WAIT if wait is None else wait, files)
        lock.acquire()
        for path in (*folder.glob(".*.partial"), *staged_folder(folder).glob(".*.partial")):
            if not path.name.startswith((".twin.json.", ".memory.")):  # they have locks of their own
                path.unlink(missing_ok=True)  # of a killed process
    try:
        yield
    finally:
        _unlink(files.with_name(f"{files.name}.lock"))
        lock.release()


@contextmanager
def record_lock(folder: Path) -> Generator[None]:
    """Hold the record lock of a twin, for a moment. TwinError if another process holds it for long."""
    from filelock import FileLock, Timeout

    file = folder.with_name(f".{folder.name}.record")
    with storage_errors(folder):
        lock = FileLock(file, thread_local=False, mode=0o600)
        try:
            lock.acquire(timeout=_WAIT)
        except Timeout:
            raise TwinError(f"{folder}: another process is changing twin.json; try again when it has finished") from None
    try:
        yield
    finally:
        _unlink(file)
        lock.release()


def _unlink(file: Path) -> None:
    with suppress(OSError):  # Windows unlinks no open file
        file.unlink()


# Replacing a folder --------------------------------------------------------------------------------------------------


def staged_folder(folder: Path) -> Path:
    """Return the hidden folder in which a twin is learned before it replaces the one in `folder`."""
    return folder.parent / f".{folder.name}.partial"


def replaced_folder(folder: Path) -> Path:
    """Return the hidden folder that holds the old twin while it is replaced."""
    return folder.parent / f".{folder.name}.old"


def refuse_links(folder: Path) -> None:
    """Raise UsageError if a twin's folder, its locks, or a folder that may take its place is a link or holds one."""
    beside = (folder.with_name(f".{folder.name}.{kind}") for kind in _BESIDE)  # a search would read the names of all twins
    for path in (folder, *beside):
        if path.is_dir():
            refuse_links_in(path)
        else:
            refuse_link(path)


def replace_twin(folder: Path) -> None:
    """Move the staged twin, if it is complete or there is no other, to its place; `finish_replacement` finishes this."""
    with record_lock(folder), storage_errors(folder):
        if folder.exists():
            shutil.rmtree(replaced_folder(folder), ignore_errors=True)
            folder.rename(replaced_folder(folder))
        staged_folder(folder).rename(folder)
        fsync_folder(folder.parent)
        shutil.rmtree(replaced_folder(folder), ignore_errors=True)


def finish_replacement(folder: Path) -> None:
    """Finish a replacement that was stopped: put the new twin in place, or else the old one, and delete what is left over."""
    old, staged = replaced_folder(folder), staged_folder(folder)
    if not old.exists() or (folder.exists() and not os.access(folder.parent, os.W_OK)):
        return
    with record_lock(folder), storage_errors(folder):
        if not folder.exists() and old.exists():  # another process may have finished it
            (staged if _is_complete(staged) else old).rename(folder)
            fsync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def _is_complete(folder: Path) -> bool:
    try:
        return json.loads((folder / "twin.json").read_bytes())["state"] == "complete"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
