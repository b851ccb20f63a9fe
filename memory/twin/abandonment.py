"""When a person leaves without another word: told by whether they did so in moments like this one.

The one design choice: leavings are remembered like anything else a person did, and come to mind like anything else; the twin
leaves where enough of the moments most like now ended so. How many are enough is chosen on the validation turns, such that the
twin leaves as often as the person, at most. So a leaving can be explained by the memories it came from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from usertwin.memory.store.triple_store import TripleStore
from usertwin.memory.triples import Recalled
from usertwin.personas import Pair, TwinError
from usertwin.personas.pairs import pairs_of_log

from .last_turn import LEAST_ENDINGS, fit_last_turn
from .record import ENDING, HELD_OUT, LEAVING, TwinRecord, kept_conversations

#: How many moments are looked at, and how much more the similar ones count (chosen on validation turns, see
#: evals/EXPERIMENTS.md).
NEIGHBOURS, _SHARPNESS = 32, 4


@dataclass(frozen=True, slots=True)
class AbandonmentModel:
    """When a twin leaves without another word.

    Attributes:
        threshold: from this share of leavings among the moments that came to mind on it leaves.
        f1: on the validation moments, with that threshold.
        leavings: how many leavings the memory held.
        validation_moments: how many moments the threshold was chosen on.
    """

    threshold: float
    f1: float
    leavings: int
    validation_moments: int

    def leaves(self, recalled: Sequence[Recalled]) -> bool:
        """Whether the person leaves now, by the `NEIGHBOURS` moments, spoken and left, that are most like now."""
        return abandonment_rate(recalled) >= self.threshold

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self)), "utf-8")

    @classmethod
    def load(cls, path: Path) -> AbandonmentModel | None:
        """Read it; None if there is none. TwinError if the file is damaged."""
        try:
            raw = json.loads(path.read_text("utf-8"))
            return cls(float(raw["threshold"]), float(raw["f1"]), int(raw["leavings"]), int(raw["validation_moments"]))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise TwinError(f"{path}: is damaged ({error}); learn the twin again with --overwrite") from None


def abandonment_rate(recalled: Sequence[Recalled]) -> float:
    """How much of what came to mind are leavings, 0 to 1, weighted by similarity to the fourth power."""
    weights = [max(0.0, one.similarity) ** _SHARPNESS for one in recalled]
    total = sum(weights)
    return sum(w for w, one in zip(weights, recalled, strict=True) if one.triple.pair.abandoned) / total if total else 0.0


def fit_abandonment(store: TripleStore, validation: Sequence[Pair]) -> AbandonmentModel | None:
    """Choose the threshold with which the twin leaves at most as often as the person on the validation moments.

    Returns None if the memory or these moments hold too few leavings to learn from: then the twin never leaves silently.
    """
    import numpy as np
    from sklearn.metrics import f1_score

    leavings, moments = store.stats().left, [pair for pair in validation if pair.position]
    real = np.array([pair.abandoned for pair in moments])
    if leavings < LEAST_ENDINGS or not real.any():
        return None
    found = store.recall_many(moments, NEIGHBOURS, before=[pair.when for pair in moments], left=None)
    shares = np.array([abandonment_rate(recalled) for recalled in found])
    levels = [level for level in sorted(set(shares.tolist())) if level > 0 and (shares >= level).sum() <= real.sum()]
    if not levels:
        return None
    below = shares[shares < levels[0]].max(initial=0.0)
    threshold = float(levels[0] + below) / 2  # in the middle of the gap, where leavings are easy to tell
    return AbandonmentModel(threshold, float(f1_score(real, shares >= threshold)), leavings, len(moments))


def fit_leaving_models(folder: Path, record: TwinRecord, store: TripleStore) -> None:
    """Learn anew when a twin leaves, with a last word or without, from its memory and its validation conversations."""
    held_out = [one for one in kept_conversations(folder / HELD_OUT) if one.conversation_id in record.validation]
    groups = pairs_of_log(held_out, record.recipe.speaker, window=record.recipe.window)
    # Without dates, `when` is a place in the log, and what was held out came after the corpus.
    late = 0.0 if record.dated else record.corpus_ends + 1
    validation = [replace(pair, when=pair.when + late) for pairs in groups for pair in pairs]
    corpus = [triple.pair for triple in store.triples()]
    for name, learned in ((ENDING, fit_last_turn(corpus, validation)), (LEAVING, fit_abandonment(store, validation))):
        (folder / name).unlink(missing_ok=True)
        if learned is not None:
            learned.save(folder / name)
