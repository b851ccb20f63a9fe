"""Does a twin leave when the person left: told at real moments, from all real turns before.

The one design choice: both ways of leaving count as one, with a last word or without, since to the agent they are one; the
decision is measured by F1, the probabilities behind it by how well they are calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from usertwin.evals.metrics.statistics import mean, ratio
from usertwin.evals.metrics.writing_style import brier, reliability
from usertwin.memory.twin.abandonment import NEIGHBOURS, abandonment_rate
from usertwin.personas import Pair
from usertwin.simulator import SimulatedUser


def endings(user: SimulatedUser, moments: Sequence[Pair], *, seed: int = 0) -> dict[str, Any] | None:
    """F1 of "the person leaves now, or with this turn", 2TP / (2TP + FP + FN), and the calibration of its probability.

    Args:
        user: the twin.
        moments: held-out moments, silent leavings among them.
        seed: for the interval.

    Returns:
        {"f1": an estimate, "calibration": {"brier": an estimate, "bins": see `reliability`}}; None if the twin never learned
        when to leave, or no conversation ended.
    """
    if user.ending is None and user.leaving is None:
        return None
    silent, chances = [False] * len(moments), [0.0] * len(moments)
    if user.leaving is not None:
        near = user.store.recall_many(moments, NEIGHBOURS, before=[pair.when for pair in moments], left=None)
        for place, (recalled, pair) in enumerate(zip(near, moments, strict=True)):
            if any(turn.speaker == pair.speaker for turn in pair.context):
                silent[place], chances[place] = user.leaving.leaves(recalled), abandonment_rate(recalled)
    said = list(silent)
    if user.ending is not None:
        for place, pair in enumerate(moments):
            if not pair.abandoned:
                said[place] = said[place] or user.ending.leaves(pair)
                chances[place] = max(chances[place], user.ending.probability(pair))
    hits = [2.0 * (told and pair.ends) for told, pair in zip(said, moments, strict=True)]
    costs = [hit + (told != pair.ends) for hit, told, pair in zip(hits, said, moments, strict=True)]
    f1 = ratio(hits, costs, [pair.conversation_id for pair in moments], seed=seed)
    if f1 is None:
        return None
    ended = [pair.ends for pair in moments]
    score = mean(brier(chances, ended), [pair.conversation_id for pair in moments], seed=seed)
    calibration = {"brier": score.to_json() if score else None, "bins": reliability(chances, ended)}
    return {"f1": f1.to_json(), "calibration": calibration}
