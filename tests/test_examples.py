"""Each example runs, as a process of its own, as its first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(*arguments: str, cwd: Path) -> str:
    """What a Python process prints; it must succeed."""
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_tested_here() -> None:
    tested = Path(__file__).read_text("utf-8")
    assert all(f'"{path.name}"' in tested for path in EXAMPLES.glob("*.py"))


def test_the_quickstart_runs_offline_without_weights(tmp_path: Path) -> None:
    said = run(str(EXAMPLES / "quickstart.py"), cwd=tmp_path)
    assert "user: one plum cake pls" in said
    assert "the first turn came from talk-" in said


@pytest.mark.slow
def test_the_flat_recon_loop_ranks_traces(tmp_path: Path) -> None:
    said = run(str(EXAMPLES / "recon_loop.py"), cwd=tmp_path)
    gains = [float(line.split()[0]) for line in said.splitlines() if line.startswith(("+", "-"))]
    assert len(gains) == 4
    assert gains == sorted(gains, reverse=True)


@pytest.mark.slow
def test_the_flat_training_loop_takes_a_step(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    said = run(str(EXAMPLES / "train_recon.py"), "--steps", "1", "--group", "2", cwd=tmp_path)
    assert said.startswith("step 0  reward ")


@pytest.mark.slow
def test_the_pytest_example_runs(tmp_path: Path) -> None:
    text = (EXAMPLES / "test_my_agent.py").read_text("utf-8")
    command = next(line for line in text.splitlines() if "usertwin learn" in line).split("usertwin ")[1].split()
    run("-m", "usertwin.evals", *command, "--max-triples", "60", cwd=tmp_path)
    (tmp_path / "test_my_agent.py").write_text(text)
    assert "2 passed" in run("-m", "pytest", "-q", "--usertwin-twin", "robin", cwd=tmp_path)
