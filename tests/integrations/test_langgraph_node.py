"""A twin as a node and as a subgraph of somebody's LangGraph graph, with their checkpointer and interrupts."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, interrupt
from twins import BYE, GOAL, failing_twin, silent_twin, talking_twin

from usertwin.personas import ModelError
from usertwin.simulator import Scenario
from usertwin.simulator.integrations.langgraph import twin_left, twin_node


def agent(state: Any) -> dict[str, Any]:
    """An agent with instructions of its own, which gives at most four answers."""
    number = sum(message.type == "ai" for message in state["messages"])
    assert number < 4
    return {"messages": [AIMessage(f"answer {number}")]}


def graph_of(node: Any, *, agent: Any = agent, state: Any = MessagesState, checkpointer: Any = None, **options: Any) -> Any:
    """Return a graph in which a twin opens the conversation and may leave."""
    graph = StateGraph(state)
    graph.add_node("user", node)
    graph.add_node("agent", agent)
    graph.add_edge(START, "user")
    graph.add_conditional_edges("user", twin_left, {True: END, False: "agent"})
    graph.add_edge("agent", "user")
    return graph.compile(checkpointer=checkpointer, **options)


def roles(state: Any) -> list[str]:
    return [message.type for message in state["messages"]]


def test_the_graph_ends_when_the_twin_leaves_and_its_messages_are_human(ann: str) -> None:
    user, chat = talking_twin(ann, leaves_after=2)
    state = graph_of(twin_node(user, goal=GOAL)).invoke({"messages": [SystemMessage("SECRET of the agent")]})
    assert roles(state) == ["system", "human", "ai", "human", "ai", "human"]
    assert state["messages"][-1].content == BYE
    assert state["messages"][-1].additional_kwargs == {"usertwin_stop": "user_stop"}
    assert not any(message.additional_kwargs for message in state["messages"][:-1])
    assert all(GOAL in prompt and "SECRET" not in prompt for prompt in chat.prompts)


def test_a_twin_that_leaves_without_a_word_adds_no_message(ann: str) -> None:
    state = asyncio.run(graph_of(twin_node(silent_twin(ann, after=1))).ainvoke({"messages": []}))
    assert roles(state) == ["human", "ai"]


def test_a_scenario_ends_the_graph(ann: str) -> None:
    scenario = Scenario(name="s", goal=GOAL, opener="hello there", until=("answer 1",))
    state = graph_of(twin_node(talking_twin(ann)[0], scenario=scenario)).invoke({"messages": []})
    assert roles(state) == ["human", "ai"] * 2
    assert state["messages"][0].content == "hello there"


def test_a_run_that_begins_with_the_user_goes_on_with_the_agent(ann: str) -> None:
    state = graph_of(twin_node(silent_twin(ann, after=1))).invoke({"messages": [HumanMessage("hi, it is me")]})
    assert [message.content for message in state["messages"]] == ["hi, it is me", "answer 0"]


def test_each_thread_has_its_goal_and_seed(ann: str) -> None:
    user, chat = talking_twin(ann)
    graph = graph_of(twin_node(user), checkpointer=InMemorySaver(), interrupt_after=["agent"])
    for number in (1, 2):
        chosen = {"thread_id": str(number), "twin_goal": f"You want ticket {number}.", "twin_seed": number}
        graph.invoke({"messages": []}, {"configurable": chosen})
    assert ["You want ticket 1." in prompt for prompt in chat.prompts] == [True, False]
    assert chat.requests[0][1] != chat.requests[1][1]


def test_an_interrupt_of_the_agent_is_resumed_from_the_checkpointer_and_asks_the_twin_once(ann: str) -> None:
    def careful(state: Any) -> dict[str, Any]:
        return {"messages": [AIMessage(f"{interrupt('may I?')}: {state['messages'][-1].content}")]}

    user, chat = talking_twin(ann, leaves_after=1)
    graph = graph_of(twin_node(user), agent=careful, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    first = graph.invoke({"messages": []}, thread)
    assert [pause.value for pause in first["__interrupt__"]] == ["may I?"]
    assert roles(graph.get_state(thread).values) == ["human"]
    state = graph.invoke(Command(resume="yes"), thread)
    assert roles(state) == ["human", "ai", "human"]
    assert state["messages"][1].content.startswith("yes: the weather")
    assert len(chat.requests) == 2


def test_a_person_can_take_the_twins_turn_before_its_node(ann: str) -> None:
    user, chat = talking_twin(ann)
    graph = graph_of(twin_node(user), checkpointer=InMemorySaver(), interrupt_before=["user"])
    thread: Any = {"configurable": {"thread_id": "1"}}
    graph.invoke({"messages": []}, thread)
    graph.update_state(thread, {"messages": [HumanMessage("I am a person")]}, as_node="user")
    state = graph.invoke(None, thread)
    assert [message.content for message in state["messages"]] == ["I am a person", "answer 0"]
    state = graph.invoke(None, thread)
    assert roles(state) == ["human", "ai"] * 2
    assert len(chat.requests) == 1
    assert "I am a person" in chat.prompts[0]


def test_the_twins_failure_is_raised_from_its_node_and_the_run_can_be_continued(ann: str) -> None:
    graph = graph_of(twin_node(failing_twin(ann, after=1)), checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    with pytest.raises(ModelError, match="the model does not answer"):
        graph.invoke({"messages": []}, thread)
    assert graph.get_state(thread).next == ("user",)
    assert roles(graph.get_state(thread).values) == ["human", "ai"]


class TalkState(TypedDict):
    """A state that shares its keys with the twin's graph."""

    messages: Annotated[list[Any], add_messages]
    goal: str
    seed: int
    done: bool


def test_the_twins_own_graph_is_a_subgraph_that_shares_goal_seed_and_done(ann: str) -> None:
    user, chat = talking_twin(ann, leaves_after=1)
    graph = StateGraph(TalkState)
    graph.add_node("user", user.graph)
    graph.add_node("agent", agent)
    graph.add_edge(START, "user")
    graph.add_conditional_edges("user", lambda state: state["done"], {True: END, False: "agent"})
    graph.add_edge("agent", "user")
    compiled = graph.compile(checkpointer=InMemorySaver())
    state = compiled.invoke({"messages": [], "goal": GOAL, "seed": 4}, {"configurable": {"thread_id": "1"}})
    assert roles(state) == ["human", "ai", "human"]
    assert state["done"] is True
    assert all(GOAL in prompt for prompt in chat.prompts)


@pytest.mark.parametrize("traced", [True, False])
def test_the_twins_goal_and_memories_do_not_enter_the_checkpoints(ann: str, traced: bool) -> None:
    saver, node = InMemorySaver(), twin_node(talking_twin(ann, leaves_after=1)[0], goal="You want SECRET things.")
    steps = list[str]()

    class Observer(BaseCallbackHandler):
        def on_chain_start(self, *_: Any, name: str = "", **__: Any) -> None:
            steps.append(name)

    config: Any = {"configurable": {"thread_id": "1"}, "callbacks": [Observer()] if traced else []}
    graph_of(node, checkpointer=saver).invoke({"messages": []}, config)
    checkpoints = list(saver.list(None))
    assert len(checkpoints) > 3
    assert ("recall" in steps) is traced  # the twin's own steps are observed
    assert "SECRET" not in repr(checkpoints)
    assert "recalled" not in repr(checkpoints)
