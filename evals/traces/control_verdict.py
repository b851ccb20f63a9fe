"""What control traces tell: a table of gains, and the decision whether a score is more than leakage.

The one design choice: everything is a pure function of what was measured at each moment, with intervals by conversation, so
that the decision can be followed from the table and made again from the file that `usertwin controls --json` writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from usertwin.evals.metrics.statistics import Estimate, mean, partial_spearman
from usertwin.memory.recon.synthesizer import in_order
from usertwin.memory.triples import Candidate
from usertwin.personas import Pair

CONTROLS = ("own", "filler", "copy", "paraphrase", "shuffled", "other", "bag", "keywords", "swapped", "forward")
#: Which are asked whether they give the action away without the context; that takes sixteen scorings each.
PROBED = ("own", "copy", "paraphrase", "other")
#: What the own trace must beat, by the decision rule, for its score to be more than leakage.
RIVALS = ("shuffled", "other", "bag", "keywords")
#: Ways of choosing among the proposals of a past moment that are compared downstream.
Chooser = Literal["recon", "random", "longest", "backward"]
CHOOSERS: tuple[Chooser, ...] = get_args(Chooser)


@dataclass(frozen=True, slots=True)
class TraceScores:
    """A control trace of one moment: its gain, the guard that rejects it, whether it gives the action away, and the slot."""

    trace: str
    gain: float
    novel: float
    rejected: str | None
    gives_away: bool | None
    slot: float = 0.0


@dataclass(slots=True)
class ControlledTurn:
    """A held-out moment with its control traces, and the other action that some were written for."""

    pair: Pair
    other_action: str
    told: dict[str, TraceScores] = field(default_factory=dict[str, TraceScores])
    contrast: float | None = None


@dataclass(frozen=True, slots=True)
class ContextScores:
    """A proposal for a past moment: its score there, and what showing it is worth at a later moment (bits per character)."""

    candidate: Candidate
    overlap: float
    words: int
    benefit: float


def result(
    moments: Sequence[ControlledTurn], downstream: Sequence[tuple[Pair, Sequence[ContextScores]]], seed: int
) -> dict[str, Any]:
    """Everything that was measured, and the decision, as JSON values."""
    rows = {name: row for name in CONTROLS if (row := _row(moments, name, seed)) is not None}
    against = {name: _json(_against(moments, name, seed)) for name in CONTROLS if name != "own" and name in rows}
    contrast = [moment for moment in moments if moment.contrast is not None]
    worth = {name: _json(_worth(downstream, name, seed)) for name in CHOOSERS}
    beats = {f"recon - {name}": _json(_beats(downstream, name, seed)) for name in CHOOSERS if name != "recon"}
    found: dict[str, Any] = {
        "controls": rows,
        "own_minus": against,
        "swap_contrast": _json(mean([m.contrast or 0.0 for m in contrast], _where(contrast), seed=seed)),
        "validity": _json(_validity(downstream, seed)),
        "downstream": worth,
        "selection": beats,
        "turns": len(moments),
        "conversations": len(set(_where(moments))),
        "downstream_turns": len(downstream),
        "seed": seed,
    }
    return found | {"decision": decision(found), "moments": [_moment_json(moment) for moment in moments]}


def _moment_json(moment: ControlledTurn) -> dict[str, Any]:
    return {
        "conversation_id": moment.pair.conversation_id,
        "position": moment.pair.position,
        "action": moment.pair.action,
        "other_action": moment.other_action,
        "contrast": moment.contrast,
        "traces": {name: asdict(told) for name, told in moment.told.items()},
    }


def decision(found: Mapping[str, Any]) -> dict[str, Any]:
    """Is the score more than leakage? Each condition with whether it holds, and all of them together.

    (1) the own trace beats shuffled, another person's, bag of words and keywords on words it has not from the action; (2) a
    trace for another action lowers this one and raises that; (3) the guarded score predicts what a trace is worth downstream,
    overlap and length apart; (4) choosing by it beats random and longest downstream. Each with a 95% interval above 0.
    """
    conditions = {f"own beats {name}": _above_zero(found["own_minus"].get(name)) for name in RIVALS}
    conditions["a swapped trace moves the other action"] = _above_zero(found["swap_contrast"])
    conditions["the score predicts the benefit downstream"] = _above_zero(found["validity"])
    for name in ("random", "longest"):
        conditions[f"choosing by score beats {name}"] = _above_zero(found["selection"][f"recon - {name}"])
    return {"conditions": conditions, "more_than_leakage": all(conditions.values())}


def _above_zero(estimate: Mapping[str, Any] | None) -> bool:
    return estimate is not None and estimate["low"] is not None and estimate["low"] > 0


def _row(moments: Sequence[ControlledTurn], name: str, seed: int) -> dict[str, Any] | None:
    """One control: its mean gain, its novel gain, that of what no guard rejects, and how much is rejected and why."""
    have = [moment for moment in moments if name in moment.told]
    if not have:
        return None
    told, where = [moment.told[name] for moment in have], _where(have)
    passed = [moment for moment in have if moment.told[name].rejected is None]
    # Averaged over traces that give the action away and those that do not, as LAS does, so that leaks weigh no more.
    by_leak = [[one.gain for one in told if one.gives_away is kind] for kind in (True, False)]
    return {
        "gain": _json(mean([one.gain for one in told], where, seed=seed)),
        "novel": _json(mean([one.novel for one in told], where, seed=seed)),
        "guarded": _json(mean([moment.told[name].novel for moment in passed], _where(passed), seed=seed)),
        "rejected": len(have) - len(passed),
        "reasons": dict(Counter(one.rejected for one in told if one.rejected is not None)),
        "gives_away": sum(one.gives_away or 0 for one in told) if name in PROBED else None,
        "slot": _json(mean([one.slot for one in told], where, seed=seed)),
        "gain_by_leak_mean": _mean_of_means(by_leak) if name in PROBED else None,
        "n": len(have),
    }


def _mean_of_means(groups: Sequence[Sequence[float]]) -> float:
    means = [sum(group) / len(group) for group in groups if group]
    return sum(means) / max(1, len(means))


def _against(moments: Sequence[ControlledTurn], name: str, seed: int) -> Estimate | None:
    """How much more the own trace gains on novel words than a control, paired by moment."""
    have = [moment for moment in moments if name in moment.told and "own" in moment.told]
    return mean([moment.told["own"].novel - moment.told[name].novel for moment in have], _where(have), seed=seed)


def _chosen(shown: Sequence[ContextScores], how: Chooser) -> float:
    """What the trace that a way of choosing takes is worth; for "random", what any is worth on average."""
    if how == "random":
        return sum(one.benefit for one in shown) / len(shown)
    [best, *_] = in_order([replace(one.candidate, rejected=None) for one in shown], how)
    return next(one.benefit for one in shown if one.candidate.trace == best.trace)


def _worth(downstream: Sequence[tuple[Pair, Sequence[ContextScores]]], how: Chooser, seed: int) -> Estimate | None:
    where = [pair.conversation_id for pair, _ in downstream]
    return mean([_chosen(shown, how) for _, shown in downstream], where, seed=seed)


def _beats(downstream: Sequence[tuple[Pair, Sequence[ContextScores]]], how: Chooser, seed: int) -> Estimate | None:
    where = [pair.conversation_id for pair, _ in downstream]
    return mean([_chosen(shown, "recon") - _chosen(shown, how) for _, shown in downstream], where, seed=seed)


def _validity(downstream: Sequence[tuple[Pair, Sequence[ContextScores]]], seed: int) -> Estimate | None:
    """The partial rank correlation of guarded score and benefit, overlap and length apart, over all proposals."""
    every = [(pair.conversation_id, one) for pair, shown in downstream for one in shown]
    return partial_spearman(
        [one.candidate.score or 0.0 for _, one in every],
        [one.benefit for _, one in every],
        [[one.overlap, float(one.words)] for _, one in every],
        [where for where, _ in every],
        seed=seed,
    )


def _where(moments: Sequence[ControlledTurn]) -> list[str]:
    return [moment.pair.conversation_id for moment in moments]


def _json(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_json()
