"""An on-disk cache of chat completions, keyed by the hash of the request.

Design: the cache lies beside the twin's memory instead of in a common folder, because completions are about a person: they
move with the twin and are deleted when conversations are forgotten.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from usertwin.personas import ModelError
from usertwin.personas.files import create_database
from usertwin.personas.reading import as_type, parse_json

COMPLETIONS_FILE = "answers.sqlite"  # the file name of development snapshots before 0.1.0


class CompletionCache:
    """Completions by request, in a private SQLite file that is created if missing.

    A completion is on disk before it is used, so a killed run repeats no finished call, but for the unreadable ones of a judge.
    Several threads and processes may use a file at the same time.

    Args:
        path: the file.
        read_only: whether the file must exist and is never written.

    Raises:
        ModelError: the file cannot be read or written.
    """

    _NAME, _WAY_OUT = "the completion cache", "delete the file and try again"

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self._path, self._lock = Path(path), threading.Lock()
        try:
            if read_only:
                uri = f"{self._path.absolute().as_uri()}?mode=ro"
                self._database = sqlite3.connect(uri, uri=True, check_same_thread=False, timeout=30.0)
                return
            create_database(self._path)
            self._database = sqlite3.connect(path, check_same_thread=False, timeout=30.0)
            self._begin()
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: SQLite's message holds damaged text
            raise self._unusable(error) from error

    def _begin(self) -> None:
        """Set the file up. SQLite does not wait while another process changes the journal mode, so that is tried again."""
        from tenacity import Retrying, retry_if_exception_message, stop_after_delay, wait_random

        for attempt in Retrying(
            retry=retry_if_exception_message("database is locked"), stop=stop_after_delay(30), wait=wait_random(0.01, 0.1),
            reraise=True,
        ):  # fmt: skip
            with attempt:
                self._database.executescript(  # synchronous=NORMAL survives a kill; a power failure costs one call
                    "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE IF NOT EXISTS answers"
                    " (key BLOB PRIMARY KEY, answer TEXT NOT NULL) STRICT, WITHOUT ROWID"
                )

    def get(self, request: Sequence[object], shape: Any = object) -> Any:
        """Return the cached completion as a value of this type, by default any JSON value; None if there is none."""
        try:
            with self._lock:
                row = self._database.execute("SELECT answer FROM answers WHERE key = ?", (request_key(request),)).fetchone()
            value = None if row is None else parse_json(row[0])
            return value if value is None or shape is object else as_type(shape, value)
        except (sqlite3.Error, ValueError, TypeError, AttributeError) as error:  # the last two: a value that is no text
            raise self._unusable(error) from error

    def put(self, request: Sequence[object], completion: object) -> None:
        """Store a completion durably."""
        self._put("REPLACE", request, completion)

    def put_first(self, request: Sequence[object], completion: object) -> Any:
        """Store a completion durably unless the request has one, and return the one that is stored, as its JSON value."""
        self._put("IGNORE", request, completion)
        return self.get(request)

    def _put(self, conflict: str, request: Sequence[object], completion: object) -> None:
        try:
            with self._lock, self._database:
                row = (request_key(request), json.dumps(completion))
                self._database.execute(f"INSERT OR {conflict} INTO answers VALUES (?, ?)", row)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _unusable(self, error: Exception) -> ModelError:
        return ModelError(f"{self._path}: {self._NAME} cannot be used ({error}); {self._WAY_OUT}")


def request_key(request: Sequence[object]) -> bytes:
    """Return the hash of a request: of its JSON text, whatever the order of the keys of its objects."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=True).encode()).digest()
