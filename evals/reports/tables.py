"""The tables of a report: what is in `result.json`, as sections of rows and cells that any form of report can draw.

The one design choice: a page and Markdown draw the same tables, so they cannot tell different figures; a cell has its text and,
beside it, its interval and n, and there is no other way to make one out of an estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .labels import (
    PRIMARY,
    Estimates,
    arm_name,
    beside,
    chance,
    contrasts_of,
    counted,
    distance,
    in_order,
    measure_name,
    number,
    plural,
    verdict,
)
from .summary import best_alternative

Mark = Literal["", "closer", "further", "twin", "holds", "fails"]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it says.
        beside: its interval and n, or a remark.
        mark: what it means for the twin.
        best: whether it is the closest of its row.
    """

    text: str
    beside: str = ""
    mark: Mark = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row: what it is about, a remark on that, and its cells."""

    title: str
    said: str
    cells: tuple[Cell, ...]
    twin: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: what it shows, the head of each column (the first is that of the row titles), and its rows."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report: a name for links, a title, sentences, tables."""

    name: str
    title: str
    notes: tuple[str, ...]
    grids: tuple[Grid, ...] = ()


NONE = Cell("–")


def estimate_cell(
    estimate: Estimates | None, digits: int, *, signed: bool = False, mark: Mark = "", best: bool = False
) -> Cell:
    """A cell of an estimate: its value with its interval and n; a dash if there is none."""
    if estimate is None:
        return NONE
    return Cell(number(estimate["value"], digits, signed=signed), beside(estimate, digits, signed=signed), mark, best)


def difference_cell(paired: Estimates | None, digits: int = 3) -> Cell:
    """A cell of a paired difference, marked by what it says of the twin."""
    if paired is None:
        return NONE
    told = verdict(paired)
    return estimate_cell(paired, digits, signed=True, mark="" if told == "same" else told)


def sections_of(result: Mapping[str, Any]) -> list[Section]:
    """Every section of tables that a result has something for, in the order of a report."""
    made: Sequence[Callable[[Mapping[str, Any]], Section | None]] = (
        measures_section, between_section, people_section, judge_section, drift_section, endings_section, leakage_section,
        transfer_section, settling_section,
    )  # fmt: skip
    return [section for make in made if (section := make(result)) is not None]


def forest_grid(result: Mapping[str, Any]) -> Grid:
    """The twin against each other arm in bits per character, with what the tests say."""
    rows: list[TableRow] = []
    told = {"closer": "twin closer", "further": "twin further off", "same": "not told apart"}
    for arm, one in contrasts_of(result).items():
        tests = ", ".join(filter(None, (chance(one.get("p")), _holm(one))))
        cells = (difference_cell(one), Cell(told[verdict(one)], tests, difference_cell(one).mark), _visible_cell(one))
        rows.append(TableRow(arm_name(arm).title, arm_name(arm).said, cells))
    caption = f"{arm_name(result['twin_arm']).title} (the twin) minus each other arm; below 0 the twin is closer"
    columns = ("The twin against", "Bits per character", "Verdict", "Smallest difference seen with 80% power")
    return Grid(caption, columns, tuple(rows))


def _visible_cell(paired: Estimates) -> Cell:
    visible = paired.get("visible")
    return NONE if visible is None else Cell(number(visible, 3), f"n={counted(paired['n'])}")


def _holm(paired: Estimates) -> str:
    return chance(paired.get("p_holm")).replace("p ", "after Holm p ", 1)


def measures_section(result: Mapping[str, Any]) -> Section | None:
    """Every measure of every arm; the arms are columns."""
    arms, twin = in_order(result["arms"]), str(result["twin_arm"])
    measures = list(dict.fromkeys(name for arm in arms for name in result["arms"][arm]))
    if not measures:
        return None
    rows: list[TableRow] = []
    for measure in measures:
        name, found = measure_name(measure), {arm: result["arms"][arm].get(measure) for arm in arms}
        marks: dict[str, Mark] = {arm: difference_cell(one).mark for arm, one in contrasts_of(result, measure).items()}
        marks[twin] = "twin"
        far = {arm: distance(measure, one["value"]) for arm, one in found.items() if one is not None}
        signed = name.best == 0.0
        cells = (
            estimate_cell(
                found[arm], name.digits, signed=signed, mark=marks.get(arm, ""),
                best=arm in far and far[arm] == min(far.values()),
            )
            for arm in arms
        )  # fmt: skip
        rows.append(TableRow(name.title, "; ".join(filter(None, (name.said, name.closest))), tuple(cells)))
    columns = ("Measure", *(arm_name(arm).title + (" (the twin)" if arm == twin else "") for arm in arms))
    notes = (
        "✓ the twin is closer to the person than this arm, ✗ it is further off, each where the interval of the paired "
        "difference excludes zero; no sign: not told apart. ★ the closest of its row, sure or not.",
    )
    caption = "Every measure of every arm: value, 95% interval, number of turns or replies"
    return Section("measures", "All measures", notes, (Grid(caption, columns, tuple(rows)),))


def between_section(result: Mapping[str, Any]) -> Section | None:
    """Arms held against each other, neither of which is what the twin does: what memory, and what traces, are worth."""
    rows: list[TableRow] = []
    for name, measures in result["paired"].items():
        first, _, second = name.partition(" - ")
        one = measures.get(PRIMARY)
        if one is not None and result["twin_arm"] not in (first, second):
            said = {"closer": "the first is closer", "further": "the second is closer", "same": "not told apart"}[verdict(one)]
            title = f"{arm_name(first).title} minus {arm_name(second).title}"
            cells = (estimate_cell(one, 3, signed=True), Cell(said, chance(one.get("p"))), _visible_cell(one))
            rows.append(TableRow(title, "", cells))
    if not rows:
        return None
    columns = ("Arms", "Bits per character", "Verdict", "Smallest difference seen with 80% power")
    caption = "Paired differences of other arms; below 0 the first is closer to the person"
    return Section("between", "Arms against each other", (), (Grid(caption, columns, tuple(rows)),))


def people_section(result: Mapping[str, Any]) -> Section | None:
    """What the differences are for each person, and how many of the people the twin is ahead for."""
    if not result["people"]:
        return None
    twin, others = str(result["twin_arm"]), list(contrasts_of(result))
    each = {person: contrasts_of({**one, "twin_arm": twin}) for person, one in result["people"].items()}
    rows: list[TableRow] = []
    for person, one in result["people"].items():
        own = estimate_cell(one["arms"].get(twin, {}).get(PRIMARY), 3)
        cells = (own, *(difference_cell(each[person].get(arm)) for arm in others))
        said = f"{plural(one['turns'], 'turn')} in {plural(one['conversations'], 'conversation')}"
        rows.append(TableRow(person, said, cells))
    columns = ("Person", "The twin's bits per character", *(f"against {arm_name(arm).title}" for arm in others))
    found, notes = best_alternative(result), list[str]()
    if found is not None:
        ahead = [verdict(one[found[0]]) for one in each.values() if found[0] in one]
        notes.append(
            f"Against {arm_name(found[0]).title}, the best alternative, the twin is closer for {ahead.count('closer')}, "
            f"further off for {ahead.count('further')} and not told apart for {ahead.count('same')} of "
            f"{plural(len(ahead), 'person', 'people')}; an interval of one person rests on that person's conversations alone."
        )
    caption = "The twin's cost of each person's real turns, and its difference to each arm; below 0 the twin is closer"
    return Section("people", "Person by person", tuple(notes), (Grid(caption, columns, tuple(rows)),))


def judge_section(result: Mapping[str, Any]) -> Section | None:
    """What a judge said: how often which arm is closer, and whether the judge can be believed."""
    judge = result.get("judge")
    if not judge:
        return None
    rows: list[TableRow] = []
    for name, one in judge["contrasts"].items():
        first, _, second = name.partition(" - ")
        low, high = one["win"].get("low"), one["win"].get("high")
        mark: Mark = "" if low is None or high is None or low <= 0.5 <= high else "closer" if low > 0.5 else "further"
        p = Cell(chance(one.get("p")).removeprefix("p = ").removeprefix("p ") or "–", f"n={counted(one['win']['n'])}")
        cells = (
            estimate_cell(one["win"], 2, mark=mark),
            estimate_cell(one.get("decided"), 2),
            estimate_cell(one["ties"], 2),
            p,
        )
        rows.append(TableRow(f"{arm_name(first).title} over {arm_name(second).title}", "", cells))
    columns = ("Which reply is closer", "Win rate", "Where both orders agree", "Ties", "p")
    wins = Grid("Share of pairs in which the first is closer to the real turn; a tie counts half", columns, tuple(rows))
    checks = tuple(_sanity_row(name, one) for name, one in judge["sanity"].items())
    caption = "Pairs of which the answer is known beforehand"
    sanity = Grid(caption, ("Check", "Win rate", "Ties", "What must be", "Is it so?"), checks)
    unreadable = judge["unreadable"]
    notes = (
        f"Judged by {judge['model']}; each pair in both orders, an answer that turns with the order is a tie.",
        f"The same answer in both orders: {_told(judge['consistent'])}. The reply shown first, of the answers that are no tie "
        f"(0.5 is fair): {_told(judge['first'])}. Answers that could not be read: {number(unreadable['value'], 2)} "
        f"(n={counted(unreadable['n'])}).",
        *judge.get("warnings", ()),
    )
    return Section("judge", "What a judge says", notes, tuple(grid for grid in (wins, sanity) if grid.rows))


def _told(estimate: Estimates | None) -> str:
    return "not known" if estimate is None else f"{number(estimate['value'], 2)} ({beside(estimate, 2)})"


def _sanity_row(name: str, one: Mapping[str, Any]) -> TableRow:
    holds = one.get("holds")
    answer = Cell("too few to tell") if holds is None else Cell("yes", mark="holds") if holds else Cell("no", mark="fails")
    title = name.replace("_", " ").capitalize()
    return TableRow(title, "", (estimate_cell(one["win"], 2), estimate_cell(one["ties"], 2), Cell(one["must"]), answer))


def drift_section(result: Mapping[str, Any]) -> Section | None:
    """How closeness changes with the length of a free simulation."""
    drift = result.get("drift")
    if not drift:
        return None
    rows = tuple(
        TableRow(
            f"Turn {depth}", "",
            (
                estimate_cell(one["similarity"], 2), estimate_cell(one["real_history"], 2),
                estimate_cell(one["difference"], 3, signed=True), estimate_cell(one.get("style"), 3),
            ),
        )
        for depth, one in sorted(drift.items(), key=lambda item: int(item[0]))
    )  # fmt: skip
    columns = ("Depth", "Meaning, free", "Meaning, after the real turns", "Free minus real", "Style distance")
    caption = "Cosine of the twin's turn and the real one at a depth of the conversation"
    note = "A free simulation goes on from what the twin itself said; beside it the twin answers after what was really said."
    return Section("drift", "Drift over many turns", (note,), (Grid(caption, columns, rows),))


def endings_section(result: Mapping[str, Any]) -> Section | None:
    """Whether the twin leaves when the person left."""
    endings = {person: one for person, one in (result.get("endings") or {}).items() if one and one.get("f1")}
    if not endings:
        return None
    rows: list[TableRow] = []
    grids: list[Grid] = []
    for person, one in endings.items():
        calibration = one.get("calibration")
        brier = estimate_cell(calibration.get("brier") if calibration else None, 3)
        rows.append(TableRow(person, "", (estimate_cell(one["f1"], 2), brier)))
        if calibration and calibration["bins"]:
            bins = tuple(
                TableRow(
                    f"{number(part['low'], 2)} to {number(part['high'], 2)}",
                    "",
                    (Cell(number(part["told"], 2)), Cell(number(part["left"], 2), f"n={counted(part['n'])}")),
                )
                for part in calibration["bins"]
            )
            title = f"{person}: told and real share of leaving"
            grids.append(Grid(title, ("Told chance of leaving", "Told, on average", "Really left"), bins))
    columns = ("Person", "F1 of leaving (1 is best)", "Brier score (0 is best)")
    first = Grid("Does the twin leave when the person left?", columns, tuple(rows))
    return Section("endings", "Leaving", (), (first, *grids))


def leakage_section(result: Mapping[str, Any]) -> Section | None:
    """What was done so that nothing measured was known beforehand."""
    leakage = result.get("leakage")
    if not leakage:
        return None
    rows: list[TableRow] = []
    for person, one in leakage.items():
        heart = one.get("known_by_heart")
        known = estimate_cell(heart if heart and heart["value"] is not None else None, 2)
        near = Cell(counted(one["near_duplicates"]), f"of {plural(one['of'], 'turn')}")
        rows.append(TableRow(person, "", (near, known, Cell("; ".join(one["checked"]) or "–"))))
    columns = ("Person", "Near-duplicates dropped", "Share the model knows by heart", "Checked")
    caption = "Held-out turns that are nearly in the memory, or that the model knows without one"
    return Section("leakage", "Leakage", (), (Grid(caption, columns, tuple(rows)),))


def transfer_section(result: Mapping[str, Any]) -> Section | None:
    """Traces made by one model, used by another."""
    rows = [
        TableRow(
            f"Traces of {one['proposer']}",
            f"used by {one['scorer']}",
            (
                Cell(arm_name(one["arm"]).title),
                Cell(arm_name(one["against"]).title),
                difference_cell(one[PRIMARY]),
                Cell(chance(one[PRIMARY].get("p")) or "–", f"n={counted(one[PRIMARY]['n'])}"),
            ),
        )
        for one in result.get("transfer") or ()
        if one[PRIMARY] is not None
    ]
    if not rows:
        return None
    columns = ("Models", "Arm", "Against", "Bits per character", "Test")
    caption = "Paired differences; below 0 the traces help the model that uses them"
    return Section("transfer", "From one model to another", (), (Grid(caption, columns, tuple(rows)),))


#: How a report calls what a user model was taught.
_TAUGHT = {
    "base": ("Not trained", "the base as it is"),
    "none": ("Pairs", "context and action alone"),
    "backward": ("Backward synthesis", "with the first reasoning that was proposed"),
    "recon": ("Recon-Select", "with the reasoning that reconstructs the action best"),
    "trained": ("Trained synthesizer", "with reasoning by a trained model"),
}


def settling_section(result: Mapping[str, Any]) -> Section | None:
    """What models that were fine-tuned on people, with and without traces, make of held-out turns."""
    found = result.get("settling")
    if not found:
        return None
    rows: list[TableRow] = []
    for one in found["rows"]:
        against, beside_it = one["against"], one["at_once_against"]
        tests = ", ".join(filter(None, (chance((against or {}).get("p")), _holm(against or {}))))
        cells = (
            estimate_cell(one["bits_per_char"], 3), difference_cell(against),
            Cell(tests or "–", f"n={counted(against['n'])}") if against else NONE,
            estimate_cell(one["at_once"], 3), difference_cell(beside_it),
        )  # fmt: skip
        rows.append(TableRow(*_TAUGHT.get(one["kind"], (one["kind"], "")), cells))
    columns = ("Trained on", "Bits per character", "Minus pairs", "Test", "Asked at once", "Asked at once, minus pairs")
    shared = "the people of a corpus share a model" if found["of"] == "group" else "each person has a model of their own"
    lessons, steps = (sorted({*found[key]}) for key in ("lessons", "steps"))
    notes = (
        f"{found['base']} fine-tuned (LoRA), {shared}: {_span(lessons)} moments, the same in every kind, {_span(steps)} "
        f"steps; then asked what {plural(found['turns'], 'held-out turn')} of {plural(found['people'], 'person', 'people')} "
        f"cost. What was taught reasoning writes {plural(found['thoughts'], 'thought')} of its own first, from the context "
        "alone, and the mean of the probabilities after each counts: on average a lower bound (arXiv 1509.00519), so "
        "these figures are if anything too high. Below 0: it predicts people better than what was taught pairs alone.",
    )
    grids = [Grid("What held-out turns cost under models of people, by what these were trained on", columns, tuple(rows))]
    if found["paired"]:
        among = tuple(
            TableRow(
                " minus ".join(_TAUGHT.get(kind, (kind, ""))[0] for kind in name.split(" - ")), "", (difference_cell(one),)
            )
            for name, one in found["paired"].items()
        )
        grids.append(Grid("Kinds of reasoning against each other", ("What was taught", "Bits per character"), among))
    return Section("settling", "What a model learns from reasoning", notes, tuple(grids))


def _span(numbers: Sequence[int]) -> str:
    low, high = numbers[0], numbers[-1]
    return counted(low) if low == high else f"{counted(low)} to {counted(high)}"


def power_lines(result: Mapping[str, Any]) -> list[str]:
    """With this n, which differences are invisible; a sentence for each arm that has a power."""
    seen = {arm: one for arm, one in contrasts_of(result).items() if one.get("visible") is not None}
    if not seen:
        return ["Too few people or conversations to say which differences would be invisible."]
    least, most = (pick(seen, key=lambda arm: seen[arm]["visible"]) for pick in (min, max))
    told = f"With this n, differences under {number(seen[least]['visible'], 3)} bits per character ({arm_name(least).title}, "
    told += f"n={counted(seen[least]['n'])})"
    if least != most:
        told += f" to {number(seen[most]['visible'], 3)} ({arm_name(most).title}, n={counted(seen[most]['n'])})"
    return [f"{told} are invisible: they would be missed more than one time in five (80% power, two-sided 5%)."]
