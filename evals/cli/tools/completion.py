"""The command `usertwin completion`: the script with which a shell completes commands, options and names of twins."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

#: The variable with which the script asks the program; click derives the same name from "usertwin".
_VARIABLE = "_USERTWIN_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="SHELL")
def completion(shell: str) -> None:
    """Print the script that completes commands and twins in SHELL.

    SHELL is bash, zsh or fish. In bash and zsh, add this line to ~/.bashrc or ~/.zshrc: eval "$(usertwin completion SHELL)". In
    fish, write the script once: usertwin completion fish > ~/.config/fish/completions/usertwin.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, shell
    program = click.get_current_context().find_root().command
    click.echo(kind(program, {}, "usertwin", _VARIABLE).source())
