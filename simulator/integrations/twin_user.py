"""A twin as the user in a conversation that another tool runs.

The tool keeps the conversation and hands over all messages for each turn. In these, "user" is the twin and "assistant" is the
agent; system messages are the agent's instructions, which no user sees, and are left out with the calls of tools.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypedDict

from usertwin.memory.event_loop import in_caller, run_sync
from usertwin.personas import AgentError, UsageError, as_conversation
from usertwin.personas.roles import is_user

from ..agents import Message
from ..records import Exchange, Simulation, StopReason, TwinFault
from ..scenarios.from_real import check_held_out
from ..scenarios.scenario import Scenario
from ..scenarios.scenario_turn import authored_turn, goal_is_reached, next_turn, said
from ..scenarios.twin_faults import find_twin_faults
from ..state import Answer
from ..user import SimulatedUser


@dataclass(frozen=True, slots=True)
class UserTurn:
    """A turn of the user in another tool.

    Attributes:
        texts: the messages of the turn; none if the user leaves without a word, or the scenario is at its end.
        answer: the turn as the twin wrote it, with its memories and reasoning; None if the scenario is at its end.
        stop: why the conversation ends with this turn; None if it goes on.
    """

    texts: tuple[str, ...]
    answer: Answer | None
    stop: StopReason | None

    @property
    def text(self) -> str:
        """The turn as one message."""
        return "\n".join(self.texts)


class TwinOptions(TypedDict, total=False):
    """Options of a twin in every tool; see `TwinUser`."""

    goal: str
    scenario: Scenario | None
    seed: int
    on_turn: Callable[[UserTurn], None] | None


class TwinUser:
    """A twin as the user in a conversation that another tool runs.

    It keeps nothing of a conversation, so it serves many at once. Every failure of the twin is raised, as ModelError or
    TwinError; no text stands in for a turn.

    Args:
        twin: a learned twin, or its name, which loads it with the default model.
        goal: what the twin wants; the agent never sees it. Without one, it is the tool's own goal for the conversation.
        scenario: what the twin wants, knows and says verbatim, and when the conversation ends; instead of `goal`. Checks,
            criteria, repeats and time limits are the tool's business, and it must begin with the messages in `start`, if any.
        seed: the seed of a conversation.
        on_turn: called with each turn.

    Raises:
        UsageError: both a goal and a scenario are given, or the twin remembers the scenario's real conversation.
        TwinError, ModelError: as `SimulatedUser.load`.
    """

    def __init__(
        self, twin: str | SimulatedUser, *, goal: str = "", scenario: Scenario | None = None, seed: int = 0,
        on_turn: Callable[[UserTurn], None] | None = None,
    ) -> None:  # fmt: skip
        if scenario is not None and goal:
            raise UsageError("a scenario holds the goal; give it there")
        self.user = SimulatedUser.load(twin) if isinstance(twin, str) else twin
        self.scenario = scenario or Scenario(name="", goal=goal, max_turns=sys.maxsize)  # the tool has a limit of its own
        self.seed, self.on_turn = seed, on_turn
        check_held_out(self.scenario, self.user.record)

    @property
    def name(self) -> str:
        """The twin's name."""
        return self.user.name

    async def aplay(self, messages: Any, *, goal: str = "", seed: int | None = None) -> UserTurn:
        """Return the user's next turn after messages of any accepted shape.

        `goal` is the tool's goal, which counts if the scenario has none; `seed` is that of this conversation.

        Raises:
            ModelError: the model does not answer.
            TwinError: the model writes no turn of the person in four attempts.
            AgentError: the user has the last word, since the agent said nothing.
            UsageError: the conversation does not begin as the scenario does.
            LogError: the messages have no known shape.
        """
        if (stop := await self.scenario_end(messages)) is not None:
            return UserTurn((), None, stop)
        return await self.awrite(messages, goal=goal, seed=seed)

    def play(self, messages: Any, *, goal: str = "", seed: int | None = None) -> UserTurn:
        """Return the user's next turn; the synchronous form of `aplay`, with the same arguments."""
        return run_sync(self.aplay(messages, goal=goal, seed=seed))

    async def scenario_end(self, messages: Any) -> StopReason | None:
        """Return why the scenario ends the conversation after these messages; None if it goes on, as without a scenario."""
        spoken = spoken_messages(messages)
        number = self._turn_number(spoken)
        if number >= self.scenario.max_turns:
            return "max_turns"
        replied = bool(spoken) and spoken[-1]["role"] == "assistant"
        reached = replied and number >= self.scenario.min_turns and await goal_is_reached(self.scenario, spoken)
        return "goal_reached" if reached else None

    async def awrite(self, messages: Any, *, goal: str = "", seed: int | None = None) -> UserTurn:
        """Return the user's next turn as `aplay`, for a conversation that the scenario does not end here."""
        spoken = spoken_messages(messages)
        number = self._turn_number(spoken)
        if spoken and spoken[-1]["role"] == "user":
            raise AgentError("the agent said nothing after the user's last turn, so there is nothing to answer; let it reply")
        seed = self.seed if seed is None else seed
        written = await next_turn(self.user, self._with_goal(goal), number, spoken, seed=seed)
        turn = UserTurn(written.texts, written.answer, "user_stop" if written.answer.done else None)
        if self.on_turn is not None:
            await in_caller(self.on_turn, turn)
        return turn

    def faults(self, messages: Any, *, goal: str = "", stop: StopReason = "max_turns") -> list[TwinFault]:
        """Return what the twin did wrong in a finished conversation, as the check of the twin in our own runs.

        `stop` is why it ended: "user_stop" if the twin left.
        """
        spoken, scenario = spoken_messages(messages), self._with_goal(goal)
        self._turn_number(spoken)
        simulation = Simulation(
            twin=self.name, goal=scenario.goal, seed=self.seed, thread_id="", messages=spoken, stop_reason=stop,
            exchanges=self._exchanges(spoken, left=stop == "user_stop"),
        )  # fmt: skip
        return find_twin_faults(simulation, scenario, sides=self.user.sides())

    def _exchanges(self, spoken: Sequence[Message], *, left: bool) -> list[Exchange]:
        """Return the exchanges after the scenario's start; one without a word if the user left so."""
        rest = spoken[len(spoken_messages(self.scenario.start)) :]
        groups = [(role, list(group)) for role, group in groupby(rest, key=lambda message: message["role"])]
        exchanges = list[Exchange]()
        for place, (role, turn) in enumerate(groups):
            if role != "user":
                continue
            replies = groups[place + 1][1] if place + 1 < len(groups) else []
            authored = authored_turn(self.user, self.scenario, len(exchanges), seed=self.seed) is not None
            answer = said([str(message["content"]) for message in turn])
            exchanges.append(Exchange(answer, tuple(replies), 0.0, 0.0, authored=authored))
        if left and groups and groups[-1][0] != "user":
            exchanges.append(Exchange(said(()), (), 0.0, 0.0))
        return exchanges

    def _with_goal(self, goal: str) -> Scenario:
        return replace(self.scenario, goal=goal) if goal and not self.scenario.goal else self.scenario

    def _turn_number(self, spoken: Sequence[Message]) -> int:
        """Return the number of the user's next turn, from 0. UsageError if the conversation begins another way."""
        given = spoken_messages(self.scenario.start)
        if list(spoken[: len(given)]) != given:
            raise UsageError(
                f'scenario "{self.scenario.name}": the conversation does not begin with its start; '
                "give the tool these messages as the beginning, or leave start out"
            )
        return _user_turns(spoken) - _user_turns(given)


class TwinTalk:
    """One conversation of a twin in a tool that asks whether it goes on apart from what the user says next."""

    def __init__(self, twin: TwinUser, *, goal: str = "", seed: int | None = None) -> None:
        self.twin, self.goal, self.seed = twin, goal, seed
        self.stop: StopReason | None = None
        self._ahead: UserTurn | None = None
        self._asked: int | None = None

    async def stops(self, messages: Sequence[Any]) -> StopReason | None:
        """Return why the conversation ends after these messages; None if it goes on.

        If the person may leave without a word, the next turn is written here, and `turn` returns it.
        """
        if self.stop is None and self._asked != len(messages):
            self._asked = len(messages)
            self.stop = await self.twin.scenario_end(messages)
            if self.stop is None and self.twin.user.abandonment is not None:
                self._ahead = await self.twin.awrite(messages, goal=self.goal, seed=self.seed)
                self.stop = None if self._ahead.texts else self._ahead.stop
        return self.stop

    async def turn(self, messages: Sequence[Any], way_out: str) -> UserTurn:
        """Return the user's next turn. UsageError with the way out if the conversation has ended for the user."""
        if await self.stops(messages) is None:
            turn, self._ahead = self._ahead or await self.twin.awrite(messages, goal=self.goal, seed=self.seed), None
            self.stop = turn.stop
            return turn
        raise UsageError(f"{self.twin.name} has left the conversation ({self.stop}) and is asked for another turn; {way_out}")


def spoken_messages(messages: Any) -> list[Message]:
    """Return what both sides said, in a conversation of any accepted shape, without instructions and tools.

    Raises:
        LogError: the messages have no known shape.
    """
    return [
        {"role": "user" if is_user(turn.role) else "assistant", "content": turn.text}
        for turn in as_conversation(messages).turns
        if not turn.private and turn.text.strip()
    ]


def third_party(module: str, requirement: str) -> Any:
    """Import a module of another tool. UsageError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{module} cannot be imported ({error}); run: pip install '{requirement}'") from error


def _user_turns(spoken: Sequence[Message]) -> int:
    """Return the number of the user's turns; consecutive messages are one."""
    return sum(role == "user" for role, _ in groupby(message["role"] for message in spoken))
