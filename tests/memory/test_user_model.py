"""memory/training/user_model.py: the training text is the scored text, a killed training resumes, thoughts are averaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usertwin.memory.atomic_files import checksum
from usertwin.memory.text.transcript import action_completion, format_action_prompt
from usertwin.memory.training.user_model import (
    METADATA,
    UserModel,
    UserModelConfig,
    fine_tune,
    log_mean_exp,
    parse_thought,
    training_row,
)
from usertwin.personas import Pair, Turn, UsageError

pytestmark = pytest.mark.usefixtures("in_one_thread")

CONFIG = UserModelConfig(steps=4, batch_size=2, learning_rate=0.02, rank=4)
TRACE = "wants the cake (now)"


def pair(number: int = 0, action: str = "one plum cake please") -> Pair:
    context = (Turn("desk", "agent", f"hello {number}, what can I do?"),)
    return Pair(
        speaker="Ann",
        context=context,
        action=action,
        goal="",
        conversation_id="talk",
        position=number,
        when=float(number),
        ends_conversation=False,
    )


ROWS = [training_row(pair(number), 6) for number in range(6)]


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter trained on the rows above; read-only."""
    target = tmp_path_factory.mktemp("adapter") / "none"
    fine_tune(ROWS, base, target, CONFIG, metadata={"base": "local", "kind": "none", "people": ["x/Ann"]})
    return target


def weights(folder: Path) -> dict[str, list[float]]:
    from safetensors.torch import load_file

    return {name: tensor.flatten().tolist() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}


def assert_same_weights(folder: Path, other: Path) -> None:
    expected = weights(other)
    for name, values in weights(folder).items():
        assert values == pytest.approx(expected[name], abs=1e-6), name


# Rows --------------------------------------------------------------------------------------------------------------------


def test_a_row_without_a_trace_is_the_prompt_and_the_action() -> None:
    assert training_row(pair(), 6) == ("Them: hello 0, what can I do?\nMe:", " one plum cake please\n")


def test_a_row_with_a_trace_is_the_scored_text_split_before_the_trace() -> None:
    prompt, completion = training_row(pair(), 6, TRACE)
    assert prompt.endswith("(Me thinking:")
    assert prompt + completion == format_action_prompt(pair(), 6, thought=TRACE) + action_completion(pair().action)


@settings(max_examples=50)
@given(st.text(min_size=1), st.text())
def test_a_row_has_three_lines_whatever_trace_and_action(thought: str, action: str) -> None:
    prompt, completion = training_row(pair(action=action or "x"), 6, thought)
    assert completion.endswith("\n")
    assert (prompt + completion).count("\n") == 3
    assert prompt == training_row(pair(), 6, "other")[0]


@settings(max_examples=50)
@given(st.integers(1, 500), st.integers(1, 5), st.integers(1, 16))
def test_epochs_determine_the_steps_unless_steps_are_given(rows: int, epochs: int, batch_size: int) -> None:
    steps = UserModelConfig(epochs=epochs, batch_size=batch_size).steps_for(rows)
    assert epochs * rows <= steps * batch_size < epochs * (rows + batch_size)
    assert UserModelConfig(epochs=epochs, batch_size=batch_size, steps=7).steps_for(rows) == 7


# Fine-tuning ---------------------------------------------------------------------------------------------------------------


def test_training_raises_the_likelihood_and_leaves_the_base_unchanged(base: Path, adapter: Path) -> None:
    tuned, plain = UserModel("tuned", base, adapter), UserModel("base", base)
    before = plain.score(pair(9), 6).nats
    assert tuned.score(pair(9), 6).nats > before + 1.0
    assert UserModel("again", base).score(pair(9), 6).nats == before


def test_a_finished_adapter_has_metadata_and_a_card(adapter: Path) -> None:
    facts = json.loads((adapter / METADATA).read_text("utf-8"))
    assert (facts["base"], facts["kind"], facts["rows"], facts["steps"]) == ("local", "none", 6, 4)
    assert facts["loss"] > 0
    card = (adapter / "README.md").read_text("utf-8")
    assert "6 pairs of x/Ann" in card
    assert card.startswith("---\nlibrary_name: peft\n")
    assert not (adapter / "checkpoints").exists()
    assert not adapter.with_name("none.partial").exists()


def test_an_existing_adapter_is_not_trained_again(base: Path, adapter: Path) -> None:
    steps: list[int] = []
    before = (adapter / "adapter_model.safetensors").stat().st_mtime_ns
    facts = fine_tune(ROWS, base, adapter, CONFIG, metadata={"base": "local"}, progress=lambda _, done, __: steps.append(done))
    assert (steps, facts["steps"]) == ([], 4)
    assert (adapter / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_an_adapter_of_other_rows_is_refused(base: Path, adapter: Path) -> None:
    with pytest.raises(UsageError, match="holds a user model of other rows or settings; delete that folder, or name another"):
        fine_tune(ROWS[1:], base, adapter, CONFIG, metadata={"base": "local"})


def test_an_adapter_trained_before_a_field_was_renamed_is_reused(base: Path, tmp_path: Path) -> None:
    fields = {"epochs": 3, "steps": 4, "batch": 2, "learning_rate": 0.02, "rank": 4, "precision": "float32", "seed": 0}
    fingerprint = checksum(json.dumps([ROWS, fields, "local"]).encode())
    (tmp_path / METADATA).write_text(json.dumps({"made_of": fingerprint, "steps": 4}), "utf-8")
    assert fine_tune(ROWS, base, tmp_path, CONFIG, metadata={"base": "local"})["steps"] == 4


def test_a_killed_training_ends_with_the_same_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    steps: list[int] = []

    def stop_after_the_third(stage: str, done: int, total: int) -> None:
        steps.append(done)
        if steps == [1, 2, 3]:
            raise KeyboardInterrupt

    target, metadata = tmp_path / "none", {"base": "local"}
    with pytest.raises(KeyboardInterrupt):
        fine_tune(ROWS, base, target, CONFIG, metadata=metadata, progress=stop_after_the_third)
    assert not target.exists()
    fine_tune(ROWS, base, target, CONFIG, metadata=metadata, progress=stop_after_the_third)
    assert steps == [1, 2, 3, 3, 4]
    assert_same_weights(target, adapter)


def test_after_a_kill_at_the_end_no_step_is_repeated_and_no_incomplete_checkpoint_is_read(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(folder: Path) -> None:
        raise KeyboardInterrupt

    target, metadata = tmp_path / "none", {"base": "local"}
    with monkeypatch.context() as patch:
        patch.setattr("usertwin.memory.training.user_model.fsync_folder", stop)
        patch.setattr("usertwin.memory.training.user_model.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(ROWS, base, target, CONFIG, metadata=metadata)
    target.rename(tmp_path / "none.partial")
    incomplete = tmp_path / "none.partial" / "checkpoints" / "checkpoint-9"
    incomplete.mkdir()
    (incomplete / "trainer_state.json").write_text('{"global_step": 9, "max_st', "utf-8")
    steps: list[int] = []
    facts = fine_tune(ROWS, base, target, CONFIG, metadata=metadata, progress=lambda _, done, __: steps.append(done))
    assert (steps, facts["steps"]) == ([], 4)
    assert_same_weights(target, adapter)


def test_a_training_without_rows_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no rows to train on; give more people, or traces for more pairs"):
        fine_tune([], tmp_path / "nowhere", tmp_path / "none", CONFIG, metadata={})
    assert not list(tmp_path.iterdir())


# Thoughts ------------------------------------------------------------------------------------------------------------------


def test_thoughts_depend_on_the_seed_and_the_context_only(base: Path) -> None:
    model = UserModel("m", base)
    nats, thoughts = model.score_with_thoughts(pair(), 6, 3, seed=1)
    assert len(thoughts) == 3
    assert model.score_with_thoughts(pair(), 6, 3, seed=1) == (nats, thoughts)
    assert model.score_with_thoughts(pair(action="something quite other"), 6, 3, seed=1)[1] == thoughts
    assert model.score_with_thoughts(pair(), 6, 3, seed=2)[1] != thoughts


def test_the_bound_is_the_log_of_the_mean_probability_over_thoughts(base: Path) -> None:
    model = UserModel("m", base)
    nats, thoughts = model.score_with_thoughts(pair(), 6, 2, seed=3)
    completion = action_completion(pair().action)
    items = [(format_action_prompt(pair(), 6, thought=thought), completion) for thought in thoughts]
    first, second = (likelihood.nats for likelihood in model._scorer.score(items))  # pyright: ignore[reportPrivateUsage]
    assert nats == pytest.approx(math.log((math.exp(first) + math.exp(second)) / 2))


@given(st.lists(st.floats(-2000, 0), min_size=1, max_size=8))
def test_a_mean_of_probabilities_lies_between_the_smallest_and_the_largest(nats: list[float]) -> None:
    assert min(nats) - 1e-9 <= log_mean_exp(nats) <= max(nats) + 1e-9


def test_the_mean_of_a_half_and_a_quarter_is_three_eighths() -> None:
    assert log_mean_exp([math.log(0.5), math.log(0.25)]) == pytest.approx(math.log(0.375))


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        (" wants tea)\nMe: tea", "wants tea"),
        (" wants (some) tea)", "wants (some) tea"),
        (" wants", "wants"),
        ("\n", ""),
        (" likes it :)) \nMe", "likes it :)"),
    ],
)
def test_a_thought_is_the_first_line_without_its_closing_bracket(text: str, thought: str) -> None:
    assert parse_thought(text) == thought
