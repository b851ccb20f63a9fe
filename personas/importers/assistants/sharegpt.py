"""Importer of the ShareGPT format: "conversations" of {"from", "value"}, as training frameworks read it.

The same list with "role" and "content" is read too, under "conversation", "dialogue" or "items" as well. Source:
https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered and the documentation of LLaMA-Factory and Axolotl.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from usertwin.personas.conversation import Turn, content_text
from usertwin.personas.dates import find_date
from usertwin.personas.roles import is_unseen

from ..records import records
from ..source import Source
from ..thread import DAMAGED, TOOL, Tally, Thread, as_object, as_text, shown, time_of

_LISTS = ("conversations", "conversation", "dialogue", "dialog", "items")


def _messages(record: dict[str, Any]) -> list[Any] | None:
    return next((record[key] for key in _LISTS if isinstance(record.get(key), list)), None)


def recognises(source: Source) -> bool:
    """Return whether the first object has such a list of messages."""
    first = as_object(next(iter(_messages(source.record) or []), None))
    return {"from", "value"} <= first.keys() or {"role", "content"} <= first.keys()


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the conversations of JSON lines, or of a JSON list."""
    for name in source.names:
        for number, record in records(source, name, tally):
            messages = _messages(record)
            if messages is None:
                tally.refuse(source.place(name), number, f"a conversation needs one of {', '.join(_LISTS)}")
                continue
            turns = [turn for message in messages if (turn := read_message(as_object(message), tally)) is not None]
            system = as_text(record.get("system"))
            if system:
                turns.insert(0, Turn("system", "system", system))
            identifier = as_text(record.get("id")) or as_text(record.get("conversation_id"))
            yield Thread(turns=turns, name=identifier or None, started_at=find_date(record))


def read_message(message: dict[str, Any], tally: Tally, speaker: str | None = None) -> Turn | None:
    """Return the turn of a {"from", "value"} or {"role", "content"} message; None for one that is dropped and counted."""
    role = as_text(message.get("from")) or as_text(message.get("role"))
    text = content_text(message["value"] if "value" in message else message.get("content"))
    if not role or text is None:
        tally.drop(DAMAGED, shown(str(message)))
    elif is_unseen(role):
        tally.drop(TOOL, f"from {role}")
    else:
        name = speaker or as_text(message.get("name")) or role
        return Turn(name, role, text, time=time_of(message.get("timestamp")))
    return None
