"""Run the command line in the process of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from usertwin.evals.cli.main import main
from usertwin.simulator.backends.scripted import ScriptedChatModel

#: Options for a scorer and an embedder without weights.
FAKES = ("--scorer", "fake:", "--embedder", "fake:")


def run(*arguments: str | Path, stdin: str | None = None, columns: int = 300) -> Result:
    """Run `usertwin` with arguments, on a console that is wide enough to break no sentence."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin, env={"COLUMNS": str(columns)})


def output_of(*arguments: str | Path, stdin: str | None = None, columns: int = 300) -> str:
    """Return the standard output of a command that succeeds."""
    result = run(*arguments, stdin=stdin, columns=columns)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert result.stderr == ""
    return result.stdout


def error_of(*arguments: str | Path) -> str:
    """Return the error of a command that refuses its input: one sentence on standard error, exit code 2, no traceback."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert isinstance(result.exception, SystemExit)
    [sentence] = result.stderr.splitlines()
    assert sentence.startswith("usertwin: ")
    return sentence.removeprefix("usertwin: ")


def learn_command(
    log: Path | str, model: str, *options: str | Path, name: str = "sam", speaker: str = "Ann"
) -> tuple[str | Path, ...]:
    """Return the arguments of `usertwin learn` with fakes for all models but the one that writes."""
    return ("learn", name, "--from", log, "--speaker", speaker, "--model", model, "--candidates", "2", *FAKES, *options)


def write_script(folder: Path, *replies: str) -> str:
    """Write the replies of a scripted model to a file in a folder, and return the model's name."""
    path = folder / "script.txt"
    path.write_text("\n".join(replies) + "\n", "utf-8")
    return f"scripted:{path}"


#: Replies that all differ and never end a conversation.
WEATHER = tuple(
    f"the weather in {city} please" for city in ("Oslo", "Rome", "Lima", "Cairo", "Kyoto", "Quito", "Paris", "Bern")
)

_FEELINGS = ("calm", "proud", "shy", "bold", "tense", "keen", "glum", "warm", "cool", "hurt", "glad", "stern", "wary")
#: Reasoning traces that all differ.
THOUGHTS = tuple(f"felt {first} and wanted to stay {second}." for first in _FEELINGS for second in _FEELINGS[:3])


def record_prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives every prompt of a scripted model until the test ends."""
    prompts: list[str] = []
    generate = ScriptedChatModel._generate

    def record(self: ScriptedChatModel, messages: Any, *args: Any, **options: Any) -> Any:
        prompts.append("\n".join(str(message.text) for message in messages))
        return generate(self, messages, *args, **options)

    monkeypatch.setattr(ScriptedChatModel, "_generate", record)
    return prompts


def contents_of(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
