"""evals/cli/options.py: what several commands take means the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from usertwin.evals.cli.options import concurrency_of, json_path, write_json
from usertwin.personas import UsageError


@pytest.mark.parametrize(
    ("told", "model", "found"),
    [
        (None, "local", 1),
        (None, "local:small", 1),
        (None, "openai:gpt-5-mini", 8),
        (None, "scripted:file", 8),
        (3, "local", 3),
        (1, "openai:x", 1),
    ],
)
def test_a_local_model_is_asked_for_one_moment_at_once_unless_it_is_said(told: int | None, model: str, found: int) -> None:
    assert concurrency_of(told, model) == found


@pytest.mark.parametrize("told", [0, -1])
def test_fewer_than_one_moment_at_once_is_refused(told: int) -> None:
    with pytest.raises(UsageError, match=f"{told} moments at once: at least one must be"):
        concurrency_of(told, "local")


def test_figures_go_to_a_file_to_the_screen_or_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    assert (json_path(None), json_path(path), json_path(Path("-"))) == (False, False, True)
    for where in (None, path, Path("-")):
        write_json(where, {"n": "é"})
    assert json.loads(path.read_text("utf-8")) == json.loads(capsys.readouterr().out) == {"n": "é"}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "figures.json"):
        with pytest.raises(UsageError, match="no file can be written there; name one in a folder that exists with --json"):
            json_path(path)
