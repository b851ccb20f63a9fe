"""Importing us, and asking for help, is quick because nothing heavy is loaded: read off sys.modules of a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "torch", "transformers", "faiss", "sentence_transformers", "xllamacpp", "numpy", "scipy", "sklearn", "sacrebleu", "openai",
    "accelerate", "pydantic",
}  # fmt: skip
PACKAGES = ("usertwin.personas", "usertwin.memory", "usertwin.simulator", "usertwin.evals")
COMMANDS = (
    "demo", "learn", "chat", "simulate", "eval", "show", "tune", "train", "controls", "suite", "report", "compare",
    "judge-by-hand", "export", "memory",
)  # fmt: skip


def _loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after some code."""
    tail = "\nimport json, sys; print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(done.stdout.splitlines()[-1]))


def _heavy(loaded: set[str]) -> set[str]:
    return {name for name in loaded if name in HEAVY or name.startswith(("langchain", "langgraph"))}


def test_this_test_would_see_a_heavy_module() -> None:
    assert _heavy(_loaded_by("import numpy")) == {"numpy"}


def test_importing_the_four_packages_loads_nothing_heavy() -> None:
    loaded = _loaded_by("import " + ", ".join(PACKAGES))
    assert "usertwin" in loaded
    assert not _heavy(loaded)


def test_importing_the_command_line_loads_nothing_heavy_and_not_even_rich() -> None:
    loaded = _loaded_by("import usertwin.evals.cli.main")
    assert not _heavy(loaded)
    assert "rich" not in loaded


def test_help_loads_nothing_heavy_and_not_even_rich() -> None:
    loaded = _loaded_by("from usertwin.evals.cli.main import main; main(['--help'], standalone_mode=False)")
    assert "click" in loaded
    assert not _heavy(loaded)
    assert "rich" not in loaded


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    loaded = _loaded_by(f"from usertwin.evals.cli.main import main; main(['{command}', '--help'], standalone_mode=False)")
    assert not _heavy(loaded)
    assert "rich" not in loaded
