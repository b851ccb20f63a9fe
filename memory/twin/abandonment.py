"""The model of abandonments: whether the person would leave silently, without answering the last turn.

Design: it is a nearest-neighbour model over the memory, so every abandonment can be explained by the recalled triples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from usertwin.memory.models.embedding import query_text
from usertwin.memory.store.error_messages import storage_errors
from usertwin.memory.store.triple_store import TripleStore
from usertwin.memory.text.goal_words import goal_is_mentioned
from usertwin.memory.triples import Recalled
from usertwin.personas import Pair, TwinError
from usertwin.personas.files import write_private
from usertwin.personas.pairs import group_pairs
from usertwin.personas.reading import STRICT, as_type, parse_json

from .last_turn import MIN_ENDINGS, LastTurnModel, fit_last_turn
from .record import ABANDONMENT_FILE, HELD_OUT_FILE, LAST_TURN_FILE, TwinRecord, read_stored_conversations

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Number of neighbours, and the exponent of their similarity (chosen on validation turns, see evals/EXPERIMENTS.md).
NEIGHBOURS, _EXPONENT = 32, 4
#: The share of abandonments below which the other side has not closed the conversation, whatever the threshold (see
#: evals/EXPERIMENTS.md).
_CLOSED = 0.25
#: Queries that are compared with a block of the memory at once, and candidates kept for each: ties beyond the neighbours.
_QUERIES, _CANDIDATES = 512, 64
#: Keys of the file in development snapshots before 0.1.0, and their present names.
_OLD_KEYS = {"leavings": "abandonments", "validation_moments": "validation_turns"}


@dataclass(frozen=True, slots=True)
class AbandonmentModel:
    """A threshold on the weighted share of abandonments among the recalled triples.

    Attributes:
        threshold: the twin leaves from this share on.
        f1: F1 of this threshold on the validation turns.
        abandonments: number of abandonments in the memory.
        validation_turns: number of turns on which the threshold was chosen.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    threshold: float
    f1: float
    abandonments: int
    validation_turns: int

    def leaves(self, recalled: Sequence[Recalled], query: Pair | None = None) -> bool:
        """Return whether the person leaves, given the `NEIGHBOURS` most similar triples, abandonments included.

        With a goal in the query, nobody leaves before they mentioned it, nor where more than three quarters of them stayed.
        """
        rate = abandonment_rate(recalled)
        if query is not None and query.goal and (rate < _CLOSED or not goal_is_mentioned(query, with_action=False)):
            return False
        return rate >= self.threshold

    def save(self, path: Path) -> None:
        """Write the model as JSON."""
        write_private(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> AbandonmentModel | None:
        """Read a model; return None if there is no file. TwinError if the file is damaged."""
        try:
            stored = as_type(dict[str, Any], parse_json(path.read_bytes()))
            return as_type(cls, {_OLD_KEYS.get(key, key): value for key, value in stored.items()})
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise TwinError(f"{path}: is damaged ({error}); learn the twin again with --overwrite") from None


def abandonment_rate(recalled: Sequence[Recalled]) -> float:
    """Return the share of abandonments among recalled triples, 0 to 1, weighted by similarity to the fourth power."""
    weights = [max(0.0, item.similarity) ** _EXPONENT for item in recalled]
    total = sum(weights)
    return sum(w for w, item in zip(weights, recalled, strict=True) if item.triple.pair.abandoned) / total if total else 0.0


def fit_abandonment(store: TripleStore, validation: Sequence[Pair]) -> AbandonmentModel | None:
    """Choose the threshold with which the twin leaves at most as often as the person on the validation turns.

    Returns None if the memory or these turns hold too few abandonments. Such a twin never leaves silently.
    """
    import numpy as np
    from sklearn.metrics import f1_score

    abandonments, turns = store.stats().abandoned, [pair for pair in validation if pair.position]
    actual = np.array([pair.abandoned for pair in turns])
    if abandonments < MIN_ENDINGS or not actual.any():
        return None
    rates = _abandonment_rates(store, turns)
    thresholds = [rate for rate in sorted(set(rates.tolist())) if rate > 0 and (rates >= rate).sum() <= actual.sum()]
    if not thresholds:
        return None
    below = rates[rates < thresholds[0]].max(initial=0.0)
    threshold = float(thresholds[0] + below) / 2  # the middle of the gap
    return AbandonmentModel(threshold, float(f1_score(actual, rates >= threshold)), abandonments, len(turns))


def _abandonment_rates(store: TripleStore, pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """Return `abandonment_rate` of the neighbours of each pair, of conversations that are not in the memory.

    Design: matrix products instead of one recall per pair, which takes most of the time of learning from a long log.
    """
    import numpy as np

    queries = store.embedder.embed([query_text(pair) for pair in pairs])
    times = np.array([[pair.when] for pair in pairs])
    nearest = np.zeros((len(pairs), _CANDIDATES), [("similarity", "f4"), ("moment", "f8"), ("abandoned", "?")])
    for columns, vectors in store.blocks():
        for start in range(0, len(pairs), _QUERIES):
            rows = slice(start, start + _QUERIES)
            similarity = np.where(columns["moment"] < times[rows], queries[rows] @ vectors.T, 0).clip(min=0)
            kept = min(_CANDIDATES, len(columns))
            best = np.argpartition(-similarity, kept - 1)[:, :kept]
            block = np.zeros(best.shape, nearest.dtype)
            block["similarity"] = np.take_along_axis(similarity, best, 1)
            block["moment"], block["abandoned"] = columns["moment"][best], columns["abandoned"][best]
            merged = np.hstack([nearest[rows], block])
            order = np.lexsort((-merged["moment"], -merged["similarity"]))[:, :_CANDIDATES]  # the latest of equal ones first
            nearest[rows] = np.take_along_axis(merged, order, 1)
    neighbours = nearest[:, :NEIGHBOURS]
    weights = neighbours["similarity"].astype(np.float64) ** _EXPONENT
    return (weights * neighbours["abandoned"]).sum(1) / weights.sum(1).clip(min=np.finfo(np.float64).tiny)


def fit_leaving_models(folder: Path, record: TwinRecord, store: TripleStore) -> None:
    """Fit the models of leaving with a last turn and without one, and write them; a model with too little data is removed."""
    models = zip((LAST_TURN_FILE, ABANDONMENT_FILE), leaving_models(folder, record, store), strict=True)
    with storage_errors(folder):
        for file, model in models:
            if model is None:
                (folder / file).unlink(missing_ok=True)
            else:
                model.save(folder / file)


def leaving_models(
    folder: Path, record: TwinRecord, store: TripleStore
) -> tuple[LastTurnModel | None, AbandonmentModel | None]:
    """Return the models of leaving that fit a memory and the validation turns; None for one with too little data."""
    conversations = [
        conversation
        for conversation in read_stored_conversations(folder / HELD_OUT_FILE)
        if conversation.conversation_id in record.validation
    ]
    groups = group_pairs(conversations, record.recipe.speaker, window=record.recipe.window)
    # Without dates, `when` is the index of the conversation; held-out conversations come after the corpus.
    offset = 0.0 if record.dated else record.corpus_ends + 1
    validation = [replace(pair, when=pair.when + offset) for pairs in groups for pair in pairs]
    corpus = [triple.pair for triple in store.triples()]
    return fit_last_turn(corpus, validation), fit_abandonment(store, validation)
