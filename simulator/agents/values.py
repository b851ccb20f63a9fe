"""Copies of what an agent returned, as plain values: its attributes may be code that raises, lies or never ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from usertwin.personas import AgentError

#: The most nested values and characters in what an agent returns, and how deeply values may be nested.
_MAX_VALUES, _MAX_CHARACTERS, _MAX_DEPTH = 100_000, 100_000_000, 50
#: Fields of a mapping or an object that are read. All others, such as a large state beside the reply, are not copied.
_FIELDS = (
    "choices", "delta", "final_output", "output_text", "output", "message", "response", "answer", "reply", "result",
    "completion", "generated_text", "messages", "role", "type", "name", "channel", "content", "refusal", "text", "value",
    "thought", "snapshot", "tool_calls", "function_call", "function", "id", "call_id", "tool_call_id", "tool_use_id", "args",
    "arguments", "input", "index", "finish_reason", "stop_reason", "response_metadata", "incomplete_details", "reason",
    "new_items", "raw_item", "generations", "root", "source", "event", "data",
    "chunk", "raw_responses",
)  # fmt: skip
#: Of these, the ones whose values are an agent's own JSON, which is copied whole.
_WHOLE = {"args", "arguments", "input"}


def field_of(value: Any, name: str) -> Any:
    """Return a field of a mapping or an object; None if it has none, or a method of that name."""
    if isinstance(value, Mapping):
        return cast("Mapping[str, Any]", value).get(name)
    field = getattr(value, name, None)
    return None if callable(field) and not isinstance(field, str) else field


class Copier:
    """Copies what an agent returned into plain values, up to a limit."""

    def __init__(self) -> None:
        self._values = self._characters = 0

    def copy(self, value: Any, depth: int = 0, *, whole: bool = False) -> Any:
        """Return the copy of a text, a sequence, or `_FIELDS` of a mapping or an object (`whole`: all); numbers as they are."""
        self._values += 1
        if self._values > _MAX_VALUES or self._characters > _MAX_CHARACTERS or depth > _MAX_DEPTH:
            raise AgentError("the agent returned more than can be read: too many, too long or too deeply nested values")
        if isinstance(value, str):
            plain = str.__str__(value)  # of a subclass, a copy whose methods are those of str
            self._characters += len(plain)
            return plain
        if value is None or isinstance(value, int | float | bytes | bytearray):
            return value
        if isinstance(value, Mapping):
            mapping = cast("Mapping[Any, Any]", value)
            keys = [key for key in mapping if isinstance(key, str)] if whole else [key for key in _FIELDS if key in mapping]
            return {str.__str__(key): self.copy(mapping[key], depth + 1, whole=whole or key in _WHOLE) for key in keys}
        if isinstance(value, Sequence):
            return [self.copy(item, depth + 1, whole=whole) for item in cast("Sequence[Any]", value)]
        fields = ((name, field_of(value, name)) for name in _FIELDS)
        return {name: self.copy(field, depth + 1, whole=name in _WHOLE) for name, field in fields if field is not None}
