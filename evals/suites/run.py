"""Running a suite: learn, measure, judge, reckon, report; each step kept in the run's folder before the next.

The one design choice: a run that is stopped at any moment is finished by the same command, which asks nothing twice; only a
finished run has a report, so that no half of one is taken for the whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from usertwin.evals.judges.model_judge import judge_pairs, judged, questions_of
from usertwin.evals.metrics.closeness import closeness
from usertwin.evals.records.measured_turns import MANIFEST, RESULT, RUN_FORMAT, VERDICTS, MeasuredTurn, read_manifest, turns_of
from usertwin.evals.records.run_folder import NOTES, PAGE, exclusive_run, write_atomically
from usertwin.evals.replay.arms import PEERS
from usertwin.evals.replay.drift import Drifted, drift_result
from usertwin.evals.replay.peers import peer_versions
from usertwin.evals.reports.summary import summary_of
from usertwin.evals.reports.write_reports import write_reports
from usertwin.memory import TwinRecord, existing_twin
from usertwin.memory.atomic_files import digest, digest_of
from usertwin.memory.models.answer_cache import COMPLETIONS_FILE, CompletionCache
from usertwin.memory.progress import Progress, no_progress
from usertwin.personas import ChatLog, UsageError
from usertwin.simulator.prompts import prompt_versions

from .config import Suite, logs_of, people_of
from .measure_person import CONTEXT_WINDOW, Person, PersonMeasurement
from .models import SuiteModels
from .transfer import transfer_result
from .user_model_experiment import check_user_models, run_user_models, user_models_plan

_VERSIONED = ("usertwin", "torch", "transformers", "faiss-cpu", "sentence-transformers", "scikit-learn", "scipy", "sacrebleu")
#: Fewer people than this, and an interval over people says little.
_FEW_PEOPLE = 5


class SuiteRun:
    """A suite in its folder.

    Args:
        suite: what is measured.
        folder: of the run; made if missing. UsageError if it holds another suite's run, or one of another version.
        text: the suite as it was written, for the report.
        home: where the suite's named twins live.
        fetch: is told how far a download is.
        progress: is told how far things are.
        models: the suite's, if some are there already; the others are loaded.
    """

    def __init__(
        self,
        suite: Suite,
        folder: Path,
        *,
        text: str = "",
        home: Path | None = None,
        fetch: Any = None,
        progress: Progress = no_progress,
        models: SuiteModels | None = None,
    ) -> None:
        self.suite, self.folder, self.text, self._home, self._progress = suite, folder, text, home, progress
        self._models = models or SuiteModels(suite, fetch)
        self._started = datetime.now(UTC).isoformat(timespec="seconds")

    def people(self, logs: Mapping[str, ChatLog]) -> list[Person]:
        """Everybody the suite measures. LogError or TwinError if somebody is not there, before anything long begins."""
        found = [Person(f"{name}/{TwinRecord.load(existing_twin(name, self._home)).recipe.speaker}", name, self._home)
                 for name in self.suite.twins]  # fmt: skip
        for corpus in self.suite.corpora:
            for speaker in people_of(corpus, logs[corpus.name], self.suite.window or CONTEXT_WINDOW):
                twin = f"p{len(found):02d}"
                found.append(Person(f"{corpus.name}/{speaker}", twin, self.folder / "twins", corpus, speaker))
        twice = [label for label, times in Counter(person.label for person in found).items() if times > 1]
        if twice:
            raise UsageError(f'"{twice[0]}" would be measured twice; name everybody once, and no corpus like a twin')
        return found

    def check(self) -> None:
        """UsageError or ModelError if a model cannot be had, as far as that is known before one is loaded."""
        self._models.check()
        check_user_models(self.suite)

    async def run(self) -> dict[str, Any]:
        """Do what is not yet done, and return every figure.

        Raises:
            UsertwinError: whatever is wrong, in one sentence; what was done is kept.
        """
        logs = logs_of(self.suite)
        people = self.people(logs)
        self.check()
        with exclusive_run(self.folder):
            self._begin(people)
            answers = CompletionCache(self.folder / COMPLETIONS_FILE)
            self._models = replace(self._models, answers=answers)
            try:
                return await self._measured(logs, people)
            finally:
                answers.close()

    async def _measured(self, logs: Mapping[str, ChatLog], people: Sequence[Person]) -> dict[str, Any]:
        measurer = PersonMeasurement(self.suite, self._models, logs, self.folder / "people", self._progress)
        turns: list[MeasuredTurn] = []
        facts: dict[str, dict[str, Any]] = {}
        for number, person in enumerate(people):
            self._progress("people", number, len(people))
            if person.corpus is not None:
                await measurer.learn(person, self.suite.models.proposer)
            facts[person.label] = await measurer.measure(person, number)
            turns += turns_of(measurer.records(number))
        self._progress("people", len(people), len(people))
        twins = {fact["twin_arm"] for fact in facts.values()}
        twin = twins.pop() if len(twins) == 1 else "recalled_pairs"
        result = closeness(turns, twin, seed=self.suite.seed) | await self._besides(measurer, people, facts, turns, twin)
        result["warnings"] = _warnings(result, mixed=bool(twins))
        result["summary"] = summary_of(result)
        self._finish(result, turns)
        return result

    # The folder --------------------------------------------------------------------------------------------------------

    def _begin(self, people: Sequence[Person]) -> None:
        """Write the manifest, or see that it is the same suite's."""
        wanted = self.suite.model_dump(mode="json")
        sources = {c.name: digest(Path(c.source)) for c in self.suite.corpora if Path(c.source).is_file()}
        twins = {name: self._learned(name) for name in self.suite.twins}
        if (self.folder / MANIFEST).exists():
            known = read_manifest(self.folder)
            other = [key for key in wanted if known.get("suite", {}).get(key) != wanted[key]]
            if other:
                told = ", ".join(f'"{key}"' for key in other)
                raise UsageError(
                    f"{self.folder}: holds a run of another suite (what differs: {told}); name another folder with --out"
                )
            for corpus in self.suite.corpora:
                if known.get("sources", {}).get(corpus.name) != sources.get(corpus.name):
                    raise UsageError(
                        f"{corpus.source}: is not what it was when the run in {self.folder} was begun; put back the file of "
                        "then, or name another folder with --out"
                    )
            for name, when in twins.items():
                if known.get("twins", {}).get(name, when) != when:
                    raise UsageError(
                        f'the twin "{name}" is not what it was when the run in {self.folder} was begun; name another folder '
                        "with --out"
                    )
            self._started = known.get("started_at", self._started)
            for name in (PAGE, NOTES, RESULT):  # what is written now is of a run that goes on
                (self.folder / name).unlink(missing_ok=True)
        try:
            (self.folder / "people").mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot be made ({error.strerror}); name another folder with --out") from None
        self._write_manifest("interrupted", wanted, sources, twins, people)

    def _learned(self, name: str) -> str:
        """What tells a twin from what it was, or will be, before it was learned, or told how to use its memory, again."""
        record = TwinRecord.load(existing_twin(name, self._home))
        told = [record.learned_at, asdict(record.recipe), asdict(record.settings) if record.settings else None]
        return digest_of(json.dumps(told, sort_keys=True, default=str).encode())

    def _write_manifest(
        self, state: str, suite: Any, sources: Mapping[str, str], twins: Mapping[str, str], people: Sequence[Person]
    ) -> None:
        manifest = {
            "format": RUN_FORMAT,
            "kind": "closeness",
            "name": self.suite.name,
            "state": state,
            "started_at": self._started,
            "suite": suite,
            "sources": dict(sources),
            "twins": dict(twins),
            "people": [person.label for person in people],
            "prompts": prompt_versions("transcript") | prompt_versions("instruction") | peer_versions(),
            "versions": _versions(),
        }
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")

    def _finish(self, result: Mapping[str, Any], turns: Sequence[MeasuredTurn]) -> None:
        """Write the figures and the report, and only then call the run complete."""
        write_atomically(self.folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        write_reports(self.folder, result, turns)
        manifest = read_manifest(self.folder) | {"state": "complete"}
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")

    # All of them -------------------------------------------------------------------------------------------------------

    async def _besides(
        self,
        measurer: PersonMeasurement,
        people: Sequence[Person],
        facts: Mapping[str, dict[str, Any]],
        turns: Sequence[MeasuredTurn],
        twin: str,
    ) -> dict[str, Any]:
        """What a result holds beside the measures of the arms."""
        suite = self.suite
        drifted = [Drifted(**one) for fact in facts.values() for one in fact["drift"]]
        return {
            "format": RUN_FORMAT,
            "name": suite.name,
            "judge": await self._judge(turns, twin),
            "leakage": {person: fact["leakage"] for person, fact in facts.items()},
            "endings": {person: fact["endings"] for person, fact in facts.items() if fact["endings"]},
            "drift": drift_result(drifted, seed=suite.seed),
            "transfer": await self._transfer(measurer, people),
            "settling": await run_user_models(suite, measurer, people, self.folder, self._progress),
            "models": suite.models.model_dump(mode="json") | {"embedder": self._embedders(facts)},
            "settings": {
                "arms": list(suite.arms), "turns": suite.turns, "replies": suite.replies, "samples": suite.samples,
                "choices": suite.choices, "k": _of_each(facts, "k"), "window": _of_each(facts, "window"),
                "traces": suite.traces.model_dump(mode="json") if suite.traced else None,
                "triples": {person: fact["triples"] for person, fact in facts.items()},
            },
            "versions": _versions(),
            "prompts": read_manifest(self.folder)["prompts"],
            "suite_text": self.text,
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip

    def _embedders(self, facts: Mapping[str, dict[str, Any]]) -> str:
        """The names of what the memories were searched with, which a twin that was learned before brings along."""
        names = [fact.get("embedder") or self._models.embedder().name for fact in facts.values()]
        return ", ".join(dict.fromkeys(names))

    async def _judge(self, turns: Sequence[MeasuredTurn], twin: str) -> dict[str, Any] | None:
        """What a judge says of the twin's replies and each other arm's; None without a judge, or without replies."""
        suite = self.suite
        written = [arm for arm in suite.arms if any(arm in turn.replies for turn in turns)]
        if suite.models.judge is None or twin not in written:
            return None
        contrasts = [(twin, arm) for arm in written if arm != twin]
        questions = questions_of(turns, contrasts, samples=suite.samples, sanity=suite.sanity, seed=suite.seed)
        verdicts = await judge_pairs(
            self._models.judge(suite.models.judge), questions, path=self.folder / VERDICTS, seed=suite.seed,
            concurrency=suite.concurrency, progress=self._progress,
        )  # fmt: skip
        return judged(verdicts, suite.seed)

    async def _transfer(self, measurer: PersonMeasurement, people: Sequence[Person]) -> list[dict[str, Any]]:
        """Traces of each proposer under each scorer, beside the same moments without."""
        wanted = self.suite.transfer
        if wanted is None:
            return []
        found: dict[tuple[str, str], list[MeasuredTurn]] = {}
        for number, person in enumerate(people):
            if person.corpus is None:
                continue
            for place, proposer in enumerate(wanted.proposers):
                name = f"{person.twin}-by{place}"
                folder = await measurer.learn(person, proposer, name=name)
                for other, scorer in enumerate(wanted.scorers):
                    keep = self.folder / "people" / f"transfer-{number}-{place}-{other}.part"
                    turns = await measurer.transfer_turns(person, name, folder, scorer, wanted.turns, keep)
                    found.setdefault((proposer, scorer), []).extend(turns)
        return transfer_result(found, seed=self.suite.seed)


def _of_each(facts: Mapping[str, dict[str, Any]], name: str) -> Any:
    """One value if it is the same for everybody, else one for each."""
    values = {person: fact[name] for person, fact in facts.items()}
    return next(iter(values.values())) if len(set(values.values())) == 1 else values


def _versions() -> dict[str, str]:
    return {package: version(package) for package in _VERSIONED}


def _warnings(result: Mapping[str, Any], *, mixed: bool) -> list[str]:
    """What a reader has to know before the figures."""
    found: list[str] = list((result["judge"] or {}).get("warnings", []))
    if mixed:
        found.append("some of these twins are shown traces and others not; as the twin counts what all of them recall, without")
    people = len(result["people"])
    if people < _FEW_PEOPLE:
        found.append(
            f"{people} {'person' if people == 1 else 'people'}: the intervals tell how sure this is of "
            f"{'this person' if people == 1 else 'these people'}, not of others"
        )
    for person, leak in result["leakage"].items():
        heart = leak["known_by_heart"]
        if heart and heart.get("value"):
            found.append(f"the scoring model knows {heart['value']:.0%} of {heart['n']} long turns of {person} by heart")
    return found


def plan_of(suite: Suite, logs: Mapping[str, ChatLog], people: Iterable[Person]) -> list[str]:
    """What a suite will take, a sentence each; nothing is loaded for it."""
    count = sum(1 for _ in people)
    arms, replies = len(suite.arms), suite.replies * suite.samples
    said = [f"{count} people of {len(logs)} corpora and {len(suite.twins)} twins, {arms} arms"]
    said.append(
        f"about {count * suite.turns * arms:,} turns scored under {suite.models.scorer}"
        if suite.turns
        else f"every held-out turn of {count} people scored {arms} times under {suite.models.scorer}"
    )
    said.append(f"{count * replies * arms:,} replies written by {suite.models.action}")
    if suite.traced:
        traced = count * suite.traces.moments
        said.append(f"traces for {traced:,} moments, {traced * suite.traces.candidates:,} texts of {suite.models.proposer}")
    if suite.models.judge is not None:
        pairs = count * (suite.replies * suite.samples * max(0, arms - 1)) + 4 * suite.sanity
        said.append(f"about {2 * pairs:,} verdicts of {suite.models.judge}")
    if suite.settling is not None:
        said += user_models_plan(suite, count - len(suite.twins))
    peers = [arm for arm in suite.arms if arm in PEERS]
    if peers:
        said.append(f"peers: {', '.join(peers)}")
    return said
