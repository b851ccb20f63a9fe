"""The model of leaving with a last turn: whether a turn is the person's last in the conversation.

Design: a logistic regression on hashed words, stored as plain numbers, works with every model that acts for the twin.

With a goal, a rule comes on top. Nobody leaves before they have mentioned the goal, nor because the conversation is long: the
words of the last two turns themselves must speak for an ending.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, log1p
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.text.goal_words import goal_is_mentioned
from usertwin.personas import Pair, TwinError
from usertwin.personas.files import write_private
from usertwin.personas.reading import STRICT, as_type, parse_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WORDS = FakeEmbedder(256)
_WORD_FEATURES = 2 * _WORDS.dimension
_FEATURES = _WORD_FEATURES + 2
#: Larger weights overflow in the sum of single precision.
_MAX_WEIGHT = 1e30
#: Smallest number of endings (or abandonments) to fit a model on.
MIN_ENDINGS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LastTurnModel:
    """The probability that a turn is the person's last.

    Attributes:
        weights: a weight for each feature.
        bias: added to the weighted sum.
        threshold: the twin leaves from this probability on.
        f1: F1 of this threshold on the validation turns; None if none of them ends a conversation.
        endings: number of endings in the corpus.
        validation_turns: number of turns on which the threshold was chosen.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    weights: tuple[float, ...]
    bias: float
    threshold: float
    f1: float | None
    endings: int
    validation_turns: int

    def probabilities(self, pairs: Sequence[Pair]) -> list[float]:
        """Return the probability, 0 to 1, that each action is the person's last turn in the conversation."""
        import numpy as np

        weights = np.asarray(self.weights, np.float32)
        # Row by row: one matrix product would round differently with the number of rows, and move a turn across the threshold.
        sums = [self.bias + float(row @ weights) for row in _features(pairs)]
        return [1.0 / (1.0 + exp(-max(-60.0, min(60.0, value)))) for value in sums]

    def probability(self, pair: Pair) -> float:
        """Return the probability, 0 to 1, that this action is the person's last turn in the conversation."""
        return self.probabilities([pair])[0]

    def closes(self, pair: Pair) -> bool:
        """Return whether the words of an action and of the turn before it speak for an ending, wherever they are said."""
        import numpy as np

        weights = np.asarray(self.weights, np.float32)
        [row] = _features([pair])
        return float(row[:_WORD_FEATURES] @ weights[:_WORD_FEATURES]) > 0

    def leaves(self, pair: Pair) -> bool:
        """Return whether the person leaves after this action."""
        if pair.goal and not (goal_is_mentioned(pair, with_action=True) and self.closes(pair)):
            return False
        return self.probability(pair) >= self.threshold

    def save(self, path: Path) -> None:
        """Write the model as JSON."""
        write_private(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> LastTurnModel | None:
        """Read a model; return None if there is no file. TwinError if the file is damaged."""
        try:
            model = as_type(cls, parse_json(path.read_bytes()))
            if len(model.weights) != _FEATURES:
                raise ValueError(f"{len(model.weights)} weights instead of {_FEATURES}")
            if any(abs(weight) > _MAX_WEIGHT for weight in (*model.weights, model.bias)):
                raise ValueError("a weight is too large")
            return model
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise TwinError(f"{path}: is damaged ({error}); learn the twin again with --overwrite") from None


def fit_last_turn(corpus: Sequence[Pair], validation: Sequence[Pair]) -> LastTurnModel | None:
    """Fit on the corpus; choose the threshold with which the twin leaves as often as the person on the validation turns.

    The threshold of the best F1 leaves far too often where endings are hard to predict, and users of simulators complain most
    about early exits.

    Returns None if the corpus has fewer than `MIN_ENDINGS` endings, or only endings. Such a twin never leaves.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    corpus, validation = ([pair for pair in pairs if not pair.abandoned] for pairs in (corpus, validation))
    ends = np.array([pair.ends_conversation for pair in corpus])
    if int(ends.sum()) < MIN_ENDINGS or ends.all():
        return None
    regression = LogisticRegression(C=1.0, max_iter=1000).fit(_features(corpus), ends)
    model = LastTurnModel(
        weights=tuple(round(float(weight), 6) for weight in regression.coef_[0]),
        bias=float(regression.intercept_[0]),
        threshold=0.5,
        f1=None,
        endings=int(ends.sum()),
        validation_turns=len(validation),
    )
    actual = np.array([pair.ends_conversation for pair in validation])
    if not actual.any():
        return model
    probabilities = np.array(model.probabilities(validation))  # with the rounded weights of the stored model
    descending, count = np.sort(probabilities)[::-1], int(actual.sum())
    last, following = descending[count - 1], descending[min(count, len(descending) - 1)]
    threshold = float(last + following) / 2  # the middle of the gap
    return replace(model, threshold=threshold, f1=float(f1_score(actual, probabilities >= threshold)))


def _features(pairs: Sequence[Pair]) -> NDArray[np.float32]:
    """Return the features, shape (len(pairs), 514): words of the action, words of the turn before, position, question mark."""
    import numpy as np

    action = _WORDS.embed([pair.action for pair in pairs])
    previous = _WORDS.embed([pair.context[-1].text if pair.context else "" for pair in pairs])
    other = np.array([[log1p(pair.position), float("?" in pair.action)] for pair in pairs], np.float32).reshape(-1, 2)
    return np.hstack([action * 3, previous * 3, other])  # scaled: unit vectors of words would hardly count beside the rest
