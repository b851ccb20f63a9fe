"""Fit a prompt into the context window of a model: leave out what matters least, whole, and count it."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from usertwin.memory import ChatModel, Triple
from usertwin.personas import Pair

from .prompts import Messages

#: The share of the context that is kept for the completion, at most its token limit.
_REPLY_SHARE = 0.25
#: Tokens for what a chat template adds to a prompt, and to each message.
_TEMPLATE_TOKENS, _MESSAGE_TOKENS = 56, 8
#: Characters of the last turn that are kept in any case.
_MIN_CHARACTERS = 200


#: (query, recalled, number of turns) -> messages.
BuildPrompt = Callable[[Pair, Sequence[Triple], int], Messages]


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt, and what it lacks: turns of the conversation (one that was shortened counts), and recalled pairs."""

    messages: Messages
    cut_turns: int = 0
    cut_recalled: int = 0

    @property
    def checksum(self) -> str:
        """The checksum of the messages."""
        return prompt_checksum(self.messages)


def prompt_checksum(messages: Messages) -> str:
    """Return the checksum of a prompt, by which one that is built again is known to be the same."""
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]


def fit_prompt(
    model: ChatModel, max_tokens: int, build: BuildPrompt, query: Pair, recalled: Sequence[Triple], *, turns: int
) -> FittedPrompt:
    """Return a prompt that leaves the model room to complete it, with the latest `turns` turns if they fit.

    Recalled pairs (given most similar first) go first, the least similar one before others, then the oldest turns: each is left
    out whole. The last turn loses its start only if it does not fit alone. Persona and goal stay, also if they do not fit: then
    the model's server reports an error. A model whose context is not known gets everything.
    """
    total, turns = len(query.context), min(turns, len(query.context))

    def fits(messages: Messages) -> bool:
        return _fits(model, max_tokens, messages)

    whole = build(query, recalled, turns)
    if fits(whole):
        return FittedPrompt(whole, total - turns)
    kept = _most(len(recalled), lambda count: fits(build(query, recalled[:count], turns)))
    shown, count = recalled[:kept], turns
    if not kept and not fits(build(query, (), turns)):
        count = _most(turns, lambda number: fits(build(query, (), number)), least=min(1, turns))
    messages, shortened = build(query, shown, count), False
    if count == 1 and not fits(messages) and (characters := len(query.context[-1].text) - 1) > _MIN_CHARACTERS:
        length = _most(characters, lambda end: fits(build(_with_end(query, end), (), 1)), least=_MIN_CHARACTERS)
        messages, shortened = build(_with_end(query, length), (), 1), True
    return FittedPrompt(messages, total - count + shortened, len(recalled) - kept)


def _most(largest: int, holds: Callable[[int], bool], least: int = 0) -> int:
    """Return the largest number from `least` to `largest` for which a condition holds that holds for all smaller ones, too."""
    if holds(largest):
        return largest
    return least + max(0, bisect_left(range(least, largest), True, key=lambda number: not holds(number)) - 1)


def _with_end(query: Pair, characters: int) -> Pair:
    """Return the query with the last characters of its last turn."""
    text = query.context[-1].text
    return replace(query, context=(*query.context[:-1], replace(query.context[-1], text="…" + text[len(text) - characters :])))


def _fits(model: ChatModel, max_tokens: int, messages: Messages) -> bool:
    if model.context_tokens is None or model.count_tokens is None:
        return True
    reply = min(max_tokens, int(model.context_tokens * _REPLY_SHARE))
    room = model.context_tokens - reply - _TEMPLATE_TOKENS - _MESSAGE_TOKENS * len(messages)
    text = "\n".join(text for _, text in messages)
    return len(text.encode()) <= room or model.count_tokens(text) <= room  # a token has at least one byte
