"""The command `usertwin simulate`: twins talk with an agent, as scenarios say, and the conversations are recorded."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usertwin.memory.event_loop import run_sync
from usertwin.memory.models.chat import PromptStyle
from usertwin.personas import UsageError
from usertwin.simulator.simulation import DEFAULT_MAX_TURNS

from .parts.cluster import cluster_arguments, cluster_options
from .parts.options import (
    agent_option,
    agent_options,
    check_writable,
    console_for,
    file_path,
    home_option,
    own_output,
    parse_price,
    price_option,
    progress_bars,
    quiet_option,
    seed_option,
    style_option,
    threshold_options,
    twins_argument,
)
from .parts.recipe_file import GroupedCommand
from .talk import acting_model_for, acting_model_option, goal_option

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.evals.agent_tests.agent_checks import AgentChecks
    from usertwin.evals.agent_tests.thresholds import Thresholds
    from usertwin.memory import ChatModel
    from usertwin.memory.models.chat import Price
    from usertwin.memory.models.recording import Recording
    from usertwin.simulator import Exchange, Scenario, Simulation
    from usertwin.simulator.runs.jobs import Job
    from usertwin.simulator.runs.local import Twins
    from usertwin.simulator.runs.many import RunOptions
    from usertwin.simulator.runs.runner import Progress

#: Conversations whose turns are shown as they are said, and whose ends are shown line by line where there is no terminal.
_SHOWN, _LISTED = 5, 20
#: Conversations at a time with a model behind an endpoint, and with one on this machine.
_HOSTED, _LOCAL = 8, 1


@click.command(
    cls=GroupedCommand,
    common=("agent", "scenarios", "goal", "count", "max-turns", "out", "parallel", "model", "min-pass-rate", "seed"),
)
@twins_argument
@agent_option
@click.option("--scenarios", type=file_path, help="TOML file of scenarios: who talks, what they want, how it starts and ends.")
@goal_option
@click.option("--count", default=1, show_default=True, help="Conversations of each twin, each with the next seed.")
@click.option("--max-turns", default=DEFAULT_MAX_TURNS, show_default=True, help="The most turns of the twin in a conversation.")
@click.option("--out", type=file_path, help="Folder to write the conversations and a manifest to; a stopped run is continued.")
@click.option("--parallel", type=int, help=f"Conversations at a time.  [default: {_LOCAL} for a local model, else {_HOSTED}]")
@acting_model_option
@home_option
@seed_option
@agent_options
@click.option("--twin-timeout", default=inf, show_default=True, help="Seconds that a twin may take for a turn.")
@click.option(
    "--agent-process",
    is_flag=True,
    help="Run the agent in processes of its own, so that the run goes on if the agent ends or blocks its process.",
)
@click.option("--agent-parallel", type=int, help="The most conversations that use the agent at a time.  [default: no limit]")
@click.option("--check", "checks", multiple=True, help="Check of the agent: module:function, or a ready-made one; repeatable.")
@click.option("--criterion", "criteria", multiple=True, help="A sentence about the agent that a judge answers; repeatable.")
@click.option("--judge", help="Model that judges criteria, and whether the goal was reached.")
@click.option("--twin-judge", help="Model that looks for faults of the twin that rules do not find.")
@threshold_options
@click.option("--budget-dollars", default=inf, show_default=True, help="End the run when the twins' calls cost this much.")
@click.option("--budget-tokens", default=inf, show_default=True, help="End the run after this many tokens of the twins' calls.")
@click.option("--budget-minutes", default=inf, show_default=True, help="End the run after this time.")
@click.option(
    "--record", type=file_path, help="Record all model calls and replies of the agent in this file, and use those in it."
)
@click.option("--replay", type=file_path, help="Repeat a recorded run from this file, without models, the agent or a network.")
@price_option
@cluster_options
@quiet_option
@style_option
def simulate(
    names: tuple[str, ...],
    agent: str,
    scenarios: Path | None,
    goal: str,
    count: int,
    max_turns: int,
    out: Path | None,
    parallel: int | None,
    model: str | None,
    home: Path | None,
    seed: int,
    agent_first: bool,
    agent_timeout: float,
    twin_timeout: float,
    agent_process: bool,
    agent_parallel: int | None,
    checks: tuple[str, ...],
    criteria: tuple[str, ...],
    judge: str | None,
    twin_judge: str | None,
    thresholds: Thresholds,
    budget_dollars: float,
    budget_tokens: float,
    budget_minutes: float,
    record: Path | None,
    replay: Path | None,
    price: str | None,
    place: str | None,
    workers: int | None,
    quiet: bool,
    style: PromptStyle | None,
) -> None:
    """Let the twins NAME... talk with an agent and record the conversations.

    Without --scenarios each twin has --count conversations. With it, --count multiplies the repeats of each scenario, and
    NAME... replaces its twins. Ctrl-C ends the run after the turns that are going on; the same command continues it.

    The exit code is 1 if a limit is not kept, if the run is unfinished or, without limits, if the agent or a twin had an error
    or a timeout. Failed checks change it by a limit only, such as --min-pass-rate 1.
    """
    from usertwin.evals.agent_tests.agent_checks import AgentChecks
    from usertwin.simulator import as_agent, load_model
    from usertwin.simulator.backends.load import DEFAULT_MODEL
    from usertwin.simulator.runs.jobs import Budget, jobs_of
    from usertwin.simulator.runs.many import RunOptions
    from usertwin.simulator.simulation import check_limits

    console = console_for()
    click.get_current_context().with_resource(own_output(console))
    check_limits(max_turns=max_turns, count=count)
    if out is not None:
        out = out.absolute()  # an agent may change the current folder
        check_writable(out, "--out")
    planned = _planned(names, scenarios, home, seed, goal=goal, max_turns=max_turns, agent_first=agent_first, count=count)
    goals = any(scenario.goal for scenario, _, _ in planned)
    cluster = cluster_arguments(place, workers)
    if record is not None and replay is not None:
        raise UsageError("--record and --replay exclude each other; give one of them")
    # a wrong name is reported before a model is loaded
    elsewhere = agent_process or replay is not None or cluster is not None
    under_test = agent if elsewhere else as_agent(agent).in_own_loop()
    acting = acting_model_for(console, model, "a goal" if goals else "") if goals else model or DEFAULT_MODEL
    options = RunOptions(
        concurrency=_default_parallel(acting) if parallel is None else parallel, agent_concurrency=agent_parallel,
        agent_timeout=agent_timeout, twin_timeout=twin_timeout, agent_process=agent_process, out=out, spec=agent,
        budget=Budget(dollars=budget_dollars, tokens=budget_tokens, seconds=budget_minutes * 60),
    )  # fmt: skip
    judging = AgentChecks(
        {scenario.name: scenario for scenario, _, _ in planned}.values(), checks=checks, criteria=criteria, seed=seed,
        judge=None if judge is None else load_model(judge, price=parse_price(price)), judges_goal=judge is not None and goals,
        twin_judge=None if twin_judge is None else load_model(twin_judge, price=parse_price(price)),
    )  # fmt: skip
    if cluster is not None:
        cluster |= {"price": parse_price(price), "per_worker": _default_parallel(acting) if parallel is None else None}
    with (
        _recording(record, replay) as recording,
        _twins(console, planned, home, acting, style, parse_price(price), recording, load=cluster is None) as twins,
    ):
        jobs = jobs_of(planned, seed)
        run = _run(console, jobs, under_test, twins, options, judging, cluster, seed=seed, quiet=quiet)
    failures = _print_end(console, *run, agent, planned, out, thresholds, quiet=quiet)
    if failures or run[1].done < run[1].total:
        sys.exit(1)


def _planned(
    names: Sequence[str], path: Path | None, home: Path | None, seed: int, *, count: int, **settings: Any
) -> list[tuple[Scenario, str, int]]:
    """Return the conversations that the command line asks for, each as its scenario, twin and repeat."""
    from usertwin.memory import existing_twin
    from usertwin.memory.twin.record import list_twins
    from usertwin.simulator import Scenario
    from usertwin.simulator.scenarios.read import expand, read_scenarios

    if path is None:
        if not names:
            known = ", ".join(list_twins(home)) or "none yet; usertwin learn makes one"
            raise UsageError(f"no twin is named; name one, or give --scenarios (there are: {known})")
        scenario = Scenario(name="", twins=tuple(dict.fromkeys(names)), repeats=count, **settings)
        return [(scenario, existing_twin(name, home).name, number) for name in scenario.twins for number in range(count)]
    if given := [
        f"--{key.replace('_', '-')}" for key, value in settings.items() if value not in ("", False, DEFAULT_MAX_TURNS)
    ]:
        raise UsageError(f"{', '.join(given)}: each scenario has its own; set it in {path}")
    return expand(read_scenarios(path, home=home), list_twins(home), seed, twins=names, times=count)


def _default_parallel(model: str) -> int:
    from usertwin.simulator.backends.model_name import ModelName

    return _HOSTED if ModelName.parse(model).is_hosted else _LOCAL


@contextlib.contextmanager
def _recording(record: Path | None, replay: Path | None) -> Generator[Recording | None]:
    """The recording of the run, if one is asked for."""
    from usertwin.memory.models.recording import Recording

    path = record or replay
    if path is None:
        yield None
        return
    with Recording(path, "record" if replay is None else "replay") as recording:
        yield recording


@contextlib.contextmanager
def _twins(
    console: Console, planned: Sequence[tuple[Scenario, str, int]], home: Path | None, model: str, style: PromptStyle | None,
    price: Price | None, recording: Recording | None, *, load: bool,
) -> Generator[Twins]:  # fmt: skip
    """The twins of a run, with the model that acts loaded, unless workers load it; a bar shows its download."""
    from usertwin.simulator import load_model
    from usertwin.simulator.runs.local import Twins

    chat_model: str | ChatModel = model
    if load and (recording is None or not recording.is_replay):
        with progress_bars(console) as bars:
            chat_model = load_model(model, style=style, price=price, progress=bars.fetch)
    with Twins(home, chat_model, style=style, recording=recording) as twins:
        for name in dict.fromkeys(twin for _, twin, _ in planned):
            if twins.record(name).state == "interrupted":
                text = f"{name} is not fully learned; the same learn command continues where it stopped."
                console.print(text, style="yellow", markup=False)
        yield twins


def _run(
    console: Console,
    jobs: Sequence[Job],
    agent: Any,
    twins: Twins,
    options: RunOptions,
    checks: AgentChecks,
    cluster: dict[str, Any] | None,
    *,
    seed: int,
    quiet: bool,
) -> tuple[list[Simulation], Progress]:
    """Run the jobs, here or on a cluster, and return the conversations with how far the run is."""
    from usertwin.simulator.runs.jobs import Spending
    from usertwin.simulator.runs.many import arun
    from usertwin.simulator.runs.on_ray import arun_on_ray
    from usertwin.simulator.runs.run_folder import read_run
    from usertwin.simulator.runs.runner import Watcher
    from usertwin.simulator.terminal.keyboard import on_interrupt
    from usertwin.simulator.terminal.views import show_exchange

    simulations: dict[str, Simulation] = {}
    talks = len(jobs) <= _SHOWN and options.concurrency == 1 and not quiet
    with progress_bars(console) as bars:

        def said(job: Job, exchange: Exchange, progress: Progress) -> None:
            if talks:
                show_exchange(console, twins.record(job.twin).persona.name, exchange)
            if not quiet:
                bars("talking", progress.done, progress.total)

        def finished(job: Job, simulation: Simulation, progress: Progress) -> None:
            if options.out is None:
                simulations[job.id] = simulation
            if not quiet:
                bars("talking", progress.done, progress.total)
                if not talks:
                    _print_progress(console, simulation, progress)

        def stop() -> None:
            spending.stop()
            console.print("stopping after the turns that are going on; Ctrl-C again stops at once", style="yellow")

        spending = Spending(options.budget)
        with on_interrupt(stop):
            watcher = Watcher(said, finished, checks)
            about = {"judge": checks.judge_facts}
            start = arun if cluster is None else partial(arun_on_ray, **cluster)
            work = start(jobs, agent, twins, options, about=about, seed=seed, watcher=watcher, spending=spending)
            progress = run_sync(work)
    if options.out is not None:
        return list(read_run(options.out).simulations), progress
    return [simulations[job.id] for job in jobs if job.id in simulations], progress


def _print_progress(console: Console, simulation: Simulation, progress: Progress) -> None:
    """Print how far the run is: after the first conversation, and each twentieth part of the run."""
    part = max(1, progress.total // _LISTED)
    if progress.finished != 1 and progress.done % part:
        return
    rate = progress.finished / max(progress.spending.seconds, 1e-9) * 60
    left = progress.seconds_left or 0.0
    spent = "" if not progress.spending.dollars else f", {progress.spending.dollars:.2f} dollars"
    console.print(
        f"{progress.done} of {progress.total} conversations, {rate:.3g} a minute, about {_duration(left)} left{spent}",
        markup=False, highlight=False,
    )  # fmt: skip


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _print_end(
    console: Console, simulations: Sequence[Simulation], progress: Progress, agent: str,
    planned: Sequence[tuple[Scenario, str, int]], out: Path | None, thresholds: Thresholds, *, quiet: bool,
) -> list[str]:  # fmt: skip
    """Print how the conversations ended and their summary, write the page, and return why the exit code is 1, if it is."""
    from usertwin.evals.agent_tests.page import write_page
    from usertwin.evals.agent_tests.read import read_agent_run, summary_of_run
    from usertwin.evals.agent_tests.screen import summary_line, summary_view
    from usertwin.evals.agent_tests.summary import summarize
    from usertwin.simulator.records import AGENT_FAULTS, TWIN_FAULTS

    run = None if out is None else read_agent_run(out)
    if run is None:
        scenarios = {scenario.name: scenario.to_json() for scenario, _, _ in planned}
        done = progress.done == progress.total
        dollars = progress.spending.dollars
        summary = summarize(
            simulations, name="this run", agent=agent, scenarios=scenarios, finished=done, dollars=dollars or None
        )  # fmt: skip
    else:
        summary = summary_of_run(run)
    failures = thresholds.failures(summary)
    if len(simulations) <= _SHOWN and not quiet:
        for number, simulation in enumerate(simulations, 1):
            faults = "".join(f"; the twin: {fault.text}" for fault in simulation.twin_faults)
            error = f": {simulation.error}" if simulation.error else ""
            ended = f"{len(simulation.exchanges)} turns, {simulation.stop_reason}{error}{faults}"
            console.print(f"conversation {number}: {ended}", markup=False)
    if quiet or len(simulations) <= _SHOWN:
        lines = [summary_line(summary)] if quiet or (simulations and any(s.checks for s in simulations)) else []
        for line in (*lines, *(f"FAILED  {failure}" for failure in failures)):
            console.print(line, markup=False, soft_wrap=True)
    else:
        console.print(summary_view(summary, failures))
    if progress.done < progress.total:
        why = f"its budget of {progress.spending.exhausted} is spent" if progress.spending.exhausted else "it was stopped"
        more = "" if out is None else "; the same command continues it"
        console.print(f"{progress.done} of {progress.total} conversations are done: {why}{more}", style="yellow", markup=False)
    if run is not None:
        page = write_page(run, summary, failures, limits=thresholds.is_set)
        console.print(f"written to {out} (read {page.name} in a browser)", markup=False)
    failed = any(simulation.stop_reason in AGENT_FAULTS | TWIN_FAULTS for simulation in simulations)
    return failures or (["a conversation failed"] if failed and not thresholds.is_set else [])
