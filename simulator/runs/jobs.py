"""The conversations of a run, and what bounds the run as a whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, ClassVar
from uuid import UUID, uuid5

from usertwin.memory.models.chat import Usage
from usertwin.personas import UsageError
from usertwin.personas.reading import STRICT, as_type

from ..records import Simulation, conversation_id
from ..scenarios.scenario import Scenario

#: The namespace of the thread ids that agents get, derived from the run and the conversation.
_THREADS = UUID("8f0f4a6e-55c4-4a7e-9f0e-6a3c6a5b1c10")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One conversation of a run.

    Attributes:
        scenario: what it is about.
        twin: the name of the twin that talks.
        repeat: its number among those of this scenario and twin, from 0.
        seed: its seed.
    """

    scenario: Scenario
    twin: str
    repeat: int
    seed: int

    @property
    def id(self) -> str:
        """Its name in the run."""
        return conversation_id(self.scenario.name, self.twin, self.repeat)

    def to_json(self) -> dict[str, Any]:
        """Return the job as a JSON object."""
        return {"scenario": self.scenario.to_json(), "twin": self.twin, "repeat": self.repeat, "seed": self.seed}

    @classmethod
    def from_json(cls, raw: Any) -> Job:
        """Return the job that `to_json` wrote; functions of its scenario stay names. ValueError if it is none."""
        fields = as_type(dict[str, Any], raw)
        return cls(
            scenario=Scenario.from_json(fields.get("scenario")), twin=as_type(str, fields.get("twin")),
            repeat=as_type(int, fields.get("repeat")), seed=as_type(int, fields.get("seed")),
        )  # fmt: skip

    def begin(self, run_id: str) -> Simulation:
        """Return the record of the conversation before it begins.

        Its thread id depends on `run_id`, which is another one in each start of a run: an agent that keeps a conversation by
        its id must not remember the one that was stopped in the middle.
        """
        return Simulation(
            twin=self.twin, goal=self.scenario.goal, seed=self.seed, thread_id=thread_id(run_id, self.id),
            scenario=self.scenario.name, repeat=self.repeat,
        )  # fmt: skip


def thread_id(run_id: str, conversation: str) -> str:
    """Return the id that an agent gets for a conversation of a run."""
    return uuid5(_THREADS, f"{run_id}/{conversation}").hex


def jobs_of(planned: Sequence[tuple[Scenario, str, int]], seed: int) -> list[Job]:
    """Return a job for each (scenario, twin, repeat); its seed is that of the run plus its repeat.

    So two agents, and two scenarios, meet the same seeds.

    Raises:
        UsageError: two conversations would have the same name.
    """
    jobs = [Job(scenario=scenario, twin=twin, repeat=repeat, seed=seed + repeat) for scenario, twin, repeat in planned]
    if len({job.id for job in jobs}) < len(jobs):
        raise UsageError("two scenarios have the same name and twin; give each scenario a name of its own")
    return jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a run may cost. It ends between two turns when one limit is reached, and can be continued with a larger one.

    Attributes:
        dollars: US dollars for the twins' model calls.
        tokens: input and output tokens of the twins' model calls.
        seconds: wall time.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    dollars: float = inf
    tokens: float = inf
    seconds: float = inf

    def __post_init__(self) -> None:
        for name in ("dollars", "tokens", "seconds"):
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise UsageError(f"budget: {name} is {value!r}; it must be a number above 0")

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return any(map(isfinite, (self.dollars, self.tokens, self.seconds)))


class Spending:
    """What a run has spent, and whether it ends: conversations look at `is_set` between two turns.

    Args:
        budget: the limits.

    Attributes:
        budget: the limits.
        usage: tokens of the twins' model calls.
        dollars: their cost; None if the price of a model is unknown.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget, self.usage = budget or Budget(), Usage()
        self.dollars: float | None = 0.0
        self._started, self._stopped = time.monotonic(), threading.Event()

    def add(self, usage: Usage, dollars: float | None) -> None:
        """Add what a turn cost; dollars are None if the price is unknown."""
        self.usage += usage
        self.dollars = None if dollars is None or self.dollars is None else self.dollars + dollars

    @property
    def seconds(self) -> float:
        """Wall time since the run began or was continued."""
        return time.monotonic() - self._started

    @property
    def exhausted(self) -> str | None:
        """The limit that is reached, in words; None if none is."""
        tokens = self.usage.input_tokens + self.usage.output_tokens
        if self.dollars is not None and self.dollars >= self.budget.dollars:
            return f"{self.budget.dollars:g} dollars"
        if tokens >= self.budget.tokens:
            return f"{self.budget.tokens:,.0f} tokens"
        return f"{self.budget.seconds:g} seconds" if self.seconds >= self.budget.seconds else None

    def stop(self) -> None:
        """End the run between two turns."""
        self._stopped.set()

    def is_set(self) -> bool:
        """Return whether the run ends."""
        return self._stopped.is_set() or self.exhausted is not None
