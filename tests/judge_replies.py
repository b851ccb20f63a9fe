"""Parsing of judge prompts, and replies for scripted judges."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

_SHOWN = re.compile(r"^(?:Attempt|Note) ([A-Z]):\n(.*)$", re.MULTILINE)
_MARKS = ("style", "intent", "values", "plausible", "specific", "clear")


def shown_attempts(prompt: str) -> dict[str, str]:
    """Return the attempts in a judge prompt by letter, in order."""
    return dict(_SHOWN.findall(prompt))


def judge_reply(ranking: Sequence[str], marks: Callable[[str], int] = lambda _: 5) -> str:
    """Return a judge's JSON reply with this ranking, best first, and `marks` for each label."""
    return json.dumps({"scores": {label: dict.fromkeys(_MARKS, marks(label)) for label in ranking}, "ranking": list(ranking)})


def judge_rule(ranking: Sequence[str]) -> str:
    """Return a line of a script: every prompt of a judge that ranks attempts or notes gets this ranking, best first."""
    return json.dumps({"when": '"ranking" lists all the letters', "say": judge_reply(ranking)})
