"""Learning and measurement of one person of a suite; a step whose result is in the run's folder is not repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from usertwin.evals.arm_names import POOLED_ARMS, arm_names, base_arm, is_adapted, is_reranked, uses_words
from usertwin.evals.judges.listwise_checks import check_twin_judge, stored_check
from usertwin.evals.metrics.statistics import evenly_spaced
from usertwin.evals.records.measured_turns import MeasuredTurn, read_facts, read_turn_file
from usertwin.evals.records.older_results import upgrade
from usertwin.evals.records.run_folder import write_atomically
from usertwin.evals.replay.adapted import adapted_scorer, split_adapter
from usertwin.evals.replay.arms import Arms, own_words
from usertwin.evals.replay.drift import drift
from usertwin.evals.replay.endings import measure_endings
from usertwin.evals.replay.evaluate import twin_arm
from usertwin.evals.replay.held_out import given_distractors, held_out_pairs, other_person_store
from usertwin.evals.replay.leak_checks import check_split, measure_memorization, without_near_duplicates
from usertwin.evals.replay.peers import write_persona
from usertwin.evals.replay.pool import open_pool, other_peoples_pairs
from usertwin.evals.replay.replay import Replay, ReplayConfig
from usertwin.evals.tuning.tune import tune
from usertwin.memory import Embedder, Recipe, Scorer, Settings, TripleStore, TwinRecord, alearn, existing_twin
from usertwin.memory.concurrency import to_thread
from usertwin.memory.own_words.own_words import DEFAULT_WEIGHTS
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.twin.forget import open_memory
from usertwin.memory.twin.record import update_record
from usertwin.memory.twin.reranking import DEFAULT_RERANKING
from usertwin.personas import ChatLog, Pair, TwinError
from usertwin.personas.files import private_folder
from usertwin.simulator import SimulatedUser
from usertwin.simulator.backends.model_name import ModelName
from usertwin.simulator.reasoner import load_own_embedder

from .config import Corpus, Suite
from .models import SuiteModels

#: Turns of context of a pair, unless the suite sets a window.
CONTEXT_WINDOW = 6
#: The most turns on which memorization by the scoring model is measured.
_MAX_MEMORIZATION_TURNS = 200
_CHECKS = [
    "no held-out conversation is in the memory", "the memory holds nothing later than the held-out turns",
    "near-duplicates across the split are dropped",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A person to measure, with the name and the home of the twin."""

    label: str
    twin: str
    home: Path | None
    corpus: Corpus | None = None  #: the source to learn the person from; None for a twin that was learned before
    speaker: str = ""  #: the person's name in the corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonMeasurement:
    """Learns and measures the people of a suite."""

    suite: Suite
    models: SuiteModels
    logs: Mapping[str, ChatLog]  #: by the name of the corpus
    folder: Path  #: the folder `people` of the run
    progress: Progress = no_progress

    @property
    def window(self) -> int:
        """Turns of context of a pair."""
        return self.suite.window or CONTEXT_WINDOW

    @property
    def trace_settings(self) -> Settings:
        """The settings of a twin that shows traces in an experiment on traces."""
        return Settings(k=self.suite.k or Settings().k, window=self.window, traces="recon", reasons=False)

    def turns(self, number: int) -> list[MeasuredTurn]:
        """Return the measured turns of a person."""
        return read_turn_file(self.folder / f"{number}.jsonl")

    async def learn(self, person: Person, proposer: str, *, name: str | None = None) -> Path:
        """Learn a person's twin, unless that is done, and return its folder.

        With a name it is another twin of the person, which always has traces (by the model `proposer`).
        """
        suite, corpus = self.suite, person.corpus
        assert corpus is not None, f"{person.label}: this twin was learned before"
        embedder = self.models.embedder()
        recipe = Recipe(
            source=corpus.source, speaker=person.speaker, window=self.window, embedder=embedder.name, seed=suite.seed,
            method="recon" if name is not None or suite.shows_traces else "none", candidates=suite.traces.candidates,
            max_triples=corpus.max_triples, max_traces=suite.traces.pairs, proposal_mode=suite.traces.propose,
            fidelity=suite.traces.fidelity, model=proposer, scorer=suite.models.scorer, actor=proposer,
            judge=suite.models.judge or proposer,
        ).without_unused()  # fmt: skip
        twin = name or person.twin
        if not _is_learned(twin, person.home, recipe):
            await alearn(
                twin, self.logs[corpus.name], recipe, embedder=embedder, home=person.home, progress=self.progress,
                concurrency=suite.concurrency,
                model=self.models.chat(recipe.model) if recipe.model else None,
                scorer=self.models.scorer(recipe.scorer) if recipe.scorer else None,
                actor=self.models.chat(recipe.actor) if recipe.actor else None,
                judge=self.models.judge(recipe.judge) if recipe.judge else None,
            )  # fmt: skip
        folder = existing_twin(twin, person.home)
        await self._check_judge(folder)
        return folder

    async def _check_judge(self, folder: Path) -> None:
        """Check the judge whose ranks are a twin's fidelity, if there is one, and store the outcome once in the record."""
        record = TwinRecord.load(folder)
        recipe = record.recipe
        if not recipe.ranked_by_judge or recipe.judge is None or recipe.actor is None or stored_check(record) is not None:
            return
        with open_memory(folder, self.models.embedder()) as store:
            check = await check_twin_judge(
                folder, record, store, self.models.judge(recipe.judge), self.models.chat(recipe.actor),
                concurrency=self.suite.concurrency, progress=self.progress,
            )  # fmt: skip
        update_record(folder, lambda record: replace(record, judge_check=check))

    def open_twin(
        self, person: Person, name: str, settings: Settings | None, embedder: Embedder | None = None
    ) -> SimulatedUser:
        """Return a twin of a person, played by the action model; it must be closed."""
        model, embedder = self.models.chat(self.suite.models.action), embedder or self.models.embedder()
        return SimulatedUser.load(name, home=person.home, model=model, embedder=embedder, settings=settings)

    async def trained_store(self, person: Person, stack: ExitStack) -> TripleStore:
        """Return a memory of a person with traces of the trained synthesizer; the stack closes it."""
        folder = await self.learn(person, str(self.suite.models.trained), name=f"{person.twin}-trained")
        store = open_memory(folder, self.models.embedder())
        stack.callback(store.close)
        return store

    def _pool(self, person: Person, user: SimulatedUser, held_out: Sequence[Pair], stack: ExitStack) -> TripleStore | None:
        """Return a memory of everybody else's earlier pairs in the corpus, which the stack closes; None if no arm needs it."""
        if person.corpus is None or not set(POOLED_ARMS) & set(map(base_arm, self.suite.arms)):
            return None
        first = min(pair.when for pair in held_out)
        pairs = other_peoples_pairs(self.logs[person.corpus.name], user.record, first)
        folder = private_folder(self.folder.parent / "pools")
        pool = open_pool(pairs, user.store.embedder, folder / f"c{self.suite.corpora.index(person.corpus)}.npz")
        if pool is not None:
            stack.callback(pool.close)
        return pool

    async def _open_tuned(self, person: Person, folder: Path, scorer: Scorer) -> SimulatedUser:
        """A person's twin with its settings: the suite's, those in its record, or else tuned on validation turns.

        It uses the person's own words and the best of several replies if its arm with these is measured.
        """
        suite, record = self.suite, TwinRecord.load(folder)
        traced = suite.shows_traces if suite.twin is None else base_arm(suite.twin) == "recon"
        plain = Settings(traces="recon" if traced else "none", reasons=traced and suite.traces.reasons)
        embedder = self.models.embedder() if person.corpus else load_own_embedder(record, folder)
        settings = record.settings if person.corpus else record.settings or Settings()
        if settings is not None and not traced:  # no arm shows traces, so neither does the twin
            settings = replace(settings, traces="none", reasons=False)
        if suite.k is not None and suite.window is not None:
            settings = replace(plain, k=suite.k, window=suite.window)
        if settings is None:
            with self.open_twin(person, person.twin, None, embedder) as user:
                hosted = ModelName.parse(suite.models.action).is_hosted  # it is tuned by what it writes
                settings = await tune(user, None if hosted else scorer, folder=folder, seed=suite.seed, progress=self.progress)
            if traced:  # the twin's arm is then the one with Recon-selected traces
                settings = replace(settings, traces=plain.traces, reasons=plain.reasons)
            update_record(folder, lambda record: replace(record, settings=settings))
        forms = [arm for arm in suite.arms if base_arm(arm) == ("recon" if traced else "recalled_pairs")]
        arm = suite.twin or max(forms, key=len, default="")  # the twin's arm must be measured
        if suite.twin is not None:  # also one that was learned before shows the traces of its declared arm
            shown = ("recon" if settings.traces == "none" else settings.traces) if traced else "none"
            settings = replace(settings, traces=shown, reasons=settings.reasons and traced)
        words = (settings.words or DEFAULT_WEIGHTS) if uses_words(arm) else None
        rule = (settings.reranking or DEFAULT_RERANKING) if is_reranked(arm) else None
        return self.open_twin(person, person.twin, replace(settings, words=words, reranking=rule), embedder)

    async def measure(self, person: Person, number: int) -> dict[str, Any]:
        """Measure a person's turns, or resume that, and return the other facts about the person as a JSON object."""
        suite = self.suite
        done = self.folder / f"{number}.json"
        if done.exists():
            return read_facts(done)
        folder = existing_twin(person.twin, person.home)
        scorer = self.models.scorer(suite.models.scorer)
        with ExitStack() as stack:
            twin = stack.enter_context(await self._open_tuned(person, folder, scorer))
            adapted = adapted_scorer(twin, suite.models.scorer, suite.models.precision)
            user, with_adapter = split_adapter(twin, adapted)
            if not any(map(is_adapted, suite.arms)):
                twin = user  # its adapter is not measured
            held_out, _ = held_out_pairs(user, folder)
            known = [triple.pair for triple in user.store.triples()]
            check_split(user.record, known, held_out, by_time=person.corpus is not None)
            fresh = without_near_duplicates(person.label, held_out, known)
            spoken = [pair for pair in fresh if not pair.abandoned]
            embedder = user.store.embedder
            other = other_person_store(user, folder, embedder, stack)
            shown = "trained" in map(base_arm, suite.arms) and suite.models.trained is not None and person.corpus is not None
            trained = await self.trained_store(person, stack) if shown else None
            pool = self._pool(person, user, held_out, stack)
            written = await write_persona(user, seed=suite.seed) if "openevals_written" in map(base_arm, suite.arms) else None
            arms = Arms(
                user=user, names=arm_names(suite.arms), other=other, trained=trained, pool=pool, written=written,
                simulators=self.models.simulators(), words=own_words(user, scorer, arm_names(suite.arms)),
                adapted=with_adapter, seed=suite.seed,
            )  # fmt: skip
            config = ReplayConfig(
                arms=suite.arms, limit=suite.turns or None, generate=suite.replies, samples=suite.samples,
                choices=suite.choices, concurrency=suite.concurrency, seed=suite.seed, reply_arms=suite.reply_arms,
            )  # fmt: skip
            outside = None if suite.models.outside is None else self.models.scorer(suite.models.outside)
            replay = Replay(
                user=user, scorer=scorer, embedder=embedder, arms=arms, config=config, person=person.label, outside=outside,
                given=given_distractors(user, folder),
            )  # fmt: skip
            await replay.run(evenly_spaced(spoken, config.limit), path=self.folder / f"{number}.jsonl", progress=self.progress)
            drift_turns = await drift(
                twin, embedder, fresh, person.label, max_conversations=suite.drift, seed=suite.seed, progress=self.progress
            ) if suite.drift else []  # fmt: skip
            max_turns = min(suite.turns or _MAX_MEMORIZATION_TURNS, _MAX_MEMORIZATION_TURNS)
            memorized = await to_thread(measure_memorization, scorer, spoken, max_turns=max_turns)
            facts = {
                "twin_arm": twin_arm(twin), "triples": len(user.store), "k": user.k, "window": user.settings.window,
                "embedder": embedder.name,
                "pooled": 0 if pool is None else len(pool), "written_persona": written and written.description,
                "leakage": {
                    "near_duplicates": len(held_out) - len(fresh), "of": len(held_out), "memorized": memorized,
                    "checked": _CHECKS,
                },
                "endings": measure_endings(user, folder, fresh), "judge_check": stored_check(user.record),
                "drift": [asdict(turn) for turn in drift_turns],
            }  # fmt: skip
        write_atomically(done, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        return upgrade(facts)


def _is_learned(name: str, home: Path | None, recipe: Recipe) -> bool:
    try:
        record = TwinRecord.load(existing_twin(name, home))
    except TwinError:
        return False
    return (record.state, record.recipe) == ("complete", recipe)
