"""One run of `usertwin train`: data split, candidates of the base, each method in turn, measurements, summary.

Design: every step first looks for its result in the run's folder, so the same command resumes a stopped run. The base's
held-out traces are sampled once and compared with those of every method.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from usertwin.evals.records.measured_turns import MANIFEST, RESULT
from usertwin.evals.records.run_folder import write_atomically
from usertwin.evals.records.training_run import TRAINING_FORMAT, read_outcome, read_training
from usertwin.evals.reports.training_summary import write_training_summary
from usertwin.evals.traces.synthesizer_quality import (
    compare_by_person,
    compare_traces,
    contrasting_examples,
    measure_writers,
    write_held_out_traces,
)
from usertwin.memory import ChatModel, Embedder, Scorer
from usertwin.memory.atomic_files import file_checksum
from usertwin.memory.event_loop import run_sync
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import Fidelity
from usertwin.memory.recon.guards import rejection_reason
from usertwin.memory.recon.judged_fidelity import fidelity_by_name
from usertwin.memory.recon.propose import proposal_template, sees_action
from usertwin.memory.run_lock import exclusive_run
from usertwin.memory.training.audit import Auditor
from usertwin.memory.training.candidate_pool import ScoredCandidates, sample_candidates
from usertwin.memory.training.checkpoints import ADAPTER, check_room
from usertwin.memory.training.config import TrainingConfig, TrainingResult, TrainMethod
from usertwin.memory.training.dataset import DatasetSplit, TrainingExample, build_dataset, with_related_pairs
from usertwin.memory.training.model_card import CardFacts, write_card
from usertwin.memory.training.policy import check_chat_template, empty_base, load_base
from usertwin.memory.training.rewards import DownstreamReward
from usertwin.memory.training.train import train
from usertwin.memory.twin.consent import allow_adapter
from usertwin.personas import ChatLog, Pair, UsageError, load_log
from usertwin.personas.reading import as_type, parse_json, read_file
from usertwin.simulator import load_embedder, load_model, load_scorer
from usertwin.simulator.backends.load import prompt_style_of
from usertwin.simulator.backends.lora_adapter import read_adapter
from usertwin.simulator.backends.weights import weights_folder

from .judge_check import check_reward_judge
from .plan import TrainingPlan

POOL, BASE_TRACES, TRACES, OUTCOME = "pool.jsonl", "base_traces.jsonl", "traces.jsonl", "outcome.json"
_VERSIONED = ("usertwin", "torch", "transformers", "trl", "peft", "datasets")


@dataclass
class TrainingRunner:
    """Carries out a plan in a folder.

    Attributes:
        plan: the plan.
        out: the run's folder; made if missing.
        fetch: callback for download progress.
        progress: receives the progress of each stage.
    """

    plan: TrainingPlan
    out: Path
    fetch: Any = None
    progress: Progress = no_progress
    _started_at: str = field(default="", init=False)
    _judge_check: Mapping[str, Any] | None = field(default=None, init=False)

    # Logs and models, each loaded on first use -------------------------------------------------------------------------

    @cached_property
    def logs(self) -> dict[str, ChatLog]:
        """The logs, by file name; by path where names repeat."""
        logs: dict[str, ChatLog] = {}
        for source in self.plan.sources:
            name = Path(source).name.partition(".")[0] or source
            logs[name if name not in logs else source] = load_log(source)
        return logs

    @cached_property
    def dataset(self) -> DatasetSplit:
        """The data split."""
        return build_dataset(self.logs, self.plan.split)

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer in the reward and in the audit."""
        return load_scorer(self.plan.scorer, self.plan.scorer_precision, progress=self.fetch)

    @cached_property
    def embedder(self) -> Embedder:
        """The embedder."""
        return load_embedder(self.plan.embedder)

    @cached_property
    def distractors(self) -> dict[str, Distractors]:
        """Other actions of each person, by label, from all parts of the split."""
        pairs: dict[str, list[Pair]] = {}
        dataset = self.dataset
        for example in (*dataset.train, *dataset.validation, *dataset.seen, *dataset.unseen):
            pairs.setdefault(example.label, []).append(example.pair)
        return {label: Distractors(own, self.embedder) for label, own in pairs.items()}

    @cached_property
    def base(self) -> ChatModel:
        """The base as a proposer."""
        return load_model(self.plan.config.base, style=self.plan.config.style, progress=self.fetch)

    def _load_actor(self) -> ChatModel:
        """Return the model that reconstructs actions. It is not kept: training needs the memory."""
        return load_model(self.plan.actor or self.plan.config.base, progress=self.fetch)

    def _load_judge(self) -> ChatModel:
        return load_model(self.plan.judge or self.plan.config.base, style="instruction", progress=self.fetch)

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(weights_folder(self.plan.config.base, self.fetch), local_files_only=True)

    @cached_property
    def _prompt_examples(self) -> str:
        model = ChatModel("", None, self.plan.config.style)  # pyright: ignore[reportArgumentType]
        return proposal_template(model, self.plan.config.proposal_mode).text

    def guard(self, trace: str, pair: Pair) -> str | None:
        """Return the name of the guard that rejects a trace, or None."""
        saw_action = sees_action(self.plan.config.proposal_mode)
        return rejection_reason(trace, pair, self._prompt_examples, self.embedder, saw_action=saw_action)

    def fidelity(self, method: TrainMethod) -> Fidelity:
        """Return the fidelity that scores the traces of a method."""
        if method == "e2e":
            examples = with_related_pairs(self.dataset.train, self.embedder)
            related = {example.pair: example.related_pair for example in examples if example.related_pair}
            return DownstreamReward(self.scorer, related)
        name = self.plan.config.fidelity
        return fidelity_by_name(
            name, scorer=self.scorer, embedder=self.embedder,
            actor=self._load_actor() if name in {"judge", "rank"} else None,
            judge=self._load_judge() if name == "judge" else None,
            distractors=Distractors([example.pair for example in self.dataset.train], self.embedder),
            proposal_mode=self.plan.config.proposal_mode,
        )  # fmt: skip

    # The run -----------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise UsageError, LogError or ModelError for everything that can be wrong before sampling starts."""
        self.plan.check()
        config = self.plan.config
        folder = weights_folder(config.base, self.fetch)
        check_chat_template(self.tokenizer, config.base, config.style)
        for method in self.plan.methods:
            replace(config, method=method).check_pairs(len(self.dataset.train))
        if config.fidelity == "judge":
            prompt_style_of(self.plan.judge or config.base, "instruction")
        existing = next(path for path in (self.out, *self.out.absolute().parents) if path.is_dir())
        check_room(empty_base(folder), existing, config.rank)

    def run(self) -> dict[str, Any]:
        """Run what is not yet finished; return the content of result.json by method."""
        self.check()
        with exclusive_run(self.out):
            self._begin()
            self._check_judge()
            configs = [replace(self.plan.config, method=method) for method in self.plan.methods]
            pool = [] if all(config.online for config in configs) else run_sync(self._sample_pool())
            results = {config.method: self._run_method(config, pool) for config in configs}
            self._write_manifest("complete")
            write_training_summary(read_training(self.out))
            return results

    def _check_judge(self) -> None:
        """Check the judge in the rewards, if there is one and the manifest has no check of it; write the manifest."""
        config = self.plan.config
        if self._judge_check is None and config.fidelity == "judge" and set(self.plan.methods) != {"e2e"}:
            check = check_reward_judge(
                self.dataset.train, self.base, self._load_judge(), self._load_actor(),
                proposal_mode=config.proposal_mode, seed=config.seed, progress=self.progress,
            )  # fmt: skip
            self._judge_check = run_sync(check)
            self._write_manifest("interrupted")

    async def _sample_pool(self) -> list[ScoredCandidates]:
        config = self.plan.config
        return await sample_candidates(
            self.out / POOL, self.dataset.train, self.base, self.fidelity("dpo"), self.guard,
            count_tokens=lambda text: len(self.tokenizer(text).input_ids), weights=config.weights, embedder=self.embedder,
            proposal_mode=config.proposal_mode, group_size=config.group_size, token_budget=config.token_budget,
            seed=config.seed, progress=self.progress,
        )  # fmt: skip

    def _run_method(self, config: TrainingConfig, pool: Sequence[ScoredCandidates]) -> dict[str, Any]:
        folder = self.out / config.method
        path = folder / RESULT
        if path.exists():
            return read_outcome(path)
        outcome = self._train(config, folder, pool)
        allow_adapter(config.base, read_adapter(folder / ADAPTER).identity)
        measured, examples = self._measure(config, folder)
        result = {"method": config.method, **asdict(outcome), "measured": measured, "examples": examples}
        self._write_card(config, folder, outcome, measured)
        write_atomically(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        return result

    def _train(self, config: TrainingConfig, folder: Path, pool: Sequence[ScoredCandidates]) -> TrainingResult:
        """Train a method, or read how its training ended."""
        path = folder / OUTCOME
        if path.exists() and (folder / ADAPTER).is_dir():
            way_out = "delete the folder of this method, and run the same command again"
            return read_file(path, lambda raw: as_type(TrainingResult, parse_json(raw)), way_out=way_out, error=UsageError)
        model, tokenizer = load_base(weights_folder(config.base), config.precision)
        auditor = Auditor(
            self.dataset.validation, self.scorer, self.distractors, self.guard, config.style, config.proposal_mode, config.seed
        )  # fmt: skip
        outcome = train(
            config, self.dataset.train, folder, model, tokenizer, auditor,
            fidelity=self.fidelity(config.method) if config.online else None,
            guard=self.guard, embedder=self.embedder, pool=pool, progress=self.progress,
        )  # fmt: skip
        facts = {
            "format": 1,
            "base": config.base,
            "style": config.style,
            "method": config.method,
            "proposal_mode": config.proposal_mode,
            "rank": config.rank,
        }
        write_atomically(folder / ADAPTER / "usertwin.json", json.dumps(facts, indent=1) + "\n")
        write_atomically(path, json.dumps(asdict(outcome)) + "\n")
        return outcome

    # Measurements ------------------------------------------------------------------------------------------------------

    @property
    def _held_out(self) -> list[TrainingExample]:
        return [*self.dataset.seen, *self.dataset.unseen]

    def _held_out_traces(self, path: Path, name: str) -> list[list[str]]:
        """Return the traces of a model for the held-out pairs, sampled once into a file."""
        plan = self.plan
        model = load_model(name, style=plan.config.style, progress=self.fetch)
        return run_sync(
            write_held_out_traces(
                path, self._held_out, model, plan.config.proposal_mode,
                samples=plan.samples, seed=plan.config.seed, progress=self.progress,
            )
        )  # fmt: skip

    def _measure(self, config: TrainingConfig, folder: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """Return the measurements of a method and example traces; None and nothing without held-out pairs."""
        plan, seed = self.plan, config.seed
        if not self._held_out:
            return None, []
        before = self._held_out_traces(self.out / BASE_TRACES, config.base)
        after = self._held_out_traces(folder / TRACES, f"{config.base}+{folder / ADAPTER}")
        name = plan.measured_by
        scorer = self.scorer if name is None else load_scorer(name, plan.scorer_precision, progress=self.fetch)
        base, trained = measure_writers(
            self._held_out, (before, after), scorer, scorer, self.distractors, self.guard, self.progress,
            saw_action=sees_action(config.proposal_mode),
        )  # fmt: skip
        seen = len(self.dataset.seen)
        return {
            "scorer": name or plan.scorer,
            "seen": compare_traces(base[:seen], trained[:seen], seed=seed),
            "unseen": compare_traces(base[seen:], trained[seen:], seed=seed),
            "people": compare_by_person(base, trained, seed=seed),
        }, contrasting_examples(self._held_out, before, after, base, trained)

    # The folder --------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Write the manifest. UsageError if the folder holds a run of another plan, of other logs, or of format 1."""
        if (self.out / MANIFEST).exists():
            manifest = read_training(self.out).manifest
            if manifest.format != TRAINING_FORMAT:
                raise UsageError(
                    f"{self.out}: holds a training of an earlier version (format {manifest.format}), which can be read but not "
                    "resumed; name another folder"
                )
            plan = self.plan.to_json()
            differing = [key for key in plan if manifest.plan.get(key) != plan[key] and key != "methods"]
            if differing or manifest.sources != self._checksums():
                reason = ", ".join(f'"{key}"' for key in differing) or "the logs have changed"
                raise UsageError(f"{self.out}: holds another training (difference: {reason}); name another folder")
            self._started_at, self._judge_check = manifest.started_at or "", manifest.judge_check
        self._write_manifest("interrupted")

    def _checksums(self) -> dict[str, str | None]:
        return {source: file_checksum(Path(source)) if Path(source).is_file() else None for source in self.plan.sources}

    def _write_manifest(self, state: str) -> None:
        self._started_at = self._started_at or datetime.now(UTC).isoformat(timespec="seconds")
        dataset = self.dataset
        manifest = {
            "format": TRAINING_FORMAT,
            "kind": "training",
            "state": state,
            "started_at": self._started_at,
            "plan": self.plan.to_json(),
            "people": dataset.people,
            "pairs": {"train": len(dataset.train), "validation": len(dataset.validation)},
            "sources": self._checksums(),
            "versions": _versions(),
            "judge_check": self._judge_check,
        }
        write_atomically(self.out / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")

    def _write_card(
        self, config: TrainingConfig, folder: Path, outcome: TrainingResult, measured: Mapping[str, Any] | None
    ) -> None:
        """Write the model card of an adapter."""
        import torch

        people, plan = self.dataset.people, self.plan
        write_card(
            folder / ADAPTER,
            CardFacts(
                base=config.base, method=config.method, sources=plan.sources, people=len(people["seen"]),
                pairs=len(self.dataset.train), unseen=len(people["unseen"]), style=config.style,
                proposal_mode=config.proposal_mode, reward=asdict(config.weights),
                scorer=plan.rewarded_by(config.method), rank=config.rank,
                steps=outcome.steps, tokens=outcome.tokens, seconds=outcome.seconds, stopped=outcome.stopped,
                seed=config.seed, device="cuda" if torch.cuda.is_available() else "cpu", measured=measured,
                versions=_versions(),
            ),
        )  # fmt: skip


def _versions() -> dict[str, str]:
    return {package: version(package) for package in _VERSIONED}
