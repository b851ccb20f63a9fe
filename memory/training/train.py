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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from usertwin.memory.models.chat import Style
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.models.scoring import Precision
from usertwin.memory.recon.fidelity import Fidelity
from usertwin.memory.recon.judged_fidelity import FidelityName
from usertwin.memory.recon.propose import Proposing
from usertwin.memory.twin.add_traces import Progress, no_progress
from usertwin.personas import Pair, UsageError

from .adapter_merge import cook
from .audit import CURVES, Auditor, Curves
from .candidate_pool import Proposed, chosen_rows, preference_rows
from .checkpoints import CHECKPOINTS, check_room, go_on, last_checkpoint, save_adapter, step_of, told_in_one_sentence
from .dataset import Lesson
from .policy import ends_of
from .rewards import Weights
from .trl_trainers import GroupRewards, group_trainer, preference_trainer, supervised_trainer

TrainMethod = Literal["sft", "dpo", "soup", "grpo", "e2e"]
TRAIN_METHODS: tuple[TrainMethod, ...] = get_args(TrainMethod)

#: Learning rates for a LoRA, about ten times those for all weights.
LEARNING_RATES: Mapping[TrainMethod, float] = {"sft": 2e-4, "dpo": 5e-5, "soup": 5e-5, "grpo": 1e-4, "e2e": 1e-4}
#: How strongly the policy is held to the base: DPO's beta; GRPO's weight of the divergence.
BETAS: Mapping[TrainMethod, float] = {"sft": 0.0, "dpo": 0.1, "soup": 0.1, "grpo": 0.0, "e2e": 0.0}


@dataclass(frozen=True, slots=True)
class Training:
    """How a synthesizer is trained; two equal ones on the same lessons make the same adapter.

    Attributes:
        method: see the top of this file.
        base: the model's name.
        style: how it is prompted.
        how: with the action in sight, or without.
        fidelity: what scores a trace, for all methods but e2e.
        weights: of the reward's terms.
        group: traces of a pair.
        batch: traces of a step (GRPO), or rows of one (the others).
        at_once: of these, how many are in memory at once; it changes nothing else.
        budget: tokens to be generated, the same for every method.
        epochs: how often the others see each row.
        learning_rate: None for the method's own.
        beta: how strongly the policy is held to the base; None for the method's own.
        rank: of the LoRA; that of a soup has twice as much.
        lean: how much being near the action, from 0 to 1, counts for one part of a soup and against the other when traces are
            ranked.
        soup: the weights of these parts in the sum.
        precision: of the base's weights and sums; the adapter's are always float32.
        vllm: whether GRPO's traces are written by vLLM, on a GPU.
        tensorboard: whether curves are written for TensorBoard, too.
        save_every: steps between checkpoints.
        audit_every: steps between audits.
        seed: for everything that is drawn.
    """

    method: TrainMethod = "dpo"
    base: str = "local"
    style: Style = "transcript"
    how: Proposing = "backward"
    fidelity: FidelityName = "novel"
    weights: Weights = field(default_factory=Weights)
    group: int = 8
    batch: int = 16
    at_once: int = 4
    budget: int = 40_000
    epochs: float = 2.0
    learning_rate: float | None = None
    beta: float | None = None
    rank: int = 16
    lean: float = 0.3
    soup: tuple[float, float] = (2.0, 0.6)
    precision: Precision = "float32"
    vllm: bool = False
    tensorboard: bool = False
    save_every: int = 20
    audit_every: int = 20
    seed: int = 0

    @property
    def rate(self) -> float:
        """The learning rate."""
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def hold(self) -> float:
        """How strongly the policy is held to the base."""
        return BETAS[self.method] if self.beta is None else self.beta

    @property
    def adapter_rank(self) -> int:
        """The rank of what comes out."""
        return self.rank * (len(self.soup) if self.method == "soup" else 1)

    @property
    def online(self) -> bool:
        """Whether the policy itself writes what it learns from."""
        return self.method in {"grpo", "e2e"}

    def check(self) -> None:
        """UsageError if a number makes no sense, or two choices together do not."""
        if self.method not in TRAIN_METHODS:
            raise UsageError(f'"{self.method}" is no way to train; there are {", ".join(TRAIN_METHODS)}')
        if self.how not in {"backward", "forward"}:
            raise UsageError(f'traces to train on are proposed "backward" or "forward", not "{self.how}"')
        self.weights.check()
        if self.group < 2:
            raise UsageError(
                f"a group of {self.group}: traces are compared with others of the same pair, so at least 2 are needed"
            )
        if self.online and self.batch % self.group:
            raise UsageError(
                f"a batch of {self.batch} traces does not hold whole groups of {self.group}; take a multiple of {self.group}, "
                f"such as {max(1, round(self.batch / self.group)) * self.group}, or another --group"
            )
        if self.at_once < 1 or self.batch % self.at_once:
            raise UsageError(f"a batch of {self.batch} cannot be parted into portions of {self.at_once}; take a divisor of it")
        least = min(self.batch, self.rank, self.save_every, self.audit_every)
        if least < 1 or self.budget < self.group or not 0 < self.epochs < float("inf"):
            raise UsageError(
                "batch, rank, epochs and the steps between checkpoints and audits are at least 1, the budget a group"
            )
        if not all(0 <= number < float("inf") for number in (self.rate, self.hold)):
            raise UsageError("a learning rate and a beta are numbers, and not negative")
        if not 0 < self.lean < float("inf") or not all(0 < weight < float("inf") for weight in self.soup):
            raise UsageError("the lean of the parts of a soup, and their weights in it, are numbers above 0")
        if self.vllm and not self.online:
            raise UsageError(f'vLLM writes the traces of GRPO; "{self.method}" learns from those in the pool')

    def check_pairs(self, count: int) -> None:
        """UsageError if so many pairs do not fill a step in which the policy itself writes."""
        if self.online and count < self.batch // self.group:
            raise UsageError(
                f"only {count} pairs to train on, and a batch of {self.batch} holds groups of {self.batch // self.group}; "
                "take more pairs, a larger --group, or a smaller --batch"
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended.

    Attributes:
        stopped: why it stopped by itself; None if it came to its end.
        steps: of the optimizer.
        tokens: that were generated for it.
        seconds: its steps and audits took, without the proposals that it learned from; only since then, if it went on after a
            stop.
    """

    stopped: str | None
    steps: int
    tokens: int
    seconds: float


# Training, watched -----------------------------------------------------------------------------------------------------


def train(
    plan: Training,
    lessons: Sequence[Lesson],
    folder: Path,
    model: Any,
    tokenizer: Any,
    auditor: Auditor,
    *,
    fidelity: Fidelity | None = None,
    guard: Callable[[str, Pair], str | None] | None = None,
    embedder: Embedder | None = None,
    pool: Sequence[Proposed] = (),
    lean: float = 0.0,
    progress: Progress = no_progress,
) -> Outcome:
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

    from .callback import Watching

    plan.check()
    plan.check_pairs(len(lessons))
    folder.mkdir(parents=True, exist_ok=True)
    check_room(model, folder, plan.adapter_rank)
    began = time.monotonic()
    tokens = sum(one.tokens for one in pool)
    if plan.method == "soup":
        by_dpo = replace(plan, method="dpo")

        def train_part(where: Path, lean: float) -> Outcome:
            return train(by_dpo, lessons, where, model, tokenizer, auditor, pool=pool, lean=lean, progress=progress)

        stopped, steps = cook(plan, folder, model, tokenizer, auditor, train_part)
        return Outcome(stopped, steps, tokens, time.monotonic() - began)
    checkpoint = last_checkpoint(folder / CHECKPOINTS)
    curves = Curves(folder / CURVES)
    curves.begin_at(-1 if checkpoint is None else step_of(checkpoint))
    watching = Watching(plan, curves, auditor, tokenizer, progress)
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
    with told_in_one_sentence(folder):
        go_on(trainer, checkpoint, watching.over)
        watching.look(trainer.model, trainer.state.global_step)
        save_adapter(trainer.model, tokenizer, folder)
    trainer.model.unload()
    spent = watching.tokens if plan.online else tokens
    return Outcome(watching.stopped, trainer.state.global_step, spent, time.monotonic() - began)


def _pool_trainer(
    plan: Training, folder: Path, model: Any, tokenizer: Any, pool: Sequence[Proposed], watching: Any, lean: float
) -> Any:
    """The trainer of a method that learns from what the base proposed. UsageError if that is too little."""
    rows = (
        chosen_rows(pool, plan.weights, plan.style, plan.how)
        if plan.method == "sft"
        else preference_rows(pool, plan.weights, plan.style, plan.how, lean)
    )
    if len(rows) < plan.batch:
        raise UsageError(
            f"only {len(rows)} pairs of {len(pool)} have traces to learn from, fewer than a batch of {plan.batch}; "
            "take more pairs, a larger --group, or a smaller --batch"
        )
    make = supervised_trainer if plan.method == "sft" else preference_trainer
    return make(plan, folder, model, tokenizer, rows, watching)
