"""A scenario: who talks with the agent, what they want and know, how the conversation starts and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

from ..agents import Message

#: When a person may tell a fact; a number is a turn of theirs, 0 for the first.
Reveal = Literal["at once", "when asked"] | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that the person knows.

    Attributes:
        text: a sentence to the person, such as "Your order number is 4711."
        reveal: when the person may tell it: at once, when the agent asked for it, or from this turn of theirs on.
        value: the part that must not be said earlier, such as "4711"; "" for the fact's distinctive words.
    """

    text: str
    reveal: Reveal = "when asked"
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A conversation to be simulated.

    Attributes:
        name: name of the scenario, unique in a run.
        twins: names of twins; "*" stands for all learned ones.
        sample: the number of `twins` to draw; None for all.
        goal: what the person wants.
        facts: what the person knows, and when they may tell it.
        private: what only the person sees; it goes into the twin's prompt and never to the agent.
        start: messages before the simulated conversation.
        opener: the person's first turn, said verbatim.
        agent_first: whether the agent opens the conversation.
        script: further turns that are said verbatim, by the number of the person's turn, from 0.
        min_turns, max_turns: the fewest and the most turns of the person.
        max_seconds: seconds that the conversation may take; inf for no limit.
        until: phrases of the agent that end the conversation as `goal_reached`, in any case.
        goal_reached: called with all messages after each reply; True ends the conversation.
        modifiers: what makes the person difficult (see modifiers.py).
        repeats: conversations with each twin.
        checks: checks of the agent, as functions or "module:function".
        criteria: sentences about the agent that a judge answers with yes or no.
        counterpart: id of the real conversation that the scenario was taken from; "" if there is none.
    """

    name: str
    twins: tuple[str, ...] = ()
    sample: int | None = None
    goal: str = ""
    facts: tuple[Fact, ...] = ()
    private: str = ""
    start: tuple[Message, ...] = ()
    opener: str = ""
    agent_first: bool = False
    script: Mapping[int, str] = field(default_factory=dict[int, str])
    min_turns: int = 0
    max_turns: int = 8
    max_seconds: float = inf
    until: tuple[str, ...] = ()
    goal_reached: Callable[[list[Message]], bool] | str | None = None
    modifiers: tuple[str, ...] = ()
    repeats: int = 1
    checks: tuple[str | Callable[..., Any], ...] = ()
    criteria: tuple[str, ...] = ()
    counterpart: str = ""
