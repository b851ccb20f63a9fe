"""How a twin best uses its memory, found by measuring on validation turns: how much to recall, and whether traces pay.

The one design choice: every setting predicts the same real turns, in bits per character, and the simplest one that is within a
standard error of the best is taken. So a proposer whose traces do not help leaves a twin as it would be without them.

First how many moments are recalled and how many turns of the chat are shown, without traces; then, at what was best, which
traces are shown with them, and whether the twin writes one of its own for the present turn before it acts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from usertwin.evals.metrics.statistics import Estimate, evenly_spaced, ratio
from usertwin.memory import Scorer, Settings, Triple
from usertwin.memory.text.transcript import action_completion
from usertwin.memory.twin.record import HELD_OUT, kept_conversations
from usertwin.personas import Pair, UsageError
from usertwin.personas.pairs import group_pairs
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import act_transcript, with_shown_traces

from .held_out import with_time_after

#: What is compared: how many moments, and how many turns of the present chat. Fewer is simpler.
KS, WINDOWS = (4, 8), (3, 6)
#: On how many validation turns, if nothing else is said.
DEFAULT_TURNS = 24
_SIDES = 2 * 1.96

#: Is told the stage, how many scorings are done, of how many.
TuneProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TunePlan:
    """What deciding takes: on how many turns, how many settings, and with how many texts of the twin's model."""

    turns: int
    settings: int
    thoughts: int

    @property
    def scorings(self) -> int:
        """How many real turns are scored, each after a prompt of its own."""
        return self.turns * self.settings

    def __str__(self) -> str:
        wrote = f" and {self.thoughts} thoughts written" if self.thoughts else ""
        return f"{self.settings} settings on {self.turns} validation turns: {self.scorings} turns scored{wrote}"


def validation_pairs(user: SimulatedUser, folder: Path, limit: int) -> list[Pair]:
    """The person's own turns that settings may be chosen on, at most so many, spread evenly."""
    record = user.record
    groups = group_pairs(kept_conversations(folder / HELD_OUT), record.recipe.speaker, window=_windows(user)[-1])
    known = set(record.validation)
    pairs = [with_time_after(pair, record.dated, record.corpus_ends) for group in groups for pair in group]
    return evenly_spaced([pair for pair in pairs if pair.conversation_id in known and not pair.abandoned], limit)


def _windows(user: SimulatedUser) -> list[int]:
    return sorted({*WINDOWS, user.record.recipe.window})


def tune_plan(user: SimulatedUser, turns: int) -> TunePlan:
    """What deciding on so many turns takes."""
    variants = _trace_variants(user)
    return TunePlan(turns, len(KS) * len(_windows(user)) + len(variants), turns * any(one.reasons for one in variants))


def _trace_variants(user: SimulatedUser) -> list[Settings]:
    """Which ways of using traces there are to compare, the simplest first; none if the memory holds no trace."""
    if not user.store.stats().traced:
        return []
    plain = Settings(traces="none", reasons=False)
    return [
        replace(plain, traces="backward"),
        replace(plain, traces="recon"),
        replace(plain, traces="recon", reasons=True),
    ]


async def tune(
    user: SimulatedUser,
    scorer: Scorer,
    *,
    folder: Path,
    limit: int = DEFAULT_TURNS,
    seed: int = 0,
    on_plan: Callable[[TunePlan], None] = lambda plan: None,
    progress: TuneProgress = lambda stage, done, total: None,
) -> Settings:
    """Find how a twin best uses its memory.

    Args:
        user: the twin; its reasoner writes the thoughts for the present turn.
        scorer: under which real turns are predicted; traces pay for one model and not for another.
        folder: the twin's.
        limit: the most validation turns to measure on, spread evenly.
        seed: for sampling and intervals.
        planned: is told what it will take, before it begins.
        progress: is told how far things are.

    Returns:
        The settings, with what was compared in `measured`. Without any validation turn: those of a twin without traces.

    Raises:
        UsageError: a limit below 1.
        ModelError: a model does not answer.
    """
    if limit < 1:
        raise UsageError(f"{limit} turns to decide on: at least one is needed")
    pairs = validation_pairs(user, folder, limit)
    takes = tune_plan(user, len(pairs))
    on_plan(takes)
    if not pairs:
        return Settings(traces="none", reasons=False)
    compared = _Comparison(user, scorer, pairs, takes.scorings, progress)
    for k in KS:
        for window in _windows(user):
            await compared.measure(Settings(k=k, window=window, traces="none", reasons=False), seed)
    best = compared.simplest_of_the_best(seed)
    for variant in _trace_variants(user):
        await compared.measure(replace(variant, k=best.k, window=best.window), seed)
    chosen = compared.simplest_of_the_best(seed)
    return replace(chosen, measured=compared.report(best, chosen, seed))


class _Comparison:
    """Settings and the bits that each real turn costs under them."""

    def __init__(
        self, user: SimulatedUser, scorer: Scorer, pairs: Sequence[Pair], total: int, progress: TuneProgress
    ) -> None:
        self._user, self._scorer, self._pairs, self._progress = user, scorer, pairs, progress
        self._where = [pair.conversation_id for pair in pairs]
        self._characters = [float(len(action_completion(pair.action)) - 1) for pair in pairs]
        self._bits: dict[Settings, list[float]] = {}
        self._done, self._total = 0, total

    async def measure(self, setting: Settings, seed: int) -> None:
        """Score every turn under a setting."""
        times = [pair.when for pair in self._pairs]
        traced = setting.traces != "none"
        found = self._user.store.recall_many(
            self._pairs, setting.k, before=times, with_trace=traced, ranking=self._user.ranking
        )  # fmt: skip
        self._bits[setting] = []
        for number, (pair, recalled) in enumerate(zip(self._pairs, found, strict=True)):
            self._progress("deciding", self._done, self._total)
            shown = with_shown_traces([one.triple for one in recalled], setting.traces)
            thought = await self._thought(pair, shown, setting, seed + number)
            prompt = act_transcript(pair, shown, thought, turns=setting.window)
            [likelihood] = self._scorer.score([(prompt, action_completion(pair.action))])
            self._bits[setting].append(likelihood.bits)
            self._done += 1
        self._progress("deciding", self._done, self._total)

    async def _thought(self, pair: Pair, shown: Sequence[Triple], setting: Settings, seed: int) -> str | None:
        if not setting.reasons or not any(triple.reasoning for triple in shown):
            return None
        user = self._user  # who thinks is shown as many turns of the chat as the setting under test says
        twin = SimulatedUser(
            user.record, user.store, user.model, reasoner=user.reasoner, settings=setting, ranking=user.ranking
        )
        return (await twin.sample_reasoning(pair, shown, seed=seed)).text or None

    def of(self, setting: Settings, seed: int) -> Estimate | None:
        """Bits per character under a setting."""
        return ratio(self._bits[setting], self._characters, self._where, seed=seed)

    def difference(self, one: Settings, other: Settings, seed: int) -> Estimate | None:
        """How many more bits per character one takes than the other, paired by turn."""
        pairs = zip(self._bits[one], self._bits[other], strict=True)
        return ratio([a - b for a, b in pairs], self._characters, self._where, seed=seed)

    def simplest_of_the_best(self, seed: int) -> Settings:
        """The simplest setting that is at most a standard error worse than the best one; they were measured simplest first."""
        best = min(self._bits, key=lambda setting: sum(self._bits[setting]))
        ranked = sorted(self._bits, key=_complexity)
        return next(setting for setting in ranked if setting == best or self._as_good(setting, best, seed))

    def _as_good(self, setting: Settings, best: Settings, seed: int) -> bool:
        found = self.difference(setting, best, seed)
        if found is None or found.low is None or found.high is None:
            return True  # one conversation tells no difference
        return found.value <= (found.high - found.low) / _SIDES

    def report(self, plain: Settings, chosen: Settings, seed: int) -> dict[str, Any]:
        """What was compared, as a JSON object; differences are to the best setting without traces."""
        rows: list[dict[str, Any]] = []
        for setting in self._bits:
            bits, extra = self.of(setting, seed), self.difference(setting, plain, seed)
            rows.append(
                {
                    "k": setting.k,
                    "window": setting.window,
                    "traces": setting.traces,
                    "reasons": setting.reasons,
                    "bits_per_char": bits.to_json() if bits else None,
                    "against_plain": extra.to_json() if extra and setting != plain else None,
                    "chosen": setting == chosen,
                }
            )
        return {
            "settings": rows,
            "turns": len(self._pairs),
            "conversations": len(set(self._where)),
            "scorer": self._scorer.name,
            "model": self._user.model.name,
            "seed": seed,
        }


def _complexity(setting: Settings) -> tuple[bool, int, int, int]:
    return (setting.reasons, ("none", "backward", "recon").index(setting.traces), setting.k, setting.window)
