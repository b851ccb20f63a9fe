"""LangGraph graphs with config, context, state, interrupts and checkpointers of both kinds; the state that they end in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from desk_talk import scripted_twin
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from typing_extensions import TypedDict

from usertwin.personas import AgentError, UsageError
from usertwin.simulator import as_agent, graph_agent, simulate


def said(agent: Any, *turns: str, thread_id: str = "t", start: list[dict[str, Any]] | None = None) -> list[str]:
    """Return what an agent says to these turns of a user."""
    call, messages = as_agent(agent), list(start or ())
    texts = list[str]()

    async def talk() -> None:
        for turn in turns:
            messages.append({"role": "user", "content": turn})
            replies = await call(messages, thread_id)  # pyright: ignore[reportArgumentType]
            messages.extend(replies)
            texts.append("\n".join(m["content"] for m in replies if m["role"] == "assistant" and m["content"]))

    asyncio.run(talk())
    return texts


def graph_of(node: Callable[..., Any], state: Any = MessagesState, *, context: Any = None, **compiled: Any) -> Any:
    graph = StateGraph(state, context_schema=context)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    return graph.compile(**compiled)


# Config, context and state ----------------------------------------------------------------------------------------------


class Shop(TypedDict):
    """A state with more than messages."""

    messages: Annotated[list[AnyMessage], add_messages]
    cart: list[str]
    customer: str


@dataclass
class Context:
    """What the graph's runtime needs."""

    currency: str


def sell(state: Shop, config: RunnableConfig, runtime: Runtime[Context]) -> dict[str, Any]:
    cart = [*state.get("cart", []), str(state["messages"][-1].content)]
    tenant = config.get("configurable", {})["tenant"]
    return {
        "messages": [AIMessage(f"{state['customer']} of {tenant}: {len(cart)} in {runtime.context.currency}")],
        "cart": cart,
    }


@pytest.mark.parametrize("checkpointer", [None, InMemorySaver()])
def test_config_context_and_state_reach_the_graph_and_its_last_state_is_kept(checkpointer: Any) -> None:
    graph = graph_of(sell, Shop, context=Context, checkpointer=checkpointer)
    agent = graph_agent(
        graph, config={"configurable": {"tenant": "shop-1", "thread_id": "not this one"}, "tags": ["test"]},
        context=Context("euros"), state={"customer": "Ann", "cart": []},
    )  # fmt: skip
    counts = (1, 2) if checkpointer else (1, 1)  # without one, each turn begins with the given state
    assert said(agent, "a bell", "a rack", thread_id="one") == [f"Ann of shop-1: {count} in euros" for count in counts]
    assert said(agent, "a chain", thread_id="two") == ["Ann of shop-1: 1 in euros"]
    state = agent.state_of("one")
    assert json.loads(json.dumps(state)) == state
    assert state["cart"] == (["a bell", "a rack"] if checkpointer else ["a rack"])
    assert [message["content"] for message in state["messages"]][-1] == f"Ann of shop-1: {counts[1]} in euros"
    assert agent.state_of("one") is None  # forgotten
    assert agent.state_of("two")["cart"] == ["a chain"]


def test_messages_in_the_given_state_come_first() -> None:
    graph = graph_of(lambda state: {"messages": [AIMessage(", ".join(str(m.content) for m in state["messages"]))]})
    assert said(graph_agent(graph, state={"messages": [("system", "Sell bells.")]}), "hi", "ho") == [
        "Sell bells., hi", "Sell bells., hi, Sell bells., hi, ho",
    ]  # fmt: skip


def test_a_graph_with_a_checkpointer_hears_the_turns_before_its_first_one() -> None:
    graph = graph_of(lambda state: {"messages": [AIMessage(str(len(state["messages"])))]}, checkpointer=InMemorySaver())
    start = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Yes?"}]
    assert said(graph, "a bell", "a rack", start=start) == ["3", "5"]


class Question(TypedDict):
    """A state without messages."""

    question: str
    answer: str


def test_a_graph_without_messages_names_its_fields() -> None:
    graph = graph_of(lambda state: {"answer": state["question"].upper()}, Question)
    assert said(graph_agent(graph, input="question", output="answer"), "a bell", "a rack") == ["A BELL", "A RACK"]
    with pytest.raises(UsageError, match=r'has no "messages", only question, answer; .*graph_agent\(graph, input="question"'):
        as_agent(graph)
    with pytest.raises(AgentError, match='returned no "reply"'):
        said(graph_agent(graph, input="question", output="reply"), "a bell")


def test_what_is_no_compiled_graph_is_refused() -> None:
    with pytest.raises(UsageError, match=r"graph_agent got StateGraph; give it a compiled LangGraph graph"):
        graph_agent(StateGraph(MessagesState))
    with pytest.raises(UsageError, match=r"StateGraph is a graph that is not compiled; use its compile\(\)"):
        as_agent(StateGraph(MessagesState))


# Interrupts -------------------------------------------------------------------------------------------------------------


def asking(*questions: Any) -> Callable[..., Any]:
    def node(state: MessagesState) -> dict[str, Any]:
        answers = [interrupt(question) for question in questions]
        return {"messages": [AIMessage(f"You said {answers!r}.")]}

    return node


@pytest.mark.parametrize(
    "question",
    [
        "Order it?",
        {"question": "Order it?", "options": ["yes", "no"]},
        [{"message": "Order it?"}],
    ],
)
def test_an_interrupt_is_what_the_agent_says_and_the_next_turn_answers_it(question: Any) -> None:
    graph = graph_of(asking(question), checkpointer=InMemorySaver())
    assert said(graph, "a bell", "yes please", "a rack") == ["Order it?", "You said ['yes please'].", "Order it?"]


def test_several_interrupts_one_after_the_other() -> None:
    graph = graph_of(asking("Order it?", "How many?"), checkpointer=InMemorySaver())
    assert said(graph, "a bell", "yes", "two") == ["Order it?", "How many?", "You said ['yes', 'two']."]


def test_several_interrupts_at_once_are_all_answered() -> None:
    graph = StateGraph(MessagesState)
    for name in ("price", "day"):
        graph.add_node(name, lambda state, name=name: {"messages": [AIMessage(f"{name}: {interrupt(f'Which {name}?')}")]})
        graph.add_edge(START, name)
    [asked, answered] = said(graph.compile(checkpointer=InMemorySaver()), "a bell", "any")
    assert sorted(asked.splitlines()) == ["Which day?", "Which price?"]
    assert sorted(answered.splitlines()) == ["day: any", "price: any"]


def test_an_interrupt_may_want_another_form() -> None:
    def decide(text: str, value: Any) -> dict[str, Any]:
        return {"approved": text.startswith("yes"), "of": value["id"]}

    graph = graph_of(asking({"id": 7, "question": "Order it?"}), checkpointer=InMemorySaver())
    assert said(graph_agent(graph, resume=decide), "a bell", "yes please") == [
        "Order it?", "You said [{'approved': True, 'of': 7}].",
    ]  # fmt: skip


def test_langchains_decisions_on_tools_need_a_function() -> None:
    request = {"action_requests": [{"name": "order", "args": {"id": 1}, "description": "Order it?"}], "review_configs": []}
    graph = graph_of(asking(request), checkpointer=InMemorySaver())
    approve = graph_agent(graph, resume=lambda text, value: {"decisions": [{"type": "approve"}]})
    assert said(approve, "a bell", "yes") == ["Order it?", "You said [{'decisions': [{'type': 'approve'}]}]."]
    with pytest.raises(AgentError, match="give graph_agent a resume function"):
        said(graph, "a bell", "yes", thread_id="other")


def test_a_message_before_an_interrupt_is_said_too() -> None:
    graph = StateGraph(MessagesState)
    graph.add_node("look", lambda state: {"messages": [AIMessage("I found a bell.")]})
    graph.add_node("ask", asking("Order it?"))
    graph.add_edge(START, "look")
    graph.add_edge("look", "ask")
    [first, second] = said(graph.compile(checkpointer=InMemorySaver()), "a bell", "yes")
    assert first == "I found a bell.\nOrder it?"
    assert second == "You said ['yes']."


def test_interrupts_in_a_conversation_with_a_twin(ann: str) -> None:
    graph = graph_of(asking("Order it?"), checkpointer=InMemorySaver())
    with scripted_twin(ann) as user:
        simulation = simulate(user, graph, max_turns=2)
    assert [m["content"] for m in simulation.messages if m["role"] == "assistant"] == [
        "Order it?", f"You said [{simulation.messages[2]['content']!r}].",
    ]  # fmt: skip


# Checkpointers, functions and runnables ---------------------------------------------------------------------------------


class SyncSaver(InMemorySaver):
    """A checkpointer with synchronous methods only."""

    async def aget_tuple(self, config: Any) -> Any:
        raise NotImplementedError

    async def aput(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


def test_a_checkpointer_with_synchronous_methods_only_works() -> None:
    node = asking("Order it?")
    assert said(graph_of(node, checkpointer=SyncSaver()), "a bell", "yes") == ["Order it?", "You said ['yes']."]


def test_langgraphs_sqlite_saver_works(tmp_path: Any) -> None:
    sqlite = pytest.importorskip("langgraph.checkpoint.sqlite")
    with sqlite.SqliteSaver.from_conn_string(str(tmp_path / "graph.sqlite")) as saver:
        assert said(graph_of(asking("Order it?"), checkpointer=saver), "a bell", "yes") == ["Order it?", "You said ['yes']."]


def test_functions_of_langgraph_are_agents() -> None:
    @entrypoint(checkpointer=InMemorySaver())
    def agent(messages: list[dict[str, Any]], *, previous: int | None = None) -> Any:
        count = (previous or 0) + len(messages)
        return entrypoint.final(value=f"{messages[-1]['content']}, {count} so far", save=count)

    assert said(agent, "a bell", "a rack") == ["a bell, 1 so far", "a rack, 2 so far"]


def test_runnables_get_what_their_input_names() -> None:
    def text(prompt: Any) -> str:
        return prompt.to_string()

    assert said(ChatPromptTemplate.from_template("About {question}") | RunnableLambda(text), "a bell") == [
        "Human: About a bell"
    ]

    def shout(words: str) -> str:
        return words.upper()

    assert said(RunnableLambda(shout), "a bell") == ["A BELL"]
    with pytest.raises(UsageError, match="the input of the runnable needs language, question; put a function before it"):
        as_agent(ChatPromptTemplate.from_template("{question} in {language}") | RunnableLambda(text))


def test_calls_of_tools_in_a_graph_are_in_the_conversation() -> None:
    def node(state: MessagesState) -> dict[str, Any]:
        call = {"name": "lookup", "args": {"what": "bell"}, "id": "c1"}
        from langchain_core.messages import ToolMessage

        return {"messages": [AIMessage("", tool_calls=[call]), ToolMessage("20 euros", tool_call_id="c1"), AIMessage("20.")]}

    replies = asyncio.run(as_agent(graph_of(node))([{"role": "user", "content": "a bell"}], "t"))  # pyright: ignore
    function = {"name": "lookup", "arguments": '{"what": "bell"}'}
    assert replies == [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "20 euros"},
        {"role": "assistant", "content": "20."},
    ]
