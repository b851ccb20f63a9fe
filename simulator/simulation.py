"""One conversation between a twin and an agent, and the record of how it went and why it ended.

A failed conversation is a result, not an exception, and its stop reason tells whose fault it was. A fault of the twin is never
charged to the agent, and no fallback text is ever inserted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from uuid import uuid4

from usertwin.memory.event_loop import in_caller, run_sync
from usertwin.memory.models.chat import Usage
from usertwin.personas import Conversation, ModelError, Turn, UsageError, UsertwinError
from usertwin.personas.conversation import PRIVATE_ROLES

from .agents import AgentCall, Message, as_agent
from .state import Answer
from .user import SimulatedUser

StopReason = Literal[
    "user_stop", "goal_reached", "max_turns", "agent_error", "agent_timeout", "twin_error", "model_unavailable"
]
#: Stop reasons that are a fault of the agent, and of the twin.
AGENT_FAULTS: frozenset[StopReason] = frozenset({"agent_error", "agent_timeout"})
TWIN_FAULTS: frozenset[StopReason] = frozenset({"twin_error", "model_unavailable"})
DEFAULT_MAX_TURNS = 8  # evals/pytest_plugin.py repeats it, since plugins must start fast
DEFAULT_AGENT_TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """One turn of the twin, the agent's replies (none if the twin left or the agent failed), and the seconds each took."""

    answer: Answer
    replies: tuple[Message, ...]
    twin_seconds: float
    agent_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the exchange as a JSON object."""
        return asdict(self) | {"answer": self.answer.to_json(), "replies": [dict(message) for message in self.replies]}


@dataclass(slots=True, kw_only=True)
class Simulation:
    """The record of one conversation.

    Attributes:
        twin: the twin's name.
        goal: what the twin wanted, with the instructions in `start`.
        seed: the conversation's seed.
        thread_id: the id that the agent got for this conversation.
        messages: all messages, as the agent saw them.
        exchanges: the twin's turns and the agent's replies.
        stop_reason: why the conversation ended.
        error: one sentence about the failure, or None.
    """

    twin: str
    goal: str
    seed: int
    thread_id: str
    messages: list[Message] = field(default_factory=list[Message], repr=False)
    exchanges: list[Exchange] = field(default_factory=list[Exchange], repr=False)
    stop_reason: StopReason = "max_turns"
    error: str | None = None

    @property
    def usage(self) -> Usage:
        """Tokens of all the twin's model calls."""
        return sum((exchange.answer.usage for exchange in self.exchanges), Usage())

    def to_json(self) -> dict[str, Any]:
        """Return the simulation as a JSON object, a line of a run's `conversations.jsonl`."""
        return asdict(self) | {"exchanges": [exchange.to_json() for exchange in self.exchanges]}

    def conversation(self) -> Conversation:
        """Return the simulation in the interchange format."""
        turns = [Turn(self.twin if m["role"] == "user" else "agent", str(m["role"]), str(m["content"])) for m in self.messages]
        return Conversation(self.thread_id, tuple(turns), None, {"stop_reason": self.stop_reason})


async def asimulate(
    user: SimulatedUser,
    agent: Any,
    *,
    max_turns: int = DEFAULT_MAX_TURNS,
    seed: int = 0,
    goal: str = "",
    agent_first: bool = False,
    agent_timeout: float = DEFAULT_AGENT_TIMEOUT,
    start: Sequence[Message] = (),
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
        agent_timeout: seconds that the agent may take for a reply.
        start: earlier messages of the conversation; instructions among them become part of the goal.
        goal_reached: called with all messages after each reply; True ends the conversation.
        on_exchange: called with each complete exchange.

    Raises:
        UsageError: the agent has no known shape, or max_turns is below 1. Later failures are recorded in the result.
    """
    if max_turns < 1:
        raise UsageError(f"max_turns is {max_turns}; it must be at least 1")
    call = as_agent(agent)
    private = [str(message["content"]) for message in start if message.get("role") in PRIVATE_ROLES]
    public = [message for message in start if message.get("role") not in PRIVATE_ROLES]
    goal = "\n".join([text for text in (goal, *private) if text])
    simulation = Simulation(twin=user.name, goal=goal, seed=seed, thread_id=uuid4().hex, messages=public)
    if agent_first and not await _agent_turn(simulation, call, agent_timeout):
        return simulation
    for _ in range(max_turns):
        started = time.perf_counter()
        answer = await _twin_turn(simulation, user)
        if answer is None:
            return simulation
        twin_seconds, started = time.perf_counter() - started, time.perf_counter()
        before = len(simulation.messages)
        replied = not answer.done and await _agent_turn(simulation, call, agent_timeout)
        replies = tuple(simulation.messages[before:])
        simulation.exchanges.append(Exchange(answer, replies, twin_seconds, time.perf_counter() - started))
        if on_exchange is not None:
            await in_caller(on_exchange, simulation.exchanges[-1])
        if answer.done:
            simulation.stop_reason = "user_stop"
        if not replied:
            return simulation
        if goal_reached is not None and await in_caller(goal_reached, simulation.messages):
            simulation.stop_reason = "goal_reached"
            return simulation
    return simulation


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
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            simulation.messages += await call([dict(message) for message in simulation.messages], simulation.thread_id)
    except UsertwinError as error:
        simulation.stop_reason, simulation.error = "agent_error", str(error)
    except (Exception, SystemExit) as error:
        if isinstance(error, TimeoutError) and limit.expired():  # otherwise the agent raised its own TimeoutError
            simulation.stop_reason, simulation.error = "agent_timeout", f"the agent took longer than {timeout:g} seconds"
        else:
            simulation.stop_reason, simulation.error = "agent_error", f"the agent raised {type(error).__name__}: {error}"
    else:
        return True
    return False


def simulate(
    user: SimulatedUser, agent: Any, *, max_turns: int = DEFAULT_MAX_TURNS, seed: int = 0, goal: str = "",
    agent_first: bool = False, agent_timeout: float = DEFAULT_AGENT_TIMEOUT, start: Sequence[Message] = (),
    goal_reached: Callable[[list[Message]], bool] | None = None, on_exchange: Callable[[Exchange], None] | None = None,
) -> Simulation:  # fmt: skip
    """Run one conversation between a twin and an agent; the synchronous form of `asimulate`, with the same arguments."""
    simulation = asimulate(
        user, agent, max_turns=max_turns, seed=seed, goal=goal, agent_first=agent_first, agent_timeout=agent_timeout,
        start=start, goal_reached=goal_reached, on_exchange=on_exchange,
    )  # fmt: skip
    return run_sync(simulation)
