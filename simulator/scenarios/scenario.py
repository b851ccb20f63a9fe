"""A scenario: who talks with the agent, what they want and know, how the conversation starts and when it ends.

Design: `goal_text` is what a twin's prompt gets as its goal, anew in each turn. It is made of whole sentences, one a line, so
that it reads the same in the tags of an instruction and in the one line that a transcript has for a goal. Transcripts get no
instructions, which a model that continues text would repeat.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf, isnan
from typing import Any, ClassVar

from usertwin.memory.models.chat import PromptStyle
from usertwin.personas import UsageError
from usertwin.personas.reading import STRICT, as_type

from ..agents import Message
from .facts import Fact, visibility
from .modifiers import MODIFIERS, manner

#: The name that stands for all learned twins.
ALL_TWINS = "*"
_IF_ASKED = "(Say this only if they ask for it.)"
_INVENT_NOTHING = (
    "You have no other numbers, names, dates and addresses at hand: if they ask for one that is not written here, say so, and "
    "make none up."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A conversation to be simulated. UsageError if a value is out of its range, or two exclude each other.

    Attributes:
        name: name of the scenario, unique in a run; "" for the only one of a run without a scenario file.
        twins: names of twins; "*" stands for all learned ones.
        sample: the number of `twins` to draw; None for all.
        goal: what the person wants, in sentences to them.
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

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

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

    def __post_init__(self) -> None:
        if problem := next(self._problems(), None):
            raise UsageError(f'scenario "{self.name}": {problem}')

    def authored(self, turn: int) -> str | None:
        """Return what the person says verbatim in this turn of theirs, from 0; None if the twin writes it."""
        return self.opener if turn == 0 and self.opener else self.script.get(turn)

    def goal_text(self, turn: int, messages: Iterable[Message], *, style: PromptStyle = "instruction") -> str:
        """Return what the twin's prompt gets as the goal in this turn of the person, from 0, after these messages.

        It holds the goal, what only the person sees, and the facts that they may tell by now. For a model that follows
        instructions, it also says what they may tell only if they are asked for it, and the manner of the modifiers.
        """
        shown = zip(self.facts, visibility(self.facts, turn, messages, self.always_known), strict=True)
        instructs = style == "instruction"
        facts = [
            f"{fact.text} {_IF_ASKED}" if state == "if asked" and instructs else fact.text
            for fact, state in shown
            if state != "hidden"
        ]
        rules = [*([_INVENT_NOTHING] if self.facts else []), *manner(self.modifiers)] if instructs else []
        return "\n".join(text.strip() for text in (self.goal, self.private, *facts, *rules) if text.strip())

    def goal_in_turn(self, turn: int, messages: Iterable[Message], *, style: PromptStyle = "instruction") -> str:
        """Return `goal_text` with the instructions for the twin in `start`."""
        return "\n".join(filter(None, (self.goal_text(turn, messages, style=style), *self.instructions)))

    @property
    def instructions(self) -> list[str]:
        """The instructions for the twin among the given turns."""
        return [str(message["content"]) for message in self.start if message["role"] == "system"]

    @property
    def always_known(self) -> str:
        """What the person may speak of at any time."""
        return "\n".join(filter(None, [self.goal, self.private, *(f.text for f in self.facts if f.reveal == "at once")]))

    def to_json(self) -> dict[str, Any]:
        """Return the scenario as a JSON object; functions are named as "module:function", no time limit is null."""
        # without the functions and the mapping, which asdict cannot copy
        raw = {name: value for name, value in _fields(self).items() if name != "facts"}
        return raw | {
            "facts": [asdict(fact) for fact in self.facts],
            "start": [dict(message) for message in self.start],
            "script": {str(turn): text for turn, text in self.script.items()},
            "max_seconds": None if self.max_seconds == inf else self.max_seconds,
            "goal_reached": None if self.goal_reached is None else function_name(self.goal_reached),
            "checks": [function_name(check) for check in self.checks],
        }

    @classmethod
    def from_json(cls, raw: Any) -> Scenario:
        """Return the scenario that `to_json` wrote; its functions stay names. ValueError if it is none."""
        values = as_type(dict[str, Any], raw)
        if values.get("max_seconds", 0) is None:
            del values["max_seconds"]
        return as_type(cls, values)

    def _problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        for key, number, least in (
            ("sample", self.sample, 1), ("max_turns", self.max_turns, 1), ("min_turns", self.min_turns, 0),
            ("repeats", self.repeats, 1),
        ):  # fmt: skip
            if number is not None and number < least:
                yield f"{key} is {number}; it must be at least {least}"
        for number, message in enumerate(self.start, 1):
            if not all(isinstance(message.get(key), str) for key in ("role", "content")):
                yield f'start: message {number} needs a "role" and a "content" that are texts; write "" if it calls tools only'
        if self.min_turns > self.max_turns:
            yield f"min_turns is {self.min_turns}, more than max_turns ({self.max_turns}); lower it"
        if isnan(self.max_seconds) or self.max_seconds <= 0:
            yield f"max_seconds is {self.max_seconds}; it must be above 0"
        for turn, text in self.script.items():
            if not 0 <= turn < self.max_turns:
                yield f"script: there is no turn {turn}; the person's turns are 0 to {self.max_turns - 1}"
            if not text.strip():
                yield f"script: turn {turn} is empty; write what the person says"
        if self.opener and 0 in self.script:
            yield "both opener and script say turn 0; leave one out"
        for name in self.modifiers:
            if name not in MODIFIERS:
                yield f'modifiers: there is no "{name}"; {nearest(name, MODIFIERS)}'
        for number, fact in enumerate(self.facts, 1):
            if not fact.text.strip():
                yield f"fact {number} is empty; write a sentence to the person"
            if isinstance(fact.reveal, int) and fact.reveal < 0:
                yield f"fact {number}: reveal is {fact.reveal}; the first turn of the person is 0"
            if fact.value and fact.value.casefold() not in fact.text.casefold():
                yield f'fact {number}: the value "{fact.value}" is not in its text; write it as it stands there'
        for key, texts in (("twins", self.twins), ("until", self.until), ("criteria", self.criteria)):
            if any(not text.strip() for text in texts):
                yield f"{key}: a text is empty; leave it out"


def function_name(function: str | Callable[..., Any]) -> str:
    """Return the name of a function as "module:function"; a name stays as it is."""
    if isinstance(function, str):
        return function
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that a wrong one is nearest to, as a question, or else all known names."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    return f'did you mean "{near[0]}"?' if near else f"use {', '.join(names)}"


def _fields(scenario: Scenario) -> dict[str, Any]:
    return {item.name: getattr(scenario, item.name) for item in fields(scenario)}
