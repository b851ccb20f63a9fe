"""What trl is told: the settings of its trainers for supervised fine-tuning, DPO and GRPO, and our rewards as its functions.

The one design choice: every number that a plan does not name is trl's own, but for those that would make training differ from
use (how traces are sampled and where they end), or would fail where there is no GPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from usertwin.memory.recon.fidelity import Fidelity
from usertwin.memory.recon.guards import LEAKS
from usertwin.memory.recon.propose import TEMPERATURE, TRACE_TOKENS, as_trace
from usertwin.memory.text.words import word_tokens
from usertwin.personas import Pair

from .checkpoints import CHECKPOINTS
from .dataset import TrainingExample
from .policy import ends_of, lora, prompt_of, text_of
from .rewards import Reward, compute_rewards

if TYPE_CHECKING:
    from usertwin.memory.models.embedding import Embedder

    from .config import TrainingConfig


def trainer_arguments(
    folder: Path, *, batch: int, at_once: int, learning_rate: float, save_every: int, seed: int, tensorboard: bool = False
) -> dict[str, Any]:
    """The settings that all of trl's trainers share, with checkpoints in a folder; see `Training` for what the others are."""
    import torch

    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(folder / CHECKPOINTS),
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": batch // at_once,
        "learning_rate": learning_rate,
        "max_grad_norm": 1.0,
        "use_cpu": not gpu,
        "bf16": False,  # the base is loaded in its precision, and the adapter is float32 beside it
        "gradient_checkpointing": gpu,  # a model that needs a GPU needs the room, too
        "dataloader_pin_memory": gpu,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": save_every,
        "save_total_limit": 2,
        "report_to": ["tensorboard"] if tensorboard else "none",
        "disable_tqdm": True,
        "seed": seed,
        "data_seed": seed,
    }


def _settings(plan: TrainingConfig, folder: Path) -> dict[str, Any]:
    return trainer_arguments(
        folder, batch=plan.batch_size, at_once=plan.micro_batch_size, learning_rate=plan.resolved_learning_rate, save_every=plan.save_every, seed=plan.seed,
        tensorboard=plan.tensorboard,
    )  # fmt: skip


def supervised_trainer(
    plan: TrainingConfig, folder: Path, model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], watching: Any
) -> Any:
    """The SFTTrainer of trl, on rows of prompt and completion; the loss is the completion's alone."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    config = SFTConfig(
        **_settings(plan, folder), num_train_epochs=plan.epochs, lr_scheduler_type="cosine",
        max_length=None, completion_only_loss=True,
    )  # fmt: skip
    return SFTTrainer(
        model, config, train_dataset=Dataset.from_list([dict(row) for row in rows]), processing_class=tokenizer,
        peft_config=lora(plan.rank), callbacks=[watching],
    )  # fmt: skip


def preference_trainer(
    plan: TrainingConfig, folder: Path, model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], watching: Any
) -> Any:
    """The DPOTrainer of trl, on rows of prompt, chosen and rejected; held to the base, which is the policy without adapter."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    config = DPOConfig(
        **_settings(plan, folder), num_train_epochs=plan.epochs, lr_scheduler_type="cosine",
        max_length=None, beta=plan.resolved_beta,
    )  # fmt: skip
    return DPOTrainer(
        model, args=config, train_dataset=Dataset.from_list([dict(row) for row in rows]), processing_class=tokenizer,
        peft_config=lora(plan.rank), callbacks=[watching],
    )  # fmt: skip


def group_trainer(
    plan: TrainingConfig,
    folder: Path,
    model: Any,
    tokenizer: Any,
    lessons: Sequence[TrainingExample],
    rewards: Sequence[Any],
    watching: Any,
) -> Any:
    """The GRPOTrainer of trl for a plan.

    Args:
        plan: how to train.
        folder: where checkpoints go.
        model: the base.
        tokenizer: its own.
        lessons: what to propose traces for.
        rewards: reward functions, as trl takes them; with four, they are `GroupRewards.functions`, weighted by the plan.
        watching: a callback.
    """
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    rows = [{"prompt": prompt_of(one.pair, plan.style, plan.proposal_mode), "lesson": i} for i, one in enumerate(lessons)]
    # trl takes the ends of a text from here; it would not stop at a line's end otherwise.
    model.generation_config.eos_token_id = ends_of(tokenizer, plan.style)
    weights = plan.weights
    config = GRPOConfig(
        **_settings(plan, folder), max_steps=-(-plan.token_budget // plan.batch_size), num_generations=plan.group_size,
        max_completion_length=TRACE_TOKENS[plan.style], temperature=TEMPERATURE, lr_scheduler_type="constant", beta=plan.resolved_beta,
        # Ranks have the same spread in every group; a clipped gain is standardised within its own.
        scale_rewards="none" if weights.shape == "rank" else "group",
        reward_weights=[weights.fidelity, weights.leak, weights.length, weights.format] if len(rewards) > 1 else None,
        use_vllm=plan.vllm,
    )  # fmt: skip
    return GRPOTrainer(
        model, list(rewards), args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        peft_config=lora(plan.rank), callbacks=[watching],
    )  # fmt: skip


class GroupRewards:
    """The rewards of the traces that GRPO has sampled, as the four functions that trl asks one after the other.

    Args:
        plan: tells weights and style.
        lessons: by their number, which trl hands back with each trace.
        fidelity: scores the traces.
        guard: the name of the guard that rejects a trace, or None.
        ends: the tokens that end a trace.
        embedder: see `rewards_of`.
    """

    def __init__(
        self,
        plan: TrainingConfig,
        lessons: Sequence[TrainingExample],
        fidelity: Fidelity,
        guard: Callable[[str, Pair], str | None],
        ends: Sequence[int],
        embedder: Embedder | None = None,
    ) -> None:
        self._plan, self._lessons, self._fidelity, self._guard, self._ends = plan, lessons, fidelity, guard, set(ends)
        self._embedder = embedder
        self._asked: Any = None
        self._found: list[Reward] = []
        #: Tokens generated so far.
        self.tokens = 0

    @property
    def functions(self) -> list[Any]:
        """fidelity, leak, length and format, each as trl wants them."""

        def function(name: str) -> Any:
            def term(completions: Any, completion_ids: Any, lesson: Any, log_metric: Any, **_: Any) -> list[float]:
                if self._asked is not completions:  # trl asks all four about the same list
                    self._found = self._reward(completions, completion_ids, lesson, log_metric)
                    self._asked = completions
                return [float(getattr(one, name)) for one in self._found]

            term.__name__ = name
            return term

        return [function(name) for name in ("fidelity", "leak", "length", "format")]

    def _reward(self, completions: Any, ids: Any, lessons: Any, log_metric: Callable[[str, float], None]) -> list[Reward]:
        traces = [as_trace(self._plan.style, text_of(completion)) for completion in completions]
        finished = [bool(one) and one[-1] in self._ends for one in ids]
        found: list[Reward] = []
        for place, members in groupby(range(len(traces)), key=lambda i: lessons[i]):
            group = list(members)
            found += asyncio.run(
                compute_rewards(
                    self._lessons[place].pair, [traces[i] for i in group], [finished[i] for i in group],
                    fidelity=self._fidelity, guard=self._guard, embedder=self._embedder,
                    shape=self._plan.weights.shape, seed=self._plan.seed,
                )
            )  # fmt: skip
        self.tokens += sum(len(one) for one in ids)
        log_metric("novel", fmean(one.score or 0.0 for one in found))
        log_metric("leak_rate", fmean(one.rejected in LEAKS for one in found))
        log_metric("rejected", fmean(one.rejected is not None for one in found))
        log_metric("words", fmean(len(word_tokens(trace)) for trace in traces))
        log_metric("tokens", float(self.tokens))
        return found
