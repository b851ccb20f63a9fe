"""What models answered, kept by content, so that nothing is asked twice: the same question, model, seed and settings.

The one design choice: a file beside the twin's memory, not a common one, since the answers are about a person: it moves with
the twin, and is gone when something is forgotten. Each answer is on disk before it is used, so a killed run repeats no call.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

from usertwin.personas import ModelError

COMPLETIONS_FILE = "answers.sqlite"


class CompletionCache:
    """Answers by the hash of what was asked.

    Args:
        path: the file; made if missing. ModelError if it cannot be used.
    """

    def __init__(self, path: str | Path) -> None:
        self._path, self._lock = Path(path), threading.Lock()
        try:
            self._database = sqlite3.connect(path, check_same_thread=False, timeout=30.0)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")  # survives a kill; a power cut costs a call
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer TEXT NOT NULL) STRICT, WITHOUT ROWID"
            )
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def get(self, asked: Sequence[object]) -> object | None:
        """What was answered, as JSON values; None if it was not asked."""
        try:
            with self._lock:
                row = self._database.execute("SELECT answer FROM answers WHERE key = ?", (_key(asked),)).fetchone()
            return None if row is None else json.loads(row[0])
        except (sqlite3.Error, ValueError) as error:
            raise self._unusable(error) from error

    def put(self, asked: Sequence[object], answer: object) -> None:
        """Keep an answer, durably."""
        try:
            with self._lock, self._database:
                self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (_key(asked), json.dumps(answer)))
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _unusable(self, error: Exception) -> ModelError:
        return ModelError(f"{self._path}: the kept answers cannot be used ({error}); delete that file and try again")


def _key(asked: Sequence[object]) -> bytes:
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=True).encode()).digest()
