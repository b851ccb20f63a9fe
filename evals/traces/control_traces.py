"""Control traces: is a trace's score more than leakage? Traces that are wrong in one way each, against the real ones.

    own             the person's own trace of the pair (backward: written with knowledge of the action)
    filler     C0   filler text of the same length
    copy       C1   "I would say: " and the action
    paraphrase C2   the action in other words, without a reason
    shuffled   C3   the own trace of another pair of this person
    other      C4   a trace written for another person
    bag        C5   the own trace with its words in random order
    keywords   C6   the words of the own trace with the highest tf-idf
    swapped    C7   a trace written for another action of the person in the same context
    forward    C8   a trace written without knowledge of the action

Downstream, each proposal for a past pair is shown with that pair in the context of a later, similar pair. Its benefit is how
much better the later action is then predicted.

Design: the trace under test is the first proposal that passes the guards, not the best-scored one, which would score high by
selection alone. Selection is tested downstream, where no score was used.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from usertwin.evals.metrics.statistics import evenly_spaced
from usertwin.memory import ChatModel, Embedder, Scorer, Triple, TripleStore
from usertwin.memory.concurrency import gather, to_thread
from usertwin.memory.models.chat import Ledger
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import CHOICES, gains
from usertwin.memory.recon.guards import reveals_action
from usertwin.memory.recon.propose import paraphrase, propose
from usertwin.memory.recon.synthesizer import Synthesizer
from usertwin.memory.text.transcript import action_completion, single_line
from usertwin.memory.text.words import content_words, context_and_goal, longest_copied_run, word_tokens
from usertwin.memory.triples import Candidate
from usertwin.memory.twin.record import read_other_person_pairs
from usertwin.personas import Pair, UsageError
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import act_transcript

from .control_verdict import AUDITED_CONTROLS, CONTROLS, ContextScores, ControlledTurn, TraceScores, summarize_controls

_FILLER = "Well, here it is as it is, and so on and so forth, one thing after another, this and that, and then some more of it"
_KEYWORDS = 6
#: Proposals where a single trace is needed that passes the guards.
_DRAFTS = 2

#: Called with the stage, the number of finished items, and their total.
ControlProgress = Callable[[str, int, int], None]


@dataclass(kw_only=True, frozen=True, slots=True)
class ControlExperiment:
    """Measures whether fidelity is more than leakage, for one person and one set of models.

    Attributes:
        synthesizer: proposes and guards, as for the twin.
        model: writes the control traces; the proposer.
        scorer: the reconstruction model of the gains.
        embedder: measures the similarity of contexts and actions.
        seed: seed of everything that is sampled.
        ledger: records the calls.
        concurrency: number of pairs for which the model is called at once.
    """

    synthesizer: Synthesizer
    model: ChatModel
    scorer: Scorer
    embedder: Embedder
    seed: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    concurrency: int = 1

    async def measure(
        self,
        pairs: Sequence[Pair],
        others: Sequence[Pair],
        store: TripleStore,
        *,
        name: str,
        progress: ControlProgress = lambda stage, done, total: None,
    ) -> dict[str, Any]:
        """Write the control traces of held-out pairs, score them, and decide.

        Args:
            pairs: held-out pairs of the person.
            others: pairs of another person, for the control "other"; without any that control is left out.
            store: the person's memory.
            name: the person's name in the prompts.
            progress: receives the progress.

        Returns:
            The JSON object that `usertwin controls --json` writes.

        Raises:
            UsageError: fewer than two pairs, or the synthesizer lacks something.
            ModelError: a model does not answer.
        """
        self.synthesizer.check()
        if len(pairs) < 2:
            raise UsageError(f"there are {len(pairs)} held-out turns of the person; controls need at least 2")
        distractors = Distractors([triple.pair for triple in store.triples()], self.embedder)
        written = await self._write_all(pairs, others, distractors, name, progress)
        turns: list[ControlledTurn] = []
        for number, (pair, traces, other_action) in enumerate(written):
            progress("control scores", number, len(written))
            turns.append(await to_thread(self._score, pair, traces, other_action, distractors))
        progress("control scores", len(written), len(written))
        downstream = await self._measure_downstream(pairs, store, name, progress)
        models = {"proposer": self.model.name, "scorer": self.scorer.name, "embedder": self.embedder.name}
        return summarize_controls(turns, downstream, self.seed) | {"models": models, "cost": self.ledger.to_json()}

    # Writing ---------------------------------------------------------------------------------------------------------

    async def _write_all(
        self,
        pairs: Sequence[Pair],
        others: Sequence[Pair],
        distractors: Distractors,
        name: str,
        progress: ControlProgress,
    ) -> list[tuple[Pair, dict[str, str], str]]:
        """Return, for each pair, its control traces by name and the other action of the swapped trace."""
        done, total = 0, len(pairs) + min(len(others), len(pairs))
        limit = asyncio.Semaphore(self.concurrency)

        async def write(pair: Pair, own_only: bool) -> tuple[Pair, dict[str, str], str]:
            nonlocal done
            async with limit:
                other_action = next(iter(distractors.nearest(pair, 1)), "")
                traces = await self._write(pair, other_action, name, own_only)
                done += 1
                progress("control traces", done, total)
                return pair, traces, other_action

        progress("control traces", 0, total)
        written = await gather(*(write(pair, False) for pair in pairs))
        written_for_others = await gather(*(write(pair, True) for pair in others[: len(pairs)]))
        own = [traces["own"] for _, traces, _ in written if "own" in traces]
        foreign = [traces["own"] for _, traces, _ in written_for_others if "own" in traces]
        rng = random.Random(self.seed)
        for number, (pair, traces, _) in enumerate(written):
            elsewhere = [t["own"] for (p, t, _) in written if "own" in t and p.conversation_id != pair.conversation_id]
            traces |= _derived_controls(traces, pair, own, rng)
            if elsewhere:
                traces["shuffled"] = rng.choice(elsewhere)
            if foreign:
                traces["other"] = foreign[number % len(foreign)]
        return written

    async def _write(self, pair: Pair, other_action: str, name: str, own_only: bool) -> dict[str, str]:
        """Return the traces of a pair that the model writes; for another person's pair only the own one."""
        traces: dict[str, str] = {}
        # As many proposals as for the twin, so that completions in the cache are used again.
        own = await self._first_passing(pair, name, _DRAFTS if own_only else self.synthesizer.candidates)
        if own is not None:
            traces["own"] = own
        if own_only:
            return traces
        [forward] = await propose(self.model, pair, name, proposal_mode="forward", n=1, seed=self.seed, ledger=self.ledger)
        traces |= {"forward": forward} if forward else {}
        paraphrased = await paraphrase(self.model, pair.action, seed=self.seed, ledger=self.ledger)
        traces |= {"paraphrase": paraphrased} if paraphrased else {}
        if other_action:
            swapped = await self._first_passing(replace(pair, action=other_action), name, _DRAFTS)
            traces |= {"swapped": swapped} if swapped is not None else {}
        return traces

    async def _first_passing(self, pair: Pair, name: str, n: int) -> str | None:
        """Return the first of n proposals that passes the lexical guards."""
        mode = self.synthesizer.proposal_mode
        drafts = await propose(
            self.model,
            pair,
            name,
            proposal_mode="backward" if mode == "search" else mode,
            n=n,
            seed=self.seed,
            ledger=self.ledger,
        )
        return next((trace for trace in drafts if self.synthesizer.guard_reason(trace, pair) is None), None)

    # Scoring ---------------------------------------------------------------------------------------------------------

    def _score(self, pair: Pair, traces: Mapping[str, str], other_action: str, distractors: Distractors) -> ControlledTurn:
        turn = ControlledTurn(pair, other_action)
        names = [name for name in CONTROLS if name in traces]
        other_actions = distractors.nearest(pair, CHOICES - 1)
        for name, parts in zip(names, gains(self.scorer, pair, [traces[name] for name in names]), strict=True):
            trace = traces[name]
            audited = name in AUDITED_CONTROLS
            turn.scores[name] = TraceScores(
                trace=trace,
                gain=parts["gain"],
                guarded_gain=parts["guarded_gain"],
                rejected=self.synthesizer.guard_reason(trace, pair, "forward" if name == "forward" else None),
                reveals_action=reveals_action(self.scorer, pair, trace, other_actions) if audited else None,
                slot=parts["slot"],
            )
        if "own" in traces and "swapped" in traces:
            swapped_pair = replace(pair, action=other_action)
            own, swapped = gains(self.scorer, swapped_pair, [traces["own"], traces["swapped"]])
            turn.contrast = (turn.scores["own"].gain - turn.scores["swapped"].gain) - (own["gain"] - swapped["gain"])
        return turn

    async def _measure_downstream(
        self, pairs: Sequence[Pair], store: TripleStore, name: str, progress: ControlProgress
    ) -> list[tuple[Pair, list[ContextScores]]]:
        """Return, for each held-out pair, the proposals for the most similar past pair, with their benefit."""
        measured: list[tuple[Pair, list[ContextScores]]] = []
        recalled = store.recall_many(pairs, 1, before=[pair.when for pair in pairs])
        synthesizer = replace(self.synthesizer, method="recon", scorer=None)
        for number, (pair, memories) in enumerate(zip(pairs, recalled, strict=True)):
            progress("downstream", number, len(pairs))
            if memories:
                past = memories[0].triple.pair
                triple = await synthesizer.synthesize(past, name, seed=self.seed)
                proposals: Sequence[Candidate] = ()
                if triple.provenance is not None:
                    self.ledger.add(triple.provenance.cost)
                    proposals = triple.provenance.proposals
                scored = [candidate for candidate in proposals if candidate.score is not None]
                measured.append((pair, await to_thread(self._benefits, pair, past, scored)))
        progress("downstream", len(pairs), len(pairs))
        return [(pair, scores) for pair, scores in measured if len(scores) > 1]

    def _benefits(self, pair: Pair, past: Pair, candidates: Sequence[Candidate]) -> list[ContextScores]:
        completion = action_completion(pair.action)
        shown = [Triple(past), *(Triple(past, candidate.trace) for candidate in candidates)]
        without, *with_trace = self.scorer.score([(act_transcript(pair, [triple]), completion) for triple in shown])
        return [
            ContextScores(
                candidate=candidate,
                overlap=_overlap(candidate.trace, past),
                words=len(candidate.trace.split()),
                benefit=(without.bits - likelihood.bits) / (len(completion) - 1),
            )
            for candidate, likelihood in zip(candidates, with_trace, strict=True)
        ]


def estimated_calls(pairs: int, others: int, candidates: int) -> tuple[int, int]:
    """Return estimates of the completions and of the scorings that the controls of so many pairs take."""
    completions = pairs * (2 * candidates + 2 + _DRAFTS) + _DRAFTS * min(pairs, others)
    # Each trace and its baseline; each with all choices, for the audit; the contrast; the proposals downstream.
    scorings = pairs * (len(CONTROLS) + 6 + (len(AUDITED_CONTROLS) + 1) * CHOICES + 5 + 2 * candidates + 4)
    return completions, scorings


def other_person_pairs(user: SimulatedUser, folder: Path, limit: int) -> list[Pair]:
    """Return at most `limit` pairs, evenly spaced, of the person that the twin is compared with; none without one."""
    return evenly_spaced([pair for pair in read_other_person_pairs(folder, user.record) if not pair.abandoned], limit)


def _derived_controls(traces: Mapping[str, str], pair: Pair, own_traces: Sequence[str], rng: random.Random) -> dict[str, str]:
    """Return the controls that need no model."""
    controls = {"copy": f"I would say: {single_line(pair.action)}"}
    if "own" in traces:
        words = traces["own"].split()
        controls["bag"] = " ".join(rng.sample(words, len(words)))
        controls["filler"] = " ".join((_FILLER.split() * (len(words) // 20 + 1))[: len(words)])
        best = keywords(traces["own"], own_traces)
        if best:
            controls["keywords"] = ", ".join(best)
    return controls


def keywords(text: str, corpus: Sequence[str]) -> list[str]:
    """Return the words of a text with the highest tf-idf in a corpus of texts, in the order of the text."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = list(dict.fromkeys(content_words(word_tokens(text))))
    if not words:
        return []
    analyzer: Any = word_tokens  # the stubs allow only names of analyzers
    vectorizer = TfidfVectorizer(analyzer=analyzer)
    weights = vectorizer.fit([*corpus, text]).transform([text]).toarray()[0]
    best = sorted(words, key=lambda word: -float(weights[vectorizer.vocabulary_[word]]))[:_KEYWORDS]
    return [word for word in words if word in best]


def _overlap(trace: str, pair: Pair) -> float:
    """Return the longest word run copied from the action, and new to context and goal, as a share of the action's words."""
    return longest_copied_run(trace, pair.action, context_and_goal(pair)) / max(1, len(word_tokens(pair.action)))
