"""Who may write a memory: one process at a time.

The one design choice: the lock is the operating system's (filelock), so it is gone with the process that held it, however
that ended; a small file beside it only says who holds it, for the message to whoever waits.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import datetime
from pathlib import Path

from usertwin.personas import TwinError

_LOG = logging.getLogger("usertwin.memory")


class WriterLock:
    """The right to write in a folder.

    Args:
        folder: the folder of the memory.
        wait: seconds to wait for another process that holds the lock.
    """

    def __init__(self, folder: Path, wait: float) -> None:
        from filelock import FileLock

        self._folder, self._wait = folder, wait
        self._holder = folder / "memory.writer"
        self._lock = FileLock(folder / "memory.lock", thread_local=False)

    @property
    def held(self) -> bool:
        """Whether this is the one who may write."""
        return self._lock.is_locked

    def acquire(self) -> None:
        """Take the lock, waiting if need be. TwinError that says who holds it if they do not let go in time."""
        if not self.held and not self._take(0):
            _LOG.warning("%s: waiting for %s, who writes in it", self._folder, self._who())
            if not self._take(self._wait):
                raise TwinError(
                    f"{self._folder}: {self._who()} is writing in this memory; wait until it has finished, or stop it"
                )

    def check(self) -> None:
        """TwinError that says who holds the lock, if somebody does."""
        self.acquire()
        self.release()

    def try_acquire(self) -> bool:
        """Take the lock if it is free; whether it is held now."""
        return self.held or self._take(0)

    def release(self) -> None:
        """Let others write."""
        if self.held:
            self._holder.unlink(missing_ok=True)
            self._lock.release()

    def _take(self, wait: float) -> bool:
        from filelock import Timeout

        try:
            self._lock.acquire(timeout=wait)
        except Timeout:
            return False
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        try:
            self._holder.write_text(f"process {os.getpid()} ({Path(sys.argv[0]).name or 'python'}, since {since})", "utf-8")
        except OSError:  # a full disk must not keep anybody from deleting
            _LOG.debug("%s could not be written", self._holder)
        return True

    def _who(self) -> str:
        try:
            return self._holder.read_text("utf-8") or "another process"
        except OSError:
            return "another process"
