"""memory/training/user_model.py: what is learned is what is scored, a killed training goes on, and thoughts are averaged rightly."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.memory.text.transcript import action_completion, format_action_prompt
from usertwin.memory.training.user_model import ABOUT, UserModel, UserModelConfig, fine_tune, log_mean_exp, training_row, parse_thought
from usertwin.personas import Pair, Turn, UsageError

pytestmark = pytest.mark.usefixtures("in_one_thread")

FITTING = UserModelConfig(steps=4, batch_size=2, learning_rate=0.02, rank=4)
THOUGHT = "wants the cake (now)"


def pair(number: int = 0, action: str = "one plum cake please") -> Pair:
    return Pair(
        "Ann", (Turn("desk", "agent", f"hello {number}, what can I do?"),), action, "", "talk", number, float(number), False
    )


ROWS = [training_row(pair(number), 6) for number in range(6)]


@pytest.fixture(scope="module")
def fitted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the rows above; nobody changes it."""
    target = tmp_path_factory.mktemp("fitted") / "none"
    fine_tune(ROWS, base, target, FITTING, metadata={"base": "local", "kind": "none", "people": ["x/Ann"]})
    return target


def weights(adapter: Path) -> dict[str, list[float]]:
    from safetensors.torch import load_file

    return {name: tensor.flatten().tolist() for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}


# What is learned ---------------------------------------------------------------------------------------------------------


def test_a_row_without_a_trace_is_the_open_moment_and_the_action() -> None:
    assert training_row(pair(), 6) == ("Them: hello 0, what can I do?\nMe:", " one plum cake please\n")


def test_a_row_with_a_trace_is_split_before_the_trace_and_is_the_text_that_is_scored_later() -> None:
    prompt, learned = training_row(pair(), 6, THOUGHT)
    assert prompt.endswith("(Me thinking:")
    assert prompt + learned == format_action_prompt(pair(), 6, thought=THOUGHT) + action_completion(pair().action)


@given(st.text(min_size=1), st.text())
def test_whatever_was_thought_and_done_a_row_is_one_moment_in_whole_lines(thought: str, action: str) -> None:
    prompt, learned = training_row(pair(action=action or "x"), 6, thought)
    assert learned.endswith("\n")
    assert (prompt + learned).count("\n") == 3
    assert prompt == training_row(pair(), 6, "other")[0]


@given(st.integers(1, 500), st.integers(1, 5), st.integers(1, 16))
def test_every_row_is_seen_in_every_epoch_unless_steps_are_given(rows: int, epochs: int, batch: int) -> None:
    steps = UserModelConfig(epochs=epochs, batch_size=batch).steps_for(rows)
    assert epochs * rows <= steps * batch < epochs * (rows + batch)
    assert UserModelConfig(epochs=epochs, batch_size=batch, steps=7).steps_for(rows) == 7


# Fine-tuning ---------------------------------------------------------------------------------------------------------------


def test_what_was_learned_becomes_likelier_and_the_base_stays_as_it_is(base: Path, fitted: Path) -> None:
    learned, plain = UserModel("m", base, fitted), UserModel("b", base)
    before = plain.score(pair(9), 6).nats
    assert learned.score(pair(9), 6).nats > before + 1.0
    assert UserModel("again", base).score(pair(9), 6).nats == before


def test_an_adapter_is_whole_with_what_it_was_made_of_and_a_card(fitted: Path) -> None:
    noted = json.loads((fitted / ABOUT).read_text("utf-8"))
    assert (noted["base"], noted["kind"], noted["rows"], noted["steps"]) == ("local", "none", 6, 4)
    assert noted["loss"] > 0
    assert "6 moments of x/Ann" in (fitted / "README.md").read_text("utf-8")
    assert not (fitted / "checkpoints").exists()
    assert not fitted.with_name("none.partial").exists()


def test_an_adapter_that_is_there_is_not_trained_again(base: Path, fitted: Path) -> None:
    asked: list[int] = []
    before = (fitted / "adapter_model.safetensors").stat().st_mtime_ns
    noted = fine_tune(ROWS, base, fitted, FITTING, metadata={"base": "local"}, progress=lambda _, done, __: asked.append(done))
    assert (asked, noted["steps"]) == ([], 4)
    assert (fitted / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_an_adapter_of_other_rows_is_not_taken_for_this_one(base: Path, fitted: Path) -> None:
    with pytest.raises(UsageError, match="was trained on something else; delete that folder, or name another one"):
        fine_tune(ROWS[1:], base, fitted, FITTING, metadata={"base": "local"})


def test_a_killed_training_goes_on_and_ends_with_the_same_adapter(base: Path, fitted: Path, tmp_path: Path) -> None:
    steps: list[int] = []

    def until_the_third(stage: str, done: int, total: int) -> None:
        steps.append(done)
        if steps == [1, 2, 3]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(ROWS, base, tmp_path / "none", FITTING, metadata={"base": "local"}, progress=until_the_third)
    assert not (tmp_path / "none").exists()
    fine_tune(ROWS, base, tmp_path / "none", FITTING, metadata={"base": "local"}, progress=until_the_third)
    assert steps == [1, 2, 3, 3, 4]
    whole = weights(fitted)
    for name, found in weights(tmp_path / "none").items():
        assert found == pytest.approx(whole[name], abs=1e-6), name


def test_after_a_kill_at_the_very_end_no_step_is_done_again_nor_half_a_checkpoint_read(
    base: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("usertwin.memory.training.user_model.fsync_folder", stopped)
        patched.setattr("usertwin.memory.training.user_model.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(ROWS, base, tmp_path / "none", FITTING, metadata={"base": "local"})
    (tmp_path / "none").rename(tmp_path / "none.partial")
    half = tmp_path / "none.partial" / "checkpoints" / "checkpoint-9"
    half.mkdir()
    (half / "trainer_state.json").write_text('{"global_step": 9, "max_st', "utf-8")
    steps: list[int] = []
    noted = fine_tune(
        ROWS, base, tmp_path / "none", FITTING, metadata={"base": "local"}, progress=lambda _, done, __: steps.append(done)
    )
    assert (steps, noted["steps"]) == ([], 4)
    whole = weights(fitted)
    for name, found in weights(tmp_path / "none").items():
        assert found == pytest.approx(whole[name], abs=1e-6), name


def test_no_rows_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is nothing to learn; give more people, or traces for more moments"):
        fine_tune([], tmp_path / "nowhere", tmp_path / "none", FITTING, metadata={})
    assert not list(tmp_path.iterdir())


# Thoughts ------------------------------------------------------------------------------------------------------------------


def test_thoughts_are_drawn_by_the_seed_from_the_context_alone(base: Path) -> None:
    model = UserModel("m", base)
    nats, thoughts = model.score_with_thoughts(pair(), 6, 3, seed=1)
    assert len(thoughts) == 3
    assert model.score_with_thoughts(pair(), 6, 3, seed=1) == (nats, thoughts)
    assert model.score_with_thoughts(pair(action="something quite other"), 6, 3, seed=1)[1] == thoughts
    assert model.score_with_thoughts(pair(), 6, 3, seed=2)[1] != thoughts


def test_thoughts_count_as_the_mean_of_the_probabilities_after_each(base: Path) -> None:
    model = UserModel("m", base)
    nats, thoughts = model.score_with_thoughts(pair(), 6, 2, seed=3)
    prompts = [(format_action_prompt(pair(), 6, thought=one), action_completion(pair().action)) for one in thoughts]
    each = [one.nats for one in model._scorer.score(prompts)]  # pyright: ignore[reportPrivateUsage]
    assert nats == pytest.approx(math.log((math.exp(each[0]) + math.exp(each[1])) / 2))


@given(st.lists(st.floats(-2000, 0), min_size=1, max_size=8))
def test_a_mean_of_probabilities_lies_between_the_least_and_the_greatest_however_small_they_are(nats: list[float]) -> None:
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
