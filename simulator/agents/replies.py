"""What an agent returned, as its new messages: every shape that clients and frameworks use, recognised by its fields.

The value is code of the agent's until it has been copied: its attributes may raise, its length may be a lie, and it may hold
the whole conversation, of which only the new part was said now. Call `read_replies` on a thread of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, NamedTuple, cast

from usertwin.personas import AgentError, as_conversation
from usertwin.personas.conversation import LANGCHAIN_ROLES
from usertwin.personas.roles import is_unseen, is_user

from .tool_calls import called_names, merged_calls, tool_calls, tool_results
from .turn import Message, OnlyToolCalls, describe, name_of
from .values import Copier, field_of

#: The most messages, and characters of text, in what an agent returns.
_MAX_MESSAGES, _MAX_CHARACTERS = 10_000, 10_000_000
#: Characters that each piece of a stream counts for, at least.
_MIN_PIECE = 100
_WHOLE = "the agent returned"
_SHAPES = 'return a text, a message with "content", or a list of messages'
#: Fields around what was said: in completions and responses of OpenAI's client, their streams, and results of frameworks.
_WRAPPERS = (
    "choices", "delta", "final_output", "output_text", "output", "message", "response", "answer", "reply", "result",
    "completion", "generated_text", "generations", "root",
)  # fmt: skip
#: Types of whole messages, and of pieces of a stream that hold a text themselves; a piece of another type is an event.
_MESSAGE_TYPES = {kind for kind in LANGCHAIN_ROLES if not kind.endswith("Chunk")}
_PIECE_TYPES = {*LANGCHAIN_ROLES, "text", "message"}
#: Fields that say why a reply ended, and their values for one that a token limit cut.
_CUT = {"finish_reason": ("length", "max_tokens", "MAX_TOKENS"), "stop_reason": ("max_tokens",), "done_reason": ("length",)}
#: Fields of messages and completions that are no state of the agent.
_NO_STATE = {
    *_WRAPPERS, "messages", "role", "type", "name", "content", "refusal", "text", "tool_calls", "function_call", "id", "object",
    "created", "created_at", "model", "usage", "finish_reason", "stop_reason", "audio", "annotations", "tool_call_id",
    "additional_kwargs", "response_metadata", "usage_metadata", "done", "done_reason",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Replies:
    """The agent's new messages, and whether all its calls of tools have the format of chat completions or LangChain."""

    messages: list[Message]
    chat_tools: bool = True


class _Item(NamedTuple):
    """A message that the agent returned, whether the user said it, and whether it is certainly an old one."""

    message: Message
    from_user: bool
    is_old: bool

    @property
    def is_speech(self) -> bool:
        return bool(self.message["content"].strip()) and self.message["role"] != "tool"


def as_replies(returned: Any, sent: Sequence[Message] = (), given: Sequence[Message] = ()) -> list[Message]:
    """Return the agent's new messages from what it returned; see `read_replies`."""
    return read_replies(returned, sent, given).messages


def read_replies(returned: Any, sent: Sequence[Message] = (), given: Sequence[Message] = ()) -> Replies:
    """Return the agent's new messages from what it returned: texts, and calls of tools with their results.

    That is a text, a message, a list of either, an object or a mapping that has one of these in a field of `_WRAPPERS` or in
    "messages", a tuple of one and a state, or a stream. `sent` is the conversation before, `given` its copy that the agent got.
    Of a value that repeats the conversation, only what follows counts; a reply that repeats an earlier one is new.

    Raises:
        AgentError: it returned None, no text, a value that is not a message, or too much. What a stream raises is passed on.
    """
    stream = Stream().add(cast("Iterator[Any]", returned)) if isinstance(returned, Iterator) else returned
    try:
        value = _joined(stream.pieces) if isinstance(stream, Stream) else returned
        replies = _read(value, sent, {id(message) for message in given})
    except AgentError:
        raise
    except BaseException as error:
        raise AgentError(f"{_WHOLE} {name_of(returned)}, which cannot be read: {describe(error)}") from None
    if not replies.messages:
        raise AgentError(f"{_WHOLE} an empty reply")
    if (length := sum(len(message["content"]) for message in replies.messages)) > _MAX_CHARACTERS:
        raise AgentError(f"{_WHOLE} {length:,} characters; a reply has at most {_MAX_CHARACTERS:,}")
    return replies


def other_fields(returned: Any) -> Any:
    """Return the state in what an agent returned: the other fields of a mapping, or what follows the reply in a tuple."""
    if isinstance(returned, tuple) and len(cast("tuple[Any, ...]", returned)) == 2:
        reply, state = cast("tuple[Any, Any]", returned)
        is_state = state and isinstance(state, Mapping) and not _is_message(state) and _without_state(returned) is reply
        return cast("Any", state) if is_state else None
    if not isinstance(returned, Mapping) or "choices" in returned or "object" in returned:  # of OpenAI's clients
        return None
    return {key: value for key, value in cast("Mapping[Any, Any]", returned).items() if key not in _NO_STATE} or None


def _read(returned: Any, sent: Sequence[Message], given: set[int]) -> Replies:
    returned = _without_state(returned)
    if returned is None:
        raise AgentError(f"{_WHOLE} None instead of a reply")
    listed = returned if isinstance(returned, Sequence) else field_of(returned, "messages")
    if listed is None or isinstance(listed, str | bytes) or not isinstance(listed, Sequence):
        listed = [returned if listed is None else listed]
    values = list(islice(cast("Sequence[Any]", listed), _MAX_MESSAGES + 1))
    if len(values) > _MAX_MESSAGES:
        raise AgentError(f"{_WHOLE} more than {_MAX_MESSAGES:,} messages")
    copier, items, chat_tools = Copier(), list[_Item](), True
    for value in values:
        try:
            messages = _messages(copier.copy(_without_state(value)))
            for message in messages:
                is_chat, read = _items(message, id(value) in given)
                items += read
                chat_tools &= is_chat
        except ValueError:
            raise AgentError(f"{_WHOLE} {name_of(value)}, which is not a message; {_SHAPES}") from None
    has_roles = not all(isinstance(value, str) for value in values)
    new = [item.message for item in _new(items, sent, has_roles) if not item.from_user]
    if not any(message["role"] == "assistant" and message["content"].strip() for message in new):
        if names := called_names(new):
            raise OnlyToolCalls(
                f"the agent only called {names}: it returned a call of a tool without a text; run the tool, and return what "
                "the agent says after it", _merged(new),
            )  # fmt: skip
        new = []
    return Replies(_merged(new), chat_tools)


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Return the messages; calls of tools without a text are part of the agent's message right before."""
    merged = list[Message]()
    for message in messages:
        is_call = bool(message.get("tool_calls")) and not message["content"].strip()
        if is_call and merged and merged[-1]["role"] == "assistant":
            merged[-1] = merged[-1] | {"tool_calls": [*merged[-1].get("tool_calls", ()), *message["tool_calls"]]}
        else:
            merged.append(message)
    return merged


def _items(message: dict[str, Any], is_old: bool) -> tuple[bool, list[_Item]]:
    """Return the results of tools, the text and the calls of tools in a message, and whether they have the chat format."""
    results, (calls, is_chat) = tool_results(message), tool_calls(message)
    items = [_Item(result, False, is_old) for result in results]
    turns = [turn for turn in as_conversation([message]).turns if not turn.private]
    text = turns[0].text if turns else ""
    from_user = bool(turns) and is_user(turns[0].role)
    if text.strip() or calls:
        reply: Message = {"role": "assistant", "content": text}
        reply |= {"tool_calls": calls} if calls else {}
        reply |= {"finish_reason": "length"} if message.get("finish_reason") == "length" else {}
        items.append(_Item(reply, from_user, is_old))
    return is_chat and (not results or message.get("role") in {"tool", "function"}), items


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
    if "raw_item" in fields:  # of OpenAI's Agents SDK
        return _messages(fields["raw_item"])
    if fields.get("new_items") and any(fields.get(name) for name in ("final_output", "raw_responses")):
        return [message for item in fields["new_items"] for message in _messages(item)]
    if isinstance(text, bytes):
        raise ValueError("is no message")
    if fields.get("generations"):  # of LangChain: alternatives, for each prompt
        first = fields["generations"][0]
        return _messages(first[0] if isinstance(first, list) and first else first)
    if fields.get("choices"):
        return _said_of_cut(fields["choices"][0], _messages(fields["choices"][0]))
    text = fields.get("refusal") if text is None else text
    if text is None:
        for inner in (fields[name] for name in _WRAPPERS if fields.get(name)):
            messages = [message for item in (inner if isinstance(inner, list) else [inner]) for message in _messages(item)]
            return _said_of_cut(fields, messages)
        text = fields.get("text")
    role = fields.get("role") or LANGCHAIN_ROLES.get(str(kind)) or ("user" if fields.get("source") == "user" else None)
    if text is None and role is None and not isinstance(kind, str):
        raise ValueError("is no message")
    message = fields | {"role": role or ("tool" if text is None else "assistant"), "content": text}
    return _said_of_cut(fields, [message])


def _said_of_cut(fields: dict[str, Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages; the last one says so if its completion ended at a limit of tokens."""
    places = [fields, fields.get("response_metadata")]
    cut = any(isinstance(place, dict) and place.get(name) in values for place in places for name, values in _CUT.items())
    details = fields.get("incomplete_details")
    cut = cut or (isinstance(details, dict) and cast("dict[str, Any]", details).get("reason") == "max_output_tokens")
    return [*messages[:-1], messages[-1] | {"finish_reason": "length"}] if cut and messages else messages


def _without_state(value: Any) -> Any:
    """Return what is said in a tuple: the message of a (role, text), or the first of (text, state)."""
    if not isinstance(value, tuple) or not value or all(map(_is_message, cast("tuple[Any, ...]", value))):
        return value
    first, *rest = cast("tuple[Any, ...]", value)
    if len(rest) == 1 and first in ("ai", "assistant", "human", "user", "system") and isinstance(rest[0], str):
        return {"role": LANGCHAIN_ROLES.get(first, first), "content": rest[0]}
    if first == "" and rest and isinstance(rest[0], list):  # of Gradio: the emptied text box, and the history
        return cast("Any", rest[0])
    return first


def _is_message(value: Any) -> bool:
    return isinstance(field_of(value, "role"), str) or field_of(value, "type") in _MESSAGE_TYPES


def _new(items: list[_Item], sent: Sequence[Message], has_roles: bool) -> list[_Item]:
    """Return the messages that are not part of the conversation before."""
    if any(item.is_old for item in items) and not all(item.is_old for item in items):
        last = max(i for i, item in enumerate(items) if item.is_old)
        return items[last + 1 :] or [item for item in items if not item.is_old]
    if users := [i for i, item in enumerate(items) if item.from_user]:
        heard = next((m["content"].strip() for m in reversed(sent) if m["role"] == "user"), None)
        same = [i for i in users if items[i].message["content"].strip() == heard]  # what follows another turn is invented, or
        return items[(same or users)[-1] + 1 :]  # it was edited
    said = [m["content"] for m in sent if m["role"] == "assistant" and m["content"].strip()]
    speech = [i for i, item in enumerate(items) if item.is_speech]
    texts = [items[i].message["content"] for i in speech]
    if has_roles:  # all that the agent has said so far, or the end of it, and then more
        for count in range(min(len(said), len(texts) - 1), 0, -1):
            if texts[:count] == said[-count:] and (count > 1 or count == len(said)):
                return items[speech[count - 1] + 1 :]
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
            self._left -= max(_MIN_PIECE, len(piece) if isinstance(piece, str) else 0)
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
    """Return the pieces of a stream as one message, or unchanged if they are whole messages."""
    if pieces and all(map(_is_message, pieces)):
        return pieces
    pieces = [_without_state(piece) for piece in pieces]
    if (messages := _streamed_messages(pieces)) is not None:
        return messages
    copier = Copier()
    copies = [copier.copy(piece) for piece in pieces]
    texts = [text for piece in copies if (text := _piece(piece))]
    if len(texts) > 1 and all(later != earlier and later.startswith(earlier) for earlier, later in pairwise(texts)):
        texts = texts[-1:]  # each is the reply so far, as for a window that is drawn again
    deltas = [choice for piece in copies if isinstance(piece, dict) for choice in cast("list[Any]", piece.get("choices") or [])]
    fields: dict[str, Any] = {"role": "assistant", "content": "".join(texts), "tool_calls": merged_calls(deltas)}
    cut = any(isinstance(choice, dict) and choice.get("finish_reason") == "length" for choice in deltas)
    return fields | ({"finish_reason": "length"} if cut else {})


def _streamed_messages(pieces: Sequence[Any]) -> Any:
    """Return the messages of a stream of states or histories (the last one), or of LangGraph's updates; None for others."""
    if pieces and all(isinstance(piece, list) or isinstance(field_of(piece, "messages"), list) for piece in pieces):
        return pieces[-1]
    messages = list[Any]()
    for piece in pieces:
        if not isinstance(piece, Mapping) or not all(isinstance(v, Mapping | tuple | None) for v in piece.values()):
            return None
        for update in cast("Mapping[str, Any]", piece).values():
            new = field_of(update, "messages")
            messages += new if isinstance(new, list) else [] if new is None else [new]
    return messages or None


def _piece(value: Any) -> str:
    """Return the text in a piece of a stream; "" for a piece without one, such as its end."""
    if isinstance(value, dict) and value.get("event") == "on_chat_model_stream":  # of LangChain
        return _piece(cast("dict[str, Any]", value).get("data", {}).get("chunk"))
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
