"""Pairs as plain-text transcripts to be continued: the prompt format for base models, small models and scorers.

The person is "Me" and the other speaker "Them" (by name if there are several). A turn is one line, a thought is one line in
parentheses, and a line of dashes and a blank line separate examples; so a newline ends every turn.

Design: no text from outside can be a marker. Every text is put on one line behind a label or a marker of ours, its own opening
parenthesis of a marker becomes a bracket, and a speaker's name loses the characters that labels and markers are made of. Line
breaks inside a turn are written as in a string literal, so they survive and a model can write them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from usertwin.personas import Pair, Turn

ME = "Me"
THEM = "Them"
#: The starts of a thought line, a goal line and a persona line.
THOUGHT_PREFIX, GOAL_PREFIX, PERSONA_PREFIX = f"({ME} thinking:", "(My goal:", "(About me:"
#: The most characters in an example of a context turn (its end is kept, closest to the action), and of an action.
_MAX_EXAMPLE_TURN, _MAX_ACTION = 240, 1200
_MARKER = re.compile(r"\((?=\s*(me\s+thinking|my\s+goal|about\s+me)\s*:)", re.IGNORECASE)
_RESERVED_IN_NAMES = re.compile(r"[():\[\]]")
_FILLER = (
    "I was there and I saw what there was to see and then it went on as it does, and so it was, "
    "and it was that and nothing else, one thing and then the next one "
)


def single_line(text: str) -> str:
    """Return the text with every run of whitespace replaced by one space."""
    return " ".join(text.split())


def escaped_line(text: str) -> str:
    r"""Return the text on one line: line breaks as " \n ", a backslash as two, every other run of whitespace as one space.

    The spaces keep the words beside a line break whole for tokenizers.
    """
    return single_line(" \\n ".join(text.strip().replace("\\", "\\\\").splitlines()))


def unescaped_line(line: str) -> str:
    r"""Return the text of an escaped line. In any other line, two backslashes in a row become one, and " \n " a line break."""
    lines: list[list[str]] = [[]]
    for word in line.split(" "):
        if word == "\\n":
            lines.append([])
        else:
            lines[-1].append(word.replace("\\\\", "\\"))
    return "\n".join(map(" ".join, lines)).strip()


def inert_line(text: str) -> str:
    """Return the text on one line, without the start of a thought, goal or persona line in it."""
    return _MARKER.sub("[", single_line(text))


def turn_line(text: str) -> str:
    """Return a turn on one line, escaped, without the start of a thought, goal or persona line in it."""
    return _MARKER.sub("[", escaped_line(text))


def markers(text: str) -> set[str]:
    """Return the markers whose start is in a text: "me thinking", "my goal" or "about me"."""
    return {single_line(marker).casefold() for marker in _MARKER.findall(text)}


def action_completion(action: str) -> str:
    """Return the completion expected after `Me:`, with the newline, because stopping is part of the action."""
    return f" {turn_line(action)}\n"


def truncate_action(action: str) -> str:
    """Return the action on one line, truncated at the end if it is very long."""
    return _head(single_line(action), _MAX_ACTION)


def context_lines(pair: Pair, turns: int) -> list[str]:
    """Return the latest `turns` context turns, whole, one line each, for prompts that are no transcripts."""
    return _context_lines(pair, turns, inert_line)


def persona_line(description: str) -> str:
    """Return the line that describes the person, the first one of a prompt."""
    return f"{PERSONA_PREFIX} {inert_line(description)})"


def format_action_prompt(pair: Pair, turns: int, *, thought: str | None = None) -> str:
    """Return the prompt for an action: goal, context, thought (if given) and `Me:`."""
    goal = [f"{GOAL_PREFIX} {inert_line(pair.goal)})"] if pair.goal else []
    return "\n".join([*goal, *_context_lines(pair, turns, turn_line), *_thought(thought), f"{ME}:"])


def format_thought_prompt(pair: Pair, turns: int) -> str:
    """Return the prompt for a thought. `format_action_prompt` with a thought starts with the same text."""
    return format_action_prompt(pair, turns).removesuffix(f"{ME}:") + THOUGHT_PREFIX


def format_example(pair: Pair, turns: int, *, thought: str | None = None) -> str:
    """Return a pair with its action, as a few-shot example; long turns are shortened, since it is an example only."""
    action = action_completion(_head(pair.action, _MAX_ACTION))
    lines = _context_lines(pair, turns, lambda text: turn_line(_tail(text.strip(), _MAX_EXAMPLE_TURN)))
    return "\n".join([*lines, *_thought(thought), f"{ME}:{action}"])


def join_blocks(blocks: Iterable[str]) -> str:
    """Return examples and a prompt, separated by a line of dashes and a blank line.

    Design: a blank line alone would end the turns of examples in another token than that of `action_completion` ("." and two
    newlines are one token of Qwen's tokenizer), so that examples would make the end of every scored turn unlikely.
    """
    return "\n---\n\n".join(block.rstrip("\n") for block in blocks)


def filler_text(words: int) -> str:
    """Return uninformative text of about `words` words, a multiple of five: traces of similar length share cached scores."""
    count = max(5, 5 * round(words / 5))
    return " ".join((_FILLER * (count // len(_FILLER.split()) + 1)).split()[:count])


def _thought(thought: str | None) -> list[str]:
    return [] if thought is None else [f"{THOUGHT_PREFIX} {inert_line(thought)})"]


def _context_lines(pair: Pair, turns: int, as_line: Callable[[str], str]) -> list[str]:
    latest = pair.context[-turns:] if turns else ()
    others = {turn.speaker for turn in pair.context if turn.speaker != pair.speaker}
    return [f"{_label(turn, pair, len(others) > 1)}: {as_line(turn.text)}" for turn in latest]


def _label(turn: Turn, pair: Pair, use_names: bool) -> str:
    if turn.speaker == pair.speaker:
        return ME
    name = single_line(_RESERVED_IN_NAMES.sub("", turn.speaker))
    return name if use_names and name and name.casefold() != ME.casefold() else THEM


def _head(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[:characters].rstrip() + "…"


def _tail(text: str, characters: int) -> str:
    return text if len(text) <= characters else "…" + text[-characters:]
