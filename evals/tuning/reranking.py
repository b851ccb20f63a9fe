"""Tune the choice of a reply: whether, and how, the best of several candidates is closer to the person than one reply.

Design: the quality of a candidate is the mean of its chrF and its cosine with the person's real reply. Both are measures of the
evaluation, and the classifier that tells twins from people has no part in the rule. The score of a candidate is linear in its
features, fitted within turns by ridge regression towards weights that hold for any person, since a person has few validation
turns. The gain is measured on the half of the conversations that the weights were not fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from usertwin.evals.metrics.statistics import Inference, optional_json, ratio_inference
from usertwin.memory import Settings
from usertwin.memory.concurrency import to_thread
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.twin.reranking import DEFAULT_RERANKING, FEATURES, Reranking
from usertwin.personas import Pair
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import with_shown_traces
from usertwin.simulator.reranking.reranker import Reranker
from usertwin.simulator.turn_checks import usable_defect

from .comparison import likeness

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The rules to compare, the cheapest first: (replies that the model writes, whether recalled answers are candidates too).
OPTIONS = ((2, False), (2, True), (4, False), (4, True))
#: The replies that the model writes for each turn, of which a rule of fewer takes the first.
SAMPLES = max(samples for samples, _ in OPTIONS)
#: The weight of the general weights, in units of the sum of squares of a feature over candidates.
_RIDGE = 50.0


@dataclass(frozen=True, slots=True, eq=False)
class RankedTurn:
    """A validation turn with its candidates.

    Attributes:
        conversation: the id of its conversation.
        features: those of each candidate, of shape (candidates, features).
        quality: that of each candidate, 0 to 1.
        written: the place among the written replies of each candidate; None of a quote.
        tokens: those that the model wrote for each reply.
    """

    conversation: str
    _: KW_ONLY
    features: NDArray[np.float64]
    quality: NDArray[np.float64]
    written: Sequence[int | None]
    tokens: Sequence[int] = field(default=())

    def of(self, samples: int, quotes: bool) -> list[int]:
        """Return the places of the candidates of a rule."""
        return [at for at, place in enumerate(self.written) if (quotes if place is None else place < samples)]

    @property
    def single(self) -> float:
        """The mean quality of one written reply; of a quote, if the model wrote none without a defect."""
        return float(fmean([q for q, w in zip(self.quality, self.written, strict=True) if w is not None] or [self.quality[0]]))


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
    twin = SimulatedUser(user.record, user.store, user.model, reasoner=user.reasoner, settings=settings, ranking=user.ranking)
    for number, pair in enumerate(pairs):
        progress("choosing", number, len(pairs))
        turn = await ranked_turn(twin, pair, samples=SAMPLES, seed=seed + number * SAMPLES)
        if turn is not None:
            turns.append(turn)
    progress("choosing", len(pairs), len(pairs))
    return await to_thread(choose_rule, turns)


async def ranked_turn(user: SimulatedUser, pair: Pair, *, samples: int, seed: int) -> RankedTurn | None:
    """Return a turn with its candidates; None if there is none without a defect."""
    [recalled] = await to_thread(user.recall_many, [pair], before=[pair.when])
    shown = with_shown_traces([one.triple for one in recalled], user.settings.traces)
    writer = await to_thread(user.writer_with, user.settings.words, before=pair.when)
    reasons = user.reasons_after(shown) and not writer.structured
    thought = (await user.sample_reasoning(pair, shown, seed=seed)).text if reasons else ""
    drafts = await writer.drafts(pair, shown, thought, seed=seed, n=samples)
    places = {draft.text: place for place, draft in reversed(list(enumerate(drafts))) if draft.text and not draft.defect}

    def rank() -> RankedTurn | None:
        import numpy as np

        reranker = Reranker(user.store)
        found = [
            candidate
            for candidate in reranker.candidates(sorted(places, key=lambda text: places[text]), pair, shown, quotes=True)
            if candidate.quoted is None or not usable_defect(candidate.text, pair, shown, writer.sides())
        ]
        if not found:
            return None
        texts = [candidate.text for candidate in found]
        quality = [likeness(text, pair.action, user.store.embedder) for text in texts]
        written = [places.get(text) if candidate.quoted is None else None for candidate, text in zip(found, texts, strict=True)]
        return RankedTurn(
            pair.conversation_id, features=reranker.features(found, pair, shown), quality=np.array(quality), written=written,
            tokens=[draft.usage.output_tokens for draft in drafts],
        )  # fmt: skip

    return await to_thread(rank)


def choose_rule(turns: Sequence[RankedTurn]) -> tuple[Reranking | None, dict[str, Any]]:
    """Return the cheapest rule whose gain is within a standard error of the largest and above its own; None for none."""
    gains = {option: _gain(turns, *option) for option in OPTIONS}
    errors = {option: gain.error for option, gain in gains.items() if gain is not None and gain.error is not None}
    values = {option: gain.value for option, gain in gains.items() if gain is not None and option in errors}
    best = max(values, key=lambda option: values[option], default=None)
    chosen = next(
        (o for o in values if best and values[o] > errors[o] and values[o] >= values[best] - errors[best]), None
    )  # fmt: skip
    rule = None if chosen is None else Reranking(samples=chosen[0], quotes=chosen[1], weights=_weights(turns, *chosen))
    tokens = fmean([fmean(turn.tokens) for turn in turns if turn.tokens] or [0.0])
    rows: list[dict[str, Any]] = [
        {
            "samples": samples, "quotes": quotes, "gain": optional_json(gain and gain.estimate()),
            "tokens_per_turn": round(tokens * samples, 1), "chosen": (samples, quotes) == chosen,
        }
        for (samples, quotes), gain in gains.items()
    ]  # fmt: skip
    return rule, {"rules": rows, "turns": len(turns), "single": round(fmean([turn.single for turn in turns] or [0.0]), 4)}


def _gain(turns: Sequence[RankedTurn], samples: int, quotes: bool) -> Inference | None:
    """Return by how much the quality of the chosen candidate is above that of one reply, by weights of other conversations."""
    ids = list(dict.fromkeys(turn.conversation for turn in turns))
    fold = {conversation: place % 2 for place, conversation in enumerate(ids)}
    halves = [[turn for turn in turns if fold[turn.conversation] != half] for half in (0, 1)]
    weights = [_fitted(half, samples, quotes) for half in halves]
    differences: list[float] = []
    for turn in turns:
        places = turn.of(samples, quotes)
        scores = turn.features[places] @ weights[fold[turn.conversation]]
        differences.append(float(turn.quality[places[int(scores.argmax())]]) - turn.single if places else 0.0)
    return ratio_inference(differences, [1.0] * len(turns), [turn.conversation for turn in turns])


def _fitted(turns: Sequence[RankedTurn], samples: int, quotes: bool) -> NDArray[np.float64]:
    """Return weights of features that predict which candidates of a turn are above its mean."""
    import numpy as np
    from sklearn.linear_model import Ridge

    prior = np.array([DEFAULT_RERANKING.weights.get(name, 0.0) for name in FEATURES])
    features, quality = [np.zeros((1, len(FEATURES)))], [np.zeros(1)]
    for turn in turns:
        if places := turn.of(samples, quotes):
            features.append(turn.features[places] - turn.features[places].mean(axis=0))
            quality.append(turn.quality[places] - turn.quality[places].mean())
    table = np.concatenate(features)
    fitted: Any = Ridge(alpha=_RIDGE, fit_intercept=False).fit(table, np.concatenate(quality) - table @ prior)
    return prior + np.asarray(fitted.coef_, dtype=np.float64)


def _weights(turns: Sequence[RankedTurn], samples: int, quotes: bool) -> dict[Any, float]:
    return {name: round(float(value), 4) for name, value in zip(FEATURES, _fitted(turns, samples, quotes), strict=True)}
