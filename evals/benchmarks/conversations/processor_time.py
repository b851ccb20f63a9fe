"""Processor time of a twin's turn beside a bare LangGraph graph of three nodes that calls the same scripted model."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from usertwin.memory import ChatModel
from usertwin.simulator import SimulatedUser, load_embedder
from usertwin.simulator.state import TwinState

from ..figures import Figure, figure, ratios, run_alternately
from .endpoint import structured_reply
from .twins import large_twin

#: Returns the next message of a conversation, as a dict, from its messages and its seed.
Respond = Callable[[list[dict[str, Any]], int], Awaitable[dict[str, str]]]
_TURNS = 5


def processor_part(conversations: int = 40, rounds: int = 9, triples: int = 200) -> Iterator[tuple[str, Figure]]:
    """Yield the processor time of a turn, its ratio to that of the bare graph, and the time of the bare graph."""
    from usertwin.simulator.backends.scripted import ScriptedChatModel

    chat = ScriptedChatModel(answers=[structured_reply(number) for number in range(50)])
    with tempfile.TemporaryDirectory() as home, asyncio.Runner() as runner:
        user = large_twin(home, ChatModel("scripted:bench", chat, structured=True), load_embedder("fake:"), triples)
        with user:
            twin, graph = twin_turns(user), bare_turns(chat)

            def side(respond: Respond) -> Callable[[int], float]:
                def milliseconds(_: int) -> float:
                    start = time.process_time()
                    runner.run(talk(respond, conversations))
                    return 1000 * (time.process_time() - start) / (conversations * _TURNS)

                return milliseconds

            ours, bare = (values[1:] for values in run_alternately(rounds + 1, side(twin), side(graph)))  # after warm-up
    against = "a bare LangGraph graph of three nodes, the same scripted model"
    yield "simulate.cpu_vs_langgraph", figure(ratios(ours, bare), "ratio", f"{against} (bar: 2)")
    yield "simulate.cpu_turn_ms", figure(ours, "ms", f"processor time, recall from {triples} triples included")
    yield "simulate.langgraph_turn_ms", figure(bare, "ms", "processor time of the bare graph")


async def talk(respond: Respond, conversations: int) -> None:
    """Run conversations concurrently, in which the other side always says the same."""

    async def one(seed: int) -> None:
        messages: list[dict[str, Any]] = []
        for _ in range(_TURNS):
            messages.append(await respond(messages, seed))
            messages.append({"role": "assistant", "content": "Which number would you like?"})

    await asyncio.gather(*(one(seed) for seed in range(conversations)))


def twin_turns(user: SimulatedUser) -> Respond:
    """Return the turns of a twin."""

    async def respond(messages: list[dict[str, Any]], seed: int) -> dict[str, str]:
        return (await user.arespond(messages, goal="You want a number.", seed=seed)).message

    return respond


def bare_turns(chat: Any) -> Respond:
    """Return the turns of a graph of three nodes over the twin's state that does nothing but call the model."""
    from langgraph.graph import END, START, StateGraph

    async def recall(state: TwinState) -> dict[str, Any]:
        return {"recalled": [], "done": False}

    async def reason(state: TwinState) -> dict[str, Any]:
        return {"reasoning": ""}

    async def act(state: TwinState) -> dict[str, Any]:
        reply = await chat.ainvoke(state["messages"])
        return {"messages": [reply], "action": reply.text}

    graph = StateGraph(TwinState)
    for name, node in (("recall", recall), ("reason", reason), ("act", act)):
        graph.add_node(name, node)
    for source, target in ((START, "recall"), ("recall", "reason"), ("reason", "act"), ("act", END)):
        graph.add_edge(source, target)
    compiled = graph.compile()

    async def respond(messages: list[dict[str, Any]], seed: int) -> dict[str, str]:
        state = await compiled.ainvoke({"messages": messages, "goal": "You want a number.", "seed": seed})
        return {"role": "user", "content": state["action"]}

    return respond
