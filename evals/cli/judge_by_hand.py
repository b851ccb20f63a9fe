"""`usertwin judge-by-hand`: look at pairs of replies and say which is closer to the real turn.

The one design choice: an answer is one key, and on disk before the next pair is shown; so it can be stopped at any pair.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from usertwin.personas import UsageError

from .options import console_for

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.evals.judges.human_judge import HandAnswer, HandLabel
    from usertwin.evals.records.verdicts import JudgeVerdict, Question

_KEYS: dict[str, HandAnswer | Literal["quit"]] = {"1": "1", "2": "2", "t": "tie", "s": "skip", "q": "quit"}
_HELP = "which is closer to what was really written?  1, 2, t: a tie, s: skip, q: stop"


@click.command("judge-by-hand")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--count", default=40, show_default=True, help="How many pairs you are to judge in all.")
@click.option(
    "--contrast", help='Judge pairs of these two arms, "A - B".  [default: those that a model judged, or the twin\'s]'
)
@click.option("--rater", default="me", show_default=True, help="Your name, if several people judge.")
@click.option("--seed", default=0, show_default=True, help="Which pairs come; who has the same seed is asked about the same.")
@click.option("--summary", is_flag=True, help="Only show how far the labels agree.")
def judge_by_hand(run: Path, count: int, contrast: str | None, rater: str, seed: int, summary: bool) -> None:
    """Judge blind pairs of replies of the run in the folder RUN, and see how far you agree with the model judge.

    You are shown the turns before, what the person really wrote, and two replies; which arm wrote which is not told.
    Answers are kept in the run's folder at once; the same command goes on where you stopped.
    """
    from usertwin.evals.judges.human_judge import agreement, agreement_view, contrasts_to_judge, planned, read_labels
    from usertwin.evals.records.measured_turns import LABELS, VERDICTS, read_manifest, read_turns
    from usertwin.evals.records.verdicts import read_verdicts

    if count < 1:
        raise UsageError(f"--count {count}: at least one pair is judged")
    if not rater.strip():
        raise UsageError("--rater: a name is needed, so that your labels can be told from others'")
    console = console_for()
    read_manifest(run)
    verdicts = read_verdicts(run / VERDICTS)
    labels = read_labels(run / LABELS)
    if not summary:
        turns = read_turns(run)
        plan = planned(turns, verdicts, contrasts_to_judge(turns, verdicts, contrast), seed=seed)
        if not plan:
            raise UsageError(f"{run}: no two replies of this contrast differ, so there is nothing to judge; name another one")
        labels = _ask_all(console, plan, labels, verdicts, run / LABELS, rater.strip(), count, seed)
    console.print(agreement_view(agreement(labels, verdicts, seed)))


def _ask_all(
    console: Console,
    plan: list[Question],
    labels: list[HandLabel],
    verdicts: list[JudgeVerdict],
    path: Path,
    rater: str,
    count: int,
    seed: int,
) -> list[HandLabel]:
    """Ask until there are so many labels of the rater, or no more pairs, or they stop. All labels, with the new ones."""
    from usertwin.evals.judges.human_judge import HandLabel, order_of, pair_view
    from usertwin.memory.jsonl import open_to_append, write_line

    wanted = {question.pair for question in plan}
    own = {label.pair: label for label in labels if label.rater == rater and label.pair in wanted}
    done = sum(label.label != "skip" for label in own.values())
    waiting = [question for question in plan if question.pair not in own]
    count = min(count, done + len(waiting))
    if not any(verdict.kind == "contrast" for verdict in verdicts):
        console.print("no model has judged pairs of this run: your labels are kept, but there is none to compare them with")
    if done:
        console.print(f"{done} of {count} pairs are judged already", markup=False)
    found = list(labels)
    with open_to_append(path) as file:
        for question in waiting:
            if done >= count:
                break
            order = order_of(question, rater, seed)
            console.rule(f"pair {done + 1} of {count}")
            console.print(pair_view(question, order))
            answer = _answer(console)
            if answer == "quit":
                console.print("stopped; what you said is kept, and the same command goes on from here")
                break
            place = (question.a, question.b, question.person, question.conversation_id, question.position, question.sample)
            when = datetime.now(UTC).isoformat(timespec="seconds")
            found.append(HandLabel(rater, question.pair, *place, order, answer, when))
            write_line(file, found[-1].to_json())
            done += answer != "skip"
    console.print()
    return found


def _answer(console: Console) -> HandAnswer | Literal["quit"]:
    """One answer: a key on a terminal, a line otherwise. The end of the input and Ctrl-C mean to stop."""
    console.print(_HELP, style="dim", markup=False)
    while True:
        try:
            told = click.getchar() if sys.stdin.isatty() else console.input()
        except (EOFError, KeyboardInterrupt):
            return "quit"
        found = _KEYS.get(told.strip().lower())
        if found is not None:
            console.print(found, style="bold", markup=False)
            return found
        if told.strip():
            console.print(_HELP, style="yellow", markup=False)
