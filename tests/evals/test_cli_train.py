"""evals/cli/train.py and evals/training_runs/run.py: output, refusals, the run's folder, and resuming in it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from filelock import FileLock
from judge_replies import judge_reply
from small_training import short_traces, steps_of, weights_of
from tiny_model import tiny_model

from usertwin.evals.cli.main import main
from usertwin.evals.cli.train import train as train_command
from usertwin.evals.records.training_run import read_training
from usertwin.evals.suites import people
from usertwin.evals.suites.people import RegisteredCorpus, Registry
from usertwin.evals.training_runs.plan import TrainingPlan
from usertwin.evals.training_runs.run import TrainingRunner
from usertwin.memory.models.chat import sample
from usertwin.memory.run_lock import exclusive_run
from usertwin.memory.training.config import BETAS, LEARNING_RATES, TRAIN_METHODS, TrainingConfig
from usertwin.memory.training.dataset import SplitConfig, build_dataset
from usertwin.memory.training.rewards import DownstreamReward
from usertwin.personas import load_log
from usertwin.personas.reading import parse_toml
from usertwin.simulator import load_model, load_scorer
from usertwin.simulator.backends.lora_adapter import model_with_adapter, read_adapter

pytest.importorskip("trl")
pytestmark = pytest.mark.usefixtures("in_one_thread")

PEOPLE = ("Ann", "Bob", "Cid")
REQUESTS = ("a plum cake", "two train tickets", "an umbrella", "the weather report", "my old parcel", "a quiet room")
BUDGET, TOKENS = 560, 12
#: A training of a few steps: two people to train on, one held out.
SMALL = (
    "--embedder=fake:64", "--role=user", "--people=2", "--unseen=1", "--train-pairs=8", "--validation-pairs=3",
    "--test-pairs=2", "--samples=1", "--group-size=2", "--batch-size=4", "--micro-batch-size=4", f"--token-budget={BUDGET}",
    "--rank=2", "--epochs=1", "--save-every=4", "--audit-every=8",
)  # fmt: skip
#: The methods of the shared run. E2E differs from GRPO only in its fidelity.
METHODS = ("sft", "dpo", "grpo")
MEASURED_BY_OTHER = "--measured-by=transformers:chat"


def talk(number: int) -> dict[str, Any]:
    """A conversation of one of three people with a help desk."""
    person, day = PEOPLE[number % 3], number // 3
    turns = (
        ("desk", "agent", f"Hello {person}, what can I do for you on day {day}?"),
        (person, "user", f"i would like {REQUESTS[number * 7 % 6]} please"),
        ("desk", "agent", f"It will take {day + 2} hours, is that fine?"),
        (person, "user", "yes that is fine for me thank you"),
    )
    return {
        "conversation_id": f"talk-{number:02d}",
        "started_at": f"2024-{1 + day // 28:02d}-{1 + day % 28:02d}T10:{number % 3:02d}:00+00:00",
        "turns": [{"speaker": speaker, "role": role, "text": text} for speaker, role, text in turns],
    }


@pytest.fixture(autouse=True)
def _local_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Allow models from folders, and limit their traces to a few tokens."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    monkeypatch.setenv("COLUMNS", "120")
    with short_traces(TOKENS):
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this file, the same for every process of a parallel run."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "cli_train"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def place(shared: Path) -> Path:
    """A folder with a log of three people, a model without a chat template ("base") and one with it ("chat")."""
    folder = shared / "place"
    with FileLock(shared / "place.lock"):
        if not folder.exists():
            tiny_model(shared / "partial" / "base")
            tiny_model(shared / "partial" / "chat", chat_template=True)
            log = "".join(json.dumps(talk(number)) + "\n" for number in range(60))
            (shared / "partial" / "log.jsonl").write_text(log)
            (shared / "partial").rename(folder)
    return folder


Train = Callable[..., Result]


@pytest.fixture
def train(place: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Runs the command in the folder above."""
    monkeypatch.chdir(place)

    def run(out: Path, *options: str) -> Result:
        return CliRunner().invoke(main, arguments(out, *options))

    return run


def arguments(out: Path, *options: str) -> list[str]:
    base = [] if any(option.startswith("--base") for option in options) else ["--base=transformers:base"]
    scorer = [] if any(option.startswith("--scorer") for option in options) else ["--scorer=transformers:base"]
    return ["train", str(out), "--from", "log.jsonl", *base, *scorer, *SMALL, *options]


def succeed(result: Result) -> Result:
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def refusal(result: Result) -> str:
    """The sentence that the command was refused with."""
    assert result.exit_code == 2, result.output + repr(result.exception)
    [sentence] = [line for line in result.stderr.splitlines() if line.startswith("usertwin: ")]
    assert "Traceback" not in result.output
    return sentence


@pytest.fixture(scope="module")
def finished(place: Path, shared: Path) -> Path:
    """A finished run of three methods; tests change copies only."""
    out = shared / "finished"
    with FileLock(shared / "finished.lock"), pytest.MonkeyPatch.context() as patch, short_traces(TOKENS):
        if not (out / "report.md").exists():
            patch.chdir(place)
            patch.delenv("USERTWIN_ONLY_SCRIPTED", raising=False)
            patch.setenv("USERTWIN_CACHE", str(shared / "cache"))
            patch.setenv("USERTWIN_DATA", str(shared / "data"))
            methods = [f"--method={method}" for method in METHODS]
            succeed(CliRunner().invoke(main, arguments(out, MEASURED_BY_OTHER, *methods)))
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def write_times(folder: Path) -> dict[str, Any]:
    """When each file was written; for files that are opened for appending, their content."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.suffix == ".jsonl" else path.stat().st_mtime_ns
        for path in files
    }


def flatten(value: Any, at: str = "") -> dict[str, Any]:
    """The leaves of a JSON value by path, so that numbers can be compared approximately."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        return {at: value}
    return {path: leaf for key, part in inner for path, leaf in flatten(part, f"{at}/{key}").items()}


def assert_same_result(result: dict[str, Any], expected: dict[str, Any]) -> None:
    """Two results agree but for their duration and the rounding of scores."""
    leaves, wanted = flatten({**result, "seconds": 0}), flatten({**expected, "seconds": 0})
    assert leaves.keys() == wanted.keys()
    for path, value in wanted.items():
        assert leaves[path] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value), path


def assert_same_weights(folder: Path, other: Path) -> None:
    weights, expected = weights_of(folder), weights_of(other)
    assert weights.keys() == expected.keys()
    assert all(torch.allclose(weights[name], expected[name], rtol=0, atol=1e-5) for name in weights)


# The run's folder ------------------------------------------------------------------------------------------------------


def test_the_manifest_records_plan_people_pairs_sources_and_versions(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert (manifest["format"], manifest["kind"], manifest["state"]) == (2, "training", "complete")
    plan = {"base": "transformers:base", "group_size": 2, "seed": 0, "measured_by": "transformers:chat"}
    assert manifest["plan"].items() >= plan.items()
    assert len(manifest["people"]["seen"]) == 2
    assert len(manifest["people"]["unseen"]) == 1
    assert not set(manifest["people"]["seen"]) & set(manifest["people"]["unseen"])
    assert manifest["pairs"] == {"train": 16, "validation": 3}
    assert re.fullmatch(r"[0-9a-f]{32,}", manifest["sources"]["log.jsonl"])
    assert manifest["versions"].keys() >= {"trl", "peft", "torch", "transformers"}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_history_an_adapter_with_a_card_and_a_result(finished: Path, method: str) -> None:
    folder = finished / method
    result = result_of(folder)
    assert list(steps_of(folder)) == list(range(1, result["steps"] + 1))
    assert (result["method"], result["stopped"]) == (method, None)
    assert result["tokens"] > 0
    assert result["measured"]["scorer"] == "transformers:chat"
    assert (result["measured"]["seen"]["n"], result["measured"]["unseen"]["n"]) == (4, 2)
    facts = json.loads((folder / "adapter" / "usertwin.json").read_text())
    assert facts == {
        "format": 1, "base": "transformers:base", "style": "transcript", "method": method, "proposal_mode": "backward",
        "rank": 2,
    }  # fmt: skip
    card = (folder / "adapter" / "README.md").read_text()
    assert "transformers:base" in card
    assert not any(name in card for name in PEOPLE)
    assert any(bool(weight.any()) for name, weight in weights_of(folder).items() if "lora_B" in name)


def test_all_methods_have_the_same_token_budget(finished: Path) -> None:
    pool = [json.loads(line) for line in (finished / "pool.jsonl").read_text().splitlines()]
    spent = sum(row["tokens"] for row in pool)
    tokens = {method: result_of(finished / method)["tokens"] for method in METHODS}
    assert tokens["sft"] == tokens["dpo"] == spent
    assert spent - pool[-1]["tokens"] < BUDGET <= spent
    assert BUDGET <= tokens["grpo"] < BUDGET + 4 * TOKENS
    assert len({tuple(row["pair"]) for row in pool}) == len(pool)


def test_the_summary_shows_every_method(finished: Path) -> None:
    page = (finished / "report.md").read_text()
    assert all(f"| {title} |" in page for title in ("SFT on selected traces", "DPO", "Recon-GRPO"))
    assert list(read_training(finished).methods) == list(METHODS)


def test_every_file_of_a_training_is_private(finished: Path) -> None:
    assert [str(path.relative_to(finished)) for path in finished.rglob("*") if path.stat().st_mode & 0o077] == []
    assert (finished / "dpo" / "adapter" / "adapter_model.safetensors").is_file()


def test_no_held_out_person_is_trained_on(finished: Path, place: Path) -> None:
    config = SplitConfig(people=2, unseen=1, role="user", train_pairs=8, validation_pairs=3, test_pairs=2)
    dataset = build_dataset({"log": load_log(str(place / "log.jsonl"))}, config)
    assert {example.pair.speaker for example in dataset.train}.isdisjoint(example.pair.speaker for example in dataset.unseen)
    assert json.loads((finished / "manifest.json").read_text())["people"] == dataset.people


def test_the_adapter_can_be_used_by_name(finished: Path, place: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("USERTWIN_DATA", str(shared / "data"))
    folder = finished / "dpo" / "adapter"
    name = f"transformers:{place / 'base'}+{folder}"
    assert model_with_adapter(folder) == f"transformers:base+{folder}"
    assert read_adapter(folder).method == "dpo"
    assert read_adapter(folder).proposal_mode == "backward"
    text = [("Them: hello\nMe:", " fine thanks\n")]
    [plain], [adapted] = (load_scorer(model).score(text) for model in (f"transformers:{place / 'base'}", name))
    assert adapted.nats != plain.nats
    assert adapted.nats == pytest.approx(plain.nats, rel=0.5)
    model = load_model(name)
    assert model.style == "transcript"
    [completion] = asyncio.run(sample(model, [("user", "Me:")], max_tokens=4))
    assert completion.usage.output_tokens > 0


# Resuming --------------------------------------------------------------------------------------------------------------


def test_a_second_call_repeats_nothing(copy: Path, train: Train) -> None:
    before = write_times(copy)
    again = succeed(train(copy, MEASURED_BY_OTHER, "--method=sft", "--method=grpo"))
    assert "Report:" in again.output
    after = write_times(copy)
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} <= {"manifest.json", "report.md"}


def test_another_method_uses_the_same_pool(copy: Path, finished: Path, train: Train) -> None:
    shutil.rmtree(copy / "dpo")
    before = write_times(copy)
    succeed(train(copy, MEASURED_BY_OTHER, "--method=sft", "--method=dpo"))
    after = write_times(copy)
    kept = [name for name in before if "/" in name or name in {"pool.jsonl", "base_traces.jsonl"}]
    assert all(before[name] == after[name] for name in kept)
    assert_same_weights(copy / "dpo", finished / "dpo")


def register(monkeypatch: pytest.MonkeyPatch, *test_people: str) -> None:
    """Make these the registered test people of the log."""
    corpus = RegisteredCorpus(sources=("log.jsonl",), rule="invented", development=(), test=test_people)
    monkeypatch.setattr(people, "registry", lambda: Registry(corpora={"desk": corpus}))


def test_nothing_is_trained_on_test_people(
    finished: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = json.loads((finished / "manifest.json").read_text())["people"]["seen"][1].removeprefix("log/")
    register(monkeypatch, seen)
    for options in ((), ("--dry-run",)):
        assert refusal(train(tmp_path / "out", *options)) == (
            f'usertwin: desk: "{seen}" is a test person, and nothing is trained on test people; take fewer people, or hold '
            "this one out with --hold-out"
        )
    assert not (tmp_path / "out").exists()
    succeed(train(tmp_path / "out", f"--hold-out={seen}", "--dry-run"))


def test_a_test_of_test_people_prints_the_look_for_the_registry(
    copy: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    [unseen] = json.loads((copy / "manifest.json").read_text())["people"]["unseen"]
    register(monkeypatch, unseen.removeprefix("log/"))
    text = succeed(train(copy, MEASURED_BY_OTHER, "--method=sft")).stdout
    [row] = parse_toml(text[text.index("[[looks]]") :])["looks"]
    assert (row["corpus"], row["people"], row["reason"]) == ("desk", [unseen.removeprefix("log/")], f"usertwin train {copy}")


def test_a_lost_result_is_measured_again_without_training(copy: Path, train: Train) -> None:
    expected = result_of(copy / "grpo")
    (copy / "grpo" / "result.json").unlink()
    before = write_times(copy / "grpo")
    succeed(train(copy, MEASURED_BY_OTHER, "--method=grpo"))
    assert_same_result(result_of(copy / "grpo"), expected)
    assert write_times(copy / "grpo")["trainer_state.json"] == before["trainer_state.json"]


def test_an_interrupted_command_ends_with_the_result_of_an_uninterrupted_one(
    finished: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.trainer_callback import CallbackHandler

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    out, options = tmp_path / "run", (MEASURED_BY_OTHER, "--method=dpo", "--save-every=1")
    with monkeypatch.context() as patch:
        patch.setattr(CallbackHandler, "on_save", interrupt)
        assert train(out, *options).exit_code != 0
    assert [path.name for path in out.glob("dpo/checkpoints/checkpoint-*")] == ["checkpoint-1"]
    assert json.loads((out / "manifest.json").read_text())["state"] == "interrupted"
    assert "DPO is not finished." in succeed(CliRunner().invoke(main, ["report", str(out)])).output
    succeed(train(out, *options))
    assert_same_weights(out / "dpo", finished / "dpo")
    assert_same_result(result_of(out / "dpo"), result_of(finished / "dpo"))
    assert steps_of(out / "dpo").keys() == steps_of(finished / "dpo").keys()


def test_a_folder_of_another_training_is_left_alone(train: Train, finished: Path) -> None:
    before = write_times(finished)
    sentence = refusal(train(finished, MEASURED_BY_OTHER, "--method=sft", "--learning-rate=1", "--seed=7"))
    assert 'holds another training (difference: "learning_rate", "seed")' in sentence
    assert write_times(finished) == before


def test_a_folder_of_an_earlier_version_is_left_alone(train: Train, copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    assert "an earlier version (format 1), which can be read but not resumed" in refusal(train(copy, "--method=sft"))


def test_a_changed_log_is_another_training(
    train: Train, finished: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("base", "chat"):
        (tmp_path / name).symlink_to(place / name)
    (tmp_path / "log.jsonl").write_text((place / "log.jsonl").read_text() + json.dumps(talk(60)) + "\n")
    monkeypatch.chdir(tmp_path)
    assert "the logs have changed" in refusal(train(finished, MEASURED_BY_OTHER, "--method=sft"))


def test_a_damaged_pool_is_named_with_its_line(train: Train, copy: Path) -> None:
    (copy / "pool.jsonl").write_text('{"pair": ["talk", 5]}\n')
    assert "pool.jsonl:1: damaged" in refusal(train(copy, MEASURED_BY_OTHER, "--method=sft"))


def test_a_folder_in_use_by_another_process_is_left_alone(train: Train, tmp_path: Path) -> None:
    with exclusive_run(tmp_path / "run"):
        assert "another process" in refusal(train(tmp_path / "run"))
    assert not (tmp_path / "run" / "manifest.json").exists()


# Before anything begins ------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_writes_nothing(train: Train, tmp_path: Path) -> None:
    text = " ".join(succeed(train(tmp_path / "run", "--method=dpo", "--method=grpo", "--dry-run")).output.split())
    assert "16 training pairs of 2 people, 3 validation pairs" in text
    assert "1 people who are held out" in text
    assert re.search(rf"dpo: 2 traces .* until {BUDGET} tokens are generated", text)
    assert re.search(rf"grpo: about \d+ steps of 2 pairs with 2 traces each, until {BUDGET} tokens are generated", text)
    assert re.search(r"memory: about \d+\.\d GiB", text)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights=1/2/3"], '--weights: "1/2/3" has 3 values; 4 are needed'),
        (["--weights=1/-2/0/0"], "not negative"),
        (["--method=grpo", "--group-size=3", "--micro-batch-size=1"], "does not hold whole groups of 3"),
        (["--micro-batch-size=3"], "--batch-size 4 is not a multiple of --micro-batch-size 3"),
        (["--group-size=1"], "--group-size is 1; it must be at least 2"),
        (["--samples=0"], "--samples is 0; it must be at least 1"),
        (["--base=transformers:base", "--style=instruction"], "has no chat template"),
        (["--base=gpt"], '"gpt"'),
        (["--base=transformers:nowhere"], "nowhere"),
        (["--base=openai:gpt-5-mini@http://localhost:1/v1"], "has no weights here"),
        (["--base=openai:gpt-5-mini", "--dry-run"], "has no weights here"),
        (["--scorer=openai:gpt-5-mini"], "cannot score texts"),
        (["--train-pairs=2"], "only 4 pairs to train on"),
        (["--people=9"], "only 3 people have enough turns"),
        (["--method=grpo", "--batch-size=64"], "only 16 pairs to train on, and --batch-size 64"),
        (["--propose=forward", "--fidelity=prior"], "--fidelity prior compares"),
        (["--from=nowhere.jsonl"], "nowhere.jsonl"),
        (["--vllm", "--method=dpo"], "vllm"),
    ],
)
def test_invalid_input_is_refused_in_one_sentence_before_anything_is_written(
    train: Train, tmp_path: Path, options: Sequence[str], message: str
) -> None:
    assert message.casefold() in refusal(train(tmp_path / "run", *options)).casefold()
    assert not list(tmp_path.rglob("pool.jsonl"))
    assert not list(tmp_path.rglob("checkpoints"))


def test_an_adapter_is_not_a_base(train: Train, finished: Path, tmp_path: Path) -> None:
    sentence = refusal(train(tmp_path / "run", f"--base=transformers:base+{finished / 'sft' / 'adapter'}"))
    assert "has an adapter" in sentence


def test_a_full_disk_is_refused_before_a_trace_is_proposed(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert "free space" in refusal(train(tmp_path / "deep" / "run", "--method=dpo"))
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_refused_before_the_logs_are_read(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.util import find_spec

    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "trl" else find_spec(name, *rest))
    assert "pip install 'usertwin[train]'" in refusal(train(tmp_path / "run", "--from=nowhere.jsonl"))


def test_a_folder_that_cannot_be_written_is_refused(train: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert "cannot be written" in refusal(train(tmp_path / "file"))


def test_the_help_shows_the_methods_and_their_defaults() -> None:
    options: dict[str, Any] = {option.name: option for option in train_command.params if option.name is not None}
    assert tuple(options["methods"].type.choices) == TRAIN_METHODS
    for name, defaults in (("learning_rate", LEARNING_RATES), ("beta", BETAS)):
        assert all(f"{value:g} for {method}" in options[name].help for method, value in defaults.items())


# Other rewards, other prompts ------------------------------------------------------------------------------------------


def test_a_scripted_judge_can_be_the_reward(train: Train, tmp_path: Path) -> None:
    (tmp_path / "judge.txt").write_text(f"So: {judge_reply('AB')}\nSo: {judge_reply('BA')}\n")
    (tmp_path / "actor.txt").write_text("one cake\ntwo tickets please\n")
    judged = ("--fidelity=judge", f"--judge=scripted:{tmp_path / 'judge.txt'}", f"--actor=scripted:{tmp_path / 'actor.txt'}")
    succeed(train(tmp_path / "run", "--method=grpo", "--test-pairs=0", "--unseen=0", "--token-budget=100", *judged))
    steps = steps_of(tmp_path / "run" / "grpo").values()
    assert 0.75 in {row["rewards/fidelity/mean"] for row in steps if row["rejection_rate"] == 0}
    assert "judge.txt" in (tmp_path / "run" / "grpo" / "adapter" / "README.md").read_text()
    assert result_of(tmp_path / "run" / "grpo")["measured"] is None  # there are no test pairs
    check = read_training(tmp_path / "run").manifest.judge_check  # this judge ranks no more than two attempts
    assert check is not None
    assert (check["outcome"], check["pairs"] > 0) == ("failed", True)
    assert "answers that cannot be read; its scores are not evidence." in (tmp_path / "run" / "report.md").read_text()


def test_a_judge_that_gives_no_verdict_is_an_error_and_leaves_no_adapter(train: Train, tmp_path: Path) -> None:
    (tmp_path / "judge.txt").write_text("I cannot decide.\n")
    judged = ("--fidelity=judge", f"--judge=scripted:{tmp_path / 'judge.txt'}", f"--actor=scripted:{tmp_path / 'judge.txt'}")
    for method in ("dpo", "grpo"):
        result = train(tmp_path / method, f"--method={method}", "--test-pairs=0", "--unseen=0", *judged)
        assert result.exit_code == 1 or result.exit_code == 2
        assert "the judge returned no readable verdict for any of 4 pairs; name one that follows instructions" in result.stderr
        assert not (tmp_path / method / method / "adapter").exists()


def test_the_judge_of_a_training_gets_instructions_whatever_the_base(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(place)
    plan = TrainingPlan(
        config=TrainingConfig(fidelity="judge", base="transformers:chat", style="transcript"), methods=("dpo",),
        sources=("log.jsonl",), split=SplitConfig(people=2, unseen=1, role="user"), scorer="fake:", embedder="fake:64",
        actor="transformers:base",
    )  # fmt: skip
    fidelity: Any = TrainingRunner(plan, tmp_path).fidelity("dpo")
    assert (fidelity._judge.style, fidelity._actor.style) == ("instruction", "transcript")
    assert plan.rewarded_by("dpo") == "transformers:chat"


def test_a_judge_without_a_chat_template_is_refused_before_a_trace_is_proposed(train: Train, tmp_path: Path) -> None:
    result = train(tmp_path / "run", "--fidelity=judge", "--judge=transformers:base")
    assert "base: the model has no chat template" in refusal(result)
    assert not (tmp_path / "run").exists()


def test_e2e_trains_on_traces_that_its_scorer_tells_apart(train: Train, tmp_path: Path) -> None:
    succeed(train(tmp_path / "run", "--method=e2e", "--token-budget=90", "--test-pairs=1"))
    result = result_of(tmp_path / "run" / "e2e")
    assert result["measured"]["scorer"] == "transformers:base"
    assert 90 <= result["tokens"] < 90 + 4 * TOKENS
    assert result["lessons"]["equal"] < result["lessons"]["pairs"]
    assert any(bool(weight.any()) for name, weight in weights_of(tmp_path / "run" / "e2e").items() if "lora_B" in name)


def test_traces_that_no_scorer_tells_apart_are_refused_and_leave_no_adapter(train: Train, tmp_path: Path) -> None:
    """The fake scorer sees only words that trace and turn share, and a random model writes none."""
    sentence = refusal(train(tmp_path / "run", "--method=e2e", "--scorer=fake:", "--token-budget=90", "--test-pairs=1"))
    assert "nothing was learned: of 4 pairs, 4 had traces of equal fidelity" in sentence
    assert not (tmp_path / "run" / "e2e" / "adapter").exists()


def test_the_fidelity_of_e2e_is_the_downstream_gain(place: Path, tmp_path: Path) -> None:
    plan = TrainingPlan(
        config=TrainingConfig(method="e2e"), methods=("e2e",), sources=(str(place / "log.jsonl"),),
        split=SplitConfig(people=2, unseen=1, role="user"), scorer="fake:", embedder="fake:64",
    )  # fmt: skip
    fidelity = TrainingRunner(plan, tmp_path).fidelity("e2e")
    assert isinstance(fidelity, DownstreamReward)
    assert fidelity.name.startswith("downstream gain under")


def test_a_base_with_a_chat_template_gets_instructions(train: Train, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--base=transformers:chat", "--method=dpo", "--test-pairs=1", "--report-to=tensorboard")
    succeed(train(out, *options))
    assert json.loads((out / "dpo" / "adapter" / "usertwin.json").read_text())["style"] == "instruction"
    assert load_model(f"transformers:chat+{out / 'dpo' / 'adapter'}").style == "instruction"
    assert list(out.rglob("events.out.tfevents*"))
