"""The generated parts of docs/: the help of every command, and the folders with their first sentences."""

import ast
import io
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import click
import cog

FOLDERS = ("personas", "memory", "simulator", "evals", "examples", "tests")
#: Folders without an __init__.py.
PURPOSE = {"examples": "Runnable examples, each tested", "tests": "Tests; the folders mirror those above"}


def help_of_all() -> None:
    """Write `--help` of the program and of each command."""
    from usertwin.evals.cli.main import main

    os.environ["COLUMNS"] = "100"
    for words in ((), *_commands(main)):
        with redirect_stdout(io.StringIO()) as text:
            main([*words, "--help"], prog_name="usertwin", standalone_mode=False)
        cog.outl(f"## usertwin {' '.join(words)}".rstrip() + f"\n\n```text\n{text.getvalue().rstrip()}\n```\n")


def _commands(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _commands(command, (*above, name))
        else:
            yield (*above, name)


def tree() -> None:
    """Write each folder with its purpose, and the Python files in it."""
    for root in map(Path, FOLDERS):
        for folder in [root, *sorted(path.parent for path in root.rglob("__init__.py") if path.parent != root)]:
            purpose = PURPOSE.get(folder.name) or _first_sentence(folder / "__init__.py")
            cog.outl(f"## {folder.as_posix()}/\n\n{purpose}{'' if purpose.endswith('?') else '.'}\n")
            files = [] if root.name == "tests" else [path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
            if files:
                cog.outl("| file | purpose |\n|---|---|")
                for path in files:
                    cog.outl(f"| `{path.name}` | {_first_sentence(path)} |")
                cog.outl("")


def _first_sentence(path: Path) -> str:
    line = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n")[0].split(". ")[0]
    return line.rstrip(".").replace("|", "\\|")
