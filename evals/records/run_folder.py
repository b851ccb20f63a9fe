"""The lock of a run folder, and atomic writes of the files in it."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from usertwin.personas import UsageError

HTML_REPORT, MARKDOWN_REPORT = "report.html", "report.md"
#: A lock of the operating system, which releases it when the process ends.
LOCK = "run.lock"


@contextmanager
def exclusive_run(folder: Path) -> Generator[None]:
    """Hold the lock of a run folder, so that no other process appends to the same files. Makes the folder if missing.

    Raises:
        UsageError: the folder cannot be written, or another process holds the lock.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"{folder}: another process works on this run; wait until it ends, stop it, or name another folder"
        ) from None
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); name another folder") from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # before release: acquisition does not wait, so no process holds the old inode
        lock.release()


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole, or leave the old one: write beside it, then rename. UsageError if it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot be written ({error.strerror}); name a file in a folder that exists") from error
