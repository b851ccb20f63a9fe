"""Sessions on disk, in LangGraph's SQLite checkpointer: each session is a thread, and its checkpoint holds all finished turns.

Design: only the newest checkpoint of a session is kept, since each holds the whole session; so what was taken back is erased.
The file may come from a stranger, so values are plain JSON: LangGraph's own serializer makes objects of named classes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from usertwin.memory.twin.record import SESSIONS_FILE
from usertwin.personas import TwinError, UsageError, UsertwinError
from usertwin.personas.files import create_database, private_folder, refuse_link
from usertwin.personas.reading import as_type, parse_json
from usertwin.personas.secrets import mask

from .session import Kind, Session

if TYPE_CHECKING:
    from langgraph.checkpoint.sqlite import SqliteSaver

_CHANNEL = "session"


class SessionStore:
    """The sessions in a folder, which is that of a twin; the file is created with the first session.

    Args:
        folder: the folder.
        speaker: the speaker that the twin was learned from.
    """

    def __init__(self, folder: Path, speaker: str = "") -> None:
        self.path, self._speaker = folder / SESSIONS_FILE, speaker
        self._saver: SqliteSaver | None = None
        self._file: tuple[int, int] | None = None
        self._saved: dict[str, str] = {}  # the checkpoint of each session that this process knows

    def save(self, session: Session) -> None:
        """Store a session durably, in place of what is stored of it.

        Raises:
            TwinError: the file cannot be written or was deleted, or another process has continued the session.
        """
        with self._errors():
            if self._file is not None and self._file != _identity(self.path):
                raise TwinError(f"{self.path}: was deleted meanwhile, so this session is not kept any more")
            saver = self._open()
            config: Any = {"configurable": {"thread_id": session.id, "checkpoint_ns": ""}}
            checkpoint = _checkpoint(session)
            with saver.cursor(transaction=False) as cursor:  # without reading what is stored
                newest = "SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = ?"
                [stored] = cursor.execute(newest, (session.id,)).fetchone()
            if stored not in (None, self._saved.get(session.id)):
                raise TwinError(
                    f"{self.path}: another process has continued the session {session.id}, so this one is not kept any more"
                )
            saver.put(config, checkpoint, {"source": "update", "step": len(session.turns), "parents": {}}, {})
            with saver.cursor() as cursor:
                older = "DELETE FROM checkpoints WHERE thread_id = ? AND checkpoint_id <> ?"
                cursor.execute(older, (session.id, checkpoint["id"]))
            self._saved[session.id] = checkpoint["id"]

    def load(self, id_: str, kind: Kind) -> Session:
        """Return a session of a kind by its id; "" for the latest one.

        Raises:
            UsageError: there is no such session.
            TwinError: the file is damaged or cannot be read.
        """
        sessions = self.sessions()
        chosen = [s for s in sessions if s.kind == kind and id_ in ("", s.id)]
        if chosen:
            return chosen[0]
        other = next((s for s in sessions if s.id == id_), None)
        if other is not None:
            raise UsageError(f"--resume: the session {id_} is of usertwin {other.kind}; resume it there")
        known = ", ".join(s.id for s in sessions if s.kind == kind)
        raise UsageError(
            f"--resume: there is no session{f' {id_!r}' if id_ else ''} of usertwin {kind} in {self.path.parent} "
            f"(there: {known or 'none yet'}); leave --resume out to begin one"
        )

    def sessions(self) -> list[Session]:
        """Return all sessions, the latest first. TwinError if the file is damaged or cannot be read."""
        refuse_link(self.path)
        if not self.path.exists():
            return []
        with self._errors():
            newest: dict[str, Any] = {}
            for stored in self._open().list(None):  # newest first; a killed process may have left an older one
                newest.setdefault(str(cast("Any", stored.config)["configurable"]["thread_id"]), stored.checkpoint)
            self._saved = {id_: str(checkpoint["id"]) for id_, checkpoint in newest.items()}
            values = (as_type(dict[str, Any], checkpoint["channel_values"]) for checkpoint in newest.values())
            return [Session.from_json(value.get(_CHANNEL), self._speaker) for value in values]

    def close(self) -> None:
        """Close the file."""
        if self._saver is not None:
            with suppress(sqlite3.Error):
                self._saver.conn.close()
            self._saver = None

    def _open(self) -> SqliteSaver:
        from langgraph.checkpoint.sqlite import SqliteSaver

        if self._saver is None:
            private_folder(self.path.parent)
            create_database(self.path)
            database = sqlite3.connect(self.path, check_same_thread=False, timeout=30.0)
            database.executescript("PRAGMA trusted_schema = OFF; PRAGMA secure_delete = ON")
            self._saver, self._file = SqliteSaver(database, serde=_PlainJson()), _identity(self.path)
        return self._saver

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except UsertwinError:
            raise
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
            raise TwinError(f"{self.path}: the sessions cannot be used ({error}); move the file away") from error


class _PlainJson:
    """Serializes checkpoints as JSON, without secrets."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Return a value as JSON."""
        return "json", mask(json.dumps(obj, ensure_ascii=False)).encode("utf-8", "backslashreplace")

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Return the value of JSON. ValueError if it is none."""
        return parse_json(data[1])


def _checkpoint(session: Session) -> Any:
    from langgraph.checkpoint.base import empty_checkpoint

    return empty_checkpoint() | {"channel_values": {_CHANNEL: session.to_json()}}


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one of the same name; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
