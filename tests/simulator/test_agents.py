"""Agents of every accepted shape become one async call; other shapes and replies are refused with one sentence."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langgraph.checkpoint.memory import MemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from conftest import Endpoint, scripted
from usertwin.personas import AgentError, ModelError, UsageError
from usertwin.simulator import as_agent
from usertwin.simulator.agents import as_replies, load_agent
from usertwin.simulator.agents.demo_agent import help_desk

HELLO = [{"role": "user", "content": "hello"}]
LONGER = [*HELLO, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "and now"}]


def ask(agent: Any, messages: list[dict[str, Any]] = HELLO, thread_id: str = "thread-1") -> list[str]:
    """Return the replies of an agent of any shape, as texts."""
    return texts_of(asyncio.run(as_agent(agent)(messages, thread_id)))  # pyright: ignore[reportArgumentType]


def texts_of(replies: list[dict[str, Any]]) -> list[str]:
    """Return what the agent says in its new messages."""
    assert {reply["role"] for reply in replies} <= {"assistant", "tool"}
    return [reply["content"] for reply in replies if reply["role"] == "assistant" and reply["content"]]


# Functions and objects --------------------------------------------------------------------------------------------------


def test_a_function_of_one_argument_gets_all_messages() -> None:
    assert ask(lambda history: f"{len(history)} so far, the last: {history[-1]['content']}", LONGER) == [
        "3 so far, the last: and now"
    ]


def test_a_function_gets_the_arguments_it_names() -> None:
    def agent(
        input: str, message: dict[str, str], messages: list[dict[str, str]], *, thread_id: str, mood: str = "calm"
    ) -> str:
        return f"{input}|{message['role']}:{message['content']}|{len(messages)}|{thread_id}|{mood}"

    assert ask(agent, LONGER, "t-7") == ["and now|user:and now|3|t-7|calm"]


def test_input_is_empty_if_the_agent_opens_the_conversation() -> None:
    def agent(input: str) -> str:
        return f"heard {input!r}"

    assert ask(agent, []) == ["heard ''"]


def test_a_function_may_take_any_arguments() -> None:
    def agent(*arguments: Any, **named: Any) -> str:
        return f"{len(arguments)} argument of {len(arguments[0])} messages, {len(named)} by name"

    assert ask(agent, LONGER) == ["1 argument of 3 messages, 0 by name"]


def test_a_positional_only_argument_gets_the_messages() -> None:
    def agent(messages: list[dict[str, str]], /) -> str:
        return messages[0]["content"]

    assert ask(agent) == ["hello"]


def test_an_async_function_runs_on_the_callers_event_loop() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def agent(messages: list[dict[str, str]]) -> str:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return messages[-1]["content"].upper()

    async def both() -> bool:
        await as_agent(agent)(HELLO, "t")  # pyright: ignore[reportArgumentType]
        return loops == [asyncio.get_running_loop()]

    assert asyncio.run(both())


def test_a_sync_function_does_not_block_the_event_loop() -> None:
    open_door = threading.Event()

    def agent(messages: list[dict[str, str]]) -> str:
        return "came in" if open_door.wait(30) else "nobody opened"

    async def both() -> list[dict[str, Any]]:
        waiting = asyncio.create_task(as_agent(agent)([], "t"))  # pyright: ignore[reportArgumentType]
        await asyncio.sleep(0.01)
        open_door.set()  # reached only if the agent waits in another thread
        return await waiting

    assert asyncio.run(both()) == [{"role": "assistant", "content": "came in"}]


class Counter:
    """A callable object with state."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, messages: list[dict[str, str]]) -> str:
        self.calls += 1
        return f"call {self.calls}"

    def method(self, input: str) -> str:
        return f"method of {input}"


class AsyncAgent:
    """A callable object that is asynchronous."""

    async def __call__(self, message: dict[str, str]) -> dict[str, str]:
        return {"role": "assistant", "content": f"you said {message['content']}"}


def test_a_callable_object_keeps_its_state_between_turns() -> None:
    counter = Counter()
    call = as_agent(counter)
    replies = [asyncio.run(call([], "t"))[0]["content"] for _ in range(2)]  # pyright: ignore[reportArgumentType]
    assert replies == ["call 1", "call 2"]


def test_methods_partials_and_async_objects_are_agents() -> None:
    async def agent(prefix: str, messages: list[dict[str, str]]) -> str:
        return prefix + messages[-1]["content"]

    assert ask(Counter().method) == ["method of hello"]
    assert ask(AsyncAgent()) == ["you said hello"]
    assert ask(functools.partial(agent, "> ")) == ["> hello"]


def test_a_function_that_returns_an_awaitable_is_awaited() -> None:
    async def later() -> str:
        return "at last"

    assert ask(lambda messages: later()) == ["at last"]


def only_by_name(*, history: list[str]) -> str:
    """Require an unknown keyword argument."""
    return str(history)


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (lambda: "hi", "takes no arguments"),
        (lambda question, context: "hi", "takes question, context"),
        (lambda messages, database: "hi", "takes database"),
        (only_by_name, "takes history"),
    ],
)
def test_a_function_with_another_signature_is_refused_before_the_first_turn(agent: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        as_agent(agent)
    assert "thread_id" in str(caught.value)  # lists the known arguments


@pytest.mark.parametrize("thing", [None, 3, ["hi"], {"role": "assistant"}])
def test_other_values_are_refused_up_front(thing: Any) -> None:
    with pytest.raises(UsageError, match="is not an agent"):
        as_agent(thing)


def test_exceptions_of_a_function_reach_the_caller() -> None:
    def broken(messages: list[dict[str, str]]) -> str:
        raise KeyError("order")

    def stopped(messages: list[dict[str, str]]) -> str:
        raise StopIteration("nothing left")  # a future cannot carry this one

    with pytest.raises(KeyError, match="order"):
        ask(broken)
    with pytest.raises(RuntimeError, match="StopIteration: nothing left"):
        ask(stopped)


# Replies ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "texts"),
    [
        ("hi", ["hi"]),
        ({"role": "assistant", "content": "hi"}, ["hi"]),
        ({"content": "hi"}, ["hi"]),
        (AIMessage("hi"), ["hi"]),
        (AIMessage([{"type": "text", "text": "hi"}]), ["hi"]),
        (["hi", "there"], ["hi", "there"]),
        ([AIMessage("hi"), {"role": "assistant", "content": "there"}], ["hi", "there"]),
        ({"messages": [AIMessage("hi")]}, ["hi"]),
        ({"messages": [HumanMessage("ho"), AIMessage(""), ToolMessage("4", tool_call_id="1"), AIMessage("so 4")]}, ["so 4"]),
    ],
)  # fmt: skip
def test_a_reply_may_have_many_shapes(returned: Any, texts: list[str]) -> None:
    assert texts_of(as_replies(returned)) == texts


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        (None, "returned None"),
        ("", "returned an empty reply"),
        (" \n", "returned an empty reply"),
        ([], "returned an empty reply"),
        ([AIMessage("")], "returned an empty reply"),
        ([{"role": "user", "content": "I am the user"}], "returned an empty reply"),
        ({"messages": []}, "returned an empty reply"),
        ({"cart": "hi"}, r"returned dict, which is not a message; return a text, a message with \"content\", or a list"),
        ({"choices": []}, "returned dict, which is not a message"),
        (3, "returned int"),
        (b"hi", "returned bytes"),
        (object(), "returned object"),
        ([["hi"]], "returned list"),
        ({"content": 3}, "which is not a message"),
        ({"messages": None}, "is not a message"),
        ({"messages": 3}, "is not a message"),
        (iter([]), "an empty reply"),
        (iter([1, 2]), "an empty reply"),
        (iter("hi there" for _ in iter(int, 1)), "a stream that is too long or does not end"),
    ],
)
def test_an_invalid_reply_is_an_agent_error(returned: Any, complaint: str) -> None:
    with pytest.raises(AgentError, match=complaint):
        as_replies(returned)


# Replies that repeat the conversation ------------------------------------------------------------------------------------


def as_langchain(messages: list[dict[str, Any]]) -> list[Any]:
    return [(HumanMessage if m["role"] == "user" else AIMessage)(m["content"]) for m in messages]


SYSTEM = {"role": "system", "content": "You sell bells."}
#: Name and function of (messages, new reply) -> what an agent returns that repeats the conversation.
HISTORIES: dict[str, Any] = {
    "the list": lambda messages, reply: [*messages, reply],
    "a state": lambda messages, reply: {"messages": [*messages, reply], "cart": []},
    "its argument": lambda messages, reply: messages.append(reply) or messages,
    "copies": lambda messages, reply: [dict(message) for message in [*messages, reply]],
    "with the system prompt": lambda messages, reply: [SYSTEM, *messages, reply],
    "copies with the system prompt": lambda messages, reply: [SYSTEM, *map(dict, messages), reply],
    "LangChain messages": lambda messages, reply: as_langchain([*messages, reply]),
    "a LangChain state": lambda messages, reply: {"messages": as_langchain([*messages, reply])},
    "trimmed": lambda messages, reply: [*messages[-2:], reply],
    "trimmed copies": lambda messages, reply: as_langchain([*messages[-2:], reply]),
    "only what the agent said": lambda messages, reply: [*(m for m in messages if m["role"] == "assistant"), reply],
    "copies of what the agent said": lambda messages, reply: as_langchain(
        [*(m for m in messages if m["role"] == "assistant"), reply]
    ),
    "edited": lambda messages, reply: [{**m, "content": f"({m['content']})"} for m in messages] + [reply],
    "edited in place": lambda messages, reply: [m.update(content="?") or m for m in messages] + [reply],
    "a summary": lambda messages, reply: [{"role": "assistant", "content": "(so far: bells)"}, messages[-1], reply],
    "newest first": lambda messages, reply: [reply, *reversed(messages)],
    "with an invented turn": lambda messages, reply: [*map(dict, messages), reply, {"role": "user", "content": "thanks!"}],
    "with a tool": lambda messages, reply: [
        *as_langchain(messages), AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}]),
        ToolMessage("42", tool_call_id="1"), AIMessage(reply["content"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("replies", [("One.", "Two.", "Three."), ("Same.", "Same.", "Same.")], ids=["new", "repeated"])
@pytest.mark.parametrize("make", HISTORIES.values(), ids=HISTORIES)
def test_of_a_reply_that_repeats_the_conversation_only_the_new_part_counts(make: Any, replies: tuple[str, ...]) -> None:
    remaining = iter(replies)
    call, messages = as_agent(lambda messages: make(messages, {"role": "assistant", "content": next(remaining)})), []
    for number, reply in enumerate(replies):
        messages.append({"role": "user", "content": f"question {number % 2}"})  # the third is the first again
        new = asyncio.run(call(messages, "t"))
        assert texts_of(new) == [reply]
        messages += new


@pytest.mark.parametrize(
    "returned",
    [
        "yes?",
        ["yes?"],
        {"content": "yes?"},
        AIMessage("yes?"),
        [AIMessage("yes?")],
        {"messages": [{"role": "assistant", "content": "yes?"}]},
        ["yes?", "and?"],
    ],
)
def test_an_agent_may_repeat_its_reply_word_for_word(returned: Any) -> None:
    assert ask(lambda messages: returned, LONGER)[0] == "yes?"
    assert ask(lambda messages: messages[1], LONGER) == ["yes?"]
    assert ask(lambda messages: [messages[1]], LONGER) == ["yes?"]


def test_two_messages_that_were_said_before_may_be_said_again() -> None:
    before = [*HELLO, *({"role": "assistant", "content": text} for text in ("One moment.", "It rains.")), HELLO[0]]
    assert ask(lambda messages: ["One moment.", "It rains."], before) == ["One moment.", "It rains."]
    assert ask(lambda messages: as_langchain(before[1:3]), before) == ["One moment.", "It rains."]


def test_the_whole_conversation_without_a_reply_is_an_empty_reply() -> None:
    for agent in (lambda messages: messages, lambda messages: as_langchain(messages)):
        with pytest.raises(AgentError, match="empty reply"):
            ask(agent, LONGER)


def test_text_under_messages_is_one_message() -> None:
    assert as_replies({"messages": "hi"}) == [{"role": "assistant", "content": "hi"}]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "turns", "text", "name"]) | st.text(max_size=4), inner
        )
    ),
    max_leaves=12,
)


@given(_JSON)
def test_any_value_is_replies_or_an_agent_error(returned: Any) -> None:
    try:
        replies = as_replies(returned)
    except AgentError:
        return
    assert any(text.strip() for text in texts_of(replies))


# LangChain --------------------------------------------------------------------------------------------------------------


def test_a_runnable_over_messages_gets_the_messages() -> None:
    assert ask(RunnableLambda(lambda messages: messages[-1]["content"] + "!")) == ["hello!"]


def test_a_runnable_over_a_state_gets_the_messages_under_their_key() -> None:
    def agent(state: dict[str, Any]) -> AIMessage:
        messages = state["messages"]
        return AIMessage(f"{len(messages)} messages")

    assert ask(itemgetter("messages") | RunnableLambda(len) | str, LONGER) == ["3"]
    assert ask(RunnablePassthrough.assign(answer=lambda state: state["messages"]) | agent, LONGER) == ["3 messages"]


def test_a_runnable_gets_the_thread_id_in_its_config() -> None:
    agent = RunnableLambda(lambda messages, config: config["configurable"]["thread_id"])
    assert ask(agent, thread_id="t-9") == ["t-9"]


def test_a_chat_model_of_langchain_is_an_agent() -> None:
    model = FakeListChatModel(responses=["first", "second"])
    call = as_agent(model)
    assert [asyncio.run(call([*HELLO], "t"))[0]["content"] for _ in range(2)] == ["first", "second"]  # pyright: ignore[reportArgumentType]


def test_a_chain_of_a_prompt_and_a_model_is_an_agent() -> None:
    prompts: list[str] = []

    def listen(prompt: Any) -> Any:
        prompts.append(prompt.to_string())
        return prompt

    prompt = ChatPromptTemplate.from_messages([("system", "You sell cars."), MessagesPlaceholder("messages")])
    assert ask(prompt | RunnableLambda(listen) | FakeListChatModel(responses=["a red one"])) == ["a red one"]
    assert prompts == ["System: You sell cars.\nHuman: hello"]


# LangGraph --------------------------------------------------------------------------------------------------------------


def talking_graph(prompts: list[list[str]], **compiled: Any) -> Any:
    """A real graph that answers with the number of messages in its state, by way of a tool call."""

    def node(state: MessagesState) -> dict[str, Any]:
        prompts.append([str(message.content) for message in state["messages"]])
        call = AIMessage("", tool_calls=[{"name": "count", "args": {}, "id": "c1"}])
        return {"messages": [call, ToolMessage("counted", tool_call_id="c1"), AIMessage(f"{len(state['messages'])} messages")]}

    graph = StateGraph(MessagesState)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    return graph.compile(**compiled)


def replies_of_two_turns(graph: Any) -> list[list[str]]:
    """Return the graph's replies so far, after each of two turns."""
    call, messages = as_agent(graph), list[dict[str, Any]]()

    async def talk() -> list[list[str]]:
        replies: list[list[str]] = []
        for text in ("hello", "and now"):
            messages.append({"role": "user", "content": text})
            messages.extend(await call(list(messages), "one-thread"))
            replies.append(texts_of([m for m in messages if m["role"] != "user"]))
        return replies

    return asyncio.run(talk())


def test_a_graph_without_a_checkpointer_gets_the_whole_conversation() -> None:
    prompts: list[list[str]] = []
    assert replies_of_two_turns(talking_graph(prompts)) == [["1 messages"], ["1 messages", "5 messages"]]
    assert prompts == [["hello"], ["hello", "", "counted", "1 messages", "and now"]]  # its own tool call comes back


def test_a_graph_with_a_checkpointer_gets_only_new_messages() -> None:
    prompts: list[list[str]] = []
    replies = replies_of_two_turns(talking_graph(prompts, checkpointer=MemorySaver()))
    assert replies == [["1 messages"], ["1 messages", "5 messages"]]
    assert prompts == [["hello"], ["hello", "", "counted", "1 messages", "and now"]]  # each turn once, its own tool call kept


def test_threads_of_a_graph_with_a_checkpointer_are_separate() -> None:
    graph = talking_graph([], checkpointer=MemorySaver())
    assert [ask(graph, HELLO, thread) for thread in ("a", "b", "a")] == [["1 messages"], ["1 messages"], ["5 messages"]]


def test_all_replies_of_a_graph_that_drops_old_messages_are_returned() -> None:
    from langchain_core.messages import RemoveMessage
    from langgraph.graph.message import REMOVE_ALL_MESSAGES

    def node(state: MessagesState) -> dict[str, Any]:
        last = state["messages"][-1]
        return {"messages": [RemoveMessage(id=REMOVE_ALL_MESSAGES), last, AIMessage(f"to {last.content}")]}

    graph = StateGraph(MessagesState)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    assert replies_of_two_turns(graph.compile(checkpointer=MemorySaver())) == [["to hello"], ["to hello", "to and now"]]


class PlainState(TypedDict):
    messages: list[Any]  # no reducer: what a node returns takes the place of what was there


@pytest.mark.parametrize("keeps", [True, False])
def test_a_graph_over_a_plain_list_may_return_all_messages_or_only_its_own(keeps: bool) -> None:
    def node(state: PlainState) -> dict[str, Any]:
        reply = {"role": "assistant", "content": f"to {state['messages'][-1]['content']}"}
        return {"messages": [*state["messages"], reply] if keeps else [reply]}

    graph = StateGraph(PlainState)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    assert replies_of_two_turns(graph.compile()) == [["to hello"], ["to hello", "to and now"]]


def test_a_graph_may_open_the_conversation() -> None:
    for memory in (None, MemorySaver()):
        assert ask(talking_graph([], checkpointer=memory), []) == ["0 messages"]


def test_a_graph_without_messages_in_its_state_is_an_agent_error() -> None:
    class Other(TypedDict):
        answer: str

    graph = StateGraph(Other)
    graph.add_node("node", lambda state: {"answer": "hi"})
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    with pytest.raises(UsageError, match='has no "messages", only answer; name the field'):
        as_agent(graph.compile())


# Named agents -----------------------------------------------------------------------------------------------------------


def test_demo_is_the_built_in_help_desk() -> None:
    assert load_agent("demo") is help_desk
    assert ask("demo") == ["Hello, this is the help desk. What can I do for you?"]


def test_a_scripted_model_is_an_agent(tmp_path: Path) -> None:
    script = tmp_path / "desk.txt"
    script.write_text("Good morning.\n", "utf-8")
    assert ask(f"scripted:{script}") == ["Good morning."]


def test_a_chat_model_gets_an_assistant_prompt() -> None:
    model = scripted("  What can I do?\n")
    assert ask(model, LONGER) == ["What can I do?"]
    assert model.chat.prompts == ["You are a helpful assistant. Answer briefly.\nhello\nyes?\nand now"]  # pyright: ignore


def test_module_and_attribute_name_an_agent_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "desk_of_mine.py").write_text(
        "def answer(input):\n    return input[::-1]\n\nclass Desk:\n    answer = staticmethod(answer)\n", "utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere", *sys.path])
    assert ask("desk_of_mine:answer") == ["olleh"]
    assert ask("desk_of_mine:Desk.answer") == ["olleh"]
    with pytest.raises(UsageError, match='the module "desk_of_mine" has no "reply"'):
        load_agent("desk_of_mine:reply")


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("", "is not an agent"),
        ("desk", '"desk" is not an agent'),
        ("hf:owner/repo", "is not a file on the Hugging Face hub"),
        ("transformers:no_such_attribute_here", 'the module "transformers" has no "no_such_attribute_here"'),
        ("desk:", '"desk:" is not an agent'),
        (":desk", '":desk" is not an agent'),
        ("no_such_module_here:answer", 'no module "no_such_module_here"'),
        ("json:no.such", 'the module "json" has no "no.such"'),
        ("json.no_such:thing", 'no module "json.no_such"'),
        (".desk:answer", '".desk:answer" is not an agent'),
    ],
)
def test_an_unknown_name_is_refused_with_one_sentence(spec: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        as_agent(spec)
    assert "\n" not in str(caught.value)


def test_a_missing_module_of_an_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy_agent.py").write_text("import a_package_nobody_has\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match='no module "a_package_nobody_has"'):
        load_agent("needy_agent:answer")


@pytest.mark.parametrize(
    ("spec", "style"),
    [
        ("local", "instruction"),
        ("local:small", "instruction"),
        ("local:/models/x.gguf", "instruction"),
        ("local+adapter", "instruction"),
        ("local:small+adapter", "instruction"),
        ("hf:owner/repo/x.gguf", "instruction"),
        ("hf:owner/repo/x.gguf+adapter", "instruction"),
        ("transformers:model", "instruction"),
        ("transformers:./model", "instruction"),
        ("transformers:model+adapter", "instruction"),
        ("scripted:desk.txt", None),
    ],
)
def test_every_name_of_a_model_is_an_agent(
    spec: str, style: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, Any]] = []

    def load(name: str, *, style: Any = None) -> Any:
        loaded.append((name, style))
        return scripted("hi")

    for folder in ("model", "adapter"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "chat_template.jinja").write_text("x", "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("usertwin.simulator.backends.load.load_model", load)
    assert ask(spec) == ["hi"]
    assert loaded == [(spec, style)]


@pytest.mark.parametrize("name", ["local", "transformers", "scripted"])
def test_a_module_may_be_called_like_a_kind_of_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{name}.py").write_text(
        "class Desk:\n    @staticmethod\n    def answer(input):\n        return 'hi'\n", "utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert ask(f"{name}:Desk.answer") == ["hi"]
    sys.modules.pop(name)


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(UsageError, match="no chat template, so it cannot be an agent"):
        load_agent(f"transformers:{tmp_path / 'base'}")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("raise ValueError('no shop')\n", "ValueError: no shop"),
        ("def __getattr__(name):\n    raise KeyError(name)\n", "KeyError: 'agent'"),
    ],
)
def test_a_module_that_fails_is_refused(body: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_agent.py").write_text(body, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "failing_agent", raising=False)
    with pytest.raises(UsageError, match=error):
        load_agent("failing_agent:agent")


class Hostile:
    """An object whose attributes and text raise."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(name)

    def __repr__(self) -> str:
        raise ValueError("no text")


def test_an_object_whose_attributes_raise_is_refused() -> None:
    with pytest.raises(UsageError, match="Hostile cannot be used"):
        as_agent(Hostile())


def test_only_scripted_forbids_a_hosted_model_as_an_agent() -> None:
    with pytest.raises(ModelError, match="USERTWIN_ONLY_SCRIPTED"):
        load_agent("openai:x@http://127.0.0.1:9/v1")


# An endpoint ------------------------------------------------------------------------------------------------------------


def test_an_openai_compatible_endpoint_is_an_agent(endpoint: Endpoint) -> None:
    assert ask(f"openai:desk-model@{endpoint.url}", LONGER) == ["Good day, what can I do?"]
    [request] = endpoint.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["model"] == "desk-model"
    assert [(m["role"], m["content"]) for m in request["messages"]] == [(m["role"], m["content"]) for m in LONGER]
    assert not {"max_tokens", "max_completion_tokens"} & request.keys()  # the endpoint's own limit, if it has one


def test_a_model_that_stops_at_its_token_limit_before_it_answers_is_an_error_that_says_so(endpoint: Endpoint) -> None:
    endpoint.content, endpoint.finish_reason = "", "length"
    with pytest.raises(AgentError, match=r"stopped at .* before it answered"):
        ask(f"openai:x@{endpoint.url}")
    endpoint.content = "The bell is"  # cut off, and heard
    assert ask(f"openai:x@{endpoint.url}") == ["The bell is"]


def test_a_model_in_this_process_has_room_to_reason() -> None:
    model = replace(scripted("hi"), name="local:small")
    limits: list[Any] = []
    generate = model.chat._agenerate

    async def recording(*arguments: Any, **options: Any) -> Any:
        limits.append(options.get("max_tokens"))
        return await generate(*arguments, **options)

    object.__setattr__(model.chat, "_agenerate", recording)
    assert ask(model) == ["hi"]
    assert limits == [8192]


def test_an_endpoint_can_be_called_from_different_event_loops(endpoint: Endpoint) -> None:
    call = as_agent(f"openai:x@{endpoint.url}")
    texts = [asyncio.run(call([*HELLO], "t"))[0]["content"] for _ in range(3)]  # pyright: ignore[reportArgumentType]
    assert texts == ["Good day, what can I do?"] * 3


def test_an_empty_reply_or_a_refusal_of_an_endpoint_is_an_error(endpoint: Endpoint) -> None:
    endpoint.content = "  "
    with pytest.raises(AgentError, match="returned an empty reply"):
        ask(f"openai:x@{endpoint.url}")
    endpoint.refusal = "no such model"
    with pytest.raises(AgentError, match=r"did not answer.*no such model"):
        ask(f"openai:x@{endpoint.url}")
