"""A remembered turn of the same person beside each held-out turn, for the controls of the discriminators.

A control asks whether a discriminator separates turns that nothing but chance separates. So the remembered turns must be an
independent sample of what the held-out turns are a sample of.

Design: each held-out conversation has remembered conversations of its own, so folds by conversation never train on a remembered
conversation that they score. Turns are drawn in random order from all that are remembered: drawing conversations first would
give the turns of short ones too much weight.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from usertwin.personas import Pair


def past_turns(held_out: Sequence[Pair], remembered: Iterable[Pair], *, seed: int) -> dict[tuple[str, int], Pair]:
    """Return a remembered pair for each held-out pair, by its conversation and position; without those left over.

    Each remembered pair is taken at most once, and the pairs of a remembered conversation for one held-out conversation only.
    """
    rng = random.Random(f"{seed}/past turns")
    waiting: dict[str, list[Pair]] = {}
    for pair in rng.sample(held_out, len(held_out)):
        waiting.setdefault(pair.conversation_id, []).append(pair)
    candidates = [pair for pair in remembered if not pair.abandoned]
    owners: dict[str, str] = {}
    taken: dict[tuple[str, int], Pair] = {}
    for candidate in rng.sample(candidates, len(candidates)):
        if not waiting:
            break
        if candidate.conversation_id not in owners:
            owners[candidate.conversation_id] = max(waiting, key=lambda conversation: len(waiting[conversation]))
        own = waiting.get(owners[candidate.conversation_id], [])
        if own:
            pair = own.pop()
            taken[pair.conversation_id, pair.position] = candidate
            if not own:
                del waiting[pair.conversation_id]
    return taken
