"""The plan of a training run, and what it takes, computed before it begins: people, pairs, steps, tokens, memory.

No model is loaded or downloaded. Sizes come from the data split and from weights on disk; estimates say "about".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

from usertwin.memory.models.scoring import Precision
from usertwin.memory.recon.propose import TRACE_TOKENS, expected_trace_tokens, proposal_prompt
from usertwin.memory.training.config import TrainingConfig, TrainMethod
from usertwin.memory.training.dataset import DatasetSplit, SplitConfig, TrainingExample
from usertwin.personas import ModelError, UsageError
from usertwin.personas.reading import as_type, parse_json, read_file
from usertwin.personas.secrets import take_logins
from usertwin.simulator.backends.model_name import ModelName
from usertwin.simulator.backends.weights import known_weights

_CHARACTERS_PER_TOKEN = 4
_BYTES = {"float32": 4, "bfloat16": 2}
#: Bytes of activations per layer, token and unit of width, at 16 bits without recomputation (arXiv 2205.05198).
_ACTIVATIONS = 34


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Everything that determines the result of a training run.

    Attributes:
        config: the training configuration; its method is replaced by each of `methods`.
        methods: methods to train, each from the untrained base.
        sources: chat logs.
        split: which people and pairs.
        scorer: model in the reward and in the audit.
        scorer_precision: precision of the scorers.
        measured_by: scorer of the final measurements, the detector included, preferably one that is in no reward; None for
            `scorer`.
        samples: traces of each held-out pair to measure, of the base and of each method.
        actor: model that reconstructs actions for a judge; None for the base.
        judge: model that judges, where the fidelity needs one; None for the base.
        embedder: finds distractors and detects paraphrases of the action.
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
        """Raise UsageError if a value is out of range, or two values contradict each other."""
        for method in self.methods:
            replace(self.config, method=method).check()
        self.split.check()
        ModelName.parse(self.config.base, "base")
        if self.samples < 1:
            raise UsageError(f"--samples is {self.samples}; it must be at least 1")
        if self.config.proposal_mode == "forward" and self.config.fidelity == "prior":
            raise UsageError(
                "--fidelity prior compares prompts with and without the action, and --propose forward never shows it; choose "
                "another fidelity"
            )

    def rewarded_by(self, method: TrainMethod) -> str:
        """Return the model whose scores are in the reward of a method."""
        return self.judge or self.config.base if self.config.fidelity == "judge" and method != "e2e" else self.scorer

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object, with the fields of `config` at the top level."""
        fields = asdict(self)
        config = fields.pop("config")
        config.pop("method")
        return json.loads(take_logins(json.dumps(config | fields)))


def describe_plan(plan: TrainingPlan, dataset: DatasetSplit) -> list[str]:
    """Return what a plan takes, one sentence per item."""
    people, config = dataset.people, plan.config
    measured_by = plan.measured_by or plan.scorer
    rewarded_by = list(dict.fromkeys(map(plan.rewarded_by, plan.methods)))
    rewards = "rewards and audits" if rewarded_by == [plan.scorer] else f"rewards by {' and '.join(rewarded_by)}, audits"
    in_reward = ", which is also in the reward" if measured_by in rewarded_by else ""
    return [
        f"{len(dataset.train):,} training pairs of {len(people['seen'])} people, {len(dataset.validation)} validation pairs; "
        f"tested on {len(dataset.seen):,} later pairs of theirs and {len(dataset.unseen):,} pairs of {len(people['unseen'])} "
        "people who are held out with every conversation they took part in",
        *(_describe_method(replace(config, method=method), dataset) for method in plan.methods),
        f"{rewards} by {plan.scorer}; measured by {measured_by}{in_reward}",
        _describe_memory(plan, dataset.train),
    ]


def _describe_method(config: TrainingConfig, dataset: DatasetSplit) -> str:
    tokens, budget = expected_trace_tokens(config.style), f"{config.token_budget:,} tokens are generated"
    if config.online:
        steps = max(1, config.token_budget // (config.batch_size * tokens))
        groups = config.batch_size // config.group_size
        return f"{config.method}: about {steps:,} steps of {groups} pairs with {config.group_size} traces each, until {budget}"
    pairs = min(len(dataset.train), max(1, config.token_budget // (config.group_size * tokens)))
    steps = ceil(config.epochs * ceil(pairs / config.batch_size))
    return (
        f"{config.method}: {config.group_size} traces of the base for each of about {pairs:,} pairs, until {budget}; then at "
        f"most {steps:,} steps of {config.batch_size} rows"
    )


def _describe_memory(plan: TrainingPlan, train: Sequence[TrainingExample]) -> str:
    """Estimate the memory of weights, activations and logits."""
    config = plan.config
    folder, size = known_weights(config.base)
    if folder is None:
        return f"memory: unknown until the weights of {config.base} are on disk (training downloads or converts them)"
    shape = _shape(folder)
    scorer_size = known_weights(plan.scorer)[1]
    weights = size * _BYTES[config.precision] // 4 + scorer_size * _BYTES[plan.scorer_precision] // 4
    prompts = (proposal_prompt(config.style, example.pair, "the person", config.proposal_mode) for example in train)
    longest = max(map(len, prompts), default=0) // _CHARACTERS_PER_TOKEN + TRACE_TOKENS[config.style]
    tokens = config.micro_batch_size * longest * (2 if "dpo" in plan.methods else 1)
    activations = tokens * shape["layers"] * shape["hidden"] * _ACTIVATIONS * _BYTES[config.precision] // 2
    logits = 3 * 4 * tokens * shape["vocabulary"]
    total = (weights + activations + logits) / 2**30
    return (
        f"memory: about {total:.1f} GiB ({weights / 2**30:.1f} of weights, the rest for a micro batch of "
        f"{config.micro_batch_size} with up to {longest:,} tokens each)"
    )


def _shape(folder: Path) -> dict[str, int]:
    names = {"layers": "num_hidden_layers", "hidden": "hidden_size", "vocabulary": "vocab_size"}

    def parse(content: bytes) -> dict[str, int]:
        config = as_type(dict[str, Any], parse_json(content))
        config = as_type(dict[str, Any], config.get("text_config", config))
        return {name: as_type(int, config.get(key, 0)) for name, key in names.items()}

    return read_file(folder / "config.json", parse, way_out="fetch the model again", error=ModelError)
