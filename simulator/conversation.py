"""The engine of one conversation: a twin and an agent take turns as a scenario says, until one of them ends it.

No fault of the twin, of a limit of ours, or of a scenario is charged to the agent, and no fallback text is ever inserted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

from usertwin.memory.concurrency import to_thread
from usertwin.memory.event_loop import in_caller
from usertwin.memory.models.recording import ReplayMiss
from usertwin.personas import AgentError, ModelError, UsageError, UsertwinError

from .agents import AgentCall, Failure
from .recording.agent import LateEnd, RecordedAgent, run_recorded_turn
from .records import TWIN_FAULTS, Exchange, Simulation, StopReason, TwinFault
from .scenarios.scenario import Scenario
from .scenarios.scenario_turn import ScenarioTurn, goal_is_reached, next_turn, said
from .scenarios.twin_faults import find_twin_faults
from .state import Answer
from .tracing.runs import agent_trace, traced_conversation
from .user import SimulatedUser


class ConversationStopped(Exception):
    """A conversation was stopped between two turns because the run ends; it may be begun again.

    Attributes:
        simulation: the conversation so far.
    """

    def __init__(self, simulation: Simulation) -> None:
        super().__init__("the run was stopped")
        self.simulation = simulation


class Flag(Protocol):
    """What tells that a run ends, such as a `threading.Event`."""

    def is_set(self) -> bool:
        """Return whether the run ends."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLimits:
    """What bounds one turn of each side.

    Attributes:
        agent_timeout: seconds that the agent may take for a reply; inf for no limit.
        twin_timeout: seconds that the twin may take for a turn; inf for no limit. A late twin is the twin's fault.
        agent_slots: entered while the agent replies, so that only some conversations use it at a time; waiting for it does not
            count as the agent's time.
        stop: stops the conversation between two turns.
    """

    agent_timeout: float = 120.0
    twin_timeout: float = inf
    agent_slots: AbstractAsyncContextManager[Any] | None = None
    stop: Flag | None = None


@traced_conversation
async def converse(
    user: SimulatedUser, call: AgentCall, scenario: Scenario, *, simulation: Simulation, limits: TurnLimits,
    on_exchange: Callable[[Exchange], None] | None = None,
) -> Simulation:  # fmt: skip
    """Run one conversation, record it in `simulation`, and return that.

    `simulation` holds the twin's name, the seed and the ids. `on_exchange` is called with each complete exchange.

    Raises:
        ConversationStopped: `limits.stop` was set. All failures of the twin and of the agent are recorded instead.
        ReplayMiss: a recording is replayed that does not hold a call.
    """
    started = time.perf_counter()
    simulation.goal = "\n".join(filter(None, (scenario.goal, *scenario.instructions)))
    simulation.messages = [message for message in scenario.start if message["role"] != "system"]
    deadline = started + scenario.max_seconds
    talk = OpenConversation(user, call, scenario, simulation=simulation, limits=limits, deadline=deadline)
    try:
        await call.begin()
    except AgentError as error:  # its process does not start again
        talk.end("agent_error", str(error))
    else:
        await talk.run(on_exchange)
    if isinstance(call, RecordedAgent) and not call.is_replay:
        call.keep_late_end(talk.late)
    simulation.final_state = call.state_of(simulation.thread_id)
    if simulation.stop_reason not in TWIN_FAULTS:
        simulation.twin_faults = await to_thread(_twin_faults, simulation, scenario, user)
    simulation.seconds = time.perf_counter() - started
    return simulation


class OpenConversation:
    """A conversation that is going on; every method that may end it returns whether it goes on.

    Args:
        user: the twin; None if every turn of its side is given as a text.
        call: the agent.
        scenario: what the conversation is about.
        simulation: its record.
        limits: what bounds a turn.
        deadline: when the conversation ends, on the clock of `time.perf_counter`.
        on_answer: called with each turn of the twin, before the agent replies.
    """

    def __init__(
        self, user: SimulatedUser | None, call: AgentCall, scenario: Scenario, *, simulation: Simulation, limits: TurnLimits,
        deadline: float = inf, on_answer: Callable[[Answer], None] | None = None,
    ) -> None:  # fmt: skip
        self._user, self.call, self.scenario = user, call, scenario
        self.simulation, self.limits, self.deadline, self._on_answer = simulation, limits, deadline, on_answer
        self.late: LateEnd | None = None
        if isinstance(call, RecordedAgent) and call.is_replay:  # which has no clock
            self.late, self.deadline = call.late_end(), inf

    @property
    def user(self) -> SimulatedUser:
        """The twin. UsageError if there is none."""
        if self._user is None:
            raise UsageError("no twin takes part in this conversation; give each turn as a text")
        return self._user

    async def run(self, on_exchange: Callable[[Exchange], None] | None) -> None:
        """Let the two sides take turns until one of them or the scenario ends the conversation."""
        messages = self.simulation.messages
        is_next = self.scenario.agent_first or (messages and messages[-1]["role"] == "user")
        if is_next and (not await self.reply() or await self._is_over()):
            return
        for number in range(self.scenario.max_turns):
            exchange = await self.exchange(number)
            if exchange is None:
                return
            if on_exchange is not None:
                await in_caller(on_exchange, exchange)
            if exchange.answer.done:
                self.end("user_stop")
            if self.simulation.stop_reason != "max_turns" or await self._is_over():
                return

    def end(self, reason: StopReason, error: str | None = None) -> bool:
        """Record why the conversation ends; return False, for it does not go on."""
        self.simulation.stop_reason, self.simulation.error = reason, error
        return False

    def _end_late(self, phase: str, reason: StopReason = "time_limit", error: str | None = None) -> bool:
        """Record an end by the clock, for a replay too; return False."""
        self.late = (phase, len(self.simulation.messages), reason, error)
        return self.end(reason, error)

    def _ended_late(self, phase: str) -> bool:
        """Return whether the conversation that is replayed ended here by the clock, and record it."""
        if self.late is None or self.late[:2] != (phase, len(self.simulation.messages)):
            return False
        return not self.end(*self.late[2:])

    async def exchange(self, number: int, text: str | None = None) -> Exchange | None:
        """Return a turn of the twin with the agent's reply, unless the twin leaves; None if there is no such turn.

        `text` is said in place of the twin's turn.
        """
        if self.limits.stop is not None and self.limits.stop.is_set():
            raise ConversationStopped(self.simulation)
        started, messages = time.perf_counter(), self.simulation.messages
        turn = await self._twin_turn(number) if text is None else ScenarioTurn(said((text,)), (text,), authored=True)
        if turn is None:
            return None
        answer, sent = turn.answer, turn.texts
        messages += [{"role": "user", "content": text} for text in sent]  # without an action the twin leaves silently
        if self._on_answer is not None:
            await in_caller(self._on_answer, answer)
        twin_seconds, started, before = time.perf_counter() - started, time.perf_counter(), len(messages)
        if not answer.done:
            await self.reply()
        exchange = Exchange(
            answer, tuple(messages[before:]), twin_seconds, time.perf_counter() - started, authored=turn.authored,
            sent=() if sent == (answer.action,) else sent, notes=turn.notes,
            state=self.call.state_so_far(self.simulation.thread_id),
        )  # fmt: skip
        self.simulation.exchanges.append(exchange)
        return exchange

    async def _twin_turn(self, number: int) -> ScenarioTurn | None:
        """Return the twin's turn; None if it fails or is late, which is recorded."""
        seconds = min(self.limits.twin_timeout, self._remaining())
        if self._ended_late("twin"):
            return None
        try:
            async with asyncio.timeout(None if seconds == inf else seconds):
                messages, seed = self.simulation.messages, self.simulation.seed
                return await next_turn(self.user, self.scenario, number, messages, seed=seed)
        except ReplayMiss:
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and self._remaining() <= 0:
                self._end_late("twin")
            elif isinstance(error, TimeoutError) and seconds != inf:
                self._end_late("twin", "twin_error", f"the twin took longer than {seconds:g} seconds")
            else:
                known = isinstance(error, UsertwinError)
                text = str(error) if known else f"the twin failed: {type(error).__name__}: {error}"
                self.end("model_unavailable" if isinstance(error, ModelError) else "twin_error", text)
            return None

    async def reply(self) -> bool:
        """Add the agent's reply to the conversation, or record how it failed."""
        async with self.limits.agent_slots or nullcontext():
            remaining = self._remaining()
            if self._ended_late("agent"):
                return False
            if remaining <= 0:
                return self._end_late("agent")
            timeout = min(self.limits.agent_timeout, remaining)
            async with agent_trace(self.simulation.messages) as report:
                result = await run_recorded_turn(self.call, self.simulation.messages, self.simulation.thread_id, timeout)
                report(result)
        if isinstance(result, Failure):
            self.simulation.messages += result.messages
            if result.reason == "agent_timeout" and timeout < self.limits.agent_timeout:  # our limit, not the agent's
                return self._end_late("agent")
            self.simulation.agent_traceback = result.traceback
            return self.end(result.reason, result.error)
        self.simulation.messages += result
        return True

    async def _is_over(self) -> bool:
        """Return whether the goal is reached or the time is over, and record it."""
        turns = len(self.simulation.exchanges)  # one may be several messages
        if turns >= self.scenario.min_turns and await goal_is_reached(self.scenario, self.simulation.messages):
            self.end("goal_reached")
        elif not self._ended_late("reply") and self._remaining() <= 0:
            self._end_late("reply")
        return self.simulation.stop_reason != "max_turns"

    def _remaining(self) -> float:
        return self.deadline - time.perf_counter()


def _twin_faults(simulation: Simulation, scenario: Scenario, user: SimulatedUser) -> list[TwinFault]:
    return find_twin_faults(simulation, scenario, sides=user.sides())
