"""How near a reply is to the person's real turn: small functions, each with its definition and source.

The one design choice: nothing here is ours; what libraries measure, they measure.
"""

from __future__ import annotations

from collections.abc import Sequence

from usertwin.memory import Embedder


def chrf(reply: str, real: str) -> float:
    """Character n-gram F-score, 0 to 1, by sacrebleu with its defaults (n up to 6, beta 2; Popović 2015).

    >>> chrf("see you there", "see you there")
    1.0
    """
    import sacrebleu

    return sacrebleu.sentence_chrf(reply, [real]).score / 100


def embedding_similarities(replies: Sequence[str], reals: Sequence[str], embedder: Embedder) -> list[float]:
    """Cosine of each reply's embedding and its real turn's, -1 to 1."""
    if not replies:
        return []
    said, wanted = embedder.embed(list(replies)), embedder.embed(list(reals))
    return [float(value) for value in (said * wanted).sum(axis=1)]
