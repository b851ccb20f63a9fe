"""`usertwin train`: what it prints and refuses, the folder it leaves, and that the same command goes on in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from filelock import FileLock
from judge_replies import ruling
from tiny_model import tiny_model

from usertwin.evals.cli.main import main
from usertwin.evals.cli.train import train as train_command
from usertwin.evals.records.run_folder import exclusive_run
from usertwin.evals.records.training_run import read_training
from usertwin.memory.training.config import BETAS, LEARNING_RATES, TRAIN_METHODS, TrainingConfig
from usertwin.simulator import load_model, load_scorer
from usertwin.simulator.backends.lora_adapter import model_with_adapter, read_adapter

pytest.importorskip("trl")
pytestmark = pytest.mark.usefixtures("in_one_thread")

PEOPLE = ("Ann", "Bob", "Cid")
WANTED = ("a plum cake", "two train tickets", "an umbrella", "the weather report", "my old parcel", "a quiet room")
#: A training of a few steps: two people to train on, one to measure on.
SMALL = (
    "--embedder=fake:64", "--role=user",
    "--people=2", "--unseen=1", "--pairs=8", "--watched=3", "--measured=2", "--samples=1", "--group=2", "--batch=2",
    "--at-once=2", "--budget=600", "--rank=2", "--epochs=1", "--save-every=2", "--audit-every=4",
)  # fmt: skip


def talk(number: int) -> dict[str, Any]:
    """A talk of one of three people with a help desk."""
    who, day = PEOPLE[number % 3], number // 3
    turns = (
        ("desk", "agent", f"Hello {who}, what can I do for you on day {day}?"),
        (who, "user", f"i would like {WANTED[number * 7 % 6]} please"),
        ("desk", "agent", f"It will take {day + 2} hours, is that fine?"),
        (who, "user", "yes that is fine for me thank you"),
    )
    return {
        "conversation_id": f"talk-{number:02d}",
        "started_at": f"2024-{1 + day // 28:02d}-{1 + day % 28:02d}T10:{number % 3:02d}:00+00:00",
        "turns": [{"speaker": speaker, "role": role, "text": text} for speaker, role, text in turns],
    }


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models from folders may be named, and are small enough for one thread, in other processes too."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this file's, the same for every process of a parallel run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "train_cli"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def place(shared: Path) -> Path:
    """A folder with a log of three people, a model without a chat template ("base"), and one with it ("chatty")."""
    folder = shared / "place"
    with FileLock(shared / "place.lock"):
        if not folder.exists():
            tiny_model(shared / "making" / "base")
            tiny_model(shared / "making" / "chatty", chat_template=True)
            (shared / "making" / "log.jsonl").write_text("".join(json.dumps(talk(number)) + "\n" for number in range(60)))
            (shared / "making").rename(folder)
    return folder


Train = Callable[..., Result]


@pytest.fixture
def train(place: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Runs the command in the folder above."""
    monkeypatch.chdir(place)

    def run(out: Path, *options: str) -> Result:
        return CliRunner().invoke(main, command(out, *options)[1:])

    return run


def command(out: Path, *options: str) -> list[str]:
    base = [] if any(one.startswith("--base") for one in options) else ["--base=transformers:base"]
    scorer = [] if any(one.startswith("--scorer") for one in options) else ["--scorer=transformers:base"]
    return ["usertwin", "train", str(out), "--from", "log.jsonl", *base, *scorer, *SMALL, *options]


def done(result: Result) -> Result:
    """The result, if all went well."""
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def refused(result: Result) -> str:
    """The sentence that the command was refused with."""
    assert result.exit_code == 2, result.output + repr(result.exception)
    [sentence] = [line for line in result.stderr.splitlines() if line.startswith("usertwin: ")]
    assert "Traceback" not in result.output
    return sentence


@pytest.fixture(scope="module")
def finished(place: Path, shared: Path) -> Path:
    """A finished run of all methods; tests that change it do so in a copy."""
    out = shared / "finished"
    with FileLock(shared / "finished.lock"), pytest.MonkeyPatch.context() as patch:
        if not (out / "report.html").exists():
            patch.chdir(place)
            patch.delenv("USERTWIN_ONLY_SCRIPTED", raising=False)
            patch.setenv("USERTWIN_CACHE", str(shared / "cache"))
            every = [f"--method={method}" for method in TRAIN_METHODS]
            done(CliRunner().invoke(main, command(out, "--measured-by=transformers:chatty", *every)[1:]))
    return out


def times(folder: Path) -> dict[str, int]:
    """When each file was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")


def numbers(value: Any, at: str = "") -> dict[str, Any]:
    """What a JSON value holds, by where; so that numbers can be compared as nearly the same."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        return {at: value}
    return {place: found for key, one in inner for place, found in numbers(one, f"{at}/{key}").items()}


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two results are the same but for the time they took, and for rounding in scores of other portions."""
    wanted = numbers({**other, "seconds": 0})
    found = numbers({**one, "seconds": 0})
    assert found.keys() == wanted.keys()
    for place, value in wanted.items():
        assert found[place] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value), place


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], rtol=0, atol=1e-5) for name in one)


# The run's folder ------------------------------------------------------------------------------------------------------


def test_the_manifest_says_what_was_planned_on_whom_and_with_what(finished: Path) -> None:
    told = json.loads((finished / "manifest.json").read_text())
    assert (told["format"], told["kind"], told["state"]) == (1, "training", "complete")
    assert (
        told["plan"].items()
        >= {"base": "transformers:base", "group": 2, "seed": 0, "measured_by": "transformers:chatty"}.items()
    )
    assert len(told["people"]["seen"]) == 2
    assert len(told["people"]["unseen"]) == 1
    assert not set(told["people"]["seen"]) & set(told["people"]["unseen"])
    assert told["pairs"] == {"train": 16, "watched": 3}
    assert re.fullmatch(r"[0-9a-f]{32,}", told["sources"]["log.jsonl"])
    assert told["versions"].keys() >= {"trl", "peft", "torch", "transformers"}


@pytest.mark.parametrize("method", TRAIN_METHODS)
def test_every_method_leaves_curves_an_adapter_with_its_card_and_a_result(finished: Path, method: str) -> None:
    folder = finished / method
    rows = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    assert [row["step"] for row in rows if "values" in row] == list(range(1, result["steps"] + 1))
    assert rows[0]["audit"]["n"] == 3
    assert (result["method"], result["stopped"]) == (method, None)
    assert result["tokens"] > 0
    assert result["measured"]["scorer"] == "transformers:chatty"
    assert (result["measured"]["seen"]["n"], result["measured"]["unseen"]["n"]) == (4, 2)
    told = json.loads((folder / "adapter" / "usertwin.json").read_text())
    assert told == {
        "format": 1, "base": "transformers:base", "style": "transcript", "method": method, "how": "backward",
        "rank": 4 if method == "soup" else 2,
    }  # fmt: skip
    card = (folder / "adapter" / "README.md").read_text()
    assert "transformers:base" in card
    assert not any(name in card for name in PEOPLE)
    assert any(bool(weight.any()) for name, weight in weights(folder).items() if "lora_B" in name)


def test_all_methods_had_the_same_budget_and_those_of_the_pool_the_same_texts(finished: Path) -> None:
    pool = [json.loads(line) for line in (finished / "pool.jsonl").read_text().splitlines()]
    spent = sum(row["tokens"] for row in pool)
    results = {one.parent.name: json.loads(one.read_text()) for one in finished.glob("*/result.json")}
    assert results["sft"]["tokens"] == results["dpo"]["tokens"] == results["soup"]["tokens"] == spent
    assert spent - pool[-1]["tokens"] < 600 <= spent
    assert all(600 <= results[method]["tokens"] < 600 + 2 * 48 for method in ("grpo", "e2e"))
    assert len({tuple(row["pair"]) for row in pool}) == len(pool)


def test_the_report_shows_every_method(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert all(method in page for method in ("SFT", "DPO", "DPO twice, added", "GRPO", "E2E"))
    assert [one.name for one in read_training(finished).methods if one.outcome is not None] == list(TRAIN_METHODS)


def test_who_is_held_out_is_not_trained_on(finished: Path, place: Path) -> None:
    from usertwin.memory.training.dataset import SplitConfig, build_dataset
    from usertwin.personas import load_log

    lessons = build_dataset(
        {"log": load_log(str(place / "log.jsonl"))},
        SplitConfig(2, 1, role="user", train_pairs=8, validation_pairs=3, test_pairs=2),
    )
    assert {one.pair.speaker for one in lessons.train}.isdisjoint(one.pair.speaker for one in lessons.unseen)
    assert json.loads((finished / "manifest.json").read_text())["people"] == lessons.people


def test_a_second_call_does_nothing_anew(finished: Path, train: Train, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    before = times(out)
    again = done(train(out, "--measured-by=transformers:chatty", "--method=sft", "--method=grpo"))
    assert "Report:" in again.output
    after = times(out)
    assert after.keys() == before.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"manifest.json", "report.html", "report.md", "curves.svg"}


def test_another_method_is_added_with_the_same_pool(finished: Path, train: Train, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "dpo")
    before = times(out)
    done(train(out, "--measured-by=transformers:chatty", "--method=sft", "--method=dpo"))
    after = times(out)
    kept = [name for name in before if "/" in name or name in {"pool.jsonl", "base_traces.jsonl"}]
    assert all(before[name] == after[name] for name in kept)
    assert same(weights(out / "dpo"), weights(finished / "dpo"))


def test_what_was_lost_after_training_is_measured_again_without_training_again(
    finished: Path, train: Train, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    known = json.loads((out / "grpo" / "result.json").read_text())
    (out / "grpo" / "result.json").unlink()
    before = times(out / "grpo")
    done(train(out, "--measured-by=transformers:chatty", "--method=grpo"))
    assert_alike(json.loads((out / "grpo" / "result.json").read_text()), known)
    assert times(out / "grpo")["curves.jsonl"] == before["curves.jsonl"]


def test_nothing_is_measured_where_nothing_is_asked_for(train: Train, tmp_path: Path) -> None:
    done(train(tmp_path / "run", "--measured=0", "--unseen=0", "--method=dpo"))
    assert json.loads((tmp_path / "run" / "dpo" / "result.json").read_text())["measured"] is None
    assert (tmp_path / "run" / "report.html").exists()


def test_the_adapter_is_usable_by_name(finished: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from usertwin.memory.models.chat import sample

    monkeypatch.chdir(place)
    folder = finished / "dpo" / "adapter"
    named = f"transformers:{place / 'base'}+{folder}"
    assert model_with_adapter(folder) == f"transformers:base+{folder}"
    assert read_adapter(folder).method == "dpo"
    text = [("Them: hello\nMe:", " fine thanks\n")]
    [plain], [adapted] = (load_scorer(name).score(text) for name in (f"transformers:{place / 'base'}", named))
    assert adapted.nats != plain.nats
    assert adapted.nats == pytest.approx(plain.nats, rel=0.5)
    model = load_model(named)
    assert model.style == "transcript"
    [said] = asyncio.run(sample(model, [("user", "Me:")], max_tokens=4))
    assert said.usage.output_tokens > 0


# Killed ----------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_command_that_is_killed_goes_on_and_ends_where_the_other_did(
    finished: Path, train: Train, place: Path, tmp_path: Path
) -> None:
    out, options = tmp_path / "run", ("--measured-by=transformers:chatty", "--method=grpo")
    process = subprocess.Popen(
        [sys.executable, "-m", "usertwin.evals", *command(out, *options)[1:]], cwd=place, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 240
        while (
            process.poll() is None
            and time.monotonic() < until
            and not list(out.glob("grpo/checkpoints/checkpoint-*/trainer_state.json"))
        ):
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert json.loads((out / "manifest.json").read_text())["state"] == "interrupted"
    done(train(out, *options))
    assert same(weights(out / "grpo"), weights(finished / "grpo"))
    one, other = (json.loads((folder / "grpo" / "result.json").read_text()) for folder in (out, finished))
    assert_alike(one, other)
    steps = [json.loads(line)["step"] for line in (out / "grpo" / "curves.jsonl").read_text().splitlines() if "values" in line]
    assert steps == list(range(1, one["steps"] + 1))


# Before anything begins ------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_what_it_would_take_and_writes_nothing(train: Train, tmp_path: Path) -> None:
    said = " ".join(done(train(tmp_path / "run", "--method=dpo", "--method=grpo", "--dry-run")).output.split())
    assert "16 pairs of 2 people to train on, 3 watched" in said
    assert "1 people who are held out" in said
    assert re.search(r"dpo: 2 traces .* until 600 tokens are generated", said)
    assert re.search(r"grpo: about \d+ steps of 1 pairs with 2 traces each, until 600 tokens are generated", said)
    assert re.search(r"memory: about \d+\.\d GiB", said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--weights=1/2/3"], '"1/2/3" are no weights of a reward'),
        (["--weights=1/-2/0/0"], "not negative"),
        (["--weights=0/1/1/1"], "fidelity is not 0"),
        (["--weights=1/nan/1/1"], "not negative"),
        (["--method=grpo", "--group=3", "--batch=4", "--at-once=1"], "does not hold whole groups of 3"),
        (["--batch=4", "--at-once=3"], "cannot be parted into portions of 3"),
        (["--group=1"], "at least 2 are needed"),
        (["--base=transformers:base", "--style=instruction"], "has no chat template"),
        (["--base=gpt"], '"gpt" is no model\'s name'),
        (["--base=transformers:nowhere"], "there is no transformers model"),
        (["--base=openai:gpt-5-mini@http://localhost:1/v1"], "has no weights here"),
        (["--scorer=openai:gpt-5-mini"], "cannot score texts"),
        (["--pairs=2"], "only 4 pairs to train on"),
        (["--people=9"], "only 3 people said enough"),
        (["--method=grpo", "--batch=64", "--at-once=2"], "only 16 pairs to train on, and a batch of 64 holds groups of 32"),
        (["--propose=forward", "--fidelity=prior"], "the prior compares"),
        (["--from=nowhere.jsonl"], "nowhere.jsonl"),
        (["--vllm", "--method=dpo"], "vllm"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence_before_anything_is_written(
    train: Train, tmp_path: Path, options: Sequence[str], said: str
) -> None:
    assert said.casefold() in refused(train(tmp_path / "run", *options)).casefold()
    assert not list(tmp_path.rglob("pool.jsonl"))
    assert not list(tmp_path.rglob("curves.jsonl"))


def test_a_dry_run_refuses_a_base_that_has_no_weights_here(train: Train, tmp_path: Path) -> None:
    assert "has no weights here" in refused(train(tmp_path / "run", "--base=openai:gpt-5-mini", "--dry-run"))


def test_an_adapter_is_no_base(train: Train, finished: Path, tmp_path: Path) -> None:
    sentence = refused(train(tmp_path / "run", f"--base=transformers:base+{finished / 'sft' / 'adapter'}"))
    assert "has an adapter" in sentence


def test_a_folder_that_holds_another_training_is_left_alone(train: Train, finished: Path) -> None:
    before = times(finished)
    sentence = refused(train(finished, "--measured-by=transformers:chatty", "--method=sft", "--learning-rate=1", "--seed=7"))
    assert "holds another training" in sentence
    assert '"learning_rate", "seed"' in sentence
    assert times(finished) == before


def test_a_log_that_has_changed_is_another_training(
    train: Train, finished: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("base", "chatty"):
        shutil.copytree(place / name, tmp_path / name)
    (tmp_path / "log.jsonl").write_text((place / "log.jsonl").read_text() + json.dumps(talk(60)) + "\n")
    monkeypatch.chdir(tmp_path)
    sentence = refused(train(finished, "--measured-by=transformers:chatty", "--method=sft"))
    assert "the logs have changed" in sentence


def test_a_damaged_pool_is_named_with_its_line(train: Train, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "pool.jsonl").write_text('{"pair": ["talk", 5]}\n')
    sentence = refused(train(tmp_path / "run", "--measured-by=transformers:chatty", "--method=sft"))
    assert "pool.jsonl, line 1: is damaged" in sentence


def test_a_disk_without_room_is_told_before_a_trace_is_proposed(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert "make room" in refused(train(tmp_path / "deep" / "run", "--method=dpo"))
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_told_before_the_logs_are_read(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.util import find_spec

    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "trl" else find_spec(name, *rest))
    assert "pip install 'usertwin[train]'" in refused(train(tmp_path / "run", "--from=nowhere.jsonl"))


def test_a_place_where_nothing_can_be_written_is_told(train: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert "cannot be written" in refused(train(tmp_path / "file"))


def test_a_training_that_another_process_is_at_is_left_alone(train: Train, tmp_path: Path) -> None:
    with exclusive_run(tmp_path / "run"):
        assert "another process works on this run" in refused(train(tmp_path / "run"))
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_the_help_tells_the_methods_and_the_defaults_that_training_has() -> None:
    options: dict[str, Any] = {one.name: one for one in train_command.params if one.name is not None}
    assert options["methods"].type.choices == TRAIN_METHODS
    assert (options["lean"].default, options["soup"].default) == (TrainingConfig().lean, TrainingConfig().soup)
    for name, known in (("learning_rate", LEARNING_RATES), ("beta", BETAS)):
        told = re.findall(r"\[default: (.*)\]", options[name].help)[0].removesuffix(" for the others").split(", ")
        parts = [one.removeprefix("else ").partition(" for ") for one in told]
        said = {method: float(value) for value, _, methods in parts[:-1] for method in methods.split(" and ")}
        assert {method: said.get(method, float(parts[-1][0])) for method in TRAIN_METHODS} == dict(known)


# Other rewards, other prompts ------------------------------------------------------------------------------------------


def test_a_scripted_judge_can_be_the_reward(train: Train, tmp_path: Path) -> None:
    (tmp_path / "judge.txt").write_text(f"So: {ruling('AB')}\nSo: {ruling('BA')}\n")
    (tmp_path / "actor.txt").write_text("one cake\ntwo tickets please\n")
    judged = ("--fidelity=judge", f"--judge=scripted:{tmp_path / 'judge.txt'}", f"--actor=scripted:{tmp_path / 'actor.txt'}")
    done(train(tmp_path / "run", "--method=grpo", "--measured=0", "--unseen=0", "--budget=300", *judged))
    rows = [json.loads(line) for line in (tmp_path / "run" / "grpo" / "curves.jsonl").read_text().splitlines()]
    assert 0.75 in {row["values"]["fidelity"] for row in rows if "values" in row and row["values"]["rejected"] == 0}
    assert "judge.txt" in (tmp_path / "run" / "grpo" / "adapter" / "README.md").read_text()


def test_a_fake_scorer_serves_where_only_the_way_is_tried(train: Train, tmp_path: Path) -> None:
    done(train(tmp_path / "run", "--method=grpo", "--scorer=fake:", "--budget=100"))
    assert json.loads((tmp_path / "run" / "grpo" / "result.json").read_text())["measured"]["scorer"] == "fake:"


def test_a_base_with_a_chat_template_is_told_what_to_do(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from usertwin.memory.recon import propose
    from usertwin.memory.training import policy
    from usertwin.memory.training import trl_trainers as trainers

    for module in (policy, propose, trainers):
        monkeypatch.setattr(module, "TRACE_TOKENS", {"instruction": 12, "transcript": 12})
    out = tmp_path / "run"
    done(train(out, "--base=transformers:chatty", "--method=dpo", "--method=grpo", "--measured=1", "--budget=400"))
    assert json.loads((out / "dpo" / "adapter" / "usertwin.json").read_text())["style"] == "instruction"
    assert json.loads((out / "grpo" / "adapter" / "usertwin.json").read_text())["style"] == "instruction"
    assert load_model(f"transformers:chatty+{out / 'dpo' / 'adapter'}").style == "instruction"


def test_curves_are_written_for_tensorboard_where_asked_for(train: Train, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    done(train(tmp_path / "run", "--method=sft", "--tensorboard", "--measured=0", "--unseen=0"))
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
