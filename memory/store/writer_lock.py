"""The writer lock of a memory: one process may write at a time.

Design: the lock is the operating system's (filelock), so it ends with its process, however that ends. A small file beside it
names the holder, only for the message to a process that waits.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import datetime
from pathlib import Path

from usertwin.personas import TwinError
from usertwin.personas.files import open_private

_LOG = logging.getLogger("usertwin.memory")


class WriterLock:
    """The exclusive right to write in a folder.

    Args:
        folder: the folder of the memory.
        wait: timeout in seconds while another process holds the lock.
        files: path of the lock's files, without ".lock" and ".writer"; by default "memory" in the folder.
    """

    def __init__(self, folder: Path, wait: float, files: Path | None = None) -> None:
        from filelock import FileLock

        files = files or folder / "memory"
        self._folder, self._wait = folder, wait
        self._holder_file = files.with_name(f"{files.name}.writer")
        self._lock = FileLock(files.with_name(f"{files.name}.lock"), thread_local=False, mode=0o600)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock.is_locked

    def acquire(self) -> None:
        """Take the lock, waiting if needed. TwinError that names the holder if it is not free within the timeout."""
        if not self.held and not self._try(0):
            _LOG.warning("%s: waiting for %s, which is writing in it", self._folder, self._holder())
            if not self._try(self._wait):
                raise TwinError(
                    f"{self._folder}: {self._holder()} is writing in this memory; wait until it has finished, or stop it"
                )

    def check(self) -> None:
        """Raise TwinError that names the holder if another process holds the lock."""
        self.acquire()
        self.release()

    def try_acquire(self) -> bool:
        """Take the lock if it is free; return whether it is held now."""
        return self.held or self._try(0)

    def release(self) -> None:
        """Let other processes write."""
        if self.held:
            self._holder_file.unlink(missing_ok=True)
            self._lock.release()

    def _try(self, timeout: float) -> bool:
        from filelock import Timeout

        try:
            self._lock.acquire(timeout=timeout)
        except Timeout:
            return False
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        program = Path(sys.argv[0]).name or "python"
        try:
            with open_private(self._holder_file) as file:
                file.write(f"process {os.getpid()} ({program}, since {since})")
        except OSError:  # on a full disk, deleting must still be possible
            _LOG.debug("%s could not be written", self._holder_file)
        return True

    def _holder(self) -> str:
        try:
            return self._holder_file.read_text("utf-8") or "another process"
        except OSError:
            return "another process"
