"""Conversations on a Ray cluster: `RayExecutor`, and `arun_on_ray`, which runs the jobs of scenarios there.

Each worker is a Ray actor (see ray_worker.py). Only this process writes the folder of the run, and only whole conversations, so
the files equal those of a run in one process, whatever workers die. Jobs and conversations cross as JSON text; Ray itself
pickles its messages and the reference to our class.

Design: Ray could restart an actor by itself, but a cluster that has lost a node has no place for it, and its conversations
would wait for ever. So a dead worker is replaced here, and dropped if its successor does not start.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from usertwin.memory.concurrency import gather, to_thread
from usertwin.memory.event_loop import in_caller
from usertwin.memory.models.chat import FREE, Price, Usage
from usertwin.memory.twin.record import default_home
from usertwin.personas import UsageError, UsertwinError, errors
from usertwin.personas.secrets import take_logins

from ..agents import as_agent
from ..backends.model_name import LOCAL_KINDS, ModelName, kind_of
from ..conversation import ConversationStopped
from ..records import Exchange, Simulation
from ..scenarios.scenario import Scenario
from .jobs import Job, Spending
from .local import Twins
from .many import RunOptions, arun
from .ray_cluster import RayCluster, first_line
from .ray_worker import Worker, WorkerSetup, own_versions
from .runner import Progress

#: Times that a conversation may lose its worker; before the last one it has a worker for itself.
_TRIES = 3
#: Seconds in which a worker must have started, which may include a download, and between two looks whether the run ends.
_START, _LOOK = 600.0, 0.2
#: Conversations of a worker at a time; Ray's own limit is lower.
_MOST_CALLS = 10_000


async def arun_on_ray(
    jobs: Sequence[Job], agent: Any, twins: Twins, options: RunOptions, *, address: str | None = None,
    workers: int | None = None, price: Price | None = None, per_worker: int | None = None, **arguments: Any,
) -> Progress:  # fmt: skip
    """Run jobs on a Ray cluster, as `arun` does in this process; the arguments are those of `arun` and of `RayExecutor`.

    With `per_worker`, each worker has this many conversations at a time, whatever the concurrency in the options.

    Raises:
        UsageError: Ray is not installed, there is no such cluster, a worker cannot begin, or as `arun`.
        UsertwinError: a conversation ends its worker again and again.
    """
    async with RayExecutor(agent, twins, options, address=address, workers=workers, price=price) as executor:
        if per_worker is not None:
            options = replace(options, concurrency=per_worker * executor.workers)
        return await arun(jobs, agent, twins, options, executor=executor, **arguments)


class RayExecutor:
    """Runs the conversations of one run on the workers of a Ray cluster; an async context manager.

    Args:
        agent: the agent under test, by a name that the workers can import.
        twins: the twins, none of them opened here, in a folder that all nodes share, with the model that acts by its name.
        options: how the run goes.
        address: the cluster's address, "HOST:PORT"; by default the cluster that RAY_ADDRESS names or that runs on this machine,
            else one that is started for the run.
        workers: number of workers; by default one for each free processor of the cluster.
        price: the price of a hosted model.

    Attributes:
        workers: the number of workers, once it was entered.

    Raises:
        UsageError: a worker could not import the agent, or could not load the model.
    """

    def __init__(
        self, agent: Any, twins: Twins, options: RunOptions, *, address: str | None = None, workers: int | None = None,
        price: Price | None = None,
    ) -> None:  # fmt: skip
        if workers is not None and workers < 1:
            raise UsageError(f"the number of workers is {workers}; it must be at least 1")
        self._setup = _setup(agent, twins, options)
        self._twins, self._wanted, self.workers = twins, workers, 0
        self._price = price if ModelName.parse(self._setup.model).is_hosted else FREE
        self._versions, self._limit = own_versions(twins.style), options.agent_concurrency
        self._cluster = RayCluster(address)
        self._ray = self._cluster.ray
        self._pool, self._changed, self._last_loss = list[_Remote](), asyncio.Event(), ""
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Connect with the cluster, and begin the workers."""
        self.workers = await to_thread(self._cluster.connect, self._wanted)
        try:
            if self._limit is not None:
                self.workers = min(self.workers, self._limit)  # each needs a share
            self._pool = [self._new(share) for share in _shares(self._limit, self.workers)]
            await gather(*(_wait_for(remote.ready) for remote in self._pool))
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    def slot(self) -> RaySlot:
        """Return a new place for conversations, on whatever worker has the fewest of them."""
        return RaySlot(self)

    def price_of(self, usage: Usage) -> float | None:
        """Return the US dollars that model calls cost; None if the price is unknown."""
        return None if self._price is None else self._price.cost_of(usage)

    async def run(
        self, job: Job, simulation: Simulation, spending: Spending, on_exchange: Callable[[Exchange], None]
    ) -> Simulation:
        """Return the finished conversation; if its worker dies, it begins again on another one.

        Raises:
            ConversationStopped: `spending` said between two turns that the run ends.
            UsertwinError: the conversation has lost all workers that it ran on, or there is no worker left.
        """
        if self._watching is None:
            self._watching = asyncio.create_task(self._stop_with(spending))
        for attempt in range(1, _TRIES + 1):
            if spending.is_set():
                raise ConversationStopped(simulation)
            async with self._worker(alone=attempt == _TRIES) as remote:
                try:
                    return await self._converse(remote, job, simulation, on_exchange)
                except _WorkerLost as loss:
                    self._last_loss = str(loss)
                    self._replace(remote)
            simulation.messages.clear()
            simulation.exchanges.clear()
            simulation.thread_id = uuid4().hex  # the agent may remember the lost one
        raise UsertwinError(
            f"{job.id}: this conversation ended its worker {_TRIES} times, the last time as the only one that ran there "
            f"({self._last_loss}); run the agent in processes of its own (--agent-process)"
        )

    async def _converse(
        self, remote: _Remote, job: Job, simulation: Simulation, on_exchange: Callable[[Exchange], None]
    ) -> Simulation:
        speaker = self._twins.speaker(job.twin)
        request = json.dumps({"job": _sent(job).to_json(), "simulation": simulation.to_json()})
        try:
            async for reference in remote.actor.converse.options(num_returns="streaming").remote(request):
                event: dict[str, Any] = json.loads(await reference)
                if "exchange" in event:
                    simulation.messages += event["messages"]
                    simulation.exchanges.append(Exchange.from_json(event["exchange"], speaker))
                    await in_caller(on_exchange, simulation.exchanges[-1])
                elif "error" in event:
                    raise _error(event["error"])
                elif "simulation" in event:
                    return Simulation.from_json(event["simulation"], speaker)
                else:
                    raise ConversationStopped(simulation)
        except self._ray.exceptions.RayTaskError:  # an error in our own code
            raise
        except self._ray.exceptions.RayError as error:
            raise _WorkerLost(first_line(error)) from None
        raise _WorkerLost("the worker ended the conversation without a result")

    # The workers -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _worker(self, *, alone: bool) -> AsyncGenerator[_Remote]:
        """The worker that has the fewest conversations; it runs no other one meanwhile if this one is to be alone."""
        remote = await self._reserved(alone)
        try:
            yield remote
        finally:
            self._release(remote, alone)

    async def _reserved(self, alone: bool) -> _Remote:
        while self._pool:
            free = [remote for remote in self._pool if not remote.claimed]
            if not free:
                await self._changed.wait()
                continue
            remote = min(free, key=attrgetter("running"))
            remote.running, remote.claimed = remote.running + 1, alone
            while alone and remote.running > 1 and remote in self._pool:
                await self._changed.wait()
            try:
                await _wait_for(remote.ready)
            except UsertwinError as error:
                self._last_loss = str(error)
                self._drop(remote)
            if remote in self._pool:
                return remote
            self._release(remote, alone)
        raise UsertwinError(f"no worker is left: {self._last_loss}")

    def _release(self, remote: _Remote, alone: bool) -> None:
        remote.running -= 1
        remote.claimed = remote.claimed and not alone
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _replace(self, remote: _Remote) -> None:
        """Put a new worker in the place of one that died, unless another of its conversations has done so."""
        if remote in self._pool:
            self._drop(remote)
            self._pool.append(self._new(remote.share))
            self._announce()

    def _drop(self, remote: _Remote) -> None:
        if remote in self._pool:
            self._pool.remove(remote)
            self._ray.kill(remote.actor)
            self._announce()

    def _new(self, share: int | None) -> _Remote:
        setup = json.dumps(asdict(replace(self._setup, agent_concurrency=share)))
        actor = self._ray.remote(Worker).options(num_cpus=1, max_concurrency=_MOST_CALLS).remote(setup)
        return _Remote(actor=actor, ready=asyncio.create_task(self._begin(actor)), share=share)

    async def _begin(self, actor: Any) -> None:
        """Wait until a worker has begun. UsageError, or what the worker raised, if it cannot."""
        try:
            async with asyncio.timeout(_START):
                answer = json.loads(await actor.begin.remote())
        except TimeoutError:
            raise UsageError(
                f"a worker did not start within {_START:g} seconds; the cluster may have no free processor for it"
            ) from None
        except self._ray.exceptions.RayError as error:
            raise UsageError(
                f"a worker could not start ({first_line(error)}); usertwin must be installed on every node, "
                "and importing the agent must not end its process"
            ) from None
        if "error" in answer:
            raise _error(answer["error"], "on a worker: ")
        for name, here in self._versions.items():
            if (there := answer["versions"].get(name)) != here:
                raise UsageError(
                    f"a worker has another version of {name} ({there}) than this process ({here}); "
                    "install the same on every node"
                )

    async def _stop_with(self, spending: Spending) -> None:
        """Tell all workers when the run ends, again and again, since one may just have started."""
        while True:
            await asyncio.sleep(_LOOK)
            if spending.is_set():
                for remote in self._pool:
                    remote.actor.stop.remote()

    async def _close(self) -> None:
        tasks = [task for task in (self._watching, *(remote.ready for remote in self._pool)) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for remote in list(self._pool):
            self._drop(remote)
        await to_thread(self._cluster.close)


@dataclass(slots=True, eq=False, kw_only=True)
class _Remote:
    """A worker: its actor, the task in which it begins, and its conversations.

    Attributes:
        share: the most of its conversations that use the agent at a time; None for no limit.
        running: its conversations, those that wait for it included.
        claimed: whether it takes no others.
    """

    actor: Any
    ready: asyncio.Task[None]
    share: int | None
    running: int = 0
    claimed: bool = False


class _WorkerLost(Exception):
    """A worker died, or its node cannot be reached."""


@dataclass(frozen=True, slots=True)
class RaySlot:
    """A place for conversations on a cluster."""

    executor: RayExecutor

    async def run(
        self, job: Job, simulation: Simulation, spending: Spending, on_exchange: Callable[[Exchange], None]
    ) -> Simulation:
        """Return the finished conversation; see `Slot`."""
        return await self.executor.run(job, simulation, spending, on_exchange)

    def price_of(self, job: Job, usage: Usage) -> float | None:
        """Return the US dollars that model calls cost; None if the price is unknown."""
        return self.executor.price_of(usage)

    def close(self) -> None:
        """Workers end with their executor."""


async def _wait_for(task: asyncio.Task[None]) -> None:
    """Wait for a task that others wait for, too: a cancellation of the caller does not cancel it."""
    await asyncio.shield(task)


def _setup(agent: Any, twins: Twins, options: RunOptions) -> WorkerSetup:
    """Return what each worker needs. UsageError if a worker could not have it."""
    name = _importable(agent, "the agent")
    model = twins.given_model
    if twins.has_opened or not isinstance(model, str):
        raise UsageError("workers open twins and models by themselves; give the twins' home and the model's name")
    if twins.recording is not None:
        raise UsageError("a recording is a file of one process; record or replay the run without a cluster")
    for text in (name, model):
        if take_logins(text) != text:
            raise UsageError(
                f"{take_logins(text)}: a login in a URL is not sent to workers; name a variable that is set on every node: "
                "openai:NAME@URL#VARIABLE"
            )
    if not options.agent_process and kind_of(name) not in LOCAL_KINDS:  # whose weights are loaded by the workers only
        as_agent(name).close()
    home = Path(default_home() if twins.home is None else twins.home)
    return WorkerSetup(
        agent=name, agent_process=options.agent_process, agent_timeout=options.agent_timeout,
        twin_timeout=options.twin_timeout, agent_concurrency=None, home=str(home.absolute()), model=model,
        style=twins.given_style, folder=os.getcwd(), path=[path for path in sys.path if path],
        environment={key: value for key, value in os.environ.items() if key.startswith("USERTWIN_")},
    )  # fmt: skip


def _importable(value: Any, what: str) -> str:
    """Return a name by which another process can import a value. UsageError if there is none."""
    if isinstance(value, str):
        return value
    module, name = str(getattr(value, "__module__", "")), str(getattr(value, "__qualname__", ""))
    try:
        found = attrgetter(name)(sys.modules[module])
    except (AttributeError, KeyError):
        found = None
    if found is not value or module == "__main__":
        raise UsageError(f'{what} is imported by each worker, and this one cannot be; name it as "module:attribute"')
    return f"{module}:{name}"


def _sent(job: Job) -> Job:
    """Return a job whose functions are names. UsageError if a worker could not import one."""
    scenario: Scenario = job.scenario
    if scenario.goal_reached is None or isinstance(scenario.goal_reached, str):
        return job
    name = _importable(scenario.goal_reached, f'scenario "{scenario.name}": goal_reached')
    return replace(job, scenario=replace(scenario, goal_reached=name))


def _shares(limit: int | None, workers: int) -> list[int | None]:
    """Return a limit in equal parts, the first ones larger by 1 where needed."""
    return [None if limit is None else limit // workers + (number < limit % workers) for number in range(workers)]


def _error(raised: Sequence[str], where: str = "") -> UsertwinError:
    name, text = raised
    return getattr(errors, name, UsertwinError)(where + text)
