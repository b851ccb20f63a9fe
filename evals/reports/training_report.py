"""The report of a training: what each method did, what came of it on held-out pairs, and its curves.

The one design choice: the page and the Markdown draw the same sentences and tables, made here, and every method has a sentence
of its own; none is called the best, as that would be picked on the very pairs it is then judged by.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from usertwin.evals.records.run_folder import NOTES, PAGE, write_atomically
from usertwin.evals.records.training_run import (
    Example,
    Group,
    MeasuredChange,
    MethodRun,
    TrainingEstimate,
    TrainingRun,
    read_training,
)

from .labels import beside, counted, interval, number, plural
from .tables import NONE, Cell, Grid, Mark, Section, TableRow
from .templates import template
from .training_curves import colours_of, inline_panel, legend_mark, method_title, panels_of, whole_picture

__all__ = ["PICTURE", "read_training", "render_training", "render_training_markdown", "summary_of_training", "training_pages"]

PICTURE = "curves.svg"
#: Methods whose generated tokens differ by a larger part than this did not have the same budget.
_SAME_BUDGET = 0.05
#: So many turns before the action are shown with an example.
_CONTEXT = 4
_GROUPS = {"unseen": "not trained on", "seen": "trained on, later turns"}
_SUMMED = (
    "The curves of a sum are those of its two parts, one after the other; only the audit at its end is of the sum itself.",
)
_SIGNS = {"holds": "✓", "fails": "✗"}
_SPOKEN = {"holds": "better than the base", "fails": "worse than the base"}


def training_pages(run: TrainingRun) -> None:
    """Write report.html, report.md and curves.svg into the run's folder, in place of any that are there.

    Args:
        run: what `read_training` gives.

    Raises:
        UsageError: matplotlib is not installed, or nothing can be written there.
    """
    page, notes = render_training(run), render_training_markdown(run)
    write_atomically(run.folder / PICTURE, whole_picture(panels_of(run.methods), colours_of(run.methods)))
    write_atomically(run.folder / PAGE, page)
    write_atomically(run.folder / NOTES, notes)


def render_training(run: TrainingRun) -> str:
    """The report as one HTML file without links to anything else. UsageError if matplotlib is not installed."""
    lines, panels = colours_of(run.methods), panels_of(run.methods)
    return template("training_report.html").render(
        **_shared(run),
        verdict=_verdict(run),
        legend=[(legend_mark(*style), method_title(name)) for name, style in lines.items()],
        panels=[(panel, inline_panel(panel, lines)) for panel in panels],
        examples=[(method_title(one.name), _examples(one)) for one in run.methods if _examples(one)],
        spoken=_SPOKEN,
    )


def render_training_markdown(run: TrainingRun) -> str:
    """The report in Markdown (GitHub's tables), without the examples; the picture is the file beside it."""
    page = template("training_report_md.txt").render(**_shared(run), panels=panels_of(run.methods), picture=PICTURE)
    return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"


def _shared(run: TrainingRun) -> dict[str, Any]:
    """What both forms of the report show."""
    return {
        "name": run.folder.resolve().name,
        "started_at": (run.manifest.started_at or "")[:10],
        "summary": summary_of_training(run),
        "warnings": _warnings(run),
        "sections": [section for section in (_methods(run), _came_of_it(run), _people(run)) if section is not None],
        "facts": _facts(run),
        "signs": _SIGNS,
    }


# In sentences


def summary_of_training(run: TrainingRun) -> list[str]:
    """What came of a training: on what it was trained, then a sentence for each method."""
    manifest = run.manifest
    seen, unseen = (len(manifest.people.get(group, [])) for group in ("seen", "unseen"))
    pairs = plural(manifest.pairs.get("train", 0), "pair")
    base = manifest.plan.get("base")
    first = f"{plural(len(run.methods), 'method')} from {'the same base' if base is None else f'the base {base}'}, "
    first += f"on {pairs} of {plural(seen, 'person', 'people')}"
    first += (
        f"; {plural(unseen, 'other')} {_were(unseen)} kept apart to be measured on." if unseen else "; nobody was kept apart."
    )
    return [first, *map(_sentence, run.methods)]


def _sentence(one: MethodRun) -> str:
    title, outcome = method_title(one.name), one.outcome
    if outcome is None:
        steps = max((curve.steps[-1] for curve in one.values.values()), default=0)
        return f"{title} is not finished: {plural(steps, 'step')} so far."
    ended = f" It stopped by itself: {outcome.stopped.strip().rstrip('.')}." if outcome.stopped else ""
    name, group = _first_group(one)
    if group is None or group.difference is None:
        return f"{title} came to its end; nothing was measured on held-out pairs.{ended}"
    gained = group.difference
    told = {"holds": "writes better traces than the base", "fails": "writes worse traces than the base"}
    sure = told.get(_mark(gained), "cannot be told apart from the base")
    ends = "no interval: too few" if interval(_plain(gained), 3) == "no interval" else f"95% interval {_ends(gained)}"
    leaks = group.leak_rate
    leaked = "" if leaks is None else f"; leak rate {_change(leaks, 3)}"
    return (
        f"{title} {sure}: novel gain {number(gained.value, 3, signed=True)} nats per token against it ({ends}; "
        f"{plural(group.n, 'held-out pair')} of {plural(group.people, 'person', 'people')} {_GROUPS[name]}){leaked}.{ended}"
    )


def _first_group(one: MethodRun) -> tuple[str, Group | None]:
    """The people a method is judged by: those it never saw, if there are any."""
    measured = one.outcome.measured if one.outcome else None
    found = [(name, group) for name in _GROUPS if measured and (group := getattr(measured, name)) is not None]
    return found[0] if found else ("unseen", None)


def _verdict(run: TrainingRun) -> str:
    """The colour of the summary: that of what every method that was measured shares."""
    marks = {_mark(group.difference) for one in run.methods if (group := _first_group(one)[1]) is not None}
    return {"holds": "closer", "fails": "further"}.get(marks.pop(), "same") if len(marks) == 1 else "same"


def _warnings(run: TrainingRun) -> list[str]:
    """What to know before the figures are believed."""
    found: list[str] = []
    if run.manifest.state != "complete":
        found.append("The training is not finished; the same command goes on where it stopped.")
    if not run.methods:
        found.append("No method has begun: there is nothing to show yet.")
    for one in run.methods:
        title = method_title(one.name)
        if one.cut:
            found.append(f"{title}: {plural(one.cut, 'line')} of its curves, cut off by a kill, {_were(one.cut)} left out.")
        measured = one.outcome.measured if one.outcome else None
        if measured and measured.scorer is not None and measured.scorer == run.manifest.plan.get("scorer"):
            found.append(f"{title} was measured with {measured.scorer}, the scorer that was in its reward; take another.")
        worse = [
            f"{title} leaks more than the base on people {_GROUPS[name]}: {_change(group.leak_rate, 3)} "
            f"({_beside(group.leak_rate, group.n, 3)})."
            for name in _GROUPS
            if measured and (group := getattr(measured, name)) is not None and group.leak_rate and _rose(group.leak_rate)
        ]
        found += worse
    tokens = {method_title(one.name): one.outcome.tokens for one in run.methods if one.outcome}
    if tokens and max(tokens.values()) - min(tokens.values()) > _SAME_BUDGET * max(tokens.values()):
        told = ", ".join(f"{title} {counted(count)}" for title, count in tokens.items())
        found.append(f"The methods did not generate the same number of tokens, so they are no fair rivals: {told}.")
    return found


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _rose(change: MeasuredChange) -> bool:
    return change.base is not None and change.trained is not None and change.trained > change.base


# In tables


def _methods(run: TrainingRun) -> Section | None:
    """What each method did and what it took."""
    if not run.methods:
        return None
    rows: list[TableRow] = []
    for one in run.methods:
        outcome = one.outcome
        if outcome is None:
            rows.append(TableRow(method_title(one.name), one.name, (NONE, NONE, NONE, Cell("not finished"))))
            continue
        ended = Cell("stopped", outcome.stopped) if outcome.stopped else Cell("as planned")
        took = Cell(_time(outcome.seconds))
        rows.append(
            TableRow(
                method_title(one.name), one.name, (Cell(counted(outcome.steps)), Cell(counted(outcome.tokens)), took, ended)
            )
        )
    columns = ("Method", "Steps", "Generated tokens", "Time", "Ended")
    notes = _SUMMED if any(one.name == "soup" for one in run.methods) else ()
    return Section("methods", "The methods", notes, (Grid("What each method did", columns, tuple(rows)),))


def _came_of_it(run: TrainingRun) -> Section | None:
    """What was measured on held-out pairs: a row for each method and group of people."""
    rows: list[TableRow] = []
    scorers: list[str] = []
    for one in run.methods:
        measured = one.outcome.measured if one.outcome else None
        if measured is None:
            continue
        scorers.append(measured.scorer or "a scorer that is not named")
        for name, said in _GROUPS.items():
            group: Group | None = getattr(measured, name)
            if group is None:
                rows.append(TableRow(method_title(one.name), f"people {said}", (Cell("not measured"), *[NONE] * 5)))
            else:
                rows.append(TableRow(method_title(one.name), f"people {said}", _cells(group)))
    if not rows:
        return None
    notes = (
        "Novel gain: how much likelier a trace makes what the person really did, in nats per token, without the words that it "
        "has from there; 0 for a trace that a guard rejects; scored by "
        f"{', '.join(dict.fromkeys(scorers))}. Gives away: share of traces that tell the action without the context, which is "
        "in no reward.",
        "✓ better than the base, ✗ worse, each where the 95% interval of the paired difference excludes zero.",
    )
    columns = ("Method", "Difference", "Base", "Trained", "Leak rate", "Gives away", "Words a trace")
    grid = Grid("Traces of the base and of the trained model on the same held-out pairs", columns, tuple(rows))
    return Section("measured", "What came of it", notes, (grid,))


def _cells(group: Group) -> tuple[Cell, ...]:
    """Difference, base, trained, and what became of leaks, of what is given away, of words."""
    gains = (
        _estimate(group.difference, group.n, signed=True, mark=_mark(group.difference)),
        _estimate(group.base, group.n),
        _estimate(group.trained, group.n),
    )
    changes = (_changed(group.leak_rate, group.n), _changed(group.gives_away, group.n), _changed(group.words, group.n, 1))
    first = Cell(gains[0].text, f"{gains[0].beside}, {plural(group.people, 'person', 'people')}".lstrip(", "), gains[0].mark)
    return first, *gains[1:], *changes


def _people(run: TrainingRun) -> Section | None:
    """What the difference is for each person."""
    measured = {
        method_title(one.name): one.outcome.measured.people for one in run.methods if one.outcome and one.outcome.measured
    }
    shown = list(dict.fromkeys(person for people in measured.values() for person in people))
    if not shown:
        return None
    rows = [
        TableRow(person, next((said for name, said in _GROUPS.items() if person in run.manifest.people.get(name, ())), ""),
            tuple(_person_cell(people.get(person)) for people in measured.values()))
        for person in shown
    ]  # fmt: skip
    caption = (
        "Novel gain of the trained model minus that of the base; an interval of one person rests on their conversations alone"
    )
    return Section("people", "Person by person", (), (Grid(caption, ("Person", *measured), tuple(rows)),))


def _person_cell(group: Group | None) -> Cell:
    return NONE if group is None else _estimate(group.difference, group.n, signed=True, mark=_mark(group.difference))


def _estimate(one: TrainingEstimate | None, n: int, *, signed: bool = False, mark: Mark = "") -> Cell:
    if one is None:
        return NONE
    return Cell(number(one.value, 3, signed=signed), beside({**_plain(one), "n": n}, 3, signed=signed), mark)


def _changed(one: MeasuredChange | None, n: int, digits: int = 3) -> Cell:
    return NONE if one is None else Cell(_change(one, digits), _beside(one, n, digits))


def _beside(one: MeasuredChange, n: int, digits: int) -> str:
    """What is written beside a change: by how much, with its interval, if that is known, and n."""
    if one.difference is None:
        return f"n={counted(n)}"
    ends = interval(_plain(one.difference), digits, signed=True)
    return f"{number(one.difference.value, digits, signed=True)} ({ends}), n={counted(n)}"


def _change(one: MeasuredChange, digits: int) -> str:
    """What became of a number, as it is written: from the base to the trained model."""
    return " → ".join("–" if value is None else number(value, digits) for value in (one.base, one.trained))


def _plain(one: TrainingEstimate) -> dict[str, Any]:
    return {"value": one.value, "low": one.low, "high": one.high}


def _ends(one: TrainingEstimate) -> str:
    return interval(_plain(one), 3, signed=True)


def _mark(difference: TrainingEstimate | None) -> Mark:
    """What a difference of gains says of the trained model: nothing, unless its interval excludes zero."""
    if difference is None or difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return ""
    return "holds" if difference.low > 0 else "fails"


def _time(seconds: float) -> str:
    """A time, as it is read.

    >>> _time(41.6), _time(754), _time(8100)
    ('42 s', '12.6 min', '2.2 h')
    """
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# What else is shown


def _facts(run: TrainingRun) -> list[tuple[str, str]]:
    """The plan, the sources, the people, the versions: as terms and texts."""
    manifest = run.manifest
    groups = {"seen": "Trained on", "unseen": "Kept apart"}
    audited = max((one.audited for one in run.methods), default=0)
    found = {
        **{said: ", ".join(manifest.people.get(name, [])) for name, said in groups.items()},
        "Pairs": "; ".join(f"{name}: {counted(count)}" for name, count in manifest.pairs.items()),
        "Audits": f"on the same {plural(audited, 'held-out pair')} each time" if audited else "",
        "Sources": _listed(manifest.sources),
        "Plan": _listed(manifest.plan),
        "Intervals": "95%, from resampling people, then conversations of each (two-level bootstrap); differences are paired",
        "Versions": _listed(manifest.versions),
        "Started at": manifest.started_at or "",
    }
    return [(term, told) for term, told in found.items() if told]


def _listed(value: Any) -> str:
    """A value of a manifest in words; an object as "name: value" for each."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_listed(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_listed, value))
    return "none" if value is None else str(value)


def _examples(one: MethodRun) -> list[dict[str, Any]]:
    return [_example(example) for example in (one.outcome.examples if one.outcome else ())]


def _example(example: Example) -> dict[str, Any]:
    context = [_turn(turn) for turn in example.context[-_CONTEXT:]]
    return {"context": context, "action": example.action, "base": example.base, "trained": example.trained}


def _turn(turn: Any) -> tuple[str, str]:
    """A turn of an example's context, however it was written down: (who, text), an object, or a text."""
    if isinstance(turn, dict):
        return str(turn.get("speaker") or turn.get("role") or ""), str(turn.get("text", ""))
    parts: Sequence[Any] = turn if isinstance(turn, list | tuple) else ("", turn)
    return str(parts[0]) if len(parts) > 1 else "", str(parts[-1]) if parts else ""
