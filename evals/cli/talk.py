"""The commands in which you talk with a twin or an agent, or watch them: `usertwin demo`, `chat`, `play`, `watch`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.twin.record import twin_command
from usertwin.personas import UsageError
from usertwin.simulator.simulation import DEFAULT_MAX_TURNS

from .parts.options import (
    MODEL_HELP,
    agent_option,
    agent_options,
    console_for,
    home_option,
    own_output,
    seed_option,
    style_option,
    twin_argument,
)
from .parts.sessions import SessionOptions, session_options
from .twin_actions import open_twin

_Command = TypeVar("_Command", bound=Callable[..., Any])

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.simulator.terminal.session import Kind


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
@session_options
def chat(
    name: str, goal: str, model: str | None, home: Path | None, seed: int, style: PromptStyle | None, session: SessionOptions
) -> None:
    """Talk with the twin NAME; you are the agent.

    /help lists the commands: /why shows the memories and the reasoning behind the last turn, /undo takes the last exchange
    back, /save FILE writes a chat log, /quit ends. The session is kept in the twin's folder, and --resume continues it.
    """
    from usertwin.simulator.terminal.talk import ChatTalk

    console = console_for()
    if session.only_lists(console, "chat", name, home):
        return
    with session.opened("chat", name, home, goal=goal, seed=seed) as opened:
        acting = acting_model_for(console, model, opened.session.goal)
        with open_twin(console, name, home, acting, style) as user:
            talk = ChatTalk(*session.screen(console), opened.session, user, opened.keep)
            talk.run()
    session.print_end(console, talk, twin_command("chat", name, home))


def _with_agent_options(command: _Command) -> _Command:
    """Add the options of a conversation with an agent, in the order of the help."""
    options = (goal_option, acting_model_option, home_option, seed_option, agent_options, style_option, session_options)
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("agent")
@click.option("--twin", "name", help="Twin that you can hand over to with /twin.")
@_with_agent_options
def play(
    agent: str, name: str | None, goal: str, model: str | None, home: Path | None, seed: int, agent_first: bool,
    agent_timeout: float, style: PromptStyle | None, session: SessionOptions,
) -> None:  # fmt: skip
    """Talk with the agent AGENT; you are the user, and a twin may speak for you.

    AGENT is module:attribute, "demo", a model, http:FILE.toml or command:PROGRAM. With --twin, /twin lets the twin go on until
    you type a line or press Ctrl-C, /twin 3 for three turns, and /me takes over. /help lists all commands.
    """
    about = {"agent": agent, "twin": name or ""}
    _with_agent(
        "play", agent, name, about, goal=goal, model=model, home=home, seed=seed, style=style, session=session,
        agent_first=agent_first, agent_timeout=agent_timeout,
    )  # fmt: skip


@click.command()
@twin_argument
@agent_option
@click.option("--max-turns", default=DEFAULT_MAX_TURNS, show_default=True, help="Turns of the twin before you are asked.")
@click.option("--step", is_flag=True, help="Wait for Enter before each turn of the twin.")
@_with_agent_options
def watch(
    name: str, agent: str, max_turns: int, step: bool, goal: str, model: str | None, home: Path | None, seed: int,
    agent_first: bool, agent_timeout: float, style: PromptStyle | None, session: SessionOptions,
) -> None:  # fmt: skip
    """Watch the twin NAME talk with an agent, with its memories and its reasoning.

    Each turn is shown as soon as it is said. Ctrl-C pauses; then, and after --max-turns, Enter lets them go on, and /help lists
    the commands.
    """
    from usertwin.evals.reports.terminal import closeness_line
    from usertwin.memory import TwinRecord, existing_twin
    from usertwin.simulator.simulation import check_limits

    check_limits(max_turns=max_turns)
    record = TwinRecord.load(existing_twin(name, home))
    unmeasured = f"not measured; run {twin_command('eval', name, home)}"
    about = {
        "twin": name, "person": f"{record.persona.name}: {record.persona.description}", "agent": agent,
        "closeness": closeness_line(record.closeness) if record.closeness else unmeasured,
    }  # fmt: skip
    _with_agent(
        "watch", agent, name, about, goal=goal, model=model, home=home, seed=seed, style=style, session=session,
        agent_first=agent_first, agent_timeout=agent_timeout, max_turns=0 if step else max_turns,
    )  # fmt: skip


def _with_agent(
    kind: Kind, agent: str, name: str | None, about: dict[str, str], *, goal: str, model: str | None, home: Path | None,
    seed: int, style: PromptStyle | None, session: SessionOptions, agent_first: bool, agent_timeout: float, max_turns: int = 0,
) -> None:  # fmt: skip
    """Let a person or a twin talk with an agent."""
    from usertwin.simulator import as_agent
    from usertwin.simulator.conversation import TurnLimits
    from usertwin.simulator.simulation import check_limits
    from usertwin.simulator.terminal.agent_talk import AgentTalk

    console = console_for()
    if session.only_lists(console, kind, name, home):
        return
    context = click.get_current_context()
    context.with_resource(own_output(console))
    check_limits(agent_timeout=agent_timeout)
    opened = context.with_resource(session.opened(kind, name, home, goal=goal, seed=seed, agent=agent))
    call = as_agent(agent).in_own_loop()  # a wrong name is reported before a model is loaded
    context.call_on_close(call.close)
    user = None
    if name is not None:
        acting = acting_model_for(console, model, opened.session.goal)
        user = context.with_resource(open_twin(console, name, home, acting, style))
        about |= {"model": user.model.name}
    talk = AgentTalk(
        *session.screen(console), opened.session, user, opened.keep, call=call, limits=TurnLimits(agent_timeout=agent_timeout),
        about=about | {"goal": opened.session.goal}, agent_first=agent_first, max_turns=max_turns,
    )  # fmt: skip
    talk.run()
    if kind == "watch" and name is not None:
        command = twin_command(kind, name, home, "--agent", shlex.quote(agent))
    else:
        command = " ".join(("usertwin play", shlex.quote(agent), *(("--twin", name) if name else ())))
    session.print_end(console, talk, command)
