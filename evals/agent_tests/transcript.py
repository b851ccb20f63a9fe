"""What a simulated conversation holds for checks and reports: texts of messages, calls of tools, replies and their seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from usertwin.personas.roles import is_user
from usertwin.simulator.agents import Message
from usertwin.simulator.records import AGENT_FAULTS, Exchange, Simulation

#: Types of the parts of a message that are calls of tools.
_CALL_PARTS = frozenset({"tool_use", "function_call"})


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the agent: its name, its arguments (a text if they are no JSON object), and the message's number."""

    name: str
    arguments: Mapping[str, Any] | str
    message: int

    def __str__(self) -> str:
        """Return the call as text, such as 'lookup({"id": 7})'."""
        if isinstance(self.arguments, str):
            return f"{self.name}({self.arguments})"
        return f"{self.name}({json.dumps(self.arguments, ensure_ascii=False, default=str)})"


def text_of(message: Message) -> str:
    """Return the text of a message; "" if it has none. Parts that are no text are left out."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = cast("list[Any]", content) if isinstance(content, list) else []
    texts = [part if isinstance(part, str) else part.get("text") for part in parts if isinstance(part, str | dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def is_agents(message: Message) -> bool:
    """Return whether the agent said a message; results of tools are said by nobody."""
    return message.get("role") in {"assistant", "agent", "ai"}


def agent_texts(simulation: Simulation) -> list[str]:
    """Return what the agent said, in order, without messages that have no text."""
    return [text for message in simulation.messages if is_agents(message) and (text := text_of(message)).strip()]


def tool_calls(simulation: Simulation) -> list[ToolCall]:
    """Return the agent's calls of tools, in order."""
    return [
        tool_call(raw, number)
        for number, message in enumerate(simulation.messages)
        if not is_user(str(message.get("role")))
        for raw in raw_calls(message)
    ]


def raw_calls(message: Message) -> Iterator[Mapping[str, Any]]:
    """Yield the calls of tools in a message, in the shapes of OpenAI, Anthropic and LangChain."""
    content, calls = message.get("content"), message.get("tool_calls")
    parts = cast("list[Any]", content) if isinstance(content, list) else []
    listed = cast("list[Any]", calls) if isinstance(calls, list) else []
    for raw in (*listed, message.get("function_call"), *(part for part in parts if _type_of(part) in _CALL_PARTS)):
        if isinstance(raw, dict):
            yield cast("dict[str, Any]", raw)
    if _type_of(message) == "function_call":
        yield message


def _type_of(value: Any) -> Any:
    return cast("dict[str, Any]", value).get("type") if isinstance(value, dict) else None


def tool_call(raw: Mapping[str, Any], message: int) -> ToolCall:
    """Return a call in the shape of an API, of the message with this number."""
    inner: Any = raw.get("function")
    fields = cast("Mapping[str, Any]", inner) if isinstance(inner, dict) else raw
    arguments: Any = next((fields[key] for key in ("arguments", "args", "input") if fields.get(key) is not None), {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            return ToolCall(str(fields.get("name")), arguments, message)
    known = cast("dict[str, Any]", arguments) if isinstance(arguments, dict) else str(arguments)
    return ToolCall(str(fields.get("name")), known, message)


def reply_seconds(simulation: Simulation) -> list[float]:
    """Return the seconds that each reply of the agent took, also the last one if the agent failed to give it."""
    exchanges, failed = simulation.exchanges, simulation.stop_reason in AGENT_FAULTS
    last = len(exchanges) - 1
    return [e.agent_seconds for place, e in enumerate(exchanges) if e.replies or (failed and place == last)]


def with_exchanges(simulation: Simulation) -> list[tuple[Message, Exchange | None]]:
    """Return the messages in order, the first one of each turn of the twin with its exchange; given turns have none."""
    turns = [(sent, exchange) for exchange in simulation.exchanges if (sent := _sent(exchange))]
    users = [number for number, message in enumerate(simulation.messages) if is_user(str(message.get("role")))]
    own = users[max(0, len(users) - sum(len(sent) for sent, _ in turns)) :]
    firsts = dict[int, Exchange]()
    for sent, exchange in turns:
        if own and text_of(simulation.messages[own[0]]) == sent[0]:
            firsts[own[0]] = exchange
        own = own[len(sent) :]
    return [(message, firsts.get(number)) for number, message in enumerate(simulation.messages)]


def messages_by_turn(simulation: Simulation) -> list[list[Message]]:
    """Return the messages in order: first those before the twin's first turn, then each turn of the twin with its replies."""
    counts = [len(_sent(exchange)) + len(exchange.replies) for exchange in simulation.exchanges]
    rest = iter(simulation.messages)
    return [list(islice(rest, count)) for count in (max(0, len(simulation.messages) - sum(counts)), *counts)]


def _sent(exchange: Exchange) -> tuple[str, ...]:
    """Return the messages of a turn of the twin, as the agent got them."""
    return exchange.sent or ((exchange.answer.action,) if exchange.answer.action else ())
