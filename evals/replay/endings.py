"""Endings: whether a twin leaves a conversation when the person left, after the real turns.

Design: leaving with a last turn and without one count alike, since the agent cannot tell them apart. The decision is measured
by F1, its probability by calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from usertwin.evals.metrics.statistics import mean, optional_json, ratio
from usertwin.evals.metrics.writing_style import reliability_table, squared_errors
from usertwin.memory import TripleStore
from usertwin.memory.twin.abandonment import NEIGHBOURS, AbandonmentModel, abandonment_rate, leaving_models
from usertwin.memory.twin.last_turn import LastTurnModel
from usertwin.personas import Pair
from usertwin.simulator import SimulatedUser


def measure_endings(user: SimulatedUser, folder: Path, pairs: Sequence[Pair]) -> dict[str, Any] | None:
    """Return the F1 of "the person leaves now, or with this turn", and the calibration of its probability.

    `folder` is the twin's. The models of leaving must not know what came after the held-out pairs: if pairs were added to the
    memory later, models are fitted without these. The held-out pairs include abandoned ones.

    The result is {"f1": an estimate of 2TP / (2TP + FP + FN), "calibration": {"brier": an estimate, "bins": see
    `reliability_table`}}; None without a model of leaving, or without an ended conversation.
    """
    last_turn, abandonment = _fitted_before(user, folder, pairs)
    if last_turn is None and abandonment is None:
        return None
    leaves, probabilities = [False] * len(pairs), [0.0] * len(pairs)
    if abandonment is not None:
        matches = user.store.recall_many(pairs, NEIGHBOURS, before=[pair.when for pair in pairs], abandoned=None)
        for place, (recalled, pair) in enumerate(zip(matches, pairs, strict=True)):
            if any(turn.speaker == pair.speaker for turn in pair.context):
                leaves[place], probabilities[place] = abandonment.leaves(recalled, pair), abandonment_rate(recalled)
    if last_turn is not None:
        for place, pair in enumerate(pairs):
            if not pair.abandoned:
                leaves[place] = leaves[place] or last_turn.leaves(pair)
                probabilities[place] = max(probabilities[place], last_turn.probability(pair))
    ended = [pair.ends_conversation for pair in pairs]
    conversations = [pair.conversation_id for pair in pairs]
    true_positives = [2.0 * (predicted and real) for predicted, real in zip(leaves, ended, strict=True)]
    totals = [hit + (predicted != real) for hit, predicted, real in zip(true_positives, leaves, ended, strict=True)]
    f1 = ratio(true_positives, totals, conversations, share=True)
    if f1 is None:
        return None
    brier = optional_json(mean(squared_errors(probabilities, ended), conversations))
    return {"f1": f1.to_json(), "calibration": {"brier": brier, "bins": reliability_table(probabilities, ended)}}


def _fitted_before(
    user: SimulatedUser, folder: Path, pairs: Sequence[Pair]
) -> tuple[LastTurnModel | None, AbandonmentModel | None]:
    """Return the twin's models of leaving, or models without the pairs later than the first held-out one, if there are any."""
    triples, first = list(user.store.triples()), min((pair.when for pair in pairs), default=float("inf"))
    earlier = [triple for triple in triples if triple.pair.when < first]
    if len(earlier) == len(triples):
        return user.last_turn, user.abandonment
    with closing(TripleStore(None, user.store.embedder)) as store:
        store.add(earlier)
        return leaving_models(folder, user.record, store)
