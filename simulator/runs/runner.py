"""Runs jobs concurrently, writes each conversation as it ends, and ends within the budget.

Where a conversation runs is the executor's business: in this process (local.py) or on a cluster (on_ray.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from usertwin.memory.concurrency import run_concurrently
from usertwin.memory.models.chat import Usage

from ..conversation import ConversationStopped
from ..records import CheckResult, Exchange, Simulation
from .jobs import Job, Spending
from .run_folder import RunFolder


class Slot(Protocol):
    """One place where conversations run, one after the other."""

    async def run(
        self, job: Job, simulation: Simulation, spending: Spending, on_exchange: Callable[[Exchange], None]
    ) -> Simulation:
        """Return the finished conversation; `simulation` is its record when it begins.

        Raises:
            ConversationStopped: `spending` said between two turns that the run ends.
        """
        ...

    def price_of(self, job: Job, usage: Usage) -> float | None:
        """Return the US dollars that model calls of the job's twin cost; None if the price is unknown."""
        ...

    def close(self) -> None:
        """End what the slot began."""
        ...


class Executor(Protocol):
    """Where the jobs of a run run."""

    def slot(self) -> Slot:
        """Return a new place for conversations."""
        ...


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        total: conversations of the run.
        before: those of them that an earlier start finished.
        spending: what this start has spent.
        finished: conversations that this start finished.
        turns: turns of the twins in this start.
        stop_reasons: how many conversations of the whole run ended for each reason.
    """

    total: int
    before: int = 0
    spending: Spending = field(default_factory=Spending)
    finished: int = 0
    turns: int = 0
    stop_reasons: Counter[str] = field(default_factory=Counter[str])

    @property
    def done(self) -> int:
        """Finished conversations, of all starts."""
        return self.before + self.finished

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the run is finished, at the rate so far; None before the first conversation has ended."""
        if not self.finished:
            return None
        return self.spending.seconds / self.finished * (self.total - self.done)


@dataclass(frozen=True, slots=True)
class Watcher:
    """Callbacks of a run; each may raise to end it.

    Attributes:
        on_exchange: called with each complete exchange.
        on_finished: called with each finished conversation, after it was written.
        checks: returns the checks of the agent in a finished conversation, before it is written; None for no checks.
    """

    on_exchange: Callable[[Job, Exchange, Progress], None] = lambda job, exchange, progress: None
    on_finished: Callable[[Job, Simulation, Progress], None] = lambda job, simulation, progress: None
    checks: Callable[[Simulation], Awaitable[list[CheckResult]]] | None = None


async def run_jobs(
    jobs: Sequence[Job], executor: Executor, *, run_id: str, done: Set[str] = frozenset(), folder: RunFolder | None = None,
    concurrency: int = 1, progress: Progress, watcher: Watcher,
) -> bool:  # fmt: skip
    """Run the jobs that are not done; return whether all are done now.

    A conversation that is interrupted is kept among the unfinished ones of the folder, and runs again in the next start.
    """
    waiting: Iterator[Job] = iter([job for job in jobs if job.id not in done])

    async def work() -> None:
        slot = executor.slot()
        try:
            for job in waiting:
                if progress.spending.is_set():
                    return
                await _run_one(job, slot, run_id=run_id, folder=folder, progress=progress, watcher=watcher)
        finally:
            slot.close()

    await run_concurrently(work, min(concurrency, max(1, len(jobs) - len(done))))
    return progress.done == progress.total


async def _run_one(
    job: Job, slot: Slot, *, run_id: str, folder: RunFolder | None, progress: Progress, watcher: Watcher
) -> None:
    simulation = job.begin(run_id)

    def note(exchange: Exchange) -> None:
        progress.turns += 1
        progress.spending.add(exchange.answer.usage, slot.price_of(job, exchange.answer.usage))
        watcher.on_exchange(job, exchange, progress)

    try:
        simulation = await slot.run(job, simulation, progress.spending, note)
        if watcher.checks is not None:
            simulation.checks = await watcher.checks(simulation)
    except BaseException as error:
        if folder is not None and simulation.exchanges:
            with suppress(OSError):  # the disk may be full, and that may be the error
                folder.add_unfinished(simulation)
        if isinstance(error, ConversationStopped):
            return
        raise
    if folder is not None:
        folder.add(simulation)
    progress.finished += 1
    progress.stop_reasons[simulation.stop_reason] += 1
    watcher.on_finished(job, simulation, progress)
