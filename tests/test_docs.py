"""The documentation: every code block runs, generated parts are fresh, links lead somewhere, options exist.

Blocks are run in the order of their page, in a folder with a log, an agent and the examples. Model names are those that users
type; scripted and fake models answer in their place, since no text here depends on what a model says.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import click
import documented_models
import pytest
import yaml
from click.testing import CliRunner

from usertwin.evals.cli.main import COMMANDS, main
from usertwin.personas import Conversation, Turn, as_conversation, load_log, write_conversations
from usertwin.simulator import load_model

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
#: What a block of shell commands may call: installation, make, servers of others, and commands that need minutes.
SHELL = {"make", "pip", "pytest", "vllm", "ollama", "hf", "export", "usertwin"}
#: Packages that are not in .venv: their blocks run in environments of their own.
OTHER_ENVIRONMENTS = {"deepeval", "scenario", "mlflow", "inspect_ai", "tau2"}
WORDS = """
amber anchor autumn basket blanket bottle bridge butter button candle carpet castle cherry circle copper cotton dragon engine
falcon feather finger flower forest garden ginger guitar hammer harbor helmet honey island jacket jungle kettle ladder lantern
lemon marble meadow mirror mountain needle orange paper pencil pepper pillow planet pocket pumpkin ribbon river saddle shadow
silver spider summer temple thunder ticket tunnel velvet violin walnut window winter wizard yellow
""".split()  # noqa: SIM905 - a list literal would take seventy lines
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@dataclass(frozen=True)
class Block:
    """A fenced code block; one with a title is a file of that name, which later blocks of the page use."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page, in order."""
    pattern = r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```'
    return [Block(*match) for match in re.findall(pattern, page.read_text("utf-8"), re.MULTILINE | re.DOTALL)]


def commands(text: str) -> list[list[str]]:
    """Return the commands of a block, as words, without comments and variables that are set for a command."""
    lines = [re.sub(r"(^|\s)#.*", "", line).split() for line in text.splitlines()]
    return [words[1:] if re.match(r"[A-Z_]+=", words[0]) else words for words in lines if words]


def ann_at(number: int) -> Conversation:
    """Return a conversation of the speaker that the documentation names, in which no two turns are alike."""
    random = Random(number)
    turns = [Turn("guide", "instruction", f"You want {' and '.join(random.sample(WORDS, 2))}.")]
    for _ in range(3):
        turns.append(Turn("desk", "agent", f"Do you mean the {' '.join(random.sample(WORDS, 4))}?"))
        turns.append(Turn("ann", "user", f"no, {' '.join(random.sample(WORDS, random.randint(5, 9)))} please"))
    return Conversation(f"talk-{number:02d}", tuple(turns), f"2026-{number // 28 + 1:02d}-{number % 28 + 1:02d}T10:00:00+00:00")


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the pages mention, in which every model name means a scripted one."""
    write_conversations(map(ann_at, range(20)), tmp_path / "support.jsonl.gz")
    write_conversations(map(ann_at, range(20, 24)), tmp_path / "june.jsonl")
    replies = "return 'You will get a refund, I promise.'"
    agent = f"def reply(messages):\n    {replies}\n\nasync def areply(messages):\n    {replies}\n"
    (tmp_path / "my_agent.py").write_text(agent)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    documented_models.install(monkeypatch.setattr)
    return tmp_path


def run_command(words: list[str]) -> None:
    """Run a usertwin command as it stands."""
    assert words[0] == "usertwin", words
    done = CliRunner().invoke(main, words[1:], input="Hello, how can I help?\n/why\n/quit\n")
    assert done.exit_code == 0, (words, done.output, done.exception)


def missing_tools(text: str) -> list[str]:
    """Return the packages that a block of Python imports and that are not installed."""
    nodes = list(ast.walk(ast.parse(text)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return [name for name in {name.split(".")[0] for name in names} if importlib.util.find_spec(name) is None]


@every_page
def test_every_block_runs(page: Path, sandbox: Path) -> None:
    text = "".join(block.text for block in blocks(page) if block.language in {"console", "python"})
    if '"ann"' in text and "usertwin learn ann" not in text:
        run_command(["usertwin", "learn", "ann", "--from", "support.jsonl.gz", "--speaker", "ann", "--traces", "none"])
    for number, block in enumerate(blocks(page)):
        match block.language:
            case _ if block.title:
                (sandbox / block.title).write_text(block.text)
            case "console":
                for words in commands(block.text):
                    run_command(words)
            case "python" if "def test_" in block.text:
                (sandbox / "test_agent.py").write_text(block.text)
                code = "import documented_models, pytest; documented_models.install(); pytest.main(['-q', 'test_agent.py'])"
                path = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
                command = [sys.executable, "-c", code]
                done = subprocess.run(command, cwd=sandbox, env=path, capture_output=True, text=True, timeout=120)
                assert "1 passed" in done.stdout, done.stdout + done.stderr
                assert re.search(r"ann: \d+ conversation", done.stdout)
            case "python" if set(missing_tools(block.text)) & OTHER_ENVIRONMENTS:
                assert page.stem == "integrations"  # `make integrations` runs it
            case "python":
                exec(compile(block.text, f"{page.name}, block {number}", "exec"), {"__name__": "__main__"})
            case "json":
                assert as_conversation(json.loads(block.text)).speakers() == {"ann", "desk"}
            case "toml":
                (sandbox / "recipe.toml").write_text(block.text)
                run_command(["usertwin", "learn", "from-recipe", "--recipe", "recipe.toml", "--dry-run"])
            case "sh":
                assert {words[0] for words in commands(block.text)} <= SHELL
            case language:
                assert language == "text"


def test_exports_become_conversations(sandbox: Path) -> None:
    """What the commands and the code of that page make of its samples."""
    made: list[list[list[str]]] = []
    for block in blocks(ROOT / "docs" / "import-an-export.md"):
        if block.title:
            (sandbox / block.title).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, "import-an-export.md", "exec"), {"__name__": "__main__"})
        else:
            for words in commands(block.text):
                run_command(words)
    for file in ("chats.jsonl", "tickets.jsonl", "other.jsonl"):
        log = load_log(file)
        assert log.dated
        made.append([[f"{turn.speaker}: {turn.text}" for turn in talk.turns] for talk in log.conversations])
    thread, tickets, other = made
    assert [len(turns) for turns in tickets] == [3, 2]
    assert thread == [["Ann: are you there?", "Ben: yes\nwhat is it?"], ["Ben: shall we go on saturday?", "Ann: sure"]]
    assert other == [["ann: where is my parcel?", "desk: What is the order number?"]]


def test_the_site_shows_every_page_and_every_public_package() -> None:
    """What `make docs` builds, strictly, with packages that the tests do not need."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    shown = set(re.findall(r"[\w/-]+\.md", json.dumps(site["nav"])))
    assert {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} <= shown
    assert {f"reference/{name}.md" for name in ("personas", "memory", "simulator", "evals")} <= shown
    assert site["theme"]["font"] is False  # no request to another server


@every_page
def test_every_command_and_option_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    for words in [words for block in blocks(page) if block.language == "sh" for words in commands(block.text)]:
        if words[0] == "usertwin":
            command: click.Command = main
            for word in words[1:]:
                if isinstance(command, click.Group):
                    inner = command.get_command(click.Context(command), word)
                    assert inner is not None, words
                    command = inner
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    used = set(re.findall(r"`usertwin ([a-z][a-z-]*)", text))
    assert used <= set(COMMANDS)


def test_named_endpoints_are_clients_of_these_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hosted model with a URL that a page names: the real client, which sends nothing here."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    pattern = r"openai:[\w./:-]+@https?://[\w.:/-]+(?:#[A-Z_]+)?"
    names = {
        name for page in PAGES for name in re.findall(pattern, page.read_text("utf-8")) if not name.endswith("://host:port/v1")
    }
    assert len(names) >= 4
    for name in names:
        model, _, rest = name.removeprefix("openai:").partition("@")
        url, _, variable = rest.partition("#")
        if variable:
            monkeypatch.setenv(variable, "the-key")
        chat: Any = load_model(name).chat
        assert (chat.model_name, str(chat.root_async_client.base_url).rstrip("/")) == (model, url)
        assert chat.openai_api_key() == ("the-key" if variable else "none")


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if "://" not in target:
            file, _, heading = target.partition("#")
            assert (page.parent / file).exists(), target
            if heading:
                headings = re.findall(r"^#+ (.+)$", (page.parent / file).read_text("utf-8"), re.MULTILINE)
                assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


def test_the_readme_fits_on_one_screen() -> None:
    assert README.read_text("utf-8").count("\n") <= 105


def test_generated_parts_are_fresh() -> None:
    pages = [ROOT / "docs" / "commands.md", ROOT / "docs" / "files.md"]
    cog = subprocess.run([sys.executable, "-m", "cogapp", "--check", *pages], cwd=ROOT, capture_output=True, text=True)
    assert cog.returncode == 0, cog.stdout + cog.stderr + " (make docs)"


def test_the_changelog_knows_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
