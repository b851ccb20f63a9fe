"""When a person leaves with a last word: learned from where their real conversations ended so.

The one design choice: whether a turn is a person's last one is read off its words, the words it answers and how far the
conversation has come, by a logistic regression on hashed words (scikit-learn) that is fitted on the corpus, gets its
threshold on the validation turns, and is kept as plain numbers in JSON; so it serves every model that acts for the twin.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, log1p
from pathlib import Path
from typing import TYPE_CHECKING

from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.personas import Pair, TwinError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WORDS = FakeEmbedder(256)
_FEATURES = 2 * _WORDS.dimension + 2
#: Fewer real endings than this teach nothing.
LEAST_ENDINGS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LastTurnModel:
    """The probability that a turn is the person's last.

    Attributes:
        weights: one for each feature.
        bias: added to their sum.
        threshold: from this probability on the twin leaves.
        f1: on the validation turns, with that threshold; None if none of them is an ending.
        endings: how many real endings it was fitted on.
        validation_turns: how many turns the threshold was chosen on.
    """

    weights: tuple[float, ...]
    bias: float
    threshold: float
    f1: float | None
    endings: int
    validation_turns: int

    def probability(self, pair: Pair) -> float:
        """The probability, 0 to 1, that this action is the last thing the person says."""
        total = self.bias + float(_features([pair])[0] @ _vector(self.weights))
        return 1.0 / (1.0 + exp(-max(-60.0, min(60.0, total))))

    def leaves(self, pair: Pair) -> bool:
        """Whether the person leaves with this action."""
        return self.probability(pair) >= self.threshold

    def save(self, path: Path) -> None:
        """Write the model as JSON."""
        path.write_text(json.dumps(asdict(self)), "utf-8")

    @classmethod
    def load(cls, path: Path) -> LastTurnModel | None:
        """Read a model; None if there is none. TwinError if the file is damaged."""
        try:
            raw = json.loads(path.read_text("utf-8"))
            weights = tuple(float(w) for w in raw["weights"])
            if len(weights) != _FEATURES:
                raise ValueError(f"{len(weights)} weights instead of {_FEATURES}")
            return cls(**raw | {"weights": weights})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise TwinError(f"{path}: is damaged ({error}); learn the twin again with --overwrite") from None


def fit_last_turn(corpus: Sequence[Pair], validation: Sequence[Pair]) -> LastTurnModel | None:
    """Fit on the corpus, and choose the threshold with which the twin leaves as often as the person on the validation turns.

    (A threshold with the best F1 leaves far too often where endings are hard to tell, and a twin that leaves too early is
    what users of simulators complain about most.)

    Returns None if the corpus has fewer than `LEAST_ENDINGS` endings, or nothing else: then the twin never leaves.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    corpus, validation = ([pair for pair in pairs if not pair.abandoned] for pairs in (corpus, validation))
    ends = np.array([pair.ends_conversation for pair in corpus])
    if int(ends.sum()) < LEAST_ENDINGS or ends.all():
        return None
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(_features(corpus), ends)
    weights = tuple(round(float(w), 6) for w in fitted.coef_[0])
    model = LastTurnModel(
        weights=weights,
        bias=float(fitted.intercept_[0]),
        threshold=0.5,
        f1=None,
        endings=int(ends.sum()),
        validation_turns=len(validation),
    )
    held = np.array([pair.ends_conversation for pair in validation])
    if not held.any():
        return model
    chances = np.array([model.probability(pair) for pair in validation])  # of the model as kept: a threshold is met exactly
    ranked = np.sort(chances)[::-1]
    last, next_one = ranked[int(held.sum()) - 1], ranked[min(int(held.sum()), len(ranked) - 1)]
    threshold = float(last + next_one) / 2  # in the middle of the gap, where endings are easy to tell
    return replace(model, threshold=threshold, f1=float(f1_score(held, chances >= threshold)))


def _features(pairs: Sequence[Pair]) -> NDArray[np.float32]:
    """Shape (len(pairs), 514): words of the action, words it answers, log of the turns so far, whether it is a question."""
    import numpy as np

    said = _WORDS.embed([pair.action for pair in pairs])
    heard = _WORDS.embed([pair.context[-1].text if pair.context else "" for pair in pairs])
    rest = np.array([[log1p(pair.position), float("?" in pair.action)] for pair in pairs], np.float32)
    return np.hstack([said * 3, heard * 3, rest])  # the words, as unit vectors, would else hardly count beside the rest


def _vector(weights: Sequence[float]) -> NDArray[np.float32]:
    import numpy as np

    return np.asarray(weights, np.float32)
