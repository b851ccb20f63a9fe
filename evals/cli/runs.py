"""The commands for runs that are there: `usertwin report`, `usertwin compare`, `usertwin export`.

The one design choice: they read a run's folder and nothing else, so a report can be made again, long after, without a model;
and a file is there whole or not at all.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import console_for

_run = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=_run)
def report(run: Path) -> None:
    """Write report.html and report.md of the run in the folder RUN anew."""
    from usertwin.evals.records.measured_turns import read_result, read_turns
    from usertwin.evals.records.training_run import is_training
    from usertwin.evals.reports.summary import summary_of
    from usertwin.evals.reports.write_reports import write_reports

    if is_training(run):
        _report_training(run)
        return
    found = read_result(run)
    page, notes = write_reports(run, found, read_turns(run))
    console = console_for()
    console.print(found.get("summary") or summary_of(found), markup=False)
    console.print(f"written to {page} and {notes}", markup=False)


def _report_training(run: Path) -> None:
    from usertwin.evals.records.run_folder import NOTES, PAGE
    from usertwin.evals.reports.training_report import read_training, summary_of_training, training_pages

    found = read_training(run)
    training_pages(found)
    console = console_for()
    for sentence in summary_of_training(found):
        console.print(sentence, markup=False)
    console.print(f"written to {run / PAGE} and {run / NOTES}", markup=False)


@click.command()
@click.argument("old", type=_run)
@click.argument("new", type=_run)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every figure to this file; - for the screen.")
@click.option("--seed", default=0, show_default=True, help="For the intervals.")
def compare(old: Path, new: Path, json_file: Path | None, seed: int) -> None:
    """Compare the runs in the folders OLD and NEW: what was changed, and what came of it."""
    from usertwin.evals.records.measured_turns import read_result, read_turns
    from usertwin.evals.records.run_folder import write_atomically
    from usertwin.evals.reports.compare_runs import compare as compared
    from usertwin.evals.reports.compare_runs import comparison_table

    found = compared(read_result(old), read_result(new), read_turns(old), read_turns(new), seed=seed)
    on_screen = str(json_file) == "-"
    console_for(stderr=on_screen).print(comparison_table(found))
    text = json.dumps(found, indent=1, ensure_ascii=False)
    if on_screen:
        click.echo(text)
    elif json_file is not None:
        write_atomically(json_file, text + "\n")


@click.command()
@click.argument("run", type=_run)
@click.option("--arm", help="Whose replies.  [default: the twin's]")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The file of JSON lines to write; - for the screen."
)
def export(run: Path, arm: str | None, out: Path) -> None:
    """Write the conversations of the run in the folder RUN in the JSON lines that mirrorbench reads."""
    from usertwin.evals.records.measured_turns import read_result, read_turns
    from usertwin.evals.records.run_folder import write_atomically
    from usertwin.evals.reports.mirrorbench_export import mirrorbench_lines

    found = read_result(run)
    about = {"run": found.get("name"), "models": found.get("models"), "seed": found.get("seed")}
    lines = list(mirrorbench_lines(read_turns(run), arm or str(found["twin_arm"]), about=about))
    if str(out) == "-":
        click.echo("\n".join(lines))
        return
    write_atomically(out, "".join(line + "\n" for line in lines))
    console_for().print(f"{len(lines)} conversations written to {out}", markup=False)
