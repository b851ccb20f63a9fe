"""One conversation between a twin and an agent, and the record of how it went and why it ended.

A failed conversation is a result, not an exception, and its stop reason tells whose fault it was. A fault of the twin is never
charged to the agent, and no fallback text is ever inserted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, cast
from uuid import uuid4

from usertwin.memory.event_loop import in_caller, run_sync
from usertwin.personas import AgentError, LogError, ModelError, UsageError, UsertwinError, as_conversation
from usertwin.personas.roles import is_user

from .agents import AgentCall, AgentProcess, Failure, Message, as_agent, run_turn
from .records import AGENT_FAULTS as AGENT_FAULTS
from .records import TWIN_FAULTS as TWIN_FAULTS
from .records import Exchange as Exchange
from .records import Simulation as Simulation
from .records import StopReason as StopReason
from .state import Answer
from .user import SimulatedUser

DEFAULT_MAX_TURNS = 8  # evals/pytest_plugin.py repeats it, since plugins must start fast
DEFAULT_AGENT_TIMEOUT = 120.0


def check_limits(*, max_turns: Any = 1, agent_timeout: Any = 1.0, count: Any = 1) -> None:
    """Raise UsageError if a number of turns or conversations, or a time limit, is not above 0; an infinite time is no limit."""
    for name, number in (("max_turns", max_turns), ("count", count)):
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise UsageError(f"{name} is {number!r}; it must be a whole number")
        if cast("int", number) < 1:
            raise UsageError(f"{name} is {number}; it must be at least 1")
    if isinstance(agent_timeout, bool) or not isinstance(agent_timeout, Real) or not cast("float", agent_timeout) > 0:
        raise UsageError(f"agent_timeout is {agent_timeout!r}; it must be a number of seconds above 0, or inf for no limit")


def opening(start: Any, user: SimulatedUser) -> list[Message]:
    """Return a conversation of any accepted shape as messages: "user" is the twin, "system" an instruction for it.

    Raises:
        UsageError: it has no known shape.
    """
    try:
        turns = as_conversation(start).turns
    except LogError as error:
        raise UsageError(f"start: {error}") from None
    speaker = user.record.recipe.speaker
    return [
        {
            "role": "system" if turn.private else "user" if is_user(turn.role) or turn.speaker == speaker else "assistant",
            "content": turn.text,
        }
        for turn in turns
        if turn.text.strip()
    ]


async def asimulate(
    user: SimulatedUser,
    agent: Any,
    *,
    max_turns: int = DEFAULT_MAX_TURNS,
    seed: int = 0,
    goal: str = "",
    agent_first: bool = False,
    agent_timeout: float = DEFAULT_AGENT_TIMEOUT,
    agent_process: bool = False,
    start: Any = (),
    goal_reached: Callable[[list[Message]], bool] | None = None,
    on_exchange: Callable[[Exchange], None] | None = None,
) -> Simulation:
    """Run one conversation between a twin and an agent and return its record.

    Args:
        user: the twin.
        agent: the agent under test, in any shape that `as_agent` accepts.
        max_turns: the maximum number of turns of the twin.
        seed: seed of the conversation; each turn's sampler seed is computed from it.
        goal: what the twin wants; the agent never sees it.
        agent_first: whether the agent opens the conversation.
        agent_timeout: seconds that the agent may take for a reply; inf for no limit.
        agent_process: whether the agent runs in a process of its own, which it may end or block without harm. The process
            imports the agent by name: "module:attribute", or a function at the top of a module.
        start: the conversation so far, in any shape that `as_conversation` accepts. Instructions in it become part of the goal.
            If the user has the last word, the agent is next.
        goal_reached: called with all messages after each reply; True ends the conversation.
        on_exchange: called with each complete exchange.

    Raises:
        UsageError: the agent or `start` has no known shape, or a limit is not above 0. Later failures are recorded.
    """
    check_limits(max_turns=max_turns, agent_timeout=agent_timeout)
    messages = opening(start, user)
    call = AgentProcess(agent) if agent_process and not isinstance(agent, AgentCall) else as_agent(agent)
    goal = "\n".join([text for text in (goal, *(m["content"] for m in messages if m["role"] == "system")) if text])
    public = [message for message in messages if message["role"] != "system"]
    simulation = Simulation(twin=user.name, goal=goal, seed=seed, thread_id=uuid4().hex, messages=public)

    async def is_over() -> bool:
        if goal_reached is not None and await in_caller(goal_reached, simulation.messages):
            simulation.stop_reason = "goal_reached"
        return simulation.stop_reason == "goal_reached"

    try:
        try:
            await call.begin()
        except AgentError as error:  # its process does not start again
            simulation.stop_reason, simulation.error = "agent_error", str(error)
            return simulation
        is_next = agent_first or (public and public[-1]["role"] == "user")
        if is_next and (not await _agent_turn(simulation, call, agent_timeout) or await is_over()):
            return simulation
        for _ in range(max_turns):
            exchange = await _exchange(simulation, user, call, agent_timeout)
            if exchange is None:
                return simulation
            if on_exchange is not None:
                await in_caller(on_exchange, exchange)
            if exchange.answer.done:
                simulation.stop_reason = "user_stop"
            if simulation.stop_reason != "max_turns" or await is_over():
                return simulation
    finally:
        if call is not agent:
            call.close()
    return simulation


async def _exchange(simulation: Simulation, user: SimulatedUser, call: AgentCall, timeout: float) -> Exchange | None:
    """Add a turn of the twin and the agent's reply, unless the twin leaves; None if the twin fails. Failures are recorded."""
    started = time.perf_counter()
    answer = await _twin_turn(simulation, user)
    if answer is None:
        return None
    twin_seconds, started = time.perf_counter() - started, time.perf_counter()
    before = len(simulation.messages)
    if not answer.done:
        await _agent_turn(simulation, call, timeout)
    replies = tuple(simulation.messages[before:])
    simulation.exchanges.append(Exchange(answer, replies, twin_seconds, time.perf_counter() - started))
    return simulation.exchanges[-1]


async def _twin_turn(simulation: Simulation, user: SimulatedUser) -> Answer | None:
    """Add the twin's turn to the conversation and return it. On failure, record the reason and return None."""
    try:
        answer = await user.arespond(simulation.messages, goal=simulation.goal, seed=simulation.seed)
    except Exception as error:
        simulation.stop_reason = "model_unavailable" if isinstance(error, ModelError) else "twin_error"
        known = isinstance(error, UsertwinError)
        simulation.error = str(error) if known else f"the twin failed: {type(error).__name__}: {error}"
        return None
    simulation.messages += [answer.message] if answer.action else []  # without an action the twin leaves silently
    return answer


async def _agent_turn(simulation: Simulation, call: AgentCall, timeout: float) -> bool:
    """Add the agent's reply to the conversation. On failure, record the reason and return False."""
    result = await run_turn(call, simulation.messages, simulation.thread_id, timeout)
    if isinstance(result, Failure):
        simulation.stop_reason, simulation.error = result.reason, result.error
        return False
    simulation.messages += result
    return True


def simulate(
    user: SimulatedUser, agent: Any, *, max_turns: int = DEFAULT_MAX_TURNS, seed: int = 0, goal: str = "",
    agent_first: bool = False, agent_timeout: float = DEFAULT_AGENT_TIMEOUT, agent_process: bool = False, start: Any = (),
    goal_reached: Callable[[list[Message]], bool] | None = None, on_exchange: Callable[[Exchange], None] | None = None,
) -> Simulation:  # fmt: skip
    """Run one conversation between a twin and an agent; the synchronous form of `asimulate`, with the same arguments."""
    simulation = asimulate(
        user, agent if agent_process else as_agent(agent).in_own_loop(), max_turns=max_turns, seed=seed, goal=goal,
        agent_first=agent_first, agent_timeout=agent_timeout, agent_process=agent_process, start=start,
        goal_reached=goal_reached, on_exchange=on_exchange,
    )  # fmt: skip
    return run_sync(simulation)
