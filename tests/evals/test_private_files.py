"""What the commands write: private under any umask, without secrets, and never through a link that somebody planted."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import THOUGHTS, WEATHER, error_of, learn_command, output_of, run, write_script
from invented_suite import suite_file

from conftest import Endpoint
from usertwin.memory import existing_twin
from usertwin.personas import secrets

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes and links of POSIX")

KEY, LOGIN = "sk-canary-of-a-key", "ann:canary-password@"
#: Agents, two of which tell a key: in an error that repeats what a server said, and in a reply.
AGENT = f"""
def good(messages):
    return "Which city do you mean?"


def telling(messages):
    raise RuntimeError("401: wrong key {KEY} for http://{LOGIN}host/v1")


def saying(messages):
    return "my key is {KEY}"
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which every command that writes has run under the umask 0.

    What the user wrote is in `input`, the current folder; home, runs, cache, data and files are in `written`.
    """
    folder = tmp_path_factory.mktemp("world")
    given, written = folder / "input", folder / "written"
    given.mkdir()
    before = os.umask(0)
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("HOME", "CACHE", "DATA"):
            patch.setenv(f"USERTWIN_{variable}", str(written / variable.lower()))
        patch.setenv("USERTWIN_ONLY_SCRIPTED", "1")
        patch.setenv("CANARY_API_KEY", KEY)
        patch.chdir(given)
        patch.setattr(sys, "path", [str(given), *sys.path])
        patch.delitem(sys.modules, "canary_agents", raising=False)
        (given / "canary_agents.py").write_text(AGENT, "utf-8")
        try:
            _run_all(given, written)
        finally:
            os.umask(before)
        yield folder


def _run_all(given: Path, written: Path) -> None:
    suite = suite_file(given, ("turns = 6", "turns = 2"), ("replies = 3", "replies = 1"), ("samples = 2", "samples = 1"))
    suite.write_text(suite.read_text("utf-8") + f"\n# a model at http://{LOGIN}host/v1, key {KEY}\n", "utf-8")
    script, runs = write_script(given, *WEATHER, *THOUGHTS), written / "runs"
    model = ("--model", script)
    fakes = (*model, "--scorer", "fake:")
    talk = ("simulate", "sam", *model, "--max-turns", "2")
    for command in (
        learn_command("log.jsonl", script, "--max-traces", "4", "--tune-turns", "4"),
        ("tune", "sam", *fakes, "--limit", "4"),
        ("memory", "add", "sam", "--from", "log.jsonl"),
        ("memory", "rebuild", "sam", "--index", "flat"),
        ("memory", "forget", "sam", "--conversation", "ann-03"),
        ("memory", "check", "sam"),
        ("chat", "sam", *model),
        ("play", "canary_agents:saying", "--twin", "sam", *model),
        ("play", "canary_agents:saying"),
        (*talk, "--agent", "canary_agents:good", "--count", "2", "--out", runs / "good"),
        (*talk, "--agent", "canary_agents:saying", "--out", runs / "saying"),
        (*talk, "--agent", "canary_agents:telling", "--out", runs / "telling"),
        ("eval", "sam", *fakes, "--limit", "4", "--generate", "1", "--json", written / "eval.json"),
        ("eval", "sam", *fakes, "--limit", "4", "--generate", "2", "--judge", "scripted:judge.txt", "--out", runs / "one"),
        ("controls", "sam", *fakes, "--limit", "2", "--json", written / "controls.json"),
        ("export", runs / "one", "--out", written / "lines.jsonl"),
        ("report", runs / "one"),
        ("compare", runs / "one", runs / "one", "--json", written / "compare.json"),
        ("suite", "run", suite, "--out", runs / "suite"),
        ("judge-by-hand", runs / "one", "--count", "1"),
    ):
        result = run(*command, stdin="1\n")
        assert result.exit_code == int("canary_agents:telling" in command), (command, result.output, result.exception)
        assert KEY not in result.output, command
        assert "canary-password" not in result.output, command


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_everything_is_private_under_the_umask_0(world: Path) -> None:
    public = {
        str(path.relative_to(world)): oct(path.stat().st_mode & 0o777)
        for path in files_in(world / "written")
        if path.stat().st_mode & 0o077
    }
    assert public == {}
    assert len(files_in(world / "written")) > 50


def test_no_file_holds_a_key_or_a_password(world: Path) -> None:
    found = [
        str(path.relative_to(world))
        for path in files_in(world / "written")
        if path.is_file() and any(secret in path.read_bytes() for secret in (KEY.encode(), b"canary-password"))
    ]
    assert found == []


def test_the_masked_error_is_still_there(world: Path) -> None:
    [line] = (world / "written/runs/telling/conversations.jsonl").read_text("utf-8").splitlines()
    assert "401: wrong key *** for http://host/v1" in json.loads(line)["error"]


# Planted links -----------------------------------------------------------------------------------------------------------

#: Files that a twin's folder holds, or may hold while something is written.
TWIN_FILES = (
    "twin.json", ".twin.json.x.partial", "twin.json.partial", "memory.sqlite", "memory.sqlite-wal", "memory.sqlite-shm",
    "memory.sqlite-journal", "memory.sqlite.partial", "memory.sqlite.partial-journal", "memory.faiss", "memory.faiss.partial",
    "memory.seal", "memory.seal.partial", "memory.lock", "memory.writer", "held_out.jsonl.gz", "other_person.jsonl.gz",
    "ending.json", "leaving.json", "answers.sqlite", "answers.sqlite-wal", "forgetting.json", "adding.json", "sub",
    "sessions.sqlite", "sessions.sqlite-wal", "sessions.sqlite-shm",
)  # fmt: skip


@pytest.fixture
def twin(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a twin in the test's home."""
    shutil.copytree(world / "written/home/sam", tmp_path / "twins" / "sam")
    monkeypatch.chdir(world / "input")
    return existing_twin("sam")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A file of the user that must stay as it is."""
    path = tmp_path / "precious"
    path.write_text("precious", "utf-8")
    yield path
    assert path.read_text("utf-8") == "precious"


def twin_commands(out: Path) -> list[list[str | Path]]:
    """Return every command that opens the twin sam."""
    model: list[str | Path] = ["--model", "scripted:script.txt"]
    fakes = [*model, "--scorer", "fake:"]
    return [
        ["show", "sam"],
        ["trust", "sam"],
        ["chat", "sam", *model],
        ["simulate", "sam", *model, "--agent", "demo"],
        ["simulate", "sam", *model, "--agent", "demo", "--out", out],
        ["eval", "sam", *fakes],
        ["eval", "sam", *fakes, "--out", out],
        ["tune", "sam", *fakes],
        ["controls", "sam", *fakes],
        ["memory", "stats", "sam"],
        ["chat", "sam", "--resume"],
        ["watch", "sam", "--agent", "demo", "--model", "scripted:script.txt"],
        ["memory", "check", "sam"],
        ["memory", "rebuild", "sam"],
        ["memory", "add", "sam", "--from", "log.jsonl"],
        ["memory", "forget", "sam", "--conversation", "ann-01"],
        [*learn_command("log.jsonl", "scripted:script.txt", "--overwrite")],
    ]


@pytest.mark.parametrize("name", TWIN_FILES)
@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to], ids=["symbolic", "hard"])
def test_no_command_opens_a_twin_with_a_link(twin: Path, target: Path, tmp_path: Path, name: str, plant: object) -> None:
    (twin / name).unlink(missing_ok=True)
    assert callable(plant)
    plant(twin / name, target)
    before = sorted(path.name for path in twin.iterdir())
    for command in twin_commands(tmp_path / "out"):
        error = error_of(*command)
        assert f"{twin / name}: is a " in error, command
        assert "link" in error
    assert sorted(path.name for path in twin.iterdir()) == before


@pytest.mark.parametrize("place", ["sam", ".sam.partial", ".sam.old"])
def test_a_link_in_the_place_of_a_folder_leads_nowhere(twin: Path, target: Path, tmp_path: Path, place: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    twin.rename(elsewhere)
    (twin.parent / place).symlink_to(elsewhere)
    content = {path: path.read_bytes() for path in files_in(elsewhere)}
    for command in twin_commands(tmp_path / "out"):
        run(*command)
    assert {path: path.read_bytes() for path in files_in(elsewhere)} == content


@pytest.mark.parametrize("name", [".sam.lock", ".sam.writer", ".sam.record"])
@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to], ids=["symbolic", "hard"])
def test_locks_are_no_links(twin: Path, target: Path, tmp_path: Path, name: str, plant: object) -> None:
    link = twin.parent / name
    assert callable(plant)
    plant(link, target)
    for command in twin_commands(tmp_path / "out"):
        assert f"{link}: is a " in error_of(*command), command


RUN_FILES = (
    "manifest.json", "result.json", "report.html", "report.md", "run.lock", "verdicts.jsonl", "labels.jsonl", "answers.sqlite",
    "people/0.jsonl", "people/0.json", "conversations.jsonl", "summary.json", ".report.html.x.partial", "twins",
)  # fmt: skip


@pytest.mark.parametrize("name", RUN_FILES)
def test_no_command_uses_a_run_with_a_link(world: Path, twin: Path, target: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(world / "written/runs/one", folder)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    for command in (
        ["report", folder],
        ["export", folder, "--out", tmp_path / "lines"],
        ["compare", folder, world / "written/runs/one"],
        ["judge-by-hand", folder],
        ["eval", "sam", "--model", "scripted:script.txt", "--scorer", "fake:", "--out", folder],
    ):
        assert f"{folder / name}: is a symbolic link" in error_of(*command), command


def test_a_new_run_does_not_write_into_a_folder_with_a_link(twin: Path, target: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "conversations.jsonl", "summary.json", "run.lock", "people"):
        folder = tmp_path / f"run of {name}"
        folder.mkdir()
        (folder / name).symlink_to(target)
        for command in twin_commands(folder):
            if folder in command:
                error = error_of(*command)
                assert "is a symbolic link" in error or "holds a run already" in error


def test_named_files_are_not_written_through_a_link(world: Path, twin: Path, target: Path, tmp_path: Path) -> None:
    one, link = world / "written/runs/one", tmp_path / "link"
    link.symlink_to(target)
    assert "is a symbolic link" in error_of("export", one, "--out", link)
    assert "is a symbolic link" in error_of("compare", one, one, "--json", link)


def test_standard_output_is_the_users_own(world: Path) -> None:
    assert output_of("export", world / "written/runs/one", "--out", "-").startswith("{")


# Models with a login or a key ---------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a suite of the tests; home, cache and data are in `written`."""
    for variable in ("HOME", "CACHE", "DATA"):
        monkeypatch.setenv(f"USERTWIN_{variable}", str(tmp_path / "written" / variable.lower()))
    monkeypatch.setattr(secrets, "_logins", dict[str, str]())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands_with(model: str, place: Path) -> list[list[str | Path]]:
    """Return commands that use a hosted model for everything, and write to `written`."""
    suite = suite_file(
        place, ("turns = 6", "turns = 2"), ("replies = 3", "replies = 1"), ("samples = 2", "samples = 1"),
        ('action = "scripted:action.txt"', f'action = "{model}"\njudge = "{model}"'),
    )  # fmt: skip
    (place / "recipe.toml").write_text(f'actor = "{model}"\nfidelity = "rank"\n', "utf-8")
    runs = place / "written" / "runs"
    fakes: list[str | Path] = ["--scorer", "fake:"]
    quick: list[str | Path] = ["--max-traces", "2", "--tune-turns", "2"]
    learn: list[str | Path] = [*learn_command("log.jsonl", model, *quick, "--synthesizer", model, "--recipe", "recipe.toml")]
    return [
        [*learn, "--dry-run"],
        learn,
        ["show", "sam"],
        ["simulate", "sam", "--model", model, "--agent", model, "--max-turns", "2", "--out", runs / "talk"],
        ["eval", "sam", "--model", model, *fakes, "--limit", "2", "--generate", "1", "--judge", model, "--out", runs / "one"],
        ["controls", "sam", "--model", model, *fakes, "--limit", "2", "--json", place / "written" / "controls.json"],
        ["memory", "add", "sam", "--from", "log.jsonl", "--max-traces", "2"],
        ["suite", "run", suite, "--dry-run"],
        ["suite", "run", suite, "--out", runs / "suite"],
        ["suite", "run", suite, "--out", runs / "suite"],  # resumed: the stored names are those of the suite
    ]


@pytest.mark.parametrize("named", ["login", "variable"])
def test_a_secret_of_a_model_is_used_and_neither_written_nor_printed(
    place: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("CANARY_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-of-openai")
    model = f"openai:m@{endpoint.url}"
    model = model.replace("//", f"//{LOGIN}") if named == "login" else f"{model}#CANARY_API_KEY"
    endpoint.content = f'felt calm and wanted to stay calm with {KEY}\n{{"closer": "1"}}'
    for command in commands_with(model, place):
        result = run(*command)
        assert result.exit_code == 0, (command, result.output, result.exception)
        assert "canary-" not in result.output, command
        assert not any(b"canary-" in path.read_bytes() for path in files_in(place / "written") if path.is_file()), command
    header = f"Bearer {KEY}" if named == "variable" else "Basic YW5uOmNhbmFyeS1wYXNzd29yZA=="
    assert {headers["authorization"] for headers in endpoint.headers} == {header}
