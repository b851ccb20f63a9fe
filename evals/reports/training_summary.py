"""The summary of a training run: sentences for the terminal, and report.md.

Design: every method gets a sentence, and none is called the best. The best would be picked on the pairs that judge it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from usertwin.evals.records.result_shapes import ListwiseCheckShape
from usertwin.evals.records.run_folder import MARKDOWN_REPORT, write_atomically
from usertwin.evals.records.training_run import (
    GroupResult,
    MeasuredChange,
    MethodOutcome,
    TrainingEstimate,
    TrainingRun,
)
from usertwin.memory.training.model_card import METHODS

from .labels import MIN_CONVERSATIONS, MIN_PEOPLE, counted, interval, number, p_value, plural, verdict, with_interval
from .templates import in_markdown

#: Methods whose generated tokens differ by more than this share did not have the same budget.
_SAME_BUDGET = 0.05
_RESULTS_NOTE = (
    "Guarded gain of a trace (the first three columns): how much it raises the log-probability of the person's real action, in "
    "nats per token, without words copied from it, at the pairs for which a trace of both models passes the guards (the first "
    "n). Passing: share of traces that pass; a run of an earlier version has none, and its gains count a rejected trace as 0. "
    "Gives away: share of traces that identify the action without the context, by the model that measured. "
    f"Intervals: 95%, over people, or over the conversations of fewer than {MIN_PEOPLE} people, of whom they hold alone; "
    "differences are paired."
)
_GROUPS = {"unseen": "not trained on", "seen": "trained on, later turns"}


def write_training_summary(run: TrainingRun) -> Path:
    """Write report.md into the run's folder, and return its path. UsageError if it cannot be written."""
    path = run.folder / MARKDOWN_REPORT
    write_atomically(path, training_page(run))
    return path


def summarize_training(run: TrainingRun) -> list[str]:
    """Return what was trained on whom, then one sentence for each method."""
    manifest = run.manifest
    seen, unseen = (len(manifest.people.get(group, [])) for group in ("seen", "unseen"))
    first = (
        f"{plural(len(run.methods), 'method')} from the base {manifest.plan.get('base', 'unknown')}, trained on "
        f"{plural(manifest.pairs.get('train', 0), 'pair')} of {plural(seen, 'person', 'people')}; "
        f"{plural(unseen, 'other person', 'other people')} held out."
    )
    judge = [] if manifest.judge_check is None else [_judge_sentence(manifest.judge_check)]
    return [first, *judge, *(_sentence(method_title(name), outcome) for name, outcome in run.methods.items())]


def _judge_sentence(check: ListwiseCheckShape) -> str:
    return f"{check['sentence'][:1].upper()}{check['sentence'][1:]}."


def method_title(method: str) -> str:
    """Return the title of a training method; an unknown method is its own title."""
    return METHODS.get(method, (method, ""))[0]


def training_page(run: TrainingRun) -> str:
    """Return the summary as Markdown (GitHub's tables)."""
    finished = [(method_title(name), outcome) for name, outcome in run.methods.items() if outcome is not None]
    lines = [f"# Training run {in_markdown(run.folder.resolve().name)}", ""]
    lines += [f"- {in_markdown(sentence)}" for sentence in summarize_training(run)]
    if warnings := _warnings(run):
        lines += ["", "## Warnings", "", *(f"- {in_markdown(warning)}" for warning in warnings)]
    if results := [row for title, outcome in finished for row in _result_rows(title, outcome)]:
        columns = ("Method", "People", "Trained − base", "Base", "Trained", "Passing", "Leak rate", "Gives away", "Words", "n")
        lines += ["", "## Results on held-out pairs", "", *_table(columns, results)]
        lines += ["", _RESULTS_NOTE]
    if finished:
        columns = ("Method", "Steps", "Generated tokens", "Minutes", "Ended")
        lines += ["", "## Training", "", *_table(columns, (_training_row(title, outcome) for title, outcome in finished))]
    lines += ["", "## Configuration", "", *(f"- {name}: {in_markdown(text)}" for name, text in _configuration(run))]
    for title, outcome in finished:
        if outcome.examples:
            rows = [(example.action, example.base, example.trained) for example in outcome.examples]
            lines += ["", f"## Examples: {in_markdown(title)}", "", *_table(("Action", "Base", "Trained"), rows)]
    return "\n".join(lines) + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    return [line(columns), line("---" for _ in columns), *(line(map(in_markdown, row)) for row in rows)]


def _sentence(title: str, outcome: MethodOutcome | None) -> str:
    if outcome is None:
        return f"{title} is not finished."
    stopped = f" It stopped early: {outcome.stopped.strip().rstrip('.')}." if outcome.stopped else ""
    if outcome.lessons.equal or outcome.lessons.no_verdict:
        stopped += f" Some pairs taught nothing: {outcome.lessons}."
    groups = _groups(outcome)
    if not groups or groups[0][1].difference is None:
        return f"{title} finished; nothing was measured on held-out pairs.{stopped}"
    label, group = groups[0]  # the people it never saw, if there are any
    change = _json(group.difference)
    ends = "no interval" if change["low"] is None else f"95% interval {interval(change, 3, signed=True)}"
    test = "" if change["p"] is None else f", {p_value(change['p'])}"
    leaks = "" if group.passing is None else f"; share of traces that pass {_change(group.passing, 3)}"
    leaks += "" if group.leak_rate is None else f"; leak rate {_change(group.leak_rate, 3)}"
    return (
        f"{title} {_verdict(change)}: guarded gain {number(change['value'], 3, signed=True)} nats per token ({ends}{test}; "
        f"{plural(group.n, 'held-out pair')} of {plural(group.people, 'person', 'people')} {label}){leaks}.{stopped}"
    )


def _verdict(change: dict[str, Any]) -> str:
    """Return what the test of a gain says; a run of an earlier version has an interval, and no test."""
    if change["p"] is None and change["low"] is not None:
        return "was not tested against the base, in a run of an earlier version"
    return {  # in a gain, unlike in bits, above zero is better
        "further": "writes better traces than the base",
        "closer": "writes worse traces than the base",
        "same": "does not differ measurably from the base",
        "unknown": f"cannot yet be compared with the base ({MIN_PEOPLE} people, or {MIN_CONVERSATIONS} conversations of fewer, "
        "are needed)",
    }[verdict(change)]


def _groups(outcome: MethodOutcome) -> list[tuple[str, GroupResult]]:
    """Return the measured groups of people with their labels, held-out people first."""
    groups = ((label, getattr(outcome.measured, name, None)) for name, label in _GROUPS.items())
    return [(label, group) for label, group in groups if group is not None]


def _warnings(run: TrainingRun) -> list[str]:
    """Return what weakens the results."""
    warnings: list[str] = []
    if run.manifest.state != "complete":
        warnings.append("The training is not finished; run the same command to resume it.")
    if run.manifest.judge_check is not None and run.manifest.judge_check["outcome"] == "failed":
        warnings.append(_judge_sentence(run.manifest.judge_check))
    tokens: dict[str, int] = {}
    for name, outcome in run.methods.items():
        if outcome is None:
            continue
        title = method_title(name)
        tokens[title] = outcome.tokens
        scorer = outcome.measured.scorer if outcome.measured else None
        if scorer is not None and scorer == _rewarded_by(run.manifest.plan, name):
            warnings.append(f"{title} was measured by {scorer}, which is also in its reward; pass another --measured-by.")
        for label, group in _groups(outcome):
            rate = group.leak_rate
            if rate is not None and (rate.trained or 0.0) > (rate.base or 0.0):
                warnings.append(
                    f"{title} has a higher leak rate than the base on people {label}: {_change(rate, 3)} (n={group.n})."
                )
    if tokens and max(tokens.values()) - min(tokens.values()) > _SAME_BUDGET * max(tokens.values()):
        counts = ", ".join(f"{title} {counted(count)}" for title, count in tokens.items())
        warnings.append(f"The methods generated different numbers of tokens, so do not compare them: {counts}.")
    return warnings


def _rewarded_by(plan: Mapping[str, Any], method: str) -> str | None:
    """Return the model in the reward of a method."""
    judged = plan.get("fidelity") == "judge" and method != "e2e"
    return plan.get("judge") or plan.get("base") if judged else plan.get("scorer")


def _result_rows(title: str, outcome: MethodOutcome) -> list[tuple[str, ...]]:
    """Return a row for each group, then one for each person."""
    rows = [*_groups(outcome), *(outcome.measured.people.items() if outcome.measured else ())]
    return [
        (
            title, label, _estimate(group.difference, signed=True), _estimate(group.base), _estimate(group.trained),
            _change(group.passing, 3), _change(group.leak_rate, 3), _change(group.reveals_action, 3), _change(group.words, 1),
            counted(group.n) if group.compared is None else f"{counted(group.compared)} of {counted(group.n)}",
        )
        for label, group in rows
    ]  # fmt: skip


def _training_row(title: str, outcome: MethodOutcome) -> tuple[str, ...]:
    ended = outcome.stopped or "as planned"
    return title, counted(outcome.steps), counted(outcome.tokens), f"{outcome.seconds / 60:.1f}", ended


def _configuration(run: TrainingRun) -> list[tuple[str, str]]:
    manifest = run.manifest
    facts = {
        "started at": manifest.started_at, "trained on": manifest.people.get("seen"), "held out": manifest.people.get("unseen"),
        "pairs": manifest.pairs, "sources": manifest.sources, "plan": manifest.plan, "versions": manifest.versions,
    }  # fmt: skip
    return [(name, _text(value)) for name, value in facts.items() if value]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_text(part)}" for name, part in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def _estimate(estimate: TrainingEstimate | None, *, signed: bool = False) -> str:
    return "–" if estimate is None else with_interval(asdict(estimate), 3, signed=signed)


def _json(estimate: TrainingEstimate | None) -> dict[str, Any]:
    return {} if estimate is None else asdict(estimate)


def _change(change: MeasuredChange | None, digits: int) -> str:
    """Return a value before and after training, with the interval of the difference if there is one."""
    if change is None:
        return "–"
    text = " → ".join("–" if value is None else number(value, digits) for value in (change.base, change.trained))
    return text if change.difference is None else f"{text} ({interval(asdict(change.difference), digits, signed=True)})"
