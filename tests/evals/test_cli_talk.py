"""evals/cli/talk.py: `usertwin simulate` with good and bad agents, and `usertwin chat` on a pseudo-terminal."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import documented_models
import pexpect
import pytest
from cli_runner import WEATHER, error_of, output_of, run, write_script

from usertwin import simulator
from usertwin.simulator.backends import model_choice


@pytest.fixture
def script(tmp_path: Path) -> str:
    return write_script(tmp_path, *WEATHER)


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of agents in it."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my_agents.py").write_text(
        "def good(messages):\n    return 'Which city do you mean?'\n"
        "def raising(messages):\n    raise KeyError('no such city')\n"
        "def forgetful(messages):\n    return None\n"
        "def silent(messages):\n    return '  '\n"
        "def slow(messages):\n    import time\n    time.sleep(30)\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.delitem(sys.modules, "my_agents", raising=False)
    return folder


# simulate -------------------------------------------------------------------------------------------------------------


def test_simulate_shows_the_recalled_pairs_the_reasoning_and_both_sides(ann: str, script: str, agents: Path) -> None:
    text = output_of("simulate", ann, "--agent", "my_agents:good", "--model", script, "--max-turns", "2")
    assert text.count("why Ann ") == 2
    assert text.count("agent  Which city do you mean?") == 2
    assert "the weather in Oslo please" in text
    assert "conversation 1: 2 turns, max_turns" in text


def test_simulate_writes_a_run_and_never_overwrites_one(ann: str, script: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("simulate", ann, "--agent", "demo", "--model", script, "--max-turns", "2", "--count", "3", "--seed", "5")
    output_of(*command, "--goal", "You want a refund.", "--out", out)
    lines = [json.loads(line) for line in (out / "conversations.jsonl").read_text("utf-8").splitlines()]
    assert [line["seed"] for line in lines] == [5, 6, 7]
    assert {line["goal"] for line in lines} == {"You want a refund."}
    assert not any("refund" in message["content"] for line in lines for message in line["messages"])
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    assert (list(manifest["twins"]), manifest["seed"], manifest["agent"]) == (["ann"], 5, "demo")
    assert "holds a run already" in error_of(*command, "--out", out)
    assert len((out / "conversations.jsonl").read_text("utf-8").splitlines()) == 3


def test_simulate_lets_the_agent_open_the_conversation_on_request(ann: str, script: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    output_of("simulate", ann, "--agent", "demo", "--model", script, "--max-turns", "1", "--agent-first", "--out", out)
    [line] = map(json.loads, (out / "conversations.jsonl").read_text("utf-8").splitlines())
    assert [message["role"] for message in line["messages"]] == ["assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("agent", "reason", "error"),
    [
        ("raising", "agent_error", "the agent raised KeyError: 'no such city'"),
        ("forgetful", "agent_error", "the agent returned None instead of a reply"),
        ("silent", "agent_error", "the agent returned an empty reply"),
        ("slow", "agent_timeout", "the agent took longer than 0.05 seconds"),
    ],
)
def test_a_failing_agent_is_recorded_with_its_error_and_exit_code_1(
    ann: str, script: str, agents: Path, agent: str, reason: str, error: str
) -> None:
    command = ("simulate", ann, "--agent", f"my_agents:{agent}", "--model", script, "--count", "2", "--out", "run")
    result = run(*command, "--agent-timeout", "0.05" if agent == "slow" else "60")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    lines = [json.loads(line) for line in (agents / "run" / "conversations.jsonl").read_text("utf-8").splitlines()]
    assert [line["stop_reason"] for line in lines] == [reason] * 2
    assert lines[0]["error"] == lines[1]["error"]
    assert error in lines[0]["error"]
    assert f"conversation 2: 1 turns, {reason}: {lines[1]['error']}" in result.stdout
    assert all(line["exchanges"][0]["answer"]["action"] for line in lines)  # the twin's turn is recorded
    assert json.loads((agents / "run" / "summary.json").read_text("utf-8")) == {"finished": True, "stop_reasons": {reason: 2}}


def test_a_failing_twin_is_not_charged_to_the_agent(ann: str, tmp_path: Path) -> None:
    mute = write_script(tmp_path, '{"when": "", "say": ""}')
    result = run("simulate", ann, "--agent", "demo", "--model", mute)
    assert result.exit_code == 1
    assert "conversation 1: 0 turns, twin_error: " in result.stdout


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--agent", "nonsense"), '"nonsense"'),
        (("--agent", "no_such_module:agent"), '"no_such_module"'),
        (("--agent", "my_agents:nobody"), '"nobody"'),
        (("--agent", ":nobody"), '":nobody"'),
        (("--max-turns", "0"), "0"),
        (("--count", "0"), "0"),
        (("--out", "my_agents.py"), "my_agents.py"),
        (("--model", "nonsense"), '"nonsense"'),
    ],
)
def test_wrong_arguments_of_simulate_are_reported_in_one_sentence(
    ann: str, script: str, agents: Path, options: tuple[str, str], error: str
) -> None:
    assert error in error_of("simulate", ann, "--agent", "my_agents:good", "--model", script, *options)


# chat -----------------------------------------------------------------------------------------------------------------


def spawn_chat(name: str, model: str) -> pexpect.spawn[str]:
    """Start a chat on a wide pseudo-terminal without colours."""
    plain = {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "200", "LINES": "50"}
    code = "from usertwin.evals.cli.main import main; main(prog_name='usertwin')"
    arguments = ["-c", code, "chat", name, "--model", model]
    return pexpect.spawn(sys.executable, arguments, encoding="utf-8", timeout=60, env=os.environ | plain)


@pytest.fixture
def any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a model that writes act under every name, on a machine without the weights of local:small."""
    documented_models.install(monkeypatch.setattr)
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")


NOTE = "the model local (135 million parameters)"


@pytest.mark.usefixtures("any_model")
def test_chat_says_what_the_tiny_model_cannot_do_where_no_model_is_named(ann: str) -> None:
    text = output_of("chat", ann, stdin="/quit\n")
    assert f"{NOTE} soon loses the thread" in text
    assert "--model local:small" in text
    assert NOTE not in output_of("chat", ann, "--model", "local", stdin="/quit\n")
    assert f"{NOTE} pursues no goal" in output_of("chat", ann, "--model", "local", "--goal", "A refund.", stdin="/quit\n")


@pytest.mark.usefixtures("any_model")
def test_simulate_warns_of_the_tiny_model_only_with_a_goal(ann: str) -> None:
    command = ("simulate", ann, "--agent", "demo", "--max-turns", "1")
    assert NOTE not in output_of(*command)
    text = output_of(*command, "--goal", "You want a refund.")
    assert text.count(f"{NOTE} pursues no goal") == 1
    assert NOTE not in output_of(*command, "--goal", "You want a refund.", "--model", "openai:m")


@pytest.mark.usefixtures("any_model")
def test_the_small_model_acts_where_it_can_and_no_model_is_named(ann: str, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []
    load = simulator.load_model
    for place in ("usertwin.simulator.load_model", "usertwin.simulator.backends.lora_of_twin.load_model"):
        monkeypatch.setattr(place, lambda name, **options: (named.append(name), load(name))[1])
    monkeypatch.setattr(model_choice, "cached_file", lambda weights: weights)
    monkeypatch.setattr(model_choice, "free_memory", lambda: 8_000_000_000)
    goal = ("--goal", "You want a refund.")
    for command in (("chat", ann), ("simulate", ann, "--agent", "demo", "--max-turns", "1", *goal)):
        assert NOTE not in output_of(*command, stdin="/quit\n")
    output_of("simulate", ann, "--agent", "demo", "--max-turns", "1")  # without a goal
    output_of("chat", ann, "--model", "local", stdin="/quit\n")
    assert named == ["local:small", "local:small", "local", "local"]


def test_chat_ends_with_the_input(ann: str, script: str) -> None:
    text = output_of("chat", ann, "--model", script, stdin="Hello, what can I do for you?\n")
    assert "Ann answers" in text
    assert "Ann  the weather in" in text


def test_chat_on_a_terminal(ann: str, script: str) -> None:
    child = spawn_chat(ann, script)
    child.expect("You are the agent; Ann answers")
    child.expect("you  ")
    child.sendline("/why")
    child.expect("Ann has not ")
    child.sendline("Hello, what can I do for you?")
    child.expect("Ann  the weather in [A-Z][a-z]+ please")
    child.expect("you  ")
    child.sendline("/why")
    child.expect("why Ann ")
    child.expect("1.00.*Hello, what can I do for you.*hi, the weather in")  # a context with the very same words
    child.expect("the weather in")
    child.expect("you  ")
    child.sendline("/nonsense")
    child.expect("/quit ends the chat")
    child.expect("you  ")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "Traceback" not in str(child.before)


def test_quit_ends_a_chat(ann: str, script: str) -> None:
    text = output_of("chat", ann, "--model", script, stdin="/quit\nHello, what can I do for you?\n")
    assert "the weather" not in text


def test_a_twin_that_leaves_ends_the_chat(ann: str, tmp_path: Path) -> None:
    turns = ("hi, the weather in Oslo please", "tomorrow, day 3", "no thats all thank you bye")
    model = write_script(tmp_path, *(line for turn in turns for line in ("a thought", turn)))
    agent_turns = ("Hello, what can I do for you?", "Which day do you mean for Oslo?", "It will be sunny. Anything else?")
    text = output_of("chat", ann, "--model", model, stdin="\n".join([*agent_turns, "after the end", ""]))
    assert [turn in text for turn in turns] == [True] * 3
    assert "Ann leaves the chat" in text
    assert text.count("Ann  ") == 3


def test_chat_goes_on_after_an_error_of_the_twin(ann: str, tmp_path: Path) -> None:
    model = write_script(tmp_path, '{"when": "two", "say": "I heard two"}', '{"when": "", "say": ""}')
    text = output_of("chat", ann, "--model", model, stdin="one\ntwo\n/quit\n")
    assert "the twin" in text
    assert "Ann  I heard two" in text
