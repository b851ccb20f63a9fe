"""Concurrent conversations with the embedded engine: tokens per second of four beside those of one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

from usertwin.simulator import SimulatedUser

from ..figures import Figure, figure, ratios, run_alternately

_QUESTIONS = (
    "Oh nice. What do you like about it?",
    "Did you do anything fun last weekend?",
    "What are your plans for the summer?",
    "What kind of music do you listen to?",
)


def concurrency_figures(user: SimulatedUser, rounds: int = 8) -> Iterator[tuple[str, Figure]]:
    """Yield the tokens per second of four conversations at once, divided by those of one; a twin never leaves meanwhile."""
    user.abandonment = None
    with asyncio.Runner() as runner:

        def side(conversations: int) -> Callable[[int], float]:
            return lambda number: runner.run(_tokens_per_second(user, conversations, seed=4 * number))

        four, one = run_alternately(rounds + 1, side(len(_QUESTIONS)), side(1))
    against = "one conversation, the same engine (bar: 1.5)"
    yield "twin.four_at_once_vs_one", figure(ratios(four[1:], one[1:]), "ratio", against)  # after warm-up
    yield "twin.tokens_per_s", figure(one[1:], "1/s", "one conversation: written tokens, with the time of the prompts")


async def _tokens_per_second(user: SimulatedUser, conversations: int, seed: int, turns: int = 2) -> float:
    """Return the tokens that a twin writes per second in this many conversations at once."""

    async def talk(number: int) -> int:
        messages: list[dict[str, Any]] = []
        tokens = 0
        for turn in range(turns):
            messages.append({"role": "assistant", "content": _QUESTIONS[(number + turn) % len(_QUESTIONS)]})
            answer = await user.arespond(messages, seed=seed + number)
            messages.append(answer.message)
            tokens += answer.usage.output_tokens
        return tokens

    start = time.perf_counter()
    tokens = await asyncio.gather(*(talk(number) for number in range(conversations)))
    return sum(tokens) / (time.perf_counter() - start)
