"""A classifier that learns to separate a person's real turns from an arm's replies; an AUC near 0.5 means it cannot.

Design: all arms and people use the same plain classifier with fixed settings, and out-of-fold scores only: no classifier scores
the turns of a person (with a single person: of a conversation) it was trained on. So no arm is favoured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log1p
from typing import TYPE_CHECKING, Any, Literal

from usertwin.memory.text.transcript import single_line

from .writing_style import has_emoji, has_greeting, has_question, is_polite, starts_with_capital

if TYPE_CHECKING:
    from .statistics import Statistic

#: Settings, fixed before the first measurement: n-gram lengths in characters, the largest vocabulary (most frequent n-grams
#: first), the inverse L2 penalty of the logistic regression, and the most folds.
NGRAM_RANGE, MAX_NGRAMS, INVERSE_L2, FOLDS = (2, 4), 5_000, 1.0, 5
#: Pairs below which no classifier is trained.
MIN_PAIRS = 10


@dataclass(frozen=True, slots=True)
class PairedReply:
    """A person's real turn and a reply in its place."""

    person: str
    conversation_id: str
    real: str
    reply: str


@dataclass(frozen=True, slots=True)
class DiscriminatorScores:
    """Out-of-fold scores of real turns and of replies, higher for more like a reply.

    Each person (or conversation, see `folds_by`) is in one fold.
    """

    reals: tuple[float, ...]
    replies: tuple[float, ...]
    folds_by: Literal["person", "conversation"]
    folds: int


def discriminate(pairs: Sequence[PairedReply], *, seed: int = 0) -> DiscriminatorScores | None:
    """Train classifiers to separate real turns from replies and score each pair out of fold.

    The discriminator is the classifier two-sample test of Lopez-Paz and Oquab (2017, arXiv 1610.06545). Its features are those
    of authorship attribution: character n-grams weighted by tf-idf, and surface features. Line breaks become blanks. Each pair
    gives a real turn and a reply, so the classes are equal in every fold. Folds keep the pairs of a person together; those of a
    single person keep a conversation together. None for fewer than ten pairs, or for a single conversation.
    """
    people = {pair.person for pair in pairs}
    folds_by = "person" if len(people) > 1 else "conversation"
    groups = [pair.person if folds_by == "person" else pair.conversation_id for pair in pairs]
    folds = min(FOLDS, len(set(groups)))
    if len(pairs) < MIN_PAIRS or folds < 2:
        return None
    import numpy as np
    from sklearn.model_selection import GroupKFold, cross_val_predict

    texts = [single_line(pair.real) for pair in pairs] + [single_line(pair.reply) for pair in pairs]
    features, ngrams = _features(texts)
    labels = np.repeat([0, 1], len(pairs))
    predictions: Any = cross_val_predict(
        _classifier(ngrams, seed), features, labels, groups=groups * 2, cv=GroupKFold(folds), method="decision_function"
    )
    reals, replies = predictions.reshape(2, -1).tolist()
    return DiscriminatorScores(tuple(reals), tuple(replies), folds_by, folds)


def _features(texts: Sequence[str]) -> tuple[Any, int]:
    """Return a sparse matrix (texts, features), n-gram counts before surface features, and the number of n-grams.

    The vocabulary is taken from all texts; the weights are learned within each fold.
    """
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(analyzer="char", ngram_range=NGRAM_RANGE, lowercase=False, max_features=MAX_NGRAMS)
    counts: Any = vectorizer.fit_transform([f"\x02{text}\x03" for text in texts])  # marks the start and the end of a text
    return hstack([counts, csr_matrix([surface_features(text) for text in texts])]).tocsr(), int(counts.shape[1])


def surface_features(text: str) -> list[float]:
    """Return lengths, punctuation, capitals, digits and style features of a turn; shares are per character."""
    characters = max(len(text), 1)
    return [
        log1p(len(text)),
        log1p(len(text.split())),
        float(has_question(text)),
        float(has_greeting(text)),
        float(is_polite(text)),
        float(starts_with_capital(text) or False),
        float(has_emoji(text)),
        float(text.rstrip()[-1:] in {".", "!", "?"}),
        sum(letter.isupper() for letter in text) / characters,
        sum(letter.isdigit() for letter in text) / characters,
        sum(not (letter.isalnum() or letter.isspace()) for letter in text) / characters,
    ]


def _classifier(ngrams: int, seed: int) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    scaled = ColumnTransformer(
        [("ngrams", TfidfTransformer(sublinear_tf=True), slice(0, ngrams)), ("surface", MaxAbsScaler(), slice(ngrams, None))],
        sparse_threshold=1.0,
    )
    return make_pipeline(scaled, LogisticRegression(C=INVERSE_L2, solver="liblinear", random_state=seed))


def auc_statistic(reals: Sequence[float], replies: Sequence[float], conversations: Sequence[int]) -> Statistic:
    """Return the area under the ROC curve as a statistic of how often each conversation was drawn.

    With every conversation drawn once it equals `sklearn.metrics.roc_auc_score` (a tie counts 0.5).

    Design: for each two conversations, count how often a reply of the one scores higher than a real turn of the other. A
    resample is then a quadratic form of these counts, where scikit-learn would sort all scores for each resample.

    All sequences are by pair; conversations are numbers from 0 without gaps.
    """
    import numpy as np

    reply, real = np.asarray(replies)[:, None], np.asarray(reals)[None, :]
    wins = (reply > real) + 0.5 * (reply == real)
    membership = np.zeros((len(conversations), max(conversations) + 1))
    membership[np.arange(len(conversations)), conversations] = 1.0
    between, sizes = membership.T @ wins @ membership, membership.sum(axis=0)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return ((weights @ between) * weights).sum(axis=1) / (weights @ sizes) ** 2

    return statistic
