"""Agents of OpenAI's Agents SDK and Pydantic AI with fake models: each keeps its own history of a conversation."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from typing import Any

import pytest
from desk_talk import scripted_twin

from usertwin.personas import AgentError
from usertwin.simulator import as_agent, simulate


def talk(agent: Any, *turns: str, thread_id: str = "t", start: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return the conversation of an agent with a user who takes these turns."""
    call, messages = as_agent(agent), list(start or ())

    async def run() -> None:
        for turn in turns:
            messages.append({"role": "user", "content": turn})
            messages.extend(await call(messages, thread_id))  # pyright: ignore[reportArgumentType]

    asyncio.run(run())
    return messages


def texts(messages: list[dict[str, Any]]) -> list[str]:
    return [m["content"] for m in messages if m["role"] == "assistant" and m["content"]]


# OpenAI's Agents SDK ----------------------------------------------------------------------------------------------------

#: Makes the items of a response from the input of a call.
Rule = Callable[[list[Any]], list[dict[str, Any]]]


def text_item(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}


def call_item(name: str, number: int = 0) -> dict[str, Any]:
    return {"type": "function_call", "id": f"f{number}", "call_id": f"c{number}", "name": name, "arguments": "{}"}


def sdk_model(rule: Rule) -> Any:
    """Return a model of the Agents SDK that answers by a rule, and records its inputs."""
    sdk: Any = pytest.importorskip("agents")
    output: Any = importlib.import_module("openai.types.responses").Response

    class FakeModel(sdk.Model):
        def __init__(self) -> None:
            self.inputs = list[Any]()

        async def get_response(self, system_instructions: Any, input: Any, *args: Any, **options: Any) -> Any:
            self.inputs.append(input)
            fields = {"id": "r", "object": "response", "created_at": 1, "model": "m", "parallel_tool_calls": False, "tools": []}
            items = output.model_validate(fields | {"tool_choice": "auto", "output": rule(input)}).output
            return sdk.ModelResponse(output=items, usage=sdk.Usage(), response_id=None)

        def stream_response(self, *args: Any, **options: Any) -> Any:
            raise AssertionError

    sdk.set_tracing_disabled(True)
    return FakeModel()


def with_lookup(items: list[Any]) -> list[dict[str, Any]]:
    has_result = items and items[-1].get("type") == "function_call_output"
    return [text_item("20 euros.")] if has_result else [call_item("lookup", len(items))]


def sdk_agent(rule: Rule, **fields: Any) -> tuple[Any, Any]:
    sdk: Any = pytest.importorskip("agents")
    model = sdk_model(rule)

    def lookup() -> str:
        """Return the price."""
        return "20"

    return sdk.Agent(name="desk", instructions="Sell bells.", model=model, tools=[sdk.function_tool(lookup)], **fields), model


def test_an_agent_of_the_agents_sdk_is_an_agent_with_its_calls_of_tools() -> None:
    agent, model = sdk_agent(with_lookup)
    messages = talk(agent, "a bell", "a rack")
    expected = list[dict[str, Any]]()
    for text, number in (("a bell", 1), ("a rack", 5)):
        function = {"id": f"c{number}", "type": "function", "function": {"name": "lookup", "arguments": "{}"}}
        expected += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": "", "tool_calls": [function]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": "20"},
            {"role": "assistant", "content": "20 euros."},
        ]
    assert messages == expected
    tool = ["user", "function_call", "function_call_output"]
    assert [item.get("type", item.get("role")) for item in model.inputs[-1]] == [*tool, "message", *tool]


def test_an_agent_of_the_agents_sdk_hears_given_turns_and_only_its_own_conversation() -> None:
    agent, model = sdk_agent(lambda items: [text_item(f"{len(items)} items")])
    call = as_agent(agent)
    start = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Yes?"}]
    assert texts(talk(call, "a bell", "a rack", thread_id="one", start=start))[1:] == ["3 items", "5 items"]
    assert texts(talk(call, "a chain", thread_id="two")) == ["1 items"]
    call.state_of("one")  # the conversation is over
    assert texts(talk(call, "a chain", thread_id="one")) == ["1 items"]
    assert len(model.inputs) == 4


def test_after_a_handoff_the_other_agent_goes_on() -> None:
    sdk: Any = pytest.importorskip("agents")
    other, _ = sdk_agent(lambda items: [text_item("Repairs here.")])
    other = other.clone(name="repairs")
    first, model = sdk_agent(lambda items: [call_item("transfer_to_repairs")], handoffs=[sdk.handoff(other)])
    assert texts(talk(first, "my bell broke", "it is loud")) == ["Repairs here.", "Repairs here."]
    assert len(model.inputs) == 1


def test_a_run_result_that_a_function_returns_is_read() -> None:
    sdk: Any = pytest.importorskip("agents")
    agent, _ = sdk_agent(with_lookup)

    async def reply(messages: list[dict[str, Any]]) -> Any:
        return await sdk.Runner.run(agent, messages)

    messages = talk(reply, "a bell", "a rack")  # the calls are not sent back to it in a format that it does not know
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "assistant"] * 2
    assert texts(messages) == ["20 euros."] * 2


def test_an_agent_of_the_agents_sdk_talks_with_a_twin(ann: str) -> None:
    agent, _ = sdk_agent(with_lookup)
    with scripted_twin(ann) as user:
        simulation = simulate(user, agent, max_turns=2)
    assert (simulation.stop_reason, simulation.error) == ("max_turns", None)
    assert texts(simulation.messages) == ["20 euros."] * 2


def test_an_agent_that_never_stops_to_call_tools_fails_by_its_own_limit() -> None:
    agent, _ = sdk_agent(lambda items: [call_item("lookup")])
    with pytest.raises(Exception, match="Max turns") as caught:
        talk(agent, "a bell")
    assert not isinstance(caught.value, AgentError)


# Pydantic AI ------------------------------------------------------------------------------------------------------------


def test_an_agent_of_pydantic_ai_keeps_its_history() -> None:
    pydantic_ai: Any = pytest.importorskip("pydantic_ai")
    messages: Any = importlib.import_module("pydantic_ai.messages")
    models: Any = importlib.import_module("pydantic_ai.models.function")

    def answer(history: list[Any], info: Any) -> Any:
        return messages.ModelResponse(parts=[messages.TextPart(f"{len(history)} messages")])

    call = as_agent(pydantic_ai.Agent(models.FunctionModel(answer)))
    assert texts(talk(call, "a bell", "a rack", thread_id="one")) == ["1 messages", "3 messages"]
    assert texts(talk(call, "a chain", thread_id="two")) == ["1 messages"]
    start = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Yes?"}]
    assert texts(talk(call, "a bell", thread_id="three", start=start))[1:] == ["3 messages"]
