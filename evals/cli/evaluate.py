"""The commands that measure closeness: `usertwin eval` for one twin, `usertwin suite run` for many people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usertwin.evals.arm_names import ADAPTED, ARM_DESCRIPTIONS, ARMS, DEFAULT_ARMS, RERANKED, WORDS, check_arms
from usertwin.memory.event_loop import run_sync
from usertwin.memory.models.chat import PromptStyle
from usertwin.personas import UsageError
from usertwin.personas.reading import as_type

from .parts.options import (
    check_writable,
    console_for,
    file_path,
    home_option,
    is_standard_output,
    json_option,
    model_option,
    progress_bars,
    scorer_option,
    seed_option,
    style_option,
    twin_argument,
    write_json,
)
from .twin_actions import measure_twin, print_look, print_looks

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.evals.suites.config import Suite


class _EvalCommand(click.Command):
    """A command whose help ends with the arms."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("Arms, by what the model is shown"):
            words = f"With {WORDS} behind its name, an arm where a model writes also has the person's own words."
            best = f"With {RERANKED} behind it, an arm of the twin's memory replies with the best of several, by its rule."
            adapter = (
                f"With {ADAPTED} behind its name, before the two below, an arm of the twin's memory has the twin's adapter."
            )
            forms = [(f"ARM{ADAPTED}", adapter), (f"ARM{WORDS}", words), (f"ARM{RERANKED}", best)]
            formatter.write_dl([*ARM_DESCRIPTIONS.items(), *forms])


@click.command("eval", cls=_EvalCommand)
@twin_argument
@click.option("--against", type=file_path, help="Measure on this person's turns in another log.")
@click.option(
    "--limit", default=100, show_default=True, help="The most held-out turns to measure on, spread evenly; 0 for all."
)
@click.option("--generate", default=20, show_default=True, help="Number of these turns for which each arm also writes replies.")
@click.option(
    "--arms",
    help='Arms to compare (see below), separated by commas, or "all"; NAME=MODULE:ATTRIBUTE is a simulated user of '
    f"yours, which is measured by the same protocol.  [default: {', '.join(DEFAULT_ARMS)}, and that of the twin]",
)
@click.option("--samples", default=1, show_default=True, help="Replies that each arm samples for a turn.")
@click.option(
    "--choices", default=0, show_default=True, help="Number of the person's actions in a forced choice; 0 for no forced choice."
)
@click.option("--judge", help="Model that judges which of two replies is closer to the real turn; needs --out.")
@click.option("--out", type=file_path, help="Folder to write the run and its report to.")
@json_option
@model_option
@scorer_option
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
    style: PromptStyle | None,
) -> None:
    """Measure how close the twin NAME is to the person's held-out turns.

    Compares the twin with the baselines in --arms. With --out, the run is written there turn by turn, continues where it was
    stopped, and ends with a report.
    """
    from usertwin.evals.replay.replay import ReplayConfig
    from usertwin.evals.reports.terminal import closeness_table

    console = console_for(stderr=is_standard_output(json_file))
    if out is None and judge is not None:
        raise UsageError("--judge needs --out: the verdicts are written to the folder of the run")
    if out is not None and against is not None:
        raise UsageError("--against and --out exclude each other: a run in a folder measures the twin's own held-out turns")
    arm_names = _parse_arms(arms)
    config = ReplayConfig(arms=arm_names, limit=limit or None, generate=generate, samples=samples, choices=choices, seed=seed)
    config.check()
    if out is None:
        result = measure_twin(console, name, home=home, model=model, scorer=scorer, style=style, against=against, config=config)
        console.print(closeness_table(result))
        print_look(console, name, home, f"usertwin eval {name}")
    else:
        from usertwin.evals.suites.config import Models, Suite

        models = Models(action=model, style=style, scorer=scorer, judge=judge)
        suite_of_one = Suite(
            name=name, twins=(name,), arms=arm_names, turns=limit, replies=generate, samples=samples, choices=choices,
            seed=seed, models=models,
        )  # fmt: skip
        result = _run_suite(console, suite_of_one, out, text="", home=home)
    write_json(json_file, result)


def _parse_arms(names: str | None) -> tuple[str, ...]:
    """Return the arms that --arms names. UsageError for an unknown arm."""
    if names is None:
        return DEFAULT_ARMS
    parts = [name.strip() for name in names.split(",") if name.strip()]
    return check_arms([arm for part in parts for arm in (ARMS if part == "all" else (part,))])


@click.group()
def suite() -> None:
    """Measure many people under many arms and write a report."""


@suite.command("run")
@click.argument("file", type=file_path)
@click.option("--out", type=file_path, help="Folder of the run.  [default: runs/NAME of the suite's file]")
@click.option(
    "--corpus",
    "corpora",
    multiple=True,
    metavar="NAME",
    help="Measure the people of this corpus of the suite alone; may be repeated. `usertwin join` joins such runs.",
)
@click.option("--dry-run", is_flag=True, help="Check the suite, print its people and the cost estimate, and stop.")
@home_option
def run_suite(file: Path, out: Path | None, corpora: tuple[str, ...], dry_run: bool, home: Path | None) -> None:
    """Run the suite in the TOML file FILE.

    If it is stopped, the same command continues where it stopped and repeats no request to a model.
    """
    from usertwin.evals.suites.config import read_suite
    from usertwin.evals.suites.join import with_corpora

    console, suite = console_for(), with_corpora(read_suite(file), corpora)
    folder = out or Path("runs") / file.stem
    if dry_run:
        _print_plan(console, suite, folder, home)
    else:
        _run_suite(console, suite, folder, text=file.read_text("utf-8"), home=home)


def _print_plan(console: Console, suite: Suite, folder: Path, home: Path | None) -> None:
    """Check a suite; print its people and what it takes."""
    from usertwin.evals.suites.config import logs_of
    from usertwin.evals.suites.run import SuiteRun, work_estimate

    logs = logs_of(suite)
    run = SuiteRun(suite, folder, home=home)
    people = run.people(logs)
    run.check()
    for person in people:
        console.print(person.label, markup=False)
    for line in work_estimate(suite, logs, people):
        console.print(line, style="dim", markup=False)


def _run_suite(console: Console, suite: Suite, folder: Path, *, text: str, home: Path | None) -> dict[str, Any]:
    """Run a suite with progress bars; print the result and the report's path."""
    from usertwin.evals.records.run_folder import HTML_REPORT
    from usertwin.evals.reports.terminal import closeness_table
    from usertwin.evals.suites.people import Look
    from usertwin.evals.suites.run import SuiteRun

    check_writable(folder, "--out")
    with progress_bars(console) as bars:
        result = run_sync(SuiteRun(suite, folder, text=text, home=home, fetch=bars.fetch, progress=bars).run())
    console.print(closeness_table(result))
    console.print(f"report: {folder / HTML_REPORT}", markup=False)
    print_looks(console, [as_type(Look, look) for look in result["looks"]])
    return result
