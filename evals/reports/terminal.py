"""Terminal tables and sentences about a measurement, from the objects in `--json` files and `twin.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from textwrap import wrap
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from usertwin.evals.metrics.closeness import CONTRASTS
from usertwin.evals.metrics.statistics import without_few
from usertwin.evals.records.older_results import upgrade
from usertwin.evals.records.result_shapes import ClosenessShape
from usertwin.personas.reading import as_type

from .labels import (
    MIN_CLUSTERS,
    PRIMARY,
    Estimate,
    arm_label,
    arm_title,
    interval,
    interval_basis,
    measure_label,
    number,
    plural,
    verdict,
    with_interval,
)

_MEASURES = (PRIMARY, "embedding_similarity", "chrf", "length_ratio")
_OUTCOMES = {
    "closer": "are closer than",
    "further": "are less close than",
    "same": "do not differ clearly from",
    "unknown": "cannot yet be compared with",
}


def plain_table(title: str, **options: Any) -> Table:
    """Return an empty table in the style of all terminal tables."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=Text(title), title_justify="left", **options)


def closeness_table(result: Mapping[str, Any]) -> RenderableType:
    """Return the arms of one twin's measurement with intervals, and the comparisons in sentences; at most 80 columns."""
    table = plain_table(f"How close is {result['twin']} to the person's held-out turns?")
    table.add_column("arm", min_width=17)
    measures = [name for name in _MEASURES if any(name in arm for arm in result["arms"].values())]
    for name in measures:
        label, n = measure_label(name), max(arm[name]["n"] for arm in result["arms"].values() if name in arm)
        title = "\n".join(wrap(label.title, 13))  # the width of an interval: 80 columns hold no wider titles
        table.add_column(f"{title}\n[dim]{label.direction}\nn={n}[/dim]", justify="right", no_wrap=True)

    def cells(_: str, estimates: Mapping[str, Estimate]) -> list[str]:
        return [estimate_markup(estimates.get(name), 2) for name in measures]

    _add_arms(table, result, cells)
    return Group(table, *map(Text.from_markup, [*verdicts(result), *_traces_shown(result)]))


def run_table(result: Mapping[str, Any]) -> RenderableType:
    """Return the arms of a run in bits per character, each with its difference to the twin; at most 80 columns."""
    table = plain_table(str(result["name"]))
    table.add_column("arm")
    for head, remark in (("bits per char", "low is close"), ("twin minus arm", "below 0 is closer"), ("discriminator", "AUC")):
        table.add_column(f"{head}\n[dim]{remark}[/dim]", justify="right", no_wrap=True)

    def cells(arm: str, estimates: Mapping[str, Estimate]) -> list[str]:
        difference = result["paired"].get(f"{twin_arm(result)} - {arm}", {}).get(PRIMARY)
        shown = ((estimates.get(PRIMARY), False), (difference, True), (estimates.get("discriminator"), False))
        return [
            f"n={estimate['n']} {estimate_markup(estimate, 3, signed=signed)}" if estimate else "–"
            for estimate, signed in shown
        ]

    _add_arms(table, result, cells)
    note = Text.from_markup(
        f"[dim]{_size(result)} of {plural(len(result['people']), 'person', 'people')}; {interval_basis(result)}; "
        f"scored by {escape(result['models']['scorer'])}[/dim]"
    )
    return Group(table, note, *map(Text.from_markup, _traces_shown(result)))


def _traces_shown(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence of rich markup with the shown pairs that carry a trace, by arm; none without traces."""
    counts = [f"{arm_title(arm, twin_arm(result))} {number(row['value'], 1)}" for arm, row in result.get("traces", {}).items()]
    return [f"[dim]shown pairs with a trace, mean of a turn: {escape(', '.join(counts))}[/dim]"] if counts else []


def _add_arms(table: Table, result: Mapping[str, Any], cells: Callable[[str, Mapping[str, Estimate]], list[str]]) -> None:
    """Add a row for each arm; `cells` returns the cells of an arm from its name and estimates."""
    twin = twin_arm(result)
    for arm, estimates in result["arms"].items():
        table.add_row(Text(arm_title(arm, twin)), *cells(arm, estimates), style="bold" if arm == twin else "")


def twin_arm(result: Mapping[str, Any]) -> str:
    """Return the arm that shows what the twin itself is shown; older results have no such entry."""
    return str(result.get("twin_arm", "recon"))


def estimate_markup(estimate: Estimate | None, digits: int, *, signed: bool = False, interval_digits: int | None = None) -> str:
    """Return rich markup of a value with its interval on a second line; a dash for None."""
    if estimate is None:
        return "–"
    ends = interval(estimate, digits if interval_digits is None else interval_digits, signed=signed)
    return f"{number(estimate['value'], digits, signed=signed)}\n[dim]{ends}[/dim]"


def _size(result: Mapping[str, Any]) -> str:
    return f"{plural(result['turns'], 'turn')} of {plural(result['conversations'], 'conversation')}"


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence of rich markup for each fixed contrast in bits per character, then the basis of the measurement."""
    sentences: list[str] = []
    for first, second in CONTRASTS:
        paired = result["paired"].get(f"{first} - {second}", {}).get(PRIMARY)
        if paired is None:
            continue
        subject, differ = arm_label(first).phrase, _OUTCOMES[verdict(paired)]
        figures = f"{with_interval(paired, 3, signed=True, unit='bits per character')}, n={paired['n']}"
        sentences.append(f"{subject[0].upper()}{subject[1:]} {differ} {arm_label(second).phrase}: [dim]{figures}[/dim]")
    f1 = result.get("ending", {}).get("f1")
    if f1 is not None:
        sentences.append(f"Prediction of when the person leaves: [dim]F1 {with_interval(f1, 2)}, n={f1['n']}[/dim]")
    scorer, action = (escape(result["models"][role]) for role in ("scorer", "action"))
    basis = f"{_size(result)} that the twin never saw; {interval_basis(result)}"
    return [*sentences, f"[dim]{basis}; scored by {scorer}, written by {action}; seed {result['seed']}[/dim]"]


def closeness_line(closeness: Mapping[str, Any]) -> str:
    """Return one line about a measurement of one twin, also for one without the twin's own arm or without a baseline."""
    result = upgrade(closeness)
    try:
        as_type(ClosenessShape, result)
    except ValueError as error:
        return f"the stored measurement is damaged ({error}); measure it again with usertwin eval"
    result = without_few(result)
    twin, day = twin_arm(result), result["measured_at"][:10]
    bits = result["arms"].get(twin, {}).get(PRIMARY)
    if bits is None:
        return f"only {', '.join(result['arms'])} measured; n={result['turns']} held-out turns, {day}"
    difference = result["paired"].get(f"{twin} - no_memory", {}).get(PRIMARY)
    gain = "" if difference is None else f", {with_interval(difference, 3, signed=True)} against no memory"
    few = "" if difference is None or verdict(difference) != "unknown" else f" (no verdict below {MIN_CLUSTERS} conversations)"
    return f"{with_interval(bits, 3, unit='bits per character')}{gain}; n={bits['n']} held-out turns{few}, {day}"
