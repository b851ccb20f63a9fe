"""Features of how a text fits the chat before it, for the discriminator that sees the context."""

from __future__ import annotations

from collections.abc import Sequence

from usertwin.evals.records.measured_turns import ContextFit
from usertwin.memory.text.transcript import ME
from usertwin.memory.text.words import content_words, stem, word_tokens


def context_features(text: str, context: Sequence[tuple[str, str]], fit: ContextFit) -> tuple[float, ...]:
    """Return cosines, and shares of words in common; `context` holds (speaker, text), where the person is `ME`."""
    others = [turn for speaker, turn in context if speaker != ME]
    return (fit.latest, fit.context, fit.own, fit.goal, _shared(text, others[-1:]), _shared(text, others))


def _shared(text: str, others: Sequence[str]) -> float:
    """Return the share of a text's content words that occur in other texts."""
    words = _stems(text)
    return len(words & set().union(*map(_stems, others))) / max(len(words), 1)


def _stems(text: str) -> set[str]:
    return {stem(word) for word in content_words(word_tokens(text))}
