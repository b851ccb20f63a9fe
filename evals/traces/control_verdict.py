"""The verdict on control traces: a table of gains, and the decision whether a score is more than leakage.

All functions are pure functions of the measured pairs, with intervals by conversation, so that the decision can be recomputed
from the file that `usertwin controls --json` writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from usertwin.evals.metrics.rank_correlation import partial_spearman
from usertwin.evals.metrics.statistics import Estimate, mean
from usertwin.memory.recon.synthesizer import rank_candidates
from usertwin.memory.triples import Candidate
from usertwin.personas import Pair

CONTROLS = ("own", "filler", "copy", "paraphrase", "shuffled", "other", "bag", "keywords", "swapped", "forward")
#: Controls that are audited (does the trace alone reveal the action?); an audit takes sixteen scorings.
AUDITED_CONTROLS = ("own", "copy", "paraphrase", "other")
#: Controls that the own trace must beat for its score to be more than leakage.
RIVALS = ("shuffled", "other", "bag", "keywords")
#: Selection methods that are compared downstream.
Chooser = Literal["recon", "random", "longest", "backward"]
CHOOSERS: tuple[Chooser, ...] = get_args(Chooser)


@dataclass(kw_only=True, frozen=True, slots=True)
class TraceScores:
    """The scores of one control trace of one pair.

    Attributes:
        trace: the trace.
        gain: nats per token of the action; see `memory.recon.fidelity.gains`.
        guarded_gain: the gain without words copied from the action.
        rejected: the guard that rejects the trace, or None.
        reveals_action: whether the trace alone reveals the action; None if that was not audited.
        slot: the gain of filler text over no text.
    """

    trace: str
    gain: float
    guarded_gain: float
    rejected: str | None
    reveals_action: bool | None
    slot: float = 0.0


@dataclass(slots=True)
class ControlledTurn:
    """A held-out pair with the scores of its control traces.

    Attributes:
        pair: the pair.
        other_action: another action of the person, which the swapped trace was written for; "" if there is none.
        scores: the scores of each control trace, by name.
        contrast: how much the own and the swapped trace each favour their own action, in nats per token; None without both.
    """

    pair: Pair
    other_action: str
    scores: dict[str, TraceScores] = field(default_factory=dict[str, TraceScores])
    contrast: float | None = None


@dataclass(frozen=True, slots=True)
class ContextScores:
    """A proposal for a past pair, and its benefit when it is shown in the context of a later pair.

    Attributes:
        candidate: the proposal with its score on the past pair.
        overlap: longest word run copied from the past action, as a share of the action.
        words: length of the trace in words.
        benefit: bits per character of the later action that are saved by showing the trace.
    """

    candidate: Candidate
    overlap: float
    words: int
    benefit: float


def summarize_controls(
    turns: Sequence[ControlledTurn], downstream: Sequence[tuple[Pair, Sequence[ContextScores]]], seed: int
) -> dict[str, Any]:
    """Return all measurements and the decision as JSON values."""
    rows = {name: row for name in CONTROLS if (row := _row(turns, name)) is not None}
    contrasts = [turn for turn in turns if turn.contrast is not None]
    summary: dict[str, Any] = {
        "controls": rows,
        "own_minus": {name: _json(_own_minus(turns, name)) for name in rows if name != "own"},
        "swap_contrast": _json(mean([turn.contrast or 0.0 for turn in contrasts], _conversations(contrasts))),
        "validity": _json(_validity(downstream)),
        "downstream": {name: _json(_mean_benefit(downstream, name)) for name in CHOOSERS},
        "selection": {f"recon - {name}": _json(_recon_minus(downstream, name)) for name in CHOOSERS if name != "recon"},
        "turns": len(turns),
        "conversations": len(set(_conversations(turns))),
        "downstream_turns": len(downstream),
        "seed": seed,
    }
    return summary | {"decision": decide(summary), "turn_details": [_turn_json(turn) for turn in turns]}


def _turn_json(turn: ControlledTurn) -> dict[str, Any]:
    return {
        "conversation_id": turn.pair.conversation_id,
        "position": turn.pair.position,
        "action": turn.pair.action,
        "other_action": turn.other_action,
        "contrast": turn.contrast,
        "traces": {name: asdict(scores) for name, scores in turn.scores.items()},
    }


def decide(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Decide whether the score is more than leakage: return each condition with whether it holds, and whether all hold.

    (1) The guarded gain of the own trace exceeds that of the shuffled, the other person's, the bag-of-words and the keyword
    trace. (2) A trace for another action lowers this action and raises the other. (3) The guarded gain predicts the benefit
    downstream, with overlap and length controlled for. (4) Selection by it beats random and longest downstream. Each condition
    needs a 95% interval above 0. It is None where there is no interval; then the decision is None, or False if another fails.
    """
    conditions = {f"own beats {name}": _above_zero(summary["own_minus"].get(name)) for name in RIVALS}
    conditions["a swapped trace moves the other action"] = _above_zero(summary["swap_contrast"])
    conditions["the score predicts the benefit downstream"] = _above_zero(summary["validity"])
    for name in ("random", "longest"):
        conditions[f"choosing by score beats {name}"] = _above_zero(summary["selection"][f"recon - {name}"])
    failed, open_ = False in conditions.values(), None in conditions.values()
    return {"conditions": conditions, "more_than_leakage": False if failed else None if open_ else True}


def _above_zero(estimate: Mapping[str, Any] | None) -> bool | None:
    return None if estimate is None or estimate["low"] is None else estimate["low"] > 0


def _row(turns: Sequence[ControlledTurn], name: str) -> dict[str, Any] | None:
    """Return one row of the table: the mean gains of a control, and how many of its traces are rejected and why."""
    present = [turn for turn in turns if name in turn.scores]
    if not present:
        return None
    scores, conversations = [turn.scores[name] for turn in present], _conversations(present)
    passing = [turn for turn in present if turn.scores[name].rejected is None]
    # The mean of two means, over traces that reveal the action and those that do not, as in LAS: leaks get no more weight.
    by_leak = [[score.gain for score in scores if score.reveals_action is leaks] for leaks in (True, False)]
    audited = name in AUDITED_CONTROLS
    return {
        "gain": _json(mean([score.gain for score in scores], conversations)),
        "guarded_gain": _json(mean([score.guarded_gain for score in scores], conversations)),
        "passing_gain": _json(mean([turn.scores[name].guarded_gain for turn in passing], _conversations(passing))),
        "rejected": len(present) - len(passing),
        "reasons": dict(Counter(score.rejected for score in scores if score.rejected is not None)),
        "reveals_action": sum(score.reveals_action or 0 for score in scores) if audited else None,
        "slot": _json(mean([score.slot for score in scores], conversations)),
        "gain_by_leak_mean": _mean_of_means(by_leak) if audited else None,
        "n": len(present),
    }


def _mean_of_means(groups: Sequence[Sequence[float]]) -> float:
    means = [sum(group) / len(group) for group in groups if group]
    return sum(means) / max(1, len(means))


def _own_minus(turns: Sequence[ControlledTurn], name: str) -> Estimate | None:
    """Return the guarded gain of the own trace minus that of a control, paired by turn."""
    present = [turn for turn in turns if name in turn.scores and "own" in turn.scores]
    differences = [turn.scores["own"].guarded_gain - turn.scores[name].guarded_gain for turn in present]
    return mean(differences, _conversations(present))


def _selected_benefit(proposals: Sequence[ContextScores], chooser: Chooser) -> float:
    """Return the benefit of the trace that a method selects; for "random" the mean benefit."""
    if chooser == "random":
        return sum(proposal.benefit for proposal in proposals) / len(proposals)
    [best, *_] = rank_candidates([replace(proposal.candidate, rejected_by=None) for proposal in proposals], chooser)
    return next(proposal.benefit for proposal in proposals if proposal.candidate.trace == best.trace)


def _mean_benefit(downstream: Sequence[tuple[Pair, Sequence[ContextScores]]], chooser: Chooser) -> Estimate | None:
    conversations = [pair.conversation_id for pair, _ in downstream]
    return mean([_selected_benefit(proposals, chooser) for _, proposals in downstream], conversations)


def _recon_minus(downstream: Sequence[tuple[Pair, Sequence[ContextScores]]], chooser: Chooser) -> Estimate | None:
    conversations = [pair.conversation_id for pair, _ in downstream]
    differences = [_selected_benefit(proposals, "recon") - _selected_benefit(proposals, chooser) for _, proposals in downstream]
    return mean(differences, conversations)


def _validity(downstream: Sequence[tuple[Pair, Sequence[ContextScores]]]) -> Estimate | None:
    """Return the partial rank correlation of score and benefit over all proposals, controlling for overlap and length."""
    rows = [(pair.conversation_id, proposal) for pair, proposals in downstream for proposal in proposals]
    return partial_spearman(
        [proposal.candidate.score or 0.0 for _, proposal in rows],
        [proposal.benefit for _, proposal in rows],
        [[proposal.overlap, float(proposal.words)] for _, proposal in rows],
        [conversation for conversation, _ in rows],
    )


def _conversations(turns: Sequence[ControlledTurn]) -> list[str]:
    return [turn.pair.conversation_id for turn in turns]


def _json(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_json()
