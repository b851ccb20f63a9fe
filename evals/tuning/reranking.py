"""Tune the choice of a reply: whether, and how, the best of several candidates is closer to the person than one reply.

Design: the quality of a candidate is the mean of its chrF and its cosine with the person's real reply. Both are measures of the
evaluation, and the classifier that tells twins from people has no part in the rule. The score of a candidate is linear in its
features, fitted within turns by ridge regression towards weights that hold for any person, since a person has few validation
turns. The gain is measured on the half of the conversations that the weights were not fitted on. (The weights for any person
were fitted on validation turns of ten development people, whose own gains are therefore not fair.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

from usertwin.evals.metrics.statistics import Inference, optional_json, ratio_inference, t_quantile
from usertwin.memory import Settings
from usertwin.memory.concurrency import to_thread
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.twin.reranking import DEFAULT_RERANKING, FEATURES, Feature, Reranking
from usertwin.personas import Pair
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import with_shown_traces
from usertwin.simulator.reranking.reranker import Reranker
from usertwin.simulator.turn_checks import TurnChecker, badness

from .comparison import likeness, with_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The rules to compare, the cheapest first: (replies that the model writes, whether recalled answers are candidates too).
OPTIONS = ((2, False), (2, True), (4, False), (4, True))
#: The replies that the model writes for each turn, of which a rule of fewer takes the first.
SAMPLES = max(samples for samples, _ in OPTIONS)
#: The weight of the general weights, in units of the sum of squares of a feature over candidates.
_RIDGE = 50.0
#: A rule is used if its gain is above 0 at this level of a one-sided test. Four rules that share their candidates are tried, so
#: a rule that gains nothing is used more often than in 5 of 100 cases, and in fewer than 20.
LEVEL = 0.95

Option: TypeAlias = tuple[int, bool]


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """The candidates of a rule at a turn: their features, of shape (candidates, features), and the quality of each, 0 to 1."""

    features: NDArray[np.float64]
    quality: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankedTurn:
    """A validation turn.

    Attributes:
        conversation: the id of its conversation.
        choices: the candidates by rule, as the rule sees them; a rule without any is left out.
        single: the mean quality of one written reply.
        tokens: those that the model wrote for a reply, on average.
    """

    conversation: str
    choices: Mapping[Option, Choices]
    single: float
    tokens: float


async def tune_reranking(
    user: SimulatedUser, settings: Settings, pairs: Sequence[Pair], *, seed: int = 0, progress: Progress = no_progress
) -> tuple[Reranking | None, dict[str, Any]]:
    """Return the rule for the best of several replies, None where it does not pay, and the comparison as a JSON object.

    Args:
        user: the twin.
        settings: those that it will have.
        pairs: validation turns.
        seed: of the sampler.
        progress: called with "choosing", the number of finished turns, and the total.

    Raises:
        ModelError: the model does not answer.
    """
    turns: list[RankedTurn] = []
    twin = with_settings(user, settings)
    for number, pair in enumerate(pairs):
        progress("choosing", number, len(pairs))
        turns.append(await ranked_turn(twin, pair, seed=seed + number * SAMPLES))
    progress("choosing", len(pairs), len(pairs))
    return await to_thread(choose_rule, turns)


async def ranked_turn(user: SimulatedUser, pair: Pair, *, seed: int) -> RankedTurn:
    """Return a turn with its candidates under each rule."""
    [recalled] = await to_thread(user.recall_many, [pair], before=[pair.when])
    shown = with_shown_traces([one.triple for one in recalled], user.settings.traces)
    writer = await to_thread(user.writer_with, user.settings.words, before=pair.when)
    thought = await user.reasoning_for(pair, shown, seed=seed)
    drafts = await writer.drafts(pair, shown, thought, seed=seed, n=SAMPLES)

    def rank() -> RankedTurn:
        import numpy as np

        checker, reranker = TurnChecker(pair, shown, writer.sides()), Reranker(user.store)
        quality = cache(partial(likeness, real=pair.action, embedder=user.store.embedder))  # candidates of several rules
        choices: dict[Option, Choices] = {}
        for samples, quotes in OPTIONS:
            written = [draft.text for draft in drafts[:samples] if not badness(draft)]
            found = reranker.candidates(written, pair, shown, quotes=quotes, is_usable=lambda text: not checker.defect(text))
            if found:
                qualities = np.array([quality(candidate.text) for candidate in found])
                choices[samples, quotes] = Choices(reranker.features(found, pair, shown), qualities)
        single = fmean(quality(draft.text) for draft in drafts)
        tokens = fmean(draft.usage.output_tokens for draft in drafts)
        return RankedTurn(conversation=pair.conversation_id, choices=choices, single=single, tokens=tokens)

    return await to_thread(rank)


def choose_rule(turns: Sequence[RankedTurn]) -> tuple[Reranking | None, dict[str, Any]]:
    """Return the cheapest rule that gains within a standard error of the most and significantly; None for none."""
    gains = {option: _gain(turns, *option) for option in OPTIONS}
    told = {option: gain for option, gain in gains.items() if gain is not None and gain.error is not None}
    best = max(told.values(), key=lambda gain: gain.value, default=None)
    chosen = next((o for o, gain in told.items() if best is not None and _pays(gain, best)), None)
    rule = None if chosen is None else Reranking(samples=chosen[0], quotes=chosen[1], weights=_weights(turns, *chosen))
    tokens = fmean([turn.tokens for turn in turns] or [0.0])
    rows: list[dict[str, Any]] = [
        {
            "samples": samples, "quotes": quotes, "gain": optional_json(gain and gain.estimate()),
            "tokens_per_turn": round(tokens * samples, 1), "chosen": (samples, quotes) == chosen,
        }
        for (samples, quotes), gain in gains.items()
    ]  # fmt: skip
    return rule, {"rules": rows, "turns": len(turns), "single": round(fmean([turn.single for turn in turns] or [0.0]), 4)}


def _pays(gain: Inference, best: Inference) -> bool:
    """Return whether a rule gains significantly, and not much less than the best."""
    error = gain.error or 0.0
    return gain.value > t_quantile(LEVEL, gain.freedom) * error and gain.value >= best.value - (best.error or 0.0)


def _gain(turns: Sequence[RankedTurn], samples: int, quotes: bool) -> Inference | None:
    """Return by how much the quality of the chosen candidate is above that of one reply, by weights of other conversations.

    A turn without a candidate counts as none: the twin then writes as without a rule.
    """
    ids = list(dict.fromkeys(turn.conversation for turn in turns))
    fold = {conversation: place % 2 for place, conversation in enumerate(ids)}
    halves = [[turn for turn in turns if fold[turn.conversation] != half] for half in (0, 1)]
    weights = [_fitted(half, samples, quotes) for half in halves]
    differences: list[float] = []
    for turn in turns:
        choices = turn.choices.get((samples, quotes))
        if choices is None:
            differences.append(0.0)
            continue
        best = int((choices.features @ weights[fold[turn.conversation]]).argmax())
        differences.append(float(choices.quality[best]) - turn.single)
    return ratio_inference(differences, [1.0] * len(turns), [turn.conversation for turn in turns])


def _fitted(turns: Sequence[RankedTurn], samples: int, quotes: bool) -> NDArray[np.float64]:
    """Return weights of features that predict which candidates of a turn are above its mean."""
    import numpy as np
    from sklearn.linear_model import Ridge

    prior = np.array([DEFAULT_RERANKING.weights.get(name, 0.0) for name in FEATURES])
    features, quality = [np.zeros((1, len(FEATURES)))], [np.zeros(1)]
    for turn in turns:
        if (choices := turn.choices.get((samples, quotes))) is not None:
            features.append(choices.features - choices.features.mean(axis=0))
            quality.append(choices.quality - choices.quality.mean())
    table = np.concatenate(features)
    fitted: Any = Ridge(alpha=_RIDGE, fit_intercept=False).fit(table, np.concatenate(quality) - table @ prior)
    return prior + np.asarray(fitted.coef_, dtype=np.float64)


def _weights(turns: Sequence[RankedTurn], samples: int, quotes: bool) -> dict[Feature, float]:
    return {name: round(float(value), 4) for name, value in zip(FEATURES, _fitted(turns, samples, quotes), strict=True)}
