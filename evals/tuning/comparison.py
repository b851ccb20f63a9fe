"""The settings of a twin compared on validation turns: by the likelihood of the real turns, or by replies.

A model that tells no likelihoods, such as a hosted one, is tuned by what it writes. Another model's likelihoods would choose
what suits the other model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from math import fsum, log
from typing import Any, get_args

from usertwin.evals.arm_names import WORDS
from usertwin.evals.metrics.reply_similarity import chrf
from usertwin.evals.metrics.statistics import Inference, optional_json, ratio, ratio_inference
from usertwin.evals.replay.arms import own_words
from usertwin.evals.replay.leak_checks import measure_memorization
from usertwin.memory import Embedder, Scorer, Settings, Triple
from usertwin.memory.concurrency import to_thread
from usertwin.memory.models.scoring import Likelihood
from usertwin.memory.own_words.own_words import DEFAULT_WEIGHTS
from usertwin.memory.own_words.word_weights import WordWeights, fit_weights
from usertwin.memory.progress import Progress
from usertwin.memory.text.transcript import action_completion
from usertwin.memory.twin.record import ShownTraces
from usertwin.personas import Pair
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import act_transcript, with_shown_traces


class Comparison(ABC):
    """The cost of each validation turn under each setting, in a unit for which less is better.

    Args:
        user: the twin.
        pairs: the validation turns.
        sizes: what the cost of each turn is divided by, summed over turns.
        total: the number of turns under all settings, for the progress.
        progress: called with "tuning", the number of finished turns, and the total.
    """

    #: The name of the cost in the rows of a report.
    measure_name: str

    def __init__(
        self, user: SimulatedUser, pairs: Sequence[Pair], sizes: Sequence[float], total: int, progress: Progress
    ) -> None:  # fmt: skip
        self._user, self._pairs, self._sizes, self._progress = user, pairs, sizes, progress
        self._conversations = [pair.conversation_id for pair in pairs]
        self._costs: dict[Settings, list[float]] = {}
        self._done, self._total = 0, total

    async def measure(self, setting: Settings, seed: int) -> None:
        """Measure every turn under a setting, unless it is measured."""
        if setting in self._costs:
            return
        twin = with_settings(self._user, setting)
        matches = await to_thread(twin.recall_many, self._pairs, before=[pair.when for pair in self._pairs])
        costs = list[float]()
        for number, (pair, recalled) in enumerate(zip(self._pairs, matches, strict=True)):
            self._progress("tuning", self._done, self._total)
            shown = with_shown_traces([match.triple for match in recalled], setting.traces)
            costs.append(await self._cost(twin, pair, shown, seed + number))
            self._done += 1
        self._costs[setting] = costs
        self._progress("tuning", self._done, self._total)

    @abstractmethod
    async def _cost(self, twin: SimulatedUser, pair: Pair, shown: Sequence[Triple], seed: int) -> float: ...

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what the report says of the measure."""

    def word_weights(self, setting: Settings) -> tuple[WordWeights | None, dict[str, Any] | None]:
        """Return the weights of the person's own words, and what they add to the cost; None for what cannot be told."""
        return None, None

    def _difference(self, a: Settings, b: Settings) -> Inference | None:
        """Return how much more a costs than b, paired by turn."""
        differences = [first - second for first, second in zip(self._costs[a], self._costs[b], strict=True)]
        return ratio_inference(differences, self._sizes, self._conversations)

    def simplest_of_the_best(self) -> Settings:
        """Return the simplest setting that is at most a standard error worse than the best one."""
        best = min(self._costs, key=lambda setting: sum(self._costs[setting]))
        by_complexity = sorted(self._costs, key=_complexity)
        return next(setting for setting in by_complexity if setting == best or self._is_as_good(setting, best))

    def _is_as_good(self, setting: Settings, best: Settings) -> bool:
        difference = self._difference(setting, best)
        if difference is None or difference.error is None:
            return True  # too few conversations show no difference
        return difference.value <= difference.error

    def report(self, plain: Settings, best: Settings, seed: int) -> dict[str, Any]:
        """Return the comparison as a JSON object; differences are to the best setting without traces."""
        rows: list[dict[str, Any]] = []
        for setting, costs in self._costs.items():
            difference = None if setting == plain else self._difference(setting, plain)
            rows.append(
                {
                    **{name: getattr(setting, name) for name in ("k", "window", "traces", "reasons")},
                    self.measure_name: optional_json(ratio(costs, self._sizes, self._conversations)),
                    "against_plain": optional_json(difference and difference.estimate()),
                    "chosen": setting == best,
                }
            )
        turns, conversations = len(self._pairs), len(set(self._conversations))
        facts = {"turns": turns, "conversations": conversations, "model": self._user.model.name, "seed": seed}
        return {"settings": rows, **facts, **self.facts()}


class LikelihoodComparison(Comparison):
    """The cost is that of the real turn, in bits per character."""

    measure_name = "bits_per_char"

    def __init__(
        self, user: SimulatedUser, scorer: Scorer, pairs: Sequence[Pair], total: int, progress: Progress
    ) -> None:  # fmt: skip
        super().__init__(user, pairs, [float(len(action_completion(pair.action)) - 1) for pair in pairs], total, progress)
        self._scorer = scorer
        self._likelihoods: dict[Settings, list[Likelihood]] = {}

    async def _cost(self, twin: SimulatedUser, pair: Pair, shown: Sequence[Triple], seed: int) -> float:
        reasons = twin.reasons_after(shown)
        thought = ((await twin.sample_reasoning(pair, shown, seed=seed)).text or None) if reasons else None
        prompt = act_transcript(pair, shown, thought, persona=twin.persona, turns=twin.settings.window)
        [likelihood] = await to_thread(self._scorer.score, [(prompt, action_completion(pair.action))])
        self._likelihoods.setdefault(twin.settings, []).append(likelihood)
        return likelihood.bits

    def facts(self) -> dict[str, Any]:
        """See `Comparison.facts`."""
        return {"scorer": self._scorer.name, "memorized": measure_memorization(self._scorer, self._pairs)}

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
        gain = ratio_inference(differences, self._sizes, self._conversations)
        if gain is None or gain.error is None:
            return DEFAULT_WEIGHTS, None
        weights = fit_weights(list(chain.from_iterable(evidence)), DEFAULT_WEIGHTS) if gain.value < -gain.error else None
        return weights, optional_json(gain.estimate())


class ReplyComparison(Comparison):
    """The cost is how unlike the real turn one written reply is: 1 minus the mean of its chrF and its cosine."""

    measure_name = "unlikeness"

    def __init__(
        self, user: SimulatedUser, embedder: Embedder, pairs: Sequence[Pair], total: int, progress: Progress
    ) -> None:  # fmt: skip
        super().__init__(user, pairs, [1.0] * len(pairs), total, progress)
        self._embedder = embedder

    async def _cost(self, twin: SimulatedUser, pair: Pair, shown: Sequence[Triple], seed: int) -> float:
        _, [draft] = await twin.sample_reply(pair, shown, seed=seed)
        return 1 - await to_thread(likeness, draft.text, pair.action, self._embedder)

    def facts(self) -> dict[str, Any]:
        """See `Comparison.facts`."""
        return {"scorer": "written replies", "memorized": None}


def with_settings(user: SimulatedUser, settings: Settings) -> SimulatedUser:
    """Return a twin with settings under test; it shares the memory and the models, and never leaves."""
    return SimulatedUser(user.record, user.store, user.model, reasoner=user.reasoner, settings=settings, ranking=user.ranking)


def likeness(reply: str, real: str, embedder: Embedder) -> float:
    """Return the mean of chrF and cosine of a reply and a real turn; 0 for no reply."""
    if not reply:
        return 0.0
    ours, theirs = embedder.embed([reply, real])
    return (chrf(reply, real) + float(ours @ theirs)) / 2


def _complexity(setting: Settings) -> tuple[bool, int, int, int]:
    return (setting.reasons, get_args(ShownTraces).index(setting.traces), setting.k, setting.window)
