"""The fit of a text and its context, by an embedder: what the discriminator with context reads beside the texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from usertwin.evals.records.measured_turns import ContextFit
from usertwin.memory import Embedder
from usertwin.memory.text.transcript import ME

#: A text, its context as (speaker, text), where the person is `ME`, and the person's goal.
PlacedText: TypeAlias = tuple[str, Sequence[tuple[str, str]], str]


def context_fits(embedder: Embedder, placed: Sequence[PlacedText]) -> list[ContextFit]:
    """Return the cosines of each text with parts of its context, rounded to 4 digits; equal texts are embedded once."""
    import numpy as np

    every = {text: None for action, context, goal in placed for text in (action, goal, *(turn for _, turn in context))}
    vectors = dict(zip(every, embedder.embed(list(every)), strict=True))

    def cosine(text: str, others: Sequence[str]) -> float:
        if not any(others):
            return 0.0
        mean = np.mean([vectors[other] for other in others], axis=0)
        return round(float(vectors[text] @ mean / max(float(np.linalg.norm(mean)), 1e-9)), 4)

    fits: list[ContextFit] = []
    for text, context, goal in placed:
        own, others = ([turn for speaker, turn in context if (speaker == ME) is mine] for mine in (True, False))
        everything = [turn for _, turn in context]
        fits.append(
            ContextFit(
                latest=cosine(text, others[-1:]), context=cosine(text, everything), own=cosine(text, own[-1:]),
                goal=cosine(text, [goal]),
            )
        )  # fmt: skip
    return fits
