"""Thresholds of a run that set the exit code."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from usertwin.evals.metrics.statistics import MIN_CONVERSATIONS
from usertwin.personas import UsageError

from .rates import Rate
from .summary import Summary

_RATES = ("min_pass_rate", "min_goal_rate", "max_agent_faults", "max_twin_faults")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Limits that a run must keep; None is no limit.

    Attributes:
        min_pass_rate: of usable conversations.
        min_goal_rate: of usable conversations whose goal has a rule or a judge.
        max_agent_faults: of conversations without a fault of the twin.
        max_twin_faults: of all conversations; above it, the run says little about the agent.
        max_reply_seconds: the time within which 95% of the agent's replies must come.
        min_conversations: usable conversations below which the limits of the agent have no verdict, which is a failure.
        by_interval: whether the worse end of the 95% interval must keep a limit, instead of the share itself.
    """

    min_pass_rate: float | None = None
    min_goal_rate: float | None = None
    max_agent_faults: float | None = None
    max_twin_faults: float | None = None
    max_reply_seconds: float | None = None
    min_conversations: int = MIN_CONVERSATIONS
    by_interval: bool = False

    def __post_init__(self) -> None:
        for name in _RATES:
            value: float | None = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be a share from 0 to 1")
        if self.max_reply_seconds is not None and not self.max_reply_seconds > 0:
            raise UsageError(f"--max-reply-seconds is {self.max_reply_seconds}; it must be above 0")
        if self.min_conversations < 1:
            raise UsageError(f"--min-conversations is {self.min_conversations}; it must be at least 1")

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return any(self._given(field.name) is not None for field in fields(self) if field.default is None)

    def failures(self, summary: Summary) -> list[str]:
        """Return a sentence for each limit that a run does not keep; empty if it keeps all."""
        failures: list[str] = []
        about_agent = (self.min_pass_rate, self.min_goal_rate, self.max_agent_faults, self.max_reply_seconds)
        if any(limit is not None for limit in about_agent) and summary.usable < self.min_conversations:
            few = f"no verdict on the agent: {summary.usable} of {summary.conversations} conversations are usable"
            failures.append(f"{few}, and {self.min_conversations} are needed (--min-conversations)")
        else:
            failures += self._below("pass rate", summary.pass_rate, self.min_pass_rate, "--min-pass-rate")
            if self.min_goal_rate is not None and summary.goal_rate is None:
                failures.append("no verdict on the goal: neither a rule nor a judge says when it is reached (--min-goal-rate)")
            failures += self._below("goal reached", summary.goal_rate, self.min_goal_rate, "--min-goal-rate")
            failures += self._above("faults of the agent", summary.agent_faults, self.max_agent_faults, "--max-agent-faults")
            seconds, limit = summary.reply_seconds, self.max_reply_seconds
            if seconds is not None and limit is not None and seconds.p95 > limit:
                failures.append(f"replies: 95% come within {seconds.p95:.2f} s, above {limit:g} s (--max-reply-seconds)")
        failures += self._above("faults of the twin", summary.twin_faults, self.max_twin_faults, "--max-twin-faults")
        return failures

    def _below(self, name: str, rate: Rate | None, limit: float | None, option: str) -> list[str]:
        if rate is None or limit is None or (rate.low if self.by_interval else rate.value) >= limit:
            return []
        return [f"{name}: {self._shown(rate, 'lower', rate.low)}, below {limit:.0%} ({option})"]

    def _above(self, name: str, rate: Rate | None, limit: float | None, option: str) -> list[str]:
        if rate is None or limit is None or (rate.high if self.by_interval else rate.value) <= limit:
            return []
        return [f"{name}: {self._shown(rate, 'upper', rate.high)}, above {limit:.0%} ({option})"]

    def _shown(self, rate: Rate, end: str, value: float) -> str:
        share = f"{rate.value:.1%} of {rate.n}"
        return f"{share}, the {end} end of the interval {value:.1%}" if self.by_interval else share

    def _given(self, name: str) -> Any:
        return getattr(self, name)
