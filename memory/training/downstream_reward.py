"""The reward of E2E training: whether a trace helps with another moment, and nothing else.

The one design choice: what is downstream is measured as the harness does it, by the likelihood of a real turn: the pair stands
with its trace as the example before another moment of the same person, and what counts is how much more likely that moment's
action is than after the same example without a trace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from usertwin.memory.models.chat import Ledger
from usertwin.memory.models.scoring import Scorer
from usertwin.memory.recon.fidelity import ScoredTraces
from usertwin.memory.recon.propose import CONTEXT_TURNS
from usertwin.memory.text.transcript import action_line, current_moment, joined, past_moment
from usertwin.personas import Pair


class DownstreamReward:
    """How much likelier a trace makes what the person did at another moment, in nats per token of that action.

    Args:
        scorer: the acting model.
        later: for each pair the other moment; without one every score is 0.
    """

    floor = 0.0
    comparable = True

    def __init__(self, scorer: Scorer, later: Mapping[Pair, Pair]) -> None:
        self._scorer, self._later = scorer, later
        self.name = f"downstream gain under {scorer.name}"

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[ScoredTraces]:
        """See `Fidelity.score`."""
        return await asyncio.to_thread(self._score, pair, traces)

    def _score(self, pair: Pair, traces: Sequence[str]) -> list[ScoredTraces]:
        other = self._later.get(pair)
        if other is None:
            return [ScoredTraces(0.0) for _ in traces]
        present, action = current_moment(other, CONTEXT_TURNS), action_line(other.action)
        prompts = [joined([past_moment(pair, CONTEXT_TURNS, thought=thought), present]) for thought in (None, *traces)]
        plain, *told = self._scorer.score([(prompt, action) for prompt in prompts])
        return [ScoredTraces((one.nats - plain.nats) / plain.tokens) for one in told]
