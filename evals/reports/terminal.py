"""What was measured, as tables for the terminal.

The one design choice: these are pure functions of the objects that `--json` and `twin.json` hold, so that what is shown can
always be shown again, and nothing is shown without its interval and its n.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .labels import PRIMARY, arm_name

_ARM_NAMES = {
    "no_memory": "no memory",
    "other_person": "another's moments",
    "random_own": "own, at random",
    "recalled_pairs": "own, recalled",
    "recalled_triples": "own, with traces",
}
_MEASURES = (
    ("bits_per_char", "bits per char", "low is close", 2),
    ("embedding_similarity", "meaning", "high is close", 2),
    ("chrf", "chrF", "high is close", 2),
    ("length_ratio", "length ratio", "1 is closest", 2),
)


def closeness_table(result: Mapping[str, Any]) -> RenderableType:
    """The arms of a measurement, with intervals, and what the comparisons say; it fits into 80 columns."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"How close is {result['twin']} to the person's held-out turns?",
        title_justify="left",
    )
    table.add_column("shown to the model", min_width=17)
    shown = [measure for measure in _MEASURES if any(measure[0] in arm for arm in result["arms"].values())]
    for key, title, direction, _ in shown:
        n = max(arm[key]["n"] for arm in result["arms"].values() if key in arm)
        table.add_column(f"{title}\n[dim]{direction}\nn={n}[/dim]", justify="right", no_wrap=True)
    twin = twin_arm(result)
    for arm, measures in result["arms"].items():
        style, mark = ("bold", " (twin)") if arm == twin else ("", "")
        table.add_row(
            _ARM_NAMES.get(arm, arm_name(arm).title) + mark,
            *(_cell(measures.get(key), digits) for key, _, _, digits in shown),
            style=style,
        )
    return Group(table, *map(Text.from_markup, verdicts(result)))


def run_table(result: Mapping[str, Any]) -> RenderableType:
    """The arms of a run in bits per character, and how much further off than the twin each is; it fits into 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=Text(str(result["name"])), title_justify="left")
    table.add_column("shown to the model", no_wrap=True)
    table.add_column("bits per char\n[dim]low is close[/dim]", justify="right", no_wrap=True)
    table.add_column("twin minus it\n[dim]below 0 is closer[/dim]", justify="right", no_wrap=True)
    table.add_column("replies told apart\n[dim]0.5: they are not[/dim]", justify="right", no_wrap=True)
    twin = twin_arm(result)
    for arm, measures in result["arms"].items():
        paired = result["paired"].get(f"{twin} - {arm}", {}).get(PRIMARY)
        cells = (measures.get(PRIMARY), paired, measures.get("discriminator"))
        counted = [f"n={one['n']} {_cell(one, 3)}" if one else "–" for one in cells]
        mark = " (twin)" if arm == twin else ""
        table.add_row(arm_name(arm).title + mark, *counted, style="bold" if arm == twin else "")
    people = f"{result['turns']} turns of {result['conversations']} conversations of {len(result['people'])} people"
    note = f"[dim]{people}; intervals: 95%, over people and conversations; scored by {escape(result['models']['scorer'])}[/dim]"
    return Group(table, Text.from_markup(note))


def twin_arm(result: Mapping[str, Any]) -> str:
    """The arm that is what the twin does: with or without traces, as was found best for it."""
    return str(result.get("twin_arm", "recalled_triples"))


def _cell(estimate: Mapping[str, Any] | None, digits: int) -> str:
    if estimate is None:
        return "–"
    interval = interval_text(estimate, digits).strip("()")
    return f"{estimate['value']:.{digits}f}\n[dim]{interval}[/dim]"


def interval_text(estimate: Mapping[str, Any], digits: int, sign: str = "") -> str:
    """Return the interval of an estimate, in parentheses."""
    if estimate["low"] is None:
        return "(no interval)"
    return f"({estimate['low']:{sign}.{digits}f} to {estimate['high']:{sign}.{digits}f})"


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """What the paired comparisons in bits per character say, a sentence each; rich markup."""
    said: list[str] = []
    for name, measures in result["paired"].items():
        difference = measures.get("bits_per_char")
        first, _, second = name.partition(" - ")
        if difference is None or (first, second) not in _TOLD:
            continue
        closer = "closer than" if difference["value"] < 0 else "further off than"
        sure = difference["low"] is not None and (difference["low"] > 0 or difference["high"] < 0)
        verdict = f"{closer} {_TOLD[first, second]}" if sure else f"not told apart from {_TOLD[first, second]}"
        numbers = f"{difference['value']:+.3f} bits per character {interval_text(difference, 3, '+')}, n={difference['n']}"
        said.append(f"{_SUBJECT[first]} {verdict}: [dim]{numbers}[/dim]")
    where = f"{result['turns']} turns of {result['conversations']} conversations that the twin never saw"
    models = result["models"]
    ending = result.get("ending", {}).get("f1")
    if ending is not None:
        said.append(
            f"Knows when the person leaves: [dim]F1 {ending['value']:.2f} {interval_text(ending, 2)}, n={ending['n']}[/dim]"
        )
    said.append(
        f"[dim]{where}; intervals: 95%, by conversation; scored by {escape(models['scorer'])}, "
        f"written by {escape(models['action'])}; seed {result['seed']}[/dim]"
    )
    return said


_TOLD = {
    ("recalled_pairs", "no_memory"): "the same model without a memory",
    ("recalled_pairs", "other_person"): "another person's memory",
    ("recalled_pairs", "random_own"): "own moments taken at random",
    ("recalled_triples", "recalled_pairs"): "the same moments without",
}
_SUBJECT = {"recalled_pairs": "Recalled moments are", "recalled_triples": "With their traces they are"}


def closeness_line(result: Mapping[str, Any]) -> str:
    """One line about a measurement; it may have been one without the twin's own arm, or without one to hold it against."""
    twin, day = twin_arm(result), result["measured_at"][:10]
    best = result["arms"].get(twin, {}).get(PRIMARY)
    if best is None:
        return f"only {', '.join(result['arms'])} measured; n={result['turns']} held-out turns, {day}"
    against = result["paired"].get(f"{twin} - no_memory", {}).get(PRIMARY)
    told = "" if against is None else f", {against['value']:+.3f} {interval_text(against, 3, '+')} against no memory"
    return f"{best['value']:.3f} bits per character {interval_text(best, 3)}{told}; n={best['n']} held-out turns, {day}"
