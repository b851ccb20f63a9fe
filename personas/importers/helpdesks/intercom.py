"""Importer of Intercom conversations, as JSON lines, a list, or a page of its API.

Notes of the team and changes of state are dropped. Source:
https://developers.intercom.com/docs/references/rest-api/api.intercom.io/conversations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from usertwin.personas.conversation import Turn

from ..markup import html_text
from ..records import records
from ..source import Source
from ..thread import DAMAGED, EMPTY, PLACEHOLDER, SYSTEM, Tally, Thread, as_list, as_object, as_text, time_of

NOTE = "internal note"
_ROLES = {"user": "user", "lead": "user", "contact": "user", "admin": "agent", "team": "agent", "bot": "bot"}


def recognises(source: Source) -> bool:
    """Return whether there are conversations with parts."""
    return "conversation_parts" in source.keys


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the conversations."""
    for name in source.ending(".json", ".jsonl", ".ndjson") or source.names:
        for _, record in records(source, name, tally):
            for item in map(as_object, as_list(record.get("conversations")) or [record]):
                first = as_object(item.get("source")) or as_object(item.get("conversation_message"))
                parts = item.get("conversation_parts")
                parts = as_list(as_object(parts).get("conversation_parts")) or as_list(parts)
                opening = [{"part_type": "comment", "created_at": item.get("created_at"), **first}] if first else []
                messages = [*opening, *map(as_object, parts)]
                turns = [turn for message in messages if (turn := _turn(message, tally)) is not None]
                yield Thread(turns=turns, name=as_text(item.get("id")) or None, started_at=time_of(item.get("created_at")))


def _turn(item: dict[str, Any], tally: Tally) -> Turn | None:
    author = as_object(item.get("author"))
    speaker = next((text for key in ("name", "email", "id") if (text := as_text(author.get(key)))), "")
    kind, text = as_text(item.get("part_type")), html_text(as_text(item.get("body")))
    if "note" in kind:
        tally.drop(NOTE)
    elif not text.strip():
        has_files = bool(item.get("attachments"))
        tally.drop(PLACEHOLDER if has_files else EMPTY if kind == "comment" else SYSTEM, kind)
    elif not speaker:
        tally.drop(DAMAGED, "a part without an author")
    else:
        role = _ROLES.get(as_text(author.get("type")), "participant")
        return Turn(speaker, role, text.strip(), time=time_of(item.get("created_at")))
    return None
