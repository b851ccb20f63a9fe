"""Labels by human raters on blind pairs of replies, and their agreement with model judges.

Design: the pairs and their order are computed from the run and the seed. So two raters see the same pairs, and a rater who
stops continues where they were. The file keeps every answer as it was given.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from usertwin.evals.metrics.statistics import (
    Estimate,
    jackknife,
    mean,
    optional_json,
    sums_by_conversation,
    turns_by_conversation,
)
from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.evals.records.verdicts import Closer, Comparison, JudgeVerdict, Question, closer_of, with_current_sides
from usertwin.memory.jsonl import read_lines
from usertwin.memory.text.transcript import single_line
from usertwin.personas import UsageError
from usertwin.personas.reading import as_type

from .model_judge import build_questions

if TYPE_CHECKING:
    from usertwin.evals.metrics.statistics import Floats

HumanAnswer = Literal["1", "2", "tie", "skip"]
Order = Literal["ab", "ba"]
_CLOSER: tuple[Closer, ...] = ("a", "b", "tie")


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanLabel(Comparison):
    """The label of a human rater on the `pair` of a `Question`, as it was given, and the time in ISO 8601.

    The reply shown as 1 is a's for the order "ab", and b's for "ba".
    """

    rater: str
    pair: str
    order: Order
    label: HumanAnswer
    when: str

    @property
    def closer(self) -> Closer | None:
        """The closer reply; None for a skipped pair."""
        return None if self.label == "skip" else closer_of(self.label, self.order)

    @classmethod
    def from_json(cls, raw: Any) -> HumanLabel:
        """Read the object of `to_json`, earlier names of arms replaced. ValueError for any other value."""
        return as_type(cls, with_current_sides(raw))


def read_labels(path: Path) -> list[HumanLabel]:
    """Return every label in a file, none if it is missing; see `read_lines` for an incomplete or broken line."""
    return read_lines(path, HumanLabel.from_json, "label", "delete that line, and try again")


#: A pair with two labels: the human label, which names the conversation, and the two judgements.
LabelledPair: TypeAlias = tuple[HumanLabel, Closer, Closer]


def contrasts_to_judge(
    turns: Sequence[MeasuredTurn], verdicts: Sequence[JudgeVerdict], contrast: str | None = None
) -> list[tuple[str, str]]:
    """Return the requested contrast ("A - B", in either order), or those that a model judged, or those of the twin's arm.

    Raises:
        UsageError: fewer than two arms have replies, or the contrast names another arm.
    """
    arms = list(dict.fromkeys(arm for turn in turns for arm, replies in turn.replies.items() if replies))
    if len(arms) < 2:
        raise UsageError(
            f"this run has replies of {f'one arm only ({arms[0]})' if arms else 'no arm'}, and a comparison needs two; "
            "run a suite that writes replies under two arms or more"
        )
    judged = list(dict.fromkeys((verdict.a, verdict.b) for verdict in verdicts if verdict.kind == "contrast"))
    if contrast is None:
        twin = next((arm for arm in ("recon", "recalled_pairs") if arm in arms), arms[0])
        return judged or [(twin, arm) for arm in arms if arm != twin]
    a, _, b = (part.strip() for part in contrast.partition(" - "))
    if a == b or not {a, b} <= set(arms):
        raise UsageError(f'"{contrast}" is not a contrast of this run; name two of its arms as "A - B": {", ".join(arms)}')
    return [(b, a) if (b, a) in judged else (a, b)]


def plan_questions(
    turns: Sequence[MeasuredTurn], verdicts: Sequence[JudgeVerdict], contrasts: Sequence[tuple[str, str]], *, seed: int = 0
) -> list[Question]:
    """Return every pair that a human can judge, in the order to ask.

    People alternate. For each person, pairs that a model judged come first; a turn comes again only after all other turns.
    Pairs of equal replies are left out.
    """
    samples = max((len(replies) for turn in turns for replies in turn.replies.values()), default=0)
    questions = build_questions(turns, contrasts, samples=max(1, samples), sanity=0)
    judged = {verdict.pair for verdict in verdicts if verdict.closer is not None}
    rng = random.Random(f"by hand/{seed}")
    people: dict[str, list[Question]] = {}
    for question in {question.pair: question for question in questions}.values():
        if single_line(question.texts[0]) != single_line(question.texts[1]):
            people.setdefault(question.person, []).append(question)
    queues: list[list[Question]] = []
    for own in people.values():
        rng.shuffle(own)
        own.sort(key=lambda question: question.pair not in judged)
        seen: Counter[tuple[str, int]] = Counter()
        rank: dict[str, tuple[bool, int]] = {}
        for question in own:
            turn = question.conversation_id, question.position
            rank[question.pair] = question.pair not in judged, seen[turn]
            seen[turn] += 1
        queues.append(sorted(own, key=lambda question: rank[question.pair]))
    rng.shuffle(queues)
    return [question for row in zip_longest(*queues) for question in row if question is not None]


def reply_order(question: Question, rater: str, seed: int = 0) -> Order:
    """Return which reply is shown as 1, random for each pair and rater, so that a position bias does not add up."""
    return "ab" if random.Random(f"{seed}/{rater}/{question.pair}").random() < 0.5 else "ba"


def agreement(labels: Sequence[HumanLabel], verdicts: Sequence[JudgeVerdict]) -> dict[str, Any]:
    """Return the agreement of human raters with each model judge and with each other; the last label on a pair counts.

    Returns:
        "n" labels (without those "skipped"), "raters" and "judges" with the number of pairs of each, and "comparisons": "a",
        "b" ("model": whether b is a model judge), and the "n" pairs that both judged, with "agreement" on three labels,
        "decided" (agreement where neither calls a tie; None without such pairs), "kappa" (Cohen 1960, three labels; None if
        both give every pair the same label) and "table" (a's labels, then b's, to counts). "notes" are sentences on figures
        that could not be computed, and on verdicts that were left out.
    """
    by_rater: dict[str, dict[str, HumanLabel]] = {}
    for label in labels:
        by_rater.setdefault(label.rater, {})[label.pair] = label
    human: dict[str, dict[str, Closer]] = {
        rater: {pair: label.closer for pair, label in own.items() if label.closer} for rater, own in by_rater.items()
    }
    model: dict[str, dict[str, Closer]] = {}
    for verdict in verdicts:
        if verdict.kind == "contrast" and verdict.closer is not None:
            model.setdefault(verdict.judge, {})[verdict.pair] = verdict.closer
    sides = [(rater, judge, model[judge], True) for rater in human for judge in model]
    sides += [(rater, other, human[other], False) for rater, other in combinations(human, 2)]
    comparisons: list[dict[str, Any]] = []
    for rater, other, theirs, is_model in sides:
        rows: list[LabelledPair] = [
            (by_rater[rater][pair], own, theirs[pair]) for pair, own in human[rater].items() if pair in theirs
        ]
        comparisons += [{"a": rater, "b": other, "model": is_model} | _comparison(rows)] if rows else []
    n_labels, n_judged = sum(map(len, by_rater.values())), sum(map(len, human.values()))
    return {
        "n": n_judged,
        "skipped": n_labels - n_judged,
        "raters": {rater: len(own) for rater, own in human.items() if own},
        "judges": {judge: len(own) for judge, own in model.items()},
        "comparisons": comparisons,
        "notes": _unreadable_notes(verdicts, by_rater) + _notes(n_judged, bool(model), comparisons),
    }


def _comparison(rows: Sequence[LabelledPair]) -> dict[str, Any]:
    """Return the agreement of two raters on the same pairs."""
    where = [(label.person, label.conversation_id) for label, _, _ in rows]
    decided = [(cluster, float(a == b)) for cluster, (_, a, b) in zip(where, rows, strict=True) if "tie" not in {a, b}]
    counts = Counter((a, b) for _, a, b in rows)
    measures = {
        "agreement": mean([float(a == b) for _, a, b in rows], where, share=True),
        "decided": mean([same for _, same in decided], [cluster for cluster, _ in decided], share=True),
        "kappa": _kappa(rows, where),
    }
    return {
        "n": len(rows),
        **{name: optional_json(estimate) for name, estimate in measures.items()},
        "table": {a: {b: counts[a, b] for b in _CLOSER} for a in _CLOSER},
    }


def _kappa(rows: Sequence[LabelledPair], where: Sequence[tuple[str, str]]) -> Estimate | None:
    """Return Cohen's kappa, by statsmodels, with an interval over conversations; None if both give every pair the same label.

    Design: statsmodels takes the 3x3 table, which is a sum over conversations. scikit-learn takes the labels, and needs thirty
    times as long.
    """
    import numpy as np
    from statsmodels.stats.inter_rater import cohens_kappa

    cells = product(_CLOSER, _CLOSER)
    table = np.stack([sums_by_conversation([float(row[1:] == cell) for row in rows], where) for cell in cells])

    def statistic(weights: Floats) -> Floats:
        tables = (weights @ table.T).reshape(len(weights), 3, 3)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.array([cohens_kappa(counts, return_results=False) for counts in tables])

    kappa = jackknife(statistic, turns_by_conversation(where))
    return kappa.inference().estimate() if np.isfinite(kappa.value) else None


def _unreadable_notes(verdicts: Sequence[JudgeVerdict], by_rater: Mapping[str, Mapping[str, HumanLabel]]) -> list[str]:
    """Return a sentence for each judge with unreadable verdicts on pairs that were judged by hand."""
    by_hand = {pair for own in by_rater.values() for pair in own}
    unreadable = Counter(v.judge for v in verdicts if v.kind == "contrast" and v.closer is None and v.pair in by_hand)
    return [f"verdicts of {judge} that cannot be read and are left out: {count}" for judge, count in unreadable.items()]


def _notes(n_judged: int, has_model_verdicts: bool, comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on figures that could not be computed, with the way out."""
    notes: list[str] = []
    if not n_judged:
        notes.append("no pair is judged by hand yet")
    elif not has_model_verdicts:
        notes.append("no model judged pairs of this run, so there is nothing to compare with; name a judge in the suite")
    elif not any(row["model"] for row in comparisons):
        notes.append("the model judged none of the pairs that were judged by hand")
    for row in comparisons:
        if row["kappa"] is None:
            notes.append(f"{row['a']} and {row['b']} gave every pair the same label, so there is no kappa")
        elif row["kappa"]["low"] is None:
            notes.append(f"the pairs of {row['a']} and {row['b']} are from too few conversations for an interval of kappa")
    return notes


def pair_view(question: Question, order: Order) -> RenderableType:
    """Return a pair without its arms: the context, the real turn, and the two replies."""
    first, second = question.texts if order == "ab" else question.texts[::-1]
    context = [Text(line, style="dim") for line in question.context_lines()]
    return Group(
        Text("the last turns before", style="bold"),
        Padding(Group(*(context or [Text(f"({question.name} speaks first.)", style="dim")])), (0, 0, 0, 2)),
        Text(f"{question.name} really wrote", style="bold"),
        Padding(Text(single_line(question.action) or "(nothing)", style="cyan"), (0, 0, 0, 2)),
        Text.assemble(("1  ", "bold yellow"), single_line(first) or "(nothing)"),
        Text.assemble(("2  ", "bold yellow"), single_line(second) or "(nothing)"),
    )


def agreement_view(result: Mapping[str, Any]) -> RenderableType:
    """Return the result of `agreement` as tables."""
    raters = ", ".join(f"{rater} {n}" for rater, n in result["raters"].items())
    skipped = f"; {result['skipped']} skipped" if result["skipped"] else ""
    parts: list[RenderableType] = [Text(f"judged by hand: {result['n']} pairs{f' ({raters})' if raters else ''}{skipped}")]
    for row in result["comparisons"]:
        other = f"the judge {row['b']}" if row["model"] else row["b"]
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for title, key in (("agreement", "agreement"), ("agreement without ties", "decided"), ("Cohen's kappa", "kappa")):
            table.add_row(title, _estimate_text(row[key], "{:.2f}" if key == "kappa" else "{:.0%}"))
        parts += [Text(), Text(f"{row['a']} and {other}, n={row['n']}", style="bold"), table, _confusion_table(row, other)]
    return Group(*parts, *(Text(note, style="yellow") for note in result["notes"]))


def _confusion_table(row: Mapping[str, Any], other: str) -> Table:
    """Return the table of three labels by three."""
    names = {"a": "first arm", "b": "second arm", "tie": "tie"}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(Text(f"{row['a']} (down), {other} (across)", style="dim"))
    for name in names.values():
        table.add_column(name, justify="right")
    for label, name in names.items():
        table.add_row(name, *(str(row["table"][label][column]) for column in names))
    return table


def _estimate_text(estimate: Mapping[str, Any] | None, form: str) -> Text:
    if estimate is None:
        return Text("–")
    value, low, high = (None if estimate[key] is None else form.format(estimate[key]) for key in ("value", "low", "high"))
    return Text(f"{value} ({f'{low} to {high}' if low else 'no interval'}), n={estimate['n']}")
