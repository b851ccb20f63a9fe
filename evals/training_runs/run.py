"""One run of `usertwin train`: lessons, proposals of the base, each method in turn, measured on held-out people, reported.

The one design choice: every step looks first at what is in the run's folder already, so that the same command goes on wherever
it was stopped; the untrained base's traces are written once and compared with those of every method.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from usertwin.evals.records.measured_turns import MANIFEST, RESULT
from usertwin.evals.records.run_folder import exclusive_run, write_atomically
from usertwin.evals.records.training_run import TRAINING_FORMAT, read_training
from usertwin.evals.reports.training_report import training_pages
from usertwin.evals.traces.synthesizer_quality import compared, contrasting_examples, measure_all, of_each, write_held_out
from usertwin.memory import ChatModel, Embedder, Scorer
from usertwin.memory.atomic_files import digest
from usertwin.memory.models.scoring import Precision
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import Fidelity
from usertwin.memory.recon.guards import rejection_reason
from usertwin.memory.recon.judged_fidelity import fidelity_by_name
from usertwin.memory.recon.propose import proposal_template
from usertwin.memory.training.audit import Auditor
from usertwin.memory.training.candidate_pool import ScoredCandidates, sample_candidates
from usertwin.memory.training.checkpoints import ADAPTER, check_room
from usertwin.memory.training.config import TrainingConfig, TrainingResult, TrainMethod
from usertwin.memory.training.dataset import DatasetSplit, SplitConfig, TrainingExample, build_dataset, with_later
from usertwin.memory.training.downstream_reward import DownstreamReward
from usertwin.memory.training.model_card import CardFacts, write_card
from usertwin.memory.training.policy import check_chat_template, empty_base, load_base
from usertwin.memory.training.train import train
from usertwin.personas import ChatLog, Pair, UsageError, load_log
from usertwin.simulator import load_embedder, load_model, load_scorer
from usertwin.simulator.backends.model_name import split_adapter
from usertwin.simulator.backends.weights import check_weighted, weights_folder

POOL, BASE_TRACES, TRACES, OUTCOME = "pool.jsonl", "base_traces.jsonl", "traces.jsonl", "outcome.json"
_VERSIONED = ("usertwin", "torch", "transformers", "trl", "peft", "datasets")


@dataclass(frozen=True)
class TrainingPlan:
    """What is to be trained.

    Attributes:
        plan: how; its method is replaced by each of the methods.
        methods: which, each from the untrained base.
        sources: the logs.
        enrolment: who of them.
        scorer: in the reward and in the audit.
        scorer_precision: of its weights and sums, and of those of the one that measures.
        measured_by: the scorer that measures at the end, which is best one that was in no reward.
        samples: traces of each pair that it measures, of the base and of each method.
        actor: reconstructs actions for a judge.
        judge: who judges, where the fidelity needs that.
        embedder: finds distractors and tells whether a trace says the same as the action.
    """

    config: TrainingConfig
    methods: tuple[TrainMethod, ...]
    sources: tuple[str, ...]
    split: SplitConfig = field(default_factory=SplitConfig)
    scorer: str = "local"
    scorer_precision: Precision = "float32"
    measured_by: str | None = None
    samples: int = 4
    actor: str | None = None
    judge: str | None = None
    embedder: str | None = None

    def check(self) -> None:
        """UsageError if two choices do not go together, or a number makes no sense."""
        for method in self.methods:
            replace(self.config, method=method).check()
        if split_adapter(self.config.base)[1] is not None:
            raise UsageError(
                f'the base "{self.config.base}" has an adapter, and an adapter is trained on a model as it is; name it alone'
            )
        check_weighted(self.config.base)
        if self.samples < 1:
            raise UsageError(f"{self.samples} traces of each pair to measure: at least one")
        if self.config.proposal_mode == "forward" and self.config.fidelity == "prior":
            raise UsageError(
                "the prior compares what is written with and without the action in sight, which forward traces never have"
            )

    def to_json(self) -> dict[str, Any]:
        """Everything that decides what comes out, as a JSON object."""
        found = asdict(self)
        plan = found.pop("config")
        plan.pop("method")
        return json.loads(json.dumps(plan | found))


@dataclass
class Trainer:
    """Carries out an order in a folder.

    Attributes:
        order: what is to be trained.
        out: the run's folder; made if missing.
        fetch: is told how far a download is.
        progress: is told how far things are.
    """

    order: TrainingPlan
    out: Path
    fetch: Any = None
    progress: Progress = no_progress

    # What is needed, each loaded when first asked for ------------------------------------------------------------------

    @cached_property
    def logs(self) -> dict[str, ChatLog]:
        """The logs, by what to call them."""
        found: dict[str, ChatLog] = {}
        for source in self.order.sources:
            name = Path(source).name.partition(".")[0] or source
            found[name if name not in found else source] = load_log(source)
        return found

    @cached_property
    def lessons(self) -> DatasetSplit:
        """The lessons."""
        return build_dataset(self.logs, self.order.split)

    @cached_property
    def scorer(self) -> Scorer:
        """In the reward and in the audit."""
        return load_scorer(self.order.scorer, self.order.scorer_precision, progress=self.fetch)

    @cached_property
    def embedder(self) -> Embedder:
        """For distractors, the guard against paraphrase, and what is alike."""
        return load_embedder(self.order.embedder)

    @cached_property
    def distractors(self) -> dict[str, Distractors]:
        """Other actions of each person: of those trained on from what is trained on, of the others from what is measured."""
        own: dict[str, list[Pair]] = {}
        parts = (self.lessons.train, self.lessons.validation, self.lessons.seen, self.lessons.unseen)
        for one in (lesson for part in parts for lesson in part):
            own.setdefault(one.label, []).append(one.pair)
        return {label: Distractors(pairs, self.embedder) for label, pairs in own.items()}

    @cached_property
    def base(self) -> ChatModel:
        """The base as a proposer."""
        return load_model(self.order.config.base, style=self.order.config.style, progress=self.fetch)

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(weights_folder(self.order.config.base, self.fetch), local_files_only=True)

    @cached_property
    def _examples(self) -> str:
        model = ChatModel("", None, self.order.config.style)  # pyright: ignore[reportArgumentType]
        return proposal_template(model, self.order.config.proposal_mode).text

    def guard(self, trace: str, pair: Pair) -> str | None:
        """The name of the guard that rejects a trace, or None."""
        return rejection_reason(trace, pair, self._examples, self.embedder)

    def fidelity(self, method: TrainMethod) -> Fidelity:
        """What scores the traces of a method."""
        if method == "e2e":
            later = {one.pair: one.later for one in with_later(self.lessons.train, self.embedder) if one.later}
            return DownstreamReward(self.scorer, later)
        order = self.order
        judged = order.config.fidelity == "judge"
        actor = order.actor or order.config.base
        return fidelity_by_name(
            order.config.fidelity, scorer=self.scorer, embedder=self.embedder,
            actor=load_model(actor) if order.config.fidelity in {"judge", "rank"} else None,
            judge=load_model(order.judge or order.config.base) if judged else None,
            distractors=Distractors([one.pair for one in self.lessons.train], self.embedder),
        )  # fmt: skip

    # The run -----------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """UsageError, LogError or ModelError if something is wrong, as far as it is known before anything long begins."""
        order = self.order
        order.check()
        folder = weights_folder(order.config.base, self.fetch)
        check_chat_template(self.tokenizer, order.config.base, order.config.style)
        for method in order.methods:
            replace(order.config, method=method).check_pairs(len(self.lessons.train))
        near = next(one for one in (self.out, *self.out.absolute().parents) if one.is_dir())
        most = max(replace(order.config, method=method).adapter_rank for method in order.methods)
        check_room(empty_base(folder), near, most)

    def run(self) -> dict[str, Any]:
        """Do what is not yet done, and return the results by method."""
        self.check()
        with exclusive_run(self.out):
            return self._done()

    def _done(self) -> dict[str, Any]:
        """The results by method, of a folder that is ours alone."""
        self._begin()
        found: dict[str, Any] = {}
        pool = (
            asyncio.run(self._pool())
            if any(not replace(self.order.config, method=m).online for m in self.order.methods)
            else []
        )
        for method in self.order.methods:
            found[method] = self._method(replace(self.order.config, method=method), pool)
        self._write_manifest("complete")
        training_pages(read_training(self.out))
        return found

    async def _pool(self) -> list[ScoredCandidates]:
        plan = self.order.config
        return await sample_candidates(
            self.out / POOL, self.lessons.train, self.base, self.fidelity("dpo"), self.guard,
            count=lambda text: len(self.tokenizer(text).input_ids), weights=plan.weights, embedder=self.embedder,
            how=plan.proposal_mode, group=plan.group_size, budget=plan.token_budget, seed=plan.seed, progress=self.progress,
        )  # fmt: skip

    def _method(self, plan: TrainingConfig, pool: Sequence[ScoredCandidates]) -> dict[str, Any]:
        folder = self.out / plan.method
        done = folder / RESULT
        if done.exists():
            return json.loads(done.read_text("utf-8"))
        outcome = self._trained(plan, folder, pool)
        measured, examples = self._measured(plan, folder)
        result = {"method": plan.method, **asdict(outcome), "measured": measured, "examples": examples}
        self._write_card(plan, folder, outcome, measured)
        write_atomically(done, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        return result

    def _trained(self, plan: TrainingConfig, folder: Path, pool: Sequence[ScoredCandidates]) -> TrainingResult:
        """Train a method, or see how it ended."""
        ended = folder / OUTCOME
        if ended.exists() and (folder / ADAPTER).is_dir():
            return TrainingResult(**json.loads(ended.read_text("utf-8")))
        model, tokenizer = load_base(weights_folder(plan.base), plan.precision)
        auditor = Auditor(
            self.lessons.validation, self.scorer, self.distractors, self.guard, plan.style, plan.proposal_mode, plan.seed
        )  # fmt: skip
        outcome = train(
            plan, self.lessons.train, folder, model, tokenizer, auditor,
            fidelity=self.fidelity(plan.method) if plan.online else None,
            guard=self.guard, embedder=self.embedder, pool=pool, progress=self.progress,
        )  # fmt: skip
        told = {
            "format": 1,
            "base": plan.base,
            "style": plan.style,
            "method": plan.method,
            "how": plan.proposal_mode,
            "rank": plan.adapter_rank,
        }
        write_atomically(folder / ADAPTER / "usertwin.json", json.dumps(told, indent=1) + "\n")
        write_atomically(ended, json.dumps(asdict(outcome)) + "\n")
        return outcome

    # Measuring ---------------------------------------------------------------------------------------------------------

    @property
    def _held_out(self) -> list[TrainingExample]:
        return [*self.lessons.seen, *self.lessons.unseen]

    def _traces(self, path: Path, name: str) -> list[list[str]]:
        """What a model of that name writes for the held-out pairs; written once."""
        order = self.order
        model = load_model(name, style=order.config.style, progress=self.fetch)
        work = write_held_out(
            path,
            self._held_out,
            model,
            order.config.proposal_mode,
            samples=order.samples,
            seed=order.config.seed,
            progress=self.progress,
        )
        return asyncio.run(work)

    def _measured(self, plan: TrainingConfig, folder: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        order = self.order
        if not self._held_out:
            return None, []
        before = self._traces(self.out / BASE_TRACES, plan.base)
        after = self._traces(folder / TRACES, f"{plan.base}+{folder / ADAPTER}")
        by = order.measured_by
        scorer = self.scorer if by is None else load_scorer(by, order.scorer_precision, progress=self.fetch)
        base, trained = measure_all(
            self._held_out, (before, after), scorer, self.scorer, self.distractors, self.guard, self.progress
        )
        seen = len(self.lessons.seen)
        return {
            "scorer": by or order.scorer,
            "seen": compared(base[:seen], trained[:seen], seed=plan.seed),
            "unseen": compared(base[seen:], trained[seen:], seed=plan.seed),
            "people": of_each(base, trained, seed=plan.seed),
        }, contrasting_examples(self._held_out, before, after, base, trained)

    # The folder --------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Write the manifest, or see that it is the same order's."""
        path = self.out / MANIFEST
        if path.exists():
            known = asdict(read_training(self.out).manifest)
            wanted = self.order.to_json()
            other = [key for key in wanted if known["plan"].get(key) != wanted[key] and key != "methods"]
            if other or known["sources"] != self._sources():
                told = ", ".join(f'"{key}"' for key in other) or "the logs have changed"
                raise UsageError(f"{self.out}: holds another training (what differs: {told}); name another folder")
            self._started = str(known["started_at"])
        self._write_manifest("interrupted")

    def _sources(self) -> dict[str, str | None]:
        return {one: digest(Path(one)) if Path(one).is_file() else None for one in self.order.sources}

    _started: str = ""

    def _write_manifest(self, state: str) -> None:
        self._started = self._started or datetime.now(UTC).isoformat(timespec="seconds")
        lessons = self.lessons
        manifest = {
            "format": TRAINING_FORMAT,
            "kind": "training",
            "state": state,
            "started_at": self._started,
            "plan": self.order.to_json(),
            "people": lessons.people,
            "pairs": {"train": len(lessons.train), "watched": len(lessons.validation)},
            "sources": self._sources(),
            "versions": _versions(),
        }
        write_atomically(self.out / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")

    def _write_card(
        self, plan: TrainingConfig, folder: Path, outcome: TrainingResult, measured: Mapping[str, Any] | None
    ) -> None:
        """Put its card beside the adapter."""
        import torch

        people = self.lessons.people
        weights = asdict(plan.weights)
        write_card(
            folder / ADAPTER,
            CardFacts(
                base=plan.base, method=plan.method, sources=self.order.sources, people=len(people["seen"]),
                pairs=len(self.lessons.train), unseen=len(people["unseen"]), style=plan.style, how=plan.proposal_mode, reward=weights,
                scorer=self.order.judge if plan.fidelity == "judge" else self.order.scorer, rank=plan.adapter_rank,
                soup=plan.soup if plan.method == "soup" else (), lean=plan.lean, steps=outcome.steps,
                tokens=outcome.tokens, seconds=outcome.seconds, stopped=outcome.stopped, seed=plan.seed,
                device="cuda" if torch.cuda.is_available() else "cpu", measured=measured, versions=_versions(),
            ),
        )  # fmt: skip


def _versions() -> dict[str, str]:
    return {package: version(package) for package in _VERSIONED}
