"""Tune a twin: choose the number of recalled pairs, the context window and the use of traces on validation turns.

Design: all settings predict the same real turns, in bits per character. The simplest one within a standard error of the best is
chosen. So traces that do not help, or few conversations to tell by, leave a twin without traces.

First, without traces, the number of recalled pairs and of context turns. Then, at the best of these, which traces are shown,
and whether the twin writes one for the present turn before it acts. At last, whether the person's own words are mixed into the
model's probabilities: their weights are fitted on half of the conversations and tried on the other half, twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import fsum, log
from pathlib import Path
from typing import Any, get_args

from usertwin.evals.arm_names import WORDS
from usertwin.evals.metrics.statistics import Inference, evenly_spaced, optional_json, ratio, ratio_inference
from usertwin.memory import Scorer, Settings, Triple
from usertwin.memory.models.scoring import Likelihood
from usertwin.memory.own_words.own_words import DEFAULT_WEIGHTS
from usertwin.memory.own_words.word_weights import WordWeights, fit_weights
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.text.transcript import action_completion
from usertwin.memory.twin.record import HELD_OUT_FILE, ShownTraces, read_stored_conversations
from usertwin.personas import Pair, UsageError
from usertwin.personas.pairs import group_pairs
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import act_transcript, with_shown_traces

from .arms import own_words
from .held_out import with_time_after
from .leak_checks import check_split, measure_memorization, near_duplicates

#: The numbers of recalled pairs, and of context turns, to compare. Fewer is simpler.
KS, WINDOWS = (4, 8), (3, 6)


@dataclass(frozen=True, slots=True)
class TunePlan:
    """The cost of tuning: validation turns, settings, traces that the twin's model writes, and turns that were dropped."""

    turns: int
    settings: int
    thoughts: int
    dropped: int = 0

    @property
    def scorings(self) -> int:
        """The number of scored turns, each after its own prompt."""
        return self.turns * self.settings

    def __str__(self) -> str:
        traces = f" and {self.thoughts} traces written" if self.thoughts else ""
        dropped = f"; {self.dropped} more nearly repeat the memory, and were dropped" if self.dropped else ""
        return f"{self.settings} settings on {self.turns} validation turns: {self.scorings} turns scored{traces}{dropped}"


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


def tune_plan(user: SimulatedUser, turns: int, dropped: int = 0) -> TunePlan:
    """Return the cost of tuning on a number of turns, after others were dropped."""
    variants = _trace_variants(user)
    n_settings = len(KS) * len(_windows(user)) + len(variants)
    return TunePlan(turns, n_settings, turns * any(setting.reasons for setting in variants), dropped)


def _trace_variants(user: SimulatedUser) -> list[Settings]:
    """Return the uses of traces to compare, the simplest first; none if the memory holds no trace."""
    if not user.store.stats().traced:
        return []
    without_reasoning = [Settings(traces=traces, reasons=False) for traces in ("backward", "recon")]
    return [*without_reasoning, Settings(traces="recon", reasons=True)]


async def tune(
    user: SimulatedUser, scorer: Scorer, *, folder: Path, limit: int = 24, seed: int = 0,
    on_plan: Callable[[TunePlan], None] = lambda plan: None, progress: Progress = no_progress,
) -> Settings:  # fmt: skip
    """Choose the settings of a twin on its validation turns.

    Args:
        user: the twin; its reasoner writes the traces for the present turn.
        scorer: the model that predicts real turns; traces may help one model and not another.
        folder: the twin's folder.
        limit: the most validation turns, evenly spaced.
        seed: of the sampler.
        on_plan: called with the cost before tuning starts.
        progress: called with "tuning", the number of scored turns, and the total.

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
    plan = tune_plan(user, len(pairs), dropped)
    on_plan(plan)
    if not pairs:
        return Settings(traces="none", reasons=False)
    comparison = _Comparison(user, scorer, pairs, plan.scorings, progress)
    for k in KS:
        for window in _windows(user):
            await comparison.measure(Settings(k=k, window=window, traces="none", reasons=False), seed)
    plain = comparison.simplest_of_the_best()
    for variant in _trace_variants(user):
        await comparison.measure(replace(variant, k=plain.k, window=plain.window), seed)
    best = comparison.simplest_of_the_best()
    words, gain = comparison.word_weights(best)
    return replace(best, words=words, measured=comparison.report(plain, best, seed) | {"words": gain})


class _Comparison:
    """The cost in bits of each validation turn under each setting."""

    def __init__(self, user: SimulatedUser, scorer: Scorer, pairs: Sequence[Pair], total: int, progress: Progress) -> None:
        self._user, self._scorer, self._pairs, self._progress = user, scorer, pairs, progress
        self._conversations = [pair.conversation_id for pair in pairs]
        self._characters = [float(len(action_completion(pair.action)) - 1) for pair in pairs]
        self._likelihoods: dict[Settings, list[Likelihood]] = {}
        self._done, self._total = 0, total

    async def measure(self, setting: Settings, seed: int) -> None:
        """Score every turn under a setting."""
        times = [pair.when for pair in self._pairs]
        matches = self._twin(setting).recall_many(self._pairs, before=times)
        self._likelihoods[setting] = []
        for number, (pair, recalled) in enumerate(zip(self._pairs, matches, strict=True)):
            self._progress("tuning", self._done, self._total)
            shown = with_shown_traces([match.triple for match in recalled], setting.traces)
            thought = await self._thought(pair, shown, setting, seed + number)
            prompt = act_transcript(pair, shown, thought, persona=self._user.persona, turns=setting.window)
            [likelihood] = self._scorer.score([(prompt, action_completion(pair.action))])
            self._likelihoods[setting].append(likelihood)
            self._done += 1
        self._progress("tuning", self._done, self._total)

    async def _thought(self, pair: Pair, shown: Sequence[Triple], setting: Settings, seed: int) -> str | None:
        twin = self._twin(setting)
        return ((await twin.sample_reasoning(pair, shown, seed=seed)).text or None) if twin.reasons_after(shown) else None

    def _twin(self, setting: Settings) -> SimulatedUser:
        """Return the twin with a setting under test."""
        user = self._user
        return SimulatedUser(
            user.record, user.store, user.model, reasoner=user.reasoner, settings=setting, ranking=user.ranking
        )

    def _bits(self, setting: Settings) -> list[float]:
        return [likelihood.bits for likelihood in self._likelihoods[setting]]

    def word_weights(self, setting: Settings) -> tuple[WordWeights | None, dict[str, Any] | None]:
        """Return the weights of the person's own words, and the bits per character that they add, below 0 a gain.

        Weights for any person where there are too few conversations to tell; None for the weights where they do not pay, and
        None for both where the scorer does not tell tokens.
        """
        words = own_words(self._user, self._scorer, [WORDS])
        if words is None:
            return None, None
        turns = list(zip(self._likelihoods[setting], self._pairs, strict=True))
        evidence = [words.evidence(likelihood, pair.action, pair.when) for likelihood, pair in turns]
        ids = list(dict.fromkeys(self._conversations))
        fold = {conversation: place % 2 for place, conversation in enumerate(ids)}
        differences: list[float] = []
        for (likelihood, pair), tokens in zip(turns, evidence, strict=True):
            others = [e for e, c in zip(evidence, self._conversations, strict=True) if fold[c] != fold[pair.conversation_id]]
            weights = fit_weights(list(chain.from_iterable(others)), DEFAULT_WEIGHTS)
            differences.append(-fsum(weights.nats(tokens)) / log(2) - likelihood.bits)
        gain = ratio_inference(differences, self._characters, self._conversations)
        if gain is None or gain.error is None:
            return DEFAULT_WEIGHTS, None
        weights = fit_weights(list(chain.from_iterable(evidence)), DEFAULT_WEIGHTS) if gain.value < -gain.error else None
        return weights, optional_json(gain.estimate())

    def _difference(self, a: Settings, b: Settings) -> Inference | None:
        """Return how many more bits per character a costs than b, paired by turn."""
        pairs = zip(self._bits(a), self._bits(b), strict=True)
        differences = [first - second for first, second in pairs]
        return ratio_inference(differences, self._characters, self._conversations)

    def simplest_of_the_best(self) -> Settings:
        """Return the simplest setting that is at most a standard error worse than the best one."""
        best = min(self._likelihoods, key=lambda setting: sum(self._bits(setting)))
        by_complexity = sorted(self._likelihoods, key=_complexity)
        return next(setting for setting in by_complexity if setting == best or self._is_as_good(setting, best))

    def _is_as_good(self, setting: Settings, best: Settings) -> bool:
        difference = self._difference(setting, best)
        if difference is None or difference.error is None:
            return True  # too few conversations show no difference
        return difference.value <= difference.error

    def report(self, plain: Settings, best: Settings, seed: int) -> dict[str, Any]:
        """Return the comparison as a JSON object; differences are to the best setting without traces."""
        rows: list[dict[str, Any]] = []
        for setting in self._likelihoods:
            bits = ratio(self._bits(setting), self._characters, self._conversations)
            difference = None if setting == plain else self._difference(setting, plain)
            rows.append(
                {
                    **{name: getattr(setting, name) for name in ("k", "window", "traces", "reasons")},
                    "bits_per_char": optional_json(bits),
                    "against_plain": optional_json(difference and difference.estimate()),
                    "chosen": setting == best,
                }
            )
        turns, conversations = len(self._pairs), len(set(self._conversations))
        names = {"scorer": self._scorer.name, "model": self._user.model.name}
        memorized = measure_memorization(self._scorer, self._pairs)
        return {"memorized": memorized, "settings": rows, "turns": turns, "conversations": conversations, **names, "seed": seed}


def _complexity(setting: Settings) -> tuple[bool, int, int, int]:
    return (setting.reasons, get_args(ShownTraces).index(setting.traces), setting.k, setting.window)
