"""The commands that measure closeness: `usertwin eval` for a twin, `usertwin suite run` for many people.

The one design choice: with a folder to write to, both are the same run; a quick look at one twin is the same measurement of
fewer arms, kept in the twin's record instead of a report.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usertwin.personas import UsageError

from .options import (
    Style,
    console_for,
    home_option,
    model_option,
    progress_bars,
    seed_option,
    style_option,
)
from .twin_actions import measure

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.evals.suites.config import Suite


@click.command("eval")
@click.argument("name")
@click.option("--against", type=click.Path(path_type=Path), help="Measure on this person's turns in another log.")
@click.option("--limit", default=100, show_default=True, help="Measure on at most so many turns, spread evenly; 0 for all.")
@click.option("--generate", default=20, show_default=True, help="On how many of them each arm also writes a reply.")
@click.option("--arms", help='What to compare, such as "no_memory,recalled_pairs,openevals"; "all".  [default: five of them]')
@click.option("--samples", default=1, show_default=True, help="How many replies each time.")
@click.option("--choices", default=0, show_default=True, help="Among how many own turns the real one is to be found; 0: not.")
@click.option("--judge", help="A model that says which of two replies is closer; needs --out.")
@click.option("--out", type=click.Path(path_type=Path), help="A folder to write the run and its report to.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every figure to this file; - for the screen.")
@model_option
@click.option("--scorer", default="local", show_default=True, help="The model under which real turns are scored.")
@home_option
@seed_option
@style_option
def evaluate(
    name: str,
    against: Path | None,
    limit: int,
    generate: int,
    arms: str | None,
    samples: int,
    choices: int,
    judge: str | None,
    out: Path | None,
    json_file: Path | None,
    model: str,
    scorer: str,
    home: Path | None,
    seed: int,
    style: Style | None,
) -> None:
    """Measure how close the twin NAME is to the person's held-out turns, beside the baselines.

    With --out, the run is kept there turn by turn, goes on where it was stopped, and ends in a report.
    """
    from usertwin.evals.replay.replay import ReplayConfig
    from usertwin.evals.reports.terminal import closeness_table

    from .options import json_path, write_json

    on_screen = json_path(json_file)
    if out is None and judge is not None:
        raise UsageError("a judge's verdicts are kept with a run; name its folder with --out")
    if out is not None and against is not None:
        raise UsageError("a run is measured on the turns that were held out; leave out --against, or --out")
    console, named = console_for(stderr=on_screen), _arms(arms)
    protocol = ReplayConfig(named, limit or None, generate, samples, choices, seed=seed)
    protocol.check()
    if out is None:
        result = measure(
            console, name, home=home, model=model, scorer=scorer, style=style, against=against, protocol=protocol
        )  # fmt: skip
        console.print(closeness_table(result))
    else:
        from usertwin.evals.suites.config import Models, Suite

        models = Models(action=model, style=style, scorer=scorer, judge=judge)
        suite_of_one = Suite(
            name=name, twins=(name,), arms=named, turns=limit, replies=generate, samples=samples, choices=choices, seed=seed,
            models=models,
        )  # fmt: skip
        result = _run(console, suite_of_one, out, text="", home=home)
    write_json(json_file, result)


def _arms(told: str | None) -> tuple[str, ...]:
    """The arms that are named on the command line."""
    from usertwin.evals.arm_names import ARMS, USUAL_ARMS, check_arms

    if told is None:
        return USUAL_ARMS
    return ARMS if told == "all" else check_arms([one.strip() for one in told.split(",") if one.strip()])


@click.group()
def suite() -> None:
    """Measure many people under many arms, as a TOML file says, and write a report."""


@suite.command("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/NAME of the suite's file]")
@click.option("--dry-run", is_flag=True, help="Check everything, print what it would take, and do nothing.")
@home_option
def run_suite(file: Path, out: Path | None, dry_run: bool, home: Path | None) -> None:
    """Run the suite in FILE. Stopped at any time, the same command goes on where it was; nothing is asked twice."""
    from usertwin.evals.suites.config import read_suite

    console, found = console_for(), read_suite(file)
    folder = out or Path("runs") / file.stem
    if dry_run:
        from usertwin.evals.suites.config import logs_of
        from usertwin.evals.suites.run import SuiteRun, plan_of

        logs = logs_of(found)
        run = SuiteRun(found, folder, home=home)
        people = run.people(logs)
        run.check()
        for person in people:
            console.print(person.label, markup=False)
        for line in plan_of(found, logs, people):
            console.print(line, style="dim", markup=False)
        return
    _run(console, found, folder, text=file.read_text("utf-8"), home=home)


def _run(console: Console, suite: Suite, folder: Path, *, text: str, home: Path | None) -> dict[str, Any]:
    """Run a suite with bars, say what came out, and where it is."""
    from usertwin.evals.records.run_folder import PAGE
    from usertwin.evals.reports.terminal import run_table
    from usertwin.evals.suites.run import SuiteRun

    with progress_bars(console) as bars:
        result = asyncio.run(SuiteRun(suite, folder, text=text, home=home, fetch=bars.fetch, progress=bars).run())
    console.print(run_table(result))
    console.print(str(result["summary"]), markup=False, style="bold")
    for warning in result["warnings"]:
        console.print(warning, style="yellow", markup=False)
    console.print(f"the report: {folder / PAGE}", markup=False)
    return result
