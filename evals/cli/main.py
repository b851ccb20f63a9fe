"""The command line: each command parses, calls one function, and shows what comes back.

The one design choice: nothing heavy is imported before a command runs, so that `usertwin --help` is instant, and every error
that a user can mend is one sentence on standard error with exit code 2; no traceback.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usertwin.personas import UsertwinError

from .controls import controls
from .evaluate import evaluate, suite
from .judge_by_hand import judge_by_hand
from .learn import learn
from .memory import memory
from .options import Style, console_for, home_option, model_option, progress_bars, seed_option, style_option
from .runs import compare, export, report
from .train import train
from .tune import tune
from .twin_actions import open_twin, show_twin

if TYPE_CHECKING:
    from usertwin.simulator import Exchange


class _Commands(click.Group):
    """A group that says errors in one sentence, and keeps its commands in the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsertwinError as error:
            click.echo(f"usertwin: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("\nusertwin: stopped; what was done until now is kept", err=True)
            sys.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="usertwin", prog_name="usertwin")
def main() -> None:
    """Simulated users learned from real people, and measured against them."""


@main.command()
@home_option
@click.option("--turns", default=4, show_default=True, help="The most turns the twin has in the conversation.")
@click.option("--limit", default=40, show_default=True, help="On how many held-out turns to measure.")
def demo(home: Path | None, turns: int, limit: int) -> None:
    """Learn a twin of a real person, let it talk, and measure how close it is. Asks nothing, needs nothing."""
    from .demo import run_demo

    run_demo(console_for(), home=home, turns=turns, limit=limit)


main.add_command(learn)


@main.command()
@click.argument("name")
@click.option("--goal", default="", help="What the twin is to want; you, the agent, do not see it otherwise.")
@model_option
@home_option
@seed_option
@style_option
def chat(name: str, goal: str, model: str, home: Path | None, seed: int, style: Style | None) -> None:
    """Talk with the twin NAME: you are the agent. /why shows memories and reasoning, /quit ends."""
    from usertwin.simulator.terminal import chat as talk

    console = console_for()
    with open_twin(console, name, home, model, style, seed) as user:
        talk(user, console, goal=goal)


@main.command()
@click.argument("name")
@click.option("--agent", required=True, help='module:attribute, "demo", or a model such as openai:NAME@URL.')
@click.option("--turns", default=8, show_default=True, help="The most turns the twin has.")
@click.option("--count", default=1, show_default=True, help="How many conversations, each with the next seed.")
@click.option("--goal", default="", help="What the twin is to want; the agent does not see it.")
@click.option("--agent-first", is_flag=True, help="Let the agent open the conversation.")
@click.option("--agent-timeout", default=120.0, show_default=True, help="Seconds the agent may take for a reply.")
@click.option("--out", type=click.Path(path_type=Path), help="A folder to write the run to.")
@model_option
@home_option
@seed_option
@style_option
def simulate(
    name: str,
    agent: str,
    turns: int,
    count: int,
    goal: str,
    agent_first: bool,
    agent_timeout: float,
    out: Path | None,
    model: str,
    home: Path | None,
    seed: int,
    style: Style | None,
) -> None:
    """Let the twin NAME talk with an agent, and keep what was said. Exit code 1 if a conversation failed."""
    from usertwin.simulator import as_agent, simulate_many
    from usertwin.simulator.simulation import AGENT_FAULTS, TWIN_FAULTS
    from usertwin.simulator.terminal import show_exchange

    console = console_for()
    under_test = as_agent(agent)  # a wrong name is said before a model is loaded
    with open_twin(console, name, home, model, style, seed) as user, progress_bars(console) as bars:
        said = [0] * count

        def shown(number: int, exchange: Exchange) -> None:
            said[number - 1] += 1
            show_exchange(console, user.persona.name, exchange)
            bars("talking", (number - 1) * turns + said[number - 1], count * turns)

        bars("talking", 0, count * turns)
        found = simulate_many(
            user, under_test, count=count, out=out, spec=agent, turns=turns, goal=goal,
            agent_first=agent_first, agent_timeout=agent_timeout, on_exchange=shown,
        )  # fmt: skip
    for number, simulation in enumerate(found, 1):
        why = f": {simulation.error}" if simulation.error else ""
        console.print(f"conversation {number}: {len(simulation.exchanges)} turns, {simulation.stop_reason}{why}", markup=False)
    if out is not None:
        console.print(f"written to {out}", markup=False)
    if any(simulation.stop_reason in AGENT_FAULTS | TWIN_FAULTS for simulation in found):
        sys.exit(1)


main.add_command(evaluate)


@main.command()
@click.argument("name", required=False)
@home_option
def show(name: str | None, home: Path | None) -> None:
    """Show what the twin NAME holds; without a name, list the twins."""
    from usertwin.memory import list_twins

    console = console_for()
    if name is not None:
        show_twin(console, name, home)
        return
    for twin in list_twins(home):
        console.print(twin, markup=False)


main.add_command(tune)
main.add_command(train)
main.add_command(controls)
main.add_command(suite)
main.add_command(report)
main.add_command(compare)
main.add_command(judge_by_hand)
main.add_command(export)
main.add_command(memory)
