"""The forced choice among texts that a log lists, as in TwinBench (replay/held_out.py, replay/replay.py)."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from cli_runner import WEATHER, learn_command, output_of, write_script
from invented_suite import WORDS, Models

from conftest import small_log
from usertwin.evals.records.measured_turns import read_turns
from usertwin.evals.suites.config import read_suite
from usertwin.evals.suites.run import SuiteRun
from usertwin.personas import write_conversations
from usertwin.personas.conversation import DISTRACTORS

pytestmark = pytest.mark.usefixtures("repeats_count")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "suite_twinbench.toml"


def novel(path: Path, *speakers: str) -> Path:
    """Write a file of TwinBench with thirty invented utterances of each speaker; the narration quotes every fifth one."""
    rows: list[dict[str, Any]] = []
    for speaker in speakers:
        rng, words = random.Random(speaker), WORDS[speaker].split()
        for chunk in range(30):
            options = {letter: " ".join(rng.choices(words, k=6)) for letter in "ABCD"}
            context = f"It is chapter {chunk}, and {options['C'] if chunk % 5 == 0 else 'the wind is calm'}."
            rows.append(
                {
                    "chunk_id": f"{chunk:05d}", "speaker": speaker, "utterance": options["C"], "context": context,
                    "mcq": {"options": options, "answer": "C"}, "source_novel": "Invented",
                }
            )  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_the_suite_of_twinbench_measures_the_choices_of_the_benchmark(tmp_path: Path) -> None:
    changes = {
        'action = "local"': 'action = "scripted:action.txt"',
        'scorer = "local"': 'scorer = "fake:"\nembedder = "fake:64"',
        "twinbench:TwinBench/dataset/dimension_3/choices.jsonl": f"twinbench:{novel(tmp_path / 'choices.jsonl', 'Ann', 'Bob')}",
        "people = 20": "people = 2",
    }
    text = EXAMPLE.read_text("utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "action.txt").write_text("lamp table garden\n", "utf-8")
    (tmp_path / "suite.toml").write_text(text, "utf-8")
    suite = read_suite(tmp_path / "suite.toml")
    models = Models().of(suite)
    asyncio.run(SuiteRun(suite, tmp_path / "run", models=models).run())
    turns = read_turns(tmp_path / "run")
    assert len(turns) == 2 * 6
    for turn in turns:
        quoted = int(turn.conversation_id.split("/")[1]) % 5 == 0
        assert set(turn.choice) == (set() if quoted else set(suite.arms))
        assert turn.replies == {}


def test_the_distractors_of_a_log_replace_other_actions_and_broken_ones_are_ignored(tmp_path: Path) -> None:
    log, script = tmp_path / "log.jsonl", write_script(tmp_path, *WEATHER)
    rows = [conversation.to_json() for conversation in small_log().conversations]
    for row, value in zip(rows, [["never", "ever"], "never", ["never"], {"a": 1}] * len(rows), strict=False):
        for turn in row["turns"]:
            turn[DISTRACTORS] = value
    log.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    output_of(*learn_command(log, script, "--traces", "none", "--tune-turns", "0"))
    path = tmp_path / "figures.json"
    command = ("eval", "sam", "--model", script, "--scorer", "fake:", "--limit", "0", "--generate", "0", "--choices", "4")
    output_of(*command, "--arms", "recalled_pairs", "--json", path)
    choice = json.loads(path.read_text("utf-8"))["arms"]["recalled_pairs"]["choice"]
    assert choice["n"] > 0


@pytest.mark.parametrize("choices", ["0", "4"])
def test_without_distractors_a_choice_needs_replies(tmp_path: Path, choices: str) -> None:
    log, script = tmp_path / "log.jsonl", write_script(tmp_path, *WEATHER)
    write_conversations(small_log().conversations, log)
    output_of(*learn_command(log, script, "--traces", "none", "--tune-turns", "0"))
    path = tmp_path / "figures.json"
    command = ("eval", "sam", "--model", script, "--scorer", "fake:", "--limit", "4", "--generate", "0", "--choices", choices)
    output_of(*command, "--arms", "recalled_pairs", "--json", path)
    assert "choice" not in json.loads(path.read_text("utf-8"))["arms"]["recalled_pairs"]
