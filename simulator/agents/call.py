"""`AgentCall`: an agent of any shape as one async call, and the last state of each of its conversations."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from .replies import Replies, collect, other_fields, read_replies
from .turn import Message, in_thread

#: (messages so far, thread id) -> whatever the agent returns, or `Returned`.
Function = Callable[[list[Message], str], Awaitable[Any]]

#: Conversations whose state is kept until it is asked for; the oldest is dropped first.
_MAX_STATES = 1_000
#: How deeply a state may be nested, and the numbers in it: a line of a run is read back up to a depth and a number of digits.
_MAX_DEPTH, _MAX_NUMBER = 50, 10**300


@dataclass(frozen=True, slots=True)
class Returned:
    """What an adapter of ours returns: the agent's value, its state, and whether the value holds new messages only."""

    value: Any
    state: Any = None
    is_new: bool = False


class AgentCall:
    """An agent as one async call: (messages so far, thread id) -> its new messages.

    The messages are OpenAI-style. A reply holds the agent's texts, its calls of tools and their results; a reply that a token
    limit cut has `"finish_reason": "length"`.

    Args:
        function: calls the agent.
        ours: whether it runs no code of the agent's in this process.
        end: called with the id of a conversation that is over.

    Attributes:
        own_loop: whether `run_turn` runs it in the event loop that agents have behind synchronous functions.
    """

    def __init__(self, function: Function, *, ours: bool = False, end: Callable[[str], object] | None = None) -> None:
        self.function, self.ours, self.own_loop, self._end = function, ours, False, end
        self._states = dict[str, Any]()
        self._takes_tools = [True]  # shared with the copies of `in_own_loop`

    async def __call__(self, messages: Sequence[Message], thread_id: str) -> list[Message]:
        """Return the new messages. AgentError if what the agent returned cannot be read; what it raises is passed on."""
        given = messages_for_agents(messages, tools=self._takes_tools[0])  # an agent may change its copy
        copies = tuple(given)
        returned = await self.function(given, thread_id)
        if type(returned) is str:
            return read_replies(returned).messages  # plain text needs no thread to be read in
        outcome = returned if isinstance(returned, Returned) else Returned(returned)
        value = outcome.value
        if isinstance(value, AsyncIterable):
            value = await collect(cast("AsyncIterable[Any]", value))
        replies, state = await in_thread(partial(_read, value, () if outcome.is_new else messages, copies))
        self._takes_tools[0] &= replies.chat_tools
        state = state if outcome.state is None else outcome.state
        if state is not None:
            self._states[thread_id] = state
            if len(self._states) > _MAX_STATES:
                del self._states[next(iter(self._states))]
        return replies.messages

    def state_of(self, thread_id: str) -> Any:
        """Return the agent's last state of a conversation as JSON values, and forget the conversation; None without a state.

        A state is that of a LangGraph graph, or what a result holds beside the reply: `{"messages": ..., "cart": [...]}`.
        """
        if self._end is not None:
            self._end(thread_id)
        state = self.state_so_far(thread_id)
        self._states.pop(thread_id, None)
        return state

    def state_so_far(self, thread_id: str) -> Any:
        """Return the agent's state of a conversation that goes on, as JSON values; None without a state."""
        return as_json(self._states.get(thread_id))

    def in_own_loop(self) -> AgentCall:
        """Return the same call for a synchronous function."""
        if self.ours:
            return self
        call = copy(self)
        call.own_loop = True
        return call

    async def begin(self) -> None:
        """Prepare for the next conversation."""

    def close(self) -> None:
        """End what was begun."""


def _read(value: Any, sent: Sequence[Message], given: Sequence[Message]) -> tuple[Replies, Any]:
    return read_replies(value, sent, given), other_fields(value)


def messages_for_agents(messages: Sequence[Message], *, tools: bool) -> list[Message]:
    """Return copies of the messages in the form that endpoints accept.

    Design: endpoints refuse a call of a tool without a result, and a result without a call, so such ones are left out; without
    `tools` all are. An agent that returned them in another format than that of chat completions would not understand ours.
    """
    answered = {m.get("tool_call_id") for m in messages if m["role"] == "tool"} if tools else set[Any]()
    called, copies = set[Any](), list[Message]()
    for message in messages:
        if message["role"] == "tool":
            if message.get("tool_call_id") in called:
                copies.append(dict(message))
            continue
        plain = {key: value for key, value in message.items() if key not in {"finish_reason", "tool_calls"}}
        calls: Sequence[Any] = message.get("tool_calls") or ()
        if calls and all(call["id"] in answered for call in calls):
            called |= {call["id"] for call in calls}
            plain["tool_calls"] = [dict(call) for call in calls]
        if not calls or "tool_calls" in plain or str(plain["content"]).strip():
            copies.append(plain)
    return copies


def as_json(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Return a state as JSON values that can be read again. Fields that cannot be are left out, of no mapping: None.

    `above` are the ids of the mappings around it.
    """
    from pydantic_core import to_jsonable_python

    try:
        if isinstance(value, Mapping):
            if id(value) in above or len(above) >= _MAX_DEPTH:
                return None
            fields = list(cast("Mapping[Any, Any]", value).items())
            plain = [(str(key), field, as_json(field, (*above, id(value)))) for key, field in fields]
            return {key: new for key, field, new in plain if new is not None or field is None}
        plain = to_jsonable_python(value, serialize_unknown=True, inf_nan_mode="null")
    except Exception:  # circular, or code of the agent's that raises
        return None
    return plain if _is_readable(plain, len(above)) else None


def _is_readable(value: Any, depth: int) -> bool:
    """Return whether JSON values are not nested too deeply, and no number has too many digits, to be read from a file."""
    if isinstance(value, dict | list):
        children = cast("list[Any]", list(value.values()) if isinstance(value, dict) else value)
        return depth < _MAX_DEPTH and all(_is_readable(child, depth + 1) for child in children)
    return not isinstance(value, int) or abs(value) < _MAX_NUMBER
