"""What speaks for a candidate as the person's next turn: numbers that need no model but the embedder of the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean
from typing import TYPE_CHECKING

from usertwin.memory import Embedder, Triple
from usertwin.memory.models.embedding import query_text
from usertwin.memory.own_words.ngram_model import NgramModel
from usertwin.memory.text.words import word_tokens
from usertwin.memory.twin.reranking import FEATURES
from usertwin.personas import Pair
from usertwin.personas.style_card import StyleCard, count_style, length_in, quantile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The typical size of a difference in each feature between candidates of one turn: the standard deviation over candidates of
#: development people. Weights are of features in these units.
_SCALES = {
    "agreement": 0.15, "recalled": 0.1, "context": 0.15, "length": 0.5, "style": 0.5, "words": 0.8, "quoted": 0.5,
    "nearness": 0.3,
}  # fmt: skip
#: The quantiles of the lengths of recalled answers between which a length is as good as any other.
_USUAL = (0.2, 0.8)
#: The order of the n-gram model of the person's words, and the size that it assumes of all words.
_ORDER, _VOCABULARY = 3, 50_000
_END = "\n"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible reply.

    Attributes:
        text: the reply.
        quoted: the place among the recalled pairs of the one that it quotes; None if the model wrote it.
        votes: how many of the written replies are this one.
    """

    text: str
    quoted: int | None = None
    votes: int = 1


class WordModel:
    """An n-gram model of the words of a person's turns, whatever model acts."""

    def __init__(self, turns: Sequence[str]) -> None:
        self._ids: dict[str, int] = {}
        self._model = NgramModel([self._encode(turn) for turn in turns], _VOCABULARY, _ORDER)

    def log_probability(self, text: str) -> float:
        """Return the mean natural log of the probability of a word of a text and of its end."""
        tokens = self._encode(text)
        return sum(log(self._model.probability(tokens[:place], token)) for place, token in enumerate(tokens)) / len(tokens)

    def _encode(self, text: str) -> list[int]:
        return [self._ids.setdefault(word, len(self._ids)) for word in (*word_tokens(text), _END)]


def feature_table(
    candidates: Sequence[Candidate], query: Pair, recalled: Sequence[Triple], *, card: StyleCard | None, words: WordModel,
    embedder: Embedder,
) -> NDArray[np.float64]:  # fmt: skip
    """Return the features of each candidate, of shape (candidates, features), in their typical units.

    Columns, in the order of `FEATURES`: the mean cosine with the other replies of the model, and with the recalled answers; the
    cosine with the context; how far the length is from the usual one, below 0; the log-probability of the marks of style,
    and of the words under the person's own (of a quote, the mean of the written replies, since its own would be near 0);
    whether it is a quote, and its place among the recalled pairs, from 0.5 for the most similar one to -0.5.
    """
    import numpy as np

    answers = [triple.pair.action for triple in recalled]
    texts = [candidate.text for candidate in candidates]
    vectors = embedder.embed([*texts, *answers, query_text(query)])
    own, answered, context = vectors[: len(texts)], vectors[len(texts) : -1], vectors[-1]
    written = [place for place, candidate in enumerate(candidates) if candidate.quoted is None]
    votes = [candidates[place].votes for place in written]
    probabilities = [words.log_probability(text) for text in texts]
    usual_probability = fmean([probabilities[place] for place in written] or [0.0])
    columns: dict[str, list[float]] = {
        "agreement": _mean_cosines(
            own,
            np.repeat(own[written], votes, axis=0),
            [c.quoted is None for c in candidates],
        ),
        "recalled": _mean_cosines(own, answered, [c.quoted is not None for c in candidates]),
        "context": [float(vector @ context) for vector in own],
        "length": [-_log_distance(text, answers, card) for text in texts],
        "style": [_style(text, card) for text in texts],
        "words": [p if c.quoted is None else usual_probability for p, c in zip(probabilities, candidates, strict=True)],
        "quoted": [float(candidate.quoted is not None) for candidate in candidates],
        "nearness": [0.0 if c.quoted is None else 0.5 - c.quoted / max(1, len(recalled) - 1) for c in candidates],
    }
    return np.array([[value / _SCALES[name] for value in columns[name]] for name in FEATURES]).T


def _log_distance(text: str, answers: Sequence[str], card: StyleCard | None) -> float:
    """Return how far the log of a length is outside the usual range, that of recalled answers or else of all turns."""
    unit = "words" if card is None else card.unit
    lengths: Sequence[int] = sorted(length_in(unit, answer) for answer in answers) or (card.lengths if card else ())
    if not lengths:
        return 0.0
    low, high = (log(1 + quantile(lengths, share)) for share in _USUAL)
    length = log(1 + length_in(unit, text))
    return max(low - length, length - high, 0.0)


def _mean_cosines(vectors: NDArray[np.float32], others: NDArray[np.float32], among: Sequence[bool]) -> list[float]:
    """Return the mean cosine of each vector with the others, without itself where `among` says that it is one of these."""
    sums = (vectors @ others.T).sum(axis=1)
    own = (vectors * vectors).sum(axis=1)
    return [
        float(total - itself * inside) / (len(others) - inside) if len(others) > inside else 0.0
        for total, itself, inside in zip(sums, own, among, strict=True)
    ]


def _style(text: str, card: StyleCard | None) -> float:
    """Return the mean log-probability of four marks of a text under the person's shares."""
    found = count_style([text])
    if card is None or found is None:
        return 0.0
    marks = [(found.questions, card.questions), (found.unpunctuated, card.unpunctuated), (found.with_emoji, card.with_emoji)]
    if found.uncapitalized is not None and card.uncapitalized is not None:
        marks.append((found.uncapitalized, card.uncapitalized))
    smoothed = [(mark, (share * card.turns + 1) / (card.turns + 2)) for mark, share in marks]
    return sum(log(share if mark else 1 - share) for mark, share in smoothed) / len(smoothed)
