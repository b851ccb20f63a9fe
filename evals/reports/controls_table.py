"""The table of a control experiment, which tests whether the fidelity score measures more than leakage of the action."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from usertwin.evals.records.older_results import upgrade

from .labels import MIN_CONVERSATIONS, with_interval
from .terminal import estimate_markup

_CONTROL_NAMES = {
    "own": "own trace", "filler": "0 filler", "copy": "1 the action", "paraphrase": "2 paraphrase", "shuffled": "3 shuffled",
    "other": "4 other person", "bag": "5 bag of words", "keywords": "6 keywords", "swapped": "7 swapped",
    "forward": "8 forward",
}  # fmt: skip
REASON_NAMES = {"quotes_action": "quotes", "echoes_examples": "echoes", "same_meaning": "same sense", "leans_on_words": "leans"}
_HOLDS = {True: "[green]yes[/green]", False: "[red]no [/red]", None: "[yellow]?  [/yellow]"}
_DECISIONS = {
    True: "is more than leakage",
    False: "is not shown to be more than leakage",
    None: f"cannot be judged yet (a condition was not measured, or in fewer than {MIN_CONVERSATIONS} conversations)",
}
_COLUMNS = (
    "gain\n[dim]unguarded", "gain\n[dim]words not copied", "own minus control\n[dim]words not copied", "rejected\n[dim]reason",
)  # fmt: skip


def controls_table(experiment: Mapping[str, Any]) -> RenderableType:
    """Return control traces beside the real ones, and the verdict on the score; at most 80 columns."""
    experiment = upgrade(experiment)
    title = f"Is the score of {experiment['twin']}'s traces more than leakage? Nats per token"
    table = Table(box=box.SIMPLE_HEAD, padding=0, title=title, title_justify="left")  # five wide columns need the room
    table.add_column("trace", no_wrap=True)
    for head in _COLUMNS:
        table.add_column(head, justify="right", no_wrap=True)
    for name, row in experiment["controls"].items():
        reason = max(row["reasons"], key=row["reasons"].get, default="")
        estimates = (row["gain"], row["guarded_gain"], experiment["own_minus"].get(name))
        table.add_row(
            _CONTROL_NAMES[name],
            *(estimate_markup(estimate, 3, signed=True, interval_digits=2) for estimate in estimates),
            f"{row['rejected']} of {row['n']}\n[dim]{REASON_NAMES.get(reason, reason)}",
            style="bold" if name == "own" else "",
        )
    check = experiment.get("judge_check")
    judge = [] if check is None else [Text(check["sentence"], style="" if check["outcome"] == "passed" else "yellow")]
    return Group(table, *map(Text.from_markup, _leakage_verdicts(experiment)), *judge)


def _leakage_verdicts(experiment: Mapping[str, Any]) -> list[str]:
    """The decision, condition by condition, with its figures; rich markup."""
    estimates = {
        "a swapped trace moves the other action": experiment["swap_contrast"],
        "the score predicts the benefit downstream": experiment["validity"],
        **{f"own beats {name}": paired for name, paired in experiment["own_minus"].items()},
        **{
            f"choosing by score beats {name.removeprefix('recon - ')}": paired
            for name, paired in experiment["selection"].items()
        },
    }
    sentences: list[str] = []
    for condition, holds in experiment["decision"]["conditions"].items():
        estimate = estimates.get(condition)
        figures = "not measured" if estimate is None else f"{with_interval(estimate, 4, signed=True)}, n={estimate['n']}"
        sentences.append(f"{_HOLDS[holds]} {condition}: [dim]{figures}[/dim]")
    outcome = _DECISIONS[experiment["decision"]["more_than_leakage"]]
    models, cost = experiment["models"], experiment["cost"]
    return [
        *sentences,
        f"[bold]The score {outcome}[/bold] for this person with these models (each condition: 95% interval above 0).",
        f"[dim]{experiment['turns']} validation turns of {experiment['conversations']} conversations; intervals by "
        f"conversation; traces by {escape(models['proposer'])}, scored by {escape(models['scorer'])}; {cost['calls']} texts "
        f"sampled, {cost['repeated']} from the cache; seed {experiment['seed']}[/dim]",
    ]
