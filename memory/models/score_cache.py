"""A scorer with a cache on disk."""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import threading
from array import array
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from usertwin.personas import ModelError, UsertwinError
from usertwin.personas.files import create_database, private_folder

from .scoring import Likelihood, TokenScorer


class CachedScorer:
    """A scorer with a SQLite cache of its scores, by content. The file holds hashes and numbers, no text.

    The file is created if missing, and open only while it is in use. `weights_id` tells the scorer's weights from other weights
    of the same name.

    Raises:
        ModelError: the file cannot be read or written.
    """

    def __init__(self, scorer: TokenScorer, path: str | Path, weights_id: str = "") -> None:
        self.scorer, self.name = scorer, scorer.name
        self._path, self._weights, self._lock = Path(path), weights_id, threading.Lock()
        try:
            private_folder(self._path.parent)
            create_database(self._path)
            with self._open() as database:
                database.executescript(  # `scores` is an older schema, without single tokens
                    "PRAGMA journal_mode=WAL; DROP TABLE IF EXISTS scores;"
                    "CREATE TABLE IF NOT EXISTS likelihoods (key BLOB PRIMARY KEY, nats REAL NOT NULL, tokens INTEGER NOT NULL,"
                    " each BLOB NOT NULL, ends BLOB NOT NULL) STRICT, WITHOUT ROWID"
                )
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: SQLite's message holds damaged text
            raise ModelError(f"{path}: the score cache cannot be used ({error}); delete the file and try again") from error

    @property
    def vocabulary_size(self) -> int:
        """See `Tokenizer.vocabulary_size`."""
        return self.scorer.vocabulary_size

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer.tokenize`."""
        return self.scorer.tokenize(texts)

    @contextmanager
    def _open(self) -> Generator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=30.0)) as database:
            database.execute("PRAGMA synchronous=NORMAL")
            yield database

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`; only scores that are not in the cache are computed."""
        try:
            with self._lock, self._open() as database:
                return self._score(database, items)
        except UsertwinError:  # of the scorer, not of the cache
            raise
        except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:  # the last three: of values of another type
            message = f"the score cache cannot be used ({error}); free disk space, or delete the file"
            raise ModelError(f"{self._path}: {message}") from error

    def _score(self, database: sqlite3.Connection, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        keys = [self._key(prompt, continuation) for prompt, continuation in items]
        cached: dict[bytes, Likelihood] = {}
        for key in keys:
            query = "SELECT nats, tokens, each, ends FROM likelihoods WHERE key = ?"
            for nats, tokens, each, ends in database.execute(query, (key,)):
                cached[key] = Likelihood(nats, tokens, tuple(array("d", each)), tuple(array("I", ends)))
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in cached}
        if missing:
            scored = dict(zip(missing, self.scorer.score(list(missing.values())), strict=True))
            rows = (
                (key, s.nats, s.tokens, array("d", s.token_nats).tobytes(), array("I", s.token_ends).tobytes())
                for key, s in scored.items()
            )
            with database:
                database.executemany("INSERT OR REPLACE INTO likelihoods VALUES (?, ?, ?, ?, ?)", rows)
            cached |= scored
        return [cached[key] for key in keys]

    def _key(self, prompt: str, continuation: str) -> bytes:
        digest = hashlib.sha256()
        for part in (self.scorer.name, self._weights, prompt, continuation):
            raw = part.encode("utf-8", "surrogatepass")
            digest.update(struct.pack("<Q", len(raw)) + raw)
        return digest.digest()
