"""The README: its Python runs as it stands, its generated parts are fresh, and the changelog knows the version."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from conftest import small_conversation
from usertwin.evals.cli.main import main
from usertwin.personas import as_conversation, write_conversations

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the README's twin was learned with the README's words, less the traces."""
    monkeypatch.chdir(tmp_path)
    talks = [small_conversation(number) for number in range(20)]
    write_conversations(talks, tmp_path / "support.jsonl.gz")
    command = next(line for line in "\n".join(blocks("console")).splitlines() if line.startswith("usertwin learn ann"))
    words = command.split("#")[0].split()[1:]
    words[words.index("--speaker") + 1] = "Ann"
    done = CliRunner().invoke(main, [*words, "--traces", "none"])
    assert done.exit_code == 0, done.output
    return tmp_path


@pytest.mark.slow
def test_the_python_example_runs_as_it_stands(learned: Path) -> None:
    example = next(block for block in blocks("python") if "SimulatedUser.load" in block)
    done = subprocess.run([sys.executable, "-c", example], cwd=learned, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(("True", "False"))


@pytest.mark.slow
def test_the_pytest_example_runs_as_it_stands(learned: Path) -> None:
    (learned / "test_agent.py").write_text(next(block for block in blocks("python") if "simulate(reply)" in block))
    (learned / "my_agent.py").write_text("def reply(messages):\n    return 'You will get a refund, I promise.'\n")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q"], cwd=learned, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ann: 1 conversation" in done.stdout


def test_the_log_line_in_the_readme_can_be_read() -> None:
    [line] = blocks("json")
    assert as_conversation(json.loads(line)).speakers() == {"ann", "desk"}


def test_the_generated_parts_are_fresh() -> None:
    cog = subprocess.run([sys.executable, "-m", "cogapp", "--check", "README.md"], cwd=ROOT, capture_output=True, text=True)
    assert cog.returncode == 0, cog.stdout + cog.stderr + " (make docs)"


def test_every_command_in_the_readme_exists() -> None:
    used = {words.split()[1] for words in re.findall(r"^\$? ?(usertwin [a-z][a-z-]*)", README, re.MULTILINE)}
    assert used
    assert used <= set(main.commands)


def test_the_changelog_knows_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
