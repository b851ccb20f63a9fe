"""One conversation between a twin and an agent: a short loop, and a record of what happened and how it ended.

The one design choice: a conversation that fails is a result and not a crash, and its stop reason says whose fault it was; a
twin's fault is never charged to the agent, and nothing is ever put into anybody's mouth to go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from uuid import uuid4

from usertwin.memory.models.chat import Usage
from usertwin.personas import Conversation, ModelError, Turn, UsageError, UsertwinError
from usertwin.personas.conversation import PRIVATE_ROLES

from .agents import AgentCall, Message, as_agent
from .state import Answer
from .user import SimulatedUser, run_sync

StopReason = Literal[
    "user_stop", "goal_reached", "max_turns", "agent_error", "agent_timeout", "twin_error", "model_unavailable"
]
#: Who is to blame for a stop that was not meant to happen.
AGENT_FAULTS: frozenset[StopReason] = frozenset({"agent_error", "agent_timeout"})
TWIN_FAULTS: frozenset[StopReason] = frozenset({"twin_error", "model_unavailable"})
DEFAULT_TURNS = 8


@dataclass(frozen=True, slots=True)
class Exchange:
    """One turn of the twin and what the agent said to it.

    Attributes:
        answer: the twin's turn, with what it came from.
        replies: the agent's messages; empty where the twin left, or the agent failed.
        twin_seconds: how long the twin took.
        agent_seconds: how long the agent took.
    """

    answer: Answer
    replies: tuple[Message, ...]
    twin_seconds: float
    agent_seconds: float


@dataclass(slots=True)
class Simulation:
    """What happened in one conversation.

    Attributes:
        twin: the twin's name.
        goal: what the twin wanted.
        seed: what its sampler was seeded with.
        thread_id: the id the agent was given for this conversation.
        messages: everything that was said, as the agent saw it.
        exchanges: the twin's turns with what they came from.
        stop_reason: how it ended.
        error: one sentence about what went wrong, or None.
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
        """The tokens the twin took."""
        return sum((exchange.answer.usage for exchange in self.exchanges), Usage())

    def to_json(self) -> dict[str, Any]:
        """The simulation as one JSON object, a line of a run's `conversations.jsonl`."""
        return asdict(self)

    def conversation(self) -> Conversation:
        """The simulation in the interchange format."""
        turns = [Turn(self.twin if m["role"] == "user" else "agent", str(m["role"]), str(m["content"])) for m in self.messages]
        return Conversation(self.thread_id, tuple(turns), None, {"stop_reason": self.stop_reason})


async def asimulate(
    user: SimulatedUser,
    agent: Any,
    *,
    turns: int = DEFAULT_TURNS,
    goal: str = "",
    start: Sequence[Message] = (),
    agent_first: bool = False,
    agent_timeout: float = 120.0,
    goal_reached: Callable[[list[Message]], bool] | None = None,
    on_exchange: Callable[[Exchange], None] | None = None,
) -> Simulation:
    """Let a twin and an agent talk.

    Args:
        user: the twin.
        agent: the agent under test, in any shape that `as_agent` takes.
        turns: the most turns the twin may have.
        goal: what the twin is to want; the agent never sees it.
        start: messages that were said before; instructions among them become part of the goal.
        agent_first: whether the agent opens the conversation.
        agent_timeout: seconds the agent may take for a reply.
        goal_reached: asked after each reply with all messages; true ends the conversation.
        on_exchange: is shown each exchange as it is complete.

    Raises:
        UsageError: the agent has no shape that is known, or turns is below 1. Whatever goes wrong later is recorded.
    """
    if turns < 1:
        raise UsageError(f"{turns} turns: a conversation has at least one")
    call = as_agent(agent)
    found = _opened(user, goal, start)
    if agent_first and not await _agent_speaks(found, call, agent_timeout):
        return found
    for _ in range(turns):
        began = time.perf_counter()
        try:
            answer = await user.arespond(found.messages, goal=found.goal)
        except UsertwinError as error:
            found.stop_reason = "model_unavailable" if isinstance(error, ModelError) else "twin_error"
            found.error = str(error)
            return found
        except Exception as error:
            found.stop_reason, found.error = "twin_error", f"the twin failed: {type(error).__name__}: {error}"
            return found
        twin_seconds, began = time.perf_counter() - began, time.perf_counter()
        found.messages += [answer.message] if answer.action else []  # else the twin leaves without another word
        before = len(found.messages)
        going_on = not answer.done and await _agent_speaks(found, call, agent_timeout)
        replies = tuple(found.messages[before:])
        found.exchanges.append(Exchange(answer, replies, twin_seconds, time.perf_counter() - began))
        if on_exchange is not None:
            on_exchange(found.exchanges[-1])
        if answer.done:
            found.stop_reason = "user_stop"
        if not going_on:
            return found
        if goal_reached is not None and goal_reached(found.messages):
            found.stop_reason = "goal_reached"
            return found
    return found


def _opened(user: SimulatedUser, goal: str, start: Sequence[Message]) -> Simulation:
    """A conversation in which nobody has spoken but for `start`; what only the twin may see of that joins its goal."""
    private = [str(message["content"]) for message in start if message.get("role") in PRIVATE_ROLES]
    said = [message for message in start if message.get("role") not in PRIVATE_ROLES]
    return Simulation(user.name, "\n".join([text for text in (goal, *private) if text]), user.seed, uuid4().hex, said)


async def _agent_speaks(found: Simulation, call: AgentCall, timeout: float) -> bool:
    """Add the agent's reply to the conversation; if there is none, record why and return False."""
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            found.messages += await call([dict(message) for message in found.messages], found.thread_id)
    except UsertwinError as error:
        found.stop_reason, found.error = "agent_error", str(error)
    except (Exception, SystemExit) as error:
        if isinstance(error, TimeoutError) and limit.expired():  # else it is a timeout of the agent's own
            found.stop_reason, found.error = "agent_timeout", f"the agent took longer than {timeout:g} seconds"
        else:
            found.stop_reason, found.error = "agent_error", f"the agent raised {type(error).__name__}: {error}"
    else:
        return True
    return False


def simulate(user: SimulatedUser, agent: Any, **options: Any) -> Simulation:
    """`asimulate`, without async; it takes the same arguments."""
    return run_sync(asimulate(user, agent, **options))
