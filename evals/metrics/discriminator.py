"""A classifier that is trained to tell a person's real turns from an arm's replies; where it cannot, the replies are like them.

The one design choice: the same plain classifier, with the settings below, for every arm and person, and nobody's turns are
judged by a classifier that has seen any of theirs; so 0.5 means that it cannot tell twin from person, and no arm is favoured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log1p
from typing import TYPE_CHECKING, Any, Literal

from usertwin.memory.text.transcript import flat

from .writing_style import asks, capitalized, greets, has_emoji, is_polite

if TYPE_CHECKING:
    from .statistics import Statistic

#: Declared before anything was measured, and the same for all arms: the pieces in characters, and the most kinds of pieces,
#: the commonest first; logistic regression with this weight of the data (inverse L2 penalty); at most so many folds.
GRAMS, MOST_GRAMS, WEIGHT, FOLDS = (2, 4), 5_000, 1.0, 5
#: With fewer moments nothing is trained.
FEWEST = 10


@dataclass(frozen=True, slots=True)
class PairedReply:
    """A moment at which there is a real turn and a reply."""

    person: str
    conversation_id: str
    real: str
    reply: str


@dataclass(frozen=True, slots=True)
class DiscriminatorScores:
    """What classifiers said that had not seen the person (or the conversation, if there is only one person).

    Attributes:
        reals: for each moment how much the real turn looks like a reply; the higher, the more.
        replies: likewise the reply.
        folds_by: what no fold splits.
        folds: how many.
    """

    reals: tuple[float, ...]
    replies: tuple[float, ...]
    folds_by: Literal["person", "conversation"]
    folds: int

    @property
    def auc(self) -> float:
        """The chance that a reply looks more like a reply than a real turn does, over all moments; 0.5: cannot tell."""
        from sklearn.metrics import roc_auc_score

        labels = [0] * len(self.reals) + [1] * len(self.replies)
        return float(roc_auc_score(labels, [*self.reals, *self.replies]))


def discriminate(moments: Sequence[PairedReply], *, seed: int = 0) -> DiscriminatorScores | None:
    """Train classifiers on some people's moments and let them tell others' real turns from replies.

    The discriminator is the classifier two-sample test of Lopez-Paz and Oquab (2017, arXiv 1610.06545), with features that
    tell authors (character n-grams by tf-idf) and some of the surface, each text taken as one line. Each moment gives one
    real turn and one reply, so the classes are equal in every fold.

    Args:
        moments: of any people.
        seed: for the classifier.

    Returns:
        Out-of-fold scores; None for fewer than ten moments, or fewer than two conversations.
    """
    people = {moment.person for moment in moments}
    folds_by = "person" if len(people) > 1 else "conversation"
    groups = [moment.person if folds_by == "person" else moment.conversation_id for moment in moments]
    folds = min(FOLDS, len(set(groups)))
    if len(moments) < FEWEST or folds < 2:
        return None
    import numpy as np
    from sklearn.model_selection import GroupKFold, cross_val_predict

    texts = [flat(moment.real) for moment in moments] + [flat(moment.reply) for moment in moments]
    features, pieces = _features(texts)
    labels = np.repeat([0, 1], len(moments))
    scores: Any = cross_val_predict(
        _classifier(pieces, seed), features, labels, groups=groups * 2, cv=GroupKFold(folds), method="decision_function"
    )
    told = [float(score) for score in scores]
    return DiscriminatorScores(tuple(told[: len(moments)]), tuple(told[len(moments) :]), folds_by, folds)


def _features(texts: Sequence[str]) -> tuple[Any, int]:
    """Counts of pieces, then the surface: a sparse matrix (texts, features), and how many features are pieces.

    Which pieces there are is looked up over all texts, once; how they weigh is learned within each fold.
    """
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(analyzer="char", ngram_range=GRAMS, lowercase=False, max_features=MOST_GRAMS)
    counted: Any = counter.fit_transform([f"\x02{text}\x03" for text in texts])  # where a text begins and ends is told
    return hstack([counted, csr_matrix([surface(text) for text in texts])]).tocsr(), int(counted.shape[1])


def surface(text: str) -> list[float]:
    """What is seen of a turn at a glance: length, words, marks, capitals, digits, manner."""
    characters = max(len(text), 1)
    return [
        log1p(len(text)),
        log1p(len(text.split())),
        float(asks(text)),
        float(greets(text)),
        float(is_polite(text)),
        float(capitalized(text) or False),
        float(has_emoji(text)),
        float(text.rstrip()[-1:] in {".", "!", "?"}),
        sum(letter.isupper() for letter in text) / characters,
        sum(letter.isdigit() for letter in text) / characters,
        sum(not (letter.isalnum() or letter.isspace()) for letter in text) / characters,
    ]


def _classifier(pieces: int, seed: int) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    weighed = ColumnTransformer(
        [("pieces", TfidfTransformer(sublinear_tf=True), slice(0, pieces)), ("surface", MaxAbsScaler(), slice(pieces, None))],
        sparse_threshold=1.0,
    )
    return make_pipeline(weighed, LogisticRegression(C=WEIGHT, solver="liblinear", random_state=seed))


def area_under_curve(reals: Sequence[float], replies: Sequence[float], conversations: Sequence[int]) -> Statistic:
    """The area under the ROC curve as a statistic of how often each conversation was drawn.

    With every conversation once it is `sklearn.metrics.roc_auc_score` (ties count a half). Every pair of conversations adds
    how many of the one's replies look more like replies than the other's real turns, so a resample is a quadratic form.

    Args:
        reals: scores of the real turns, one for each moment.
        replies: scores of the replies.
        conversations: the number of each moment's conversation, from 0 without gaps.
    """
    import numpy as np

    reply, real = np.asarray(replies)[:, None], np.asarray(reals)[None, :]
    wins = (reply > real) + 0.5 * (reply == real)
    of = np.zeros((len(conversations), max(conversations) + 1))
    of[np.arange(len(conversations)), conversations] = 1.0
    between, sizes = of.T @ wins @ of, of.sum(axis=0)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return ((weights @ between) * weights).sum(axis=1) / (weights @ sizes) ** 2

    return statistic
