"""Imports and help texts load nothing heavy, which is read from sys.modules of a new interpreter."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from usertwin.evals.cli.main import COMMANDS

HEAVY = {
    "torch", "transformers", "faiss", "sentence_transformers", "xllamacpp", "numpy", "scipy", "sklearn", "sacrebleu", "openai",
    "accelerate", "pydantic",
}  # fmt: skip
PACKAGES = ("usertwin.personas", "usertwin.memory", "usertwin.simulator", "usertwin.evals")
MAIN = "from usertwin.evals.cli.main import main"


def modules_after(code: str) -> set[str]:
    """Return the modules that a new interpreter holds after running some code."""
    tail = "\nimport json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(done.stdout.splitlines()[-1]))


def heavy_among(modules: set[str]) -> set[str]:
    packages = {name.partition(".")[0] for name in modules}
    return {name for name in packages if name in HEAVY or name.startswith(("langchain", "langgraph"))}


def test_this_test_detects_a_heavy_module() -> None:
    assert heavy_among(modules_after("import numpy")) == {"numpy"}


def test_importing_the_four_packages_loads_nothing_heavy() -> None:
    modules = modules_after("import " + ", ".join(PACKAGES))
    assert "usertwin" in modules
    assert not heavy_among(modules)


@pytest.mark.parametrize("code", [MAIN, f"{MAIN}; main(['--help'], standalone_mode=False)"])
def test_the_help_of_the_program_loads_no_command_and_no_layer_below(code: str) -> None:
    modules = modules_after(code)
    assert "click" in modules
    assert {name for name in modules if name.startswith("usertwin.")} == {
        "usertwin.evals", "usertwin.evals.cli", "usertwin.evals.cli.main",
    }  # fmt: skip
    assert not heavy_among(modules)
    assert "rich" not in modules


def test_the_help_of_every_command_loads_nothing_heavy() -> None:
    """In one interpreter, since what one command loads stays in sys.modules."""
    calls = "\n".join(f"main(['{name}', '--help'], standalone_mode=False)" for name in COMMANDS)
    modules = modules_after(f"{MAIN}\n{calls}")
    assert all(f"usertwin.evals.cli.{module}" in modules for module, _ in COMMANDS.values())
    assert not heavy_among(modules)
    assert "rich" not in modules


def test_the_doctor_and_the_completion_of_a_name_load_nothing_heavy() -> None:
    code = """
from click.shell_completion import ShellComplete
ShellComplete(main, {}, "usertwin", "X").get_completions(["chat"], "")
main(["doctor", "--json", "-"], standalone_mode=False)
"""
    modules = modules_after(MAIN + code)
    assert "usertwin.evals.cli.tools.checks" in modules
    assert not heavy_among(modules)
