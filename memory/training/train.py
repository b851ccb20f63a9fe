"""Train a synthesizer by one method: supervised fine-tuning, DPO, Recon-GRPO or E2E-GRPO.

All methods start from the same base and the same pairs. The training loops are trl's. The same algorithm without trl is
examples/train_recon.py.

    sft    fine-tunes on the best trace of each pair that the base proposed (rejection sampling)
    dpo    prefers the best trace of each pair to the worst, or to one that leaks (arXiv 2305.18290)
    grpo   the policy proposes; the reward is how well its traces let the action be reconstructed (Recon-GRPO)
    e2e    likewise, but the fidelity term is whether the trace helps to predict another turn of the person
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from usertwin.memory.models.embedding import Embedder
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.recon.fidelity import Fidelity
from usertwin.personas import UsageError
from usertwin.personas.files import private_folder, private_umask

from .audit import Auditor, Guard
from .candidate_pool import ScoredCandidates, dpo_rows, lessons_of, sft_rows
from .checkpoints import CHECKPOINTS, TRAINER_STATE, check_room, last_checkpoint, run_trainer, save_adapter, training_errors
from .config import TrainingConfig, TrainingResult
from .dataset import TrainingExample
from .policy import stop_tokens
from .trl_trainers import GroupRewards, group_trainer, preference_trainer, supervised_trainer


def train(
    config: TrainingConfig,
    examples: Sequence[TrainingExample],
    folder: Path,
    model: Any,
    tokenizer: Any,
    auditor: Auditor,
    *,
    fidelity: Fidelity | None = None,
    guard: Guard | None = None,
    embedder: Embedder | None = None,
    pool: Sequence[ScoredCandidates] = (),
    progress: Progress = no_progress,
) -> TrainingResult:
    """Train, or resume. Leaves the adapter in `folder`/adapter and trl's log history in `folder`/trainer_state.json.

    Args:
        config: the training configuration.
        examples: the training pairs; online methods propose traces for them.
        folder: folder of this method; made if missing.
        model: the base model; it has no adapter again when this returns.
        tokenizer: its tokenizer.
        auditor: audits the policy before the first step, every `audit_every` steps, and at the end.
        fidelity: scores traces; needed by online methods.
        guard: returns the name of the guard that rejects a trace, or None; needed by online methods.
        embedder: for online methods; see `compute_rewards`.
        pool: candidates of the base; needed by the other methods.
        progress: receives the steps done, or for online methods the tokens generated.

    Raises:
        UsageError: the configuration is invalid, the rewards teach too little, or a checkpoint does not fit on the disk.
        VerdictError: the judge gives no readable verdict on any pair.
    """
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback

    from .callback import AuditCallback

    config.check()
    config.check_pairs(len(examples))
    _make_folders(folder, model, config)
    start = time.monotonic()
    set_seed(config.seed)  # the adapter is initialised before trl's trainers set the seed
    rewards: GroupRewards | None = None
    if config.online:
        if fidelity is None or guard is None:
            raise UsageError(f'"{config.method}" needs a fidelity and a guard')
        rewards = GroupRewards(config, examples, fidelity, guard, stop_tokens(tokenizer, config.style), embedder)
        callback = AuditCallback(config, auditor, tokenizer, progress, rewards)
        trainer = group_trainer(config, folder, model, tokenizer, examples, rewards.functions, callback)
    else:
        callback = AuditCallback(config, auditor, tokenizer, progress)
        trainer = _pool_trainer(config, folder, model, tokenizer, pool, callback)
    callback.trainer = trainer
    trainer.remove_callback(PrinterCallback)  # it would print each step's metrics over the progress bars
    with training_errors(folder), private_umask():
        run_trainer(trainer, last_checkpoint(folder / CHECKPOINTS), callback.is_finished)
        if rewards is not None:
            rewards.lessons.check()
        callback.audit(trainer.model)
        trainer.state.save_to_json(str(folder / TRAINER_STATE))
        save_adapter(trainer.model, tokenizer, folder)
    trainer.model.unload()
    tokens = sum(candidates.tokens for candidates in pool) if rewards is None else rewards.tokens
    lessons = lessons_of(pool) if rewards is None else rewards.lessons
    return TrainingResult(
        callback.stopped, trainer.state.global_step, tokens, time.monotonic() - start, lessons=asdict(lessons)
    )


def _make_folders(folder: Path, model: Any, config: TrainingConfig) -> None:
    """Make the folders of a method. UsageError if its checkpoints do not fit on the disk."""
    private_folder(folder)
    check_room(model, folder, config.rank)
    private_folder(folder / CHECKPOINTS)  # transformers would make it


def _pool_trainer(
    config: TrainingConfig, folder: Path, model: Any, tokenizer: Any, pool: Sequence[ScoredCandidates], callback: Any
) -> Any:
    """Return the trainer of a method that learns from the pool. UsageError if the pool gives less than one batch of rows."""
    make_rows = sft_rows if config.method == "sft" else dpo_rows
    rows = make_rows(pool, config.weights, config.style, config.proposal_mode)
    if len(rows) < config.batch_size:
        raise UsageError(
            f"only {len(rows)} of {len(pool)} pairs have traces to learn from, fewer than --batch-size {config.batch_size} "
            f"({lessons_of(pool)}); take more pairs, a larger --group-size or a smaller --batch-size"
        )
    make_trainer = supervised_trainer if config.method == "sft" else preference_trainer
    return make_trainer(config, folder, model, tokenizer, rows, callback)
