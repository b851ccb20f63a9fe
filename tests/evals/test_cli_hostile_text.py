"""What the command line shows, and what ends it: control characters, other encodings, a full disk, a read-only folder."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_runner import WEATHER, error_of, learn_command, output_of, run, write_script
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from usertwin.evals.cli.main import main
from usertwin.evals.cli.parts.options import check_writable
from usertwin.evals.cli.parts.progress_bars import SafeConsole
from usertwin.memory import TwinRecord, existing_twin
from usertwin.personas import UsageError
from usertwin.personas.printable import escaped, in_ascii, printable

#: Clears the screen, sets the title, fills the clipboard, colors, rings, overwrites the line, turns the reading direction.
EVIL = "a\x1b[2J\x1b]0;owned\x07\x1b]52;c;ZXZpbA==\x07\x9b31m\r\x08\x7f\u202eb\u2066c[/] [red]d :smile:"
#: What the model of `script` says.
SCRIPTED_REPLIES = WEATHER
UNSAFE = set("\x1b\x07\x9b\r\x08\x7f\u202e\u2066")


@pytest.fixture
def evil_log(log_file: Path) -> Path:
    """A log in which every text holds control characters, and so does a speaker's name."""
    rows = [json.loads(line) for line in log_file.read_text("utf-8").splitlines()]
    for row in rows:
        for turn in row["turns"]:
            turn["text"] += EVIL
            turn["speaker"] = "desk" + EVIL if turn["speaker"].startswith("desk") else turn["speaker"]
    log_file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return log_file


def test_control_characters_are_shown_and_nothing_else_changes() -> None:
    assert printable("tab\t and\nline, é 日本 👩\u200d👧") == "tab\t and\nline, é 日本 👩\u200d👧"
    assert printable("\x1b[2J\x9b\x7f\r\u202e\ud800") == "␛[2J�␡␍��"
    assert not UNSAFE & set(printable(EVIL))
    assert json.loads(escaped(json.dumps(EVIL, ensure_ascii=False))) == EVIL
    assert not UNSAFE & set(escaped(json.dumps(EVIL, ensure_ascii=False)))


@pytest.mark.parametrize("styled", [False, True])
def test_the_console_lets_no_control_character_through(styled: bool) -> None:
    file = io.StringIO()
    console = SafeConsole(
        file=file, width=200, emoji=False, force_terminal=styled, color_system="truecolor" if styled else None
    )
    table = Table("head")
    table.add_row(Text(EVIL))
    for shown in (Text(EVIL, style="bold"), table, Panel(Text(EVIL), title=escape(EVIL))):
        console.print(shown)
    console.print(EVIL, markup=False)
    assert ":smile:" in file.getvalue()
    assert "[red]d" in file.getvalue()
    left = UNSAFE & set(file.getvalue())
    assert left == ({"\x1b"} if styled else set())
    assert "\x1b[2J" not in file.getvalue()
    assert "\x1b]" not in file.getvalue()


def test_no_command_sends_the_control_characters_of_logs_and_models_to_the_terminal(evil_log: Path, tmp_path: Path) -> None:
    model = write_script(tmp_path, *(f"hello {EVIL} {number}" for number in range(9)))
    shown = output_of(*learn_command(evil_log, model, "--traces", "none", "--tune-turns", "0"))
    shown += output_of("show", "sam")
    shown += run("chat", "sam", "--model", model, stdin="Hello?\n/why\n/quit\n").output
    shown += run("simulate", "sam", "--agent", "demo", "--max-turns", "2", "--model", model).output
    shown += error_of("learn", "x", "--from", evil_log, "--speaker", "nobody")
    assert "owned" in shown
    assert not UNSAFE & set(shown)


def test_what_an_encoding_lacks_is_replaced() -> None:
    assert "−1 … “é”".encode("ascii", "usertwin-test").decode() == '-1 ... "?"'


def setup_module() -> None:
    import codecs

    codecs.register_error("usertwin-test", in_ascii)


@pytest.mark.parametrize("arguments", [["show"], ["show", "nobody"], ["learn", "x", "--from", "nö.jsonl", "--speaker", "é"]])
def test_a_terminal_without_utf_8_shows_every_command(arguments: list[str], evil_log: Path, script: str) -> None:
    output_of(*learn_command(evil_log, script, "--traces", "none", "--tune-turns", "0"))
    if arguments == ["show"]:
        arguments = ["show", "sam"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-m", "usertwin.evals", *arguments], env=environment, capture_output=True, timeout=120, check=False
    )
    assert b"Traceback" not in done.stderr
    assert done.stdout.isascii()  # click writes UTF-8 to a standard error that claims to be ASCII
    assert done.stdout or done.stderr


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "x/file: no space left on device; free disk space, and run the same command again: finished work is "
         "kept"),
        (errno.EROFS, "x/file: read-only file system; check its permissions, or name another folder (--home, --out)"),
        (errno.EACCES, "x/file: permission denied; check its permissions, or name another folder (--home, --out)"),
        (errno.ENAMETOOLONG, "x/file: file name too long; use a shorter name"),
        (errno.EIO, "x/file: input/output error; check the file and its permissions, and run the command again"),
    ],
)  # fmt: skip
def test_an_error_of_the_operating_system_is_one_sentence(monkeypatch: pytest.MonkeyPatch, number: int, sentence: str) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number), "x/file")

    monkeypatch.setattr("usertwin.memory.list_twins", fail)
    assert error_of("show") == sentence


def test_a_closed_pipe_is_no_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise BrokenPipeError(errno.EPIPE, "broken pipe")

    monkeypatch.setattr("usertwin.memory.list_twins", fail)
    assert "usertwin:" not in run("show").output


def test_an_unexpected_exception_is_still_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("usertwin.memory.list_twins", fail)
    with pytest.raises(ZeroDivisionError):
        main(["show"], standalone_mode=False)


def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new" / "inner", "--out")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written \(.*\); name another folder with --out"):
        check_writable(tmp_path / "file" / "inner", "--out")
    with pytest.raises(UsageError, match="the name is too long"):
        check_writable(tmp_path / ("x" * 5000), "--out")

    def read_only(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(UsageError, match="read-only file system"):
        check_writable(tmp_path, "--home")


def test_commands_look_for_a_writable_folder_before_they_load_a_model(
    monkeypatch: pytest.MonkeyPatch, log_file: Path, tmp_path: Path, script: str
) -> None:
    output_of(*learn_command(log_file, script, "--traces", "none", "--tune-turns", "0"))
    suite = tmp_path / "suite.toml"
    suite.write_text('twins = ["sam"]\narms = ["no_memory"]\nmodels = { scorer = "fake:", embedder = "fake:" }\n')

    def read_only(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    for module in ("load_model", "load_scorer"):
        monkeypatch.setattr(f"usertwin.simulator.{module}", lambda *_, **__: pytest.fail("a model was loaded"))  # pyright: ignore
    for command in (
        learn_command(log_file, script, name="new"), ("eval", "sam", "--model", script), ("tune", "sam", "--model", script),
        ("eval", "sam", "--model", script, "--out", tmp_path / "run"), ("suite", "run", suite, "--out", tmp_path / "run"),
        ("simulate", "sam", "--agent", "demo", "--model", script, "--out", tmp_path / "talks"),
        ("controls", "sam", "--model", script),
    ):  # fmt: skip
        assert "read-only file system" in error_of(*command), command
    assert not (tmp_path / "run").exists()
    assert TwinRecord.load(existing_twin("sam")).closeness is None


def test_the_summary_of_a_log_with_damaged_turns_says_how_many_and_where(log_file: Path, script: str) -> None:
    rows = [json.loads(line) for line in log_file.read_text("utf-8").splitlines()]
    for row in rows[:5]:
        row["turns"][1]["text"] = None
        del row["started_at"]
    for row in rows[5:]:
        del row["started_at"]
    log_file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    shown = output_of(*learn_command(log_file, script, "--traces", "none", "--tune-turns", "0"))
    for number in (1, 2, 3):
        assert f'{log_file}:{number}: turn 2 needs a "text" that is a string, not null' in shown
    assert "5 damaged turns in 5 conversations: what cannot be read is left out" in shown
    assert "no conversation has a date; the order of the lines is taken for time, oldest first" in shown
