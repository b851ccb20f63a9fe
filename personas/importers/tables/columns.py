"""Importer of tables with a message a row: CSV, TSV, Parquet or JSON lines with columns of the usual names.

Columns are compared without case and punctuation. Needed are a text and a speaker (or a role); a conversation, a time and a
role are used if they are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from usertwin.personas.conversation import Turn
from usertwin.personas.dates import DATE_NAMES
from usertwin.personas.roles import is_unseen

from ..source import Source
from ..thread import DAMAGED, TOOL, Tally, Thread, as_text, time_of
from .rows import files, first_row, rows

_NAMES = {
    "text": ("text", "message", "content", "body", "utterance", "msg", "messagetext", "comment", "transcript", "value"),
    "speaker": ("speaker", "speakerid", "sender", "sendername", "author", "authorname", "from", "user", "username", "userid",
                "senderid", "authorid", "name", "participant", "who", "nick", "role"),
    "conversation": ("conversationid", "conversation", "convid", "threadid", "thread", "chatid", "chat", "sessionid", "session",
                     "dialogueid", "dialogid", "ticketid", "ticket", "callid", "channelid", "channel", "room", "roomid"),
    "role": ("role", "senderrole", "authorrole", "sendertype", "authortype", "speakerrole", "usertype"),
    "time": DATE_NAMES,
}  # fmt: skip


def _columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the column for each use."""
    plain: dict[str, str] = {}
    for key in row:
        plain.setdefault(re.sub(r"[\W_]+", "", str(key).casefold()), key)
    return {use: plain[name] for use, names in _NAMES.items() for name in names[::-1] if name in plain}


def recognises(source: Source) -> bool:
    """Return whether the first row has a text and a speaker."""
    row = first_row(source)
    columns = _columns(row)
    return {"text", "speaker"} <= columns.keys() and not isinstance(row[columns["text"]], list | dict)


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the conversations of a table, in the order of their first rows."""
    for name in files(source):
        threads: dict[str, list[Turn]] = {}
        columns: dict[str, str] = {}
        for _, row in rows(source, name, tally):
            columns = columns or _columns(row)
            values = {use: as_text(row.get(column)) for use, column in columns.items() if use != "time"}
            if not (speaker := values.get("speaker", "").strip()):
                tally.drop(DAMAGED, "a row without a speaker")
                continue
            role = values.get("role") or "participant"
            if is_unseen(role):
                tally.drop(TOOL, role)
                continue
            time = time_of(row.get(columns["time"])) if "time" in columns else None
            turns = threads.setdefault(values.get("conversation", ""), [])
            turns.append(Turn(speaker, role, values.get("text", ""), time=time))
        for key, turns in threads.items():
            yield Thread(turns=turns, name=key or None, whole=bool(key))
