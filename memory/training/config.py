"""The configuration of a training run, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, get_args

from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.models.scoring import Precision
from usertwin.memory.recon.judged_fidelity import FidelityName
from usertwin.memory.recon.propose import ProposalMode
from usertwin.personas import UsageError

from .rewards import RewardWeights

TrainMethod = Literal["sft", "dpo", "grpo", "e2e"]
TRAIN_METHODS: tuple[TrainMethod, ...] = get_args(TrainMethod)
ReportTo = Literal["none", "tensorboard"]

#: Learning rates for a LoRA adapter: about ten times those for full fine-tuning.
LEARNING_RATES: Mapping[TrainMethod, float] = {"sft": 2e-4, "dpo": 5e-5, "grpo": 1e-4, "e2e": 1e-4}
#: DPO's beta, and the weight of the KL term in GRPO.
BETAS: Mapping[TrainMethod, float] = {"sft": 0.0, "dpo": 0.1, "grpo": 0.0, "e2e": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How a synthesizer is trained. Equal configurations on equal data give equal adapters.

    Attributes:
        method: one of `TRAIN_METHODS`; train.py describes them.
        base: name of the base model.
        style: prompt style.
        proposal_mode: "backward" shows the action to the policy, "forward" does not.
        fidelity: what scores a trace; "e2e" ignores it.
        weights: weights of the reward terms.
        group_size: traces sampled per pair.
        batch_size: traces per step (GRPO), or rows per step (SFT, DPO).
        micro_batch_size: traces or rows per forward pass. It does not change the result.
        token_budget: tokens to generate, the same for every method.
        epochs: passes over the rows (SFT, DPO).
        learning_rate: None for the default of the method.
        beta: see `BETAS`; None for the default of the method.
        rank: rank of the LoRA adapter.
        precision: precision of the base model; the adapter is always float32.
        vllm: whether vLLM samples the traces of GRPO; needs a GPU.
        report_to: where trl reports its metrics, besides the run folder.
        save_every: steps between checkpoints.
        audit_every: steps between audits.
        seed: seed of all sampling.
    """

    method: TrainMethod = "dpo"
    base: str = "local"
    style: PromptStyle = "transcript"
    proposal_mode: ProposalMode = "backward"
    fidelity: FidelityName = "guarded_gain"
    weights: RewardWeights = field(default_factory=RewardWeights)
    group_size: int = 8
    batch_size: int = 16
    micro_batch_size: int = 4
    token_budget: int = 40_000
    epochs: float = 2.0
    learning_rate: float | None = None
    beta: float | None = None
    rank: int = 16
    precision: Precision = "float32"
    vllm: bool = False
    report_to: ReportTo = "none"
    save_every: int = 20
    audit_every: int = 20
    seed: int = 0

    @property
    def resolved_learning_rate(self) -> float:
        """Return the learning rate, or the default of the method."""
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def resolved_beta(self) -> float:
        """Return beta, or the default of the method."""
        return BETAS[self.method] if self.beta is None else self.beta

    @property
    def online(self) -> bool:
        """Return whether the policy samples the traces it learns from."""
        return self.method in {"grpo", "e2e"}

    def check(self) -> None:
        """Raise UsageError if a value is out of range, or two values contradict each other."""
        if self.method not in TRAIN_METHODS:
            raise UsageError(f'--method: "{self.method}" is unknown; choose from {", ".join(TRAIN_METHODS)}')
        if self.proposal_mode not in {"backward", "forward"}:
            raise UsageError(f'--propose: training needs "backward" or "forward", not "{self.proposal_mode}"')
        if self.report_to not in get_args(ReportTo):
            raise UsageError(f'--report-to: "{self.report_to}" is unknown; choose from {", ".join(get_args(ReportTo))}')
        self.weights.check()
        if self.group_size < 2:
            raise UsageError(f"--group-size is {self.group_size}; it must be at least 2, since traces of a pair are compared")
        for option, value in (
            ("--batch-size", self.batch_size),
            ("--micro-batch-size", self.micro_batch_size),
            ("--rank", self.rank),
            ("--save-every", self.save_every),
            ("--audit-every", self.audit_every),
        ):
            if value < 1:
                raise UsageError(f"{option} is {value}; it must be at least 1")
        if self.online and self.batch_size % self.group_size:
            nearest = max(1, round(self.batch_size / self.group_size)) * self.group_size
            raise UsageError(
                f"--batch-size {self.batch_size} does not hold whole groups of {self.group_size}; take a multiple of "
                f"{self.group_size}, such as {nearest}, or change --group-size"
            )
        if self.batch_size % self.micro_batch_size:
            raise UsageError(
                f"--batch-size {self.batch_size} is not a multiple of --micro-batch-size {self.micro_batch_size}; change one"
            )
        if self.token_budget < self.group_size:
            raise UsageError(f"--token-budget is {self.token_budget}; it must be at least --group-size ({self.group_size})")
        if not 0 < self.epochs < float("inf"):
            raise UsageError(f"--epochs is {self.epochs:g}; it must be a number above 0")
        for option, value in (("--learning-rate", self.resolved_learning_rate), ("--beta", self.resolved_beta)):
            if not 0 <= value < float("inf"):
                raise UsageError(f"{option} is {value:g}; it must be a finite number, and not negative")
        if self.vllm and not self.online:
            raise UsageError(f'--vllm: only grpo and e2e sample with vLLM, not "{self.method}"; leave --vllm out')

    def check_pairs(self, count: int) -> None:
        """Raise UsageError if an online method cannot fill one step with `count` training pairs."""
        groups = self.batch_size // self.group_size
        if self.online and count < groups:
            raise UsageError(
                f"only {count} pairs to train on, and --batch-size {self.batch_size} holds {groups} groups; take more pairs, a "
                "larger --group-size or a smaller --batch-size"
            )


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a training ended.

    Attributes:
        stopped: why it stopped early; None if it ran to its end.
        steps: optimizer steps.
        tokens: tokens generated for it.
        seconds: duration of steps and audits, without the sampling of candidates; since the last resume only.
        lessons: the counts of `Lessons`; empty for a training of an earlier version.
    """

    stopped: str | None
    steps: int
    tokens: int
    seconds: float
    _: KW_ONLY
    lessons: Mapping[str, int] = field(default_factory=dict[str, int])
