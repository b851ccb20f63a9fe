"""Pairs as plain-text transcripts to be continued: the prompt format for base models, small models and scorers.

The person is "Me" and the other speaker "Them" (by name if there are several). A turn is one line, a thought is one line in
parentheses, and a blank line separates examples; so a newline ends every turn.
"""

from __future__ import annotations

from collections.abc import Iterable

from usertwin.personas import Pair, Turn

ME = "Me"
THEM = "Them"
#: The start of a thought line.
THOUGHT_PREFIX = f"({ME} thinking:"
#: The most characters of a goal, of a context turn (their ends are kept, closest to the next turn) and of an example's action.
_MAX_GOAL, _MAX_TURN, _MAX_ACTION = 400, 240, 1200
_FILLER = (
    "I was there and I saw what there was to see and then it went on as it does, and so it was, "
    "and it was that and nothing else, one thing and then the next one "
)


def single_line(text: str) -> str:
    """Return the text with every run of whitespace replaced by one space."""
    return " ".join(text.split())


def action_completion(action: str) -> str:
    """Return the completion expected after `Me:`, with the newline, because stopping is part of the action."""
    return f" {single_line(action)}\n"


def truncate_action(action: str) -> str:
    """Return the action on one line, truncated at the end if it is very long."""
    text = single_line(action)
    return text if len(text) <= _MAX_ACTION else text[:_MAX_ACTION].rstrip() + "…"


def context_lines(pair: Pair, turns: int) -> list[str]:
    """Return the latest `turns` context turns, one line each."""
    latest = pair.context[-turns:] if turns else ()
    others = {turn.speaker for turn in pair.context if turn.speaker != pair.speaker}
    return [f"{_label(turn, pair, len(others) > 1)}: {_tail(single_line(turn.text), _MAX_TURN)}" for turn in latest]


def format_action_prompt(pair: Pair, turns: int, *, thought: str | None = None) -> str:
    """Return the prompt for an action: goal, context, thought (if given) and `Me:`."""
    goal = [f"(My goal: {_tail(single_line(pair.goal), _MAX_GOAL)})"] if pair.goal else []
    return "\n".join([*goal, *context_lines(pair, turns), *_thought(thought), f"{ME}:"])


def format_thought_prompt(pair: Pair, turns: int) -> str:
    """Return the prompt for a thought. `format_action_prompt` with a thought starts with the same text."""
    return format_action_prompt(pair, turns).removesuffix(f"{ME}:") + THOUGHT_PREFIX


def format_example(pair: Pair, turns: int, *, thought: str | None = None) -> str:
    """Return a pair with its action, as a few-shot example."""
    action = action_completion(truncate_action(pair.action))
    return "\n".join([*context_lines(pair, turns), *_thought(thought), f"{ME}:{action}"])


def join_blocks(blocks: Iterable[str]) -> str:
    """Return examples and a prompt joined by blank lines."""
    return "\n\n".join(block.rstrip("\n") for block in blocks)


def filler_text(words: int) -> str:
    """Return uninformative text of about `words` words, a multiple of five: traces of similar length share cached scores."""
    count = max(5, 5 * round(words / 5))
    return " ".join((_FILLER * (count // len(_FILLER.split()) + 1)).split()[:count])


def _thought(thought: str | None) -> list[str]:
    return [] if thought is None else [f"{THOUGHT_PREFIX} {single_line(thought)})"]


def _label(turn: Turn, pair: Pair, use_names: bool) -> str:
    if turn.speaker == pair.speaker:
        return ME
    name = single_line(turn.speaker)
    return name if use_names and name != ME else THEM


def _tail(text: str, characters: int) -> str:
    return text if len(text) <= characters else "…" + text[-characters:]
