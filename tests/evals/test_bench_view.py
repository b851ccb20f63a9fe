"""The benchmark of the page of a run: a tiny one yields every figure, and without a browser it says so."""

from __future__ import annotations

import math

import pytest
from browser import needs_browser

from usertwin.evals.benchmarks.run_view import part
from usertwin.evals.benchmarks.run_view.part import ViewSizes, view_part


@needs_browser
def test_a_tiny_run_yields_every_figure() -> None:
    figures = dict(view_part(ViewSizes(conversations=12, turns=2, triples=60, loads=1)))
    names = ("write_s", "interactive_s", "interactive_processor_s", "open_s", "first_search_s")
    assert set(figures) == {f"view.{name}" for name in names}
    assert all(math.isfinite(row.value) and row.value >= 0 for row in figures.values())
    assert "12 conversations of 2 turns, 48 prompts" in figures["view.interactive_s"].against


def test_without_a_browser_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(part, "BROWSER", None)
    assert list(view_part()) == []
    assert "view: not measured; no browser is installed: none of chromium, " in capsys.readouterr().err
