"""The commands that read finished runs: `usertwin report`, `usertwin compare`, `usertwin export`.

They need the run's folder alone, and no model, so a report can be written again at any time.
"""

from __future__ import annotations

from pathlib import Path

import click

from .options import console_for, file_path, is_standard_output, json_option, write_json


@click.command()
@click.argument("run", type=file_path)
def report(run: Path) -> None:
    """Write the reports of the run in folder RUN again.

    The reports are report.html and report.md.
    """
    from usertwin.evals.records.measured_turns import read_result, read_turns
    from usertwin.evals.records.training_run import is_training
    from usertwin.evals.reports.summary import summary_of
    from usertwin.evals.reports.write_reports import write_reports

    if is_training(run):
        _report_training(run)
        return
    result = read_result(run)
    html_report, markdown_report = write_reports(run, result, read_turns(run))
    console = console_for()
    console.print(result.get("summary") or summary_of(result), markup=False)
    console.print(f"written to {html_report} and {markdown_report}", markup=False)


def _report_training(run: Path) -> None:
    from usertwin.evals.records.training_run import read_training
    from usertwin.evals.reports.training_summary import summarize_training, write_training_summary

    training = read_training(run)
    path = write_training_summary(training)
    console = console_for()
    for sentence in summarize_training(training):
        console.print(sentence, markup=False)
    console.print(f"written to {path}", markup=False)


@click.command()
@click.argument("old", type=file_path)
@click.argument("new", type=file_path)
@json_option
@click.option("--seed", default=0, show_default=True, help="Seed of the intervals.")
def compare(old: Path, new: Path, json_file: Path | None, seed: int) -> None:
    """Compare the runs in folders OLD and NEW.

    Shows what differs in their settings, and the paired differences of their results.
    """
    from usertwin.evals.records.measured_turns import read_result, read_turns
    from usertwin.evals.reports.compare_runs import compare as compare_runs
    from usertwin.evals.reports.compare_runs import comparison_table

    console = console_for(stderr=is_standard_output(json_file))
    result = compare_runs(read_result(old), read_result(new), read_turns(old), read_turns(new), seed=seed)
    console.print(comparison_table(result))
    write_json(json_file, result)


@click.command()
@click.argument("run", type=file_path)
@click.option("--arm", help="The arm whose replies to export.  [default: the twin's]")
@click.option("--out", required=True, type=file_path, help="File to write; - for standard output.")
def export(run: Path, arm: str | None, out: Path) -> None:
    """Export the conversations of RUN as JSON lines for mirrorbench."""
    from usertwin.evals.records.measured_turns import read_result, read_turns
    from usertwin.evals.records.run_folder import write_atomically
    from usertwin.evals.reports.mirrorbench_export import mirrorbench_lines

    result = read_result(run)
    metadata = {"run": result.get("name"), "models": result.get("models"), "seed": result.get("seed")}
    lines = list(mirrorbench_lines(read_turns(run), arm or str(result["twin_arm"]), about=metadata))
    if str(out) == "-":
        click.echo("\n".join(lines))
        return
    write_atomically(out, "".join(line + "\n" for line in lines))
    console_for().print(f"{len(lines)} conversations written to {out}", markup=False)
