"""The command `usertwin init`: a starter test, an agent, scenarios and a CI workflow that run as they are written."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from usertwin.personas import UsageError

from ..parts.options import console_for, file_path

#: Each file that is written, by its template in this folder.
FILES = {
    "starter_agent.txt": "my_agent.py",
    "starter_test.txt": "test_with_twins.py",
    "starter_scenarios.toml": "twin_scenarios.toml",
    "starter_workflow.txt": ".github/workflows/twins.yml",
}
#: Learns the twin that the files name, a person of the built-in chats.
LEARN = "usertwin learn robin --from chitchat --speaker 60576dcf-5b39-4420-a850-33ff7d108047 --traces none --tune-turns 0"
_TEST = FILES["starter_test.txt"]


@click.command()
@click.argument("folder", type=file_path, default=".")
def init(folder: Path) -> None:
    """Write a starter test, an agent, a scenario file and a CI workflow into FOLDER.

    FOLDER is the root of your repository, by default the current folder. No file is overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; name a folder")
    console = console_for()
    for template, name in FILES.items():
        path = folder / name
        written = _write_new(path, (Path(__file__).parent / template).read_text("utf-8").replace("LEARN", LEARN))
        console.print(f"wrote {path}" if written else f"kept  {path} (it exists)", markup=False, soft_wrap=True)
    here = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    for line in ("", "Next, learn the twin that the test names, and run the test:", f"  {LEARN}", f"  {here}pytest {_TEST}"):
        console.print(line, markup=False, soft_wrap=True)


def _write_new(path: Path, text: str) -> bool:
    """Write a file that does not exist, and return whether it did not. OSError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:  # part of the user's repository, so not private
            file.write(text)
    except FileExistsError:
        return False
    return True
