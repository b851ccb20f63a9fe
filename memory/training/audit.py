"""Watching a training: its curves, an audit of held-out pairs, and the decision to stop when traces begin to cheat.

The one design choice: the audit asks a detector that is in no reward (can the action be told from the trace alone, guards.py's
`gives_away`) about the same few pairs each time, so that what rises is the policy's doing; training stops where it has risen
by more than chance allows. What trains against a detector learns to hide from it (arXiv 2601.23086), so it never does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from usertwin.memory.models.chat import Style
from usertwin.memory.models.scoring import Scorer
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import CHOICES
from usertwin.memory.recon.propose import ProposalMode
from usertwin.personas import Pair

from .dataset import TrainingExample
from .policy import write_traces
from .trace_quality import measure_traces

#: The audit has risen if chance would do as much less often than this, compared with the untrained policy's (Fisher's exact
#: test, one-sided); small, since it is asked at every audit.
CHANCE = 0.01


@dataclass(frozen=True, slots=True)
class Audit:
    """What a policy writes for the watched pairs.

    Attributes:
        n: pairs.
        novel: the mean guarded gain, in nats per token of the action; 0 for a trace that a guard rejects.
        leak_rate: the share of traces that a guard rejects for a leak.
        rejected: the share that any guard rejects.
        gives_away: the share of traces from which alone the action can be told.
        words: of a trace, on average.
    """

    n: int
    novel: float
    leak_rate: float
    rejected: float
    gives_away: float
    words: float


class Auditor:
    """Audits a policy on the same pairs, with the same seed.

    Args:
        lessons: the pairs.
        scorer: for gain and audit.
        distractors: of each person, by label: other actions, for the audit.
        guard: the name of the guard that rejects a trace, or None.
        style: how the policy is prompted.
        how: likewise.
        seed: for what it writes.
    """

    def __init__(
        self,
        lessons: Sequence[TrainingExample],
        scorer: Scorer,
        distractors: Mapping[str, Distractors],
        guard: Callable[[str, Pair], str | None],
        style: Style,
        how: ProposalMode,
        seed: int,
    ) -> None:
        self.lessons, self._scorer, self._guard = list(lessons), scorer, guard
        self._style: Style = style
        self._how: ProposalMode = how
        self._seed = seed
        self._others = [distractors[one.label].of(one.pair, CHOICES - 1) for one in self.lessons]

    def __call__(self, model: Any, tokenizer: Any) -> Audit:
        """Have the policy write a trace for each pair, and look at them."""
        written = write_traces(
            model, tokenizer, [one.pair for one in self.lessons], self._style, self._how, seed=self._seed
        )  # fmt: skip
        return self.audit([trace for trace, _, _ in written])

    def audit(self, traces: Sequence[str]) -> Audit:
        """An audit of traces that are there already, one for each pair."""
        looked = [
            measure_traces(one, [[trace]], self._scorer, self._scorer, others, self._guard)[0]
            for one, others, trace in zip(self.lessons, self._others, traces, strict=True)
        ]
        return Audit(
            n=len(looked),
            novel=fmean(one.novel for one in looked),
            leak_rate=fmean(one.leaks for one in looked),
            rejected=fmean(one.rejected for one in looked),
            gives_away=fmean(one.gives_away for one in looked),
            words=fmean(one.words for one in looked),
        )


def reason_to_stop(first: Audit, now: Audit) -> str | None:
    """Why a training is to stop after this audit, or None: the audit has risen by more than chance allows."""
    from scipy.stats import fisher_exact

    before, after = round(first.gives_away * first.n), round(now.gives_away * now.n)
    found: Any = fisher_exact([[after, now.n - after], [before, first.n - before]], alternative="greater")
    if float(found.pvalue) >= CHANCE:
        return None
    return (
        f"the audit rises: from {after} of {now.n} traces alone the action can be told, it was {before} of {first.n} before "
        f"training (chance does as much with a probability of {float(found.pvalue):.2g}); the traces begin to carry the action"
    )
