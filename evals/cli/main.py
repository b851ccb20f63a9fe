"""The program `usertwin`: its commands in the order of use, and how it reports errors.

Design: a command's module is imported when that command runs, so `usertwin --help` takes a tenth of a second. The help texts in
the table below are therefore written beside the commands' own; a test compares them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

#: Module, and what `usertwin --help` shows, for each command.
COMMANDS = {
    "demo": ("talk", "Learn a twin of a real person, let it talk, and measure it; needs no input."),
    "learn": ("learn", "Learn the twin NAME from a chat log."),
    "chat": ("talk", "Talk with the twin NAME; you are the agent."),
    "simulate": ("talk", "Let the twin NAME talk with an agent and record the conversations."),
    "eval": ("evaluate", "Measure how close the twin NAME is to the person's held-out turns."),
    "show": ("twin_actions", "Show the twin NAME; without a name, list all twins."),
    "tune": ("tune", "Choose by measurement how the twin NAME uses its memory."),
    "train": ("train", "Train a synthesizer of reasoning traces on chat logs, into the folder OUT."),
    "controls": ("controls", "Test with control traces whether the trace score of NAME is only leakage."),
    "suite": ("evaluate", "Measure many people under many arms and write a report."),
    "report": ("runs", "Write the reports of the run in folder RUN again."),
    "compare": ("runs", "Compare the runs in folders OLD and NEW."),
    "judge-by-hand": ("runs", "Judge blind pairs of replies of RUN and compare with the model judge."),
    "export": ("runs", "Export the conversations of RUN as JSON lines for mirrorbench."),
    "memory": ("memory", "Inspect, check, repair, extend and erase the memory of a twin."),
}


class _Program(click.Group):
    """A group that imports a command when it is used and prints a user's error as one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f".{COMMANDS[cmd_name][0]}", __package__)
        commands: list[click.Command] = [value for value in vars(module).values() if isinstance(value, click.Command)]
        return next(command for command in commands if command.name == cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        from usertwin.personas import UsertwinError

        try:
            return super().invoke(ctx)
        except UsertwinError as error:
            click.echo(f"usertwin: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("\nusertwin: stopped; finished work is kept, and the same command continues", err=True)
            sys.exit(130)


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="usertwin", prog_name="usertwin")
def main() -> None:
    """Simulated users that are learned from real people and measured against them."""
