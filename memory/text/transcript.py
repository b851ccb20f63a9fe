"""Moments of a conversation as plain text to be continued, the form in which small models and the scorer read them.

The one design choice: the person is always "Me" and anybody else "Them" (or by name, where there are several), a turn is a
line, a thought is a line in brackets, and a blank line parts one moment from the next; so the end of a turn is a newline,
whatever was said.
"""

from __future__ import annotations

from collections.abc import Iterable

from usertwin.personas import Pair, Turn

ME = "Me"
THEM = "Them"
#: How a thought begins.
THOUGHT_PREFIX = f"({ME} thinking:"
#: Characters of a goal and of one earlier turn that are shown; the end of each says most about what comes next.
_GOAL_CHARACTERS, _TURN_CHARACTERS = 400, 240
#: Characters of an action that are shown where it is not the one to be predicted; a model's context holds only so much.
_ACTION_CHARACTERS = 1200
_NOTHING = (
    "I was there and I saw what there was to see and then it went on as it does, and so it was, "
    "and it was that and nothing else, one thing and then the next one "
)


def single_line(text: str) -> str:
    """A text as one line."""
    return " ".join(text.split())


def action_completion(action: str) -> str:
    """What a model is to write after `Me:` (the line's end included: to stop is part of the action)."""
    return f" {single_line(action)}\n"


def truncate_action(action: str) -> str:
    """An action as one line, the beginning of it if it is very long."""
    text = single_line(action)
    return text if len(text) <= _ACTION_CHARACTERS else text[:_ACTION_CHARACTERS].rstrip() + "…"


def context_lines(pair: Pair, turns: int) -> list[str]:
    """The latest turns before the action, a line each."""
    shown = pair.context[-turns:] if turns else ()
    others = {turn.speaker for turn in pair.context if turn.speaker != pair.speaker}
    return [f"{_label(turn, pair, len(others) > 1)}: {_tail(single_line(turn.text), _TURN_CHARACTERS)}" for turn in shown]


def format_action_prompt(pair: Pair, turns: int, *, thought: str | None = None) -> str:
    """A moment up to `Me:`, to be continued with the action; the goal, which only the person knows, comes first."""
    goal = [f"(My goal: {_tail(single_line(pair.goal), _GOAL_CHARACTERS)})"] if pair.goal else []
    return "\n".join([*goal, *context_lines(pair, turns), *_thought(thought), f"{ME}:"])


def format_thought_prompt(pair: Pair, turns: int) -> str:
    """A moment up to the thought, to be continued with it. `open_moment` with that thought begins with the same text."""
    return format_action_prompt(pair, turns).removesuffix(f"{ME}:") + THOUGHT_PREFIX


def format_example(pair: Pair, turns: int, *, thought: str | None = None) -> str:
    """A whole moment with its action, as an example."""
    return "\n".join([*context_lines(pair, turns), *_thought(thought), f"{ME}:{action_completion(truncate_action(pair.action))}"])


def join_blocks(moments: Iterable[str]) -> str:
    """Moments one after the other, a blank line between."""
    return "\n\n".join(moment.rstrip("\n") for moment in moments)


def filler_text(words: int) -> str:
    """Words that say nothing, about as many: in steps of five, so that traces of one pair share them."""
    count = max(5, 5 * round(words / 5))
    return " ".join((_NOTHING * (count // len(_NOTHING.split()) + 1)).split()[:count])


def _thought(thought: str | None) -> list[str]:
    return [] if thought is None else [f"{THOUGHT_PREFIX} {single_line(thought)})"]


def _label(turn: Turn, pair: Pair, several: bool) -> str:
    if turn.speaker == pair.speaker:
        return ME
    name = single_line(turn.speaker)
    return name if several and name != ME else THEM


def _tail(text: str, characters: int) -> str:
    return text if len(text) <= characters else "…" + text[-characters:]
