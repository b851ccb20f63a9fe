"""`simulate` and `asimulate`: one conversation between a twin and an agent."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from numbers import Integral, Real
from typing import Any, cast
from uuid import uuid4

from usertwin.memory.event_loop import run_sync
from usertwin.personas import LogError, UsageError, as_conversation
from usertwin.personas.roles import is_user

from .agents import AgentCall, AgentProcess, Message, as_agent
from .conversation import TurnLimits, converse
from .records import Exchange, Simulation
from .scenarios.from_real import check_held_out
from .scenarios.scenario import Scenario
from .user import SimulatedUser

DEFAULT_MAX_TURNS = 8  # evals/pytest_plugin.py repeats it, since plugins must start fast
DEFAULT_AGENT_TIMEOUT = 120.0


def check_limits(*, agent_timeout: Any = 1.0, **counts: Any) -> None:
    """Raise UsageError if a number of turns or conversations, or a time limit, is not above 0; an infinite time is no limit."""
    for name, number in counts.items():
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
    scenario: Scenario | None = None,
    max_turns: int = DEFAULT_MAX_TURNS,
    seed: int = 0,
    goal: str = "",
    agent_first: bool = False,
    agent_timeout: float = DEFAULT_AGENT_TIMEOUT,
    twin_timeout: float = inf,
    agent_process: bool = False,
    start: Any = (),
    goal_reached: Callable[[list[Message]], bool] | None = None,
    on_exchange: Callable[[Exchange], None] | None = None,
) -> Simulation:
    """Run one conversation between a twin and an agent and return its record.

    Args:
        user: the twin.
        agent: the agent under test, in any shape that `as_agent` accepts.
        scenario: what the conversation is about, instead of `max_turns`, `goal`, `agent_first`, `start` and `goal_reached`.
        max_turns: the maximum number of turns of the twin.
        seed: seed of the conversation; each turn's sampler seed is computed from it.
        goal: what the twin wants; the agent never sees it.
        agent_first: whether the agent opens the conversation.
        agent_timeout: seconds that the agent may take for a reply; inf for no limit.
        twin_timeout: seconds that the twin may take for a turn; inf for no limit.
        agent_process: whether the agent runs in a process of its own, which it may end or block without harm. The process
            imports the agent by name: "module:attribute", or a function at the top of a module.
        start: the conversation so far, in any shape that `as_conversation` accepts. Instructions in it become part of the goal.
            If the user has the last word, the agent is next.
        goal_reached: called with all messages after each reply; True ends the conversation.
        on_exchange: called with each complete exchange.

    Raises:
        UsageError: the agent or `start` has no known shape, a limit is not above 0, or the twin remembers the scenario's real
            conversation. Later failures are recorded.
    """
    check_limits(max_turns=max_turns, agent_timeout=agent_timeout)
    check_limits(agent_timeout=twin_timeout)
    given = (max_turns, goal, agent_first, start, goal_reached)
    if scenario is None:
        scenario = Scenario(
            name="", twins=(user.name,), goal=goal, max_turns=max_turns, agent_first=agent_first,
            start=tuple(opening(start, user)), goal_reached=goal_reached,
        )  # fmt: skip
    elif given != (DEFAULT_MAX_TURNS, "", False, (), None):
        raise UsageError("a scenario holds max_turns, goal, agent_first, start and goal_reached; give them there")
    check_held_out(scenario, user.record)
    call = AgentProcess(agent) if agent_process and not isinstance(agent, AgentCall) else as_agent(agent)
    simulation = Simulation(
        twin=user.name, goal=scenario.goal, seed=seed, thread_id=uuid4().hex, scenario=scenario.name
    )  # fmt: skip
    limits = TurnLimits(agent_timeout=agent_timeout, twin_timeout=twin_timeout)
    try:
        return await converse(user, call, scenario, simulation=simulation, limits=limits, on_exchange=on_exchange)
    finally:
        if call is not agent:
            call.close()


def simulate(
    user: SimulatedUser, agent: Any, *, scenario: Scenario | None = None, max_turns: int = DEFAULT_MAX_TURNS, seed: int = 0,
    goal: str = "", agent_first: bool = False, agent_timeout: float = DEFAULT_AGENT_TIMEOUT, twin_timeout: float = inf,
    agent_process: bool = False, start: Any = (), goal_reached: Callable[[list[Message]], bool] | None = None,
    on_exchange: Callable[[Exchange], None] | None = None,
) -> Simulation:  # fmt: skip
    """Run one conversation between a twin and an agent; the synchronous form of `asimulate`, with the same arguments."""
    call = agent if agent_process or isinstance(agent, AgentCall) else as_agent(agent).in_own_loop()
    simulation = asimulate(
        user, call, scenario=scenario, max_turns=max_turns, seed=seed, goal=goal, agent_first=agent_first,
        agent_timeout=agent_timeout, twin_timeout=twin_timeout, agent_process=agent_process, start=start,
        goal_reached=goal_reached, on_exchange=on_exchange,
    )  # fmt: skip
    try:
        return run_sync(simulation)
    finally:
        if isinstance(call, AgentCall) and call is not agent:
            call.close()
