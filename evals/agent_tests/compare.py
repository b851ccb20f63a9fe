"""Two runs compared at the same conversations: two agents, or one agent twice.

Design: a difference is one of the agents only if the twins' side is the same. Runs with other models, prompts, twins, scenarios
or seeds are not subtracted unless the caller insists, and every comparison says what differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from rich.console import Group, RenderableType
from rich.text import Text

from usertwin.evals.metrics.closeness import ALPHA
from usertwin.evals.metrics.statistics import MIN_CONVERSATIONS
from usertwin.evals.reports.labels import counted, number, p_value, plural
from usertwin.evals.reports.terminal import plain_table
from usertwin.simulator.records import Simulation

from .outcomes import Outcome, outcomes_of
from .rates import PairedDifference, Rate, paired_difference
from .read import AgentRun, summary_of_run
from .screen import seconds
from .summary import Summary

#: Parts of the manifest that the twins' side, the judge and the rules of the conversations consist of.
_TWIN_SIDE = ("twin", "learned_at", "k", "settings", "models", "prompts", "judge")
#: What a twin's entry in the manifest says that cannot change a conversation.
_ABOUT_TWIN = frozenset({"closeness", "versions"})
#: Arguments that may differ: the agent, how it is called, and how much is run.
_FREE = frozenset({
    "agent", "agent_process", "agent_timeout", "count", "repeats", "concurrency", "agent_concurrency", "model_concurrency",
    "budget", "out", "on",
})  # fmt: skip
#: Conversations that changed sides that the terminal lists.
_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A conversation that one run passes and the other fails: its id, whether the second run passes it, and why one failed."""

    id: str
    gained: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    """Two runs, and what the second changed.

    Attributes:
        first: the summary of the first run.
        second: that of the second.
        why_not: why the runs cannot be compared; empty if they can.
        notes: what else differs, and conversations without a counterpart.
        difference: of the pass rates at the conversations that are usable in both, second minus first; None without such a
            conversation, or if the runs cannot be compared.
        goal: the same for reaching the goal.
        changes: the conversations that changed sides.
    """

    first: Summary
    second: Summary
    why_not: tuple[str, ...]
    notes: tuple[str, ...]
    difference: PairedDifference | None
    goal: PairedDifference | None
    changes: tuple[Change, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON object."""
        return asdict(self)


def compare_runs(first: AgentRun, second: AgentRun, *, seed: int = 0, anyway: bool = False) -> RunComparison:
    """Compare two runs at the conversations of the same scenario, twin, repetition and seed.

    Args:
        first: a run.
        second: the other one.
        seed: of the sign flips of many scenarios or twins.
        anyway: whether runs are compared that differ in more than the agent.
    """
    why_not = differences(first, second)
    before, after = (_by_slot(outcomes_of(run.simulations, run.scenarios)) for run in (first, second))
    common = [(before[slot], after[slot]) for slot in before if slot in after]
    usable = [(a, b) for a, b in common if a.is_usable and b.is_usable]
    why_not += _changed_checks(usable)
    if not common:
        why_not.append("no conversation of one run has the scenario, twin, repetition and seed of one of the other")
    notes = _notes(first, second, len(before), len(after), len(common), len(usable))
    may = not why_not or anyway
    return RunComparison(
        first=summary_of_run(first), second=summary_of_run(second), why_not=tuple(why_not), notes=tuple(notes),
        difference=_difference(usable, [(a.name == "passed", b.name == "passed") for a, b in usable], seed) if may else None,
        goal=_goal_difference(usable, seed) if may else None, changes=_changes(usable) if may else (),
    )  # fmt: skip


def _by_slot(outcomes: Sequence[Outcome]) -> dict[tuple[str, str, int, int], Outcome]:
    return {_slot(outcome.simulation): outcome for outcome in outcomes}


def _slot(simulation: Simulation) -> tuple[str, str, int, int]:
    return simulation.scenario, simulation.twin, simulation.repeat, simulation.seed


def _changed_checks(pairs: Sequence[tuple[Outcome, Outcome]]) -> list[str]:
    """Return a sentence if conversations were not held to the same checks and criteria."""
    for pair in pairs:
        old, new = ({check.name for check in outcome.simulation.checks} for outcome in pair)
        if old != new and all(outcome.simulation.fault is None for outcome in pair):  # criteria of a fault are not judged
            own = {"the first run": old - new, "the second run": new - old}
            only = [f"{run} alone has {', '.join(sorted(names))}" for run, names in own.items() if names]
            return [f"the checks differ, as in {pair[0].simulation.id}: {'; '.join(only)}"]
    return []


def differences(first: AgentRun, second: AgentRun) -> list[str]:
    """Return a sentence for each part of the twins' side that differs between two runs; empty if the agents can be compared."""
    sentences: list[str] = []
    for name in _TWIN_SIDE:
        old, new = first.manifest.get(name), second.manifest.get(name)
        if old != new:
            sentences.append(f"{_TITLES.get(name, name)} differ: {_both(old, new)}")
    for name in first.twins:
        old, new = ({k: v for k, v in run.twins.get(name, {}).items() if k not in _ABOUT_TWIN} for run in (first, second))
        if new and old != new:
            sentences.append(f'the twin "{name}" is another one: {_both(old, new)}')
    old, new = ({k: v for k, v in run.arguments.items() if k not in _FREE} for run in (first, second))
    if old != new:
        sentences.append(f"the arguments differ: {_both(old, new)}")
    changed = [name for name in first.scenarios if name in second.scenarios and _rules(first, name) != _rules(second, name)]
    if changed:
        names = ", ".join(f'"{name}" ({_both(_rules(first, name), _rules(second, name))})' for name in changed)
        sentences.append(f"{'scenarios have' if len(changed) > 1 else 'a scenario has'} changed: {names}")
    return sentences


_TITLES = {
    "twin": "the twins", "learned_at": "the dates on which the twin was learned",
    "models": "the twin's models", "prompts": "the versions of the prompts", "judge": "the judges",
    "settings": "the twin's settings", "k": "the recalled pairs (k)",
}  # fmt: skip


def _rules(run: AgentRun, name: str) -> Mapping[str, Any]:
    """Return a scenario without what may differ: who and how often."""
    return {key: value for key, value in run.scenarios[name].items() if key not in {"twins", "sample", "repeats"}}


def _both(old: Any, new: Any) -> str:
    """Return two values as text; of two mappings, the entries that differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        a, b = cast("Mapping[str, Any]", old), cast("Mapping[str, Any]", new)
        keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        return "; ".join(f"{key}: {_text(a.get(key))} → {_text(b.get(key))}" for key in keys)
    return f"{_text(old)} → {_text(new)}"


def _text(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _notes(first: AgentRun, second: AgentRun, old: int, new: int, common: int, usable: int) -> list[str]:
    notes: list[str] = []
    versions = [run.manifest.get("versions") for run in (first, second)]
    if versions[0] != versions[1]:
        notes.append(f"versions differ: {_both(*versions)}")
    limits = [run.manifest.get("limits") for run in (first, second)]
    if limits[0] != limits[1]:
        notes.append(f"limits differ: {_both(*limits)}")
    if first.agent == second.agent:
        notes.append(f"both runs have the agent {first.agent}")
    if old != common or new != common:
        notes.append(f"{old - common} conversations of the first run and {new - common} of the second have no counterpart")
    if usable != common:
        notes.append(f"{common - usable} of {common} common conversations are set aside in one run or both")
    notes += [f"{run.name} is unfinished" for run in (first, second) if not run.finished]
    return notes


def _difference(
    pairs: Sequence[tuple[Outcome, Outcome]], hits: Sequence[tuple[bool, bool]], seed: int
) -> PairedDifference | None:
    simulations = [first.simulation for first, _ in pairs]
    return paired_difference(simulations, [a for a, _ in hits], [b for _, b in hits], seed=seed)


def _goal_difference(pairs: Sequence[tuple[Outcome, Outcome]], seed: int) -> PairedDifference | None:
    known = [(a, b) for a, b in pairs if a.goal is not None and b.goal is not None]
    return _difference(known, [(a.goal is True, b.goal is True) for a, b in known], seed)


def _changes(pairs: Sequence[tuple[Outcome, Outcome]]) -> tuple[Change, ...]:
    changed = [(a, b) for a, b in pairs if a.name != b.name]
    return tuple(
        Change(id=a.simulation.id, gained=b.name == "passed", why="; ".join(a.reasons or b.reasons)) for a, b in changed
    )


def comparison_verdict(comparison: RunComparison) -> str:
    """Return one sentence about the difference of the two pass rates; it follows the test, not the sign."""
    difference, (old, new) = comparison.difference, _names(comparison)
    if difference is None:
        return "No verdict: the runs have no usable conversation in common, or cannot be compared."
    if difference.n < MIN_CONVERSATIONS:
        return f"No verdict: {plural(difference.n, 'conversation')} in common, and {MIN_CONVERSATIONS} are needed."
    better = new if difference.value > 0 else old
    outcome = f"{better} passes more" if difference.p < ALPHA and difference.value else "No difference is shown"
    return f"{outcome}: {_shown(difference)}, n={difference.n} conversations in both runs."


def comparison_view(comparison: RunComparison) -> RenderableType:
    """Return a comparison for the terminal."""
    table = plain_table("Two runs at the same conversations")
    table.add_column("")
    for name in _names(comparison):
        table.add_column(Text(name), justify="right")
    table.add_column("second − first", justify="right")
    for title, old, new, difference in _rows(comparison):
        table.add_row(title, old, new, difference)
    lines: list[RenderableType] = [table]
    lines += [Text(f"Not comparable: {reason}.", style="bold yellow") for reason in comparison.why_not]
    lines += [Text(f"{note[0].upper()}{note[1:]}.") for note in comparison.notes]
    if comparison.changes:
        gained = sum(change.gained for change in comparison.changes)
        lines.append(Text(f"Changed sides: {gained} now passed, {len(comparison.changes) - gained} now failed", style="bold"))
    for change in comparison.changes[:_SHOWN]:
        sign = "+" if change.gained else "-"
        lines.append(Text(f"  {sign} {change.id}: {change.why}", no_wrap=True, overflow="ellipsis"))
    if more := len(comparison.changes) - _SHOWN:
        lines += [Text(f"  and {counted(more)} more; --json lists all")] if more > 0 else []
    return Group(*lines, Text(comparison_verdict(comparison), style="bold"))


def _rows(comparison: RunComparison) -> list[tuple[str, str, str, str]]:
    first, second = comparison.first, comparison.second
    rates = {
        "passed": (first.pass_rate, second.pass_rate, comparison.difference),
        "goal reached": (first.goal_rate, second.goal_rate, comparison.goal),
        "agent's faults": (first.agent_faults, second.agent_faults, None),
        "twin's faults": (first.twin_faults, second.twin_faults, None),
    }
    rows = [
        (name, _cell(old), _cell(new), _ends(difference, "\n") if difference else "")
        for name, (old, new, difference) in rates.items()
        if old or new
    ]
    turns, replies = (s.turns for s in (first, second)), (s.reply_seconds for s in (first, second))
    old_turns, new_turns = (number(spread.mean, 1) if spread else "–" for spread in turns)
    old_reply, new_reply = (seconds(spread.median) if spread else "–" for spread in replies)
    return [*rows, ("turns, mean", old_turns, new_turns, ""), ("reply, median", old_reply, new_reply, "")]


def _names(comparison: RunComparison) -> tuple[str, str]:
    """Return the names of the two columns: the agents if they differ, else the runs."""
    first, second = comparison.first, comparison.second
    return (first.agent, second.agent) if first.agent != second.agent else (first.name, second.name)


def _cell(rate: Rate | None) -> str:
    return "–" if rate is None else f"{rate.value:.0%}, n={rate.n}\n{rate.low:.0%} to {rate.high:.0%}"


def _ends(difference: PairedDifference, separator: str = " ") -> str:
    """Return a difference with its interval, in percentage points."""
    value, low, high = (number(100 * end, 0, signed=True) for end in (difference.value, difference.low, difference.high))
    return f"{value} points{separator}({low} to {high})"


def _shown(difference: PairedDifference) -> str:
    return f"{_ends(difference)}, {p_value(difference.p)}, over {difference.over}"
