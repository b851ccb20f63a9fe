"""What a scripted judge reads and says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

_SHOWN = re.compile(r"^(?:Attempt|Note) ([A-Z]):\n(.*)$", re.MULTILINE)
_MARKS = ("style", "intent", "values", "plausible", "specific", "clear")


def shown(prompt: str) -> dict[str, str]:
    """The attempts that a judge was shown, by letter, in order."""
    return dict(_SHOWN.findall(prompt))


def ruling(ranking: Sequence[str], marks: Callable[[str], int] = lambda _: 5) -> str:
    return json.dumps({"scores": {label: dict.fromkeys(_MARKS, marks(label)) for label in ranking}, "ranking": list(ranking)})
