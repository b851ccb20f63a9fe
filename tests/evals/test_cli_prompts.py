"""Through the command line: what the user wrote reaches the model, and a model that only reasons is said to do so."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runner import error_of, learn_command, output_of, record_prompts, write_script

from conftest import Endpoint, small_log
from usertwin.memory import TwinRecord
from usertwin.memory.twin.record import twin_folder
from usertwin.personas import write_conversations


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    write_conversations(small_log().conversations, path)
    return path


def test_the_description_in_a_persona_file_is_in_the_default_prompts(
    tmp_path: Path, log_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    persona = tmp_path / "persona.toml"
    persona.write_text('name = "Mira"\ndescription = "An impatient courier."\n', "utf-8")
    model = write_script(tmp_path, "the weather in Oslo please", "the weather in Rome please")
    output_of(*learn_command(log_file, model, "--traces", "none", "--tune-turns", "0", "--persona", persona))
    prompts = record_prompts(monkeypatch)
    output_of("simulate", "sam", "--agent", "demo", "--model", model, "--max-turns", "2", "--goal", "GOAL " + "x" * 900)
    assert len(prompts) >= 2
    assert all(prompt.startswith("(About me: Mira. An impatient courier.)\n") for prompt in prompts)
    assert all("(My goal: GOAL " + "x" * 900 in prompt for prompt in prompts)


def test_learn_fails_if_the_model_stops_at_its_limit_before_every_trace(log_file: Path, endpoint: Endpoint) -> None:
    endpoint.content, endpoint.finish_reason = "", "length"
    model = f"openai:m@{endpoint.url}"
    options = ("--max-traces", "3", "--tune-turns", "0", "--concurrency", "1")
    error = error_of(*learn_command(log_file, model, *options))
    assert "made no trace: it stopped at its limit of tokens before it answered in all 18 proposals for 3 pairs" in error
    assert {request.get("max_completion_tokens") or request.get("max_tokens") for request in endpoint.requests} == {8592}
    assert TwinRecord.load(twin_folder("sam")).state == "interrupted"
