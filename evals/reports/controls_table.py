"""The table of a trace control experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .terminal import interval_text

_CONTROL_NAMES = {
    "own": "own trace",
    "filler": "0 filler",
    "copy": "1 the action",
    "paraphrase": "2 paraphrase",
    "shuffled": "3 shuffled",
    "other": "4 other person",
    "bag": "5 bag of words",
    "keywords": "6 keywords",
    "swapped": "7 swapped",
    "forward": "8 forward",
}


_REASON_NAMES = {
    "quotes_action": "quotes",
    "echoes_examples": "echoes",
    "same_meaning": "same sense",
    "leans_on_words": "leans",
}


def controls_table(found: Mapping[str, Any]) -> RenderableType:
    """Control traces beside the real ones, and whether the score is more than leakage; it fits into 80 columns."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,  # a blank is between columns anyway, and five figures are wide
        title=f"Is the score of {found['twin']}'s traces more than leakage? Nats per token",
        title_justify="left",
    )
    table.add_column("trace", no_wrap=True)
    for title in (
        "gain\n[dim]unguarded",
        "gain\n[dim]words not copied",
        "own minus it\n[dim]words not copied",
        "rejected\n[dim]why",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for name, row in found["controls"].items():
        against = found["own_minus"].get(name)
        reason = max(row["reasons"], key=row["reasons"].get, default="")
        table.add_row(
            _CONTROL_NAMES[name],
            _signed(row["gain"]),
            _signed(row["novel"]),
            "–" if against is None else _signed(against),
            f"{row['rejected']} of {row['n']}\n[dim]{_REASON_NAMES.get(reason, reason)}",
            style="bold" if name == "own" else "",
        )
    return Group(table, *map(Text.from_markup, _leakage_verdicts(found)))


def _signed(estimate: Mapping[str, Any] | None) -> str:
    return "–" if estimate is None else f"{estimate['value']:+.3f}\n[dim]{interval_text(estimate, 2, '+').strip('()')}"


def _leakage_verdicts(found: Mapping[str, Any]) -> list[str]:
    """The decision, condition by condition, and what it rests on; rich markup."""
    said: list[str] = []
    told = {"a swapped trace moves the other action": found["swap_contrast"]}
    told |= {"the score predicts the benefit downstream": found["validity"]}
    told |= {f"own beats {name}": one for name, one in found["own_minus"].items()}
    told |= {f"choosing by score beats {name.removeprefix('recon - ')}": one for name, one in found["selection"].items()}
    for condition, holds in found["decision"]["conditions"].items():
        one = told.get(condition)
        numbers = "not measured" if one is None else f"{one['value']:+.4f} {interval_text(one, 4, '+')}, n={one['n']}"
        said.append(f"{'[green]yes[/green]' if holds else '[red]no [/red]'} {condition}: [dim]{numbers}[/dim]")
    verdict = "more than leakage" if found["decision"]["more_than_leakage"] else "not shown to be more than leakage"
    models = found["models"]
    said.append(f"[bold]The score is {verdict}[/bold] on this person, with these models (each: 95% interval above 0).")
    spent = found["cost"]
    said.append(
        f"[dim]{found['turns']} validation turns of {found['conversations']} conversations; intervals by conversation; "
        f"traces by {escape(models['proposer'])}, scored by {escape(models['scorer'])}; {spent['calls']} texts written, "
        f"{spent['repeated']} from kept answers; seed {found['seed']}[/dim]"
    )
    return said
