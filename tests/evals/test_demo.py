"""The demonstration does nothing twice, and never replaces a twin that is not its own."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from rich.console import Console

from conftest import recipe, scripted, small_log
from usertwin.evals.cli import demo
from usertwin.memory import TwinRecord, alearn, existing_twin
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.personas import TwinError


@pytest.mark.slow
def test_a_twin_of_the_same_name_but_of_somebody_else_is_left_alone() -> None:
    asyncio.run(alearn("demo", small_log(), recipe(), embedder=FakeEmbedder(), model=scripted("I see"), scorer=FakeScorer()))
    with pytest.raises(TwinError, match="is of somebody else"):
        demo.run_demo(Console(file=io.StringIO()), home=None, turns=1, limit=4)
    assert TwinRecord.load(existing_twin("demo")).recipe.speaker == "Ann"


@pytest.mark.slow
def test_a_second_run_shows_what_the_first_one_learned_and_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, small in {"MAX_TRIPLES": 40, "MAX_TRACES": 2, "CANDIDATES": 2, "GENERATE": 1, "MEASURE": 3}.items():
        monkeypatch.setattr(demo, name, small)
    said: list[str] = []
    for _ in range(2):
        console = Console(file=io.StringIO(), width=120)
        demo.run_demo(console, home=tmp_path / "home", turns=1, limit=4)
        assert isinstance(console.file, io.StringIO)
        said.append(console.file.getvalue())
    for screen in said:  # the memories, the reasoning, the action and the table
        assert "why Robin says this" in screen
        assert "thinks" in screen
        assert "no memory" in screen
        assert "n=4" in screen
        assert "What the twin is best shown" in screen
        assert "3 validation turns" in screen
    assert "deciding by measuring" in said[0]
    assert "deciding by measuring" not in said[1]
    assert "learned on" in said[1]
    assert "measured on" in said[1]
