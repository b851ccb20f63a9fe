"""The trl callback that audits a training, counts generated tokens, and stops it.

Design: a file of its own, because the class derives from transformers' class and that import takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerCallback

from usertwin.memory.progress import Progress
from usertwin.memory.recon.propose import sees_action

from .audit import Audit, Auditor, reason_to_stop

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from .config import TrainingConfig
    from .trl_trainers import GroupRewards

_PREFIX = "audit/"


class AuditCallback(TrainerCallback):
    """Audits every `audit_every` steps; stops when the audit rises or the token budget is spent.

    Audits are entries of trl's log history, so a checkpoint holds them and reporting tools show them. `trainer` must be set
    before training.

    Args:
        config: the training configuration.
        auditor: audits the policy.
        tokenizer: the policy's tokenizer.
        progress: receives the steps done, or for online methods the tokens generated.
        rewards: counts the tokens of an online method.
    """

    trainer: Trainer

    def __init__(
        self,
        config: TrainingConfig,
        auditor: Auditor,
        tokenizer: Any,
        progress: Progress,
        rewards: GroupRewards | None = None,
    ) -> None:
        self._config, self._auditor, self._tokenizer, self._progress = config, auditor, tokenizer, progress
        self._rewards = rewards
        #: Why training stopped early.
        self.stopped: str | None = None

    def is_finished(self, state: TrainerState) -> bool:
        """Return whether training had stopped early in the state of a checkpoint; restores the counts of the rewards."""
        if self._rewards is not None:
            self._rewards.restore(state.log_history)
        audits = logged_audits(state.log_history)
        last = max(audits, default=0)
        if last and last == state.global_step and 0 in audits:
            self.stopped = self._reason_to_stop(audits[0], audits[last])
        return self.stopped is not None or self._budget_spent

    @property
    def _budget_spent(self) -> bool:
        return self._rewards is not None and self._rewards.tokens >= self._config.token_budget

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:  # fmt: skip
        """Audit the untrained policy, unless the log history already holds that audit."""
        if 0 not in logged_audits(state.log_history):
            self.audit(kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Audit and decide whether to stop. This runs before the checkpoint of the step, so the checkpoint holds the audit."""
        if self._rewards is None:
            self._progress("steps", state.global_step, state.max_steps)
        else:
            self._progress("tokens", min(self._rewards.tokens, self._config.token_budget), self._config.token_budget)
        if self._budget_spent:
            control.should_training_stop = True
        if state.global_step % self._config.audit_every == 0:
            should_log = control.should_log
            audit = self.audit(kwargs["model"])
            control.should_log = should_log  # logging the audit resets it, and the step's own metrics would be lost
            self.stopped = self._reason_to_stop(logged_audits(state.log_history)[0], audit)
            if self.stopped is not None:
                control.should_training_stop = True

    def _reason_to_stop(self, first: Audit, latest: Audit) -> str | None:
        # A forward trace that identifies the action leaks nothing: it foresees it.
        return reason_to_stop(first, latest) if sees_action(self._config.proposal_mode) else None

    def audit(self, model: Any) -> Audit:
        """Audit the policy after the current step and log it, or return the logged audit of that step."""
        state: Any = self.trainer.state
        known = logged_audits(state.log_history).get(state.global_step)
        if known is not None:
            return known
        audit = self._auditor(model, self._tokenizer)
        # trl's own `log` would take the metrics of the step that is still open.
        numbers = {name: value for name, value in asdict(audit).items() if value is not None and name != "margins"}
        Trainer.log(self.trainer, {f"{_PREFIX}{name}": round(value, 6) for name, value in numbers.items()})
        # Added after the log, since reporting tools take numbers only.
        state.log_history[-1][f"{_PREFIX}margins"] = list(audit.margins)
        return audit


def logged_audits(log_history: Sequence[Mapping[str, Any]]) -> dict[int, Audit]:
    """Return the audits in a log history of trl, by step."""
    return {
        row["step"]: Audit(**{_field(name): _value(value) for name, value in row.items() if name.startswith(_PREFIX)})
        for row in log_history
        if f"{_PREFIX}n" in row
    }


def _field(name: str) -> str:
    name = name.removeprefix(_PREFIX)
    return "reveals_action" if name == "gives_away" else name  # the name in development snapshots before 0.1.0


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
