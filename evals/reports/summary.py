"""The summary sentence of a report, which says whether the twin is closer to the person than the best alternative."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .labels import (
    PRIMARY,
    Estimate,
    arm_label,
    contrasts_of,
    counted,
    interval,
    interval_basis,
    negated,
    number,
    plural,
    verdict,
)


def best_alternative(result: Mapping[str, Any], *, rivals: bool = True) -> tuple[str, Estimate] | None:
    """Return the arm that the twin leads by least, or trails by most, with the difference twin minus arm; None if none.

    The arm is one that could replace the twin (`rivals`), or else one that shows the twin's own memory in another way.
    """
    compared = [(arm, paired) for arm, paired in contrasts_of(result).items() if arm_label(arm).rival == rivals]
    return max(compared, key=lambda item: item[1]["value"], default=None)


def summary_of(result: Mapping[str, Any]) -> str:
    """Return one sentence: is the twin closer than the best alternative, by how much, on how much data, how surely."""
    people = len(result["people"])
    measured = (
        f"{plural(result['turns'], 'held-out turn')} of {plural(people, 'person', 'people')} in "
        f"{plural(result['conversations'], 'conversation')}"
    )
    best = best_alternative(result)
    if best is None:
        return f"The twin was not compared with an alternative; it was measured on {measured}."
    arm, difference = best
    outcome, phrase = verdict(difference), arm_label(arm).phrase
    shown = negated(difference) if outcome == "closer" else difference
    signed = outcome in {"same", "unknown"}
    bits = result["arms"].get(arm, {}).get(PRIMARY)
    share = f" ({abs(difference['value']) / bits['value']:.1%})" if not signed and bits and bits["value"] > 0 else ""
    amount = f"{number(shown['value'], 3, signed=signed)} bits per character{share}"
    alternative = f"than the best alternative, {phrase}"
    text = {
        "closer": f"closer to the {'person' if people == 1 else 'people'} {alternative}: it needs {amount} less to predict the "
        "real turns",
        "further": f"less close {alternative}: it needs {amount} more to predict the real turns",
        "same": f"not measurably closer or less close {alternative}: the difference is {amount}",
        "unknown": f"not yet comparable with the best alternative, {phrase}: the difference is {amount}",
    }[outcome]
    ends = interval(shown, 3, signed=signed)
    sure = interval_basis(result) if outcome == "unknown" else f"95% interval {ends}"
    return f"The twin is {text} ({sure}; {measured}){_closer_memory_arm(result)}."


def _closer_memory_arm(result: Mapping[str, Any]) -> str:
    """Name the arm that shows the twin's own memory in another way, if that is closer: the twin then is not at its best."""
    best = best_alternative(result, rivals=False)
    if best is None or verdict(best[1]) != "further":
        return ""
    arm, difference = best
    amount = f"{number(difference['value'], 3)} bits per character, {interval(difference, 3)}, n={counted(difference['n'])}"
    return f"; its own memory shown in another way ({arm_label(arm).title}) is closer, by {amount}"
