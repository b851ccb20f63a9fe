"""Training a synthesizer: fine-tuning on chosen traces, DPO, GRPO and E2E-GRPO, from the same base on the same pairs.

The one design choice: the training loops are trl's, and all that is here is what they are told: which rows, which rewards, when
to look and when to stop. Read in this order: lessons.py (on whom), policy.py (what is trained), pool.py (what the base
proposes), rewards.py, trainers.py (what trl is told), watch.py, soup.py, and this file, which puts them together. The same
algorithm without trl, on one page, is examples/train_recon.py.

    sft    the best trace of each pair that the base proposed is learned (rejection sampling)
    dpo    so is to prefer it to the worst, or to one that leaks (arXiv 2305.18290)
    soup   the sum of two by dpo, one leaning toward the action and one away from it (soup.py)
    grpo   the policy proposes, and the reward is how well the action is reconstructed (Recon-GRPO)
    e2e    likewise, but the reward is only whether the trace helps with another moment
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from usertwin.memory.models.embedding import Embedder
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.recon.fidelity import Fidelity
from usertwin.personas import Pair, UsageError

from .adapter_merge import cook
from .audit import Auditor
from .candidate_pool import ScoredCandidates, dpo_rows, sft_rows
from .checkpoints import CHECKPOINTS, check_room, last_checkpoint, prepare_resume, save_adapter, step_of, training_errors
from .config import TrainingConfig, TrainingResult
from .curves import CURVES, Curves
from .dataset import TrainingExample
from .policy import ends_of
from .trl_trainers import GroupRewards, group_trainer, preference_trainer, supervised_trainer

# Training, watched -----------------------------------------------------------------------------------------------------


def train(
    plan: TrainingConfig,
    lessons: Sequence[TrainingExample],
    folder: Path,
    model: Any,
    tokenizer: Any,
    auditor: Auditor,
    *,
    fidelity: Fidelity | None = None,
    guard: Callable[[str, Pair], str | None] | None = None,
    embedder: Embedder | None = None,
    pool: Sequence[ScoredCandidates] = (),
    lean: float = 0.0,
    progress: Progress = no_progress,
) -> TrainingResult:
    """Train, or go on with that; returns how it ended. The adapter is then in `folder`/adapter.

    Args:
        plan: how.
        lessons: what GRPO proposes traces for.
        folder: of this method in the run's folder; made if missing.
        model: the base; it is without an adapter again when this returns.
        tokenizer: its own.
        auditor: looks at the policy before the first step, at times, and after the last.
        fidelity: for GRPO.
        guard: for GRPO.
        embedder: for GRPO, see `rewards_of`.
        pool: for the others.
        lean: for DPO, see `preference_rows`.
        progress: is told how many steps are done, or, for GRPO, how many tokens generated.

    Raises:
        UsageError: something makes no sense, nothing can be learned from the pool, or there is no room for a checkpoint.
    """
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback

    from .callback import AuditCallback

    plan.check()
    plan.check_pairs(len(lessons))
    folder.mkdir(parents=True, exist_ok=True)
    check_room(model, folder, plan.adapter_rank)
    began = time.monotonic()
    tokens = sum(one.tokens for one in pool)
    if plan.method == "soup":
        by_dpo = replace(plan, method="dpo")

        def train_part(where: Path, lean: float) -> TrainingResult:
            return train(by_dpo, lessons, where, model, tokenizer, auditor, pool=pool, lean=lean, progress=progress)

        stopped, steps = cook(plan, folder, model, tokenizer, auditor, train_part)
        return TrainingResult(stopped, steps, tokens, time.monotonic() - began)
    checkpoint = last_checkpoint(folder / CHECKPOINTS)
    curves = Curves(folder / CURVES)
    curves.begin_at(-1 if checkpoint is None else step_of(checkpoint))
    watching = AuditCallback(plan, curves, auditor, tokenizer, progress)
    set_seed(plan.seed)  # the adapter's first weights are drawn before trl's trainers set it
    if plan.online:
        if fidelity is None or guard is None:
            raise UsageError(f'"{plan.method}" needs something that scores traces, and guards')
        rewards = GroupRewards(plan, lessons, fidelity, guard, ends_of(tokenizer, plan.style), embedder)
        watching.rewards, rewards.tokens = rewards, watching.tokens_before
        trainer = group_trainer(plan, folder, model, tokenizer, lessons, rewards.functions, watching)
    else:
        trainer = _pool_trainer(plan, folder, model, tokenizer, pool, watching, lean)
    trainer.remove_callback(PrinterCallback)  # it prints each step's figures where our bars are
    with training_errors(folder):
        prepare_resume(trainer, checkpoint, watching.over)
        watching.audit(trainer.model, trainer.state.global_step)
        save_adapter(trainer.model, tokenizer, folder)
    trainer.model.unload()
    spent = watching.tokens if plan.online else tokens
    return TrainingResult(watching.stopped, trainer.state.global_step, spent, time.monotonic() - began)


def _pool_trainer(
    plan: TrainingConfig, folder: Path, model: Any, tokenizer: Any, pool: Sequence[ScoredCandidates], watching: Any, lean: float
) -> Any:
    """The trainer of a method that learns from what the base proposed. UsageError if that is too little."""
    rows = (
        sft_rows(pool, plan.weights, plan.style, plan.proposal_mode)
        if plan.method == "sft"
        else dpo_rows(pool, plan.weights, plan.style, plan.proposal_mode, lean)
    )
    if len(rows) < plan.batch_size:
        raise UsageError(
            f"only {len(rows)} pairs of {len(pool)} have traces to learn from, fewer than a batch of {plan.batch_size}; "
            "take more pairs, a larger --group, or a smaller --batch"
        )
    make = supervised_trainer if plan.method == "sft" else preference_trainer
    return make(plan, folder, model, tokenizer, rows, watching)
