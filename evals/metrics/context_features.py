"""Features of how a text fits the chat before it, for the discriminator that sees the context.

Design: chosen on 16 development people for a person's own sentences out of place, before any arm was measured (see
evals/EXPERIMENTS.md). Properties of the context alone are no features: a real turn and a reply have the same context.
"""

from __future__ import annotations

from collections.abc import Sequence

from usertwin.evals.records.measured_turns import ContextFit
from usertwin.memory.text.transcript import ME
from usertwin.memory.text.words import content_words, stem, word_tokens


def context_features(text: str, context: Sequence[tuple[str, str]], goal: str, fit: ContextFit) -> tuple[float, ...]:
    """Return the cosines of the fit, and the shares of the text's content words that others used, and that the goal has.

    `context` holds (speaker, text), where the person is `ME`. Words are compared by stem.
    """
    others = [turn for speaker, turn in context if speaker != ME]
    words, parts = _content_stems(text), (" ".join(others[-1:]), " ".join(others), goal)
    shares = (len(words & _content_stems(part)) / max(len(words), 1) for part in parts)
    return (fit.latest, fit.context, fit.own, fit.goal, *shares)


def _content_stems(text: str) -> set[str]:
    return {stem(word) for word in content_words(word_tokens(text))}
