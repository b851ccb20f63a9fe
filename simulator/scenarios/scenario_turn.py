"""One turn of a twin in a scenario: said verbatim as the scenario has it, or written with what the twin may know by then."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from usertwin.memory.event_loop import in_caller
from usertwin.memory.models.chat import Usage
from usertwin.personas import UsageError, UsertwinError

from ..agents import Message
from ..agents.turn import describe
from ..state import Answer
from ..user import SimulatedUser
from .modifiers import ModifiedTurn, mixed_in_turn, modified_turn
from .read import load_function
from .scenario import Scenario
from .twin_faults import text_of


@dataclass(frozen=True, slots=True)
class ScenarioTurn:
    """A turn of a twin.

    Attributes:
        answer: the turn as it was written, with the memories and the reasoning behind it.
        texts: the messages that the agent gets; none if the twin leaves without a word.
        notes: what modifiers did to the turn.
        authored: whether the scenario wrote the turn.
    """

    answer: Answer
    texts: tuple[str, ...]
    notes: tuple[str, ...] = ()
    authored: bool = False


def said(texts: Sequence[str]) -> Answer:
    """Return a turn that no model wrote."""
    return Answer(action="\n".join(texts), reasoning="", recalled=(), done=False, usage=Usage())


def authored_turn(user: SimulatedUser, scenario: Scenario, number: int, *, seed: int) -> ModifiedTurn | None:
    """Return the turn of the twin that the scenario says; None if the twin writes it."""
    if (text := scenario.authored(number)) is not None:
        return ModifiedTurn((text,))
    return mixed_in_turn(scenario.modifiers, seed, number) if user.model.style == "transcript" else None


async def next_turn(
    user: SimulatedUser, scenario: Scenario, number: int, messages: Sequence[Message], *, seed: int
) -> ScenarioTurn:
    """Return the turn of the twin after these messages; `number` is that of the twin's turn, from 0.

    Raises:
        ModelError: the model does not answer.
        TwinError: the model writes no turn of the person in four attempts.
    """
    if (authored := authored_turn(user, scenario, number, seed=seed)) is not None:
        return ScenarioTurn(said(authored.texts), authored.texts, authored.notes, authored=True)
    goal = scenario.goal_in_turn(number, messages, style=user.model.style)
    answer = await user.arespond(messages, goal=goal, seed=seed)
    if not answer.action:
        return ScenarioTurn(answer, ())
    if answer.done and number + 1 < scenario.min_turns:
        answer = replace(answer, done=False)
    protected = [fact.value for fact in scenario.facts if fact.value]
    turn = modified_turn(answer.action, scenario.modifiers, seed, number, protected)
    return ScenarioTurn(answer, turn.texts, turn.notes)


async def goal_is_reached(scenario: Scenario, messages: Sequence[Message]) -> bool:
    """Return whether the agent's last messages end the conversation, by `Scenario.until` or `Scenario.goal_reached`.

    Raises:
        UsageError: `goal_reached` fails.
    """
    last_turn = next((index for index in reversed(range(len(messages))) if messages[index]["role"] == "user"), -1)
    replies = "\n".join(map(text_of, messages[last_turn + 1 :])).casefold()
    if any(phrase.casefold() in replies for phrase in scenario.until):
        return True
    reached = scenario.goal_reached
    if isinstance(reached, str):
        reached = load_function(reached, Path.cwd())
    if reached is None:
        return False
    try:
        verdict: Any = await in_caller(reached, [dict(message) for message in messages])
        return bool(await verdict if inspect.isawaitable(verdict) else verdict)
    except UsertwinError:
        raise
    except Exception as error:
        place = f'scenario "{scenario.name}": ' if scenario.name else ""
        raise UsageError(f"{place}goal_reached failed ({describe(error)}); mend the function") from error
