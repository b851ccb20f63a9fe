"""Is a trace's score more than leakage? Control traces, each wrong in one way, beside the real ones, on validation turns.

The one design choice: the trace under test is the first proposal that no guard rejected, not the best-scored one, since the
best of several on a score is high on it by selection alone; selection is tested downstream, where no score was looked at.

    own             the person's own trace for the moment (backward: written by somebody who saw the action)
    filler     C0   words that say nothing, as many as the own trace has
    copy       C1   "I would say: " and the action
    paraphrase C2   the action in other words, without a reason
    shuffled   C3   the own trace of another moment of this person
    other      C4   a trace written for another person
    bag        C5   the own trace, its words in random order
    keywords   C6   the most telling words of the own trace
    swapped    C7   a trace written for another action of the person in the same moment
    forward    C8   a trace written without having seen the action

`guarded` means: rejected by a guard, or else scored on words that the trace does not have from the action (novel gain).
Downstream, each proposal for a past moment is shown with that moment, and what it is worth is how much better the real turn of
a later, similar moment is predicted with it than without.
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
from usertwin.memory.models.chat import Ledger
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import CHOICES, gains
from usertwin.memory.recon.guards import reveals_action
from usertwin.memory.recon.propose import paraphrase, propose
from usertwin.memory.recon.synthesizer import Synthesizer
from usertwin.memory.text.transcript import action_line, flat
from usertwin.memory.text.words import content_words, known_text, longest_new_run, word_tokens
from usertwin.memory.triples import Candidate
from usertwin.memory.twin.record import OTHER_PERSON, kept_conversations
from usertwin.personas import Pair, UsageError
from usertwin.personas.pairs import pairs_of_log
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import act_transcript

from .control_verdict import CONTROLS, PROBED, ContextScores, ControlledTurn, TraceScores, result

_FILLER = "Well, here it is as it is, and so on and so forth, one thing after another, this and that, and then some more of it"
_KEYWORDS = 6
#: Proposals for a moment of which one trace is needed that a guard lets pass.
_DRAFTS = 2

#: Is told the stage, how much is done, of how much.
ControlProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Controls:
    """Measures whether fidelity is more than leakage, for one person and one set of models.

    Attributes:
        synthesizer: proposes and guards, as for the twin.
        model: who writes the control traces; the one who proposes.
        scorer: the reconstruction model, under which traces gain.
        embedder: finds similar moments and actions.
        seed: for everything that is drawn or sampled.
        ledger: where the calls are noted.
        concurrency: for how many moments the model may be asked at once.
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
        """Write the control traces of held-out moments, score them, and decide.

        Args:
            pairs: held-out moments of the person.
            others: moments of another person, for traces of somebody else; may be empty, then that control is left out.
            store: the person's memory.
            name: what to call the person.
            progress: is told how far things are.

        Returns:
            Everything that `usertwin controls --json` writes.

        Raises:
            UsageError: fewer than two moments, or a synthesizer that lacks something.
            ModelError: a model does not answer.
        """
        self.synthesizer.check()
        if len(pairs) < 2:
            raise UsageError(f"controls need at least two held-out turns of the person, and there are {len(pairs)}")
        distractors = Distractors([triple.pair for triple in store.triples()], self.embedder)
        written = await self._write_all(pairs, others, distractors, name, progress)
        moments: list[ControlledTurn] = []
        for number, (pair, traces, other_action) in enumerate(written):
            progress("control scores", number, len(written))
            moments.append(await asyncio.to_thread(self._scored, pair, traces, other_action, distractors))
        progress("control scores", len(written), len(written))
        downstream = await self._downstream(pairs, store, name, progress)
        models = {"proposer": self.model.name, "scorer": self.scorer.name, "embedder": self.embedder.name}
        return result(moments, downstream, self.seed) | {"models": models, "cost": self.ledger.to_json()}

    # Writing ---------------------------------------------------------------------------------------------------------

    async def _write_all(
        self,
        pairs: Sequence[Pair],
        others: Sequence[Pair],
        distractors: Distractors,
        name: str,
        progress: ControlProgress,
    ) -> list[tuple[Pair, dict[str, str], str]]:
        done, total = 0, len(pairs) + min(len(others), len(pairs))
        limit = asyncio.Semaphore(self.concurrency)

        async def one(pair: Pair, alone: bool) -> tuple[Pair, dict[str, str], str]:
            nonlocal done
            async with limit:
                other_action = next(iter(distractors.of(pair, 1)), "")
                traces = await self._written(pair, other_action, name, alone)
                done += 1
                progress("control traces", done, total)
                return pair, traces, other_action

        progress("control traces", 0, total)
        found = await asyncio.gather(*(one(pair, False) for pair in pairs))
        theirs = await asyncio.gather(*(one(pair, True) for pair in others[: len(pairs)]))
        own = [traces for _, traces, _ in found]
        foreign = [traces["own"] for _, traces, _ in theirs if "own" in traces]
        rng = random.Random(self.seed)
        for number, (pair, traces, _) in enumerate(found):
            elsewhere = [t["own"] for (p, t, _) in found if "own" in t and p.conversation_id != pair.conversation_id]
            traces |= _made_of(traces, pair, [one["own"] for one in own if "own" in one], rng)
            if elsewhere:
                traces["shuffled"] = rng.choice(elsewhere)
            if foreign:
                traces["other"] = foreign[number % len(foreign)]
        return found

    async def _written(self, pair: Pair, other_action: str, name: str, alone: bool) -> dict[str, str]:
        """The traces that a model writes for a moment; only the own one for another person's."""
        found: dict[str, str] = {}
        # For the own moment as many as for the twin, so that what was asked before is not asked again.
        own = await self._first_allowed(pair, name, _DRAFTS if alone else self.synthesizer.candidates)
        if own is not None:
            found["own"] = own
        if alone:
            return found
        [forward] = await propose(self.model, pair, name, proposal_mode="forward", n=1, seed=self.seed, ledger=self.ledger)
        found |= {"forward": forward} if forward else {}
        said = await paraphrase(self.model, pair.action, seed=self.seed, ledger=self.ledger)
        found |= {"paraphrase": said} if said else {}
        if other_action:
            swapped = await self._first_allowed(replace(pair, action=other_action), name, _DRAFTS)
            found |= {"swapped": swapped} if swapped is not None else {}
        return found

    async def _first_allowed(self, pair: Pair, name: str, n: int) -> str | None:
        """The first of n proposals that no guard rejects by its words."""
        how = self.synthesizer.proposal_mode
        drafts = await propose(
            self.model, pair, name, proposal_mode="backward" if how == "search" else how, n=n, seed=self.seed, ledger=self.ledger
        )  # fmt: skip
        return next((trace for trace in drafts if self.synthesizer.guarded(trace, pair) is None), None)

    # Scoring ---------------------------------------------------------------------------------------------------------

    def _scored(self, pair: Pair, traces: Mapping[str, str], other_action: str, distractors: Distractors) -> ControlledTurn:
        moment = ControlledTurn(pair, other_action)
        names = [name for name in CONTROLS if name in traces]
        rivals = distractors.of(pair, CHOICES - 1)
        for name, one in zip(names, gains(self.scorer, pair, [traces[name] for name in names]), strict=True):
            trace = traces[name]
            away = reveals_action(self.scorer, pair, trace, rivals) if name in PROBED else None
            moment.told[name] = TraceScores(
                trace, one["gain"], one["novel"], self.synthesizer.guarded(trace, pair), away, one["slot"]
            )
        if "own" in traces and "swapped" in traces:
            real, swapped = moment.told["own"].gain, moment.told["swapped"].gain
            mine, theirs = gains(self.scorer, replace(pair, action=other_action), [traces["own"], traces["swapped"]])
            moment.contrast = (real - swapped) - (mine["gain"] - theirs["gain"])
        return moment

    async def _downstream(
        self, pairs: Sequence[Pair], store: TripleStore, name: str, progress: ControlProgress
    ) -> list[tuple[Pair, list[ContextScores]]]:
        """For each held-out moment: the proposals of the past moment most like it, with what each is worth there."""
        found: list[tuple[Pair, list[ContextScores]]] = []
        recalled = store.recall_many(pairs, 1, before=[pair.when for pair in pairs])
        every = replace(self.synthesizer, method="recon", scorer=None)
        for number, (pair, memories) in enumerate(zip(pairs, recalled, strict=True)):
            progress("downstream", number, len(pairs))
            if memories:
                known = memories[0].triple
                made = await every.synthesize(known.pair, name, seed=self.seed)
                self._note(made)
                usable = [one for one in (made.provenance.proposals if made.provenance else ()) if one.score is not None]
                found.append((pair, await asyncio.to_thread(self._benefits, pair, known.pair, usable)))
        progress("downstream", len(pairs), len(pairs))
        return [(pair, shown) for pair, shown in found if len(shown) > 1]

    def _note(self, made: Triple) -> None:
        if made.provenance is not None:
            self.ledger.include(made.provenance.cost)

    def _benefits(self, pair: Pair, past: Pair, usable: Sequence[Candidate]) -> list[ContextScores]:
        line = action_line(pair.action)
        prompts = [act_transcript(pair, [Triple(past, one.trace)]) for one in usable]
        alone, *told = self.scorer.score([(prompt, line) for prompt in [act_transcript(pair, [Triple(past)]), *prompts]])
        return [
            ContextScores(one, _overlap(one.trace, past), len(one.trace.split()), (alone.bits - with_it.bits) / (len(line) - 1))
            for one, with_it in zip(usable, told, strict=True)
        ]


def estimated_calls(moments: int, others: int, candidates: int) -> tuple[int, int]:
    """About how many texts a model writes for the controls of so many moments, and how many are scored."""
    texts = moments * (2 * candidates + 2 + _DRAFTS) + _DRAFTS * min(moments, others)
    # Each trace and what it is compared with; each with all choices, for the audit; the contrast; the proposals downstream.
    scored = moments * (len(CONTROLS) + 6 + (len(PROBED) + 1) * CHOICES + 5 + 2 * candidates + 4)
    return texts, scored


def other_moments(user: SimulatedUser, folder: Path, limit: int) -> list[Pair]:
    """Moments of the person whom the twin is compared with, at most so many, spread evenly; none if there is nobody."""
    speaker = user.record.other_speaker
    if speaker is None:
        return []
    groups = pairs_of_log(kept_conversations(folder / OTHER_PERSON), speaker, window=user.record.recipe.window)
    return evenly_spaced([pair for group in groups for pair in group if not pair.abandoned], limit)


def _made_of(traces: Mapping[str, str], pair: Pair, all_own: Sequence[str], rng: random.Random) -> dict[str, str]:
    """The controls that no model writes."""
    found = {"copy": f"I would say: {flat(pair.action)}"}
    if "own" in traces:
        words = traces["own"].split()
        found["bag"] = " ".join(rng.sample(words, len(words)))
        found["filler"] = " ".join((_FILLER.split() * (len(words) // 20 + 1))[: len(words)])
        telling = keywords(traces["own"], all_own)
        if telling:
            found["keywords"] = ", ".join(telling)
    return found


def keywords(text: str, corpus: Sequence[str]) -> list[str]:
    """The words of a text with the highest tf-idf among the texts of a corpus, in the order of the text."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    own = list(dict.fromkeys(content_words(word_tokens(text))))
    if not own:
        return []
    tokens: Any = word_tokens  # its type names only the analyzers that have a name
    vectorizer = TfidfVectorizer(analyzer=tokens)
    weights = vectorizer.fit([*corpus, text]).transform([text]).toarray()[0]
    best = sorted(own, key=lambda word: -float(weights[vectorizer.vocabulary_[word]]))[:_KEYWORDS]
    return [word for word in own if word in best]


def _overlap(trace: str, pair: Pair) -> float:
    """The longest run that a trace has from the action and nobody said before, as a share of the action's words."""
    return longest_new_run(trace, pair.action, known_text(pair)) / max(1, len(word_tokens(pair.action)))
