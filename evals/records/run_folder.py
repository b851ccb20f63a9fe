"""Writing what is to be read: the two reports of a run, and files that somebody named; and who may write in a run's folder.

The one design choice: a file is written beside its place and then moved there, so there is never half of one that looks whole;
and two processes never go on with the same run, whose lines would mix.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from usertwin.personas import UsageError

PAGE, NOTES = "report.html", "report.md"
#: Held by the process that works in a run's folder; the system's own lock, so that it is gone with that process.
LOCK = "run.lock"


@contextmanager
def exclusive_run(folder: Path) -> Generator[None]:
    """Work in the folder of a run, which is made if missing, and let no other process do so meanwhile.

    Raises:
        UsageError: nothing can be written there, or another process works in it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"{folder}: another process works on this run; wait until it has finished, or stop it, or name another folder"
        ) from None
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); name another folder") from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # while it is held; nobody waits for it, so nobody is left with what is gone
        lock.release()


def write_atomically(path: Path, text: str) -> None:
    """Write a file, or leave what was there. UsageError if it cannot be written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, "utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot be written ({error.strerror}); name a file in a folder that exists") from error
