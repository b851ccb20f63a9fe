"""The tables of a report: the content of `result.json` as sections of rows and cells that any form of report can draw.

Design: HTML and Markdown draw the same tables, so their figures cannot differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from usertwin.evals.arm_names import describe_arm

from .cells import (
    CONTRAST_COLUMNS,
    NONE,
    Cell,
    Grid,
    Mark,
    Section,
    TableRow,
    contrast_cells,
    count_cell,
    difference_cell,
    estimate_cell,
    mark_of,
    p_values,
    section,
    table_row,
)
from .labels import (
    MEASURE_DESCRIPTIONS,
    PRIMARY,
    Estimate,
    arm_label,
    arm_title,
    contrast_title,
    contrasts_of,
    counted,
    difference_of,
    in_order,
    measure_label,
    number,
    plural,
    twin_arm,
    verdict,
    with_interval,
)
from .summary import question_of

_PASSED = {None: Cell("too few pairs"), True: Cell("yes", mark="holds"), False: Cell("no", mark="fails")}
#: Labels of user models that are not trained on traces.
_KIND_LABELS = {"base": ("Not trained", "the base model"), "none": ("Pairs alone", "context and action")}
#: Checks of the discriminators: title, remark, and the AUC that is expected.
_CONTROLS = {
    "control": ("Past turns, text alone", "turns of the same person from other conversations", "near 0.5"),
    "context_control": ("Past turns in their own context", "the same turns after what was said before them", "near 0.5"),
    "misplaced": ("Past turns out of place", "the same turns in the context of the held-out turns", "above 0.5"),
}


def sections_of(result: Mapping[str, Any]) -> list[Section]:
    """Return the sections for which a result has figures, in the order of a report."""
    builders = (
        measures_section, discriminators_section, between_section, people_section, spread_section, judge_section,
        likelihood_judge_section, drift_section, endings_section, leakage_section, transfer_section, user_models_section,
    )  # fmt: skip
    return [part for build in builders if (part := build(result)) is not None]


def forest_grid(result: Mapping[str, Any]) -> Grid:
    """Return the twin against each other arm in bits per character, with tests and power."""
    rows = tuple(
        table_row(
            arm_label(arm).title, *contrast_cells(difference_cell(paired), paired, "twin closer", "twin less close"),
            description=describe_arm(arm),
        )
        for arm, paired in contrasts_of(result).items()
    )  # fmt: skip
    caption = f"{arm_title(result['twin_arm'], result['twin_arm'])} minus each other arm; below 0 is better for the twin"
    return Grid(caption, ("Compared with", *CONTRAST_COLUMNS), rows)


def measures_section(result: Mapping[str, Any]) -> Section | None:
    """Return every measure of every arm; the arms are columns."""
    arms, twin = in_order(result["arms"]), str(result["twin_arm"])
    rows: list[TableRow] = []
    for measure in dict.fromkeys(name for arm in arms for name in result["arms"][arm]):
        label, estimates = measure_label(measure), {arm: result["arms"][arm].get(measure) for arm in arms}
        marks: dict[str, Mark] = {arm: difference_cell(paired).mark for arm, paired in contrasts_of(result, measure).items()}
        marks[twin] = "twin"
        cells = tuple(
            estimate_cell(estimate, label.digits, signed=label.ideal == 0.0, mark=marks.get(arm, ""))
            for arm, estimate in estimates.items()
        )
        description = "; ".join(filter(None, (MEASURE_DESCRIPTIONS.get(measure), label.direction)))
        rows.append(TableRow(label.title, description, cells))
    if counts := result.get("traces"):
        shown = (count_cell(number(counts[arm]["value"], 1), counts[arm]["n"]) if arm in counts else NONE for arm in arms)
        description = "shown pairs that carry a trace, mean over turns; where it differs, arms differ in more than the traces"
        rows.append(table_row("Traces shown", *shown, description=description))
    columns = ("Measure", *(arm_title(arm, twin) for arm in arms))
    caption = "Value, 95% interval, and number of turns or replies"
    return section("measures", "All measures", caption, columns, rows, [_marks_note(rows)])


def _marks_note(rows: Sequence[TableRow]) -> str:
    """What the signs in rows of measures mean; signs that no cell has are not explained."""
    meanings = {"closer": "✓ the twin is closer to the person than this arm", "further": "✗ it is less close"}
    marks = {cell.mark for row in rows for cell in row.cells}
    signs = "; ".join(meaning for mark, meaning in meanings.items() if mark in marks)
    basis = "p below 0.05, after Holm's correction for the contrasts declared beforehand, uncorrected for all others"
    return f"{signs} ({basis}). No sign: no difference shown." if signs else f"No difference is shown ({basis})."


def discriminators_section(result: Mapping[str, Any]) -> Section | None:
    """Return the AUC of the discriminators where the answer is known."""
    controls = result.get("discriminator") or {}
    rows = (
        table_row(title, estimate_cell(controls[name], 2), Cell(expected), description=description)
        for name, (title, description, expected) in _CONTROLS.items()
        if controls.get(name) is not None
    )
    notes = (
        "A control far from 0.5 means that the person's held-out turns differ from earlier ones; an AUC of that size then says "
        "nothing about an arm. Turns out of place near 0.5 mean that the discriminator with context does not see the context.",
    )
    columns = ("Instead of replies", "AUC", "Expected")
    return section("discriminators", "Checks of the discriminators", "AUC against held-out turns", columns, rows, notes)


def between_section(result: Mapping[str, Any]) -> Section | None:
    """Return the differences between arms other than the twin's: the effect of memory and of traces."""
    rows = (
        table_row(
            contrast_title(name, "minus"),
            *contrast_cells(estimate_cell(paired, 3, signed=True), paired, "first closer", "second closer"),
        )
        for name, measures in result["paired"].items()
        if (paired := measures.get(PRIMARY)) is not None and result["twin_arm"] not in name.split(" - ")
    )
    caption = "Paired differences; below 0 is better for the first arm"
    return section("between", "Differences between other arms", caption, ("Arms", *CONTRAST_COLUMNS), rows)


def people_section(result: Mapping[str, Any]) -> Section | None:
    """Return the differences for each person, and the verdicts on the first contrast of the question counted over people."""
    twin, others = str(result["twin_arm"]), list(contrasts_of(result))
    each = {person: contrasts_of({**own, "twin_arm": twin}) for person, own in result["people"].items()}
    rows = (
        table_row(
            person, estimate_cell(own["arms"].get(twin, {}).get(PRIMARY), 3),
            *(difference_cell(each[person].get(arm)) for arm in others),
            description=f"{plural(own['turns'], 'turn')} in {plural(own['conversations'], 'conversation')}",
        )
        for person, own in result["people"].items()
    )  # fmt: skip
    columns = ("Person", "Bits per character of the twin", *(f"minus {arm_label(arm).title}" for arm in others))
    notes = [_count_verdicts(result, question[0])] if (question := question_of(result)) else []
    caption = "Bits per character of each person's real turns, and the difference to each arm; below 0 is better for the twin"
    return section("people", "Results by person", caption, columns, rows, notes)


def _count_verdicts(result: Mapping[str, Any], contrast: str) -> str:
    """A sentence with the number of people by the verdict on a contrast."""
    differences = (difference_of(own, contrast) for own in result["people"].values())
    outcomes = Counter(verdict(paired) for paired in differences if paired is not None)
    words = {"closer": "closer", "further": "less close", "same": "with no difference shown", "unknown": "without a test"}
    counts = ", ".join(f"{words[outcome]} for {outcomes[outcome]}" for outcome in words if outcomes[outcome])
    first, second = contrast.split(" - ")
    people = plural(outcomes.total(), "person", "people")
    return (
        f"{arm_title(first, twin_arm(result))} against {arm_title(second, twin_arm(result))}: {counts or 'not measured'}, of "
        f"{people}. Tests of single people are over their conversations and not corrected for their number."
    )


def spread_section(result: Mapping[str, Any]) -> Section | None:
    """Return, by arm, whether the replies differ between people as the people do."""
    by_arm = result.get("spread") or {}
    rows = (
        table_row(
            arm_label(arm).title, estimate_cell(by_arm[arm]["spread"], 2), estimate_cell(by_arm[arm]["matching"], 2),
            Cell(plural(by_arm[arm]["pairs"], "pair")),
        )
        for arm in in_order(by_arm)
    )  # fmt: skip
    notes = (
        "Distances are between the writing of two people of a corpus; n is the number of people. Spread: the sum of the "
        "distances between replies, divided by that between real turns. Matching: the correlation of both.",
    )
    columns = ("Arm", "Spread (1: as different as the people)", "Matching (1: the same people differ)", "Pairs of people")
    caption = "Are the twins as different from each other as the people?"
    return section("spread", "Differences between people", caption, columns, rows, notes)


def judge_section(result: Mapping[str, Any]) -> Section | None:
    """Return how often a judge prefers the twin's replies to each arm's, and whether it passes its sanity checks."""
    judge = result.get("judge")
    if not judge:
        return None
    wins = tuple(
        table_row(
            contrast_title(name, "over"), _win_cell(contrast, judge.get("usable", True)),
            estimate_cell(contrast.get("decided"), 2), estimate_cell(contrast["ties"], 2),
            count_cell(p_values(contrast), contrast["win"]["n"]),
        )
        for name, contrast in judge["contrasts"].items()
    )  # fmt: skip
    checks = tuple(
        table_row(
            name.replace("_", " ").capitalize(),
            estimate_cell(check["win"], 2), estimate_cell(check["ties"], 2), Cell(check["must"]), _PASSED[check.get("holds")],
        )
        for name, check in judge["sanity"].items()
    )  # fmt: skip
    columns = ("Replies compared", "Win rate", "Win rate where both orders agree", "Ties", "Test")
    grids = (
        Grid("Share of pairs in which the judge prefers the first reply; a tie counts half", columns, wins),
        Grid("Sanity checks: pairs with a known answer", ("Check", "Win rate", "Ties", "Expected", "Passed"), checks),
    )
    unreadable = judge["unreadable"]
    notes = (
        f"Judge: {judge['model']}. It sees each pair in both orders; an answer that changes with the order is a tie.",
        f"Same answer in both orders: {_share(judge['consistent'])}. First reply chosen, among answers other than ties "
        f"(unbiased: 0.5): {_share(judge['first'])}. Unreadable answers: {number(unreadable['value'], 2)} "
        f"(n={counted(unreadable['n'])}).",
        *judge.get("warnings", ()),
    )
    return Section("judge", "Pairwise judge", notes, tuple(grid for grid in grids if grid.rows))


def _win_cell(contrast: Mapping[str, Any], usable: bool) -> Cell:
    """Return a win rate, marked by the verdict on its difference from a half if the judge passes its checks."""
    win, p = contrast["win"], contrast.get("p") if usable else None
    low, high = (None if win.get(end) is None else 0.5 - win[end] for end in ("high", "low"))
    return estimate_cell(win, 2, mark=mark_of({"value": 0.5 - win["value"], "low": low, "high": high, "p": p}))


def _share(estimate: Estimate | None) -> str:
    return "unknown" if estimate is None else with_interval(estimate, 2).replace(")", f", n={counted(estimate['n'])})")


def likelihood_judge_section(result: Mapping[str, Any]) -> Section | None:
    """Return how often which reply gains more from the person's past, and whether real turns win."""
    judge = result.get("likelihood_judge")
    if not judge:
        return None
    wins = (
        table_row(contrast_title(name, "over"), _win_cell(row, judge["usable"]), Cell(p_values(row) or NONE.text))
        for name, row in judge["contrasts"].items()
    )
    checks = tuple(
        table_row(f"Real turn over {arm_label(arm).title}", estimate_cell(row["win"], 2), _PASSED[row.get("holds")])
        for arm, row in judge["real"].items()
    )
    notes = (
        f"Model: {judge['model']}. The reply wins that the person's past, compared with another person's, makes more likely.",
        *judge["warnings"],
    )
    more = [Grid("Checks: the real turn must win", ("Check", "Win rate", "Passed"), checks)]
    caption, columns = (
        "Share of turns at which the first reply wins; a tie counts half",
        ("Replies compared", "Win rate", "Test"),
    )
    return section("likelihood-judge", "Judge by likelihood", caption, columns, wins, notes, more)


def drift_section(result: Mapping[str, Any]) -> Section | None:
    """Return how closeness changes with the length of a free simulation."""
    by_depth: Mapping[str, Any] = result.get("drift") or {}
    rows = (
        table_row(
            f"Turn {depth}", estimate_cell(depths["similarity"], 2), estimate_cell(depths["real_history"], 2),
            estimate_cell(depths["difference"], 3, signed=True), estimate_cell(depths.get("style"), 3),
        )
        for depth, depths in sorted(by_depth.items(), key=lambda item: int(item[0]))
    )  # fmt: skip
    columns = ("Depth", "Free simulation", "After the real turns", "Free minus real", "Style distance")
    caption = "Cosine of the twin's turn and the real turn, by depth in the conversation"
    note = "In a free simulation the twin's own turns stand in its context; otherwise the person's real turns do."
    lengths: Mapping[str, Any] = result.get("drift_lengths") or {}
    titles = {"too_short": "Leaves before the person", "as_long": "As long", "too_long": "Does not leave where the person left"}
    by_length = tuple(table_row(title, estimate_cell(lengths.get(kind), 2)) for kind, title in titles.items())
    more = [Grid("Length of the free simulation", ("Length", "Share of conversations"), by_length)] if lengths else []
    return section("drift", "Drift in long conversations", caption, columns, rows, [note], more)


def endings_section(result: Mapping[str, Any]) -> Section | None:
    """Return whether the twin leaves when the person left, with the calibration of its probabilities."""
    rows: list[TableRow] = []
    grids: list[Grid] = []
    for person, ending in (result.get("endings") or {}).items():
        if not ending or not ending.get("f1"):
            continue
        calibration: Mapping[str, Any] = ending.get("calibration") or {"brier": None, "bins": ()}
        rows.append(table_row(person, estimate_cell(ending["f1"], 2), estimate_cell(calibration["brier"], 3)))
        bins = tuple(
            table_row(
                f"{number(part['low'], 2)} to {number(part['high'], 2)}",
                Cell(number(part["predicted"], 2)), count_cell(number(part["observed"], 2), part["n"]),
            )
            for part in calibration["bins"]
        )  # fmt: skip
        if bins:
            columns = ("Predicted probability of leaving", "Mean prediction", "Observed share")
            grids.append(Grid(f"{person}: predicted and observed share of leaving", columns, bins))
    columns = ("Person", "F1 of leaving (1 is best)", "Brier score (0 is best)")
    caption = "Does the twin leave when the person left?"
    return section("endings", "Leaving the conversation", caption, columns, rows, more=grids)


def leakage_section(result: Mapping[str, Any]) -> Section | None:
    """Return the checks that no held-out turn was known beforehand."""
    rows: list[TableRow] = []
    for person, leak in (result.get("leakage") or {}).items():
        memorized = leak.get("memorized")
        known = memorized if memorized and memorized["value"] is not None else None
        near = Cell(counted(leak["near_duplicates"]), f"of {plural(leak['of'], 'turn')}")
        rows.append(table_row(person, near, estimate_cell(known, 2), Cell("; ".join(leak["checked"]) or "–")))
    columns = ("Person", "Near-duplicates dropped", "Share memorized by the model", "Checks passed")
    caption = "Held-out turns nearly in the memory, or memorized by the scoring model (mean token probability above 0.5)"
    return section("leakage", "Leakage checks", caption, columns, rows)


def transfer_section(result: Mapping[str, Any]) -> Section | None:
    """Return the effect of one model's traces on another model."""
    rows = (
        table_row(
            f"Traces by {row['proposer']}", Cell(contrast_title(f"{row['arm']} - {row['against']}", "minus")),
            difference_cell(row[PRIMARY]), count_cell(p_values(row[PRIMARY]), row[PRIMARY]["n"]),
            description=f"used by {row['scorer']}",
        )
        for row in result.get("transfer") or ()
        if row[PRIMARY] is not None
    )  # fmt: skip
    columns = ("Models", "Arms", "Bits per character", "Test")
    caption = "Paired differences; below 0 the traces help the model that uses them"
    return section("transfer", "Transfer of traces between models", caption, columns, rows)


def user_models_section(result: Mapping[str, Any]) -> Section | None:
    """Return how well models that were fine-tuned on people, with and without traces, predict held-out turns."""
    models = result.get("user_models")
    if not models:
        return None
    rows: list[TableRow] = []
    for row in models["rows"]:
        title, description = _KIND_LABELS.get(row["kind"], (arm_label(row["kind"]).title, "context, trace and action"))
        test = count_cell(p_values(row["against"]), row["against"]["n"]) if row["against"] else NONE
        plain = estimate_cell(row["without_thoughts"], 3), difference_cell(row["without_thoughts_against"])
        cells = (estimate_cell(row["bits_per_char"], 3), difference_cell(row["against"]), test, *plain)
        rows.append(TableRow(title, description, cells))
    columns = ("Trained on", "Bits per character", "Minus pairs", "Test", "Without thoughts", "Without thoughts, minus pairs")
    shared = "the people of a corpus share a model" if models["of"] == "group" else "each person has a separate model"
    notes = (
        f"{models['base']} was fine-tuned with LoRA; {shared}. All kinds were trained on the same pairs "
        f"({_span(models['examples'])}) for {_span(models['steps'])} steps, then scored on "
        f"{plural(models['turns'], 'held-out turn')} of {plural(models['people'], 'person', 'people')}.",
        f"A model trained on traces first samples {plural(models['thoughts'], 'thought')} from the context alone. The log of "
        "the turn's mean probability after these thoughts is, in expectation, a lower bound on its log-probability (arXiv "
        "1509.00519), so the bits are, if anything, too high.",
    )
    caption = "Bits per character of held-out turns under user models; a difference below 0 is better than pairs alone"
    contrasts = [table_row(contrast_title(name, "minus"), difference_cell(paired)) for name, paired in models["paired"].items()]
    kinds = Grid("Kinds of traces compared with each other", ("Trained on", "Bits per character"), tuple(contrasts))
    more = [kinds] if contrasts else []
    return section("user-models", "User models fine-tuned with traces", caption, columns, rows, notes, more)


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return counted(low) if low == high else f"{counted(low)} to {counted(high)}"


def power_sentence(result: Mapping[str, Any]) -> str:
    """Return which differences this n cannot detect."""
    paired = {arm: difference for arm, difference in contrasts_of(result).items() if difference.get("visible") is not None}
    if not paired:
        return "There are too few people or conversations to estimate the power."
    limits = " to ".join(
        f"{number(paired[arm]['visible'], 3)} bits per character ({arm_label(arm).title}, n={counted(paired[arm]['n'])})"
        for arm in dict.fromkeys(pick(paired, key=lambda arm: paired[arm]["visible"]) for pick in (min, max))
    )
    return f"Differences below {limits} would be missed more than one time in five (80% power, two-sided 5%)."
