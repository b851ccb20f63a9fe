"""The commands on finished runs: `usertwin report`, `view`, `compare`, `join`, `judge-by-hand`, `export`.

They need the run's folder alone, and no model, so a report can be written again at any time. Only the prompts that `view` shows
need the twins.
"""

from __future__ import annotations

import sys
import webbrowser
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from usertwin.personas import UsageError

from .parts.options import (
    console_for,
    file_path,
    home_option,
    is_standard_output,
    json_option,
    quiet_option,
    threshold_options,
    write_json,
)

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.evals.agent_tests.thresholds import Thresholds
    from usertwin.evals.judges.human_judge import HumanAnswer, HumanLabel
    from usertwin.evals.records.verdicts import Question

_KEYS: dict[str, HumanAnswer | Literal["quit"]] = {"1": "1", "2": "2", "t": "tie", "s": "skip", "q": "quit"}
_HELP = "which reply is closer to the real turn?  1, 2, t: tie, s: skip, q: quit"


@click.command()
@click.argument("run", type=file_path)
@threshold_options
@quiet_option
@json_option
def report(run: Path, thresholds: Thresholds, quiet: bool, json_file: Path | None) -> None:
    """Write the reports of the run in folder RUN again.

    The reports are report.html and report.md. Of simulated conversations with an agent (usertwin simulate), it prints the
    summary and writes report.html with every conversation. The exit code is then 1 if a limit is not kept.
    """
    from usertwin.evals.agent_tests.read import is_agent_run
    from usertwin.evals.metrics.older_estimates import with_present_tests
    from usertwin.evals.records.measured_turns import read_result, read_turns
    from usertwin.evals.records.training_run import is_training
    from usertwin.evals.reports.summary import summary_of
    from usertwin.evals.reports.write_reports import write_reports

    if is_agent_run(run):
        _report_agent_run(run, thresholds, quiet=quiet, json_file=json_file)
        return
    if thresholds.is_set or quiet or json_file is not None:
        raise UsageError(f"{run}: holds no conversations with an agent; limits, --quiet and --json are for these")
    if is_training(run):
        _report_training(run)
        return
    result = with_present_tests(read_result(run))
    result["summary"] = summary_of(result)
    html_report, markdown_report = write_reports(run, result, read_turns(run))
    console = console_for()
    console.print(result["summary"], markup=False)
    console.print(f"written to {html_report} and {markdown_report}", markup=False)


def _report_agent_run(run: Path, thresholds: Thresholds, *, quiet: bool, json_file: Path | None) -> None:
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
@click.argument("run", type=file_path)
@click.argument("run2", type=file_path, required=False)
@click.option("--open", "opens", is_flag=True, help="Open the page in the browser.")
@click.option("--out", type=file_path, help="File to write.  [default: view.html in RUN; comparison.html of two runs]")
@home_option
def view(run: Path, run2: Path | None, opens: bool, out: Path | None, home: Path | None) -> None:
    """Write a page of the conversations of RUN, or of RUN and RUN2 side by side.

    RUN is a folder of usertwin simulate, or of pytest --usertwin-report. The page filters its conversations, and shows the
    memories, reasoning, times, tokens and prompts of each turn. It needs no network. Prompts are built again from the twins in
    --home, and shown only if they are those that were sent.
    """
    from usertwin.evals.agent_tests.read import read_agent_run
    from usertwin.evals.run_view import write_view

    console = console_for()
    written = write_view(read_agent_run(run), None if run2 is None else read_agent_run(run2), home=home, out=out)
    for line in written.prompt_lines:
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"written to {written.path}", markup=False, soft_wrap=True)
    if opens and not webbrowser.open(written.path.absolute().as_uri()):
        raise UsageError(f"{written.path}: no browser could be started; open the file in one")


@click.command()
@click.argument("old", type=file_path)
@click.argument("new", type=file_path)
@json_option
@click.option("--seed", default=0, show_default=True, help="Seed of the test of more than twelve people.")
@click.option("--anyway", is_flag=True, help="Compare runs with an agent that differ in more than the agent.")
def compare(old: Path, new: Path, json_file: Path | None, seed: int, anyway: bool) -> None:
    """Compare the runs in folders OLD and NEW.

    Shows what differs in their settings, and the paired differences of their results. Runs of simulated conversations with an
    agent are compared at the same scenarios, twins and seeds.
    """
    from usertwin.evals.agent_tests.read import is_agent_run
    from usertwin.evals.metrics.older_estimates import with_present_tests
    from usertwin.evals.records.measured_turns import read_result, read_turns
    from usertwin.evals.reports.compare_runs import compare as compare_runs
    from usertwin.evals.reports.compare_runs import comparison_table

    kinds = [is_agent_run(run) for run in (old, new)]
    if all(kinds):
        _compare_agent_runs(old, new, json_file=json_file, seed=seed, anyway=anyway)
        return
    if any(kinds) or anyway:
        other = new if kinds[0] else old
        raise UsageError(f"{other}: holds no conversations with an agent; name two runs of usertwin simulate")
    console = console_for(stderr=is_standard_output(json_file))
    before, after = (with_present_tests(read_result(run)) for run in (old, new))
    result = compare_runs(before, after, read_turns(old), read_turns(new), seed=seed)
    console.print(comparison_table(result))
    write_json(json_file, result)


def _compare_agent_runs(old: Path, new: Path, *, json_file: Path | None, seed: int, anyway: bool) -> None:
    """Print the comparison of two runs."""
    from usertwin.evals.agent_tests.compare import compare_runs, comparison_view
    from usertwin.evals.agent_tests.read import read_agent_run

    console = console_for(stderr=is_standard_output(json_file))
    comparison = compare_runs(read_agent_run(old), read_agent_run(new), seed=seed, anyway=anyway)
    console.print(comparison_view(comparison))
    write_json(json_file, comparison.to_json())


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=file_path)
@click.option("--out", required=True, type=file_path, help="File to write all figures to, as JSON without texts of people.")
@click.option("--report", "markdown", type=file_path, help="File to write the report to, in Markdown.")
def join(runs: tuple[Path, ...], out: Path, markdown: Path | None) -> None:
    """Join finished runs of one suite, each with other people.

    RUN is the folder of a run, or a file that this command wrote. Intervals and tests are over the people of all runs, as if
    one run had measured them.
    """
    from usertwin.evals.records.joined_runs import write_joined
    from usertwin.evals.records.run_folder import write_atomically
    from usertwin.evals.reports.terminal import closeness_table
    from usertwin.evals.reports.write_reports import render_markdown
    from usertwin.evals.suites.join import join_runs, read_part

    console = console_for()
    result = join_runs([(str(run), read_part(run)) for run in runs])
    write_joined(out, result)
    if markdown is not None:
        write_atomically(markdown, render_markdown(result))
    console.print(closeness_table(result))
    console.print(f"written to {' and '.join(str(path) for path in (out, markdown) if path)}", markup=False, soft_wrap=True)


@click.command()
@click.argument("run", type=file_path)
@click.option("--arm", help="The arm whose replies to export.  [default: the twin's]")
@click.option("--out", required=True, type=file_path, help="File to write; - for standard output.")
def export(run: Path, arm: str | None, out: Path) -> None:
    """Export the conversations of RUN as JSON lines for mirrorbench."""
    from usertwin.evals.records.measured_turns import read_result, read_turns
    from usertwin.evals.records.mirrorbench_export import mirrorbench_lines
    from usertwin.evals.records.run_folder import write_atomically

    result = read_result(run)
    metadata = {"run": result.get("name"), "models": result.get("models"), "seed": result.get("seed")}
    lines = list(mirrorbench_lines(read_turns(run), arm or str(result["twin_arm"]), about=metadata))
    if str(out) == "-":
        click.echo("\n".join(lines))
        return
    write_atomically(out, "".join(line + "\n" for line in lines))
    console_for().print(f"{len(lines)} conversations written to {out}", markup=False)


@click.command("judge-by-hand")
@click.argument("run", type=file_path)
@click.option("--count", default=40, show_default=True, help="Number of pairs to judge, with those already judged.")
@click.option(
    "--contrast",
    help='The two arms to compare, "A - B".  [default: those that the model judged, or the twin and each other arm]',
)
@click.option("--rater", default="me", show_default=True, help="Your name, if several people judge.")
@click.option("--seed", default=0, show_default=True, help="Seed of the choice of pairs; the same seed gives the same pairs.")
@click.option("--summary", is_flag=True, help="Only print the agreement of the labels.")
def judge_by_hand(run: Path, count: int, contrast: str | None, rater: str, seed: int, summary: bool) -> None:
    """Judge blind pairs of replies of RUN and compare with the model judge.

    Shows the context, the person's real turn, and two replies without the names of their arms. Each label is written to the
    run's folder at once; the same command continues where you stopped.
    """
    from usertwin.evals.judges.human_judge import agreement, agreement_view, contrasts_to_judge, plan_questions, read_labels
    from usertwin.evals.records.measured_turns import LABELS, VERDICTS, read_manifest, read_turns
    from usertwin.evals.records.verdicts import read_verdicts

    if count < 1:
        raise UsageError(f"--count is {count}; it must be at least 1")
    if not rater.strip():
        raise UsageError("--rater is empty; give a name that tells your labels from others'")
    console = console_for()
    read_manifest(run)
    verdicts = read_verdicts(run / VERDICTS)
    labels = read_labels(run / LABELS)
    if not summary:
        turns = read_turns(run)
        questions = plan_questions(turns, verdicts, contrasts_to_judge(turns, verdicts, contrast), seed=seed)
        if not questions:
            raise UsageError(f"{run}: the replies of this contrast are all the same; name another contrast with --contrast")
        if not any(verdict.kind == "contrast" for verdict in verdicts):
            console.print("no model has judged pairs of this run: your labels are kept, without a judge to compare them with")
        labels += _label_pairs(console, questions, labels, run / LABELS, rater.strip(), count, seed)
    console.print(agreement_view(agreement(labels, verdicts)))


def _label_pairs(
    console: Console, questions: list[Question], labels: list[HumanLabel], path: Path, rater: str, count: int, seed: int
) -> list[HumanLabel]:
    """Ask about pairs until the rater has judged `count` of them or quits; return the new labels.

    Each label is appended to the file at `path` before the next pair is shown.
    """
    from usertwin.evals.judges.human_judge import HumanLabel, pair_view, reply_order
    from usertwin.memory.jsonl import append_line, open_for_append

    pairs = {question.pair for question in questions}
    known = {label.pair: label for label in labels if label.rater == rater and label.pair in pairs}
    done = sum(label.label != "skip" for label in known.values())
    remaining = [question for question in questions if question.pair not in known]
    count = min(count, done + len(remaining))
    if done:
        console.print(f"{done} of {count} pairs are judged already", markup=False)
    new: list[HumanLabel] = []
    with open_for_append(path) as file:
        for question in remaining:
            if done >= count:
                break
            order = reply_order(question, rater, seed)
            console.rule(f"pair {done + 1} of {count}")
            console.print(pair_view(question, order))
            answer = _read_answer(console)
            if answer == "quit":
                console.print("stopped; your labels are kept, and the same command continues from here")
                break
            when = datetime.now(UTC).isoformat(timespec="seconds")
            new.append(
                HumanLabel(
                    rater=rater, pair=question.pair, a=question.a, b=question.b, person=question.person,
                    conversation_id=question.conversation_id, position=question.position, sample=question.sample,
                    order=order, label=answer, when=when,
                )
            )  # fmt: skip
            append_line(file, new[-1].to_json())
            done += answer != "skip"
    console.print()
    return new


def _read_answer(console: Console) -> HumanAnswer | Literal["quit"]:
    """Read a key on a terminal, a line otherwise; the end of the input and Ctrl-C quit."""
    console.print(_HELP, style="dim", markup=False)
    while True:
        try:
            text = click.getchar() if sys.stdin.isatty() else console.input()
        except (EOFError, KeyboardInterrupt):
            return "quit"
        answer = _KEYS.get(text.strip().lower())
        if answer is not None:
            console.print(answer, style="bold", markup=False)
            return answer
        if text.strip():
            console.print(_HELP, style="yellow", markup=False)
