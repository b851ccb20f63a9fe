"""Recon (arXiv 2605.26969): a trace is good if, with it and without the action, the action is predicted.

The file reads in the order of the method: propose (propose.py), guard, score (fidelity.py, judging.py), select, and then
`Synthesizer`, which is all four. The one design choice: the ways of choosing among proposals are one function of the same
guarded candidates, so that they differ in nothing but the choice:

    recon      the best-scored
    random     any
    longest    the longest
    quality    what looks best to a judge that reads the traces
    backward   the first (Backward Synthesis)
    none       no trace at all

A trace that is stored has passed every guard, whichever way it was chosen; only "recon", and a search, whatever is done with
what it found, also reject what misleads.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from usertwin.memory.models.chat import ChatModel, Ledger
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.models.scoring import Scorer
from usertwin.memory.triples import Candidate, Provenance, Triple
from usertwin.personas import Pair, UsageError

from .distractors import Distractors
from .fidelity import CHOICES, Fidelity, gains, passed, with_scores
from .guards import LEAST_KEPT, kept_share, rejection_reason, reveals_action
from .judged_fidelity import MOST_ATTEMPTS, plausibility
from .local_search import search
from .propose import CONTEXT_TURNS, MALFORMED, PROPOSAL_MODES, ProposalMode, proposal_template, propose

Method = Literal["recon", "random", "longest", "quality", "backward", "none"]
METHODS: tuple[Method, ...] = get_args(Method)

#: How many traces are proposed for a pair, as in the paper.
DEFAULT_CANDIDATES = 4
#: How often proposals are asked for again where the guards left too few.
ROUNDS = 3
#: How many calls a search on one trace may take, its drafts included.
SEARCH_CALLS = 12
_ROUND_SEED = 7919


def is_scored(method: Method, proposal_mode: ProposalMode) -> bool:
    """Whether proposals are given a fidelity: to choose by it, or since a search betters it, whatever is then taken."""
    return method == "recon" or (method != "none" and proposal_mode == "search")


def check_counts(candidates: int, calls: int) -> None:
    """UsageError if so few proposals, or texts of a search, make no sense."""
    if candidates < 1 or calls < 2:
        raise UsageError(f"{candidates} candidates and {calls} calls: at least one candidate, and two calls")


def select(candidates: Sequence[Candidate], method: Method = "recon", *, seed: object = 0) -> Candidate | None:
    """The candidate that a way of choosing takes; None if no guard lets one pass. See `in_order`."""
    return next(iter(in_order(candidates, method, seed=seed)), None)


def in_order(candidates: Sequence[Candidate], method: Method, *, seed: object = 0) -> list[Candidate]:
    """The candidates that no guard rejects, the one to be taken first; ties go by the order in which they were proposed.

    Args:
        candidates: what was proposed; for "recon" with their fidelity, for "quality" with what a judge found, as the score.
        method: how to choose.
        seed: for "random".
    """
    allowed = [candidate for candidate in candidates if candidate.rejected is None]
    if method == "random":
        random.Random(f"{seed}").shuffle(allowed)
    elif method == "longest":
        allowed.sort(key=lambda one: -len(one.trace.split()))
    elif method in {"recon", "quality"}:
        allowed.sort(key=lambda one: float("inf") if one.score is None else -one.score)
    return [] if method == "none" else allowed


@dataclass(frozen=True, slots=True)
class Synthesizer:
    """Makes triples of pairs: propose, guard, score, select.

    Attributes:
        method: how to choose among the proposals.
        model: who proposes; needed unless the method is "none".
        fidelity: how traces are scored; needed for "recon", and for proposals by "search".
        scorer: under which a trace must keep its gain when the words it shares with the action are masked (guard G3), and
            which is asked whether it gives the action away (the audit). Neither is looked at if None.
        embedder: tells whether a trace says the same as the action (guard G5); not looked at if None.
        distractors: the person's other actions, for the audit.
        judge: who reads the traces for "quality".
        how: in which way traces are proposed.
        candidates: how many are proposed; "backward" and "search" propose one at a time.
        calls: for "search", how many texts a model may write for one pair.
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
    max_calls: int = SEARCH_CALLS

    def check(self) -> None:
        """UsageError if something that the method needs is missing, or a number makes no sense."""
        if self.method not in METHODS:
            raise UsageError(f'"{self.method}" is no way to make traces; there are {", ".join(METHODS)}')
        if self.proposal_mode not in PROPOSAL_MODES:
            raise UsageError(f'"{self.proposal_mode}" is no way to propose traces; there are {", ".join(PROPOSAL_MODES)}')
        check_counts(self.candidates, self.max_calls)
        if self.method == "none":
            return
        scored = is_scored(self.method, self.proposal_mode)
        if self.model is None or (scored and self.fidelity is None) or (self.method == "quality" and self.judge is None):
            needs = "a model" + " and a scorer" * scored + " and a judge" * (self.method == "quality")
            raise UsageError(f'traces by "{self.method}" need {needs}')
        if self.proposal_mode == "search" and self.fidelity is not None and not self.fidelity.comparable:
            raise UsageError(f"a search compares scores of different steps, which those {self.fidelity.name} are not made for")
        judged = self.method == "quality" or (
            self.method == "recon" and self.fidelity is not None and not self.fidelity.comparable
        )
        most = self.max_calls if self.proposal_mode == "search" else self.candidates
        if judged and most > MOST_ATTEMPTS:
            raise UsageError(f"{most} proposals for a judge to compare: at most {MOST_ATTEMPTS} can be told apart")

    async def synthesize(self, pair: Pair, name: str, *, seed: int = 0) -> Triple:
        """Make a triple of a pair.

        Args:
            pair: what the person saw and did.
            name: what to call the person.
            seed: for the sampler.

        Returns:
            The triple; without a trace where every proposal was rejected, with the rejections in its provenance.

        Raises:
            UsageError: see `check`.
            ModelError: a model does not answer.
        """
        self.check()
        if self.method == "none" or self.model is None:
            return Triple(pair)
        ledger = Ledger()
        found = await self._proposed(self.model, pair, name, seed, ledger)
        found = await self._scored(found, pair, seed, ledger)
        return await asyncio.to_thread(self._chosen, self.model, pair, found, seed, ledger)

    def guarded(self, trace: str, pair: Pair) -> str | None:
        """The guard that rejects a trace before it is scored, or None."""
        if trace == MALFORMED:
            return "malformed"
        examples = "" if self.model is None else proposal_template(self.model, self.proposal_mode).text
        return rejection_reason(trace, pair, examples, self.embedder)

    async def _proposed(self, model: ChatModel, pair: Pair, name: str, seed: int, ledger: Ledger) -> list[Candidate]:
        """Proposals, asked for again where guards reject them, three rounds in all."""
        if self.proposal_mode == "search" and self.fidelity is not None:
            return await search(
                model, self.fidelity, pair, name, guard=lambda trace: self.guarded(trace, pair), calls=self.max_calls, seed=seed,
                ledger=ledger,
            )  # fmt: skip
        wanted = 1 if self.method == "backward" else self.candidates
        found: list[Candidate] = []
        for turn in range(ROUNDS):
            missing = wanted - sum(one.rejected is None for one in found)
            if not missing:
                break
            traces = await propose(
                model, pair, name, proposal_mode=self.proposal_mode, n=missing, seed=seed + _ROUND_SEED * turn, ledger=ledger
            )  # fmt: skip
            found += [Candidate(trace, None, await asyncio.to_thread(self.guarded, trace, pair)) for trace in traces]
        return found

    async def _scored(self, found: list[Candidate], pair: Pair, seed: int, ledger: Ledger) -> list[Candidate]:
        """The candidates with the score they are chosen by; without a verdict that can be read, all are rejected."""
        traces = passed(found)
        if not traces:
            return found
        if self.method == "quality" and self.judge is not None:
            return await with_scores(found, plausibility(self.judge, pair, traces, seed=seed, ledger=ledger), None)
        if self.method == "recon" and self.proposal_mode != "search" and self.fidelity is not None:
            scoring = self.fidelity.score(pair, traces, seed=seed, ledger=ledger)
            return await with_scores(found, scoring, self.fidelity.floor)
        return found

    def _chosen(self, model: ChatModel, pair: Pair, found: list[Candidate], seed: int, ledger: Ledger) -> Triple:
        """The triple of the first candidate in order that keeps its gain; the others before it are rejected too."""
        chosen, measured = None, dict[str, float]()
        for one in in_order(found, self.method, seed=f"{seed}/{pair.conversation_id}/{pair.position}"):
            measured = self._measured(pair, one.trace)
            if measured.get("kept", 1.0) >= LEAST_KEPT:
                chosen = one
                break
            found = [replace(other, rejected="leans_on_words") if other is one else other for other in found]
        scored = self.fidelity if self.method == "recon" else None
        provenance = Provenance(
            method=self.method,
            proposer=model.name,
            scorer=None if scored is None else scored.name,
            prompt_version=proposal_template(model, self.proposal_mode).version,
            seed=seed,
            candidates=len(found),
            rejected=Counter(one.rejected for one in found if one.rejected is not None),
            proposal_mode=self.proposal_mode,
            proposals=tuple(found),
            measured=measured if chosen is not None else {},
            cost=ledger.to_json(),
        )
        if chosen is None:
            return Triple(pair, provenance=provenance)
        return Triple(pair, chosen.trace, chosen.score if scored is not None else None, provenance)

    def _measured(self, pair: Pair, trace: str) -> dict[str, float]:
        """What a trace gains, how much of that is left without shared words, and whether it gives the action away."""
        if self.scorer is None:
            return {}
        [one] = gains(self.scorer, pair, [trace])
        others = self.distractors.of(pair, CHOICES - 1) if self.distractors is not None else []
        return {
            "gain": one["gain"],
            "novel": one["novel"],
            "kept": kept_share(self.scorer, pair, trace, CONTEXT_TURNS),
            "gives_away": float(reveals_action(self.scorer, pair, trace, others)),
        }


def backward_trace(triple: Triple) -> str | None:
    """The trace that Backward Synthesis would have had: the first proposal that no guard rejected by its words."""
    if triple.provenance is None:
        return None
    return next((one.trace for one in triple.provenance.proposals if one.rejected in {None, "misleads", "no_verdict"}), None)
