"""What a conversation reports: itself, the turns of the twin and of the agent, and what the twin recalls.

A conversation is one trace. Its turns are spans "invoke_agent", and LangChain runs: the twin's is the run of its graph.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from usertwin.memory.models.chat_trace import model_name, provider_name
from usertwin.memory.tracing import Span, is_traced, span, trace_settings, usage_attributes

from ..records import Simulation
from .chain_run import chain_run

P = ParamSpec("P")
R = TypeVar("R")
Messages = Sequence[dict[str, Any]]


def traced_conversation(
    converse: Callable[P, Coroutine[Any, Any, Simulation]],
) -> Callable[P, Coroutine[Any, Any, Simulation]]:
    """Return `converse` with one trace for each conversation."""

    @wraps(converse)
    async def traced(*args: P.args, **kwargs: P.kwargs) -> Simulation:
        simulation = cast("Simulation", kwargs["simulation"])
        name = simulation.scenario or "conversation"
        facts = {"usertwin.twin": simulation.twin, "usertwin.seed": simulation.seed, "usertwin.repeat": simulation.repeat}
        metadata = {"thread_id": simulation.thread_id, "twin": simulation.twin, "seed": simulation.seed}
        with (
            trace_settings(conversation_id=simulation.thread_id),
            span("invoke_workflow", name, {"gen_ai.agent.name": name, **facts}) as current,
        ):
            async with chain_run(f"conversation:{simulation.twin}", {"goal": simulation.goal}, metadata) as run:
                try:
                    await converse(*args, **kwargs)
                finally:
                    current.set({"usertwin.turns": len(simulation.exchanges)})
                    current.set(usage_attributes(exchange.answer.usage for exchange in simulation.exchanges))
                kinds = [fault.kind for fault in simulation.twin_faults]
                current.set({
                    "usertwin.stop_reason": simulation.stop_reason, "usertwin.fault": simulation.fault,
                    "usertwin.twin_faults": kinds or None,
                })  # fmt: skip
                run.outputs = {"messages": list(simulation.messages), "stop_reason": simulation.stop_reason}
                if simulation.error:
                    current.fail(simulation.stop_reason, simulation.error)
                    run.error = f"{simulation.stop_reason}: {simulation.error}"
        return simulation

    return traced


@asynccontextmanager
async def agent_trace(messages: Messages) -> AsyncGenerator[Callable[[Any], None]]:
    """The trace of a turn of the agent; the block passes its new messages, or how it failed, to what it gets."""
    with span("invoke_agent", "agent", {"gen_ai.agent.name": "agent"}) as current:
        current.set_input(_pairs(messages))
        async with chain_run("agent", {"messages": list(messages)}, {}) as run:

            def report(result: Any) -> None:
                if isinstance(result, list):
                    replies = cast("Messages", result)
                    run.outputs = {"messages": list(replies)}
                    current.set_output([text for _, text in _pairs(replies)], ["stop"] * len(replies))
                else:
                    run.error = f"{result.reason}: {result.error}"
                    current.fail(result.reason, result.error)

            yield report


def traced_turn(arespond: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Return the twin's `arespond` with a span around each turn."""

    @wraps(arespond)
    async def traced(*args: P.args, **kwargs: P.kwargs) -> R:
        if not is_traced():
            return await arespond(*args, **kwargs)
        user: Any = args[0]
        model = {"gen_ai.provider.name": provider_name(user.model.chat), "gen_ai.request.model": model_name(user.model)}
        with span("invoke_agent", user.name, {"gen_ai.agent.name": user.name, **model}) as current:
            answer = await arespond(*args, **kwargs)
            _set_answer(current, answer)
        return answer

    return traced


def _set_answer(current: Span, answer: Any) -> None:
    current.set(usage_attributes([answer.usage]))
    current.set({
        "usertwin.done": answer.done, "usertwin.recalled": len(answer.recalled), "usertwin.discarded": answer.discarded,
        "usertwin.reasons": bool(answer.reasoning),
    })  # fmt: skip
    current.set_output([answer.action], ["stop"])


def traced_recall(recall_many: Callable[P, R]) -> Callable[P, R]:
    """Return the twin's `recall_many` with a span around each recall."""

    @wraps(recall_many)
    def traced(*args: P.args, **kwargs: P.kwargs) -> R:
        user: Any = args[0]
        data_source = {"gen_ai.data_source.id": user.name, "gen_ai.retrieval.top_k": user.k} if is_traced() else None
        with span("retrieval", "", data_source):
            return recall_many(*args, **kwargs)

    return traced


def _pairs(messages: Messages) -> list[tuple[str, str]]:
    return [(str(message["role"]), str(message.get("content") or "")) for message in messages]
