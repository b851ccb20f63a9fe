"""Runs of many conversations: `arun` for the jobs of scenarios, and `simulate_many` for one twin and one agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from math import inf, isfinite, isinf
from pathlib import Path
from typing import Any
from uuid import uuid4

from usertwin.memory.event_loop import run_sync
from usertwin.memory.models.chat import Usage
from usertwin.memory.run_lock import exclusive_run
from usertwin.personas import UsageError

from ..agents import AgentCall, AgentProcess, Message, as_agent
from ..conversation import TurnLimits
from ..prompts import prompt_versions
from ..records import Exchange, Simulation
from ..scenarios.from_real import check_held_out
from ..scenarios.scenario import Scenario
from ..simulation import DEFAULT_AGENT_TIMEOUT, DEFAULT_MAX_TURNS, check_limits, opening
from ..user import SimulatedUser
from .jobs import Budget, Job, Spending, jobs_of
from .local import LocalExecutor, Twins
from .run_folder import RunFolder
from .runner import Executor, Progress, Watcher, run_jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run goes; none of it changes what is said in a conversation.

    Attributes:
        concurrency: conversations at a time.
        agent_concurrency: the most of them that use the agent at a time; None for no limit.
        agent_timeout: seconds that the agent may take for a reply; inf for no limit.
        twin_timeout: seconds that a twin may take for a turn; inf for no limit.
        agent_process: whether the agent runs in processes of its own, one for each conversation at a time.
        budget: what the run may cost.
        out: the folder to write to, or None.
        spec: the agent's name in the manifest; by default that of the function or class.
    """

    concurrency: int = 1
    agent_concurrency: int | None = None
    agent_timeout: float = DEFAULT_AGENT_TIMEOUT
    twin_timeout: float = inf
    agent_process: bool = False
    budget: Budget = field(default_factory=Budget)
    out: str | Path | None = None
    spec: str = ""

    def __post_init__(self) -> None:
        check_limits(agent_timeout=self.agent_timeout, concurrency=self.concurrency)
        check_limits(agent_timeout=self.twin_timeout)
        check_limits(agent_concurrency=1 if self.agent_concurrency is None else self.agent_concurrency)


async def arun(
    jobs: Sequence[Job], agent: Any, twins: Twins, options: RunOptions, *, about: Mapping[str, Any] | None = None,
    seed: int = 0, watcher: Watcher | None = None, spending: Spending | None = None, executor: Executor | None = None,
) -> Progress:  # fmt: skip
    """Run jobs, and continue a run that was stopped, if the folder holds one; return how far it is.

    Args:
        jobs: the conversations.
        agent: the agent under test, in any shape that `as_agent` accepts; a replay needs its name only.
        twins: the twins of the jobs, and the recording if there is one.
        options: how the run goes.
        about: what else the manifest tells, as JSON values.
        seed: the seed of the run, for the manifest; the jobs have theirs.
        watcher: called with each exchange and each finished conversation.
        spending: ends the run between two turns when its `stop` is called; its budget is that of the options.
        executor: where the conversations run; by default in this process.

    Raises:
        UsageError: the agent has no known shape, the folder holds a finished or another run, another process works on it, a
            twin remembers a scenario's real conversation, or there is a budget of dollars and no price.
        TwinError, ModelError: a twin or a model cannot be opened.
    """
    own_process, recording = options.agent_process and not isinstance(agent, AgentCall), twins.recording
    spec = options.spec or (agent if isinstance(agent, str) else _qualified_name(agent))
    call: AgentCall | None = None
    if executor is None and (recording is None or not recording.is_replay):
        call = AgentProcess(agent) if own_process else as_agent(agent)
    progress, spent = Progress(total=len(jobs), spending=spending or Spending(options.budget)), 0.0
    for job in jobs:
        if job.scenario.counterpart:
            check_held_out(job.scenario, twins.record(job.twin))
    with ExitStack() as stack:
        if call is not None and call is not agent:
            stack.callback(call.close)
        if executor is None:
            if call is not None:
                await call.begin()  # before the folder is created: an invalid agent leaves no folder behind
            slots = None if options.agent_concurrency is None else asyncio.Semaphore(options.agent_concurrency)
            limits = TurnLimits(agent_timeout=options.agent_timeout, twin_timeout=options.twin_timeout, agent_slots=slots)
            several = call is not None and own_process and options.concurrency > 1
            executor = LocalExecutor(
                twins=twins, new_call=(lambda: AgentProcess(agent)) if several else (lambda: call), owns_call=several,
                limits=limits, recording=recording, spec=spec,
            )  # fmt: skip
        if isfinite(options.budget.dollars):
            _check_price(executor, jobs, twins)
        done = set[str]()
        folder: RunFolder | None = None
        if options.out is not None:
            folder = RunFolder(options.out)
            stack.enter_context(exclusive_run(folder.path))
            scenarios = {job.scenario.name: job.scenario for job in jobs}
            manifest = _manifest(jobs, spec, twins, options, about=about or {}, seed=seed)
            done = folder.begin(manifest, [scenario.to_json() for scenario in scenarios.values()])
            progress.before, spent = len(done), folder.dollars()
            progress.stop_reasons.update(simulation.stop_reason for simulation in folder.simulations())
            folder.summarize(progress.stop_reasons, finished=False, dollars=spent)  # not before its lines are in order
        watching = watcher or Watcher()

        def finished(job: Job, simulation: Simulation, state: Progress) -> None:
            if folder is not None:
                folder.summarize(state.stop_reasons, finished=False, dollars=_sum(spent, progress.spending))
            watching.on_finished(job, simulation, state)

        is_finished = await run_jobs(
            jobs, executor, run_id=uuid4().hex, done=done, folder=folder, concurrency=options.concurrency, progress=progress,
            watcher=Watcher(watching.on_exchange, finished, watching.checks),
        )  # fmt: skip
        if folder is not None:
            if is_finished:
                folder.finish([job.id for job in jobs])
            dollars, stopped_by = _sum(spent, progress.spending), None if is_finished else progress.spending.exhausted
            folder.summarize(progress.stop_reasons, finished=is_finished, dollars=dollars, stopped_by=stopped_by)
    return progress


def _sum(before: float, spending: Spending) -> float | None:
    """Return the dollars of all starts of a run; None if a price is unknown."""
    return None if spending.dollars is None else before + spending.dollars


def _check_price(executor: Executor, jobs: Sequence[Job], twins: Twins) -> None:
    """Raise UsageError if the price of the model that acts is unknown: a budget of money would never end the run."""
    slot = executor.slot()
    try:
        is_unknown = any(slot.price_of(job, Usage()) is None for job in jobs[:1])
    finally:
        slot.close()
    if is_unknown:
        raise UsageError(
            f"a budget of dollars needs the price of {twins.model_name}; give it with --price, or limit the tokens"
        )


def _manifest(
    jobs: Sequence[Job], spec: str, twins: Twins, options: RunOptions, *, about: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Return what repeats the run: the twins and their recipes, the models, the versions of prompts and packages, and so on."""
    records = {name: twins.record(name) for name in dict.fromkeys(job.twin for job in jobs)}
    limits = {
        "agent_timeout": _finite(options.agent_timeout), "twin_timeout": _finite(options.twin_timeout),
        "agent_process": options.agent_process,
    }  # fmt: skip
    return {
        "agent": spec,
        "twins": {
            name: {
                "speaker": record.recipe.speaker, "learned_at": record.learned_at, "proposer": record.recipe.model,
                "scorer": record.recipe.scorer, "embedder": record.recipe.embedder, "versions": dict(record.versions),
                "k": twins.k_of(name), "reasoner": twins.reasoner_of(name),
                "closeness": (record.closeness or {}).get("summary"),
            }
            for name, record in records.items()
        },
        "models": {"action": twins.model_name, "style": twins.style},
        "prompts": prompt_versions(twins.style, twins.style), "seed": seed, "conversations": len(jobs), "limits": limits,
        **about, "versions": {"usertwin": version("usertwin")},
        "budget": {name: _finite(getattr(options.budget, name)) for name in ("dollars", "tokens", "seconds")},
    }  # fmt: skip


def simulate_many(
    user: SimulatedUser, agent: Any, *, count: int = 1, max_turns: int = DEFAULT_MAX_TURNS, seed: int = 0, goal: str = "",
    agent_first: bool = False, agent_timeout: float = DEFAULT_AGENT_TIMEOUT, agent_process: bool = False, start: Any = (),
    goal_reached: Callable[[list[Message]], bool] | None = None, on_exchange: Callable[[int, Exchange], None] | None = None,
    out: str | Path | None = None, spec: str = "", concurrency: int = 1,
) -> list[Simulation]:  # fmt: skip
    """Run `count` conversations between a twin and an agent, `concurrency` at a time; conversation i (from 0) has `seed + i`.

    `on_exchange` is called with the number of the conversation (from 1) and each complete exchange. The run is written to the
    folder `out`, if one is given; `spec` names the agent in its manifest. A run that was stopped is continued by the same call.
    The other arguments are those of `asimulate`.

    Raises:
        UsageError: an argument is invalid, the folder holds a finished or another run, or another process works on it.
    """
    check_limits(max_turns=max_turns, agent_timeout=agent_timeout, count=count)
    scenario = Scenario(
        name="", twins=(user.name,), goal=goal, max_turns=max_turns, agent_first=agent_first,
        start=tuple(opening(start, user)), goal_reached=goal_reached, repeats=count,
    )  # fmt: skip
    jobs = jobs_of([(scenario, user.name, number) for number in range(count)], seed)
    collected: dict[str, Simulation] = {}

    def note(job: Job, exchange: Exchange, progress: Progress) -> None:
        if on_exchange is not None:
            on_exchange(job.repeat + 1, exchange)

    def keep(job: Job, simulation: Simulation, progress: Progress) -> None:
        collected[job.id] = simulation

    options = RunOptions(
        concurrency=concurrency, agent_timeout=agent_timeout, agent_process=agent_process, out=out,
        spec=spec or (agent if isinstance(agent, str) else _qualified_name(agent)),
    )  # fmt: skip
    given = agent if agent_process or isinstance(agent, AgentCall) else as_agent(agent).in_own_loop()
    twins = Twins(model=user.model, opened={user.name: user})
    folder = None if out is None else Path(out).absolute()  # an agent may change the current folder
    try:
        run_sync(arun(jobs, given, twins, options, seed=seed, watcher=Watcher(note, keep)))
    finally:
        if isinstance(given, AgentCall) and given is not agent:
            given.close()
    if folder is None:
        return [collected[job.id] for job in jobs]
    return list(RunFolder(folder).simulations())


def _finite(value: float) -> float | None:
    return None if isinf(value) else value  # JSON has no infinity


def _qualified_name(value: Any) -> str:
    """Return the module and name of an object, or of its class. Its repr is not used: it may contain a key."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}:{named.__qualname__}"
