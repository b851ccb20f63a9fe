"""Likelihood fidelity: how much better a trace lets a model predict the action, and the protocol of every fidelity.

A fidelity returns one number for each trace, higher is better; `parts` holds its components. The reconstruction model belongs
to the fidelity, so traces that one model wrote can be scored by another.

recon/__init__.py lists all fidelities. Those that generate reconstructions are in judged_fidelity.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp, fsum, log
from typing import Protocol

from usertwin.memory.concurrency import to_thread
from usertwin.memory.models.chat import Ledger
from usertwin.memory.models.scoring import Likelihood, Scorer
from usertwin.memory.text.transcript import ME, action_completion, filler_text, format_action_prompt, single_line
from usertwin.memory.text.words import context_and_goal, spans_with_stems, stems
from usertwin.memory.triples import Candidate
from usertwin.personas import Pair, VerdictError

from .distractors import Distractors
from .propose import CONTEXT_TURNS, proposal_prompt

#: Number of actions in a forced choice, the real one among them.
CHOICES = 8
_PRIOR_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class FidelityScore:
    """The score of one trace, and the components it is made of; None for one that nothing was compared for."""

    value: float
    parts: Mapping[str, float | None] = field(default_factory=dict[str, float | None])


class Fidelity(Protocol):
    """Scores the traces of a pair."""

    @property
    def name(self) -> str:
        """The kind of fidelity and the models it uses."""
        ...

    @property
    def floor(self) -> float | None:
        """Score below which a trace is worse than no trace; None if the fidelity has no such score."""
        ...

    @property
    def comparable(self) -> bool:
        """Whether scores from different calls can be compared."""
        ...

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[FidelityScore]:
        """Return the score of each trace, in order.

        Args:
            pair: the pair that the traces were proposed for.
            traces: at least one trace.
            seed: seed of everything that is sampled.
            ledger: records the cost.

        Raises:
            ModelError: a model does not answer, or a judge returns no readable verdict.
        """
        ...


def passing_traces(candidates: Sequence[Candidate]) -> list[str]:
    """Return the traces that no guard rejected, without repeats, in order."""
    return list(dict.fromkeys(candidate.trace for candidate in candidates if candidate.rejected_by is None))


async def apply_scores(
    candidates: Sequence[Candidate], scoring: Awaitable[Sequence[FidelityScore]], floor: float | None
) -> list[Candidate]:
    """Return the candidates with their scores; all are rejected as "no_verdict" if the judge's verdict is unreadable.

    Args:
        candidates: the proposals, each with the guard that rejects it, if any.
        scoring: returns the scores of `passing_traces(candidates)`, in that order.
        floor: score below which a candidate is rejected as "misleads"; None for no such check.
    """
    try:
        scores = await scoring
    except VerdictError:
        return [replace(candidate, rejected_by=candidate.rejected_by or "no_verdict") for candidate in candidates]
    values = dict(zip(passing_traces(candidates), (score.value for score in scores), strict=True))
    scored: list[Candidate] = []
    for candidate in candidates:
        value = values.get(candidate.trace) if candidate.rejected_by is None else None
        misleads = value is not None and floor is not None and value < floor
        scored.append(Candidate(candidate.trace, value, "misleads" if misleads else candidate.rejected_by))
    return scored


def reconstruction_prompt(pair: Pair, trace: str | None) -> str:
    """Return the text from which the action is predicted: the context and, if given, the trace; never the action."""
    return format_action_prompt(pair, CONTEXT_TURNS, thought=trace)


def gains(scorer: Scorer, pair: Pair, traces: Sequence[str]) -> list[dict[str, float]]:
    """Return what each trace adds to the log-probability of the action, in nats per token of the action.

    The baseline in the trace's place is filler text of about the same length (a multiple of five words), since any words there
    change the prediction. The keys:

        gain           `guarded_gain` + `copied`; above 0 the trace helps, below 0 it misleads
        copied         the gain on words of the action whose stem is in the trace and not in the context
        guarded_gain   the gain on all other tokens, the end of the turn included
        slot           the gain of the filler over no words at all
    """
    action = action_completion(pair.action)
    fillers = [filler_text(len(trace.split())) for trace in traces]
    thoughts: list[str | None] = list(dict.fromkeys([None, *fillers, *traces]))
    prompts = [(reconstruction_prompt(pair, thought), action) for thought in thoughts]
    likelihoods = dict(zip(thoughts, scorer.score(prompts), strict=True))
    rows: list[dict[str, float]] = []
    for trace, baseline in zip(traces, fillers, strict=True):
        after, before = likelihoods[trace], likelihoods[baseline]
        guarded, copied = _split_gain(pair, action, trace, before, after)
        nats = {
            "gain": after.nats - before.nats,
            "guarded_gain": guarded,
            "copied": copied,
            "slot": before.nats - likelihoods[None].nats,
        }
        rows.append({name: value / after.tokens for name, value in nats.items()})
    return rows


def _split_gain(pair: Pair, action: str, trace: str, before: Likelihood, after: Likelihood) -> tuple[float, float]:
    """Return the nats gained on tokens outside copied words, and on tokens inside them.

    Two separate sums: the rounding error of a difference would make a trace that only copies seem to mislead.
    """
    copied_spans = spans_with_stems(action, stems(trace) - stems(context_and_goal(pair)))
    if not copied_spans or not after.token_nats:
        return after.nats - before.nats, 0.0
    guarded, copied, start = list[float](), list[float](), 0
    for nats_after, nats_before, end in zip(after.token_nats, before.token_nats, after.token_ends, strict=True):
        in_copied_word = any(start < span_end and end > span_start for span_start, span_end in copied_spans)
        (copied if in_copied_word else guarded).append(nats_after - nats_before)
        start = end
    return fsum(guarded), fsum(copied)


class LikelihoodGain:
    """The rise of the action's log-likelihood when the trace replaces filler text, in nats per token of the action.

    Args:
        scorer: the reconstruction model.
        guarded: leave out the gain on words that the trace copies from the action (the guarded gain).
    """

    floor = 0.0
    comparable = True

    def __init__(self, scorer: Scorer, *, guarded: bool = True) -> None:
        self._scorer, self._part = scorer, "guarded_gain" if guarded else "gain"
        self.name = f"{'guarded gain' if guarded else 'gain'} under {scorer.name}"

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[FidelityScore]:
        """See `Fidelity.score`."""
        # In a thread: scoring is computation, and must not block coroutines that wait for a model.
        parts = await to_thread(gains, self._scorer, pair, traces)
        return [FidelityScore(trace_parts[self._part], trace_parts) for trace_parts in parts]


class ForcedChoice:
    """The rise of the log-probability of choosing the real action among the person's actions, in nats.

    The baseline is filler text in the trace's place. Each action is scored by the log-ratio of its likelihood with and
    without the prompt. `parts` holds the probability of the real action after the trace (`chosen`) and after the filler
    (`before`).

    Args:
        scorer: the reconstruction model.
        distractors: source of the other actions.
        choices: number of actions, the real one among them.
    """

    floor = 0.0
    comparable = True

    def __init__(self, scorer: Scorer, distractors: Distractors, choices: int = CHOICES) -> None:
        self._scorer, self._distractors, self._choices = scorer, distractors, choices
        self.name = f"choice of {choices} under {scorer.name}"

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[FidelityScore]:
        """See `Fidelity.score`; every score is 0 where there is no other action to choose from."""
        return await to_thread(self._score, pair, traces)

    def _score(self, pair: Pair, traces: Sequence[str]) -> list[FidelityScore]:
        others = self._distractors.nearest(pair, self._choices - 1)
        actions = [action_completion(action) for action in (pair.action, *others)]
        unconditional = [likelihood.nats for likelihood in self._scorer.score([(f"{ME}:", action) for action in actions])]

        def log_probability(trace: str) -> float:
            prompt = reconstruction_prompt(pair, trace)
            likelihoods = self._scorer.score([(prompt, action) for action in actions])
            logits = [likelihood.nats - nats for likelihood, nats in zip(likelihoods, unconditional, strict=True)]
            top = max(logits)
            return logits[0] - top - log(sum(exp(logit - top) for logit in logits))

        fillers = [filler_text(len(trace.split())) for trace in traces]
        baselines = {text: log_probability(text) for text in dict.fromkeys(fillers)}
        scores: list[FidelityScore] = []
        for trace, text in zip(traces, fillers, strict=True):
            after, before = log_probability(trace), baselines[text]
            scores.append(FidelityScore(after - before, {"chosen": exp(after), "before": exp(before)}))
        return scores


class PriorCorrectedGain:
    """The gain, plus a weight times the log-ratio of the trace's probability before and after the action, per token.

    A trace that quotes the action is likely once the action is known and unlikely before, so the model itself penalises leaks.
    With weight 1 this is the integrand of the evidence lower bound (BoLT, arXiv 2503.18866).

    Args:
        scorer: the reconstruction model.
        weight: weight of the prior term.
    """

    floor = None
    comparable = True

    def __init__(self, scorer: Scorer, weight: float = _PRIOR_WEIGHT) -> None:
        self._scorer, self._weight = scorer, weight
        self.name = f"gain with prior {weight:g} under {scorer.name}"

    async def score(
        self, pair: Pair, traces: Sequence[str], *, seed: int = 0, ledger: Ledger | None = None
    ) -> list[FidelityScore]:
        """See `Fidelity.score`."""
        return await to_thread(self._score, pair, traces)

    def _score(self, pair: Pair, traces: Sequence[str]) -> list[FidelityScore]:
        after, before = (proposal_prompt("transcript", pair, "", mode).removesuffix(" I") for mode in ("backward", "forward"))
        lines = [f" {single_line(trace)}\n" for trace in traces]
        posteriors = self._scorer.score([(after, line) for line in lines])
        priors = self._scorer.score([(before, line) for line in lines])
        scores: list[FidelityScore] = []
        for parts, prior, posterior in zip(gains(self._scorer, pair, traces), priors, posteriors, strict=True):
            log_ratio = (prior.nats - posterior.nats) / prior.tokens
            scores.append(FidelityScore(parts["gain"] + self._weight * log_ratio, {**parts, "prior": log_ratio}))
        return scores
