"""Importer of the data export of Claude: conversations.json, alone, in its folder, or in the zip as downloaded.

Text that a person pasted is an attachment with "extracted_content"; it is part of what they sent. Source: files of the export
of https://support.claude.com/en/articles/9450526 as of 2026.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from usertwin.personas.conversation import Turn, content_text

from ..records import records
from ..source import Source
from ..thread import BRANCH, DAMAGED, EMPTY, PLACEHOLDER, TOOL, Tally, Thread, as_list, as_object, as_text, time_of


def _files(source: Source) -> list[str]:
    if len(source.names) == 1:
        return list(source.names)
    return [name for name in source.names if name.rsplit("/", 1)[-1] == "conversations.json"]


def recognises(source: Source) -> bool:
    """Return whether conversations have "chat_messages"."""
    files = _files(source)
    return bool(files) and "chat_messages" in source.only(files[0]).keys


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the conversations."""
    for name in _files(source):
        for number, record in records(source, name, tally):
            if not isinstance(record.get("chat_messages"), list):
                tally.refuse(source.place(name), number, 'a conversation needs "chat_messages"', "item")
                continue
            messages = [as_object(message) for message in record["chat_messages"]]
            branch = _branch(messages, as_text(record.get("current_leaf_message_uuid")))
            tally.drop(BRANCH, count=len(messages) - len(branch))
            turns = [turn for message in branch if (turn := _turn(message, tally)) is not None]
            title = {"title": title} if (title := as_text(record.get("name"))) else {}
            started = time_of(record.get("created_at"))
            yield Thread(turns=turns, name=as_text(record.get("uuid")) or None, started_at=started, extra=title)


def _branch(messages: list[dict[str, Any]], leaf: str) -> list[dict[str, Any]]:
    """Return the messages from the first one to the current leaf, or to the last one; all if none names its parent."""
    nodes = {identifier: message for message in messages if (identifier := as_text(message.get("uuid")))}
    parents = [as_text(message.get("parent_message_uuid")) for message in messages]
    if len(nodes) < len(messages) or not all(parents) or len({*parents}) == len(parents):
        return messages
    key, branch = leaf if leaf in nodes else as_text(messages[-1]["uuid"]), list[dict[str, Any]]()
    while key in nodes and len(branch) < len(messages):
        branch.append(nodes[key])
        key = as_text(nodes[key].get("parent_message_uuid"))
    return branch[::-1]


def _turn(message: dict[str, Any], tally: Tally) -> Turn | None:
    sender = as_text(message.get("sender"))
    if not sender:
        tally.drop(DAMAGED, "a message without a sender")
        return None
    content = as_list(message.get("content"))
    text = content_text(content) or as_text(message.get("text"))
    pasted = (as_text(as_object(item).get("extracted_content")) for item in as_list(message.get("attachments")))
    if text := "\n".join(part for part in (text, *pasted) if part.strip()):
        return Turn(sender, sender, text, time=time_of(message.get("created_at")))
    if message.get("files") or message.get("files_v2"):
        tally.drop(PLACEHOLDER, "a file without text")
    else:
        tally.drop(TOOL if content else EMPTY)
    return None
