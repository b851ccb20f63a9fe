"""The models that a twin names: loaded if it was learned here, refused if its folder came from elsewhere."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_runner import error_of, output_of, run
from reasoning_twins import set_synthesizer

from conftest import Endpoint, recipe, scripted
from usertwin.memory import Settings, TwinRecord, alearn, existing_twin
from usertwin.memory.event_loop import run_sync
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.twin import consent
from usertwin.memory.twin.consent import allow_models, check_consent, needs_consent
from usertwin.memory.twin.record import data_folder, default_home
from usertwin.personas import ChatLog, UsageError
from usertwin.simulator import SimulatedUser

EVIL = "openai:m@http://127.0.0.1:1/v1"


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test see what another one allowed."""
    monkeypatch.setattr(consent, "_allowed_in_this_process", set[str]())


def record_of(name: str) -> TwinRecord:
    return TwinRecord.load(existing_twin(name))


def change_recipe(name: str, **changes: Any) -> None:
    """Change what a twin's file says, as a stranger may."""
    record = record_of(name)
    replace(record, recipe=replace(record.recipe, **changes)).save(existing_twin(name))


def learn_here(log: ChatLog, **changes: Any) -> TwinRecord:
    model = scripted("felt calm and wanted to stay calm.")
    return run_sync(
        alearn("here", log, recipe(**changes), embedder=FakeEmbedder(), model=model, scorer=FakeScorer(), actor=model)
    )


@pytest.mark.parametrize(
    "model",
    ["local", "local:small", "all-MiniLM-L6-v2", "all-MiniLM-L6-v2@bfloat16", "fake:", "fake:256", "scripted:anything"],
)
def test_harmless_models_need_no_word(ann: str, model: str) -> None:
    check_consent(record_of(ann), model)


@pytest.mark.parametrize(
    "model",
    [EVIL, "openai:gpt-5", "local:/x.gguf", "local+/x", "local:small+/x", "hf:o/r/x.gguf", "transformers:/x", "/x", "org/name",
     "all-MiniLM-L6-v2/../x", "fake:99999999", "local\n"],
)  # fmt: skip
def test_other_models_are_refused_with_the_way_out(ann: str, model: str) -> None:
    with pytest.raises(UsageError, match=rf"names the model .*run: usertwin trust {ann}$"):
        check_consent(record_of(ann), model)


def test_the_way_out_works_when_it_is_pasted(ann: str, tmp_path: Path) -> None:
    """It names the twin's folder, and its home unless that is the default one."""
    home = tmp_path / "other twins"
    shutil.copytree(existing_twin(ann), home / "renamed")
    record = TwinRecord.load(home / "renamed")
    with pytest.raises(UsageError, match="run: usertwin trust") as caught:
        check_consent(record, EVIL, folder=home / "renamed")
    command = shlex.split(str(caught.value).partition("run: usertwin ")[2])
    assert command == ["trust", "renamed", "--home", str(home)]
    with pytest.raises(UsageError, match=rf"run: usertwin trust {ann}$"):
        check_consent(record, EVIL, folder=existing_twin(ann))
    record = replace(record, recipe=replace(record.recipe, model=EVIL, synthesizer=EVIL))
    record.save(home / "renamed")
    assert output_of(*command, "--yes")
    check_consent(record, EVIL, folder=home / "renamed")


def test_scripts_are_harmless_only_where_all_else_is_forbidden(ann: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    with pytest.raises(UsageError, match="scripted:/etc/passwd"):
        check_consent(record_of(ann), "scripted:/etc/passwd")


def test_a_twin_learned_here_may_load_its_models(log: ChatLog) -> None:
    record = learn_here(log, model=EVIL, synthesizer=EVIL, fidelity="rank", actor="openai:gpt-5")
    assert needs_consent(record) == []
    check_consent(record_of("here"), EVIL, "openai:gpt-5")
    with pytest.raises(UsageError, match="openai:other"):
        check_consent(record, "openai:other")


def test_consent_follows_a_twin_that_is_moved_and_no_other(log: ChatLog, tmp_path: Path) -> None:
    record = learn_here(log, model=EVIL, synthesizer=EVIL)
    shutil.move(existing_twin("here"), tmp_path / "here")
    check_consent(TwinRecord.load(tmp_path / "here"), EVIL)
    for other in (replace(record, name="other"), replace(record, learned_at="2020-01-01T00:00:00+00:00")):
        with pytest.raises(UsageError, match="run: usertwin trust"):
            check_consent(other, EVIL)


def test_the_list_is_private_and_names_nobody(log: ChatLog) -> None:
    learn_here(log, model=EVIL, synthesizer=EVIL)
    [path] = data_folder().iterdir()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert {len(line) for line in path.read_text("ascii").split()} == {64}


def test_a_home_brings_no_list_of_its_own(ann: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_recipe(ann, model=EVIL, synthesizer=EVIL)
    allow_models(record_of(ann))
    for place in (existing_twin(ann), existing_twin(ann).parent):
        shutil.copy(tmp_path / "data" / "allowed_models", place)
    consent._allowed_in_this_process.clear()
    check_consent(record_of(ann), EVIL)
    monkeypatch.setenv("USERTWIN_DATA", str(tmp_path / "of somebody else"))
    with pytest.raises(UsageError, match="run: usertwin trust"):
        check_consent(record_of(ann), EVIL)


def test_learning_goes_on_where_the_list_cannot_be_written(
    log: ChatLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    monkeypatch.setenv("USERTWIN_DATA", str(tmp_path / "file"))
    record = learn_here(log, model=EVIL, synthesizer=EVIL)
    check_consent(record, EVIL)  # in this process
    assert "usertwin trust here" in caplog.text


# Through the doors -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(ann: str, endpoint: Endpoint, log_file: Path) -> tuple[str, Endpoint]:
    """A twin from a stranger that names an endpoint for everything, and that endpoint."""
    name = f"openai:m@{endpoint.url}"
    set_synthesizer(ann, name, Settings(reasons=True))
    change_recipe(ann, actor=name, judge=name, scorer="transformers:/x", fidelity="judge")
    return ann, endpoint


def test_no_command_sends_anything_to_the_url_of_a_twin(
    hostile: tuple[str, Endpoint], tmp_path: Path, log_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, endpoint = hostile
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-1")
    script = tmp_path / "script.txt"
    script.write_text("hello there\n", "utf-8")
    model = f"--model=scripted:{script}"
    for command in (
        ["chat", name, model],
        ["simulate", name, "--agent", "demo", model],
        ["eval", name, model, "--scorer", "fake:"],
        ["tune", name, model, "--scorer", "fake:"],
        ["memory", "add", name, "--from", log_file, "--max-traces", "2"],
        ["memory", "add", name, "--from", log_file, "--max-traces", "2", model, "--scorer", "fake:"],
    ):
        assert f"run: usertwin trust {name}" in error_of(*command), command
    with pytest.raises(UsageError, match="run: usertwin trust"):
        SimulatedUser.load(name, model=scripted("hi"))
    home = shutil.copytree(existing_twin(name).parent, tmp_path / "elsewhere")
    for command in (
        ["simulate", name, "--agent", "demo", model],
        ["memory", "add", name, "--from", log_file, "--max-traces", "2"],
    ):
        assert error_of(*command, "--home", home).endswith(f"run: usertwin trust {name} --home {home}")
    with pytest.raises(UsageError, match=f"run: usertwin trust {name} --home {home}$"):
        SimulatedUser.load(name, home=home, model=scripted("hi"))
    assert endpoint.requests == []


@pytest.mark.parametrize(
    "command", [["show"], ["memory", "stats"], ["memory", "rebuild"], ["memory", "forget", "--before=2000-01-01"]]
)
def test_no_command_loads_the_embedder_of_a_twin(ann: str, command: list[str], tmp_path: Path) -> None:
    change_recipe(ann, embedder="/tmp/some/folder")
    assert 'names the model "/tmp/some/folder"' in error_of(*command, ann)
    home = shutil.copytree(existing_twin(ann).parent, tmp_path / "elsewhere")
    assert error_of(*command, ann, "--home", home).endswith(f"run: usertwin trust {ann} --home {home}")


def test_a_model_named_in_the_call_is_the_users_word(ann: str, endpoint: Endpoint) -> None:
    name = f"openai:m@{endpoint.url}"
    set_synthesizer(ann, name, Settings(reasons=True))
    with SimulatedUser.load(ann, model=name) as user:
        assert user.reasoner is user.model
    with SimulatedUser.load(ann, model=scripted("hi"), reasoner=name) as user:
        assert user.reasoner.name == name


def test_trust_shows_the_models_and_asks(ann: str) -> None:
    change_recipe(ann, model=EVIL, synthesizer=EVIL)
    refused = run("trust", ann, stdin="n\n")
    assert (refused.exit_code, EVIL in refused.stdout) == (1, True)
    assert needs_consent(record_of(ann)) == [EVIL]
    assert run("trust", ann, stdin="y\n").exit_code == 0
    assert needs_consent(record_of(ann)) == []
    assert output_of("trust", ann) == f"{ann} names no model that it may not load already\n"


def test_trust_can_be_given_without_a_question(ann: str) -> None:
    change_recipe(ann, model=EVIL, synthesizer=EVIL)
    assert output_of("trust", ann, "--yes") == f"{ann} names the model {EVIL}\n"
    assert needs_consent(record_of(ann)) == []


def test_a_hostile_name_cannot_forge_a_command(ann: str) -> None:
    path = existing_twin(ann) / "twin.json"
    raw = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(raw | {"name": "x; touch /tmp/y\nrun: z"}), "utf-8")
    with pytest.raises(UsageError, match=r"run: usertwin trust 'x; touch /tmp/y run: z'$"):
        check_consent(record_of(ann), EVIL)


def test_twins_live_in_the_named_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USERTWIN_HOME")
    assert default_home() == tmp_path / "data" / "twins"
