"""Calls of tools and their results in an agent's messages, in the format of chat completions.

Read are the formats of chat completions, LangChain, Anthropic's content blocks, and OpenAI's responses.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from usertwin.personas.conversation import replace_lone_surrogates

from .turn import Message

#: Types of parts and items that call a tool of the agent's, and that hold its result.
_CALLS, _RESULTS = {"tool_use", "function_call", "tool_call"}, {"tool_result", "function_call_output"}


def tool_calls(message: dict[str, Any]) -> tuple[list[dict[str, Any]], bool]:
    """Return the calls in a copied message, and whether they have the format of chat completions or LangChain."""
    chat = _dicts(message.get("tool_calls"))
    legacy = _dicts([message.get("function_call")])
    parts = [part for part in (message, *_dicts(message.get("content"))) if part.get("type") in _CALLS]
    calls = [_call(raw) for raw in (*chat, *legacy, *([] if chat else parts))]
    return [call for call in calls if call["function"]["name"]], not parts or bool(chat)


def tool_results(message: dict[str, Any]) -> list[Message]:
    """Return the results of tools in a copied message."""
    if message.get("role") in {"tool", "function"} and message.get("type") not in _CALLS:
        parts = [message]
    else:
        parts = [part for part in (message, *_dicts(message.get("content"))) if part.get("type") in _RESULTS]
    results = list[Message]()
    for part in parts:
        name = next((part[key] for key in ("tool_call_id", "tool_use_id", "call_id", "name") if part.get(key)), None)
        content = part.get("content") if part.get("content") is not None else part.get("output")
        if name is not None or content is not None:
            results.append({"role": "tool", "tool_call_id": _text(name or ""), "content": _text(content)})
    return results


def called_names(messages: Sequence[Message]) -> str:
    """Return the names of the tools that the messages call, as "a, b"; "" for none."""
    names = [call["function"]["name"] for message in messages for call in message.get("tool_calls", ())]
    return ", ".join(dict.fromkeys(names))


def merged_calls(choices: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the calls in the choices of a stream's chunks, whose arguments come in pieces."""
    merged = dict[Any, dict[str, Any]]()
    for choice in _dicts(choices):
        for delta in _dicts([choice.get("delta")]):
            for piece in _dicts(delta.get("tool_calls")):
                call = merged.setdefault(piece.get("index"), {"id": "", "function": {"name": "", "arguments": ""}})
                call["id"] = piece.get("id") or call["id"]
                for function in _dicts([piece.get("function")]):
                    for key in ("name", "arguments"):
                        call["function"][key] += str(function.get(key) or "")
    return list(merged.values())


def _call(raw: dict[str, Any]) -> dict[str, Any]:
    function = raw["function"] if isinstance(raw.get("function"), dict) else raw
    arguments = next((function[key] for key in ("arguments", "args", "input") if function.get(key) is not None), {})
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, default=str)
    identity = raw.get("call_id") or raw.get("id") or ""
    name = _text(function.get("name") or "")
    return {"id": _text(identity), "type": "function", "function": {"name": name, "arguments": _text(written)}}


def _text(value: Any) -> str:
    """Return a text, or the texts of parts, or JSON."""
    if isinstance(value, list):
        texts = [part if isinstance(part, str) else part.get("text") for part in value if isinstance(part, str | dict)]
        if value and len(texts) == len(value) and all(isinstance(text, str) for text in texts):
            value = "\n".join(cast("list[str]", texts))
    if value is None:
        return ""
    return replace_lone_surrogates(value if isinstance(value, str) else json.dumps(value, default=str))


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [value for value in cast("list[Any]", values) if isinstance(value, dict)] if isinstance(values, list) else []
