"""Recon (arXiv 2605.26969): a trace is good if context and trace, without the action, predict the action.

The steps in order: propose (propose.py), guard (guards.py), score (fidelity.py, judged_fidelity.py), select. `Synthesizer` runs
all four. The selection methods share the same guarded candidates, so that they differ in the choice alone:

    recon      the best-scored candidate
    random     any candidate
    longest    the longest candidate
    quality    the candidate that a judge of the traces themselves ranks first
    backward   the first candidate (Backward Synthesis)
    none       no trace at all

Every stored trace has passed the guards, whatever the method. Only "recon", and proposals by search, also reject a trace that
predicts the action worse than filler text.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from usertwin.memory.concurrency import to_thread
from usertwin.memory.models.chat import ChatModel, Ledger
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.models.scoring import Scorer
from usertwin.memory.triples import Candidate, Provenance, Triple
from usertwin.personas import Pair, UsageError

from .distractors import Distractors
from .fidelity import CHOICES, Fidelity, apply_scores, gains, passing_traces
from .guards import MIN_KEPT_SHARE, kept_share, rejection_reason, reveals_action
from .judged_fidelity import MAX_ATTEMPTS, judge_quality
from .local_search import search
from .propose import CONTEXT_TURNS, CUT_OFF, MALFORMED, PROPOSAL_MODES, ProposalMode, proposal_template, propose, sees_action

Method = Literal["recon", "random", "longest", "quality", "backward", "none"]
METHODS: tuple[Method, ...] = get_args(Method)

#: Traces per pair that must pass the guards; 4 as in the paper.
DEFAULT_CANDIDATES = 4
#: Number of rounds of proposals; a later round replaces what the guards rejected.
MAX_ROUNDS = 3
#: Number of completions that a search on one trace may take, its drafts included.
DEFAULT_MAX_CALLS = 12
_ROUND_SEED = 7919


def is_scored(method: Method, proposal_mode: ProposalMode) -> bool:
    """Return whether proposals get a fidelity score: for the selection, or because a search maximises it."""
    return method == "recon" or (method != "none" and proposal_mode == "search")


def check_counts(candidates: int, max_calls: int) -> None:
    """Raise UsageError if there are too few candidates, or too few calls for a search."""
    if candidates < 1 or max_calls < 2:
        raise UsageError(f"{candidates} candidates and {max_calls} calls: at least 1 candidate and 2 calls are needed")


def select(candidates: Sequence[Candidate], method: Method = "recon", *, seed: object = 0) -> Candidate | None:
    """Return the first candidate of `rank_candidates`, or None if the guards reject all."""
    return next(iter(rank_candidates(candidates, method, seed=seed)), None)


def rank_candidates(candidates: Sequence[Candidate], method: Method, *, seed: object = 0) -> list[Candidate]:
    """Return the candidates that no guard rejects, best first; ties keep the order of proposal.

    Args:
        candidates: the proposals; `score` holds the fidelity for "recon", and the judge's score for "quality".
        method: the selection method.
        seed: seed of "random".
    """
    passing = [candidate for candidate in candidates if candidate.rejected_by is None]
    if method == "random":
        random.Random(f"{seed}").shuffle(passing)
    elif method == "longest":
        passing.sort(key=lambda candidate: -len(candidate.trace.split()))
    elif method in {"recon", "quality"}:
        passing.sort(key=lambda candidate: float("inf") if candidate.score is None else -candidate.score)
    return [] if method == "none" else passing


@dataclass(kw_only=True, frozen=True, slots=True)
class Synthesizer:
    """Makes triples of pairs: propose, guard, score, select.

    Attributes:
        method: the selection method; see the top of this file.
        model: the proposer; needed unless the method is "none".
        fidelity: scores the traces; needed for "recon", and for proposals by "search".
        scorer: likelihoods for the guard on shared words and for the audit of the selected trace; None skips both.
        embedder: similarities for the guard against paraphrases; None skips it.
        distractors: the person's other actions, for the audit.
        judge: ranks the traces for "quality".
        proposal_mode: how traces are proposed; see propose.py.
        candidates: traces per pair that must pass the guards; "backward" needs one, and "search" ignores this.
        max_calls: number of completions that "search" may use for one pair.
    """

    method: Method = "recon"
    model: ChatModel | None = None
    fidelity: Fidelity | None = None
    scorer: Scorer | None = None
    embedder: Embedder | None = None
    distractors: Distractors | None = None
    judge: ChatModel | None = None
    proposal_mode: ProposalMode = "backward"
    candidates: int = DEFAULT_CANDIDATES
    max_calls: int = DEFAULT_MAX_CALLS

    def check(self) -> None:
        """Raise UsageError if something that the method needs is missing, or a number is out of range."""
        if self.method not in METHODS:
            raise UsageError(f'the method is "{self.method}"; it must be one of {", ".join(METHODS)}')
        if self.proposal_mode not in PROPOSAL_MODES:
            raise UsageError(f'the proposal mode is "{self.proposal_mode}"; it must be one of {", ".join(PROPOSAL_MODES)}')
        check_counts(self.candidates, self.max_calls)
        if self.method == "none":
            return
        scored = is_scored(self.method, self.proposal_mode)
        if self.model is None or (scored and self.fidelity is None) or (self.method == "quality" and self.judge is None):
            needs = "a model" + " and a fidelity" * scored + " and a judge" * (self.method == "quality")
            raise UsageError(f'the method "{self.method}" needs {needs}')
        if self.proposal_mode == "search" and self.fidelity is not None and not self.fidelity.comparable:
            raise UsageError(f"a search compares scores of different steps, and scores {self.fidelity.name} are not comparable")
        judged = self.method == "quality" or (
            self.method == "recon" and self.fidelity is not None and not self.fidelity.comparable
        )
        proposals = self.max_calls if self.proposal_mode == "search" else self.candidates
        if judged and proposals > MAX_ATTEMPTS:
            raise UsageError(f"{proposals} proposals in one verdict of a judge: at most {MAX_ATTEMPTS} are possible")

    async def synthesize(self, pair: Pair, name: str, *, seed: int = 0) -> Triple:
        """Make a triple of a pair.

        Args:
            pair: the context and action.
            name: the person's name in the prompts.
            seed: seed of the sampler.

        Returns:
            The triple. It has no trace if every proposal was rejected; the provenance then counts the rejections.

        Raises:
            UsageError: see `check`.
            ModelError: a model does not answer.
        """
        self.check()
        if self.method == "none" or self.model is None:
            return Triple(pair)
        ledger = Ledger()
        candidates = await self._propose(self.model, pair, name, seed, ledger)
        candidates = await self._score(candidates, pair, seed, ledger)
        return await to_thread(self._select, self.model, pair, candidates, seed, ledger)

    def guard_reason(self, trace: str, pair: Pair, proposal_mode: ProposalMode | None = None) -> str | None:
        """Return the name of the guard that rejects a trace before it is scored, or None.

        `proposal_mode` is the mode in which the trace was proposed; None for the synthesizer's own.
        """
        if trace in {MALFORMED, CUT_OFF}:
            return "malformed" if trace == MALFORMED else "cut_off"
        examples = "" if self.model is None else proposal_template(self.model, self.proposal_mode).text
        saw_action = sees_action(proposal_mode or self.proposal_mode)
        return rejection_reason(trace, pair, examples, self.embedder, saw_action=saw_action)

    async def _propose(self, model: ChatModel, pair: Pair, name: str, seed: int, ledger: Ledger) -> list[Candidate]:
        """Return guarded proposals; up to `MAX_ROUNDS` rounds replace those that the guards reject."""
        if self.proposal_mode == "search" and self.fidelity is not None:
            return await search(
                model, self.fidelity, pair, name, guard=lambda trace: self.guard_reason(trace, pair),
                max_calls=self.max_calls, seed=seed, ledger=ledger,
            )  # fmt: skip
        target = 1 if self.method == "backward" else self.candidates
        candidates: list[Candidate] = []
        for round_ in range(MAX_ROUNDS):
            missing = target - sum(candidate.rejected_by is None for candidate in candidates)
            if not missing:
                break
            traces = await propose(
                model, pair, name, proposal_mode=self.proposal_mode, n=missing, seed=seed + _ROUND_SEED * round_, ledger=ledger
            )
            candidates += [Candidate(trace, None, await to_thread(self.guard_reason, trace, pair)) for trace in traces]
        return candidates

    async def _score(self, candidates: list[Candidate], pair: Pair, seed: int, ledger: Ledger) -> list[Candidate]:
        """Return the candidates with the score that the method selects by; see `apply_scores`."""
        traces = passing_traces(candidates)
        if not traces:
            return candidates
        if self.method == "quality" and self.judge is not None:
            return await apply_scores(candidates, judge_quality(self.judge, pair, traces, seed=seed, ledger=ledger), None)
        if self.method == "recon" and self.proposal_mode != "search" and self.fidelity is not None:
            scoring = self.fidelity.score(pair, traces, seed=seed, ledger=ledger)
            return await apply_scores(candidates, scoring, self.fidelity.floor)
        return candidates

    def _select(self, model: ChatModel, pair: Pair, candidates: list[Candidate], seed: int, ledger: Ledger) -> Triple:
        """Return the triple of the best candidate that passes the guard on shared words; better ones are marked as rejected."""
        selected, measured = None, dict[str, float]()
        for candidate in rank_candidates(candidates, self.method, seed=f"{seed}/{pair.conversation_id}/{pair.position}"):
            measured = self._measure(pair, candidate.trace)
            if measured.get("kept", 1.0) >= MIN_KEPT_SHARE:
                selected = candidate
                break
            candidates = [replace(other, rejected_by="leans_on_words") if other is candidate else other for other in candidates]
        fidelity = self.fidelity if self.method == "recon" else None
        provenance = Provenance(
            method=self.method,
            proposer=model.name,
            scorer=None if fidelity is None else fidelity.name,
            prompt_version=proposal_template(model, self.proposal_mode).version,
            seed=seed,
            candidates=len(candidates),
            rejected=Counter(candidate.rejected_by for candidate in candidates if candidate.rejected_by is not None),
            proposal_mode=self.proposal_mode,
            proposals=tuple(candidates),
            measured=measured if selected is not None else {},
            cost=ledger.to_json(),
        )
        if selected is None:
            return Triple(pair, provenance=provenance)
        return Triple(pair, selected.trace, selected.score if fidelity is not None else None, provenance)

    def _measure(self, pair: Pair, trace: str) -> dict[str, float]:
        """Return the gains of a trace, the share kept without shared words, and the audit; see `Provenance.measured`."""
        if self.scorer is None:
            return {}
        [parts] = gains(self.scorer, pair, [trace])
        others = self.distractors.nearest(pair, CHOICES - 1) if self.distractors is not None else []
        measured = {name: parts[name] for name in ("gain", "guarded_gain")}
        if sees_action(self.proposal_mode):  # other traces name words of the action without having read them
            measured["kept"] = kept_share(self.scorer, pair, trace, CONTEXT_TURNS)
        return measured | {"reveals_action": float(reveals_action(self.scorer, pair, trace, others))}


def traces_to_compare(triple: Triple) -> list[Candidate]:
    """Return the proposals that comparisons of selection methods choose from: all that pass the guards on leaks and form.

    `misleads` and `no_verdict` do not count, so that every method shows a trace for the same pairs, whatever the scores. The
    guard on shared words did not test proposals ranked below the selected one.
    """
    proposals = () if triple.provenance is None else triple.provenance.proposals
    passing = (candidate for candidate in proposals if candidate.rejected_by in {None, "misleads", "no_verdict"})
    return [replace(candidate, rejected_by=None) for candidate in passing]


def backward_trace(triple: Triple) -> str | None:
    """Return the trace that Backward Synthesis would have selected: the first proposal to compare; None if there is none."""
    return next((candidate.trace for candidate in traces_to_compare(triple)), None)
