"""Checks of the judge in judged fidelity: questions with known answers, asked as memory/recon/judged_fidelity.py asks them.

For each pair the judge ranks the real action, reconstructions of it and another person's action, in two opposite orders; and
one reconstruction against itself. The pairs are learned or validation pairs, never held-out test turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from usertwin.evals.metrics.statistics import MIN_CONVERSATIONS, evenly_spaced, mean
from usertwin.evals.records.result_shapes import ListwiseCheckShape
from usertwin.memory import ChatModel, TripleStore, TwinRecord
from usertwin.memory.concurrency import run_concurrently
from usertwin.memory.models.completion_cache import COMPLETIONS_FILE, CompletionCache
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.recon.judged_fidelity import listwise_verdict, reconstruct_actions, shown_order
from usertwin.memory.recon.synthesizer import traces_to_compare
from usertwin.memory.text.transcript import truncate_action
from usertwin.memory.twin.record import read_other_person_pairs
from usertwin.personas import Pair, VerdictError
from usertwin.personas.reading import as_type

from .known_answers import ENOUGH, MAX_UNREADABLE, Check, percentage, unreadable_answers

#: The most pairs on which a judge is checked, and the most reconstructions of a pair.
CHECKED_PAIRS, _RECONSTRUCTIONS = 20, 3
#: Verdicts on a pair: two orders, and one on equal attempts, whose two orders are the same prompt.
VERDICTS = 3
LISTWISE_CHECKS = {
    "first": Check("the attempt listed first: ranked first as often as by chance", "even"),
    "real": Check("the real action among reconstructions: ranked first more often than by chance", "above"),
    "another_person": Check(
        "another person's action among them: the interval of being above the real one is below 0.5", "below"
    ),
    "identical": Check("the same attempt twice: a tie in at least 95% of the pairs, or no preferred place", "tied_or_even"),
}
#: A trace of a pair, or several, to reconstruct its action from.
TracedPair = tuple[Pair, Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """How often the text under test won a question, how often there was a tie, and how often it wins by chance."""

    check: str
    conversation: str
    win: float
    tied: float
    chance: float = 0.5


async def check_judge(
    judge: ChatModel, actor: ChatModel, traced: Sequence[TracedPair], other_actions: Sequence[str], *,
    seed: int = 0, concurrency: int = 1, progress: Progress = no_progress,
) -> dict[str, Any]:  # fmt: skip
    """Return how a judge answers questions whose answers are known, as `ListwiseCheckShape`.

    Args:
        judge: the judge.
        actor: reconstructs the actions, as for the fidelity.
        traced: pairs with their traces; at most `CHECKED_PAIRS` are taken, evenly spaced.
        other_actions: actions of another person; without any, that check is left out.
        seed: of the samplers and of the orders.
        concurrency: number of pairs that may wait for a model at once.
        progress: called with "checking the judge", the number of checked pairs, and the total.

    Raises:
        ModelError: a model does not answer.
    """
    selected = evenly_spaced(traced, CHECKED_PAIRS)
    asked: dict[int, tuple[list[_Answer], list[bool]]] = {}
    queue = iter(enumerate(selected))
    progress("checking the judge", 0, len(selected))

    async def work() -> None:
        for place, (pair, traces) in queue:
            other = other_actions[place % len(other_actions)] if other_actions else ""
            asked[place] = await _ask(judge, actor, pair, traces, other, seed)
            progress("checking the judge", len(asked), len(selected))

    await run_concurrently(work, concurrency)
    return _summary(judge.name, [asked[place] for place in sorted(asked)], seed)


async def check_twin_judge(
    folder: Path, record: TwinRecord, store: TripleStore, judge: ChatModel, actor: ChatModel, *,
    concurrency: int = 1, progress: Progress = no_progress,
) -> dict[str, Any]:  # fmt: skip
    """Return `check_judge` on the pairs of a twin's memory that have traces.

    The seed is that of the recipe and completions are cached in the twin's folder, so reconstructions of learning are not
    sampled again.
    """
    compared = ((triple.pair, [candidate.trace for candidate in traces_to_compare(triple)]) for triple in store.triples())
    traced = [(pair, traces) for pair, traces in compared if traces]
    other_actions = [pair.action for pair in read_other_person_pairs(folder, record) if not pair.abandoned]
    cache = CompletionCache(folder / COMPLETIONS_FILE)
    try:
        return await check_judge(
            replace(judge, cache=cache), replace(actor, cache=cache), traced, evenly_spaced(other_actions, CHECKED_PAIRS),
            seed=record.recipe.seed, concurrency=concurrency, progress=progress,
        )  # fmt: skip
    finally:
        cache.close()


def stored_check(record: TwinRecord) -> Mapping[str, Any] | None:
    """Return the check of a judge that a twin's record holds; None without one, and for a damaged one."""
    with suppress(ValueError):
        return as_type(ListwiseCheckShape, record.judge_check)
    return None


async def _ask(
    judge: ChatModel, actor: ChatModel, pair: Pair, traces: Sequence[str], other_action: str, seed: int
) -> tuple[list[_Answer], list[bool]]:
    """Return the answers to the questions about a pair, and of each verdict whether it is readable.

    Nothing is asked if no reconstruction differs from the real action, or the actor writes nothing.
    """
    try:
        written = await reconstruct_actions(actor, pair, traces[:_RECONSTRUCTIONS], seed=seed)
    except VerdictError:  # the actor's fault
        return [], []
    real, other = truncate_action(pair.action), truncate_action(other_action)
    reconstructions = [text for text in dict.fromkeys(written) if text not in {"", real}]
    others = [other] if other not in {"", real, *reconstructions} else []
    attempts = [real, *reconstructions, *others]
    if not reconstructions:
        return [], []
    forward, backward, equal = [
        await _verdict(judge, pair, texts, seed, reverse)
        for texts, reverse in ((attempts, False), (attempts, True), ([reconstructions[0]] * 2, False))
    ]
    answers: list[_Answer] = []
    if forward is not None and backward is not None:  # one order alone would mix up attempts and places
        answers += _answers_about(pair, (forward, backward), with_other=bool(others))
    if equal is not None:
        wins = equal.above(equal.listed_first, 1 - equal.listed_first)
        answers.append(_Answer(check="identical", conversation=pair.conversation_id, win=wins, tied=float(wins == 0.5)))
    return answers, [verdict is not None for verdict in (forward, backward, equal)]


@dataclass(frozen=True, slots=True)
class _Verdict:
    """A readable verdict: the rank of each attempt, from 1 (best) to 0, and the index of the one listed first."""

    ranks: Sequence[float]
    listed_first: int

    def share_of_first(self, attempt: int) -> float:
        """Return 1 if an attempt is ranked first, its share of the first rank if it is tied there, else 0."""
        best = max(self.ranks)
        return (self.ranks[attempt] == best) / self.ranks.count(best)

    def above(self, attempt: int, other: int) -> float:
        """Return 1 if an attempt is ranked above another one, 0.5 if they are tied, else 0."""
        return 0.5 if self.ranks[attempt] == self.ranks[other] else float(self.ranks[attempt] > self.ranks[other])


async def _verdict(judge: ChatModel, pair: Pair, attempts: Sequence[str], seed: int, reverse: bool) -> _Verdict | None:
    """Return a verdict on attempts; None if it is unreadable."""
    try:
        scores = await listwise_verdict(judge, "judge_traces", pair, attempts, seed=seed, reverse=reverse)
    except VerdictError:
        return None
    return _Verdict([score.value for score in scores], shown_order(pair, len(attempts), seed=seed, reverse=reverse)[0])


def _answers_about(pair: Pair, verdicts: Sequence[_Verdict], *, with_other: bool) -> list[_Answer]:
    """Return the answers in two opposite orders of the same attempts: the real action first, another person's last."""
    last = len(verdicts[0].ranks) - 1
    chance = 1 / (last + 1)
    tied = fmean(verdict.ranks.count(max(verdict.ranks)) > 1 for verdict in verdicts)
    first = fmean(verdict.share_of_first(verdict.listed_first) for verdict in verdicts)
    real = fmean(verdict.share_of_first(0) for verdict in verdicts)
    talk = pair.conversation_id
    answers = [
        _Answer(check=check, conversation=talk, win=win, tied=tied, chance=chance)
        for check, win in (("first", first), ("real", real))
    ]
    if with_other:
        above = [verdict.above(last, 0) for verdict in verdicts]
        tied = fmean(share == 0.5 for share in above)
        answers.append(_Answer(check="another_person", conversation=talk, win=fmean(above), tied=tied))
    return answers


def _summary(judge: str, asked: Sequence[tuple[Sequence[_Answer], Sequence[bool]]], seed: int) -> dict[str, Any]:
    """Return the figures of all checks, the outcome, and a sentence about it.

    `asked` holds the answers about each pair, and of each verdict whether it is readable.
    """
    answers = [answer for own, _ in asked for answer in own]
    readable = [flag for _, flags in asked for flag in flags]
    checks: dict[str, Any] = {}
    for name, check in LISTWISE_CHECKS.items():
        own = [answer for answer in answers if answer.check == name]
        conversations = [answer.conversation for answer in own]
        win, ties = (
            mean(values, conversations, share=True)
            for values in ([answer.win for answer in own], [answer.tied for answer in own])
        )
        chance = fmean([answer.chance for answer in own] or [0.5])
        if (row := check.row(win, ties, chance)) is not None:
            checks[name] = row | {"chance": chance}
    summary: dict[str, Any] = {
        "model": judge, "pairs": sum(bool(flags) for _, flags in asked),
        "conversations": len({answer.conversation for answer in answers}), "sanity": checks,
        "unreadable": unreadable_answers(readable.count(False), len(readable)), "seed": seed,
    }  # fmt: skip
    failures = _failures(summary)
    decided = {"first", "real"} <= checks.keys() and all(row["holds"] is not None for row in checks.values())
    summary["outcome"] = "failed" if failures else "passed" if decided else "too few pairs"
    return summary | {"sentence": _sentence(summary, failures)}


def _failures(summary: dict[str, Any]) -> list[str]:
    """Return what a judge does wrong, as predicates of a sentence."""
    unreadable = summary["unreadable"]
    if unreadable["value"] > MAX_UNREADABLE:
        return [f"gave {unreadable['value']:.0%} of {unreadable['n']} answers that cannot be read"]
    return [
        _failure(name, percentage(row["win"]), row["win"]["value"], row["chance"])
        for name, row in summary["sanity"].items()
        if row["holds"] is False
    ]


def _failure(check: str, share: str, value: float, chance: float) -> str:
    verb = "prefers" if value > chance else "avoids"
    return {
        "first": f"{verb} the first place: the attempt listed first wins in {share} (by chance {chance:.0%})",
        "real": f"does not tell the real action from reconstructions: it comes first in {share} (by chance {chance:.0%})",
        "another_person": f"ranks another person's action above the real one in {share}",
        "identical": f"{verb} the first place for equal attempts: the one listed first wins in {share}",
    }[check]


def _sentence(summary: dict[str, Any], failures: Sequence[str]) -> str:
    judge, checks = f'the judge "{summary["model"]}"', summary["sanity"]
    if failures:
        return f"{judge} {'; it '.join(failures)}; its scores are not evidence"
    if summary["outcome"] == "passed":
        real, first = checks["real"], checks["first"]
        return (
            f"{judge} passes its checks on pairs with known answers: the real action comes first in {percentage(real['win'])} "
            f"(by chance {real['chance']:.0%}), the attempt listed first in {percentage(first['win'])}"
        )
    return (
        f"{judge} cannot be checked yet: {summary['pairs']} pairs with known answers in {summary['conversations']} "
        f"conversations; {ENOUGH} pairs in {MIN_CONVERSATIONS} conversations are needed"
    )
