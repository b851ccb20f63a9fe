"""Reports and comparisons of simulated conversations with an agent, and the limits that set the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .options import console_for, is_standard_output, write_json

if TYPE_CHECKING:
    from usertwin.evals.agent_tests.thresholds import Thresholds

_Command = TypeVar("_Command", bound=Callable[..., Any])

_HELP = {
    "--min-pass-rate": "Fail below this share of passed conversations, 0 to 1.",
    "--min-goal-rate": "Fail below this share of conversations in which the goal was reached.",
    "--max-agent-faults": "Fail above this share of errors and timeouts of the agent.",
    "--max-twin-faults": "Fail above this share of conversations that the twin spoiled.",
    "--max-reply-seconds": "Fail if fewer than 95% of the agent's replies come within this time.",
}
_OPTIONS = (
    *(
        click.option(name, type=float, metavar="SECONDS" if "seconds" in name else "SHARE", help=text)
        for name, text in _HELP.items()
    ),
    click.option(
        "--min-conversations", default=8, show_default=True, help="Usable conversations that a limit of the agent needs."
    ),
    click.option("--by-interval", is_flag=True, help="Hold the worse end of the 95% interval to the limits, not the share."),
)  # fmt: skip


def threshold_options(command: _Command) -> _Command:
    """Add the options of limits to a command, which gets them as the argument `thresholds`."""

    @wraps(command)
    def with_thresholds(**arguments: Any) -> Any:
        from dataclasses import fields

        from usertwin.evals.agent_tests.thresholds import Thresholds

        limits = {field.name: arguments.pop(field.name) for field in fields(Thresholds)}
        return command(**arguments, thresholds=Thresholds(**limits))

    for option in reversed(_OPTIONS):
        option(with_thresholds)
    return with_thresholds  # pyright: ignore[reportReturnType] - click calls it by name


def report_agent_run(run: Path, thresholds: Thresholds, *, quiet: bool, json_file: Path | None) -> None:
    """Print the summary of a run, write its page, and exit with 1 if a limit is not kept."""
    from usertwin.evals.agent_tests.page import write_page
    from usertwin.evals.agent_tests.read import read_agent_run, summary_of_run
    from usertwin.evals.agent_tests.screen import summary_line, summary_view

    console = console_for(stderr=is_standard_output(json_file))
    conversations = read_agent_run(run)
    summary = summary_of_run(conversations)
    failures = thresholds.failures(summary)
    page = write_page(conversations, summary, failures, limits=thresholds.is_set)
    if quiet:
        for line in (summary_line(summary), *(f"FAILED  {failure}" for failure in failures)):
            console.print(line, markup=False, soft_wrap=True)
    else:
        console.print(summary_view(summary, failures))
        console.print(f"written to {page}", markup=False, soft_wrap=True)
    write_json(json_file, summary.to_json() | {"failures": failures})
    if failures:
        sys.exit(1)


def compare_agent_runs(old: Path, new: Path, *, json_file: Path | None, seed: int, anyway: bool) -> None:
    """Print the comparison of two runs."""
    from usertwin.evals.agent_tests.compare import compare_runs, comparison_view
    from usertwin.evals.agent_tests.read import read_agent_run

    console = console_for(stderr=is_standard_output(json_file))
    comparison = compare_runs(read_agent_run(old), read_agent_run(new), seed=seed, anyway=anyway)
    console.print(comparison_view(comparison))
    write_json(json_file, comparison.to_json())
