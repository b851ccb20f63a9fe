"""How well a trace lets the action be predicted: one protocol, and the scorers that need no judge.

The one design choice: a scorer answers with one number, higher is better, and says in `parts` what it is made of; where it can
tell that a trace is worse than none (`floor`), what falls below is rejected. The reconstruction model is the scorer's own, so
that traces made with one model can be scored, and used, by another.

    Gain        S2  how much more likely the action is with the trace than with words that say nothing, in nats per token;
                    by default without the words that the trace has from the action (G2: "novel gain")
    Choice      S4  how much better the action is told from other actions of the same person
    Prior       S5  the gain, less what the trace owes to having seen the action
    (Judged S1 and Ranked S3, which reconstruct in words, are in judging.py.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp, fsum, log
from typing import Protocol

from usertwin.memory.models.chat import Ledger
from usertwin.memory.models.scoring import Likelihood, Scorer
from usertwin.memory.text.transcript import ME, action_line, current_moment, filler, flat
from usertwin.memory.text.words import known_text, spans_of, stems
from usertwin.memory.triples import Candidate
from usertwin.personas import Pair, VerdictError

from .distractors import Distractors
from .propose import CONTEXT_TURNS, prompt_for

#: Of how many actions a forced choice is one.
CHOICES = 8
_PRIOR_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class ScoredTraces:
    """A trace's score, and what it is made of."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict[str, float])


class Fidelity(Protocol):
    """Scores the traces of a pair."""

    @property
    def name(self) -> str:
        """Which scorer, and by which models."""
        ...

    @property
    def floor(self) -> float | None:
        """Below this score a trace is worse than none; None if the scorer cannot tell."""
        ...

    @property
    def comparable(self) -> bool:
        """Whether scores of traces that were not scored together can be compared."""
        ...

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[ScoredTraces]:
        """The score of each trace, in order.

        Args:
            pair: what the traces were proposed for.
            traces: at least one.
            seed: for whatever is sampled.
            ledger: where to note what it cost.

        Raises:
            ModelError: a model does not answer, or a judge gives no verdict that can be read.
        """
        ...


def passed(candidates: Sequence[Candidate]) -> list[str]:
    """The traces that no guard rejected, each once, in order."""
    return list(dict.fromkeys(one.trace for one in candidates if one.rejected is None))


async def with_scores(
    candidates: Sequence[Candidate], scoring: Awaitable[Sequence[ScoredTraces]], floor: float | None
) -> list[Candidate]:
    """The candidates with their scores; without a verdict that can be read, all are rejected.

    Args:
        candidates: what was proposed, with the guard that rejects it.
        scoring: gives the scores of those that `passed`, in that order.
        floor: below it a trace is worse than none, and rejected as "misleads"; None if that cannot be told.
    """
    try:
        scores = await scoring
    except VerdictError:
        return [replace(one, rejected=one.rejected or "no_verdict") for one in candidates]
    known = dict(zip(passed(candidates), (one.value for one in scores), strict=True))
    found: list[Candidate] = []
    for one in candidates:
        score = known.get(one.trace) if one.rejected is None else None
        misleads = score is not None and floor is not None and score < floor
        found.append(Candidate(one.trace, score, "misleads" if misleads else one.rejected))
    return found


def reconstruct(pair: Pair, trace: str | None) -> str:
    """The text from which the action is to be predicted: context and, if given, the trace; never the action."""
    return current_moment(pair, CONTEXT_TURNS, thought=trace)


def gains(scorer: Scorer, pair: Pair, traces: Sequence[str]) -> list[dict[str, float]]:
    """What each trace gains on the action, in nats per token of the action: `gain` = `novel` + `copied`.

    It is compared with words that say nothing in its place, as many (`filler`): any words there change what is predicted, and
    that is told apart as `slot`, the gain of the filler over no words at all. `copied` is what is gained on words of the action
    whose stem the trace has and the context does not; `novel` on all others, the end of the turn among them. Above 0 a trace
    helps, below 0 it misleads.
    """
    action = action_line(pair.action)
    fillers = [filler(len(trace.split())) for trace in traces]
    thoughts: list[str | None] = list(dict.fromkeys([None, *fillers, *traces]))
    scored = scorer.score([(reconstruct(pair, thought), action) for thought in thoughts])
    known = dict(zip(thoughts, scored, strict=True))
    found: list[dict[str, float]] = []
    for trace, nothing in zip(traces, fillers, strict=True):
        told, base = known[trace], known[nothing]
        novel, copied = _parted(pair, action, trace, base, told)
        parts = {"gain": told.nats - base.nats, "novel": novel, "copied": copied, "slot": base.nats - known[None].nats}
        found.append({name: nats / told.tokens for name, nats in parts.items()})
    return found


def _parted(pair: Pair, action: str, trace: str, alone: Likelihood, told: Likelihood) -> tuple[float, float]:
    """The nats gained on the tokens of the action that belong to no word which only the trace has, and on those that do.

    Each is a sum of its own, since the rounding in a difference would make a trace that only copies mislead.
    """
    spans = spans_of(action, stems(trace) - stems(known_text(pair)))
    if not spans or not told.each:
        return told.nats - alone.nats, 0.0
    novel, copied, start = list[float](), list[float](), 0
    for one, other, end in zip(told.each, alone.each, told.ends, strict=True):
        (copied if any(start < stop and end > begin for begin, stop in spans) else novel).append(one - other)
        start = end
    return fsum(novel), fsum(copied)


class LikelihoodGain:
    """S2: how much more likely the action is with the trace than with words that say nothing, in nats per token of the action.

    Args:
        scorer: the reconstruction model.
        novel: whether words that the trace has from the action count for nothing (G2); else they count like the others.
    """

    floor = 0.0
    comparable = True

    def __init__(self, scorer: Scorer, *, novel: bool = True) -> None:
        self._scorer, self._part = scorer, "novel" if novel else "gain"
        self.name = f"{'novel gain' if novel else 'gain'} under {scorer.name}"

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[ScoredTraces]:
        """See `Fidelity.score`."""
        # On a thread of its own: scoring is computing, and must not hold up others that wait for a model.
        return [ScoredTraces(one[self._part], one) for one in await asyncio.to_thread(gains, self._scorer, pair, traces)]


class ForcedChoice:
    """S4: how much better the action is told from other actions of the same person with the trace, in nats.

    Compared with words that say nothing in its place. The choice is by how much more likely the moment makes an action than
    nothing does; `parts` say with which probability the real one is chosen (`chosen`), and with which after words that say
    nothing (`before`).

    Args:
        scorer: the reconstruction model.
        distractors: where the other actions come from.
        choices: how many actions there are to choose from.
    """

    floor = 0.0
    comparable = True

    def __init__(self, scorer: Scorer, distractors: Distractors, choices: int = CHOICES) -> None:
        self._scorer, self._distractors, self._choices = scorer, distractors, choices
        self.name = f"choice of {choices} under {scorer.name}"

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[ScoredTraces]:
        """See `Fidelity.score`; without any other action to choose from, every score is 0."""
        return await asyncio.to_thread(self._score, pair, traces)

    def _score(self, pair: Pair, traces: Sequence[str]) -> list[ScoredTraces]:
        others = self._distractors.of(pair, self._choices - 1)
        actions = [action_line(action) for action in (pair.action, *others)]
        usual = [found.nats for found in self._scorer.score([(f"{ME}:", action) for action in actions])]

        def chosen(trace: str) -> float:
            prompt = reconstruct(pair, trace)
            found = self._scorer.score([(prompt, action) for action in actions])
            likely = [one.nats - nats for one, nats in zip(found, usual, strict=True)]
            top = max(likely)
            return likely[0] - top - log(sum(exp(one - top) for one in likely))

        nothing = {text: chosen(text) for text in dict.fromkeys(filler(len(trace.split())) for trace in traces)}
        found: list[ScoredTraces] = []
        for trace in traces:
            told, before = chosen(trace), nothing[filler(len(trace.split()))]
            found.append(ScoredTraces(told - before, {"chosen": exp(told), "before": exp(before)}))
        return found


class PriorCorrectedGain:
    """S5: the gain, plus a weight times how probable the trace was before the action over how probable after, per token.

    A trace that quotes the action is likely once the action is known and unlikely before, so that leaks are penalised by the
    model itself. Weight 1 is the integrand of the evidence lower bound (BoLT, arXiv 2503.18866).

    Args:
        scorer: the reconstruction model.
        weight: how much the prior counts.
    """

    floor = None
    comparable = True

    def __init__(self, scorer: Scorer, weight: float = _PRIOR_WEIGHT) -> None:
        self._scorer, self._weight = scorer, weight
        self.name = f"gain with prior {weight:g} under {scorer.name}"

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[ScoredTraces]:
        """See `Fidelity.score`."""
        return await asyncio.to_thread(self._score, pair, traces)

    def _score(self, pair: Pair, traces: Sequence[str]) -> list[ScoredTraces]:
        after, before = (prompt_for("transcript", pair, "", how).removesuffix(" I") for how in ("backward", "forward"))
        lines = [f" {flat(trace)}\n" for trace in traces]
        posterior = self._scorer.score([(after, line) for line in lines])
        prior = self._scorer.score([(before, line) for line in lines])
        found: list[ScoredTraces] = []
        for one, p, q in zip(gains(self._scorer, pair, traces), prior, posterior, strict=True):
            honest = (p.nats - q.nats) / p.tokens
            found.append(ScoredTraces(one["gain"] + self._weight * honest, {**one, "prior": honest}))
        return found
