"""One sentence that says whether a twin is closer to the person than what one would use otherwise.

The one design choice: the twin is put beside the best of the others, not beside the weakest, and a difference whose interval
holds zero is called none; so the sentence can be bad news, and is worth reading when it is good news.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .labels import PRIMARY, Estimates, arm_name, contrasts_of, interval, number, plural, verdict


def best_alternative(result: Mapping[str, Any], *, rivals: bool = True) -> tuple[str, Estimates] | None:
    """The arm that the twin is least far ahead of, or furthest behind, in bits per character; with the paired difference.

    Args:
        result: what `result.json` holds.
        rivals: among what one might use instead of a twin; otherwise among other ways to show the twin's own memories.

    Returns:
        The arm and the difference twin minus arm (bits per character, below 0 the twin is closer); None if none was compared.
    """
    compared = {arm: one for arm, one in contrasts_of(result).items() if arm_name(arm).rival == rivals}
    if not compared:
        return None
    arm = max(compared, key=lambda name: compared[name]["value"])
    return arm, compared[arm]


def summary_of(result: Mapping[str, Any]) -> str:
    """One sentence: is the twin closer than the best alternative, by how much, on how much, and how sure is that."""
    people = plural(len(result["people"]), "person", "people")
    measured = f"{plural(result['turns'], 'held-out turn')} of {people} in {plural(result['conversations'], 'conversation')}"
    found = best_alternative(result)
    if found is None:
        return f"The twin was compared with nothing that one might use instead of it; it was measured on {measured}."
    arm, difference = found
    rival, verdict_ = _called(arm), verdict(difference)
    value, share = difference["value"], _share(result, arm, difference["value"])
    sure = (
        "no interval: too few conversations"
        if difference.get("low") is None
        else f"95% interval {_directed_interval(difference)}"
    )
    if verdict_ == "closer":
        text = (
            f"The twin is closer to the {'person' if len(result['people']) == 1 else 'people'} than the best alternative, "
            f"{rival}: what was really said surprises it by {number(-value, 3)} bits per character{share} less ({sure}"
        )
    elif verdict_ == "further":
        text = (
            f"The twin is not as close as the best alternative, {rival}: what was really said surprises it by "
            f"{number(value, 3)} bits per character{share} more ({sure}"
        )
    else:
        text = (
            f"The twin cannot be told apart from the best alternative, {rival}: "
            f"the difference is {number(value, 3, signed=True)} bits per character ({sure}"
        )
    return f"{text}; {measured}){_own_way(result)}."


def _directed_interval(difference: Estimates) -> str:
    """The interval in the direction of the sentence: "less" and "more" have no sign, unclear differences have one."""
    told = verdict(difference)
    if told == "closer":
        return interval({"low": -difference["high"], "high": -difference["low"]}, 3)
    return interval(difference, 3, signed=told == "same")


def _share(result: Mapping[str, Any], arm: str, value: float) -> str:
    """A difference in percent of what the other arm costs, if that is known."""
    bits = result["arms"].get(arm, {}).get(PRIMARY)
    return f" ({abs(value) / bits['value']:.1%})" if bits and bits["value"] > 0 else ""


def _called(arm: str) -> str:
    """An arm inside a sentence."""
    inside = {
        "no_memory": "the same model without a memory",
        "other_person": "another person's memory",
        "random_own": "own moments taken at random",
        "recent_own": "the person's latest moments",
        "openevals": "openevals' simulated user",
        "tau2": "tau2-bench's simulated user",
        "persona": "a description of the person",
    }
    return inside.get(arm, arm_name(arm).title)


def _own_way(result: Mapping[str, Any]) -> str:
    """That the same memories, shown in another way, would be closer still: what the twin does is then not its best."""
    found = best_alternative(result, rivals=False)
    if found is None or verdict(found[1]) != "further":
        return ""
    arm, difference = found
    told = f"{number(difference['value'], 3)} bits per character, {interval(difference, 3)}, n={difference['n']}"
    return f"; its own memories shown in another way ({arm_name(arm).title}: {arm_name(arm).said}) come closer still, by {told}"
