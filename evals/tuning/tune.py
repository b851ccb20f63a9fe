"""Tune a twin: choose on validation turns how it uses its memory, under the model that acts.

Design: all settings predict the same real turns, in bits per character, or reply to them where the model tells no likelihoods.
The simplest one within a standard error of the best is chosen. So traces that do not help, or few conversations to tell by,
leave a twin without traces.

First, without traces, the number of recalled pairs, then that of context turns. Then, at the best of these, which traces are
shown, and whether the twin writes one for the present turn before it acts. Then whether the person's own words are mixed into
the model's probabilities: their weights are fitted on half of the conversations and tried on the other half, twice. At last, in
the same way, whether the best of several replies is closer to the person than one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

from usertwin.evals.metrics.statistics import evenly_spaced
from usertwin.evals.replay.held_out import with_time_after
from usertwin.evals.replay.leak_checks import check_split, near_duplicates
from usertwin.memory import Scorer, Settings
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.twin.record import HELD_OUT_FILE, read_stored_conversations
from usertwin.personas import Pair, UsageError
from usertwin.personas.pairs import group_pairs
from usertwin.simulator import SimulatedUser

from .comparison import LikelihoodComparison, ReplyComparison
from .reranking import SAMPLES, tune_reranking

#: The numbers of recalled pairs, and of context turns, to compare. Fewer is simpler.
KS, WINDOWS = (4, 8, 16, 32), (3, 6)


@dataclass(frozen=True, slots=True)
class TunePlan:
    """The cost of tuning.

    Attributes:
        turns: validation turns.
        settings: settings that are measured on each of them.
        thoughts: traces that the twin's model writes.
        dropped: turns that nearly repeat the memory, and are left out.
        replies: replies that the twin's model writes.
        scored: whether turns are scored, or replied to.
    """

    turns: int
    settings: int
    thoughts: int
    dropped: int = 0
    _: KW_ONLY
    replies: int = 0
    scored: bool = True

    @property
    def measurements(self) -> int:
        """The number of measured turns, each after its own prompt."""
        return self.turns * self.settings

    def __str__(self) -> str:
        scored = f": {self.measurements} turns scored" if self.scored else ""
        traces = f" and {self.thoughts} traces written" if self.thoughts else ""
        replies = f", {self.replies} replies written" if self.replies else ""
        dropped = f"; {self.dropped} more nearly repeat the memory, and were dropped" if self.dropped else ""
        return f"{self.settings} settings on {self.turns} validation turns{scored}{traces}{replies}{dropped}"


def validation_pairs(user: SimulatedUser, folder: Path, limit: int) -> list[Pair]:
    """Return at most `limit` of the pairs of `fresh_validation_pairs`, evenly spaced."""
    return evenly_spaced(fresh_validation_pairs(user, folder)[0], limit)


def fresh_validation_pairs(user: SimulatedUser, folder: Path) -> tuple[list[Pair], int]:
    """Return the person's validation pairs that the memory does not nearly hold, and the number of the others.

    Settings may be chosen on these. TwinError if the memory holds a held-out conversation.
    """
    record = user.record
    groups = group_pairs(read_stored_conversations(folder / HELD_OUT_FILE), record.recipe.speaker, window=_windows(user)[-1])
    validation = set(record.validation)
    pairs = [with_time_after(pair, record.dated, record.corpus_ends) for group in groups for pair in group]
    held_out = [pair for pair in pairs if pair.conversation_id in validation and not pair.abandoned]
    known = [triple.pair for triple in user.store.triples()]
    check_split(record, known, held_out, by_time=False)
    duplicates = near_duplicates(held_out, known)
    return [pair for place, pair in enumerate(held_out) if place not in duplicates], len(duplicates)


def _windows(user: SimulatedUser) -> list[int]:
    return sorted({*WINDOWS, user.record.recipe.window})


def tune_plan(user: SimulatedUser, turns: int, dropped: int = 0, *, chosen: int = 0, scored: bool = True) -> TunePlan:
    """Return the cost of tuning on a number of turns, after others were dropped; `chosen` of them for the best of replies."""
    variants = _trace_variants(user)
    n_settings = len(KS) + len(_windows(user)) - 1 + len(variants)
    replies = chosen * SAMPLES + (0 if scored else turns * n_settings)
    return TunePlan(turns, n_settings, turns * any(v.reasons for v in variants), dropped, replies=replies, scored=scored)


def _trace_variants(user: SimulatedUser) -> list[Settings]:
    """Return the uses of traces to compare, the simplest first; none if the memory holds no trace."""
    if not user.store.stats().traced:
        return []
    without_reasoning = [Settings(traces=traces, reasons=False) for traces in ("backward", "recon")]
    return [*without_reasoning, Settings(traces="recon", reasons=True)]


async def tune(
    user: SimulatedUser, scorer: Scorer | None, *, folder: Path, limit: int = 24, replies: int = 0, seed: int = 0,
    on_plan: Callable[[TunePlan], None] = lambda plan: None, progress: Progress = no_progress,
) -> Settings:  # fmt: skip
    """Choose the settings of a twin on its validation turns.

    Args:
        user: the twin; its reasoner writes the traces for the present turn.
        scorer: predicts real turns, with the weights of the model that acts; None to compare written replies.
        folder: the twin's folder.
        limit: the most validation turns, evenly spaced.
        replies: the most of these turns at which the best of several replies is compared with one; 0 not to.
        seed: of the sampler.
        on_plan: called with the cost before tuning starts.
        progress: called with "tuning", and then "choosing", the number of measured turns, and the total.

    Returns:
        The settings, with the comparison in `measured`. Without validation turns: settings without traces.

    Raises:
        UsageError: the limit is below 1.
        ModelError: a model does not answer.
    """
    if limit < 1:
        raise UsageError(f"limit is {limit}; tuning needs at least 1 validation turn")
    fresh, dropped = fresh_validation_pairs(user, folder)
    pairs = evenly_spaced(fresh, limit)
    plan = tune_plan(user, len(pairs), dropped, chosen=min(replies, len(pairs)), scored=scorer is not None)
    on_plan(plan)
    if not pairs:
        return Settings(traces="none", reasons=False)
    if scorer is None:
        comparison = ReplyComparison(user, user.store.embedder, pairs, plan.measurements, progress)
    else:
        comparison = LikelihoodComparison(user, scorer, pairs, plan.measurements, progress)
    plain = Settings(window=_windows(user)[-1], traces="none", reasons=False)
    for k in KS:
        await comparison.measure(replace(plain, k=k), seed)
    plain = comparison.simplest_of_the_best()
    for window in _windows(user):
        await comparison.measure(replace(plain, window=window), seed)
    plain = comparison.simplest_of_the_best()
    for variant in _trace_variants(user):
        await comparison.measure(replace(variant, k=plain.k, window=plain.window), seed)
    best = comparison.simplest_of_the_best()
    words, gain = comparison.word_weights(best)
    best = replace(best, words=words)
    measured = comparison.report(plain, replace(best, words=None), seed) | {"words": gain}
    if replies:
        rule, chosen = await tune_reranking(user, best, evenly_spaced(pairs, replies), seed=seed, progress=progress)
        best, measured = replace(best, reranking=rule), measured | {"reranking": chosen}
    return replace(best, measured=measured)
