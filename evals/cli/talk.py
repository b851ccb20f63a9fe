"""The commands in which you talk with a twin: `usertwin demo`, `usertwin chat`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from usertwin.memory.models.chat import PromptStyle
from usertwin.personas import UsageError

from .parts.options import (
    MODEL_HELP,
    console_for,
    home_option,
    seed_option,
    style_option,
    twin_argument,
)
from .twin_actions import open_twin

if TYPE_CHECKING:
    from rich.console import Console


def acting_model_for(console: Console, named: str | None, goal: str) -> str:
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
@twin_argument
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
    acting = acting_model_for(console, model, goal)
    with open_twin(console, name, home, acting, style) as user:
        chat_in_terminal(user, console, goal=goal, seed=seed)
