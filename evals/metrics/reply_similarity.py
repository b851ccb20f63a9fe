"""Similarity of a reply to the person's real turn, by libraries."""

from __future__ import annotations

from collections.abc import Sequence

from usertwin.memory import Embedder


def chrf(reply: str, real: str) -> float:
    """Return the character n-gram F-score, 0 to 1, by sacrebleu with its defaults (n up to 6, beta 2; Popović 2015).

    >>> chrf("see you there", "see you there")
    1.0
    """
    import sacrebleu

    return sacrebleu.sentence_chrf(reply, [real]).score / 100


def embedding_similarities(replies: Sequence[str], reals: Sequence[str], embedder: Embedder) -> list[float]:
    """Return the cosine of each reply's embedding and its real turn's, -1 to 1."""
    if not replies:
        return []
    reply_vectors, real_vectors = embedder.embed(list(replies)), embedder.embed(list(reals))
    return [float(value) for value in (reply_vectors * real_vectors).sum(axis=1)]
