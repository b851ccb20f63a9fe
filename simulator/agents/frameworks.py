"""Agents of frameworks with a run function and a history of their own: OpenAI's Agents SDK and Pydantic AI.

The history of each conversation is kept in the framework's own form, so that calls of tools stay in it.
"""

from __future__ import annotations

import sys
from typing import Any

from .arguments import Moment
from .call import AgentCall, Returned
from .turn import Message


def framework_agent(agent: Any) -> AgentCall | None:
    """Return an agent of a known framework as a call; None for any other object."""
    module = type(agent).__module__.partition(".")[0]
    if module == "agents" and hasattr(agent, "handoffs") and hasattr(sys.modules.get(module), "Runner"):
        return _openai_agent(agent, sys.modules[module])
    if module == "pydantic_ai" and hasattr(agent, "run") and hasattr(agent, "iter"):
        return _pydantic_ai_agent(agent)
    return None


def _openai_agent(agent: Any, sdk: Any) -> AgentCall:
    """Return an agent of the Agents SDK; after a handoff, the agent that took over goes on."""
    sessions = dict[str, tuple[Any, list[Any]]]()

    async def call(messages: list[Message], thread_id: str) -> Returned:
        moment = Moment(messages, thread_id)
        current, items = sessions.get(thread_id) or (agent, _plain(moment.value("history")))
        result = await sdk.Runner.run(current, [*items, *_plain(messages[len(moment.value("history")) :])])
        sessions[thread_id] = (result.last_agent, result.to_input_list())
        return Returned(result, is_new=True)

    return AgentCall(call, end=lambda thread_id: sessions.pop(thread_id, None))


def _pydantic_ai_agent(agent: Any) -> AgentCall:
    sessions = dict[str, Any]()

    async def call(messages: list[Message], thread_id: str) -> Returned:
        moment = Moment(messages, thread_id)
        history = sessions.get(thread_id) or _pydantic_ai_messages(_plain(moment.value("history")))
        result = await agent.run(moment.text, message_history=history)
        sessions[thread_id] = result.all_messages()
        return Returned(result.output, is_new=True)

    return AgentCall(call, end=lambda thread_id: sessions.pop(thread_id, None))


def _pydantic_ai_messages(messages: list[Message]) -> list[Any]:
    forms = sys.modules["pydantic_ai.messages"]
    return [
        forms.ModelRequest(parts=[forms.UserPromptPart(message["content"])])
        if message["role"] == "user"
        else forms.ModelResponse(parts=[forms.TextPart(message["content"])])
        for message in messages
    ]


def _plain(messages: list[Message]) -> list[Message]:
    """Return the texts of a conversation, without calls of tools, in the form of the responses API."""
    return [
        {"role": message["role"], "content": message["content"]}
        for message in messages
        if message["role"] != "tool" and message["content"]
    ]
