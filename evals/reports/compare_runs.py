"""Comparison of two runs: what differs in their setup, and how their figures differ.

Design: the twins are compared turn by turn where both runs hold the same held-out turns, since a difference of averages says
little. Bits under different scorers are not subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from usertwin.evals.records.measured_turns import MeasuredTurn

from .labels import (
    MIN_CONVERSATIONS,
    MIN_PEOPLE,
    PRIMARY,
    Estimate,
    arm_label,
    in_order,
    interval,
    measure_label,
    number,
    p_value,
    plural,
    verdict,
)
from .terminal import estimate_markup, plain_table

#: The parts of a result that describe its setup.
_SETUP = ("models", "settings", "versions", "seed", "twin_arm")
#: Measures that depend on the scorer.
_BY_SCORER = frozenset({PRIMARY, "choice"})


def compare(
    old: Mapping[str, Any], new: Mapping[str, Any], old_turns: Sequence[MeasuredTurn] = (),
    new_turns: Sequence[MeasuredTurn] = (), *, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Compare the results (contents of `result.json`) and measured turns of two runs.

    Returns:
        `names`; `differs`: {SETTING: [old, new]} of models, settings, versions and seeds; `comparable`: whether averages of
        the two can be compared, and `why_not`; `arms`: {ARM: {MEASURE: {"old", "new", "difference"}}}, estimates or None, and
        new minus old or None; `twin`: the twins' paired difference in bits per character, new minus old, below 0 the new one
        is closer: value, low, high, n, p, visible, people, intervals_over; None without a common turn.
    """
    scorers = [result.get("models", {}).get("scorer") for result in (old, new)]
    only = sorted(set(old["people"]) ^ set(new["people"]))
    why_not: list[str] = []
    same_scorer = scorers[0] == scorers[1]
    if not same_scorer:
        why_not.append(f"bits of different scorers ({scorers[0]}, {scorers[1]}) cannot be compared")
    if only:
        people = f"different people ({', '.join(only)} in one run only)"
        why_not.append(f"the runs measured {people}, so their averages cannot be compared")
    arms: dict[str, dict[str, Any]] = {}
    for arm in in_order({**old["arms"], **new["arms"]}):
        before, after = old["arms"].get(arm, {}), new["arms"].get(arm, {})
        arms[arm] = {}
        for name in {**before, **after}:
            first, second = before.get(name), after.get(name)
            subtract = first and second and not only and (same_scorer or name not in _BY_SCORER)
            difference = second["value"] - first["value"] if subtract else None
            arms[arm][name] = {"old": first, "new": second, "difference": difference}
    first, second = _setup(old), _setup(new)
    both = {key: [first.get(key), second.get(key)] for key in {**first, **second}}
    return {
        "names": [str(old.get("name", "old")), str(new.get("name", "new"))],
        "differs": {key: values for key, values in both.items() if values[0] != values[1]},
        "comparable": not why_not, "why_not": why_not, "arms": arms,
        "twin": _paired(old, new, old_turns, new_turns, seed) if same_scorer else None,
    }  # fmt: skip


def _setup(result: Mapping[str, Any]) -> dict[str, Any]:
    """The setup of a run by dotted name."""
    setup: dict[str, Any] = {}
    for part in _SETUP:
        value = result.get(part)
        setup |= {f"{part}.{key}": inner for key, inner in value.items()} if isinstance(value, Mapping) else {part: value}
    return setup


def _paired(
    old: Mapping[str, Any], new: Mapping[str, Any], old_turns: Sequence[MeasuredTurn], new_turns: Sequence[MeasuredTurn],
    seed: int,
) -> dict[str, Any] | None:  # fmt: skip
    """The twins' difference at the turns that both runs measured; a turn with another text is another turn."""
    from usertwin.evals.metrics.statistics import mean_over_people

    before, after = str(old["twin_arm"]), str(new["twin_arm"])
    known = {(*turn.cluster, turn.position, turn.action): turn.bits[before] for turn in old_turns if before in turn.bits}
    common = [
        (turn, turn.bits[after] - known[key])
        for turn in new_turns
        if after in turn.bits and (key := (*turn.cluster, turn.position, turn.action)) in known
    ]
    paired = mean_over_people(
        [difference for _, difference in common], [turn.person for turn, _ in common],
        [turn.conversation_id for turn, _ in common], denominators=[float(turn.characters) for turn, _ in common],
    )  # fmt: skip
    if paired is None:
        return None
    return {
        **paired.estimate().to_json(), "p": paired.p(seed=seed), "visible": paired.min_detectable_effect,
        "people": len(paired.people), "intervals_over": paired.unit,
    }  # fmt: skip


def comparison_table(comparison: Mapping[str, Any]) -> RenderableType:
    """Return the result of `compare` for the terminal: every arm and measure, the differences in setup, the verdict."""
    table = plain_table("Two runs")
    for head in ("arm", "measure"):
        table.add_column(head)
    for head in (*comparison["names"], "difference"):
        table.add_column(Text(head), justify="right")
    for arm, measures in comparison["arms"].items():
        table.add_section()
        for place, (name, values) in enumerate(measures.items()):
            label = measure_label(name)
            difference = "–" if values["difference"] is None else number(values["difference"], label.digits, signed=True)
            cells = (_cell(values["old"], label.digits), _cell(values["new"], label.digits), difference)
            table.add_row(Text(arm_label(arm).title if place == 0 else "", style="bold"), Text(label.title), *cells)
    differs = [f"{key}: {old} → {new}" for key, (old, new) in comparison["differs"].items()]
    return Group(
        table,
        Text("Differences in setup: " + ("; ".join(differs) or "none in models, settings and versions")),
        *(Text(f"Not comparable: {reason}.", style="bold") for reason in comparison["why_not"]),
        Text(verdict_of(comparison), style="bold"),
    )


def _cell(estimate: Estimate | None, digits: int) -> str:
    return "–" if estimate is None else f"{estimate_markup(estimate, digits)}[dim], n={estimate['n']}[/dim]"


def verdict_of(comparison: Mapping[str, Any]) -> str:
    """Return one sentence about the difference of the two twins."""
    twin, (old, new) = comparison["twin"], comparison["names"]
    if twin is None:
        return "The twins cannot be compared turn by turn: no held-out turn was measured in both runs under the same scorer."
    outcome = {
        "closer": f"The twin of {new} is closer", "further": f"The twin of {old} is closer", "same": "No clear difference",
        "unknown": f"No verdict, which needs {MIN_PEOPLE} people, or {MIN_CONVERSATIONS} conversations of fewer",
    }[verdict(twin)]  # fmt: skip
    ends, few = interval(twin, 3, signed=True), twin.get("intervals_over") == "conversations" and twin["people"] > 1
    basis = [f"{ends} over conversations of these people" if few and twin["low"] is not None else ends, p_value(twin["p"])]
    basis.append(f"n={twin['n']} turns of {plural(twin['people'], 'person', 'people')} in both runs")
    power = "" if twin["visible"] is None else f"; this n cannot detect differences below {number(twin['visible'], 3)}"
    difference = f"{number(twin['value'], 3, signed=True)} bits per character, new minus old"
    return f"{outcome}: {difference} ({', '.join(filter(None, basis))}){power}."
