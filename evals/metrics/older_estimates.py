"""The intervals and tests in results of earlier versions, by the present rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .closeness import PRIMARY
from .statistics import CONFIDENCE, MIN_CONVERSATIONS, MIN_PEOPLE, Inference, add_holm


def with_present_tests(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result of `closeness` with the intervals and tests that the present rules allow.

    A result that says what its intervals are over is of the present version, and is returned as it is. An earlier version gave
    intervals over fewer than `MIN_PEOPLE` people, or fewer than `MIN_CONVERSATIONS` conversations of one person: these are
    withheld, with their tests. It gave no test of one person's differences: p is what their interval implies.
    """
    if "intervals_over" in result:
        return dict(result)
    people: Mapping[str, Any] = result.get("people", {})
    conversations = int(result.get("conversations", 0))
    parts: dict[str, Any] = {}
    if (len(people) < MIN_PEOPLE) if len(people) > 1 else (conversations < MIN_CONVERSATIONS):
        parts = {key: _map_estimates(result[key], _withheld) for key in ("arms", "paired")}
    elif len(people) <= 1:
        parts["paired"] = _map_estimates(result["paired"], lambda paired: _tested(paired, conversations))
        contrasts = (result.get("family") or {}).get("contrasts", ())
        add_holm([parts["paired"][name][PRIMARY] for name in contrasts if PRIMARY in parts["paired"].get(name, {})])
    if people:
        parts["people"] = {name: with_present_tests(own) for name, own in people.items()}
    return {**result, **parts}


def _map_estimates(
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the estimates of arms or contrasts, by measure, each changed."""
    return {name: {measure: change(dict(estimate)) for measure, estimate in row.items()} for name, row in rows.items()}


def _withheld(estimate: dict[str, Any]) -> dict[str, Any]:
    return {key: None if key in {"low", "high", "p", "p_holm", "visible"} else value for key, value in estimate.items()}


def _tested(paired: dict[str, Any], conversations: int) -> dict[str, Any]:
    """Return a difference with the p that its interval over conversations implies: below 5% where it excludes zero."""
    from scipy.special import stdtrit

    low, high, value = paired.get("low"), paired.get("high"), float(paired["value"])
    if paired.get("p") is not None or low is None or high is None or low == high:
        return paired
    half, freedom = value - low if value > 0 else high - value, conversations - 1.0
    error = half / float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
    of_interval = Inference(
        value, round(paired["n"]), error=error, freedom=freedom, cases=conversations, people=(value,), unit="conversations"
    )
    return paired | {"p": of_interval.p()}
