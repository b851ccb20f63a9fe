"""Messages in traces: found in the inputs and outputs of model calls, and put together to conversations.

A call holds all messages before it, so the calls of one conversation repeat each other; each message is kept once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from usertwin.personas.conversation import LANGCHAIN_ROLES, Turn, content_text
from usertwin.personas.roles import is_unseen, is_user

from ..thread import DAMAGED, EMPTY, TOOL, Tally, as_list, as_object, as_text

#: Keys under which messages are, outermost first.
_INNER = ("messages", "input", "inputs", "output", "outputs", "choices", "generations", "message", "kwargs", "data", "answer",
          "question", "query", "response", "text")  # fmt: skip
_LANGCHAIN = {"HumanMessage": "user", "AIMessage": "assistant", "SystemMessage": "system", "ToolMessage": "tool",
              "FunctionMessage": "function", "ChatMessage": "user"}  # fmt: skip
_MAX_DEPTH = 8
REPEATED = "repeated by a later call"


def messages_in(value: Any, role: str, depth: int = 0) -> list[dict[str, Any]]:
    """Return the messages in an input or output of any usual shape; plain text is one message with the given role."""
    if depth > _MAX_DEPTH:
        return []
    if isinstance(value, str):
        text = value.strip()
        if text[:1] in {"[", "{"}:
            try:
                return messages_in(json.loads(text), role, depth + 1)
            except (ValueError, RecursionError):
                pass
        return [{"role": role, "content": value}] if text else []
    if isinstance(value, list):
        return [message for item in value for message in messages_in(item, role, depth + 1)]
    item = as_object(value)
    kind = as_list(item.get("id"))[-1:] or [item.get("type")]
    if "kwargs" in item and as_text(kind[0]).removesuffix("Chunk") in _LANGCHAIN:
        inner = as_object(item["kwargs"])
        return [{**inner, "role": inner.get("role") or _LANGCHAIN[as_text(kind[0]).removesuffix("Chunk")]}]
    if isinstance(item.get("role"), str) and ("content" in item or "parts" in item or "tool_calls" in item):
        return [item]
    if item.get("type") in LANGCHAIN_ROLES and ("content" in item or "data" in item):
        return [{**(as_object(item.get("data")) or item), "role": LANGCHAIN_ROLES[item["type"]]}]
    for key in _INNER:
        if key in item and (found := messages_in(item[key], role, depth + 1)):
            return found
    return []


def turn_of(message: dict[str, Any], tally: Tally, *, time: str | None, user: str | None = None) -> Turn | None:
    """Return the turn of a message; None for one that is dropped and counted. `user` names the person."""
    role = as_text(message.get("role"))
    parts = message.get("parts")
    content = [part if isinstance(part, str) else _part(as_object(part)) for part in as_list(parts)] if parts else None
    text = content_text(message.get("content")) if content is None else "\n".join(filter(None, content))
    if is_unseen(role):
        tally.drop(TOOL, f"role {role}")
    elif text is None:
        tally.drop(DAMAGED, "a message whose content is no text")
    elif not text.strip():
        tally.drop(TOOL if {"tool_calls", "function_call", "parts"} & message.keys() else EMPTY)
    else:
        name = user if user and is_user(role) else as_text(message.get("name")) or role
        return Turn(name, role, text, time=time)
    return None


def _part(part: dict[str, Any]) -> str:
    return as_text(part.get("content")) or as_text(part.get("text")) if part.get("type", "text") == "text" else ""


def add_call(turns: list[Turn], call: Sequence[Turn], tally: Tally) -> None:
    """Add the messages of a call to those of earlier calls, without those that are there already."""
    known = [(turn.role, turn.text) for turn in turns]
    given = [(turn.role, turn.text) for turn in call]
    for shared in range(min(len(known), len(given)), 0, -1):
        if known[-shared:] == given[:shared]:
            break
    else:
        shared = 0
        if known and given and known[0] != given[0]:  # without the system prompt that an earlier call had
            public = [item for item, turn in zip(known, turns, strict=True) if not turn.private]
            fresh = [item for item, turn in zip(given, call, strict=True) if not turn.private]
            common = min(len(public), len(fresh))
            if common and public == fresh[:common]:
                shared = len(given) - len(fresh) + common
    tally.drop(REPEATED, count=shared)
    turns += call[shared:]
