"""evals/cli/demo.py: the demonstration repeats no finished step and replaces no twin of another person."""

from __future__ import annotations

import asyncio
import io
from contextlib import nullcontext
from pathlib import Path

import pytest
from cli_runner import error_of
from rich.console import Console

from conftest import recipe, scripted, small_log
from usertwin.evals.cli import demo
from usertwin.memory import TripleStore, TwinRecord, alearn, existing_twin
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.guards import rejection_reason
from usertwin.personas import TwinError
from usertwin.simulator import Simulation, load_embedder


def run_demo(home: Path | None) -> str:
    """Run a short demonstration and return what it prints."""
    console = Console(file=io.StringIO(), width=120)
    demo.run_demo(console, home=home, max_turns=1, limit=2)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_demonstration_needs_real_models() -> None:
    assert "USERTWIN_ONLY_SCRIPTED" in error_of("demo")


def test_a_twin_of_another_person_with_the_same_name_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "load_embedder", FakeEmbedder)
    asyncio.run(alearn("demo", small_log(), recipe(), embedder=FakeEmbedder(), model=scripted("I see"), scorer=FakeScorer()))
    with pytest.raises(TwinError, match="is of another person"):
        run_demo(None)
    assert TwinRecord.load(existing_twin("demo")).recipe.speaker == "Ann"


@pytest.mark.slow
def test_a_second_run_reuses_what_the_first_one_learned_and_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limits = {"MAX_TRIPLES": 24, "MAX_TRACES": 2, "CANDIDATES": 2, "WINDOW": 3, "GENERATE": 1, "TUNE_TURNS": 1}
    for name, value in limits.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr("usertwin.evals.replay.tune.KS", (2,))
    first = run_demo(tmp_path / "home")
    assert "why Robin " in first
    with TripleStore(existing_twin("demo", tmp_path / "home"), load_embedder(), create=False) as store:
        traced = [triple for triple in store.triples() if triple.provenance is not None]
    assert len(traced) == 2
    for triple in traced:
        assert triple.provenance is not None
        assert (triple.provenance.proposer, triple.provenance.scorer) == ("local", "guarded gain under local")
        assert triple.reasoning is None or rejection_reason(triple.reasoning, triple.pair) is None
    monkeypatch.setattr(demo, "open_twin", lambda *_: nullcontext())  # the first run has shown that the twin talks
    monkeypatch.setattr(demo, "simulate", lambda *_, **__: Simulation(twin="demo", goal=demo.GOAL, seed=0, thread_id="1"))
    second = run_demo(tmp_path / "home")
    for text in (first, second):
        assert "1 validation turn" in text
        assert "No memory" in text
        assert "n=2" in text
    assert "tuning:" in first
    assert "tuning:" not in second
    assert "learned on" in second
    assert "measured on" in second
