"""A classifier that learns to separate a person's real turns from an arm's replies; an AUC near 0.5 means it cannot.

Design: all arms and people use the same plain classifier with fixed settings, and out-of-fold scores only: no classifier scores
the turns of a person (with a single person: of a conversation) it was trained on. So no arm is favoured. Scores are compared
within a fold only: where real turns and replies do not differ, the expected AUC is then 0.5. Across folds it would be lower,
since each classifier was trained on what the other one scores (Forman and Scholz 2010, "Apples-to-apples in cross-validation
studies").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from math import log1p
from typing import Any, Literal

from usertwin.memory.text.transcript import single_line

from .writing_style import has_emoji, has_greeting, has_question, is_polite, starts_with_capital

#: Settings, fixed before the first measurement: n-gram lengths in characters, the largest vocabulary (most frequent n-grams
#: first), the inverse L2 penalty of the logistic regression, and the most folds.
NGRAM_RANGE, MAX_NGRAMS, INVERSE_L2, FOLDS = (2, 4), 5_000, 1.0, 5
#: Pairs below which no classifier is trained.
MIN_PAIRS = 10


@dataclass(frozen=True, slots=True)
class PairedReply:
    """A person's real turn and a reply in its place; features tell how each fits its context, of equal number in all pairs."""

    person: str
    conversation_id: str
    real: str
    reply: str
    _: KW_ONLY
    real_features: tuple[float, ...] = ()
    reply_features: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class DiscriminatorScores:
    """Out-of-fold scores of real turns and of replies, higher for more like a reply, and the fold of each pair.

    Each person (or conversation, see `folds_by`) is in one fold.
    """

    reals: tuple[float, ...]
    replies: tuple[float, ...]
    fold: tuple[int, ...]
    folds_by: Literal["person", "conversation"]

    @property
    def folds(self) -> int:
        """The number of folds."""
        return len(set(self.fold))

    def auc(self, places: Sequence[int]) -> float:
        """Return the area under the ROC curve of some pairs, by index: the mean over folds, weighted by their pairs."""
        from sklearn.metrics import roc_auc_score

        by_fold: dict[int, list[int]] = {}
        for place in places:
            by_fold.setdefault(self.fold[place], []).append(place)
        weighted = 0.0
        for own in by_fold.values():
            scores = [self.reals[place] for place in own] + [self.replies[place] for place in own]
            weighted += len(own) * float(roc_auc_score([0] * len(own) + [1] * len(own), scores))
        return weighted / len(places)


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
    features, ngrams = _features(texts, [pair.real_features for pair in pairs] + [pair.reply_features for pair in pairs])
    labels = np.repeat([0, 1], len(pairs))
    splits = list(GroupKFold(folds).split(features, labels, groups * 2))
    predictions: Any = cross_val_predict(_classifier(ngrams, seed), features, labels, cv=splits, method="decision_function")
    fold = np.zeros(2 * len(pairs), int)
    for number, (_, scored) in enumerate(splits):
        fold[scored] = number
    reals, replies = predictions.reshape(2, -1).tolist()
    return DiscriminatorScores(tuple(reals), tuple(replies), tuple(fold[: len(pairs)].tolist()), folds_by)


def _features(texts: Sequence[str], more: Sequence[Sequence[float]]) -> tuple[Any, int]:
    """Return a sparse matrix (texts, features), n-gram counts before surface and more features, and the number of n-grams.

    The vocabulary is taken from all texts; the weights are learned within each fold.
    """
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(analyzer="char", ngram_range=NGRAM_RANGE, lowercase=False, max_features=MAX_NGRAMS)
    counts: Any = vectorizer.fit_transform([f"\x02{text}\x03" for text in texts])  # marks the start and the end of a text
    dense = [[*surface_features(text), *own] for text, own in zip(texts, more, strict=True)]
    return hstack([counts, csr_matrix(dense)]).tocsr(), int(counts.shape[1])


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
