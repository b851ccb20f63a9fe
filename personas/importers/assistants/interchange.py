"""Importer of usertwin's own format and of OpenAI-style messages, a conversation a line.

See docs/chat-logs.md, and https://platform.openai.com/docs/api-reference/chat for the roles of messages.
"""

from __future__ import annotations

from collections.abc import Iterator

from usertwin.personas.chat_log import NO_ID, scan_conversations

from ..source import Source
from ..thread import DAMAGED, TOOL, Tally, Thread, as_list, as_object


def recognises(source: Source) -> bool:
    """Return whether the first object has turns, or messages with roles, or is such a message."""
    record = source.record
    message = as_object(next(iter(as_list(record.get("messages"))), None))
    return isinstance(record.get("turns"), list) or "role" in message or {"role", "content"} <= record.keys()


def may_be(source: Source) -> bool:
    """Return whether the beginning of a single file, broken perhaps, may be of this format."""
    if source.packed or len(source.names) != 1 or b"\x00" in source.head:
        return False
    named = bool(source.ending(".jsonl", ".json", ".ndjson"))
    return bool({"turns", "messages"} & source.keys) or (not source.keys and (named or not source.text.strip()))


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the conversations of JSON lines, or of a JSON list."""
    for name in source.names:
        with source.open(name) as file:
            scanned = scan_conversations(
                file, source.place(name), skip_bad_lines=tally.skip_bad_lines, skipped=tally.skipped, damaged=tally.damaged
            )
            before = len(tally.damaged)
            for place, conversation in scanned:
                damaged = min(place.lost, len(tally.damaged) - before)
                before = len(tally.damaged)
                tally.drop(DAMAGED, count=damaged)
                tally.drop(TOOL, count=place.lost - damaged)
                conversation_id = None if conversation.conversation_id == NO_ID else conversation.conversation_id
                extra = conversation.extra
                if conversation_id is None and isinstance(identifier := extra.get("id"), str | int):
                    conversation_id = str(identifier)
                yield Thread(
                    turns=list(conversation.turns), name=conversation_id, started_at=conversation.started_at, extra=extra
                )
