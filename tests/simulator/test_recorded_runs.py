"""Runs that are recorded, and replayed without a model, an agent or a network."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from cli_runner import error_of, output_of, run, write_script

TALK = [json.dumps({"when": "", "say": "what is the weather in Oslo"})]
AGENT = """
import itertools
import time

COUNT = itertools.count()

def counting(messages, thread_id):
    return {"messages": [{"role": "assistant", "content": f"For which day? {next(COUNT)}"}], "asked": len(messages)}

def slow(messages):
    time.sleep(0.4)
    return f"For which day? {next(COUNT)}"

def failing(messages):
    raise ValueError(f"not ready {next(COUNT)}")
"""


@pytest.fixture
def folder(tmp_path: Path, ann: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with agents, which is the current one."""
    (tmp_path / "counting_agents.py").write_text(AGENT, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simulated(agent: str, model: str, *options: str) -> str:
    command = ("simulate", "ann", "--agent", f"counting_agents:{agent}", "--model", model, "--count", "4", "--max-turns", "2")
    return output_of(*command, *options)


def conversations(folder: Path, name: str) -> bytes:
    return (folder / name / "conversations.jsonl").read_bytes()


def test_a_replayed_run_equals_the_recorded_one_without_models_agent_and_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_script(folder, *TALK)
    simulated("counting", model, "--parallel", "3", "--record", "calls.sqlite", "--out", "recorded")
    [row, *_] = map(json.loads, conversations(folder, "recorded").splitlines())
    assert row["final_state"] == {"asked": 3}
    Path(model.removeprefix("scripted:")).unlink()
    (folder / "counting_agents.py").unlink()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a replay needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for parallel in ("1", "4"):
        simulated("counting", model, "--parallel", parallel, "--replay", "calls.sqlite", "--out", f"replayed{parallel}")
        assert conversations(folder, f"replayed{parallel}") == conversations(folder, "recorded")


def test_failures_of_the_agent_are_replayed(folder: Path) -> None:
    model = write_script(folder, *TALK)
    command = ("simulate", "ann", "--agent", "counting_agents:failing", "--model", model)
    assert run(*command, "--record", "calls.sqlite", "--out", "recorded").exit_code == 1
    assert run(*command, "--replay", "calls.sqlite", "--out", "replayed").exit_code == 1
    assert conversations(folder, "replayed") == conversations(folder, "recorded")
    assert b"not ready" in conversations(folder, "replayed")


def test_a_call_that_was_not_recorded_ends_the_replay_with_one_sentence(folder: Path) -> None:
    model = write_script(folder, *TALK)
    simulated("counting", model, "--record", "calls.sqlite")
    command = ("simulate", "ann", "--agent", "counting_agents:counting", "--model", model, "--replay", "calls.sqlite")
    for options in (("--count", "5", "--max-turns", "2"), ("--max-turns", "3"), ("--goal", "You want the weather.")):
        assert "the recording has no " in error_of(*command, *options)
    assert "exclude each other" in error_of(*command, "--record", "calls.sqlite")
    assert "there is no recording" in error_of(*command[:-1], "nothing.sqlite")


@pytest.mark.parametrize("limit", ["max_seconds = 0.6", "max_seconds = 0.2"])
def test_a_conversation_that_the_clock_ended_ends_there_in_a_replay(folder: Path, limit: str) -> None:
    model = write_script(folder, *TALK)
    (folder / "talks.toml").write_text(f'[[scenario]]\nname = "short"\ntwins = "ann"\n{limit}\n', "utf-8")
    command = ("simulate", "--scenarios", "talks.toml", "--agent", "counting_agents:slow", "--model", model)
    output_of(*command, "--agent-timeout", "0.5", "--record", "calls.sqlite", "--out", "recorded")
    output_of(*command, "--agent-timeout", "0.5", "--replay", "calls.sqlite", "--out", "replayed")
    assert conversations(folder, "replayed") == conversations(folder, "recorded")
    assert b'"time_limit"' in conversations(folder, "replayed")
