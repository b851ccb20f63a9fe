"""evals/tuning/adapt.py: rows are the twin's prompts, a killed training resumes, and an adapter is used only if it pays."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapted_twin import (
    ATTEMPT,
    CONFIG,
    EMBEDDER,
    SETTINGS,
    adapted,
    killed_while_adapting,
    opened,
    weights_in,
    with_settings,
)
from invented_suite import learned_twin, talk
from tiny_model import tiny_model

from conftest import function_model
from usertwin.evals.arm_names import base_arm, check_arms, describe_arm, is_adapted
from usertwin.evals.metrics import statistics
from usertwin.evals.replay.adapted import adapted_scorer
from usertwin.evals.replay.evaluate import evaluate
from usertwin.evals.replay.held_out import held_out_pairs
from usertwin.evals.replay.replay import ReplayConfig
from usertwin.evals.reports.labels import arm_label
from usertwin.evals.suites.config import read_suite
from usertwin.evals.suites.run import SuiteRun
from usertwin.evals.tuning.adapt import AdaptConfig, check_adaptable, prompt_row, prompt_rows, training_pairs
from usertwin.evals.tuning.tune import validation_pairs
from usertwin.memory import Settings, TwinRecord
from usertwin.memory.event_loop import run_sync
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.models.transformers_scorer import TransformersScorer
from usertwin.memory.text.transcript import action_completion
from usertwin.memory.twin.append import aappend
from usertwin.memory.twin.forget import forget
from usertwin.memory.twin.record import ADAPTER_FOLDER, ADAPTING_FOLDER, update_record
from usertwin.personas import ChatLog, ModelError, UsageError
from usertwin.simulator import SimulatedUser, load_scorer

pytestmark = pytest.mark.usefixtures("two_clusters_suffice", "in_one_thread")

BARE = "recalled_pairs"
ADAPTED_ARM = f"{BARE}+adapted"


@pytest.fixture(autouse=True)
def _tiny_models_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow the tiny model of these tests."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")


@pytest.fixture(scope="module")
def _adapted_home(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A home with an adapted twin of Cid, made once."""
    folder = tmp_path_factory.mktemp("adapted")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("USERTWIN_ONLY_SCRIPTED", raising=False)
        patch.setenv("USERTWIN_HOME", str(folder / "twins"))
        patch.setenv("USERTWIN_CACHE", str(folder / "cache"))
        patch.setattr(statistics, "MIN_CONVERSATIONS", 2)
        adapted(with_settings(learned_twin(folder)), base)
    return folder / "twins"


@pytest.fixture
def cid(_adapted_home: Path, tmp_path: Path) -> Path:
    """The folder of Cid's adapted twin."""
    shutil.copytree(_adapted_home, tmp_path / "twins")
    return tmp_path / "twins" / "cid"


@pytest.fixture
def plain(cid: Path) -> Path:
    """The folder of Cid's twin before it was adapted."""
    shutil.rmtree(cid / ADAPTER_FOLDER)
    update_record(cid, lambda record: replace(record, adapter=None))
    return cid


def attempt_of(folder: Path) -> Any:
    return TwinRecord.load(folder).adapter


# Rows -----------------------------------------------------------------------------------------------------------------


def test_a_row_is_the_prompt_that_the_live_twin_writes(plain: Path) -> None:
    model, chat = function_model(lambda prompt, seed: "melody fugue")
    with SimulatedUser.load("cid", model=model, embedder=EMBEDDER, settings=Settings(k=3, traces="none")) as user:
        for pair in validation_pairs(user, plain, 6):
            [recalled] = user.recall_many([pair], before=[pair.when])
            prompt, completion = asyncio.run(prompt_row(user, pair, recalled, 0))
            roles = {True: "user", False: "assistant"}
            user.respond([{"role": roles[turn.speaker == "Cid"], "content": turn.text} for turn in pair.context])
            assert prompt == chat.prompts[-1]
            assert completion == action_completion(pair.action)


def test_a_row_recalls_only_what_is_earlier_and_of_another_conversation(plain: Path) -> None:
    with opened("scripted:" + str(script(plain))) as user:
        pairs = training_pairs(user, validation_pairs(user, plain, 6), 100)
        rows = asyncio.run(prompt_rows(user, pairs))
        everything = [triple.pair for triple in user.store.triples()]
    assert len(rows) == len(pairs) > 20
    for (prompt, completion), pair in zip(rows, pairs, strict=True):
        assert completion == f" {pair.action}\n"
        shown = prompt.rpartition("\n---\n")[0]
        assert shown or pair.when == min(other.when for other in everything)
        later = [o for o in everything if o.when >= pair.when or o.conversation_id == pair.conversation_id]
        assert not [other for other in later if f"Me: {other.action}\n" in f"{shown}\n"]


def script(folder: Path) -> Path:
    path = folder.parent / "script.txt"
    path.write_text("melody fugue\n", "utf-8")
    return path


def test_no_row_is_of_a_held_out_conversation_or_later_than_a_validation_turn(plain: Path) -> None:
    later = [replace(talk("Cid", 60 + n), conversation_id=f"late-{n}", started_at="2025-03-01") for n in range(2)]
    assert asyncio.run(aappend("cid", ChatLog(later, "more"), embedder=EMBEDDER))[1] > 0
    with opened(f"scripted:{script(plain)}") as user:
        validation = validation_pairs(user, plain, 6)
        pairs, record = training_pairs(user, validation, 100), user.record
        assert training_pairs(user, validation, 5) == pairs[-5:]
    assert {pair.conversation_id for pair in pairs} == set(record.corpus) - {"late-0", "late-1"}
    assert not {pair.conversation_id for pair in pairs} & {*record.validation, *record.test}
    assert max(pair.when for pair in pairs) < min(pair.when for pair in validation)


# Training ---------------------------------------------------------------------------------------------------------------


def test_an_adapter_that_pays_is_a_part_of_the_twin(cid: Path, base: Path) -> None:
    attempt = attempt_of(cid)
    assert attempt.used
    assert attempt.difference < attempt.high < 0
    assert (attempt.base, attempt.turns, attempt.remembered) == (f"transformers:{base}", 24, 36)
    assert (attempt.validation_turns, attempt.conversations, attempt.rank) == (6, 2, 4)
    assert not (cid / ADAPTING_FOLDER).exists()
    names = {path.name for path in (cid / ADAPTER_FOLDER).iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "usertwin.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert "each after the twin's own prompt" in (cid / ADAPTER_FOLDER / "README.md").read_text("utf-8")


def test_after_a_kill_the_training_continues_to_the_same_adapter(cid: Path, base: Path) -> None:
    whole = weights_in(cid / ADAPTER_FOLDER)
    shutil.rmtree(cid / ADAPTER_FOLDER)
    update_record(cid, lambda record: replace(record, adapter=None))
    killed_while_adapting(cid, base, 2)
    assert attempt_of(cid) is None
    checkpoints = cid / ADAPTING_FOLDER / "adapter.partial" / "checkpoints"
    assert [path.name for path in checkpoints.glob("checkpoint-*")] == ["checkpoint-1"]
    assert steps_of(cid, base, CONFIG) == [2, 3]
    resumed = weights_in(cid / ADAPTER_FOLDER)
    for name, values in whole.items():
        assert resumed[name] == pytest.approx(values, abs=1e-6), name
    assert attempt_of(cid).used


def steps_of(folder: Path, base: Path, config: AdaptConfig) -> list[int]:
    """Adapt the twin and return the steps that this took."""
    steps: list[int] = []
    adapted(folder, base, config, progress=lambda stage, done, total: steps.append(done) if stage == "adapting" else None)
    return steps


def stop(stage: str, done: int, total: int) -> None:
    if (stage, done) == ("adapting", 2):
        raise KeyboardInterrupt


def test_an_unfinished_training_of_other_settings_is_replaced(plain: Path, base: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        adapted(plain, base, progress=stop)
    assert steps_of(plain, base, replace(CONFIG, rank=2)) == [1, 2, 3]
    assert attempt_of(plain).rank == 2


def test_an_adapter_that_does_not_pay_is_deleted_and_noted(cid: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usertwin.evals.tuning.adapt._pays", lambda gain: False)
    attempt = adapted(cid, base)
    assert attempt == attempt_of(cid)
    assert not attempt.used
    assert not (cid / ADAPTER_FOLDER).exists()
    assert not (cid / ADAPTING_FOLDER).exists()
    with opened(base) as user:
        assert user.model.name == f"transformers:{base}"


def test_turns_that_are_forgotten_during_the_training_take_the_adapter_with_them(plain: Path, base: Path) -> None:
    first = TwinRecord.load(plain).corpus[0]

    def forgetting(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("validating", 1):
            forget(plain, EMBEDDER, conversation=first)

    with pytest.raises((UsageError, ModelError)):
        adapted(plain, base, progress=forgetting)
    assert attempt_of(plain) is None
    assert not (plain / ADAPTER_FOLDER).exists()
    assert not list(plain.rglob("*.safetensors"))


def test_turns_that_are_added_during_the_training_leave_the_adapter(plain: Path, base: Path) -> None:
    def adding(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("validating", 1):
            more = replace(talk("Cid", 60), started_at="2025-03-01")
            run_sync(aappend("cid", ChatLog([more], "more"), embedder=EMBEDDER))

    assert adapted(plain, base, progress=adding).used
    assert (plain / ADAPTER_FOLDER).exists()


def test_too_few_conversations_are_an_error_before_anything_is_trained(
    plain: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "MIN_CONVERSATIONS", 3)
    with pytest.raises(UsageError, match="2 validation conversations cannot tell whether an adapter pays; 3 are needed"):
        adapted(plain, base)
    assert not (plain / ADAPTING_FOLDER).exists()


@pytest.mark.parametrize(
    ("model", "style", "error"),
    [
        ("openai:gpt-5-mini", None, "cannot be adapted"),
        ("scripted:x", None, "cannot be adapted"),
        ("local:small", "instruction", "an adapter is trained on transcripts"),
    ],
)
def test_what_cannot_be_adapted_is_named(model: str, style: str | None, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        check_adaptable(model, style)


@pytest.mark.parametrize("name", ["rows", "epochs", "rank", "limit"])
def test_a_number_below_one_is_an_error(name: str) -> None:
    with pytest.raises(UsageError, match=f"adapt_{name} is 0; it must be at least 1"):
        replace(AdaptConfig(), **{name: 0}).check()


# Acting ---------------------------------------------------------------------------------------------------------------


def test_the_twin_acts_with_its_adapter_where_its_base_acts(cid: Path, base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "the same weights elsewhere"
    shutil.copytree(base, copy)
    for folder in (base, copy):
        with opened(folder) as user:
            assert user.model.name == f"transformers:{folder}+{cid / ADAPTER_FOLDER}"
            assert user.model.style == "transcript"
            assert user.respond([{"role": "assistant", "content": "parcel invoice?"}]).usage.output_tokens > 0


def test_the_adapter_is_not_used_with_other_weights_or_another_style(cid: Path, base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(base, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.001
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with_template = tiny_model(tmp_path / "template", chat_template=True)
    models = (f"transformers:{other}", f"transformers:{with_template}", f"scripted:{script(cid)}")
    for model in models:
        with opened(model) as user:
            assert user.model.name == model
    given, _ = function_model(lambda prompt, seed: "melody")
    with SimulatedUser.load("cid", model=given, embedder=EMBEDDER) as user:
        assert user.model is given


def test_another_adapter_in_its_place_is_an_error(cid: Path, base: Path) -> None:
    config = cid / ADAPTER_FOLDER / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"lora_alpha": 64}), "utf-8")
    with pytest.raises(
        ModelError, match="is not the adapter that cid was measured with; train another one: usertwin learn cid"
    ):
        opened(base)


# Measured as live -------------------------------------------------------------------------------------------------------


def measured(folder: Path, base: Path) -> dict[str, Any]:
    config = ReplayConfig(arms=("no_memory", BARE, ADAPTED_ARM), limit=None, generate=2)
    with opened(base) as user:
        name = f"transformers:{base}"
        scorer, with_adapter = load_scorer(name), adapted_scorer(user, name)
        return asyncio.run(evaluate(user, scorer, EMBEDDER, folder=folder, config=config, adapted=with_adapter))


def test_eval_measures_the_live_twin_with_its_adapter_and_all_else_without(cid: Path, base: Path, repeats_count: None) -> None:
    result = measured(cid, base)
    assert result["twin_arm"] == ADAPTED_ARM
    with opened(base) as user:
        live = TransformersScorer("live", lambda: user.model.chat.loaded)  # pyright: ignore[reportAttributeAccessIssue]
        pairs = [pair for pair in held_out_pairs(user, cid)[0] if not pair.abandoned]
        matches = user.recall_many(pairs, before=[pair.when for pair in pairs])
        rows = [asyncio.run(prompt_row(user, pair, found, 0)) for pair, found in zip(pairs, matches, strict=True)]
        bits = sum(likelihood.bits for likelihood in live.score(rows))
    value = result["arms"][ADAPTED_ARM]["bits_per_char"]["value"]
    assert value == pytest.approx(bits / sum(len(completion) - 1 for _, completion in rows), rel=1e-4)
    shutil.rmtree(cid / ADAPTER_FOLDER)
    update_record(cid, lambda record: replace(record, adapter=None))
    without = measured(cid, base)
    assert ADAPTED_ARM not in without["arms"]
    assert without["twin_arm"] == BARE
    for arm in ("no_memory", BARE):
        assert result["arms"][arm] == without["arms"][arm]
    assert value < result["arms"][BARE]["bits_per_char"]["value"]


def test_a_scorer_of_other_weights_tells_no_bits_of_an_adapted_arm(cid: Path, base: Path, repeats_count: None) -> None:
    config = ReplayConfig(arms=(BARE, ADAPTED_ARM), limit=2, generate=1)
    with opened(base) as user:
        assert adapted_scorer(user, "fake:") is None
        result = asyncio.run(evaluate(user, FakeScorer(), EMBEDDER, folder=cid, config=config))
    assert "bits_per_char" in result["arms"][BARE]
    assert not result["arms"][ADAPTED_ARM].get("bits_per_char")


@pytest.mark.parametrize(("arms", "twin"), [((BARE, ADAPTED_ARM), ADAPTED_ARM), ((BARE,), BARE)])
def test_a_suite_measures_the_adapter_of_a_learned_twin_if_its_arm_is_measured(
    cid: Path, base: Path, tmp_path: Path, repeats_count: None, arms: tuple[str, ...], twin: str
) -> None:
    model = f"transformers:{base}"
    text = f'''arms = {json.dumps(["no_memory", *arms])}
turns = 3
replies = 1
sanity = 0
k = 2
window = 3
twins = ["cid"]
[models]
action = "{model}"
scorer = "{model}"
embedder = "fake:64"
'''
    (tmp_path / "suite.toml").write_text(text, "utf-8")
    result = asyncio.run(SuiteRun(read_suite(tmp_path / "suite.toml"), tmp_path / "run").run())
    assert result["twin_arm"] == twin
    assert set(result["arms"]) == {"no_memory", *arms}
    bits = {arm: result["arms"][arm]["bits_per_char"]["value"] for arm in arms}
    assert len(arms) == 1 or bits[ADAPTED_ARM] < bits[BARE]


@pytest.mark.parametrize("arm", [ADAPTED_ARM, f"{ADAPTED_ARM}+words", f"{ADAPTED_ARM}+words+reranked", "recon+adapted"])
def test_an_arm_with_an_adapter_has_a_name_a_title_and_a_description(arm: str) -> None:
    assert check_arms([arm, BARE])[-1] == (arm if base_arm(arm) == BARE else "recon+adapted")
    assert is_adapted(arm)
    assert "adapted" in arm_label(arm).title
    assert "the model has the twin's adapter" in describe_arm(arm)


@pytest.mark.parametrize("arm", ["no_memory+adapted", "persona+adapted", "recalled_pairs+words+adapted"])
def test_only_arms_of_the_twins_memory_have_the_adapter(arm: str) -> None:
    with pytest.raises(UsageError, match="there is no arm"):
        check_arms([arm])


def test_adapting_again_compares_with_the_base(cid: Path, base: Path) -> None:
    before = attempt_of(cid)
    again = adapted(cid, base)
    assert again.difference == pytest.approx(before.difference, abs=1e-6)


def test_settings_and_attempt_survive_in_the_record(cid: Path) -> None:
    record = TwinRecord.load(cid)
    replace(record, adapter=ATTEMPT).save(cid)
    assert TwinRecord.load(cid) == replace(record, adapter=ATTEMPT)
    assert record.settings == SETTINGS
