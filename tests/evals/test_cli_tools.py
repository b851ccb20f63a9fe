"""evals/cli/tools: doctor, init, guess and the completion of the shell; and `learn` without a speaker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from cli_runner import FAKES, error_of, output_of, run, write_script
from click.shell_completion import ShellComplete

from conftest import other_conversation, small_conversation
from usertwin.evals.cli.demo import ROBIN
from usertwin.evals.cli.main import COMMANDS, main
from usertwin.evals.cli.tools import checks, init
from usertwin.evals.demo import moments
from usertwin.memory import existing_twin
from usertwin.memory.twin.record import HELD_OUT_FILE, default_home, update_record
from usertwin.personas import write_conversations
from usertwin.simulator.backends.downloads import TINY, cache_folder

# doctor ---------------------------------------------------------------------------------------------------------------


def findings(*options: str | Path, broken: bool = False) -> dict[str, checks.Check]:
    """Run the doctor, and return what it found, by name."""
    result = run("doctor", "--json", "-", *options)
    assert result.exit_code == int(broken), result.output
    raw = json.loads(result.stdout)
    assert raw["ok"] is not broken
    return {check["name"]: checks.Check(**check) for check in raw["checks"]}


def test_the_doctor_finds_a_machine_without_weights_and_twins_in_order() -> None:
    found = findings()
    assert {check.state for check in found.values()} == {"ok", "note"}
    assert found["python"].text.startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert found["model local"].command == "usertwin doctor --fetch local"
    assert found["model local:small"].command == "usertwin doctor --fetch local:small"
    assert found["twins"].command == "usertwin learn NAME --from FILE"
    assert "USERTWIN_ONLY_SCRIPTED" in found["models"].text
    assert not default_home().exists()
    text = output_of("doctor", columns=80)
    assert "nothing is broken" in text
    assert all(len(line) <= 80 for line in text.splitlines()[:10])


def test_the_doctor_sees_weights_a_key_and_versions_but_prints_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache_folder() / "models" / TINY.filename
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(TINY.size)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-the-very-secret")
    found = findings()
    assert (found["model local"].state, found["model local"].text) == ("ok", str(path))
    assert "OPENAI_API_KEY is set" in found["openai:NAME"].text
    result = run("doctor", "--json", "-")
    assert "very-secret" not in result.output
    assert {"usertwin", "torch", "faiss-cpu", "pytest"} <= json.loads(result.stdout)["versions"].keys()


def test_the_doctor_names_the_command_for_packages_that_are_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    from packaging.requirements import Requirement

    lines = [
        "rich>=14",
        "faiss-cpu>=999",
        "no-such-thing>=2",
        'peft>=998; extra == "train"',
        'colorama; sys_platform == "none"',
    ]
    monkeypatch.setattr(checks, "_requirements", lambda: [Requirement(line) for line in lines])
    found = findings(broken=True)
    assert "no-such-thing is missing" in found["packages"].text
    assert found["packages"].command == "pip install 'faiss-cpu>=999' 'no-such-thing>=2'"
    assert (found["extra train"].state, found["extra train"].command) == ("note", "pip install 'peft>=998'")


def test_the_doctor_reports_twins_that_are_unfinished_or_damaged(ann: str, tmp_path: Path) -> None:
    home = tmp_path / "twins"
    for name in ("bea", "cas", "dan"):
        shutil.copytree(home / ann, home / name)
    update_record(home / "bea", lambda record: replace(record, state="interrupted"))
    (home / "cas" / "twin.json").write_text("{", "utf-8")
    (home / "dan" / "memory.sqlite").unlink()
    found = findings(broken=True)
    assert found["twins"].text == "4, of which 1 are complete"
    assert found["twin bea"].state == "note"
    assert found["twin bea"].command == "usertwin learn bea --from test --speaker Ann"
    assert "is damaged" in found["twin cas"].text
    assert found["twin dan"].command == "usertwin learn dan --from test --speaker Ann --overwrite"


def test_the_doctor_reports_a_home_that_cannot_be_written_and_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert "--home" in findings("--home", tmp_path / "file", broken=True)["home"].text
    monkeypatch.setattr(checks, "free_memory", lambda: 2_000_000_000)
    assert findings()["memory"].state == "note"
    monkeypatch.setattr(checks, "free_memory", lambda: 200_000_000)
    assert findings(broken=True)["memory"].state == "broken"


def test_the_doctor_fetches_a_model_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr("usertwin.simulator.backends.downloads.fetch", lambda weights, progress: fetched.append(weights.model))
    findings("--fetch", "local:small")
    assert fetched == ["local:small"]


# init -----------------------------------------------------------------------------------------------------------------


def test_what_init_writes_runs(log_file: Path, pytester: pytest.Pytester) -> None:
    folder = pytester.path / "my agent"
    text = output_of("init", folder)
    assert [line for line in text.splitlines() if line.startswith("wrote")] == [
        f"wrote {folder / name}" for name in init.FILES.values()
    ]
    assert f"cd '{folder}' && pytest test_with_twins.py" in text
    output_of("learn", "robin", "--from", log_file, "--speaker", "Ann", "--traces", "none", "--tune-turns", "0", *FAKES)
    model = write_script(pytester.path, "my order number is 4711", "ok and when do I get it", "fine thanks")
    result = pytester.runpytest_inprocess("-p", "no:asyncio", folder / "test_with_twins.py", "--usertwin-model", model)
    result.assert_outcomes(passed=2)


def test_the_workflow_of_init_calls_what_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    monkeypatch.chdir(tmp_path)
    output_of("init")
    workflow = yaml.safe_load((tmp_path / ".github/workflows/twins.yml").read_text("utf-8"))
    steps = workflow["jobs"]["twins"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert workflow[True].keys() == {"pull_request", "workflow_dispatch"}  # YAML 1.1 reads "on" as a boolean
    learn = next(command.partition("|| usertwin ")[2].split() for command in commands if "usertwin learn" in command)
    assert ROBIN.speaker in learn
    assert run(*learn, "--help").exit_code == 0  # an option that does not exist would be refused before
    [test] = [command.split() for command in commands if command.startswith("pytest")]
    assert (tmp_path / test[1]).is_file()
    for word in test:
        if word.startswith("--usertwin"):
            pytestconfig.getoption(word.removeprefix("--").replace("-", "_"))  # ValueError for an unknown one


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "my_agent.py").write_text("mine")
    text = output_of("init", tmp_path)
    assert f"kept  {tmp_path / 'my_agent.py'} (it exists)" in text
    assert (tmp_path / "my_agent.py").read_text() == "mine"
    assert text.count("wrote") == 3
    assert "is a file" in error_of("init", tmp_path / "my_agent.py")


# guess ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("repeats_count")
def test_guess_asks_about_held_out_turns_and_ends_with_an_interval(ann: str, tmp_path: Path) -> None:
    model = write_script(tmp_path, *(f"I would like the {number}th train" for number in range(1, 9)))
    result = run("guess", ann, "--turns", "3", "--model", model, stdin="a\nb\nA\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("pair ") >= 3
    assert result.stdout.count("th train") == 3
    assert " of 3 pairs (95% interval " in result.stdout
    assert f"replies written by {model}, seed 0" in result.stdout
    again = run("guess", ann, "--turns", "3", "--model", model, stdin="a\nb\nA\n")
    assert again.stdout == result.stdout  # the same moments and places for the same seed
    other = run("guess", ann, "--turns", "3", "--model", model, "--seed", "1", stdin="")
    assert "no guess, so no result" in other.stdout


@pytest.mark.usefixtures("repeats_count")
def test_guess_says_when_there_are_fewer_pairs_or_none(ann: str, tmp_path: Path) -> None:
    model = write_script(tmp_path, *(f"I would like the {number}th train" for number in range(1, 30)))
    assert "of 99 pairs could be made of" in run("guess", ann, "--turns", "99", "--model", model).stdout
    assert "--turns is 0" in error_of("guess", ann, "--turns", "0", "--model", model)
    (existing_twin(ann) / HELD_OUT_FILE).unlink()
    assert HELD_OUT_FILE in error_of("guess", ann, "--model", model)


def test_guess_needs_turns_that_the_memory_does_not_repeat(ann: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "near_duplicates", lambda pairs, known, turns: set(range(len(pairs))))
    assert "nearly repeats every held-out turn" in error_of("guess", ann, "--model", script)


# learn without a speaker ----------------------------------------------------------------------------------------------


def test_learn_without_a_speaker_lists_who_speaks_and_suggests_the_command(log_file: Path) -> None:
    result = run("learn", "sam", "--from", log_file)
    assert result.exit_code == 2
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["Ann", "user", "60", "20"] in rows
    assert ["Bob", "user", "20", "10"] in rows
    assert f"usertwin learn sam --from {log_file} --speaker Ann" in result.stderr
    assert not default_home().exists()


def test_many_speakers_are_cut_and_short_ones_marked(tmp_path: Path) -> None:
    people = []
    for number in range(25):
        turns = tuple(
            replace(t, speaker=f"P{number:02d}" if t.speaker == "Bob" else t.speaker) for t in other_conversation(1).turns
        )
        people.append(replace(other_conversation(number % 10), conversation_id=str(number), turns=turns))
    write_conversations([small_conversation(1), *people], tmp_path / "many.jsonl")
    result = run("learn", "sam", "--from", tmp_path / "many.jsonl", "--dry-run")
    assert result.stdout == ""  # a dry run prints a recipe there
    assert "others" in result.stderr
    assert "too few for a twin" in result.stderr


# completion -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_the_program(shell: str) -> None:
    text = output_of("completion", shell)
    assert "_USERTWIN_COMPLETE" in text
    assert f"{shell}_complete" in text


def completed(*words: str) -> list[str]:
    """Return what the shell offers for the last word."""
    complete = ShellComplete(main, {}, "usertwin", "_USERTWIN_COMPLETE")
    return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]


def test_commands_and_options_are_completed() -> None:
    assert completed("") == list(COMMANDS)
    assert completed("ev") == ["eval"]
    assert completed("--ver") == ["--version"]
    assert completed("eval", "ann", "--lim") == ["--limit"]
    assert completed("eval", "ann", "--style", "tr") == ["transcript"]


@pytest.fixture
def two(ann: str, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "twins" / ann, tmp_path / "twins" / "bea")
    shutil.copytree(tmp_path / "twins" / ann, tmp_path / "other" / "cas")


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    "command", ["chat", "eval", "show", "tune", "controls", "trust", "guess", "simulate", "serve", "memory check", "learn"]
)
def test_twins_are_completed_where_a_command_takes_one(command: str, tmp_path: Path) -> None:
    assert completed(*command.split(), "") == ["ann", "bea"]
    assert completed(*command.split(), "b") == ["bea"]
    assert completed(*command.split(), "--home", str(tmp_path / "other"), "") == ["cas"]


def test_a_home_that_cannot_be_read_completes_nothing(tmp_path: Path) -> None:
    assert completed("chat", "--home", str(tmp_path / "nowhere"), "") == []


@pytest.mark.usefixtures("two")
def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    """In a real bash, with a program of that name on its path."""
    program = tmp_path / "bin" / "usertwin"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m usertwin.evals "$@"\n')
    program.chmod(0o755)
    typed = "COMP_WORDS=(usertwin chat b); COMP_CWORD=2; _usertwin_completion usertwin"
    code = f'eval "$(usertwin completion bash)"; {typed}; echo "${{COMPREPLY[@]}}"'
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", code], env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert done.stdout.split() == ["bea"], done.stderr
