"""Distractors: other actions of the same person, close in length and topic to the real one.

Design: they come from the same person, so writing style gives no hint; they are similar but not near-duplicates, so a trace
without content can only guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from usertwin.memory.models.embedding import Embedder
from usertwin.memory.text.transcript import single_line
from usertwin.personas import Pair

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Number of latest actions that distractors are drawn from.
_POOL = 500
#: Cosine above which two actions count as the same.
_DUPLICATE_COSINE = 0.95


class Distractors:
    """Finds actions that a person might have taken instead.

    Args:
        pairs: the person's pairs, in time order; distractors come from the latest 500 different actions.
        embedder: measures how similar two actions are.
    """

    def __init__(self, pairs: Sequence[Pair], embedder: Embedder) -> None:
        latest_of_action: dict[str, Pair] = {}
        for pair in reversed(pairs):
            if not pair.abandoned and pair.action.strip():
                latest_of_action.setdefault(single_line(pair.action), pair)
        pool = list(latest_of_action.items())[:_POOL][::-1]
        self._pairs, self._actions = [pair for _, pair in pool], [action for action, _ in pool]
        self._embedder = embedder

    @cached_property
    def _vectors(self) -> NDArray[np.float32]:
        return self._embedder.embed([pair.action for pair in self._pairs])

    def nearest(self, pair: Pair, count: int) -> list[str]:
        """Return at most `count` other actions, best match first, ranked by cosine minus the log2 ratio of lengths.

        All are of the same speaker, none is of the pair's own conversation, and none is a near-duplicate of its action.
        """
        if not self._pairs or count < 1:
            return []
        [own] = self._embedder.embed([pair.action])
        cosines = self._vectors @ own
        action = single_line(pair.action)
        ranked: list[tuple[float, int]] = []
        for index, (other, other_action) in enumerate(zip(self._pairs, self._actions, strict=True)):
            if other.speaker != pair.speaker or other.conversation_id == pair.conversation_id:
                continue
            if cosines[index] > _DUPLICATE_COSINE or other_action == action:
                continue
            length_penalty = abs(math.log2((len(other_action) + 4) / (len(action) + 4)))
            ranked.append((length_penalty - float(cosines[index]), index))
        return [self._pairs[index].action for _, index in sorted(ranked)[:count]]
