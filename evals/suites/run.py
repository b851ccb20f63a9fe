"""A run of a suite: learn, measure, judge, compute the figures, write the report; each step is stored in the run's folder.

Design: the command that started a run also resumes it, and repeats no completion. Only a finished run has a report, so a
partial one cannot be taken for the whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from usertwin.evals.arm_names import PEERS, arm_names, base_arm, is_reranked
from usertwin.evals.judges.likelihood_judge import likelihood_wins
from usertwin.evals.judges.model_judge import build_questions, judge_pairs, summarize_verdicts
from usertwin.evals.metrics.closeness import closeness
from usertwin.evals.metrics.spread import spread
from usertwin.evals.records.measured_turns import MANIFEST, RESULT, RUN_FORMAT, VERDICTS, MeasuredTurn, read_manifest
from usertwin.evals.records.result_shapes import DriftTurn
from usertwin.evals.records.run_folder import HTML_REPORT, MARKDOWN_REPORT, write_atomically
from usertwin.evals.replay.drift import drift_result, length_result
from usertwin.evals.replay.peers import peer_versions
from usertwin.evals.reports.labels import few_people_warnings, plural
from usertwin.evals.reports.summary import model_warnings, summary_of
from usertwin.evals.reports.write_reports import write_reports
from usertwin.memory import TwinRecord, existing_twin
from usertwin.memory.atomic_files import checksum, file_checksum
from usertwin.memory.models.completion_cache import COMPLETIONS_FILE, CompletionCache
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.run_lock import exclusive_run
from usertwin.memory.twin.consent import check_consent
from usertwin.memory.twin.reranking import DEFAULT_RERANKING
from usertwin.personas import ChatLog, UsageError
from usertwin.personas.files import private_folder
from usertwin.simulator.prompts import prompt_versions

from .config import Suite, logs_of, people_of
from .measure_person import CONTEXT_WINDOW, Person, PersonMeasurement
from .models import SuiteModels
from .people import looks_at, never_tuned, registered_test_people
from .transfer import run_transfer
from .user_model_experiment import check_user_models, run_user_models, user_models_estimate

_PACKAGES = ("usertwin", "torch", "transformers", "faiss-cpu", "sentence-transformers", "scikit-learn", "scipy", "sacrebleu")


class SuiteRun:
    """A run of a suite in a folder.

    Args:
        folder: made if missing. UsageError if it holds a run of another suite or format.
        text: the text of the suite file, for the report.
        home: the home of the twins that the suite names.
        fetch: receives the progress of downloads.
        models: the suite's models, some of them loaded; by default all are loaded at first use.
    """

    def __init__(
        self, suite: Suite, folder: Path, *, text: str = "", home: Path | None = None, fetch: Any = None,
        progress: Progress = no_progress, models: SuiteModels | None = None,
    ) -> None:  # fmt: skip
        self.suite, self.folder, self.text, self._home, self._progress = suite, folder, text, home, progress
        self._models = models or SuiteModels(suite, fetch)

    def people(self, logs: Mapping[str, ChatLog]) -> list[Person]:
        """Return all people of the suite. LogError or TwinError if one is missing; UsageError for a repeated label.

        UsageError also for a twin from somebody else whose memory needs a model that the user has not allowed.
        """
        people: list[Person] = []
        for name in self.suite.twins:
            recipe = (record := TwinRecord.load(folder := existing_twin(name, self._home))).recipe
            check_consent(record, recipe.embedder, folder=folder)
            people.append(Person(label=f"{name}/{recipe.speaker}", twin=name, home=self._home))
        for corpus in self.suite.corpora:
            for speaker in people_of(corpus, logs[corpus.name], self.suite.window or CONTEXT_WINDOW):
                label, twin, home = f"{corpus.name}/{speaker}", f"p{len(people):02d}", self.folder / "twins"
                people.append(Person(label=label, twin=twin, home=home, corpus=corpus, speaker=speaker))
        repeated = [label for label, count in Counter(person.label for person in people).items() if count > 1]
        if repeated:
            raise UsageError(f'"{repeated[0]}" would be measured twice; name each person once, and no corpus like a twin')
        self._check_test_people(people, logs)
        return people

    def test_people(self, people: Sequence[Person], logs: Mapping[str, ChatLog]) -> dict[str, tuple[str, ...]]:
        """Return the registered test people of the suite by their registered corpus."""
        sources: list[tuple[str, str]] = []
        for person in people:
            if person.corpus is None:
                recipe = TwinRecord.load(existing_twin(person.twin, person.home)).recipe
                sources.append((recipe.source, recipe.speaker))
            else:
                sources.append((person.corpus.source, person.speaker))
        return registered_test_people(sources, {corpus.source: logs[corpus.name] for corpus in self.suite.corpora})

    def _check_test_people(self, people: Sequence[Person], logs: Mapping[str, ChatLog]) -> None:
        """Raise UsageError if settings would be tuned on registered test people."""
        chosen = self.test_people([person for person in people if person.corpus is not None], logs)
        if self.suite.k is None and chosen:
            corpus, names = next(iter(chosen.items()))
            raise UsageError(
                f"{never_tuned(corpus, names[0])}; set k and window in the suite, to values that were tuned on development "
                'people (people = "development")'
            )

    def check(self) -> None:
        """Raise UsageError or ModelError if a model is not available, as far as that is known without loading it."""
        self._models.check()
        check_user_models(self.suite)

    async def run(self) -> dict[str, Any]:
        """Do the missing steps, and return every figure. UsertwinError if a step failed; finished steps are kept."""
        logs = logs_of(self.suite)
        people = self.people(logs)
        self.check()
        with exclusive_run(self.folder):
            self._begin(people, self.test_people(people, logs))
            with closing(CompletionCache(self.folder / COMPLETIONS_FILE)) as cache:
                self._models = replace(self._models, cache=cache)
                return await self._measure(logs, people)

    async def _measure(self, logs: Mapping[str, ChatLog], people: Sequence[Person]) -> dict[str, Any]:
        measurement = PersonMeasurement(
            suite=self.suite, models=self._models, logs=logs, folder=self.folder / "people", progress=self._progress
        )
        turns: list[MeasuredTurn] = []
        facts: dict[str, dict[str, Any]] = {}
        for number, person in enumerate(people):
            self._progress("people", number, len(people))
            if person.corpus is not None:
                await measurement.learn(person, self.suite.models.proposer)
            facts[person.label] = await measurement.measure(person, number)
            turns += measurement.turns(number)
        self._progress("people", len(people), len(people))
        arms = {fact["twin_arm"] for fact in facts.values()}
        twin = arms.pop() if len(arms) == 1 else "recalled_pairs"
        result = closeness(turns, twin, seed=self.suite.seed, question=self.suite.question)
        result |= await self._extra_results(measurement, people, facts, turns, twin)
        declared = any(corpus.people == "test" for corpus in self.suite.corpora)
        result["warnings"] = _warnings(result, mixed=bool(arms), declared=declared) + [
            f"{plural(len(log.damaged), 'damaged turn')} of {name} left out" for name, log in logs.items() if log.damaged
        ]
        result["warnings"] += [
            f"{person}: {check['sentence']}"
            for person, fact in facts.items()
            if (check := fact.get("judge_check")) and check["outcome"] == "failed"
        ]
        result["summary"] = summary_of(result)
        self._write_json(RESULT, result)
        write_reports(self.folder, result, turns)
        self._write_json(MANIFEST, read_manifest(self.folder) | {"state": "complete"})
        return result

    def _begin(self, people: Sequence[Person], test_people: Mapping[str, tuple[str, ...]]) -> None:
        """Write the manifest of a new run; check that the manifest of an old one is of the same suite, logs and twins."""
        sources = {c.name: file_checksum(Path(c.source)) for c in self.suite.corpora if Path(c.source).is_file()}
        twins = {name: self._fingerprint(name) for name in self.suite.twins}
        inputs = {"suite": self.suite.model_dump(mode="json"), "sources": sources, "twins": twins}
        started = datetime.now(UTC).isoformat(timespec="seconds")
        looks = [asdict(look) for look in looks_at(test_people, self.suite.reason or f'the suite "{self.suite.name}"')]
        if (self.folder / MANIFEST).exists():
            manifest = read_manifest(self.folder)
            self._check_same(manifest, inputs)
            started, looks = manifest.get("started_at", started), manifest.get("looks", looks)
            for name in (HTML_REPORT, MARKDOWN_REPORT, RESULT):  # they were of the finished run, and this one is not
                (self.folder / name).unlink(missing_ok=True)
        try:
            private_folder(self.folder / "people")
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot be made ({error.strerror}); name another folder with --out") from None
        self._write_json(MANIFEST, {
            "format": RUN_FORMAT, "kind": "closeness", "name": self.suite.name, "state": "interrupted", "started_at": started,
            **inputs, "people": [person.label for person in people], "looks": looks,
            "prompts": _prompts(),
            "versions": {package: version(package) for package in _PACKAGES},
        })  # fmt: skip

    def _check_same(self, manifest: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise UsageError if the folder's run is of another suite, or a log or twin has changed since."""
        known: dict[str, Any] = manifest.get("suite", {})
        with suppress(ValueError):  # pydantic's ValidationError: it is of a version whose keys cannot be mapped to present ones
            known = Suite.model_validate({"user_models": known.pop("settling", None), **known}).model_dump(mode="json")
        differing = ", ".join(f'"{key}"' for key, value in inputs["suite"].items() if known.get(key) != value)
        if differing:
            raise UsageError(
                f"{self.folder}: holds a run of another suite (different keys: {differing}); name another folder with --out"
            )
        prompts = manifest.get("prompts")
        if prompts is not None and prompts != _prompts():
            raise UsageError(f"{self.folder}: holds a run of a version with other prompts; name another folder with --out")
        since = f"has changed since the run in {self.folder} started"
        for corpus in self.suite.corpora:
            if manifest.get("sources", {}).get(corpus.name) != inputs["sources"].get(corpus.name):
                raise UsageError(f"{corpus.source}: {since}; restore the file, or name another folder with --out")
        for name, fingerprint in inputs["twins"].items():
            if manifest.get("twins", {}).get(name, fingerprint) != fingerprint:
                raise UsageError(f'the twin "{name}" {since}; name another folder with --out')

    def _fingerprint(self, name: str) -> str:
        """Return a checksum that changes when a twin is learned or tuned again."""
        record = TwinRecord.load(existing_twin(name, self._home))
        settings = asdict(record.settings) if record.settings else None
        if settings and settings["reranking"] is None:  # as in runs of earlier versions, whose twins had no such key
            del settings["reranking"]
        parts = [record.learned_at, asdict(record.recipe), settings]
        return checksum(json.dumps(parts, sort_keys=True, default=str).encode())

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        write_atomically(self.folder / name, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    async def _extra_results(
        self, measurement: PersonMeasurement, people: Sequence[Person], facts: Mapping[str, dict[str, Any]],
        turns: Sequence[MeasuredTurn], twin: str,
    ) -> dict[str, Any]:  # fmt: skip
        """Return the parts of a result other than the measures of the arms."""
        suite = self.suite
        drift_turns = [DriftTurn(**row) for fact in facts.values() for row in fact["drift"]]  # checked by `read_facts`
        manifest = read_manifest(self.folder)
        embedders = [fact.get("embedder") or self._models.embedder().name for fact in facts.values()]
        return {
            "format": RUN_FORMAT, "name": suite.name,
            "judge": await self._judge(turns, twin),
            "likelihood_judge": likelihood_wins(turns, twin, model=suite.models.outside or "", seed=suite.seed),
            "spread": spread(turns),
            "leakage": {person: fact["leakage"] for person, fact in facts.items()},
            "endings": {person: fact["endings"] for person, fact in facts.items() if fact["endings"]},
            "drift": drift_result(drift_turns), "drift_lengths": length_result(drift_turns),
            "transfer": await run_transfer(measurement, people),
            "user_models": await run_user_models(measurement, people),
            "models": suite.models.model_dump(mode="json") | {"embedder": ", ".join(dict.fromkeys(embedders))},
            "settings": {
                "arms": list(suite.arms), "turns": suite.turns, "replies": suite.replies, "samples": suite.samples,
                "reply_arms": None if suite.reply_arms is None else list(suite.reply_arms),
                "choices": suite.choices, "k": _common_value(facts, "k"), "window": _common_value(facts, "window"),
                "traces": suite.traces.model_dump(mode="json") if suite.shows_traces else None,
                "triples": {person: fact["triples"] for person, fact in facts.items()},
            },
            **{key: manifest[key] for key in ("versions", "prompts", "looks")}, "suite_text": self.text,
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip

    async def _judge(self, turns: Sequence[MeasuredTurn], twin: str) -> dict[str, Any] | None:
        """Return the judge's comparison of the twin's replies with each other arm's; None without a judge or replies."""
        suite = self.suite
        written = [arm for arm in arm_names(suite.arms) if any(arm in turn.replies for turn in turns)]
        if suite.models.judge is None or twin not in written:
            return None
        contrasts = [(twin, arm) for arm in written if arm != twin]
        questions = build_questions(turns, contrasts, samples=suite.samples, sanity=suite.sanity, seed=suite.seed)
        verdicts = await judge_pairs(
            self._models.judge(suite.models.judge), questions, path=self.folder / VERDICTS, seed=suite.seed,
            concurrency=suite.concurrency, progress=self._progress,
        )  # fmt: skip
        return summarize_verdicts(verdicts, suite.seed)


def _common_value(facts: Mapping[str, dict[str, Any]], name: str) -> Any:
    """Return the value of a fact if all people share it, else the values by person."""
    values = {person: fact[name] for person, fact in facts.items()}
    return next(iter(values.values())) if len(set(values.values())) == 1 else values


def _warnings(result: Mapping[str, Any], *, mixed: bool, declared: bool) -> list[str]:
    """Return what a reader must know before the figures; `declared` says whether the suite asks for test people."""
    judges = [result["judge"] or {}, result["likelihood_judge"] or {}]
    warnings = [*model_warnings(result), *chain.from_iterable(judge.get("warnings", ()) for judge in judges)]
    for look in () if declared else result["looks"]:
        warnings.append(
            f"{plural(len(look['people']), 'registered test person', 'registered test people')} of {look['corpus']} measured "
            f'without people = "test": {", ".join(look["people"])}'
        )
    if mixed:
        warnings.append('some of these twins show traces and some do not; the arm "recalled_pairs" stands for the twin')
    warnings += few_people_warnings(result)
    for person, leak in result["leakage"].items():
        memorized = leak["memorized"]
        if memorized and memorized.get("value"):
            share = f"{memorized['value']:.0%} of {memorized['n']} long turns of {person}"
            warnings.append(f"the scoring model has memorized {share}")
    return warnings


def _prompts() -> dict[str, str]:
    """Return the versions of all prompts."""
    return prompt_versions("transcript") | prompt_versions("instruction") | peer_versions()


def work_estimate(suite: Suite, logs: Mapping[str, ChatLog], people: Sequence[Person]) -> list[str]:
    """Return the work of a suite in sentences; nothing is loaded."""
    count, arms, replies = len(people), len(suite.arms), suite.replies * suite.samples
    writers = arm_names(suite.arms) if suite.reply_arms is None else suite.reply_arms
    writing, written = len(writers), sum(DEFAULT_RERANKING.samples if is_reranked(arm) else 1 for arm in writers)
    some_turns = f"about {count * suite.turns * arms:,} turns scored"
    every_turn = f"every held-out turn of {count} people scored {arms} times"
    lines = [
        f"{count} people of {len(logs)} corpora and {len(suite.twins)} twins, {arms} arms",
        f"{some_turns if suite.turns else every_turn} under {suite.models.scorer}",
        f"{count * replies * written:,} replies written by {suite.models.action}",
    ]
    if suite.shows_traces:
        pairs = count * suite.traces.pairs
        lines.append(f"traces for {pairs:,} pairs, {pairs * suite.traces.candidates:,} completions of {suite.models.proposer}")
    if suite.models.judge is not None:
        questions = count * replies * max(0, writing - 1) + 4 * suite.sanity
        lines.append(f"about {2 * questions:,} verdicts of {suite.models.judge}")
    if suite.models.outside is not None:
        scored = 2 * count * suite.replies * (writing + 1)
        lines.append(f"about {scored:,} replies and turns scored under {suite.models.outside}")
    lines += user_models_estimate(suite, count - len(suite.twins))
    if peers := [arm for arm in suite.arms if base_arm(arm) in PEERS]:
        lines.append(f"peers: {', '.join(peers)}")
    return lines
