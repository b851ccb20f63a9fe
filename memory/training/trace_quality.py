"""Traces of a held-out pair, looked at: what they gain, whether they leak, whether they give the action away.

The one design choice: it is one function for the audits of a training and for what is measured at its end, so that what is
watched is what is reported; a trace that a guard rejects gains nothing, as a twin would have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from usertwin.memory.models.scoring import Scorer
from usertwin.memory.recon.fidelity import gains
from usertwin.memory.recon.guards import LEAKS, reveals_action
from usertwin.memory.text.words import word_tokens
from usertwin.personas import Pair

from .dataset import TrainingExample


@dataclass(frozen=True, slots=True)
class TraceQuality:
    """The traces that one writer has written for a held-out pair, looked at.

    Attributes:
        label: whose pair it is.
        conversation: from which conversation.
        novel: the guarded gain, in nats per token of the action, the mean over the traces.
        leaks: the share that a guard rejects for a leak.
        rejected: the share that any guard rejects.
        gives_away: whether the action can be told from the first of them alone.
        words: of a trace, on average.
    """

    label: str
    conversation: str
    novel: float
    leaks: float
    rejected: float
    gives_away: bool
    words: float


def measure_traces(
    one: TrainingExample,
    written: Sequence[Sequence[str]],
    scorer: Scorer,
    detector: Scorer,
    others: Sequence[str],
    guard: Callable[[str, Pair], str | None],
) -> list[TraceQuality]:
    """Look at the traces that several writers have written for a pair; all together, since they share its context.

    Args:
        one: the pair.
        written: for each writer, its traces; at least one.
        scorer: for the gain.
        detector: is asked whether the trace gives the action away.
        others: other actions of the person.
        guard: the name of the guard that rejects a trace, or None.
    """
    reasons = {trace: guard(trace, one.pair) for traces in written for trace in traces}
    passed = [trace for trace, why in reasons.items() if why is None]
    novel = {trace: parts["novel"] for trace, parts in zip(passed, gains(scorer, one.pair, passed), strict=True)}
    return [
        TraceQuality(
            label=one.label,
            conversation=one.pair.conversation_id,
            novel=fmean(novel.get(trace, 0.0) for trace in traces),
            leaks=fmean(reasons[trace] in LEAKS for trace in traces),
            rejected=fmean(reasons[trace] is not None for trace in traces),
            gives_away=bool(traces[0]) and reveals_action(detector, one.pair, traces[0], others),
            words=fmean(len(word_tokens(trace)) for trace in traces),
        )
        for traces in written
    ]
