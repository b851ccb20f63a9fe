"""Token limits of completions, by purpose and prompt style.

Design: a model that continues transcripts stops at the end of a line, so its limits are those of a line. A model that follows
instructions may reason first, and hosted models count that against the limit: 500 to 5,000 tokens before a short answer are
common. A limit is a ceiling and costs nothing until a model needs it, so every such answer gets the same room on top.
"""

from __future__ import annotations

from typing import Literal

from .chat import PromptStyle

#: Tokens for reasoning before an answer. llama.cpp ends earlier where its context ends; `sample` drops a limit that an endpoint
#: refuses as too large.
REASONING_ROOM = 8192

Purpose = Literal["trace", "rewrite", "paraphrase", "reconstruction", "thought", "action", "verdict", "ranking"]
#: Tokens of the answer itself, for (transcript, instruction): several times its usual length.
_ANSWERS: dict[Purpose, tuple[int, int]] = {
    "trace": (48, 400),  # one or two sentences, or four fields of a JSON object
    "rewrite": (24, 200),  # one clause
    "paraphrase": (80, 400),  # as long as the action
    "reconstruction": (80, 600),  # a turn of the person
    "thought": (60, 400),  # one or two sentences
    "action": (400, 1500),  # a long turn; transcripts have a lower limit, by the person's typical length
    "verdict": (200, 200),  # {"closer": "1"}
    "ranking": (200, 200),  # a ranking of letters; the marks of each letter come on top
}


def answer_tokens(purpose: Purpose, style: PromptStyle) -> int:
    """Return the token limit of an answer without room for reasoning."""
    return _ANSWERS[purpose][style == "instruction"]


def token_limit(purpose: Purpose, style: PromptStyle) -> int:
    """Return the token limit of a completion."""
    return answer_tokens(purpose, style) + reasoning_room(style)


def reasoning_room(style: PromptStyle) -> int:
    """Return the tokens that a model may spend on reasoning before it answers."""
    return REASONING_ROOM if style == "instruction" else 0
