"""Importer of the ChatGPT data export: conversations.json, alone, in its folder, or in the zip as downloaded.

A conversation is a tree of messages under "mapping"; the one that is shown leads from "current_node" to the root. Messages of
other branches are dropped. Source: files of the export of https://help.openai.com/en/articles/7260999 as of 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from usertwin.personas.conversation import Turn
from usertwin.personas.roles import is_unseen

from ..records import records
from ..source import Source
from ..thread import BRANCH, EMPTY, PLACEHOLDER, SYSTEM, TOOL, Tally, Thread, as_list, as_object, as_text, time_of

_FILE = re.compile(r"(?:^|/)conversations(?:-\d+)?\.json$")
_SPEECH = {"text", "multimodal_text"}


def _files(source: Source) -> list[str]:
    return list(source.names) if len(source.names) == 1 else [name for name in source.names if _FILE.search(name)]


def recognises(source: Source) -> bool:
    """Return whether conversations have a tree of messages."""
    files = _files(source)
    return bool(files) and {"mapping", "message", "parent"} <= source.only(files[0]).keys


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the conversations, each along its current branch."""
    for name in _files(source):
        for number, record in records(source, name, tally):
            nodes = {key: as_object(node) for key, node in as_object(record.get("mapping")).items()}
            if not nodes:
                tally.refuse(source.place(name), number, 'a conversation needs a "mapping" of messages', "item")
                continue
            path = _path(nodes, as_text(record.get("current_node")))
            written = sum(isinstance(node.get("message"), dict) for node in nodes.values())
            messages = [as_object(nodes[key]["message"]) for key in path if isinstance(nodes[key].get("message"), dict)]
            tally.drop(BRANCH, count=written - len(messages))
            turns = [turn for message in messages if (turn := _turn(message, tally)) is not None]
            conversation_id = as_text(record.get("conversation_id")) or as_text(record.get("id"))
            title = {"title": title} if (title := as_text(record.get("title"))) else {}
            started = time_of(record.get("create_time"))
            yield Thread(turns=turns, name=conversation_id or None, started_at=started, extra=title)


def _path(nodes: dict[str, dict[str, Any]], current: str) -> list[str]:
    """Return the ids from the root to the current node; to the last leaf if no node is current."""
    if current not in nodes:
        leaves = [key for key, node in nodes.items() if not as_list(node.get("children"))] or [*nodes]
        current = max(leaves, key=lambda key: time_of(as_object(nodes[key].get("message")).get("create_time")) or "")
    path: list[str] = []
    seen = set[str]()
    while current in nodes and current not in seen:
        seen.add(current)
        path.append(current)
        current = as_text(nodes[current].get("parent"))
    return path[::-1]


def _turn(message: dict[str, Any], tally: Tally) -> Turn | None:
    role = as_text(as_object(message.get("author")).get("role")) or "unknown"
    content = as_object(message.get("content"))
    kind = content.get("content_type", "text")
    recipient = message.get("recipient")
    if as_object(message.get("metadata")).get("is_visually_hidden_from_conversation") is True:
        tally.drop(SYSTEM, "hidden from the conversation")
    elif is_unseen(role) or kind not in _SPEECH or recipient not in {None, "all"}:
        tally.drop(TOOL, f"{kind} of {role}")
    elif text := "\n".join(filter(None, map(_part, as_list(content.get("parts"))))):
        return Turn(role, role, text, time=time_of(message.get("create_time")))
    else:
        tally.drop(PLACEHOLDER if any(isinstance(part, dict) for part in as_list(content.get("parts"))) else EMPTY)
    return None


def _part(part: Any) -> str:
    """Return the text of a part: a string, or the transcript of speech."""
    return part if isinstance(part, str) else as_text(as_object(part).get("text"))
