"""The configuration of a training, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from usertwin.memory.models.chat import Style
from usertwin.memory.models.scoring import Precision
from usertwin.memory.recon.judged_fidelity import FidelityName
from usertwin.memory.recon.propose import ProposalMode
from usertwin.personas import UsageError

from .rewards import RewardWeights

TrainMethod = Literal["sft", "dpo", "soup", "grpo", "e2e"]


TRAIN_METHODS: tuple[TrainMethod, ...] = get_args(TrainMethod)


#: Learning rates for a LoRA, about ten times those for all weights.
LEARNING_RATES: Mapping[TrainMethod, float] = {"sft": 2e-4, "dpo": 5e-5, "soup": 5e-5, "grpo": 1e-4, "e2e": 1e-4}


#: How strongly the policy is held to the base: DPO's beta; GRPO's weight of the divergence.
BETAS: Mapping[TrainMethod, float] = {"sft": 0.0, "dpo": 0.1, "soup": 0.1, "grpo": 0.0, "e2e": 0.0}


@dataclass(frozen=True, slots=True)
class TrainingConfig:
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
    proposal_mode: ProposalMode = "backward"
    fidelity: FidelityName = "novel"
    weights: RewardWeights = field(default_factory=RewardWeights)
    group_size: int = 8
    batch_size: int = 16
    micro_batch_size: int = 4
    token_budget: int = 40_000
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
    def resolved_learning_rate(self) -> float:
        """The learning rate."""
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def resolved_beta(self) -> float:
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
        if self.proposal_mode not in {"backward", "forward"}:
            raise UsageError(f'traces to train on are proposed "backward" or "forward", not "{self.proposal_mode}"')
        self.weights.check()
        if self.group_size < 2:
            raise UsageError(
                f"a group of {self.group_size}: traces are compared with others of the same pair, so at least 2 are needed"
            )
        if self.online and self.batch_size % self.group_size:
            raise UsageError(
                f"a batch of {self.batch_size} traces does not hold whole groups of {self.group_size}; take a multiple of {self.group_size}, "
                f"such as {max(1, round(self.batch_size / self.group_size)) * self.group_size}, or another --group"
            )
        if self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size:
            raise UsageError(
                f"a batch of {self.batch_size} cannot be parted into portions of {self.micro_batch_size}; take a divisor of it"
            )
        least = min(self.batch_size, self.rank, self.save_every, self.audit_every)
        if least < 1 or self.token_budget < self.group_size or not 0 < self.epochs < float("inf"):
            raise UsageError(
                "batch, rank, epochs and the steps between checkpoints and audits are at least 1, the budget a group"
            )
        if not all(0 <= number < float("inf") for number in (self.resolved_learning_rate, self.resolved_beta)):
            raise UsageError("a learning rate and a beta are numbers, and not negative")
        if not 0 < self.lean < float("inf") or not all(0 < weight < float("inf") for weight in self.soup):
            raise UsageError("the lean of the parts of a soup, and their weights in it, are numbers above 0")
        if self.vllm and not self.online:
            raise UsageError(f'vLLM writes the traces of GRPO; "{self.method}" learns from those in the pool')

    def check_pairs(self, count: int) -> None:
        """UsageError if so many pairs do not fill a step in which the policy itself writes."""
        if self.online and count < self.batch_size // self.group_size:
            raise UsageError(
                f"only {count} pairs to train on, and a batch of {self.batch_size} holds groups of {self.batch_size // self.group_size}; "
                "take more pairs, a larger --group, or a smaller --batch"
            )


@dataclass(frozen=True, slots=True)
class TrainingResult:
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
