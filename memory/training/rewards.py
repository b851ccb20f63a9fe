"""What a trace is rewarded for in training: fidelity, and the terms that keep it from being had by cheating.

The one design choice: every term lies between 0 and 1 and is 0 for a trace that a guard rejects, so that nothing that leaks is
ever worth more than something that does not, whatever the weights are.

    fidelity   how well the trace lets the action be reconstructed: its rank among the traces of the pair, or its gain, clipped
    leak       1 if the trace has none of the action's new words and not all its meaning, 0 where the guard would reject it
    length     1 for a trace of a usual length, less for very short and for long ones
    format     1 if it came to its end by itself

Sources: the form of the sum is that of Turing-RL (arXiv 2606.19336) and NOVER (arXiv 2505.16022), the clipped gain RLPR's
(arXiv 2506.18254), all three with other scores; the log-probability is what arXiv 2602.03979 finds to work everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Literal, get_args

from usertwin.memory.recon.fidelity import Fidelity
from usertwin.memory.recon.guards import LONGEST_TRACE, MOST_NEW_WORDS, SAME_MEANING, cosine_to_action
from usertwin.memory.text.words import new_stems, stems, word_tokens
from usertwin.personas import Pair, UsageError, VerdictError

if TYPE_CHECKING:
    from usertwin.memory.models.embedding import Embedder

Shape = Literal["clipped", "rank"]
SHAPES: tuple[Shape, ...] = get_args(Shape)

#: A gain of so many nats a token is as good as any greater one; what misleads as much is as bad as can be.
CLIP = 0.5
#: So near to what the action means (cosine), and a trace is worth less. What the base proposes has 0.17 on average, and what of
#: it is rejected for a leak 0.41. Nearness foretells a gain better than anything else that was tried (correlation within a pair
#: 0.34), so a term that counted it from 0.2 on, as much as the gain, chose traces farther off than the base's own (0.13).
TOLERATED_MEANING = 0.5
#: Words of a trace below which, and above which, it is worth less.
USUAL = (5, 60)


@dataclass(frozen=True, slots=True)
class RewardWeights:
    """How much each term counts.

    Attributes:
        fidelity: see the top of this file, as are the others.
        leak: likewise.
        length: likewise.
        format: likewise.
        shape: "clipped": the score itself, clipped at `CLIP` to both sides; trl then standardises within the group. "rank": its
            place within the group, which needs no scale and is all that a judge's scores allow.
    """

    fidelity: float = 1.0
    leak: float = 0.2
    length: float = 0.1
    format: float = 0.1
    shape: Shape = "clipped"

    def check(self) -> None:
        """UsageError if a weight is negative, nothing counts, or there is no such shape."""
        if not all(0 <= weight < inf for weight in (self.fidelity, self.leak, self.length, self.format)) or not self.fidelity:
            raise UsageError("the weights of a reward are numbers that are not negative, and that of fidelity is not 0")
        if self.shape not in SHAPES:
            raise UsageError(f'"{self.shape}" is no shape of a reward; there are {", ".join(SHAPES)}')


def parse_weights(told: str, shape: Shape = "clipped") -> RewardWeights:
    """Weights as they are written on the command line, "fidelity/leak/length/format". UsageError if they are none."""
    try:
        fidelity, leak, length, form = (float(part) for part in told.split("/"))
    except ValueError:
        raise UsageError(
            f'"{told}" are no weights of a reward; write those of fidelity, leak, length and format, such as 1/0.2/0.1/0.1'
        ) from None
    weights = RewardWeights(fidelity, leak, length, form, shape)
    weights.check()
    return weights


@dataclass(frozen=True, slots=True)
class Reward:
    """What a trace is worth.

    Attributes:
        fidelity: the four terms, each from 0 to 1.
        leak: likewise.
        length: likewise.
        format: likewise.
        score: what the scorer said; None for a trace that was not scored.
        rejected: the guard that rejects the trace, or None.
        nearness: from 0 to 1, how near it comes to what the action means, 1 from `TOLERATED_MEANING` on. No term: it is what
            the parts of a soup lean toward, or away from (see soup.py).
    """

    fidelity: float = 0.0
    leak: float = 0.0
    length: float = 0.0
    format: float = 0.0
    score: float | None = None
    rejected: str | None = None
    nearness: float = 0.0

    def total(self, weights: RewardWeights) -> float:
        """The weighted sum; 0 for a trace that is rejected."""
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
) -> list[Reward]:
    """The reward of each trace of a pair, in order.

    Args:
        pair: what the traces were proposed for.
        traces: the group.
        finished: for each, whether it came to its end by itself.
        fidelity: scores those that pass the guards; where a judge gives no verdict that can be read, all are worth the same.
        guard: the name of the guard that rejects a trace, or None.
        embedder: tells how near a trace comes to what the action means; if None, only words count as a leak, and none is near.
        shape: of the fidelity; "rank" in any case for scores that cannot be compared.
        seed: for whatever is sampled.
    """
    rejected = [guard(trace, pair) for trace in traces]
    passed = list(dict.fromkeys(trace for trace, why in zip(traces, rejected, strict=True) if why is None))
    try:
        scores = (
            {t: s.value for t, s in zip(passed, await fidelity.score(pair, passed, seed=seed), strict=True)} if passed else {}
        )
    except VerdictError:
        scores = dict.fromkeys(passed, 0.0)
    kept = [scores[trace] for trace, why in zip(traces, rejected, strict=True) if why is None]
    ranked = shape == "rank" or not fidelity.comparable
    found: list[Reward] = []
    for trace, why, ended in zip(traces, rejected, finished, strict=True):
        if why is not None:
            found.append(Reward(rejected=why))
            continue
        score = scores[trace]
        worth = _rank(score, kept) if ranked else (max(-CLIP, min(CLIP, score)) / CLIP + 1) / 2
        near = 0.0 if embedder is None else max(0.0, cosine_to_action(trace, pair, embedder)[0])
        nearness = min(1.0, near / TOLERATED_MEANING)
        found.append(Reward(worth, _clean(trace, pair, near), _length(trace), float(ended), score, nearness=nearness))
    return found


def _rank(score: float, group: Sequence[float]) -> float:
    """The place of a score among those of its group, from 1 for the best to nearly 0; equal ones share theirs."""
    below, same = sum(other < score for other in group), sum(other == score for other in group)
    return (below + (same + 1) / 2) / len(group)


def _clean(trace: str, pair: Pair, near: float) -> float:
    """1 without any of the action's new words and up to what is tolerated of its meaning, falling to 0 where the guard rejects.

    Unlike the guard it does not ask whether a turn before came as near: what is worth less is not yet rejected.
    """
    fresh = new_stems(pair)
    share = len(fresh & stems(trace)) / len(fresh) if fresh else 0.0
    return min(_falling(share, 0.0, MOST_NEW_WORDS), _falling(near, TOLERATED_MEANING, SAME_MEANING))


def _falling(value: float, start: float, end: float) -> float:
    """1 up to the start, 0 from the end on."""
    return 1 - max(0.0, min(1.0, (value - start) / (end - start)))


def _length(trace: str) -> float:
    """1 within the usual length, rising to it from nothing and falling from it to the longest that is allowed."""
    words, (least, most) = len(word_tokens(trace)), USUAL
    return min(1.0, words / least, max(0.0, (LONGEST_TRACE - words) / (LONGEST_TRACE - most)))
