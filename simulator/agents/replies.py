"""What an agent returned, as its new messages: every shape that clients and frameworks use, recognised by its fields.

The value is code of the agent's until it has been copied: its attributes may raise, its length may be a lie, and it may hold
the whole conversation, of which only the new part was said now. Call `as_replies` on a thread of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple, cast

from usertwin.personas import AgentError, as_conversation
from usertwin.personas.conversation import LANGCHAIN_ROLES
from usertwin.personas.roles import is_unseen, is_user

from .turn import Message, describe, name_of

#: The most messages, nested values and characters in what an agent returns, and how deeply they may be nested.
_MAX_MESSAGES, _MAX_VALUES, _MAX_CHARACTERS, _MAX_DEPTH = 10_000, 100_000, 10_000_000, 50
_WHOLE = "the agent returned"
_SHAPES = 'return a text, a message with "content", or a list of messages'
#: Fields around what was said: in completions and responses of OpenAI's client, their streams, and results of frameworks.
_WRAPPERS = ("choices", "delta", "final_output", "output_text", "output", "message", "response", "answer")
#: Fields of an object that are read.
_FIELDS = (
    *_WRAPPERS, "messages", "role", "type", "name", "channel", "content", "refusal", "text", "value", "thought", "snapshot",
    "tool_calls", "function_call",
)  # fmt: skip
#: Types of whole messages, and of pieces of a stream that hold a text themselves; a piece of another type is an event.
_MESSAGE_TYPES = {kind for kind in LANGCHAIN_ROLES if not kind.endswith("Chunk")}
_PIECE_TYPES = {*LANGCHAIN_ROLES, "text", "message"}


class _Item(NamedTuple):
    """A message that the agent returned: its text, whether the user said it, and whether it is certainly an old one."""

    text: str
    from_user: bool
    is_old: bool


def as_replies(returned: Any, sent: Sequence[Message] = (), given: Sequence[Message] = ()) -> list[Message]:
    """Return the agent's new messages from what it returned.

    That is a text, a message, a list of either, an object or a mapping that has one of these in a field of `_WRAPPERS` or in
    "messages", a tuple of one and a state, or a stream. `sent` is the conversation before, `given` its copy that the agent got.
    Of a value that repeats the conversation, only what follows counts; a reply that repeats an earlier one is new.

    Raises:
        AgentError: it returned None, no text, a value that is not a message, or too much. What a stream raises is passed on.
    """
    stream = Stream().add(cast("Iterator[Any]", returned)) if isinstance(returned, Iterator) else returned
    try:
        texts = _texts(_joined(stream.pieces) if isinstance(stream, Stream) else returned, sent, {id(m) for m in given})
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
    returned = _without_state(returned)
    if returned is None:
        raise AgentError(f"{_WHOLE} None instead of a reply")
    listed = returned if isinstance(returned, Sequence) else _field(returned, "messages")
    if listed is None or isinstance(listed, str | bytes) or not isinstance(listed, Sequence):
        listed = [returned if listed is None else listed]
    values = list(islice(cast("Sequence[Any]", listed), _MAX_MESSAGES + 1))
    if len(values) > _MAX_MESSAGES:
        raise AgentError(f"{_WHOLE} more than {_MAX_MESSAGES:,} messages")
    copier, items, messages = _Copier(), list[_Item](), list[dict[str, Any]]()
    for value in values:
        try:
            messages = _messages(copier.copy(_without_state(value)))
            turns = as_conversation(messages).turns
        except ValueError:
            raise AgentError(f"{_WHOLE} {name_of(value)}, which is not a message; {_SHAPES}") from None
        items += [_Item(t.text, is_user(t.role), id(value) in given) for t in turns if t.text.strip() and not t.private]
    has_roles = not all(isinstance(value, str) for value in values)
    texts = [item.text for item in _new(items, sent, has_roles) if not item.from_user]
    if not texts and messages and _calls_tool(messages[-1]):
        raise AgentError(f"{_WHOLE} a call of a tool without a text; run the tool, and return what the agent says after it")
    return texts


def _messages(value: Any) -> list[dict[str, Any]]:
    """Return the messages in a copied value. ValueError if there is none."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if not isinstance(value, dict):
        raise ValueError("is no message")
    fields = cast("dict[str, Any]", value)
    kind, text = fields.get("type"), fields.get("content")
    if is_unseen(kind):
        return [fields | {"role": kind}]
    if fields.get("choices"):
        return _messages(fields["choices"][0])
    text = fields.get("refusal") if text is None else text
    if text is None:
        for inner in (fields[name] for name in _WRAPPERS if fields.get(name)):
            return [message for item in (inner if isinstance(inner, list) else [inner]) for message in _messages(item)]
        text = fields.get("text")
    role = fields.get("role") or LANGCHAIN_ROLES.get(str(kind))
    if text is None and role is None and not isinstance(kind, str):
        raise ValueError("is no message")
    return [fields | {"role": role or ("tool" if text is None else "assistant"), "content": text}]


def _without_state(value: Any) -> Any:
    """Return what is said in a tuple: the message of a (role, text), or the first of (text, state)."""
    if not isinstance(value, tuple) or not value or all(map(_is_message, cast("tuple[Any, ...]", value))):
        return value
    first, *rest = cast("tuple[Any, ...]", value)
    if len(rest) == 1 and first in ("ai", "assistant", "human", "user", "system") and isinstance(rest[0], str):
        return {"role": LANGCHAIN_ROLES.get(first, first), "content": rest[0]}
    return first


def _calls_tool(message: dict[str, Any]) -> bool:
    content = message["content"] if isinstance(message.get("content"), list) else []
    kinds = {part.get("type") for part in (message, *content) if isinstance(part, dict)}
    return bool(message.get("tool_calls") or message.get("function_call") or kinds & {"tool_use", "function_call"})


def _is_message(value: Any) -> bool:
    return isinstance(_field(value, "role"), str) or _field(value, "type") in _MESSAGE_TYPES


def _field(value: Any, name: str) -> Any:
    """Return a field of a mapping or an object; None if it has none, or a method of that name."""
    if isinstance(value, Mapping):
        return cast("Mapping[str, Any]", value).get(name)
    field = getattr(value, name, None)
    return None if callable(field) and not isinstance(field, str) else field


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


# Streams ----------------------------------------------------------------------------------------------------------------


class Stream:
    """The pieces of a stream, up to a limit of their number and characters."""

    def __init__(self) -> None:
        self.pieces, self._left = list[Any](), _MAX_CHARACTERS

    def add(self, pieces: Iterable[Any]) -> Stream:
        """Add pieces. AgentError for too many."""
        for piece in pieces:
            self.pieces.append(piece)
            self._left -= max(_MAX_CHARACTERS // _MAX_VALUES, len(piece) if isinstance(piece, str) else 0)
            if self._left < 0:
                raise AgentError(f"{_WHOLE} a stream that is too long or does not end")
        return self


async def collect(pieces: AsyncIterable[Any]) -> Stream:
    """Return an asynchronous stream. AgentError if it has too many pieces."""
    stream = Stream()
    async for piece in pieces:
        stream.add([piece])
    return stream


def _joined(pieces: Sequence[Any]) -> Any:
    """Return the pieces of a stream as one text, or unchanged if they are whole messages."""
    if pieces and all(map(_is_message, pieces)):
        return pieces
    copier = _Copier()
    texts = [text for piece in pieces if (text := _piece(copier.copy(_without_state(piece))))]
    if len(texts) > 1 and all(later != earlier and later.startswith(earlier) for earlier, later in pairwise(texts)):
        return texts[-1]  # each is the reply so far, as for a window that is drawn again
    return "".join(texts)


def _piece(value: Any) -> str:
    """Return the text in a piece of a stream; "" for a piece without one, such as its end."""
    kind = cast("dict[str, Any]", value).get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in _PIECE_TYPES:  # an event
        value = value.get("delta")
        if isinstance(value, str) and not kind.endswith(("output_text.delta", "refusal.delta")):
            return ""  # reasoning, or the arguments of a call
    try:
        turns = () if isinstance(value, dict) and "snapshot" in value else as_conversation(_messages(value)).turns
    except ValueError:
        return ""
    return "".join(turn.text for turn in turns)


class _Copier:
    """Copies what an agent returned into plain values, up to a limit."""

    def __init__(self) -> None:
        self._values = self._characters = 0

    def copy(self, value: Any, depth: int = 0) -> Any:
        """Return the copy of a text, a mapping, a sequence or an object, of which `_FIELDS` are copied; numbers as they are."""
        self._values += 1
        if self._values > _MAX_VALUES or self._characters > 10 * _MAX_CHARACTERS or depth > _MAX_DEPTH:
            raise AgentError(f"{_WHOLE} more than can be read: too many, too long or too deeply nested values")
        if isinstance(value, str):
            plain = str.__str__(value)  # of a subclass, a copy whose methods are those of str
            self._characters += len(plain)
            return plain
        if value is None or isinstance(value, int | float | bytes | bytearray):
            return value
        if isinstance(value, Mapping):
            items = cast("Mapping[Any, Any]", value).items()
            return {str.__str__(key): self.copy(item, depth + 1) for key, item in items if isinstance(key, str)}
        if isinstance(value, Sequence):
            return [self.copy(item, depth + 1) for item in cast("Sequence[Any]", value)]
        fields = ((name, _field(value, name)) for name in _FIELDS)
        return {name: self.copy(field, depth + 1) for name, field in fields if field is not None}
