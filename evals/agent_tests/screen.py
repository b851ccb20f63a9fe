"""The summary of a run on the screen: at most 30 lines of 80 columns, or one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from usertwin.evals.reports.labels import counted, number, plural

from .rates import PassPower, Rate
from .summary import Summary

#: Checks, scenarios, and twins that have a line of their own; the others are counted.
_CHECKS, _SCENARIOS, _TWINS = 3, 3, 2
#: Characters of a scenario's name in the list of the worst conversations.
_ID = 20


def summary_line(summary: Summary) -> str:
    """Return the summary in one line, without the reasons."""
    aside = summary.conversations - summary.usable
    if summary.pass_rate is None:
        parts = [f"no verdict on {summary.agent}: no usable conversation"]
    else:
        parts = [f"{summary.agent} passed {share(summary.pass_rate)} of {plural(summary.usable, 'usable conversation')}"]
    parts += [f"{counted(aside)} set aside"] if aside else []
    parts += [] if summary.finished else ["the run is unfinished"]
    return f"{summary.name}: {'; '.join(parts)}"


def summary_view(summary: Summary, failures: Sequence[str] = ()) -> RenderableType:
    """Return the summary for the terminal; `failures` are those of the thresholds (`Thresholds.failures`).

    It has at most 30 lines besides the failures, and no line is longer than the console: what does not fit is in the page.
    """
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(no_wrap=True, min_width=len("Agent's faults"))
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for name, text in _rows(summary):
        table.add_row(Text(name, style="bold"), Text(text))
    lines: list[RenderableType] = [Text(_title(summary), style="bold", no_wrap=True, overflow="ellipsis"), table]
    if summary.worst:
        lines.append(Text("Worst conversations", style="bold"))
    for worst in summary.worst:
        others = f" ×{counted(worst.others + 1)}" if worst.others else ""
        lines.append(Text(f"  {_short(worst.id)}{others}: {worst.why}", no_wrap=True, overflow="ellipsis"))
    lines += [Text(f"FAILED  {failure}", style="bold red") for failure in failures]
    return Lines(*lines)


def _title(summary: Summary) -> str:
    unfinished = "" if summary.finished else " so far"
    several = f", in {plural(len(summary.scenarios), 'scenario')}" if any(group.name for group in summary.scenarios) else ""
    size = f"{plural(summary.conversations, 'conversation')}{unfinished} of {plural(len(summary.twins), 'twin')}"
    return f"{size} with {summary.agent}{several}"


def _rows(summary: Summary) -> list[tuple[str, str]]:
    """Return the names and texts of the table; at most 22."""
    rows = [("Passed", _passed(summary))]
    rows += [("", "passed means: " + ", ".join(summary.passed_means))] if summary.passed_means and summary.usable else []
    if powers := [f"pass^{power.k} {_power(power)}" for power in summary.pass_powers[:3]]:
        rows.append(("", "; ".join(powers)))
    if summary.goal_rate is not None:
        by = " and ".join(summary.goal_by)
        rows.append(("Goal reached", f"{share(summary.goal_rate)} of {counted(summary.goal_rate.n)}, by {by}"))
    if summary.agent_faults is not None:
        rows.append(("Agent's faults", f"{share(summary.agent_faults)} of {counted(summary.agent_faults.n)}"))
    if summary.twin_faults is not None:
        kinds = f": {_listed(summary.twin_fault_kinds)}" if summary.twin_fault_kinds else ""
        rows.append(("Twin's faults", f"{share(summary.twin_faults)}, set aside{kinds}"))
    if summary.no_verdict:
        rows.append(("No verdict", f"{sum(summary.no_verdict.values())} set aside: {_listed(summary.no_verdict)}"))
    rows.append(("Ended by", _listed(summary.stop_reasons)))
    checks = sorted(summary.checks, key=lambda check: check.rate.value if check.rate else -1.0)
    rows += _named("Checks", [f"{_check(check.rate, check.errors)}  {check.name}" for check in checks], _CHECKS)
    if len(summary.scenarios) > 1:
        groups = sorted(summary.scenarios, key=lambda group: group.pass_rate.value if group.pass_rate else -1.0)
        rows += _named("Scenarios", [f"{_group(group.pass_rate)}  {group.name}" for group in groups], _SCENARIOS)
    return [*rows, *_costs(summary), *_closeness(summary.closeness)]


def _passed(summary: Summary) -> str:
    if summary.pass_rate is None:
        return f"no verdict: none of {plural(summary.conversations, 'conversation')} is usable"
    rate = summary.pass_rate
    return f"{share(rate)}: {counted(rate.count)} of {counted(rate.n)} usable, interval over {rate.over}"


def _power(power: PassPower) -> str:
    ends = "" if power.low is None or power.high is None else f" ({power.low:.0%} to {power.high:.0%})"
    return f"{power.value:.0%}{ends}"


def _costs(summary: Summary) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    talks, replies, usage = summary.seconds, summary.reply_seconds, summary.usage
    if (turns := summary.turns) is not None:
        time = "" if talks is None else f"; {seconds(talks.mean)} a conversation, {seconds(talks.mean * talks.n)} together"
        rows.append(("Turns", f"{number(turns.mean, 1)} on average, at most {turns.most:.0f}{time}"))
    if replies is not None:
        rows.append(("Replies", f"{seconds(replies.median)} in the median, 95% within {seconds(replies.p95)}"))
    tokens = [f"{counted(usage.input_tokens)} read, {counted(usage.output_tokens)} written by the twin's model"]
    tokens += [] if summary.dollars is None else [f"${summary.dollars:.2f}"]
    tokens += [f"{plural(summary.discarded, 'turn')} written again"] if summary.discarded else []
    tokens += [plural(summary.retries, "retry", "retries")] if summary.retries else []
    return [*rows, ("Tokens", "; ".join(tokens))]


def _closeness(closeness: Mapping[str, str | None]) -> list[tuple[str, str]]:
    known = [f"{twin}: {text}" for twin, text in closeness.items() if text is not None]
    rest = [f"{counted(len(known) - _TWINS)} more on the page"] if len(known) > _TWINS else []
    if missing := len(closeness) - len(known):
        rest.append(f"not measured for {plural(missing, 'twin')} (usertwin eval NAME)")
    return _named("Closeness", [*known[:_TWINS], *(["; ".join(rest)] if rest else [])], _TWINS + 1)


def _named(title: str, lines: Sequence[str], most: int) -> list[tuple[str, str]]:
    """Return lines below one title, and how many more there are."""
    more = [f"and {counted(len(lines) - most)} more on the page"] if len(lines) > most else []
    return [(title if place == 0 else "", line) for place, line in enumerate([*lines[:most], *more])]


def _check(rate: Rate | None, errors: int) -> str:
    failed = "" if rate is None else f"{rate.count} of {rate.n}"
    return ", ".join(filter(None, (failed, f"{plural(errors, 'error')} of the check" if errors else "")))


def _group(rate: Rate | None) -> str:
    return "none usable" if rate is None else f"{rate.count} of {rate.n}"


def _short(name: str) -> str:
    """Return the id of a conversation with a scenario's name that leaves room on the line."""
    scenario, *rest = name.rsplit("/", 2)  # a scenario may be the id of a test, which holds slashes
    return "/".join([scenario if len(scenario) <= _ID else f"{scenario[: _ID - 1]}…", *rest])


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {counted(count)}" for name, count in counts.items())


def share(rate: Rate) -> str:
    """Return a share with its interval as text.

    >>> share(Rate(value=0.83, low=0.724, high=0.91, count=60, n=72, over="conversations"))
    '83% (72% to 91%)'
    """
    return f"{rate.value:.0%} ({rate.low:.0%} to {rate.high:.0%})"


def seconds(value: float) -> str:
    """Return a time as text.

    >>> seconds(0.25), seconds(90), seconds(8000)
    ('0.25 s', '1.5 min', '2.2 h')
    """
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 3600 else f"{value / 3600:.1f} h"
