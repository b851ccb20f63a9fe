"""Terminal tables and sentences about a measurement, from the objects in `--json` files and `twin.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from usertwin.evals.metrics.older_estimates import with_present_tests
from usertwin.evals.records.older_results import upgrade
from usertwin.evals.records.result_shapes import ClosenessShape
from usertwin.personas.reading import as_type

from .labels import (
    PRIMARY,
    Estimate,
    arm_label,
    contrasts_of,
    difference_of,
    interval,
    interval_basis,
    measure_label,
    number,
    p_text,
    p_value,
    twin_arm,
    with_interval,
)
from .summary import REPLY_MEASURES, model_warnings, summary_of

#: Up to this number of arms, the table holds the written replies of all arms; of more arms, of those without likelihoods.
_FEW_ARMS = 6


def plain_table(title: str) -> Table:
    """Return an empty table in the style of all terminal tables."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=Text(title), title_justify="left")


def closeness_table(result: Mapping[str, Any]) -> RenderableType:
    """Return each arm of a measurement with the twin's difference to it, then the headline and the warnings.

    It has at most 80 columns, and a row for each arm.
    """
    title = Text(f"How close is {result.get('twin') or result.get('name') or 'the twin'}?")
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, title=title, title_justify="left")
    arms = [arm for arm, measures in result["arms"].items() if PRIMARY in measures]
    for place, head in enumerate(("arm", f"bits per char, {_n(result, PRIMARY, arms)}", "twin minus arm", "p")):
        width = len("0.050*") if head == "p" else None
        table.add_column(head, justify="right" if place else "left", no_wrap=place > 0, min_width=width)
    for arm in arms:
        _add_arm(table, result, arm, PRIMARY)
    measure = _reply_measure(result, [arm for arm in result["arms"] if arm not in arms])
    shown = result["arms"] if len(result["arms"]) <= _FEW_ARMS else [arm for arm in result["arms"] if arm not in arms]
    if replied := [arm for arm in shown if measure in result["arms"][arm]]:
        label = measure_label(measure)
        table.add_row(label.title, f"{label.direction}, {_n(result, measure, replied)}", style="dim")
    for arm in replied:
        _add_arm(table, result, arm, measure)
    warnings = (Text(warning, style="yellow") for warning in result.get("warnings", ()))
    notes = (Text(note, style="dim") for note in _notes(result))
    return Group(table, *notes, Text(summary_of(result), style="bold"), *warnings)


def _reply_measure(result: Mapping[str, Any], silent: Sequence[str]) -> str:
    """Return the measure of replies to show: one that all arms without likelihoods have, if there is one, and with tests."""

    def suits(name: str) -> tuple[bool, bool]:
        tested = any(paired.get("p") is not None for paired in contrasts_of(result, name).values())
        return all(name in result["arms"][arm] for arm in silent), tested

    return max(REPLY_MEASURES, key=suits)  # the first of equals


def _n(result: Mapping[str, Any], measure: str, arms: Iterable[str]) -> str:
    """Return the number of turns or replies behind a measure, a range if it differs between arms."""
    counts = [result["arms"][arm][measure]["n"] for arm in arms]
    low, high = min(counts, default=0), max(counts, default=0)
    return f"n={low}" if low == high else f"n={low} to {high}"


def _add_arm(table: Table, result: Mapping[str, Any], arm: str, measure: str) -> None:
    """Add a row with an arm's value in a measure, and the twin's difference to it."""
    twin, digits = twin_arm(result), measure_label(measure).digits
    paired = difference_of(result, f"{twin} - {arm}", measure)
    difference, p = ("the twin" if arm == twin else "–"), ""
    if paired is not None:
        difference = with_interval(paired, digits, signed=True)
        corrected = paired.get("p_holm")
        p = p_value(paired.get("p") if corrected is None else corrected).removeprefix("p").replace("=", "").replace(" ", "")
        p = (p or "–") + ("" if corrected is None else "*")
    row = (arm_label(arm).title, with_interval(result["arms"][arm][measure], digits), difference, p)
    table.add_row(*map(Text, row), style="bold" if arm == twin else "")


def _notes(result: Mapping[str, Any]) -> list[str]:
    """Return the basis of the figures, what the arms were shown, and how well leaving is predicted."""
    family = [name for name in (result.get("family") or {}).get("contrasts", ()) if difference_of(result, name)]
    correction = f", after Holm's correction for {len(family)} contrasts" if len(family) > 1 else ""
    holm = f"; *: declared beforehand{correction}" if family else ""
    notes = [f"below 0 is better for the twin; {interval_basis(result)}{holm}; seed {result['seed']}"]
    counts = [f"{arm_label(arm).title} {number(row['value'], 1)}" for arm, row in result.get("traces", {}).items()]
    if counts:
        notes.append(f"shown pairs with a trace, mean of a turn: {', '.join(counts)}")
    if f1 := result.get("ending", {}).get("f1"):
        notes.append(f"prediction of when the person leaves: F1 {with_interval(f1, 2)}, n={f1['n']}")
    return notes


def estimate_markup(estimate: Estimate | None, digits: int, *, signed: bool = False, interval_digits: int | None = None) -> str:
    """Return rich markup of a value with its interval on a second line; a dash for None."""
    if estimate is None:
        return "–"
    ends = interval(estimate, digits if interval_digits is None else interval_digits, signed=signed)
    return f"{number(estimate['value'], digits, signed=signed)}\n[dim]{ends}[/dim]"


def closeness_line(closeness: Mapping[str, Any]) -> str:
    """Return one line about a measurement of one twin, also for one without the twin's own arm or without a baseline."""
    result = upgrade(closeness)
    try:
        as_type(ClosenessShape, result)
    except ValueError as error:
        return f"the stored measurement is damaged ({error}); measure it again with usertwin eval"
    result = with_present_tests(result)
    twin, day = twin_arm(result), result["measured_at"][:10]
    bits = result["arms"].get(twin, {}).get(PRIMARY)
    if bits is None:
        return f"only {', '.join(result['arms'])} measured; n={result['turns']} held-out turns, {day}"
    difference = result["paired"].get(f"{twin} - no_memory", {}).get(PRIMARY)
    gain = ""
    if difference is not None:
        gain = f", {with_interval(difference, 3, signed=True)} against no memory, {p_text(difference)}"
    tested = "; by test models, which know nothing about people" if model_warnings(result) else ""
    return f"{with_interval(bits, 3, unit='bits per character')}{gain}; n={bits['n']} held-out turns, {day}{tested}"
