"""The generated parts of the README: the help of every command, and the file tree from each file's first line."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cog

COMMANDS = (
    "learn", "tune", "train", "controls", "chat", "simulate", "eval", "report", "compare", "judge-by-hand", "export", "show",
    "demo",
)  # fmt: skip
MEMORY = ("stats", "check", "rebuild", "add", "forget")
FOLDERS = ("personas", "memory", "simulator", "evals", "examples", "tests")
NOT_PYTHON = {".txt": "a prompt", ".md": "what was tried, with numbers", ".html": "a page, to be filled", ".toml": "a suite"}

BY_NAME = {
    "report_md.txt": "a report in Markdown, to be filled",
    "training_report_md.txt": "a report in Markdown, to be filled",
    "model_card.txt": "the card of an adapter, to be filled",
    "suite_small_replies.txt": "what its scripted model says",
}


def help_of_all() -> None:
    """Put out `--help` of the program and of each command."""
    program = Path(sys.executable).parent / "usertwin"
    environment = {"COLUMNS": "100", "PATH": os.environ["PATH"]}
    for words in ((), *((command,) for command in COMMANDS), ("suite", "run"), *(("memory", command) for command in MEMORY)):
        done = subprocess.run([program, *words, "--help"], capture_output=True, text=True, check=True, env=environment)
        cog.outl("```console\n$ " + " ".join(("usertwin", *words, "--help")) + f"\n{done.stdout.rstrip()}\n```\n")


def tree() -> None:
    """Put out the files of each folder, with what they are."""
    cog.outl("```")
    for folder in map(Path, FOLDERS):
        cog.outl(f"{folder}/".ljust(32) + (_says(folder / "__init__.py") or _OTHER[folder.name]))
        for path, text in _files(folder):
            cog.outl(f"  {path.name}".ljust(32) + text)
    cog.outl("```")


_OTHER = {"examples": "to read and to run, each tested", "tests": "one file for each of the above, and for the whole way"}


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    if folder.name == "tests":
        return
    for path in sorted(folder.iterdir()):
        if path.suffix in NOT_PYTHON:
            yield path, BY_NAME.get(path.name, NOT_PYTHON[path.suffix])
        elif path.suffix == ".py" and path.name != "__init__.py":
            yield path, _says(path)


def _says(path: Path) -> str:
    if not path.exists():
        return ""
    line = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n")[0].split(". ")[0]
    return line.rstrip(".")
