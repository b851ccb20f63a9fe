"""One person of a suite: learned, opened with the settings to measure it with, and measured.

The one design choice: each step looks first at what is in the run's folder already, so that the same call goes on wherever it
was stopped, and a person who is done costs nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from usertwin.evals.metrics.statistics import evenly_spaced
from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.evals.records.run_folder import write_atomically
from usertwin.evals.replay.arms import Arms
from usertwin.evals.replay.drift import Drifted, drift
from usertwin.evals.replay.endings import endings
from usertwin.evals.replay.evaluate import twin_arm
from usertwin.evals.replay.held_out import held_out_pairs, other_person
from usertwin.evals.replay.leak_checks import check_split, known_by_heart, near_duplicates
from usertwin.evals.replay.replay import Replay, ReplayConfig
from usertwin.evals.replay.tune import tune
from usertwin.memory import Recipe, Scorer, Settings, TripleStore, TwinRecord, alearn, existing_twin
from usertwin.memory.progress import Progress, no_progress
from usertwin.personas import ChatLog, TwinError, UsageError
from usertwin.simulator import SimulatedUser, load_embedder

from .config import Corpus, Suite
from .models import SuiteModels

#: Turns of context that belong to a moment, unless the suite says otherwise.
CONTEXT_WINDOW = 6
#: On so many turns at most, and on no more than are measured, the scoring model is asked what it knows by heart.
BY_HEART = 200
_CHECKED = (
    "no held-out conversation is in the memory",
    "nothing in the memory is later than what is held out",
    "near-duplicates across the split are dropped",
)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody to measure: as the report calls them, their twin's name and home, and where to learn it from, if it is to be."""

    label: str
    twin: str
    home: Path | None
    corpus: Corpus | None = None
    speaker: str = ""


@dataclass(frozen=True, slots=True)
class PersonMeasurement:
    """Learns and measures the people of a suite.

    Attributes:
        suite: what is measured.
        models: its models.
        logs: its corpora, by name.
        folder: of the run's people, where records are kept.
        progress: is told how far things are.
    """

    suite: Suite
    models: SuiteModels
    logs: Mapping[str, ChatLog]
    folder: Path
    progress: Progress = no_progress

    def records(self, number: int) -> Path:
        """The file of a person's measured turns."""
        return self.folder / f"{number}.jsonl"

    async def learn(self, person: Person, proposer: str, *, name: str | None = None) -> Path:
        """Learn a person's twin, if it is not yet; returns its folder."""
        suite, corpus = self.suite, person.corpus
        if corpus is None:
            raise UsageError(f"{person.label}: was learned elsewhere, and its log is not part of this suite")
        traced = name is not None or suite.traced
        embedder = self.models.embedder()
        recipe = Recipe(
            source=corpus.source,
            speaker=person.speaker,
            method="recon" if traced else "none",
            candidates=suite.traces.candidates,
            max_triples=corpus.max_triples,
            max_traces=suite.traces.moments,
            window=suite.window or CONTEXT_WINDOW,
            embedder=embedder.name,
            model=proposer,
            scorer=suite.models.scorer,
            seed=suite.seed,
            proposal_mode=suite.traces.propose,
            fidelity=suite.traces.fidelity,
            actor=proposer,
            judge=suite.models.judge or proposer,
        ).without_unused()
        twin = name or person.twin
        if (known := _learned(twin, person.home)) is not None and (known.state, known.recipe) == ("complete", recipe):
            return existing_twin(twin, person.home)
        await alearn(
            twin, self.logs[corpus.name], recipe, embedder=embedder, home=person.home, progress=self.progress,
            concurrency=suite.concurrency,
            model=self.models.chat(recipe.model) if recipe.model else None,
            scorer=self.models.scorer(recipe.scorer) if recipe.scorer else None,
            actor=self.models.chat(recipe.actor) if recipe.actor else None,
            judge=self.models.judge(recipe.judge) if recipe.judge else None,
        )  # fmt: skip
        return existing_twin(twin, person.home)

    async def _open(self, person: Person, folder: Path, scorer: Scorer, stack: ExitStack, *, name: str) -> SimulatedUser:
        """A person's twin with its settings, which are found on validation turns unless the suite says them."""
        suite = self.suite
        record = TwinRecord.load(folder)
        traced = suite.traced
        plain = Settings(traces="recon" if traced else "none", reasons=traced and suite.traces.reasons)
        embedder = self.models.embedder() if person.corpus else load_embedder(record.recipe.embedder)
        settings = record.settings if person.corpus else record.settings or Settings()  # who was learned before is as they are
        if settings is not None and not traced:  # no arm shows what this twin is otherwise shown
            settings = replace(settings, traces="none", reasons=False)
        if suite.k is not None and suite.window is not None:
            settings = replace(plain, k=suite.k, window=suite.window)
        options: dict[str, Any] = {"home": person.home, "model": self.models.chat(suite.models.action), "seed": suite.seed}
        user = stack.enter_context(SimulatedUser.load(name, embedder=embedder, settings=settings, **options))
        if settings is None:
            found = await tune(user, scorer, folder=folder, seed=suite.seed, progress=self.progress)
            # Where arms with traces are compared the twin's arm is the one that shows those that were chosen.
            found = replace(found, traces=plain.traces, reasons=plain.reasons) if traced else found
            replace(record, settings=found).save(folder)
            user = SimulatedUser(
                user.record, user.store, user.model, reasoner=user.reasoner, ending=user.ending, leaving=user.leaving,
                settings=found, seed=suite.seed,
            )  # fmt: skip
        return user

    async def measure(self, person: Person, number: int) -> dict[str, Any]:
        """Measure one person's turns, or go on with that; returns what is known of the person besides."""
        suite = self.suite
        done = self.folder / f"{number}.json"
        if done.exists():
            return json.loads(done.read_text("utf-8"))
        folder = existing_twin(person.twin, person.home)
        scorer = self.models.scorer(suite.models.scorer)
        with ExitStack() as stack:
            user = await self._open(person, folder, scorer, stack, name=person.twin)
            held_out, _ = held_out_pairs(user, folder)
            known = [triple.pair for triple in user.store.triples()]
            check_split(user.record, known, held_out, by_time=person.corpus is not None)
            twice = near_duplicates(held_out, known)
            fresh = [pair for place, pair in enumerate(held_out) if place not in twice]
            said = [pair for pair in fresh if not pair.abandoned]
            if not said:
                raise UsageError(f"{person.label}: no held-out turn is left that is not nearly the same in the memory")
            other = other_person(user, folder, user.store.embedder, stack)
            arms = Arms(user, suite.arms, other, await self._trained(person, stack), suite.seed)
            protocol = ReplayConfig(
                suite.arms, suite.turns or None, suite.replies, suite.samples, suite.choices, suite.concurrency, suite.seed
            )
            replay = Replay(user, scorer, user.store.embedder, arms, protocol, person.label)
            await replay.run(evenly_spaced(said, protocol.limit), keep=self.records(number), progress=self.progress)
            freely = await drift(
                user, user.store.embedder, fresh, person.label, most=suite.drift, seed=suite.seed, progress=self.progress
            ) if suite.drift else list[Drifted]()  # fmt: skip
            heart = await asyncio.to_thread(
                known_by_heart, scorer, said, most=min(suite.turns or BY_HEART, BY_HEART), seed=suite.seed
            )
            facts = {
                "twin_arm": twin_arm(user),
                "triples": len(user.store),
                "k": user.k,
                "window": user.settings.window,
                "embedder": user.store.embedder.name,
                "leakage": {
                    "near_duplicates": len(twice),
                    "of": len(held_out),
                    "known_by_heart": heart,
                    "checked": list(_CHECKED),
                },
                "endings": endings(user, fresh, seed=suite.seed),
                "drift": [asdict(one) for one in freely],
            }
        write_atomically(done, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        return facts

    async def _trained(self, person: Person, stack: ExitStack) -> TripleStore | None:
        """The memory with the traces of another synthesizer, if the suite has one."""
        suite = self.suite
        if suite.models.trained is None or "trained" not in suite.arms or person.corpus is None:
            return None
        folder = await self.learn(person, suite.models.trained, name=f"{person.twin}-trained")
        store = TripleStore(folder, self.models.embedder(), create=False)
        stack.callback(store.close)
        return store

    async def transfer_turns(
        self, person: Person, name: str, folder: Path, scorer: str, turns: int, keep: Path
    ) -> list[MeasuredTurn]:
        """A person's turns under one model with the traces of another."""
        suite = self.suite
        with ExitStack() as stack:
            k, window = suite.k or Settings().k, suite.window or CONTEXT_WINDOW
            settings = Settings(k=k, window=window, traces="recon", reasons=False)
            options: dict[str, Any] = {"home": person.home, "model": self.models.chat(suite.models.action), "seed": suite.seed}
            user = stack.enter_context(SimulatedUser.load(name, embedder=self.models.embedder(), settings=settings, **options))
            said = [pair for pair in held_out_pairs(user, folder)[0] if not pair.abandoned]
            arms = ("recalled_pairs", "recalled_triples")
            protocol = ReplayConfig(arms, turns, 0, seed=suite.seed)
            replay = Replay(
                user,
                self.models.scorer(scorer),
                self.models.embedder(),
                Arms(user, arms, seed=suite.seed),
                protocol,
                person.label,
            )
            return await replay.run(evenly_spaced(said, turns), keep=keep, progress=self.progress)


def _learned(name: str, home: Path | None) -> TwinRecord | None:
    try:
        return TwinRecord.load(existing_twin(name, home))
    except TwinError:
        return None
