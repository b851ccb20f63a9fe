"""Other actions of the same person, to tell the real one from: as long as it, and about as near to its topic as there are.

The one design choice: they are the person's own, so that their manner of writing gives nothing away; the nearest ones that are
not from the same conversation and not nearly the same words, so that chance is all that is left to a trace without content.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from usertwin.memory.models.embedding import Embedder
from usertwin.memory.text.transcript import flat
from usertwin.personas import Pair

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: How many actions are drawn from, the latest ones.
_POOL = 500
#: Above this cosine two actions are taken for the same.
_SAME = 0.95


class Distractors:
    """Finds actions that a person might have taken instead.

    Args:
        pairs: what the person did; the latest 500 actions are drawn from.
        embedder: tells how near two actions are.
    """

    def __init__(self, pairs: Sequence[Pair], embedder: Embedder) -> None:
        kept: dict[str, Pair] = {}
        for pair in reversed(pairs):  # of what was done several times the latest
            if not pair.abandoned and pair.action.strip():
                kept.setdefault(flat(pair.action), pair)
        latest = list(kept.items())[:_POOL][::-1]
        self._pairs, self._lines = [pair for _, pair in latest], [line for line, _ in latest]
        self._embedder = embedder

    @cached_property
    def _vectors(self) -> NDArray[np.float32]:
        return self._embedder.embed([pair.action for pair in self._pairs])

    def of(self, pair: Pair, count: int) -> list[str]:
        """At most so many other actions, the best matched first: near in topic, and within about twice the length.

        All are of the same speaker, none is from the pair's own conversation, and none is nearly the same.
        """
        if not self._pairs or count < 1:
            return []
        [own] = self._embedder.embed([pair.action])
        near = self._vectors @ own
        line = flat(pair.action)
        found: list[tuple[float, int]] = []
        for place, (other, said) in enumerate(zip(self._pairs, self._lines, strict=True)):
            if other.speaker != pair.speaker or other.conversation_id == pair.conversation_id:
                continue
            if near[place] > _SAME or said == line:
                continue
            found.append((float(near[place]) - abs(math.log2((len(said) + 4) / (len(line) + 4))), place))
        found.sort(key=lambda one: (-one[0], one[1]))
        return [self._pairs[place].action for _, place in found[:count]]
