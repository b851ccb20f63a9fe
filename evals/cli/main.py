"""The program `usertwin`: its commands in the order of use, and how it reports errors.

Design: a command's module is imported when that command runs, so `usertwin --help` takes a tenth of a second. The help texts in
the table below are therefore written beside the commands' own; a test compares them.
"""

from __future__ import annotations

import codecs
import errno
import io
import sys
from importlib import import_module
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

#: Module, and what `usertwin --help` shows, for each command.
COMMANDS = {
    "demo": ("talk", "Show a twin beside the real person, let you guess and chat, and measure."),
    "import": ("logs.import_log", "Read chat logs of any known format into one log, and show what was read."),
    "learn": ("learn", "Learn the twin NAME from a chat log."),
    "init": ("tools.init", "Write a starter test, an agent, a scenario file and a CI workflow into FOLDER."),
    "chat": ("talk", "Talk with the twin NAME; you are the agent."),
    "play": ("talk", "Talk with the agent AGENT; you are the user, and a twin may speak for you."),
    "watch": ("talk", "Watch the twin NAME talk with an agent, with its memories and its reasoning."),
    "simulate": ("simulate", "Let the twins NAME... talk with an agent and record the conversations."),
    "eval": ("evaluate", "Measure how close the twin NAME is to the person's held-out turns."),
    "show": ("twin_actions", "Show the twin NAME; without a name, list all twins."),
    "guess": ("tools.guess", "Guess in blind pairs which turn the person of NAME really wrote."),
    "serve": ("serve", "Answer as the twins NAME... at an OpenAI-compatible endpoint."),
    "trust": ("twin_actions", "Allow the twin NAME, which somebody else learned, to load the models that it names."),
    "tune": ("tune", "Choose by measurement how the twin NAME uses its memory."),
    "train": ("train", "Train a synthesizer of reasoning traces on chat logs, into the folder OUT."),
    "controls": ("controls", "Test with control traces whether the trace score of NAME is only leakage."),
    "suite": ("evaluate", "Measure many people under many arms and write a report."),
    "report": ("runs", "Write the reports of the run in folder RUN again."),
    "view": ("runs", "Write a page of the conversations of RUN, or of RUN and RUN2 side by side."),
    "compare": ("runs", "Compare the runs in folders OLD and NEW."),
    "join": ("runs", "Join finished runs of one suite, each with other people."),
    "judge-by-hand": ("runs", "Judge blind pairs of replies of RUN and compare with the model judge."),
    "export": ("runs", "Export the conversations of RUN as JSON lines for mirrorbench."),
    "memory": ("memory", "Inspect, check, repair, extend and erase the memory of a twin."),
    "doctor": ("tools.doctor", "Check what is installed, downloaded and learned, and say what is missing."),
    "completion": ("tools.completion", "Print the script that completes commands and twins in SHELL."),
}


_WRITABLE = "check its permissions, or name another folder (--home, --out)"
#: Ways out of errors of the operating system.
_WAYS_OUT = {
    errno.ENOSPC: "free disk space, and run the same command again: finished work is kept",
    errno.EDQUOT: "free disk space, and run the same command again: finished work is kept",
    errno.EROFS: _WRITABLE,
    errno.EACCES: _WRITABLE,
    errno.EPERM: _WRITABLE,
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ENOENT: "check the name, and run the command again",
    errno.ENOTDIR: "a part of this path is a file; name another folder",
    errno.EISDIR: "this is a folder; name a file",
    errno.EMFILE: "allow more open files (ulimit -n), and run the command again",
}


class _Program(click.Group):
    """A group that imports a command when it is used and prints a user's error as one sentence."""

    def main(self, *args: Any, **options: Any) -> Any:
        _prepare_streams()
        try:
            return super().main(*args, **options)
        except SystemExit as end:
            if not args and "args" not in options and (turn := sys.modules.get("usertwin.simulator.agents.turn")):
                turn.exit_soon(end.code)  # as a program, and an agent may have talked
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f".{COMMANDS[cmd_name][0]}", __package__)
        commands: list[click.Command] = [value for value in vars(module).values() if isinstance(value, click.Command)]
        return next(command for command in commands if command.name == cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names. UsageError, with the most similar name, if there is none."""
        if not ctx.resilient_parsing and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            similar = "".join(f"; did you mean usertwin {name}?" for name in get_close_matches(args[0], COMMANDS, 1))
            raise click.UsageError(f"No such command '{args[0]}'{similar}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the name of a command from the table, without importing the commands."""
        names = [(name, text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        return [CompletionItem(name, help=text) for name, text in names] or click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if any("@" in text for text in args):  # it may be a login in a URL, which no command may write or print
            from usertwin.personas.secrets import take_logins

            args = [take_logins(text) for text in args]
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            _refuse(error, ctx)

    def invoke(self, ctx: click.Context) -> Any:
        from usertwin.personas import UsertwinError
        from usertwin.personas.printable import printable
        from usertwin.personas.secrets import mask, without_secrets

        try:
            return super().invoke(ctx)
        except UsertwinError as error:
            click.echo(printable(f"usertwin: {error}"), err=True)
            sys.exit(2)
        except click.UsageError as error:
            _refuse(error, ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends in silence: nobody reads the output any more
            click.echo(printable(f"usertwin: {mask(_sentence(error))}"), err=True)
            sys.exit(2)
        except Exception as error:
            if without_secrets(error) is None:  # a traceback would print it
                click.echo(f"usertwin: {type(error).__name__}: {mask(str(error))}", err=True)
                sys.exit(1)
            raise
        except KeyboardInterrupt:
            click.echo("\nusertwin: stopped; finished work is kept, and the same command continues", err=True)
            sys.exit(130)


def _refuse(error: click.UsageError, ctx: click.Context) -> NoReturn:
    """End the program with click's error on one line; a group without arguments shows its help instead."""
    from usertwin.personas.printable import printable
    from usertwin.personas.secrets import mask

    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        raise error
    command = error.ctx.command_path if error.ctx else f"{ctx.command_path} {ctx.invoked_subcommand or ''}".rstrip()
    message = " ".join(error.format_message().split()).removesuffix(".") + _twins_to_name(error)
    click.echo(printable(f"usertwin: {mask(message)} (see {command} --help)"), err=True)
    sys.exit(2)


def _twins_to_name(error: click.UsageError) -> str:
    """Return which twins there are, or how to get one, if the name of a twin is missing; "" for any other error."""
    missing = error.param if isinstance(error, click.MissingParameter) else None
    if error.ctx is None or missing is None or missing.name != "name" or error.ctx.info_name == "learn":
        return ""
    from .parts.options import complete_twins

    known = complete_twins(error.ctx, missing, "")
    return f", one of: {', '.join(known)}" if known else "; there is no twin yet, and usertwin learn makes one"


def _sentence(error: OSError) -> str:
    """Return what the operating system could not do with which file, and the way out."""
    reason = error.strerror or str(error) or type(error).__name__
    way_out = _WAYS_OUT.get(error.errno or 0, "check the file and its permissions, and run the command again")
    place = "" if error.filename is None else f"{error.filename}: "
    return f"{place}{reason[:1].lower()}{reason[1:]}; {way_out}"


def _replace_lacking(error: UnicodeError) -> tuple[str, int]:
    from usertwin.personas.printable import in_ascii

    return in_ascii(error)


def _prepare_streams() -> None:
    """Let no character end a command: output replaces what its encoding lacks, input what is not in its encoding."""
    codecs.register_error("usertwin", _replace_lacking)
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "usertwin"), (sys.stderr, "usertwin")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


@click.group("usertwin", cls=_Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="usertwin", prog_name="usertwin")
def main() -> None:
    """Simulated users that are learned from real people and measured against them."""
