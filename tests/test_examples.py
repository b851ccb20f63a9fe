"""Each example runs in its own process, as its first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def output_of(*arguments: str, cwd: Path) -> str:
    """Return the output of a Python process that succeeds."""
    process = subprocess.run([sys.executable, *arguments], cwd=cwd, env=os.environ, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_every_example_has_a_test() -> None:
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*example*.py"))
    assert all(f'"{path.name}"' in tests for path in EXAMPLES.glob("*.py"))


def test_the_quickstart_runs_offline_without_weights(tmp_path: Path) -> None:
    text = output_of(str(EXAMPLES / "quickstart.py"), cwd=tmp_path)
    assert "user: one plum cake pls" in text
    assert "nearest memory of the first turn: talk-" in text


def test_the_pytest_example_runs(tmp_path: Path) -> None:
    text = (EXAMPLES / "test_my_agent.py").read_text("utf-8")
    command = next(line for line in text.splitlines() if "usertwin learn" in line).split("usertwin ")[1].split()
    fakes = ("--embedder", "fake:", "--max-triples", "60", "--tune-turns", "0")
    output_of("-m", "usertwin.evals", *command, *fakes, cwd=tmp_path)
    (tmp_path / "test_my_agent.py").write_text(text)
    (tmp_path / "replies.txt").write_text("where is my parcel\nit should be here since monday\n4711\nok, when then\n")
    models = ("--usertwin-twin", "robin", "--usertwin-model", f"scripted:{tmp_path / 'replies.txt'}")
    assert "2 passed" in output_of("-m", "pytest", "-q", *models, cwd=tmp_path)


@pytest.mark.slow
def test_the_recon_loop_ranks_traces(tmp_path: Path) -> None:
    text = output_of(str(EXAMPLES / "recon_loop.py"), cwd=tmp_path)
    gains = [float(line.split()[0]) for line in text.splitlines() if line.startswith(("+", "-"))]
    assert len(gains) == 4
    assert gains == sorted(gains, reverse=True)
