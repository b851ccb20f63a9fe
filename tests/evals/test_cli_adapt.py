"""evals/cli/learn.py: `usertwin learn NAME --adapt` trains, stores and shows an adapter, and a chat uses it."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapted_twin import ATTEMPT, CONFIG, SETTINGS, with_settings
from cli_runner import contents_of, error_of, learn_command, output_of, run, write_script
from invented_suite import learned_twin, write_log

from usertwin.evals.cli.learn import ADAPT_EPOCHS, ADAPT_RANK, ADAPT_ROWS
from usertwin.evals.suites import people
from usertwin.evals.suites.people import RegisteredCorpus, Registry
from usertwin.evals.tuning.adapt import AdaptConfig, AdaptPlan
from usertwin.memory import TwinRecord, existing_twin
from usertwin.memory.twin.record import ADAPTER_FOLDER, ADAPTING_FOLDER, default_home, update_record

pytestmark = pytest.mark.usefixtures("two_clusters_suffice", "in_one_thread")

#: A few rows of a small adapter.
SMALL = ("--adapt-rows", str(CONFIG.rows), "--adapt-rank", str(CONFIG.rank))


@pytest.fixture
def model(base: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the tiny model, which is allowed to run."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    return f"transformers:{base}"


@pytest.fixture
def cid(tmp_path: Path) -> Path:
    """The folder of Cid's twin, with settings whose prompts fit into the tiny model."""
    return with_settings(learned_twin(tmp_path))


def record() -> TwinRecord:
    return TwinRecord.load(existing_twin("cid"))


def test_adapt_trains_an_adapter_and_a_chat_uses_it(cid: Path, model: str) -> None:
    text = output_of("learn", "cid", "--adapt", "--model", model, *SMALL)
    assert "adapting: an adapter is trained on 24 turns of about " in text
    adapter = record().adapter
    assert adapter is not None
    assert adapter.used
    sentence = f"trained on 24 of the 36 turns remembered on {adapter.trained_at[:10]}; changes bits per character by −0.0"
    assert text.count(sentence) == 2  # also in what `show` prints
    assert f"used when {model} acts, and with no other model" in output_of("show", "cid")
    assert record().settings == SETTINGS
    assert output_of("chat", "cid", "--model", model, stdin="parcel invoice?\n/quit\n")
    result = output_of("eval", "cid", "--model", model, "--scorer", model, "--limit", "3", "--generate", "0")
    assert "Recalled, adapted" in result


def test_a_log_and_adapt_learn_tune_and_adapt_in_one_command(tmp_path: Path, model: str) -> None:
    log = write_log(tmp_path / "cid.jsonl", "Cid", "Bob")
    options = ("--traces", "none", "--embedder", "fake:64", "--scorer", model, "--tune-turns", "2", *SMALL)
    command = ("learn", "cid", "--from", log, "--speaker", "Cid", "--model", model, *options)
    run(*command)  # without the adapter
    before = record()
    assert before.settings is not None
    assert before.adapter is None
    text = output_of(*command, "--adapt")
    assert "tuning:" not in text
    after = record()
    assert after.adapter is not None
    assert replace(after, adapter=None) == before
    assert f'there is a twin "cid" in {default_home()} already' in error_of(*command, "--adapt")


def test_ctrl_c_names_the_command_that_continues(cid: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from usertwin.evals.cli.parts.progress_bars import Bars

    def stop(self: Bars, stage: str, done: int, total: int) -> None:
        if (stage, done) == ("adapting", 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Bars, "__call__", stop)
        result = run("learn", "cid", "--adapt", "--model", model, *SMALL, "--seed", "3")
    assert result.exit_code == 130
    options = f"--model {model} --seed 3 --adapt-rows {CONFIG.rows} --adapt-rank {CONFIG.rank}"
    assert f"the last checkpoint of the adapter is kept; continue with: usertwin learn cid --adapt {options}" in result.stdout
    assert (cid / ADAPTING_FOLDER).is_dir()
    assert record().adapter is None
    output_of("learn", "cid", "--adapt", *options.split())
    assert record().adapter is not None
    assert not (cid / ADAPTING_FOLDER).exists()


def test_a_dry_run_prints_the_minutes_and_a_recipe_and_writes_nothing(cid: Path, model: str, tmp_path: Path) -> None:
    before = contents_of(default_home())
    for command in (
        ("learn", "cid", "--adapt", "--model", model),
        learn_command(tmp_path / "cid.jsonl", model, "--adapt", "--embedder", "fake:64", "--traces", "none", speaker="Cid"),
    ):
        text = output_of(*command, "--adapt-rank", "4", "--dry-run")
        assert "an adapter is trained on 36 turns of about" in text
        assert "min on this machine, with" in text
        recipe = tomllib.loads(text)
        assert (recipe["adapt"], recipe["adapt_rows"], recipe["adapt_epochs"], recipe["adapt_rank"]) == (True, 160, 1, 4)
    assert contents_of(default_home()) == before


def test_a_recipe_sets_rows_epochs_and_rank(cid: Path, model: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f'model = "{model}"\nadapt = true\nadapt_rows = 9\nadapt_epochs = 2\nadapt_rank = 2\n', "utf-8")
    output_of("learn", "cid", "--recipe", path)
    adapter = record().adapter
    assert adapter is not None
    assert (adapter.turns, adapter.epochs, adapter.rank) == (9, 2, 2)


def test_the_estimate_without_the_model_says_so() -> None:
    plan = AdaptPlan(rows=160, tokens=820, epochs=2, validation=48, parameters=None)
    assert "trained on 160 turns of about 820 tokens 2 times" in str(plan)
    assert "a time that is known when the model is here" in str(plan)


def test_the_defaults_of_the_command_are_those_of_the_configuration() -> None:
    config = AdaptConfig()
    assert (config.rows, config.epochs, config.rank) == (ADAPT_ROWS, ADAPT_EPOCHS, ADAPT_RANK)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--model", "openai:gpt-5-mini"), 'the weights of "openai:gpt-5-mini" cannot be adapted'),
        (("--model", "local", "--style", "instruction"), "an adapter is trained on transcripts; pass --style transcript"),
        (("--adapt-rows", "0"), "adapt_rows is 0; it must be at least 1"),
    ],
)
def test_wrong_input_of_adapt_is_reported_in_one_sentence(cid: Path, options: tuple[str, ...], error: str) -> None:
    before = contents_of(default_home())
    assert error in error_of("learn", "cid", "--adapt", *options)
    assert contents_of(default_home()) == before


def test_a_twin_that_is_missing_or_not_learned_is_not_adapted(cid: Path, tmp_path: Path) -> None:
    assert 'there is no twin "nobody"' in error_of("learn", "nobody", "--adapt")
    update_record(cid, lambda record: replace(record, state="interrupted"))
    assert "cid is not fully learned; give --from and --speaker" in error_of("learn", "cid", "--adapt")
    assert "Missing option '--from'" in error_of("learn", "cid")
    assert "--speaker is missing; name one of these people" in error_of("learn", "cid", "--from", tmp_path / "cid.jsonl")


def test_nothing_is_adapted_to_a_test_person(cid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = RegisteredCorpus(sources=("cid.jsonl", "log"), rule="invented", development=("Bob",), test=("Cid",))
    monkeypatch.setattr(people, "registry", lambda: Registry(corpora={"desk": corpus}))
    update_record(cid, lambda record: replace(record, recipe=replace(record.recipe, source=str(tmp_path / "cid.jsonl"))))
    refusal = '--adapt: desk: "Cid" is a test person, and no setting is tuned on test people; '
    assert error_of("learn", "cid", "--adapt").startswith(f"{refusal}adapt a twin of a development person")
    learn: tuple[Any, ...] = learn_command(tmp_path / "cid.jsonl", "local", "--adapt", speaker="Cid")
    assert error_of(*learn).startswith(f"{refusal}leave it out")


# Forgetting and adding --------------------------------------------------------------------------------------------------


def with_attempt(folder: Path) -> None:
    """Give the twin an adapter, a finished one and one in training, without weights."""
    for name in (ADAPTER_FOLDER, f"{ADAPTING_FOLDER}/adapter.partial"):
        (folder / name).mkdir(parents=True)
        (folder / name / "adapter_model.safetensors").write_bytes(b"weights")
    update_record(folder, lambda record: replace(record, adapter=ATTEMPT))


def test_forget_deletes_the_adapter_and_names_the_command_for_another(cid: Path) -> None:
    with_attempt(cid)
    text = output_of("memory", "forget", "cid", "--conversation", record().corpus[0])
    again = "its adapter was trained on them, so it is deleted; train another one: usertwin learn cid --adapt"
    assert again in text
    assert record().adapter is None
    assert not (cid / ADAPTER_FOLDER).exists()
    assert not (cid / ADAPTING_FOLDER).exists()
    assert "adapter" not in output_of("memory", "forget", "cid", "--conversation", record().corpus[0])


def test_forgetting_a_validation_conversation_deletes_the_adapter_that_was_measured_on_it(cid: Path) -> None:
    with_attempt(cid)
    output_of("memory", "forget", "cid", "--conversation", record().validation[0])
    assert record().adapter is None
    assert not (cid / ADAPTER_FOLDER).exists()


def test_forgetting_a_test_conversation_leaves_the_adapter(cid: Path) -> None:
    with_attempt(cid)
    assert "its adapter" not in output_of("memory", "forget", "cid", "--conversation", record().test[0])
    assert record().adapter == ATTEMPT
    assert (cid / ADAPTER_FOLDER).exists()


def test_show_tells_of_an_adapter_that_did_not_pay(cid: Path) -> None:
    update_record(cid, lambda record: replace(record, adapter=replace(ATTEMPT, used=False, low=-0.06, high=0.01)))
    text = output_of("show", "cid")
    assert "none; one trained on 24 of the 36 turns remembered on 2026-12-01 changes bits per character by −0.027" in text
    assert "(−0.060 to +0.010) on 6 validation turns of 2 conversations, which is not shown to be a gain" in text


def test_add_keeps_the_adapter(cid: Path, tmp_path: Path) -> None:
    with_attempt(cid)
    shutil.copy(tmp_path / "cid.jsonl", tmp_path / "more.jsonl")
    script = write_script(tmp_path, "melody")
    output_of("memory", "add", "cid", "--from", tmp_path / "more.jsonl", "--model", script, "--max-traces", "0")
    assert record().adapter == ATTEMPT
    assert "trained on 24 of the 36 turns remembered on 2026-12-01" in output_of("show", "cid")
