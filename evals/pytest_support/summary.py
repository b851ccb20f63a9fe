"""The lines at the end of a test run: the twins that talked, how the agent did, and what a model cannot do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from usertwin.personas.printable import printable

from .verdict import Talk


def summary_lines(talks: Sequence[Talk]) -> list[tuple[str, bool]]:
    """Return the lines, each with whether it is a warning."""
    lines = list[tuple[str, bool]]()
    for twin in dict.fromkeys(talk.twin for talk in talks):
        own = [talk for talk in talks if talk.twin == twin]
        count = "1 conversation" if len(own) == 1 else f"{len(own)} conversations"
        lines.append((printable(f"{twin}: {count}; closeness: {own[-1].closeness}"), False))
    usable = [talk for talk in talks if not talk.spoiled and talk.passed is not None]
    spoiled = sum(talk.spoiled for talk in talks)
    tokens = sum(talk.tokens for talk in talks)
    parts = [_share("passed", sum(talk.passed is True for talk in usable), len(usable))]
    parts += [_share("spoiled by the twin", spoiled, len(talks))] if spoiled else []
    parts += [f"{tokens:,} tokens of the twins"] if tokens else []
    lines.append((f"conversations: {'; '.join(parts)}", False))
    if note := next((talk.note for talk in reversed(talks) if talk.note), ""):
        lines.append((printable(note), True))
    return lines


def write_report(folder: str, talks: Sequence[Talk]) -> str:
    """Write all conversations as a run of `usertwin simulate`, with its page; return a sentence that names it.

    UsageError if the folder cannot be written.
    """
    from usertwin.evals.agent_tests.page import write_page
    from usertwin.evals.agent_tests.read import read_agent_run, summary_of_run
    from usertwin.simulator import Simulation
    from usertwin.simulator.records import CheckResult
    from usertwin.simulator.runs.run_folder import RunFolder

    run, numbers, reasons, order = RunFolder(folder), Counter[tuple[str, str]](), Counter[str](), list[str]()
    twins = {talk.twin: {"speaker": talk.speaker, "closeness": talk.closeness} for talk in talks}
    models = ", ".join(dict.fromkeys(talk.model for talk in talks))
    run.begin({"agent": "pytest", "twins": twins, "models": {"action": models}})
    for talk in talks:
        row = talk.row or {}
        place = (str(row["scenario"]), talk.twin)
        simulation = replace(Simulation.from_json(row, talk.speaker), repeat=numbers[place])
        numbers[place] += 1
        error = "the test was skipped" if talk.passed is None else None
        simulation.checks.append(CheckResult(name="test", passed=talk.passed, error=error))
        reasons[simulation.stop_reason] += 1
        order.append(simulation.id)
        run.add(simulation)
    run.finish(order)
    run.summarize(reasons, finished=True)
    conversations = read_agent_run(folder)
    page = write_page(conversations, summary_of_run(conversations))
    return f"all conversations: {page}"


def _share(what: str, count: int, n: int) -> str:
    """Return a count with its share and Wilson's 95% interval."""
    if not n:
        return f"0 of 0 {what}"
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(count, n, method="wilson")
    return f"{count} of {n} {what} ({count / n:.0%}, 95% interval {low:.0%} to {high:.0%})"
