"""The commands in which a twin talks: `usertwin demo`, `usertwin chat`, `usertwin simulate`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usertwin.memory.models.chat import PromptStyle
from usertwin.personas import UsageError
from usertwin.simulator.simulation import DEFAULT_AGENT_TIMEOUT, DEFAULT_MAX_TURNS

from .options import MODEL_HELP, check_writable, console_for, file_path, home_option, progress_bars, seed_option, style_option
from .twin_actions import open_twin

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.simulator import Exchange


@contextlib.contextmanager
def _own_output(console: Console) -> Generator[None]:
    """Let a console write to standard output even if an agent closes or replaces it; put it back at the end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream without a descriptor
        options: dict[str, Any] = {"encoding": sys.stdout.encoding, "errors": sys.stdout.errors}
        console.file = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, **options)
    with contextlib.redirect_stdout(sys.stdout), contextlib.redirect_stderr(sys.stderr):
        yield


def _acting_model(console: Console, named: str | None, goal: str) -> str:
    """Return the model that acts in a conversation, and print what it cannot do if it is the tiny one."""
    from usertwin.simulator.backends.model_choice import acting_model, tiny_model_note

    model = acting_model(named)
    if (note := tiny_model_note(model, goal=goal)) and (named is None or goal):
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    return model


goal_option = click.option("--goal", default="", help="What the twin wants; the agent does not see it.")
acting_model_option = click.option(
    "--model",
    help=f"{MODEL_HELP}  [default: local:small if its weights are on this machine and 6 GB of memory are free, else local]",
)


@click.command()
@home_option
@click.option("--limit", default=40, show_default=True, help="The most held-out turns to measure on.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--no-fetch",
    is_flag=True,
    envvar="USERTWIN_NO_FETCH",
    show_envvar=True,
    help="Do not download local:small (1.1 GB) for the chat.",
)
def demo(home: Path | None, limit: int, yes: bool, no_fetch: bool) -> None:
    """Show a twin beside the real person, let you guess and chat, and measure.

    Uses the built-in chat log and the built-in models. A second run reuses what the first one learned and measured.
    """
    from .demo import is_interactive, run_demo

    if limit < 1:
        raise UsageError(f"--limit is {limit}; it must be at least 1")
    console = console_for()
    run_demo(console, home=home, limit=limit, interactive=not yes and is_interactive(console), may_fetch=not no_fetch)


@click.command()
@click.argument("name")
@goal_option
@acting_model_option
@home_option
@seed_option
@style_option
def chat(name: str, goal: str, model: str | None, home: Path | None, seed: int, style: PromptStyle | None) -> None:
    """Talk with the twin NAME; you are the agent.

    /why shows the recalled pairs and the reasoning of the last turn, /quit ends the chat.
    """
    from usertwin.simulator.terminal import chat as chat_in_terminal

    console = console_for()
    acting = _acting_model(console, model, goal)
    with open_twin(console, name, home, acting, style) as user:
        chat_in_terminal(user, console, goal=goal, seed=seed)


@click.command()
@click.argument("name")
@click.option("--agent", required=True, help='The agent under test: module:attribute, "demo", or a model (see --model).')
@click.option("--max-turns", default=DEFAULT_MAX_TURNS, show_default=True, help="The most turns of the twin in a conversation.")
@click.option("--count", default=1, show_default=True, help="Number of conversations, each with the next seed.")
@goal_option
@click.option("--agent-first", is_flag=True, help="Let the agent open the conversation.")
@click.option(
    "--agent-timeout",
    default=DEFAULT_AGENT_TIMEOUT,
    show_default=True,
    help="Seconds that the agent may take for a reply; inf for no limit.",
)
@click.option(
    "--agent-process",
    is_flag=True,
    help="Run the agent in a process of its own, so that the run goes on if the agent ends or blocks its process.",
)
@click.option("--out", type=file_path, help="Folder to write the conversations and a manifest to.")
@acting_model_option
@home_option
@seed_option
@style_option
def simulate(
    name: str,
    agent: str,
    max_turns: int,
    count: int,
    goal: str,
    agent_first: bool,
    agent_timeout: float,
    agent_process: bool,
    out: Path | None,
    model: str | None,
    home: Path | None,
    seed: int,
    style: PromptStyle | None,
) -> None:
    """Let the twin NAME talk with an agent and record the conversations.

    The exit code is 1 if a conversation failed, because of the agent or of the twin.
    """
    from usertwin.simulator import as_agent, simulate_many
    from usertwin.simulator.backends.load import DEFAULT_MODEL
    from usertwin.simulator.simulation import AGENT_FAULTS, TWIN_FAULTS, check_limits
    from usertwin.simulator.terminal import show_exchange

    console = console_for()
    click.get_current_context().with_resource(_own_output(console))
    check_limits(max_turns=max_turns, agent_timeout=agent_timeout, count=count)
    if out is not None:
        check_writable(out, "--out")
    under_test = agent if agent_process else as_agent(agent)  # reports a wrong name before a model is loaded
    acting = _acting_model(console, model, goal) if goal else model or DEFAULT_MODEL
    with open_twin(console, name, home, acting, style) as user, progress_bars(console) as bars:
        turns_so_far = Counter[int]()

        def show(number: int, exchange: Exchange) -> None:
            turns_so_far[number] += 1
            show_exchange(console, user.persona.name, exchange)
            bars("talking", (number - 1) * max_turns + turns_so_far[number], count * max_turns)

        bars("talking", 0, count * max_turns)
        simulations = simulate_many(
            user, under_test, count=count, out=out, spec=agent, max_turns=max_turns, seed=seed, goal=goal,
            agent_first=agent_first, agent_timeout=agent_timeout, agent_process=agent_process, on_exchange=show,
        )  # fmt: skip
    for number, simulation in enumerate(simulations, 1):
        error = f": {simulation.error}" if simulation.error else ""
        console.print(
            f"conversation {number}: {len(simulation.exchanges)} turns, {simulation.stop_reason}{error}", markup=False
        )
    if out is not None:
        console.print(f"written to {out}", markup=False)
    if any(simulation.stop_reason in AGENT_FAULTS | TWIN_FAULTS for simulation in simulations):
        sys.exit(1)
