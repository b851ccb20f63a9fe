"""What an agent returned, as its new messages.

The value is code of the agent's until it has been copied: its attributes may raise, its length may be a lie, and it may hold
the whole conversation, of which only the new part was said now. Call `as_replies` on a thread of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from usertwin.personas import AgentError, as_conversation
from usertwin.personas.roles import is_user

from .turn import Message, describe, name_of

#: The most messages, nested values and characters in what an agent returns, and how deeply they may be nested.
_MAX_MESSAGES, _MAX_VALUES, _MAX_CHARACTERS, _MAX_DEPTH = 10_000, 100_000, 10_000_000, 50
_WHOLE = "the agent returned"


class _Item(NamedTuple):
    """A message that the agent returned: its text, whether the user said it, and whether it is certainly an old one."""

    text: str
    from_user: bool
    is_old: bool


def as_replies(returned: Any, sent: Sequence[Message] = (), given: Sequence[Message] = ()) -> list[Message]:
    """Return the agent's new messages from what it returned: text, a message, a list of either, or {"messages": [...]}.

    `sent` is the conversation before, `given` its copy that the agent got. Of a value that repeats the conversation, only what
    follows counts; a reply that repeats an earlier one word for word is new.

    Raises:
        AgentError: it returned None, no text, a value that is not a message, or too much.
    """
    try:
        texts = _texts(returned, sent, {id(message) for message in given})
    except AgentError:
        raise
    except BaseException as error:
        raise AgentError(f"{_WHOLE} {name_of(returned)}, which cannot be read: {describe(error)}") from None
    if not texts:
        raise AgentError(f"{_WHOLE} an empty reply")
    if (length := sum(map(len, texts))) > _MAX_CHARACTERS:
        raise AgentError(f"{_WHOLE} {length:,} characters; a reply has at most {_MAX_CHARACTERS:,}")
    return [{"role": "assistant", "content": text} for text in texts]


def _texts(returned: Any, sent: Sequence[Message], given: set[int]) -> list[str]:
    if returned is None:
        raise AgentError(f"{_WHOLE} None instead of a reply")
    if isinstance(returned, Mapping):
        mapping, missing = cast("Mapping[str, Any]", returned), object()
        listed = mapping.get("messages", missing)
        if listed is missing and mapping.get("content", mapping.get("refusal", missing)) is missing:
            raise AgentError(f'{_WHOLE} {name_of(returned)} with neither "content" nor "messages"')
        returned = [{"role": "assistant", **_Copier().copy(mapping)}] if listed is missing else listed
    if isinstance(returned, str | bytes) or not isinstance(returned, Sequence):
        returned = [returned]
    values = list(islice(cast("Sequence[Any]", returned), _MAX_MESSAGES + 1))
    if len(values) > _MAX_MESSAGES:
        raise AgentError(f"{_WHOLE} more than {_MAX_MESSAGES:,} messages")
    copier, items = _Copier(), list[_Item]()
    for value in values:
        try:
            turns = as_conversation([copier.message(value)]).turns
        except ValueError:
            raise AgentError(f"{_WHOLE} {name_of(value)}, which is not a message") from None
        items += [_Item(t.text, is_user(t.role), id(value) in given) for t in turns if t.text.strip() and not t.private]
    has_roles = not all(isinstance(value, str) for value in values)
    return [item.text for item in _new(items, sent, has_roles) if not item.from_user]


def _new(items: list[_Item], sent: Sequence[Message], has_roles: bool) -> list[_Item]:
    """Return the messages that are not part of the conversation before."""
    if any(item.is_old for item in items) and not all(item.is_old for item in items):
        last = max(i for i, item in enumerate(items) if item.is_old)
        return items[last + 1 :] or [item for item in items if not item.is_old]
    if users := [i for i, item in enumerate(items) if item.from_user]:
        heard = next((m["content"].strip() for m in reversed(sent) if m["role"] == "user"), None)
        same = [i for i in users if items[i].text.strip() == heard]  # what follows another turn is invented, or it was edited
        return items[(same or users)[-1] + 1 :]
    said, texts = [m["content"] for m in sent if m["role"] == "assistant"], [item.text for item in items]
    if has_roles:  # all that the agent has said so far, or the end of it, and then more
        for count in range(min(len(said), len(texts) - 1), 0, -1):
            if texts[:count] == said[-count:] and (count > 1 or count == len(said)):
                return items[count:]
    return items


class _Copier:
    """Copies what an agent returned into plain values, up to a limit."""

    def __init__(self) -> None:
        self._values = self._characters = 0

    def message(self, value: Any) -> Any:
        """Return the copy of a message; a text is one of the assistant."""
        if isinstance(value, str):
            return {"role": "assistant", "content": self.copy(value)}
        if isinstance(value, Mapping):
            return self.copy(value)
        return SimpleNamespace(**{key: self.copy(getattr(value, key, None)) for key in ("type", "role", "name", "content")})

    def copy(self, value: Any, depth: int = 0) -> Any:
        """Return the copy of a text, a mapping or a sequence; other values as they are."""
        self._values += 1
        if self._values > _MAX_VALUES or self._characters > 10 * _MAX_CHARACTERS or depth > _MAX_DEPTH:
            raise AgentError(f"{_WHOLE} more than can be read: too many, too long or too deeply nested values")
        if isinstance(value, str):
            plain = str.__str__(value)  # of a subclass, a copy whose methods are those of str
            self._characters += len(plain)
            return plain
        if isinstance(value, Mapping):
            items = cast("Mapping[Any, Any]", value).items()
            return {str.__str__(key): self.copy(item, depth + 1) for key, item in items if isinstance(key, str)}
        if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
            return [self.copy(item, depth + 1) for item in cast("Sequence[Any]", value)]
        return value
