"""Judging by hand: blind pairs of replies, the labels that people gave them, and how far these agree with a model judge.

The one design choice: which pairs come, and in which order, is reckoned from the run and the seed, so that two people are
asked about the same pairs and whoever stops goes on where they were; what is kept is each answer as it was given.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from usertwin.evals.metrics.statistics import Estimate, Resampling, mean, sums
from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.evals.records.verdicts import LABELS, Closer, JudgeVerdict, Question
from usertwin.memory.jsonl import read_lines
from usertwin.memory.text.transcript import flat
from usertwin.personas import UsageError

from .model_judge import questions_of

if TYPE_CHECKING:
    from usertwin.evals.metrics.statistics import Floats

HandAnswer = Literal["1", "2", "tie", "skip"]
Order = Literal["ab", "ba"]
_CLOSER: tuple[Closer, ...] = ("a", "b", "tie")


@dataclass(frozen=True, slots=True)
class HandLabel:
    """What somebody said about a pair.

    Attributes:
        rater: who.
        pair: the pair, by its content, as `Question` has it; so are the next six.
        a: see there.
        b: see there.
        person: see there.
        conversation_id: see there.
        position: see there.
        sample: see there.
        order: whose reply was shown as 1: a's ("ab") or b's ("ba").
        label: the answer as it was given.
        when: the time, ISO.
    """

    rater: str
    pair: str
    a: str
    b: str
    person: str
    conversation_id: str
    position: int
    sample: int
    order: Order
    label: HandAnswer
    when: str

    @property
    def closer(self) -> Closer | None:
        """Which reply is closer; None if the pair was skipped."""
        if self.label == "skip":
            return None
        return "tie" if self.label == "tie" else cast("Closer", self.order[int(self.label) - 1])

    def to_json(self) -> dict[str, Any]:
        """As the object of a line of labels.jsonl."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> HandLabel:
        """Back from `to_json`. KeyError, TypeError or ValueError if it is something else."""
        if data["label"] not in {*LABELS, "skip"} or data["order"] not in {"ab", "ba"}:
            raise ValueError(f"{data['label']!r}, {data['order']!r} are no label and order")
        return cls(**data)


def read_labels(path: Path) -> list[HandLabel]:
    """Every label in a file, none if it is not there; a last line that was cut short by a kill is left out.

    Raises:
        UsageError: a line is no label; the message names it.
    """
    return read_lines(path, HandLabel.from_json, "label", "delete that line, and try again")


#: A pair that two judged: whose conversation it is from, and the one's and the other's label.
LabelledPair: TypeAlias = tuple[HandLabel, Closer, Closer]


# Which pairs ---------------------------------------------------------------------------------------------------------


def contrasts_to_judge(
    turns: Sequence[MeasuredTurn], verdicts: Sequence[JudgeVerdict], wanted: str | None = None
) -> list[tuple[str, str]]:
    """The contrasts that are to be judged: what is wanted, or those that a model judged, or else the twin's and the rest.

    Args:
        turns: of the run.
        verdicts: of the run.
        wanted: "A - B", in either order.

    Raises:
        UsageError: no turn has replies of two arms, or not of those that are wanted.
    """
    arms = list(dict.fromkeys(arm for turn in turns for arm, replies in turn.replies.items() if replies))
    if len(arms) < 2:
        raise UsageError(
            f"this run has replies of {f'one arm ({arms[0]})' if arms else 'no arm'}, and two are compared; "
            "run a suite that writes replies under two arms or more"
        )
    judged = list(dict.fromkeys((verdict.a, verdict.b) for verdict in verdicts if verdict.kind == "contrast"))
    if wanted is None:
        twin = next((arm for arm in ("recalled_triples", "recalled_pairs") if arm in arms), arms[0])
        return judged or [(twin, arm) for arm in arms if arm != twin]
    a, _, b = (part.strip() for part in wanted.partition(" - "))
    if a == b or not {a, b} <= set(arms):
        raise UsageError(f'"{wanted}" is no contrast of this run; name two of its arms as "A - B": {", ".join(arms)}')
    return [(b, a) if (b, a) in judged else (a, b)]


def planned(
    turns: Sequence[MeasuredTurn], verdicts: Sequence[JudgeVerdict], contrasts: Sequence[tuple[str, str]], *, seed: int = 0
) -> list[Question]:
    """Every pair that can be judged by hand, in the order in which to ask.

    The people come in turn. Of each, pairs that a model judged come first, and of these a moment again only after all others.
    Pairs in which both replies are the same are left out: there is nothing to judge.

    Args:
        turns: of the run.
        verdicts: of the run.
        contrasts: see `contrasts_of`.
        seed: for the order.
    """
    most = max((len(replies) for turn in turns for replies in turn.replies.values()), default=0)
    every = questions_of(turns, contrasts, samples=max(1, most), sanity=0)
    known = {verdict.pair for verdict in verdicts if verdict.closer is not None}
    rng = random.Random(f"by hand/{seed}")
    people: dict[str, list[Question]] = {}
    for question in {
        question.pair: question for question in every if flat(question.texts[0]) != flat(question.texts[1])
    }.values():
        people.setdefault(question.person, []).append(question)
    queues: list[list[Question]] = []
    for own in people.values():
        rng.shuffle(own)
        own.sort(key=lambda question: question.pair not in known)
        seen: Counter[tuple[str, int]] = Counter()
        ranked: list[tuple[bool, int, Question]] = []
        for question in own:
            moment = question.conversation_id, question.position
            ranked.append((question.pair not in known, seen[moment], question))
            seen[moment] += 1
        queues.append([question for _, _, question in sorted(ranked, key=lambda row: row[:2])])
    rng.shuffle(queues)
    return [question for row in zip_longest(*queues) for question in row if question is not None]


def order_of(question: Question, rater: str, seed: int = 0) -> Order:
    """Whose reply is shown as 1: drawn for each pair and rater, so that raters do not share a liking for what comes first."""
    return "ab" if random.Random(f"{seed}/{rater}/{question.pair}").random() < 0.5 else "ba"


# How far they agree --------------------------------------------------------------------------------------------------


def agreement(labels: Sequence[HandLabel], verdicts: Sequence[JudgeVerdict], seed: int = 0) -> dict[str, Any]:
    """How far people who judged by hand agree with each model judge, and with each other.

    Args:
        labels: of all raters; of several by one rater on one pair the last counts.
        verdicts: of all judges, likewise.
        seed: for the resampling of conversations.

    Returns:
        "n" labels (less those "skipped"), "raters" and "judges" with the number of each one's pairs, and "comparisons", each
        of two of them, "a" and "b" ("model": whether b is a model judge), on the "n" pairs that both judged: "agreement" on
        three labels, "decided" (agreement where both name a reply; None if they never do), "kappa" (Cohen 1960, three
        labels; None if each says the same to everything) and "table" (a's labels, then b's, to counts).
        "notes" are sentences on what could not be reckoned.
    """
    hands: dict[str, dict[str, HandLabel]] = {}
    for label in labels:
        hands.setdefault(label.rater, {})[label.pair] = label
    given: dict[str, dict[str, Closer]] = {
        rater: {pair: one.closer for pair, one in own.items() if one.closer} for rater, own in hands.items()
    }
    said: dict[str, dict[str, Closer]] = {}
    for verdict in verdicts:
        if verdict.kind == "contrast" and verdict.closer is not None:
            said.setdefault(verdict.judge, {})[verdict.pair] = verdict.closer
    sides = [(rater, judge, said[judge], True) for rater in given for judge in said]
    sides += [(rater, other, given[other], False) for rater, other in combinations(given, 2)]
    found: list[dict[str, Any]] = []
    for rater, other, theirs, model in sides:
        rows: list[LabelledPair] = [
            (hands[rater][pair], mine, theirs[pair]) for pair, mine in given[rater].items() if pair in theirs
        ]
        found += [{"a": rater, "b": other, "model": model} | _compared(rows, seed)] if rows else []
    dealt, judged = sum(map(len, hands.values())), sum(map(len, given.values()))
    return {
        "n": judged,
        "skipped": dealt - judged,
        "raters": {rater: len(own) for rater, own in given.items() if own},
        "judges": {judge: len(theirs) for judge, theirs in said.items()},
        "comparisons": found,
        "notes": _notes(judged, said, found),
    }


def _compared(rows: Sequence[LabelledPair], seed: int) -> dict[str, Any]:
    """Two raters on the same pairs."""
    where = [(label.person, label.conversation_id) for label, _, _ in rows]
    decided = [(place, float(a == b)) for place, (_, a, b) in zip(where, rows, strict=True) if "tie" not in {a, b}]
    counts = Counter((a, b) for _, a, b in rows)
    measures = {
        "agreement": mean([float(a == b) for _, a, b in rows], where, seed=seed),
        "decided": mean([same for _, same in decided], [place for place, _ in decided], seed=seed),
        "kappa": _kappa(rows, where, seed),
    }
    return {
        "n": len(rows),
        **{name: None if one is None else one.to_json() for name, one in measures.items()},
        "table": {a: {b: counts[a, b] for b in _CLOSER} for a in _CLOSER},
    }


def _kappa(rows: Sequence[LabelledPair], where: Sequence[tuple[str, str]], seed: int) -> Estimate | None:
    """Cohen's kappa, conversations resampled; None if both say one and the same to everything.

    Reckoned from the 3x3 table of each resample at once, where scikit-learn takes the labels of one at a time.
    """
    import numpy as np

    table = np.stack(
        [sums([float((mine, yours) == (a, b)) for _, mine, yours in rows], where) for a in _CLOSER for b in _CLOSER]
    )

    def statistic(weights: Floats) -> Floats:
        counts = (weights @ table.T).reshape(len(weights), 3, 3)
        total = counts.sum(axis=(1, 2))
        same = np.trace(counts, axis1=1, axis2=2) / total
        chance = (counts.sum(axis=1) * counts.sum(axis=2)).sum(axis=1) / total**2
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(chance < 1 - 1e-9, (same - chance) / (1 - chance), np.nan)

    drawn = Resampling(seed).person(statistic, table.shape[1], len(rows))
    return drawn.estimate() if np.isfinite(drawn.value) else None


def _notes(labels: int, said: Mapping[str, object], found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What could not be reckoned, and what to do about it."""
    notes: list[str] = []
    if not labels:
        notes.append("nothing was judged by hand yet")
    elif not said:
        notes.append("no model has judged pairs of this run, so there is nothing to compare with; name a judge in the suite")
    elif not any(row["model"] for row in found):
        notes.append("the model judged none of the pairs that were judged by hand")
    for row in found:
        if row["kappa"] is None:
            notes.append(f"{row['a']} and {row['b']} gave every pair the same label, so there is no kappa")
        elif row["kappa"]["low"] is None:
            notes.append(f"the pairs of {row['a']} and {row['b']} are of too few conversations for an interval of kappa")
    return notes


# What is shown -------------------------------------------------------------------------------------------------------


def pair_view(question: Question, order: Order) -> RenderableType:
    """A pair without its arms: the turns before, the real turn, and the two replies."""
    first, second = question.texts if order == "ab" else question.texts[::-1]
    before = [Text(line, style="dim") for line in question.context_lines()]
    return Group(
        Text("the last turns before", style="bold"),
        Padding(Group(*(before or [Text(f"({question.name} speaks first.)", style="dim")])), (0, 0, 0, 2)),
        Text(f"{question.name} really wrote", style="bold"),
        Padding(Text(flat(question.action) or "(nothing)", style="cyan"), (0, 0, 0, 2)),
        Text.assemble(("1  ", "bold yellow"), flat(first) or "(nothing)"),
        Text.assemble(("2  ", "bold yellow"), flat(second) or "(nothing)"),
    )


def agreement_view(result: Mapping[str, Any]) -> RenderableType:
    """What `agreement` found."""
    raters = ", ".join(f"{rater} {n}" for rater, n in result["raters"].items())
    skipped = f"; {result['skipped']} skipped" if result["skipped"] else ""
    parts: list[RenderableType] = [Text(f"judged by hand: {result['n']} pairs{f' ({raters})' if raters else ''}{skipped}")]
    for row in result["comparisons"]:
        other = f"the judge {row['b']}" if row["model"] else row["b"]
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for title, key in (("agreement", "agreement"), ("where both name a reply", "decided"), ("Cohen's kappa", "kappa")):
            table.add_row(title, _shown(row[key], "" if key == "kappa" else "%"))
        parts += [Text(), Text(f"{row['a']} and {other}, n={row['n']}", style="bold"), table, _crossed(row, other)]
    return Group(*parts, *(Text(note, style="yellow") for note in result["notes"]))


def _crossed(row: Mapping[str, Any], other: str) -> Table:
    """The table of three labels by three."""
    names = {"a": "first arm", "b": "second arm", "tie": "tie"}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(Text(f"{row['a']} (down), {other} (across)", style="dim"))
    for name in names.values():
        table.add_column(name, justify="right")
    for label, name in names.items():
        table.add_row(name, *(str(row["table"][label][one]) for one in names))
    return table


def _shown(estimate: Mapping[str, Any] | None, unit: str) -> Text:
    if estimate is None:
        return Text("–")
    form = "{:.0%}" if unit else "{:.2f}"
    interval = "no interval"
    if estimate["low"] is not None:
        interval = f"{form.format(estimate['low'])} to {form.format(estimate['high'])}"
    return Text(f"{form.format(estimate['value'])} ({interval}), n={estimate['n']}")
