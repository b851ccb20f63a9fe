"""trl's trainers for SFT, DPO and GRPO with our settings, and the rewards as trl's reward functions.

Design: every setting that `TrainingConfig` does not name is trl's default, with two exceptions: settings that would make
training differ from inference (how traces are sampled, where they end), and settings that fail without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from usertwin.memory.event_loop import run_sync
from usertwin.memory.recon.fidelity import Fidelity
from usertwin.memory.recon.guards import LEAK_REASONS
from usertwin.memory.recon.propose import TEMPERATURE, TRACE_TOKENS, parse_trace, sees_action
from usertwin.memory.text.words import word_tokens

from .audit import Guard
from .checkpoints import CHECKPOINTS
from .dataset import TrainingExample
from .policy import completion_text, lora_config, policy_prompt, stop_tokens
from .rewards import Lessons, Reward, compute_rewards

if TYPE_CHECKING:
    from usertwin.memory.models.embedding import Embedder

    from .config import TrainingConfig

#: Prefix of the metrics that count what the groups of a step teach.
_LESSONS = "lessons/"
_TERMS = ("fidelity", "leak", "length", "format")


def trainer_arguments(
    folder: Path,
    *,
    batch_size: int,
    micro_batch_size: int,
    learning_rate: float,
    save_every: int,
    seed: int,
    report_to: str = "none",
) -> dict[str, Any]:
    """Return the arguments that all of trl's trainers share. Checkpoints go to `folder`; see `TrainingConfig` for the rest."""
    import torch

    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(folder / CHECKPOINTS),
        "per_device_train_batch_size": micro_batch_size,
        "gradient_accumulation_steps": batch_size // micro_batch_size,
        "learning_rate": learning_rate,
        "max_grad_norm": 1.0,
        "use_cpu": not gpu,
        "bf16": False,  # the base is loaded in its precision, and the adapter is float32 beside it
        "gradient_checkpointing": gpu,  # a model that needs a GPU needs the memory, too
        "dataloader_pin_memory": gpu,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": save_every,
        "save_total_limit": 2,
        "report_to": report_to,
        "disable_tqdm": True,
        "seed": seed,
        "data_seed": seed,
    }


def _arguments(config: TrainingConfig, folder: Path) -> dict[str, Any]:
    return trainer_arguments(
        folder,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        learning_rate=config.resolved_learning_rate,
        save_every=config.save_every,
        seed=config.seed,
        report_to=config.report_to,
    )


def supervised_trainer(
    config: TrainingConfig, folder: Path, model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], callback: Any
) -> Any:
    """Return an SFTTrainer for rows of prompt and completion; the loss covers the completion only."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    arguments = SFTConfig(
        **_arguments(config, folder), num_train_epochs=config.epochs, lr_scheduler_type="cosine",
        max_length=None, completion_only_loss=True,
    )  # fmt: skip
    return SFTTrainer(
        model, arguments, train_dataset=Dataset.from_list([dict(row) for row in rows]), processing_class=tokenizer,
        peft_config=lora_config(config.rank), callbacks=[callback],
    )  # fmt: skip


def preference_trainer(
    config: TrainingConfig, folder: Path, model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], callback: Any
) -> Any:
    """Return a DPOTrainer for rows of prompt, chosen and rejected; the reference model is the base without the adapter."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    arguments = DPOConfig(
        **_arguments(config, folder), num_train_epochs=config.epochs, lr_scheduler_type="cosine",
        max_length=None, beta=config.resolved_beta,
    )  # fmt: skip
    return DPOTrainer(
        model, args=arguments, train_dataset=Dataset.from_list([dict(row) for row in rows]), processing_class=tokenizer,
        peft_config=lora_config(config.rank), callbacks=[callback],
    )  # fmt: skip


def group_trainer(
    config: TrainingConfig,
    folder: Path,
    model: Any,
    tokenizer: Any,
    examples: Sequence[TrainingExample],
    rewards: Sequence[Any],
    callback: Any,
) -> Any:
    """Return a GRPOTrainer.

    Args:
        config: the training configuration.
        folder: folder of the checkpoints.
        model: the base model.
        tokenizer: its tokenizer.
        examples: pairs to propose traces for.
        rewards: reward functions in trl's form; four of them are `GroupRewards.functions`, weighted by the configuration.
        callback: a callback of transformers.
    """
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    rows = [
        {"prompt": policy_prompt(example.pair, config.style, config.proposal_mode), "example": number}
        for number, example in enumerate(examples)
    ]
    # trl reads the stop tokens from here; a transcript would otherwise run past the end of its line.
    model.generation_config.eos_token_id = stop_tokens(tokenizer, config.style)
    weights = config.weights
    arguments = GRPOConfig(
        **_arguments(config, folder), max_steps=-(-config.token_budget // config.batch_size),
        num_generations=config.group_size, max_completion_length=TRACE_TOKENS[config.style], temperature=TEMPERATURE,
        lr_scheduler_type="constant", beta=config.resolved_beta,
        # Ranks have the same spread in every group; a clipped gain is standardised within its group.
        scale_rewards="none" if weights.shape == "rank" else "group",
        reward_weights=[getattr(weights, term) for term in _TERMS] if len(rewards) > 1 else None,
        use_vllm=config.vllm,
    )  # fmt: skip
    return GRPOTrainer(
        model, list(rewards), args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        peft_config=lora_config(config.rank), callbacks=[callback],
    )  # fmt: skip


class GroupRewards:
    """Rewards of the traces that GRPO samples, as four reward functions that trl calls one after another.

    Args:
        config: gives the reward shape, the prompt style and the seed.
        examples: the pairs; trl passes the number of the pair with each trace.
        fidelity: scores the traces.
        guard: returns the name of the guard that rejects a trace, or None.
        ends: the tokens that end a trace.
        embedder: see `compute_rewards`.
    """

    def __init__(
        self,
        config: TrainingConfig,
        examples: Sequence[TrainingExample],
        fidelity: Fidelity,
        guard: Guard,
        ends: Sequence[int],
        embedder: Embedder | None = None,
    ) -> None:
        self._config, self._examples, self._fidelity, self._guard = config, examples, fidelity, guard
        self._ends, self._embedder = set(ends), embedder
        self._completions: Any = None
        self._rewards: list[Reward] = []
        #: Tokens generated so far.
        self.tokens = 0
        #: What the groups so far teach.
        self.lessons = Lessons()

    def restore(self, log_history: Sequence[Mapping[str, Any]]) -> None:
        """Set the counts to those of a checkpoint's log history."""
        self.tokens = int(next((row["tokens"] for row in reversed(log_history) if "tokens" in row), 0))
        names = (field.name for field in fields(Lessons))
        self.lessons = Lessons(**{name: round(sum(row.get(f"{_LESSONS}{name}", 0) for row in log_history)) for name in names})

    @property
    def functions(self) -> list[Any]:
        """Return the reward functions fidelity, leak, length and format."""

        def function(name: str) -> Any:
            def term(completions: Any, completion_ids: Any, example: Any, log_metric: Any, **_: Any) -> list[float]:
                if self._completions is not completions:  # trl passes the same list to all four
                    self._rewards = self._compute(completions, completion_ids, example, log_metric)
                    self._completions = completions
                return [float(getattr(reward, name)) for reward in self._rewards]

            term.__name__ = name
            return term

        return [function(name) for name in _TERMS]

    def _compute(self, completions: Any, ids: Any, numbers: Any, log_metric: Callable[[str, float], None]) -> list[Reward]:
        """Return the reward of each completion; `numbers` holds the number of each completion's pair."""
        traces = [parse_trace(self._config.style, completion_text(completion)) for completion in completions]
        finished = [bool(tokens) and tokens[-1] in self._ends for tokens in ids]
        rewards: list[Reward] = []
        before = replace(self.lessons)
        for number, members in groupby(range(len(traces)), key=lambda i: numbers[i]):
            group = list(members)
            group_rewards = run_sync(
                compute_rewards(
                    self._examples[number].pair, [traces[i] for i in group], [finished[i] for i in group],
                    fidelity=self._fidelity, guard=self._guard, embedder=self._embedder,
                    shape=self._config.weights.shape, seed=self._config.seed,
                    saw_action=sees_action(self._config.proposal_mode),
                )
            )  # fmt: skip
            self.lessons.count(group_rewards)
            rewards += group_rewards
        self.tokens += sum(len(tokens) for tokens in ids)
        if passing := [reward.score for reward in rewards if reward.score is not None]:
            log_metric("passing_score", fmean(passing))
        log_metric("leak_rate", fmean(reward.rejected in LEAK_REASONS for reward in rewards))
        log_metric("rejection_rate", fmean(reward.rejected not in {None, "no_verdict"} for reward in rewards))
        for name, value in asdict(self.lessons).items():
            log_metric(f"{_LESSONS}{name}", float(value - getattr(before, name)))
        log_metric("words", fmean(len(word_tokens(trace)) for trace in traces))
        log_metric("tokens", float(self.tokens))
        return rewards
