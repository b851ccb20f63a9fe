"""Ready-made checks of the agent: what it said, which tools it called, how fast it was, and its final state."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from usertwin.memory.text.transcript import single_line
from usertwin.personas import UsageError
from usertwin.simulator.records import AGENT_FAULTS, Simulation

from .checks import Check, Outcome
from .transcript import ToolCall, agent_texts, reply_seconds, tool_calls

#: A text to find (case and white space do not matter), or a compiled pattern.
Wanted = str | re.Pattern[str]
#: Characters of a quote in a reason.
_QUOTE = 120
_GOAL = "reaches_goal"


def says(text: Wanted) -> Check:
    """Return the check that the agent says a text, or something that a compiled pattern finds."""
    _refuse_nothing("says", text)

    def check(simulation: Simulation) -> Outcome:
        return any(_find(text, said) for said in agent_texts(simulation)) or f"the agent never says {_shown(text)}"

    return Check(f"says {_shown(text)}", check)


def never_says(text: Wanted) -> Check:
    """Return the check that the agent never says a text, nor anything that a compiled pattern finds."""
    _refuse_nothing("never_says", text)

    def check(simulation: Simulation) -> Outcome:
        for number, said in enumerate(agent_texts(simulation), 1):
            if place := _find(text, said):
                return f'message {number} of the agent says "{_quote(said, place)}"'
        return True

    return Check(f"never says {_shown(text)}", check)


def called_tool(name: str, arguments: Mapping[str, Any] | Callable[[Mapping[str, Any]], bool] | None = None) -> Check:
    """Return the check that the agent calls a tool.

    Args:
        name: the tool.
        arguments: values that the call must have among its arguments, or a function of the arguments.
    """

    def suits(call: ToolCall) -> bool:
        if arguments is None:
            return True
        if isinstance(call.arguments, str):
            return False
        if callable(arguments):
            return bool(arguments(call.arguments))
        return all(key in call.arguments and call.arguments[key] == value for key, value in arguments.items())

    def check(simulation: Simulation) -> Outcome:
        calls = [call for call in tool_calls(simulation) if call.name == name]
        if any(map(suits, calls)):
            return True
        if not calls:
            return f"the agent never calls {name}"
        return f"no call of {name} has these arguments: {'; '.join(map(str, calls))[: 2 * _QUOTE]}"

    with_these = "" if arguments is None or callable(arguments) else f" with {dict(arguments)}"
    return Check(f"calls {name}{with_these}", check)


def only_tools(*names: str) -> Check:
    """Return the check that the agent calls no other tools than these; without names, none at all."""

    def check(simulation: Simulation) -> Outcome:
        others = [call for call in tool_calls(simulation) if call.name not in names]
        return not others or f"the agent calls {others[0]}"[: 2 * _QUOTE]

    return Check(f"calls only {', '.join(names)}" if names else "calls no tools", check)


def replies_within(seconds: float) -> Check:
    """Return the check that every reply of the agent takes at most this time."""
    if not seconds > 0:
        raise UsageError(f"replies_within: {seconds} is no number of seconds above 0")

    def check(simulation: Simulation) -> Outcome:
        slowest = max(enumerate(reply_seconds(simulation), 1), key=lambda item: item[1], default=(0, 0.0))
        return slowest[1] <= seconds or f"reply {slowest[0]} took {slowest[1]:.1f} s"

    return Check(f"replies within {seconds:g} s", check)


def final_state(condition: str | Callable[[Any], Any], equals: Any = True) -> Check:
    """Return the check of the agent's final state, as JSON values.

    Args:
        condition: a JMESPath expression such as "order.status == 'refunded'", or a function of the state.
        equals: the value that comes out.

    Raises:
        UsageError: the expression is invalid.
    """
    name = condition if isinstance(condition, str) else getattr(condition, "__name__", "a function")
    evaluate = _expression(condition) if isinstance(condition, str) else condition

    def check(simulation: Simulation) -> Outcome:
        if simulation.final_state is None and simulation.stop_reason not in AGENT_FAULTS:
            raise UsageError("the conversation has no final state; the agent must be a graph that returns one")
        value = evaluate(simulation.final_state)
        same = value == equals and isinstance(value, bool) == isinstance(equals, bool)
        return bool(same) or f"{name} is {_shown_value(value)}"

    return Check(f"final state: {name}" + ("" if equals is True else f" is {_shown_value(equals)}"), check)


def reaches_goal(simulation: Simulation) -> Outcome:
    """Check that the conversation ended because the goal was reached, by the rule of its scenario."""
    return simulation.stop_reason == "goal_reached" or f"it ended with {simulation.stop_reason}"


def ready_made(name: str) -> Check | None:
    """Return the ready-made check of a name in a file; None if it names none.

    The names are "reaches_goal", "says:TEXT", "never_says:TEXT", "called_tool:NAME", "only_tools:NAME,NAME",
    "replies_within:SECONDS", and "final_state:JMESPATH".
    """
    kind, _, argument = name.partition(":")
    argument = argument.strip()
    if name == _GOAL:
        return Check(_GOAL, reaches_goal)
    if kind not in _BY_NAME:
        return None
    if not argument and kind != "only_tools":
        raise UsageError(f'the check "{name}" has no argument; write it after the colon')
    return _BY_NAME[kind](argument)


def _only(names: str) -> Check:
    return only_tools(*filter(None, map(str.strip, names.split(","))))


def _within(seconds: str) -> Check:
    try:
        limit = float(seconds)
    except ValueError:
        raise UsageError(f'the check "replies_within:{seconds}" has no number of seconds') from None
    return replies_within(limit)


_BY_NAME: dict[str, Callable[[str], Check]] = {
    "says": says, "never_says": never_says, "called_tool": called_tool, "only_tools": _only, "replies_within": _within,
    "final_state": final_state,
}  # fmt: skip


def _expression(text: str) -> Callable[[Any], Any]:
    import jmespath
    from jmespath.exceptions import JMESPathError

    try:
        compiled = jmespath.compile(text)
    except JMESPathError as error:
        raise UsageError(f'the JMESPath expression "{text}" is invalid: {single_line(str(error))}') from None
    return compiled.search


def _find(wanted: Wanted, text: str) -> tuple[int, int] | None:
    """Return where a text holds what is wanted: start and end in its single-line form, which keeps the case."""
    if isinstance(wanted, re.Pattern):
        match = wanted.search(text)
        return match.span() if match else None
    match = re.search(re.escape(single_line(wanted)), single_line(text), re.IGNORECASE)
    return match.span() if match else None


def _refuse_nothing(name: str, wanted: Wanted) -> None:
    if isinstance(wanted, str) and not wanted.strip():
        raise UsageError(f"{name}: the text is empty, which every message holds")


def _quote(text: str, place: tuple[int, int]) -> str:
    start = max(0, place[0] - _QUOTE // 3)
    quote = single_line(text)[start : start + _QUOTE]
    return ("…" if start else "") + quote + ("…" if start + _QUOTE < len(text) else "")


def _shown(wanted: Wanted) -> str:
    return f"/{wanted.pattern}/" if isinstance(wanted, re.Pattern) else f'"{wanted}"'


def _shown_value(value: Any) -> str:
    return repr(value)[:_QUOTE]
