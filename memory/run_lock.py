"""The lock of a run folder, so that no two processes append to the same files."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from usertwin.personas import UsageError
from usertwin.personas.files import private_folder, refuse_links_in

#: A lock of the operating system, which releases it when the process ends.
LOCK = "run.lock"


@contextmanager
def exclusive_run(folder: Path) -> Generator[None]:
    """Hold the lock of a run folder, so that no other process appends to the same files; make the folder if it is missing.

    What killed processes left of files that they were replacing is removed.

    Raises:
        UsageError: the folder cannot be written or holds a link, or another process holds the lock.
    """
    from filelock import FileLock, Timeout

    refuse_links_in(folder)
    lock = FileLock(folder / LOCK, mode=0o600)
    try:
        private_folder(folder)
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"{folder}: another process works on this run; wait until it ends, stop it, or name another folder"
        ) from None
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); name another folder") from None
    try:
        for leftover in folder.rglob(".*.partial"):  # of killed processes
            if leftover.is_file():
                leftover.unlink()
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # before release: acquisition does not wait, so no process holds the old inode
        lock.release()
