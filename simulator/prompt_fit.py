"""Fit a prompt into the context window of a model: leave out what is oldest, and count it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from usertwin.memory import ChatModel, Triple
from usertwin.personas import Pair

from .prompts import Messages

#: The share of the context that is kept for the completion, at most its token limit.
_REPLY_SHARE = 0.25
#: Tokens for what a chat template adds to a prompt.
_TEMPLATE_TOKENS = 64
#: Characters of the last turn below which it is not shortened.
_MIN_CHARACTERS = 200


#: (query, recalled, number of turns) -> messages.
BuildPrompt = Callable[[Pair, Sequence[Triple], int], Messages]


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt, and what it lacks: turns of the conversation (one that was shortened counts), and recalled pairs."""

    messages: Messages
    cut_turns: int = 0
    cut_recalled: int = 0


def fit_prompt(
    model: ChatModel, max_tokens: int, build: BuildPrompt, query: Pair, recalled: Sequence[Triple], *, turns: int
) -> FittedPrompt:
    """Return a prompt that leaves the model room to complete it, with the latest `turns` turns if they fit.

    Recalled pairs (given most similar first) go first, the least similar one before others, then the oldest turns, then the
    start of the last turn. Persona and goal stay. A model whose context is not known gets everything.
    """
    shown, count, shortened = list(recalled), min(turns, len(query.context)), False
    total = len(query.context)
    while not _fits(model, max_tokens, messages := build(query, shown, count)):
        if shown:
            shown.pop()
        elif count > 1:
            count -= 1
        elif count and len(text := query.context[-1].text) > _MIN_CHARACTERS:
            last = replace(query.context[-1], text="…" + text[len(text) // 2 :])
            query, shortened = replace(query, context=(*query.context[:-1], last)), True
        else:
            break
    return FittedPrompt(messages, total - count + shortened, len(recalled) - len(shown))


def _fits(model: ChatModel, max_tokens: int, messages: Messages) -> bool:
    if model.context_tokens is None or model.count_tokens is None:
        return True
    room = model.context_tokens - min(max_tokens, int(model.context_tokens * _REPLY_SHARE)) - _TEMPLATE_TOKENS
    text = "\n".join(text for _, text in messages)
    return len(text.encode()) <= room or model.count_tokens(text) <= room  # a token has at least one byte
