"""What clients and frameworks return is read by its shape: completions, responses, messages of all kinds, and streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace as Anthropic  # objects of the shape that its documentation gives
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from pydantic import BaseModel

from usertwin.personas import AgentError, as_conversation
from usertwin.simulator import as_agent
from usertwin.simulator.agents import as_replies

HELLO = [{"role": "user", "content": "hello"}]


def said(agent_or_value: Any) -> list[str]:
    """Return the texts of what an agent says that returns a value, or that is a function."""
    agent = agent_or_value if callable(agent_or_value) else lambda messages: agent_or_value
    replies = asyncio.run(as_agent(agent)(HELLO, "t"))  # pyright: ignore[reportArgumentType]
    return [reply["content"] for reply in replies if reply["role"] == "assistant" and reply["content"]]


# OpenAI -----------------------------------------------------------------------------------------------------------------


def completion(**message: Any) -> ChatCompletion:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None} | message}
    other = choice | {"index": 1, "message": {"role": "assistant", "content": "another one"}}
    return ChatCompletion.model_validate(
        {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice, other]}
    )


def response(*output: dict[str, Any]) -> Response:
    fields = {"id": "r", "object": "response", "created_at": 1, "model": "m", "parallel_tool_calls": False, "tools": []}
    return Response.model_validate(fields | {"tool_choice": "auto", "output": list(output)})


REASONING = {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "SECRET"}]}
SEARCH = {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"type": "search", "query": "SECRET"}}
CALL = {"type": "function_call", "call_id": "c", "name": "lookup", "arguments": "{}"}
TOOL_CALLS = [{"id": "1", "type": "function", "function": {"name": "lookup", "arguments": "{}"}}]


def output_message(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": list(parts)}


TEXT = {"type": "output_text", "text": "Hello!", "annotations": []}
REFUSAL = {"type": "refusal", "refusal": "I cannot help."}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (completion(content="Hello!"), "Hello!"),
        (completion(refusal="I cannot help."), "I cannot help."),
        (completion(content="Hello!", tool_calls=TOOL_CALLS), "Hello!"),
        (response(REASONING, SEARCH, output_message(TEXT)), "Hello!"),
        (response(output_message(REFUSAL)), "I cannot help."),
    ],
    ids=["completion", "refusal", "text and call", "response", "refused response"],
)
def test_values_of_openais_client_are_read_as_objects_and_as_dicts(value: Any, text: str) -> None:
    assert said(value) == said(value.model_dump()) == said(value.model_dump(exclude_none=True)) == [text]
    if isinstance(value, ChatCompletion):
        message = value.choices[0].message
        assert said(message) == said([message]) == said(message.model_dump()) == said({"messages": [message]}) == [text]
        assert [turn.text for turn in as_conversation([message]).turns] == [text]
    else:
        assert said(value.output) == [text]


@pytest.mark.parametrize(
    "value",
    [
        completion(tool_calls=TOOL_CALLS),
        response(REASONING, CALL),
        AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}]),
    ],
)
def test_a_call_of_a_tool_without_a_text_is_said_to_be_that(value: Any) -> None:
    for returned in (value, value.model_dump()):
        with pytest.raises(AgentError, match="a call of a tool without a text; run the tool"):
            said(returned)


# Anthropic --------------------------------------------------------------------------------------------------------------


def block(**fields: Any) -> Any:
    return Anthropic(**fields)


def anthropic_message(*content: Any) -> Any:
    usage = Anthropic(input_tokens=1, output_tokens=2)
    return Anthropic(
        id="msg", type="message", role="assistant", content=list(content), model="m", stop_reason="end_turn",
        stop_sequence=None, usage=usage,
    )  # fmt: skip


THINKING = block(type="thinking", thinking="SECRET", signature="s")
TOOL_USE = block(type="tool_use", id="t", name="lookup", input={"text": "SECRET"})


def test_messages_of_anthropics_client_are_read() -> None:
    message = anthropic_message(THINKING, block(type="text", text="Hello!", citations=None), TOOL_USE)
    assert said(message) == said(message.content) == said(message.content[1]) == ["Hello!"]
    with pytest.raises(AgentError, match="a call of a tool without a text"):
        said(anthropic_message(THINKING, TOOL_USE))


# Results of frameworks, and own classes ---------------------------------------------------------------------------------


class Reply(BaseModel):
    content: str
    cost: float = 0.0


@dataclass
class Message:
    content: str
    role: str = "assistant"

    def output(self) -> str:
        """A method is no field."""
        raise AssertionError


@dataclass
class RunResult:
    final_output: Any


@dataclass
class TaskResult:
    messages: Sequence[Any]


@pytest.mark.parametrize(
    "value",
    [
        Reply(content="Hello!"),
        Message("Hello!"),
        RunResult("Hello!"),
        RunResult(Reply(content="Hello!")),
        TaskResult([HumanMessage("hello"), AIMessage("Hello!")]),
        AIMessage([{"type": "thinking", "thinking": "SECRET"}, {"type": "text", "text": "Hello!"}]),
        {"output": "Hello!", "intermediate_steps": [("SECRET", object())]},
        {"model": "llama", "message": {"role": "assistant", "content": "Hello!"}, "done": True},
        {"type": "text", "text": "Hello!"},
        {"type": "ai", "content": "Hello!"},
        {"role": "assistant", "content": [REFUSAL | {"refusal": "Hello!"}]},
        ("Hello!", {"cart": ["SECRET"]}),
        ("Hello!", "SECRET"),
        (AIMessage("Hello!"), None),
        ("assistant", "Hello!"),
        [("user", "hello"), ("ai", "Hello!")],
        ([{"role": "assistant", "content": "Hello!"}], 3),
    ],
    ids=lambda value: str(value)[:40],
)
def test_results_and_own_classes_are_read_by_their_fields(value: Any) -> None:
    assert said(value) == ["Hello!"]


def test_a_tuple_of_messages_is_all_of_them() -> None:
    assert said((AIMessage("One moment."), {"role": "assistant", "content": "It rains."})) == ["One moment.", "It rains."]


# Streams ----------------------------------------------------------------------------------------------------------------


def chunk(**delta: Any) -> ChatCompletionChunk:
    choices = [{"index": 0, "delta": delta, "finish_reason": None}] if delta else []
    return ChatCompletionChunk.model_validate(
        {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}
    )


def event(kind: str, **fields: Any) -> Any:
    return Anthropic(type=kind, **fields)


STREAMS: dict[str, list[Any]] = {
    "texts": ["", "The bell ", "is 20 ", "euros."],
    "one text": ["The bell is 20 euros."],
    "a window": ["The bell", "The bell is 20", "The bell is 20 euros."],
    "openai": [
        chunk(role="assistant", content=""), chunk(content="The bell "), chunk(reasoning_content="SECRET"),
        chunk(content="is 20 euros."), chunk(content=None), chunk(),
    ],
    "openai responses": [
        event("response.created", response=response(output_message(TEXT))),
        event("response.reasoning_text.delta", delta="SECRET"),
        event("response.output_text.delta", delta="The bell "),
        event("response.output_text.delta", delta="is 20 euros."),
        event("response.output_text.done", text="The bell is 20 euros."),
        event("response.function_call_arguments.delta", delta="SECRET"),
        event("response.completed", response=response(output_message(TEXT))),
    ],
    "anthropic": [
        event("message_start", message=anthropic_message()),
        event("content_block_start", index=0, content_block=block(type="text", text="")),
        event("content_block_delta", index=0, delta=block(type="thinking_delta", thinking="SECRET")),
        event("content_block_delta", index=1, delta=block(type="text_delta", text="The bell ")),
        event("text", text="The bell ", snapshot="The bell "),
        event("content_block_delta", index=1, delta=block(type="text_delta", text="is 20 euros.")),
        event("text", text="is 20 euros.", snapshot="The bell is 20 euros."),
        event("content_block_delta", index=2, delta=block(type="input_json_delta", partial_json="SECRET")),
        event("message_delta", delta=Anthropic(stop_reason="end_turn"), usage=Anthropic(output_tokens=3)),
        event("message_stop", message=anthropic_message(block(type="text", text="The bell is 20 euros."))),
    ],
    "langchain": [AIMessageChunk("The bell "), AIMessageChunk(""), AIMessageChunk([{"type": "text", "text": "is 20 euros."}])],
    "langgraph": [(AIMessageChunk("The bell "), {"langgraph_step": 1}), (AIMessageChunk("is 20 euros."), {})],
    "ollama": [{"message": {"role": "assistant", "content": piece}, "done": False} for piece in ("The bell ", "is 20 euros.")],
    "parts": [{"type": "text", "text": "The bell "}, {"type": "text", "text": "is 20 euros."}],
}  # fmt: skip


@pytest.mark.parametrize("pieces", STREAMS.values(), ids=STREAMS)
def test_the_pieces_of_a_stream_are_joined(pieces: list[Any]) -> None:
    def stream(messages: list[Any]) -> Iterator[Any]:
        yield from pieces

    async def astream(messages: list[Any]) -> AsyncIterator[Any]:
        for piece in pieces:
            await asyncio.sleep(0)
            yield piece

    async def opened(messages: list[Any]) -> AsyncIterator[Any]:
        return astream(messages)

    for agent in (stream, astream, opened, lambda messages: iter(pieces)):
        assert said(agent) == ["The bell is 20 euros."]


def test_whole_messages_of_a_stream_stay_apart() -> None:
    messages = [
        AIMessage("One moment."),
        ToolMessage("SECRET", tool_call_id="1"),
        {"role": "assistant", "content": "It rains."},
    ]
    assert said(iter(messages)) == ["One moment.", "It rains."]


def test_what_a_stream_raises_is_raised_by_the_agent() -> None:
    def stream(messages: list[Any]) -> Iterator[str]:
        yield "The bell "
        raise KeyError("price")

    async def astream(messages: list[Any]) -> AsyncIterator[str]:
        yield "The bell "
        raise KeyError("price")

    for agent in (stream, astream):
        with pytest.raises(KeyError, match="price"):
            said(agent)


def test_an_endless_asynchronous_stream_is_an_error() -> None:
    async def endless(messages: list[Any]) -> AsyncIterator[str]:
        while True:
            yield "word " * 1000

    with pytest.raises(AgentError, match="a stream that is too long or does not end"):
        said(endless)


_VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "output", "content", "type", "role", "text", "delta", "refusal"]),
            inner,
            max_size=3,
        )
        | st.dictionaries(st.sampled_from(["choices", "message", "output", "content", "type", "role", "text"]), inner).map(
            lambda fields: Anthropic(**fields)
        )
        | st.lists(inner, max_size=3).map(iter)
    ),
    max_leaves=8,
)


@given(_VALUES)
def test_any_value_is_replies_or_an_agent_error(value: Any) -> None:
    try:
        replies = as_replies(value)
    except AgentError:
        return
    assert any(reply["content"].strip() and reply["role"] == "assistant" for reply in replies)
