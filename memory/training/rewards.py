"""Training rewards of a trace: its fidelity, and terms that penalise leaks and degenerate traces.

Design: every term lies in [0, 1] and is 0 for a trace that a guard rejects. So no weights make a leaking trace worth more than
an accepted one.

    fidelity   the rank of the trace among those of its pair, or its clipped gain
    leak       1 without new words or meaning of the action, falling to 0 where the guard rejects; 1 for a forward trace
    length     1 for usual lengths, less for very short and for long traces
    format     1 if the trace ended by itself

Sources: the weighted sum is that of Turing-RL (arXiv 2606.19336) and NOVER (arXiv 2505.16022), the clipped gain is RLPR's
(arXiv 2506.18254); arXiv 2602.03979 finds that log-probabilities work everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from usertwin.memory.concurrency import to_thread
from usertwin.memory.models.chat import Ledger
from usertwin.memory.models.scoring import Scorer
from usertwin.memory.recon.fidelity import Fidelity, FidelityScore
from usertwin.memory.recon.guards import MAX_NEW_WORD_SHARE, MAX_TRACE_WORDS, PARAPHRASE_COSINE, cosine_to_action
from usertwin.memory.recon.propose import CONTEXT_TURNS
from usertwin.memory.text.transcript import action_completion, filler_text, format_action_prompt, format_example, join_blocks
from usertwin.memory.text.words import new_stems, stems, word_tokens
from usertwin.personas import Pair, UsageError, VerdictError
from usertwin.personas.reading import STRICT

if TYPE_CHECKING:
    from usertwin.memory.models.embedding import Embedder

Shape = Literal["clipped", "rank"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
#: Pairs after which training gives up on a judge without a single readable verdict.
_UNREAD = 4

#: Gains are clipped to plus and minus this many nats per token.
CLIP = 0.5
#: Cosine to the action above which the leak term starts to fall. Base proposals average 0.17, rejected ones 0.41. A start at
#: 0.2 preferred traces farther from the action than the base's own (0.13), since gain correlates with closeness (0.34).
TOLERATED_COSINE = 0.5
#: Words of a trace below and above which the length term falls.
USUAL_WORDS = (5, 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardWeights:
    """Weights of the reward terms, and the shape of the fidelity term.

    Attributes:
        fidelity: weight; the module docstring describes the terms.
        leak: weight.
        length: weight.
        format: weight.
        shape: "clipped" is the score, clipped at `CLIP`; trl standardises it within the group. "rank" is the rank within the
            group, which needs no scale and is all that a judge's scores allow.
    """

    fidelity: float = 1.0
    leak: float = 0.2
    length: float = 0.1
    format: float = 0.1
    shape: Shape = "clipped"

    def check(self) -> None:
        """Raise UsageError if a weight is negative or not finite, fidelity has none, or the shape is unknown."""
        if not all(0 <= weight < inf for weight in (self.fidelity, self.leak, self.length, self.format)) or not self.fidelity:
            raise UsageError("--weights: every weight must be a number, not negative, and the weight of fidelity must not be 0")
        if self.shape not in SHAPES:
            raise UsageError(f'--shape: "{self.shape}" is unknown; choose from {", ".join(SHAPES)}')


def parse_weights(text: str, shape: Shape = "clipped") -> RewardWeights:
    """Parse "fidelity/leak/length/format". UsageError if it is malformed."""
    parts = text.split("/")
    if len(parts) != 4:
        raise UsageError(f'--weights: "{text}" has {len(parts)} values; 4 are needed (fidelity/leak/length/format)')
    try:
        fidelity, leak, length, format_ = map(float, parts)
    except ValueError:
        raise UsageError(f'--weights: "{text}" is not made of numbers; write for example 1/0.2/0.1/0.1') from None
    weights = RewardWeights(fidelity=fidelity, leak=leak, length=length, format=format_, shape=shape)
    weights.check()
    return weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """The reward terms of a trace.

    Attributes:
        fidelity: term in [0, 1].
        leak: term in [0, 1].
        length: term in [0, 1].
        format: term in [0, 1].
        score: the raw fidelity score; None if the trace was not scored.
        rejected: name of the guard that rejects the trace; "no_verdict" if the judge's verdict is unreadable; None otherwise.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    fidelity: float = 0.0
    leak: float = 0.0
    length: float = 0.0
    format: float = 0.0
    score: float | None = None
    rejected: str | None = None

    def total(self, weights: RewardWeights) -> float:
        """Return the weighted sum of the terms; 0 for a rejected trace."""
        return (
            weights.fidelity * self.fidelity
            + weights.leak * self.leak
            + weights.length * self.length
            + weights.format * self.format
        )


async def compute_rewards(
    pair: Pair,
    traces: Sequence[str],
    finished: Sequence[bool],
    *,
    fidelity: Fidelity,
    guard: Callable[[str, Pair], str | None],
    embedder: Embedder | None = None,
    shape: Shape = "clipped",
    seed: int = 0,
    saw_action: bool = True,
) -> list[Reward]:
    """Return the reward of each trace of a pair, in order.

    Without a readable verdict of the judge every reward is 0, so that the pair teaches nothing; see `Lessons`.

    Args:
        pair: the pair that the traces were proposed for.
        traces: the group.
        finished: for each trace, whether it ended by itself.
        fidelity: scores accepted traces.
        guard: returns the name of the guard that rejects a trace, or None.
        embedder: measures how close a trace is to the action's meaning; None counts only words as leaks.
        shape: shape of the fidelity term; scores that cannot be compared across pairs are always ranked.
        seed: seed of sampled judgements.
        saw_action: whether the action was in the prompt of the traces; without it they leak nothing, and the leak term is 1.
    """
    reasons = await to_thread(lambda: [guard(trace, pair) for trace in traces])
    accepted = list(dict.fromkeys(trace for trace, reason in zip(traces, reasons, strict=True) if reason is None))
    try:
        scored = await fidelity.score(pair, accepted, seed=seed) if accepted else []
        scores = {trace: score.value for trace, score in zip(accepted, scored, strict=True)}
    except VerdictError:
        return [Reward(rejected=reason or "no_verdict") for reason in reasons]
    group = [scores[trace] for trace, reason in zip(traces, reasons, strict=True) if reason is None]
    leaks = dict.fromkeys(accepted, 1.0)
    if saw_action:
        leaks = await to_thread(lambda: {trace: _leak_term(trace, pair, embedder) for trace in accepted})
    ranked = shape == "rank" or not fidelity.comparable
    rewards: list[Reward] = []
    for trace, reason, ended in zip(traces, reasons, finished, strict=True):
        if reason is not None:
            rewards.append(Reward(rejected=reason))
            continue
        score = scores[trace]
        term = _rank(score, group) if ranked else (max(-CLIP, min(CLIP, score)) / CLIP + 1) / 2
        rewards.append(
            Reward(
                fidelity=term,
                leak=leaks[trace],
                length=_length_term(trace),
                format=float(ended),
                score=score,
            )
        )
    return rewards


@dataclass(slots=True, kw_only=True)
class Lessons:
    """Counts of training pairs by what their rewards teach.

    Attributes:
        pairs: all pairs.
        no_verdict: pairs without a readable verdict of the judge; they teach nothing.
        equal: other pairs whose traces have equal fidelity, all rejected ones included.
    """

    pairs: int = 0
    no_verdict: int = 0
    equal: int = 0

    def count(self, rewards: Sequence[Reward]) -> None:
        """Add the rewards of a pair. VerdictError if there are several pairs and none has a readable verdict."""
        self.pairs += 1
        if any(reward.rejected == "no_verdict" for reward in rewards):
            self.no_verdict += 1
        elif len({reward.fidelity for reward in rewards}) < 2:
            self.equal += 1
        if self.pairs >= _UNREAD and self.no_verdict == self.pairs:
            raise VerdictError(
                f"the judge returned no readable verdict for any of {self.pairs} pairs; name one that follows instructions "
                "(--judge) and another folder"
            )

    def check(self) -> None:
        """Raise UsageError if there are pairs, and none has traces of different fidelity."""
        if self.pairs and self.no_verdict + self.equal == self.pairs:
            raise UsageError(
                f"nothing was learned: {self}; choose another --fidelity, --judge or --base, or a larger --group-size"
            )

    def __str__(self) -> str:
        equal = f"{self.equal} had traces of equal fidelity"
        return f"of {self.pairs} pairs, {equal} and {self.no_verdict} no readable verdict of a judge"


def has_equal_fidelity(traces: Sequence[str], rewards: Sequence[Reward]) -> bool:
    """Return whether a pair has at least two different accepted traces, all of equal fidelity."""
    accepted = [(trace, reward.fidelity) for trace, reward in zip(traces, rewards, strict=True) if reward.rejected is None]
    return len({trace for trace, _ in accepted}) > 1 and len({term for _, term in accepted}) == 1


def _rank(score: float, group: Sequence[float]) -> float:
    """Return the rank of a score in its group, from 1 for the best to 1/n for the worst; equal scores share a rank."""
    below, same = sum(other < score for other in group), sum(other == score for other in group)
    return (below + (same + 1) / 2) / len(group)


def _leak_term(trace: str, pair: Pair, embedder: Embedder | None) -> float:
    """Return 1 without any of the action's new words and up to `TOLERATED_COSINE`, falling to 0 where the guard rejects.

    Unlike the guard it ignores whether an earlier turn came as close: a lower reward is not yet a rejection.
    """
    fresh = new_stems(pair)
    share = len(fresh & stems(trace)) / len(fresh) if fresh else 0.0
    cosine = 0.0 if embedder is None else cosine_to_action(trace, pair, embedder)[0]
    return min(_falling(share, 0.0, MAX_NEW_WORD_SHARE), _falling(cosine, TOLERATED_COSINE, PARAPHRASE_COSINE))


def _falling(value: float, start: float, end: float) -> float:
    """Return 1 up to `start`, 0 from `end` on, linear between."""
    return 1 - max(0.0, min(1.0, (value - start) / (end - start)))


def _length_term(trace: str) -> float:
    """Return 1 within the usual length, rising to it from 0 words and falling from it to the longest accepted trace."""
    words, (low, high) = len(word_tokens(trace)), USUAL_WORDS
    return min(1.0, words / low, max(0.0, (MAX_TRACE_WORDS - words) / (MAX_TRACE_WORDS - high)))


class DownstreamReward:
    """A fidelity for E2E training: how much a trace helps to predict another turn of the person, in nats per token.

    As at inference, the pair with its trace is the example before the other turn. The baseline is the same example with filler
    text in the trace's place, as in `LikelihoodGain`. It is the fidelity term only: guards, length and form count as in GRPO.

    Args:
        scorer: the acting model.
        related: for each pair, another pair of the same person; without one every score is 0.
    """

    floor = 0.0
    comparable = True

    def __init__(self, scorer: Scorer, related: Mapping[Pair, Pair]) -> None:
        self._scorer, self._related = scorer, related
        self.name = f"downstream gain under {scorer.name}"

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[FidelityScore]:
        """See `Fidelity.score`."""
        return await to_thread(self._score, pair, traces)

    def _score(self, pair: Pair, traces: Sequence[str]) -> list[FidelityScore]:
        other = self._related.get(pair)
        if other is None:
            return [FidelityScore(0.0) for _ in traces]
        present, action = format_action_prompt(other, CONTEXT_TURNS), action_completion(other.action)
        fillers = [filler_text(len(trace.split())) for trace in traces]
        thoughts = list(dict.fromkeys([*fillers, *traces]))
        examples = [format_example(pair, CONTEXT_TURNS, thought=thought) for thought in thoughts]
        scored = self._scorer.score([(join_blocks([example, present]), action) for example in examples])
        likelihoods = dict(zip(thoughts, scored, strict=True))
        return [
            FidelityScore((likelihoods[trace].nats - likelihoods[filler].nats) / likelihoods[trace].tokens)
            for trace, filler in zip(traces, fillers, strict=True)
        ]
