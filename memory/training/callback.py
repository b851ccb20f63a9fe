"""The callback that watches a training of trl's: curves, audits, the budget, and the reason to stop.

The one design choice: it is a file of its own because a callback must inherit from transformers' class, and importing that
takes seconds which nobody who only plans a training should wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from .audit import Audit, Auditor, reason_to_stop
from .curves import Curves

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from .config import TrainingConfig
    from .trl_trainers import GroupRewards

#: What a step logs, by what trl calls it.
_LOGGED = {
    "loss": "loss", "reward": "reward", "reward_std": "reward_std", "frac_reward_zero_std": "no_variance",
    "rewards/fidelity/mean": "fidelity", "rewards/leak/mean": "leak", "rewards/length/mean": "length",
    "rewards/format/mean": "format", "novel": "novel", "leak_rate": "leak_rate", "rejected": "rejected", "words": "words",
    "tokens": "tokens", "kl": "kl", "entropy": "entropy", "grad_norm": "grad_norm", "learning_rate": "learning_rate",
    "rewards/margins": "margin", "rewards/accuracies": "accuracy", "mean_token_accuracy": "token_accuracy",
}  # fmt: skip


class AuditCallback(TrainerCallback):
    """Notes every step, audits every so many, and stops where the audit rises or the budget is spent.

    Args:
        plan: how it is trained.
        curves: where it is noted.
        auditor: looks at the policy.
        tokenizer: the policy's.
        progress: is told how far things are.
    """

    def __init__(
        self, plan: TrainingConfig, curves: Curves, auditor: Auditor, tokenizer: Any, progress: Callable[[str, int, int], None]
    ) -> None:
        self._plan, self._curves, self._auditor, self._tokenizer, self._progress = plan, curves, auditor, tokenizer, progress
        self._first = curves.first_audit()
        self._last: tuple[int, Audit] | None = curves.last_audit()
        #: What counts the tokens that GRPO generates.
        self.rewards: GroupRewards | None = None
        #: Why training stopped by itself.
        self.stopped: str | None = None

    @property
    def tokens_before(self) -> int:
        """Tokens that were generated before training was stopped and went on."""
        told = [row["values"]["tokens"] for row in self._curves.read() if "tokens" in row.get("values", {})]
        return int(told[-1]) if told else 0

    @property
    def tokens(self) -> int:
        """Tokens generated so far."""
        return 0 if self.rewards is None else self.rewards.tokens

    def over(self, step: int) -> bool:
        """Whether training was to stop by itself at a step that it was brought back to."""
        if self._first is not None and self._last is not None and self._last[0] == step:
            self.stopped = reason_to_stop(self._first, self._last[1])
        return self.stopped is not None or (self.rewards is not None and self.tokens >= self._plan.token_budget)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:  # fmt: skip
        """Look at the policy before the first step, if that was not done."""
        if self._first is None:
            self._first = self.audit(kwargs["model"], 0)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note what a step logs."""
        values = {_LOGGED[name]: float(value) for name, value in (logs or {}).items() if name in _LOGGED}
        if values and "train_runtime" not in (logs or {}):
            self._curves.add({"step": state.global_step, "values": values})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Audit, and decide whether to go on; before the checkpoint of the step is written, so that it holds the audit."""
        if self.rewards is None:
            self._progress("steps", state.global_step, state.max_steps)
        else:
            self._progress("tokens", min(self.tokens, self._plan.token_budget), self._plan.token_budget)
            if self.tokens >= self._plan.token_budget:
                control.should_training_stop = True
        if state.global_step % self._plan.audit_every == 0:
            now = self.audit(kwargs["model"], state.global_step)
            self.stopped = reason_to_stop(self._first, now) if self._first is not None else None
            if self.stopped is not None:
                control.should_training_stop = True

    def audit(self, model: Any, step: int) -> Audit:
        """Audit the policy after a step, and note it; what was looked at is not looked at again."""
        if self._last is None or self._last[0] != step:
            self._last = step, self._auditor(model, self._tokenizer)
            self._curves.add_audit(*self._last)
        return self._last[1]
