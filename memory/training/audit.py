"""Audits of a policy on fixed validation pairs, and the rule that stops a training when its traces leak the action.

Design: the detector (guards.py, `reveal_margin`) is in no reward. Training against a detector teaches evasion
(arXiv 2601.23086). But it asks the scorer of the reward, since a second model would double the time of an audit; the final
measurement asks another model where one is named. The pairs are the same each time, so margins are compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.models.scoring import Scorer
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import CHOICES, gains
from usertwin.memory.recon.guards import LEAK_REASONS, reveal_margin
from usertwin.memory.recon.propose import ProposalMode, sees_action
from usertwin.memory.text.words import word_tokens
from usertwin.personas import Pair

from .dataset import TrainingExample
from .policy import write_traces

#: Significance level of the one-sided test against the untrained policy. Low, because every audit tests again. An audit of 64
#: pairs sees a share of revealing traces that rises from 0.15 to 0.30 in 83% to 98% of simulations, one of 32 in 48% to 76%.
SIGNIFICANCE = 0.01

Guard = Callable[[str, Pair], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceQuality:
    """Quality of the traces of one writer for one held-out pair.

    Attributes:
        label: log and person of the pair.
        conversation: conversation id of the pair.
        guarded_gain: mean over the traces that pass the guards, in nats per token of the action; None if none passes.
        leak_rate: share of traces that a guard rejects for a leak.
        rejection_rate: share of traces that any guard rejects.
        reveals_action: whether the first trace alone identifies the action.
        reveal_margin: by how many nats it favours the action over the best other action; None if there is none, or no trace.
        words: mean words per trace.
    """

    label: str
    conversation: str
    guarded_gain: float | None
    leak_rate: float
    rejection_rate: float
    reveals_action: bool
    words: float
    reveal_margin: float | None = None


def measure_traces(
    example: TrainingExample,
    traces_by_writer: Sequence[Sequence[str]],
    scorer: Scorer,
    detector: Scorer,
    distractors: Sequence[str],
    guard: Guard,
    *,
    saw_action: bool = True,
) -> list[TraceQuality]:
    """Return the quality of the traces of several writers for one pair; all are scored in one call, since they share a context.

    Args:
        example: the pair.
        traces_by_writer: for each writer, at least one trace.
        scorer: computes the gain.
        detector: decides whether a trace alone identifies the action.
        distractors: other actions of the person.
        guard: returns the name of the guard that rejects a trace, or None.
        saw_action: whether the action was in the prompt of the traces; without it, the guarded gain is the whole gain.
    """
    pair = example.pair
    reasons = {trace: guard(trace, pair) for traces in traces_by_writer for trace in traces}
    accepted = [trace for trace, reason in reasons.items() if reason is None]
    part = "guarded_gain" if saw_action else "gain"
    gain = {trace: parts[part] for trace, parts in zip(accepted, gains(scorer, pair, accepted), strict=True)}
    qualities: list[TraceQuality] = []
    for traces in traces_by_writer:
        margin = reveal_margin(detector, pair, traces[0], distractors) if traces[0] else None
        qualities.append(
            TraceQuality(
                label=example.label,
                conversation=pair.conversation_id,
                guarded_gain=_mean(gain.get(trace) for trace in traces),
                leak_rate=fmean(reasons[trace] in LEAK_REASONS for trace in traces),
                rejection_rate=fmean(reasons[trace] is not None for trace in traces),
                reveals_action=margin is not None and margin > 0,
                words=fmean(len(word_tokens(trace)) for trace in traces),
                reveal_margin=margin,
            )
        )
    return qualities


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Means over the traces that a policy writes for the validation pairs; see `TraceQuality`.

    `n` counts the pairs; `margins` holds `TraceQuality.reveal_margin` of each, and is empty in an audit of an earlier version.
    """

    n: int
    guarded_gain: float | None = None
    leak_rate: float
    rejection_rate: float
    reveals_action: float
    words: float
    margins: tuple[float | None, ...] = ()


class Auditor:
    """Audits a policy on the same pairs with the same seed.

    Args:
        examples: the pairs.
        scorer: computes gains, and detects actions that a trace reveals.
        distractors: for each label, finds other actions of that person.
        guard: returns the name of the guard that rejects a trace, or None.
        style: prompt style of the policy.
        proposal_mode: "backward" or "forward".
        seed: seed of the sampled traces.
    """

    def __init__(
        self,
        examples: Sequence[TrainingExample],
        scorer: Scorer,
        distractors: Mapping[str, Distractors],
        guard: Guard,
        style: PromptStyle,
        proposal_mode: ProposalMode,
        seed: int,
    ) -> None:
        self._examples, self._scorer, self._guard, self._seed = list(examples), scorer, guard, seed
        self._style: PromptStyle = style
        self._proposal_mode: ProposalMode = proposal_mode
        self._distractors = [distractors[example.label].nearest(example.pair, CHOICES - 1) for example in self._examples]

    def __call__(self, model: Any, tokenizer: Any) -> Audit:
        """Sample one trace for each pair from the policy, and audit them."""
        pairs = [example.pair for example in self._examples]
        written = write_traces(model, tokenizer, pairs, self._style, self._proposal_mode, seed=self._seed)
        return self.audit([trace for trace, _, _ in written])

    def audit(self, traces: Sequence[str]) -> Audit:
        """Return the audit of existing traces, one for each pair, in order."""
        rows = [
            measure_traces(
                example, [[trace]], self._scorer, self._scorer, distractors, self._guard,
                saw_action=sees_action(self._proposal_mode),
            )[0]
            for example, distractors, trace in zip(self._examples, self._distractors, traces, strict=True)
        ]  # fmt: skip
        return Audit(
            n=len(rows),
            guarded_gain=_mean(row.guarded_gain for row in rows),
            leak_rate=fmean(row.leak_rate for row in rows),
            rejection_rate=fmean(row.rejection_rate for row in rows),
            reveals_action=fmean(row.reveals_action for row in rows),
            words=fmean(row.words for row in rows),
            margins=tuple(row.reveal_margin for row in rows),
        )


def reason_to_stop(first: Audit, latest: Audit) -> str | None:
    """Return why training must stop after the latest audit, or None while a rise of `reveals_action` may be chance.

    The margins of the same pairs are compared by Wilcoxon's signed-rank test, which sees far more than the shares would.
    """
    from scipy.stats import wilcoxon

    pairs = [(a, b) for a, b in zip(first.margins, latest.margins, strict=False) if a is not None and b is not None]
    rises = [after - before for before, after in pairs if after != before]
    if not rises or latest.reveals_action <= first.reveals_action:
        return None
    p_value = float(wilcoxon(rises, alternative="greater").pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    if p_value >= SIGNIFICANCE:
        return None
    before, after = round(first.reveals_action * first.n), round(latest.reveals_action * latest.n)
    return (
        f"the audit rises: {after} of {latest.n} traces alone identify the action, {before} of {first.n} did before training "
        f"(one-sided Wilcoxon test of {len(pairs)} pairs, p = {p_value:.2g}); the traces begin to carry the action"
    )
