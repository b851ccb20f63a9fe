"""simulator/backends/model_choice.py: which model acts unasked, and what is said of the tiny one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from usertwin.simulator.backends import model_choice
from usertwin.simulator.backends.downloads import SMALL, cache_folder
from usertwin.simulator.backends.model_choice import acting_model, fetch_obstacle, free_memory, tiny_model_note


@pytest.fixture(autouse=True)
def _any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow every model, give the machine enough memory, and let the small model be ten bytes."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED", raising=False)
    monkeypatch.setattr(model_choice, "free_memory", lambda: 8_000_000_000)
    monkeypatch.setattr(model_choice, "SMALL", replace(SMALL, size=10))


@pytest.fixture
def weights() -> Path:
    """The weights of the small model in the cache."""
    path = cache_folder() / "models" / SMALL.filename
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(10))
    return path


def test_a_model_with_weights_and_memory_acts_unasked(weights: Path) -> None:
    assert acting_model(None) == "local:small"
    weights.write_bytes(bytes(9))  # not the whole file
    assert acting_model(None) == "local"


def test_the_tiny_model_acts_where_the_other_is_not_on_the_machine() -> None:
    assert acting_model(None) == "local"


@pytest.mark.usefixtures("weights")
def test_a_named_model_acts_whatever_there_is() -> None:
    assert acting_model("local") == "local"
    assert acting_model("scripted:x") == "scripted:x"


@pytest.mark.usefixtures("weights")
def test_the_tiny_model_acts_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_choice, "free_memory", lambda: 5_900_000_000)
    assert acting_model(None) == "local"
    assert "6 GB of free memory, and 5.9 GB are free" in tiny_model_note("local")


@pytest.mark.usefixtures("weights")
def test_where_only_scripted_models_may_be_used_nothing_is_chosen_or_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USERTWIN_ONLY_SCRIPTED", "1")
    assert acting_model(None) == "local"
    assert tiny_model_note("local", goal="You want a refund.") == ""
    assert "USERTWIN_ONLY_SCRIPTED" in fetch_obstacle()


@pytest.mark.parametrize("model", ["local:small", "local:/x/local.gguf", "openai:m", "scripted:local", "telling"])
def test_nothing_is_said_of_other_models(model: str) -> None:
    assert tiny_model_note(model, goal="You want a refund.") == ""


@pytest.mark.parametrize("model", ["local", "local+/adapters/local"])
def test_the_note_names_the_lack_the_option_and_the_cost_on_one_line(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.setattr(model_choice, "SMALL", SMALL)
    note = tiny_model_note(model, goal="You want a refund.", option="--usertwin-model")
    assert "\n" not in note
    for text in ("pursues no goal", "--usertwin-model local:small", "1.1 GB", "2 minutes at 100 Mbit/s"):
        assert text in note
    assert "goal" not in tiny_model_note(model)
    assert "loses the thread" in tiny_model_note(model)


@pytest.mark.usefixtures("weights")
def test_the_note_asks_for_no_download_of_weights_that_are_there() -> None:
    assert "download" not in tiny_model_note("local")


def test_a_download_needs_memory_and_disk_space(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch_obstacle() == ""
    monkeypatch.setattr(model_choice, "MIN_DISK", 10**18)
    assert "free disk space" in fetch_obstacle()
    monkeypatch.setattr(model_choice, "free_memory", lambda: 0)
    assert "free memory" in fetch_obstacle()


def test_free_memory_is_that_of_the_control_group_if_it_is_less(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model_choice, "_CONTROL_GROUP", tmp_path)
    machine = free_memory()
    assert machine > 10_000_000
    for name, text in {"memory.max": "8000000\n", "memory.current": "5000000\n"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "memory.stat").write_text("anon 4000000\ninactive_file 1000000\n")
    assert free_memory() == 4_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 10_000_000
