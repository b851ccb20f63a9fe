"""What clients and frameworks return is read by its shape: completions, responses, messages of all kinds, and streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace as Anthropic  # objects of the shape that its documentation gives
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langgraph.graph import START, MessagesState, StateGraph
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from pydantic import BaseModel

from usertwin.personas import AgentError, as_conversation
from usertwin.simulator import as_agent
from usertwin.simulator.agents import Failure, as_replies, run_turn

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


# Calls of tools ---------------------------------------------------------------------------------------------------------

LOOKUP = {"id": "1", "type": "function", "function": {"name": "lookup", "arguments": '{"what": "bell"}'}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [LOOKUP]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "20 euros"}
ANSWER = {"role": "assistant", "content": "It is 20 euros."}
#: The same turn, a call of a tool, its result and a text, in the formats of clients and frameworks.
TOOL_TURNS: dict[str, list[Any]] = {
    "chat completions": [CALLS | {"content": None}, RESULT, ANSWER],
    "langchain": [
        AIMessage("", tool_calls=[{"name": "lookup", "args": {"what": "bell"}, "id": "1"}]),
        ToolMessage("20 euros", tool_call_id="1"), AIMessage("It is 20 euros."),
    ],
    "anthropic": [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "lookup", "input": {"what": "bell"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "20 euros"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "It is 20 euros."}]},
    ],
    "responses": [
        {"type": "function_call", "id": "f", "call_id": "1", "name": "lookup", "arguments": '{"what": "bell"}'},
        {"type": "function_call_output", "call_id": "1", "output": "20 euros"},
        output_message(TEXT | {"text": "It is 20 euros."}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("turn", TOOL_TURNS.values(), ids=TOOL_TURNS)
def test_calls_of_tools_and_their_results_stay_in_the_conversation(turn: list[Any]) -> None:
    assert as_replies(turn) == as_replies({"messages": [*HELLO, *turn]}, HELLO) == [CALLS, RESULT, ANSWER]


@pytest.mark.parametrize("name", ["chat completions", "langchain", "anthropic", "responses"])
def test_an_agent_gets_its_calls_back_if_they_have_the_format_of_chat_completions(name: str) -> None:
    heard = list[list[dict[str, Any]]]()

    def agent(messages: list[dict[str, Any]]) -> list[Any]:
        heard.append(messages)
        return TOOL_TURNS[name]

    call = as_agent(agent)
    talk = HELLO + asyncio.run(call(HELLO, "t")) + HELLO  # pyright: ignore[reportArgumentType]
    asyncio.run(call(talk, "t"))  # pyright: ignore[reportArgumentType]
    assert heard[1] == (talk if name in {"chat completions", "langchain"} else [*HELLO, ANSWER, *HELLO])


def test_an_agent_does_not_get_calls_without_results_back_which_endpoints_refuse() -> None:
    heard = list[list[dict[str, Any]]]()

    def agent(messages: list[dict[str, Any]]) -> Any:
        heard.append(messages)
        return completion(content="One moment.", tool_calls=TOOL_CALLS)

    call = as_agent(agent)
    first = asyncio.run(call(HELLO, "t"))  # pyright: ignore[reportArgumentType]
    assert first == [{"role": "assistant", "content": "One moment.", "tool_calls": TOOL_CALLS}]
    asyncio.run(call([*HELLO, *first, *HELLO], "t"))  # pyright: ignore[reportArgumentType]
    assert heard[1] == [*HELLO, {"role": "assistant", "content": "One moment."}, *HELLO]


def test_parallel_calls_are_one_message() -> None:
    calls = [CALL, CALL | {"call_id": "d", "name": "order"}]
    replies = as_replies([output_message(TEXT), *calls])
    [reply] = replies
    assert [call["function"]["name"] for call in reply["tool_calls"]] == ["lookup", "order"]
    assert reply["content"] == "Hello!"


def test_a_turn_of_calls_only_names_them_and_keeps_them_in_the_failure() -> None:
    streamed = [
        chunk(tool_calls=[{"index": 0, "id": "1", "function": {"name": "lookup", "arguments": ""}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"what": "bell"}'}}]),
    ]
    langchain = AIMessage("", tool_calls=[{"name": "lookup", "args": {"what": "bell"}, "id": "1"}])
    for agent in (lambda messages: [CALLS], lambda messages: langchain, lambda messages: iter(streamed)):
        failure = asyncio.run(run_turn(as_agent(agent), HELLO, "t", 60))
        assert isinstance(failure, Failure)
        assert failure.error.startswith("the agent only called lookup: it returned a call of a tool without a text")
        assert failure.messages == (CALLS,)


# State and limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "state"),
    [
        ({"messages": [AIMessage("hi")], "cart": ["bell"], "when": datetime(2026, 5, 1, tzinfo=UTC)},
         {"cart": ["bell"], "when": "2026-05-01T00:00:00Z"}),
        ({"role": "assistant", "content": "hi", "cart": ["bell"]}, {"cart": ["bell"]}),
        ({"output": "hi", "steps": (1, 2), "who": RunResult("x")}, {"steps": [1, 2], "who": {"final_output": "x"}}),
        (("hi", {"cart": []}), {"cart": []}),
        ("hi", None), (AIMessage("hi"), None), ({"role": "assistant", "content": "hi"}, None), (("hi", None), None),
        (completion(content="hi").model_dump(), None),
    ],
)  # fmt: skip
def test_what_a_result_holds_beside_the_reply_is_the_state(value: Any, state: Any) -> None:
    call = as_agent(lambda messages: value)
    asyncio.run(call(HELLO, "t"))  # pyright: ignore[reportArgumentType]
    assert call.state_of("other") is None
    assert call.state_of("t") == state
    assert call.state_of("t") is None


def test_a_large_state_is_no_fault_of_the_reply() -> None:
    call = as_agent(lambda messages: {"content": "hi", "documents": list(range(200_000))})
    assert asyncio.run(call(HELLO, "t")) == [{"role": "assistant", "content": "hi"}]  # pyright: ignore[reportArgumentType]
    assert len(call.state_of("t")["documents"]) == 200_000


def test_a_state_that_cannot_be_written_loses_only_that_field() -> None:
    circular = list[Any]()
    circular.append(circular)
    call = as_agent(lambda messages: {"content": "hi", "circular": circular, "odd": object, "none": None})
    asyncio.run(call(HELLO, "t"))  # pyright: ignore[reportArgumentType]
    state = call.state_of("t")
    assert state.keys() == {"odd", "none"}
    assert state["none"] is None


def test_a_reply_that_a_limit_cut_says_so() -> None:
    cut = completion(content="The bell is")
    cut.choices[0].finish_reason = "length"
    anthropic = anthropic_message(block(type="text", text="The bell is"))
    anthropic.stop_reason = "max_tokens"
    for value in (cut, anthropic, AIMessage("The bell is", response_metadata={"finish_reason": "length"})):
        assert as_replies(value) == [{"role": "assistant", "content": "The bell is", "finish_reason": "length"}]


# Streams of graphs, and results of other frameworks ---------------------------------------------------------------------


def test_streams_of_a_graph_in_every_mode_are_read() -> None:
    graph = StateGraph(MessagesState)
    graph.add_node("look", lambda state: {"messages": [AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])]})
    graph.add_node("tools", lambda state: {"messages": [ToolMessage("SECRET", tool_call_id="1")]})
    graph.add_node("say", lambda state: {"messages": [GenericFakeChatModel(messages=iter([AIMessage("Hello!")])).invoke("x")]})
    for edge in ((START, "look"), ("look", "tools"), ("tools", "say")):
        graph.add_edge(*edge)
    compiled: Any = graph.compile()
    for mode in ("updates", "values"):
        assert said(lambda messages, mode=mode: compiled.stream({"messages": messages}, stream_mode=mode)) == ["Hello!"]
    assert said(lambda messages: compiled.astream_events({"messages": messages}, version="v2")) == ["Hello!"]


def test_growing_histories_are_their_last_one() -> None:
    def respond(message: str, history: list[Any]) -> Iterator[Any]:
        for text in ("Hel", "Hello!"):
            yield "", [*history, {"role": "user", "content": message}, {"role": "assistant", "content": text}]

    assert said(respond) == ["Hello!"]


@pytest.mark.parametrize(
    "value",
    [
        GenericFakeChatModel(messages=iter([AIMessage("Hello!")])).generate([[HumanMessage("x")]]),
        Anthropic(messages=[Anthropic(type="TextMessage", source="user", content="hello"),
                            Anthropic(type="TextMessage", source="desk", content="Hello!")]),
        Anthropic(response="Hello!", source_nodes=[]),
        {"reply": "Hello!"}, {"result": {"text": "Hello!"}},
    ],
    ids=["LLMResult", "AutoGen", "LlamaIndex", "reply", "result"],
)  # fmt: skip
def test_results_of_other_frameworks_are_read(value: Any) -> None:
    assert said(value) == ["Hello!"]
