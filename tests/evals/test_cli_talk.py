"""evals/cli/talk.py: `usertwin chat`, `play` and `watch`, on a pseudo-terminal too; and `usertwin simulate` with bad agents."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import stat
import sys
from pathlib import Path

import documented_models
import pexpect
import pytest
from cli_runner import WEATHER, error_of, output_of, run, write_script
from click.testing import CliRunner
from rich.cells import cell_len

from usertwin import simulator
from usertwin.evals.cli.main import main
from usertwin.memory import existing_twin
from usertwin.simulator.backends import model_choice
from usertwin.simulator.terminal.session import Session
from usertwin.simulator.terminal.store import SessionStore


@pytest.fixture
def script(tmp_path: Path) -> str:
    return write_script(tmp_path, *WEATHER)


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of agents in it."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my_agents.py").write_text(
        "# coding: utf-8\n"
        "def good(messages):\n    return 'Which city do you mean?'\n"
        "def raising(messages):\n    raise KeyError('no such city')\n"
        "def forgetful(messages):\n    return None\n"
        "def silent(messages):\n    return '  '\n"
        "def slow(messages):\n    import time\n    time.sleep(30)\n"
        "def fancy(messages):\n    return 'Zoë – \\x1b]0;title\\x07 … 日本 🙂 ' * 9\n"
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


def spawn(*arguments: str, **environment: str) -> pexpect.spawn[str]:
    """Start a command on a wide pseudo-terminal without colours."""
    plain = {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "200", "LINES": "50"}
    code = "from usertwin.evals.cli.main import main; main(prog_name='usertwin')"
    environment = {**os.environ, **plain, **environment}
    return pexpect.spawn(sys.executable, ["-c", code, *arguments], encoding="utf-8", timeout=60, env=environment)


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
    child = spawn("chat", ann, "--model", script)
    child.logfile_read = screen = io.StringIO()
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
    child.expect("to say it, double the slash: //nonsense")
    child.expect("you  ")
    child.send("first\nsecond\n\nla")  # pasted where pastes have no brackets
    child.sendline("st")
    child.expect("4 lines are one message")
    child.sendline("")
    child.expect("Ann  the weather in [A-Z][a-z]+ please")
    child.expect("you  ")
    child.kill(signal.SIGKILL)
    child.wait()
    [session] = sessions_of(ann)
    assert [m["content"] for m in session.messages][2] == "first\nsecond\n\nlast"  # what was finished is kept
    assert "\x1b" not in screen.getvalue()
    text = output_of("chat", ann, "--model", script, "--resume", session.id, stdin="")
    assert f"session {session.id} goes on" in text
    assert "you  first\nsecond\n\nlast\nAnn  " in text


def test_a_bracketed_paste_is_one_message_that_enter_sends_and_no_colour_is_used_where_none_is_wanted(
    ann: str, script: str
) -> None:
    child = spawn("chat", ann, "--model", script, TERM="xterm-256color")
    child.expect("you  ")
    screen = str(child.before)
    child.send("\x1b[200~first\r/quit\r\rlast\x1b[201~")
    child.expect("last")
    child.send("\r")
    child.expect("the weather in [A-Z][a-z]+ please")
    screen += str(child.before)
    child.send("/quit\r")
    child.expect(pexpect.EOF)
    [session] = sessions_of(ann)
    assert session.messages[0]["content"] == "first\n/quit\n\nlast"
    assert not re.search("\x1b\\[[0-9;]*3[0-9]m", screen + str(child.before))


def sessions_of(name: str) -> list[Session]:
    """Return the sessions of a twin, the latest first."""
    store = SessionStore(existing_twin(name), "Ann")
    sessions = store.sessions()
    store.close()
    return sessions


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


def test_a_session_resumes_with_its_goal_and_its_commands(ann: str, script: str, tmp_path: Path) -> None:
    command = ("chat", ann, "--model", script)
    text = output_of(*command, "--goal", "A refund.", stdin="one\ntwo\n")
    [session] = sessions_of(ann)
    assert text.endswith(f"to go on: usertwin chat ann --resume {session.id}\n")
    log = tmp_path / "log.jsonl"
    text = output_of(*command, "--resume", stdin=f"/goal\n/why\n/undo\nthree\n/save {log}\n/save {log}\n")
    assert f"session {session.id} goes on" in text
    assert "goal: A refund." in text
    assert "why Ann says this" in text
    assert "taken back: you: two" in text
    assert f"{log}: exists already, and is not overwritten" in text
    turns = json.loads(log.read_text("utf-8"))["turns"]
    assert [turn["text"] for turn in turns if turn["speaker"] == "me"] == ["one", "three"]
    [session] = sessions_of(ann)
    assert [m["content"] for m in session.messages][::2] == ["one", "three"]
    assert "the session" in error_of("play", "demo", "--twin", ann, "--model", script, "--resume", session.id)
    assert "there is no session 'x' of usertwin chat" in error_of(*command, "--resume", "x")


def test_sessions_are_listed_and_not_kept_on_request(ann: str, script: str) -> None:
    command = ("chat", ann, "--model", script)
    assert "there are no sessions yet" in output_of(*command, "--sessions")
    assert "to go on" not in output_of(*command, "--no-keep", stdin="one\n")
    assert sessions_of(ann) == []
    output_of(*command, stdin="a [bold]beginning[/bold] \x1b[0m " + "x" * 50 + "\n")
    [line] = output_of(*command, "--sessions").splitlines()
    assert "1 exchanges  a [bold]beginning[/bold] ␛[0m xxxxxxxxx…" in line


def test_a_session_that_cannot_be_kept_goes_on_without_a_record(ann: str, script: str) -> None:
    (existing_twin(ann) / "sessions.sqlite").write_bytes(b"damaged" * 99)
    text = output_of("chat", ann, "--model", script, stdin="one\ntwo\n")
    assert text.count("the conversation goes on without a record") == 1
    assert text.count("Ann  ") == 2
    assert "to go on" not in text


def test_forgetting_erases_the_sessions_of_the_twin_and_of_no_other(ann: str, script: str) -> None:
    twin = existing_twin(ann)
    shutil.copytree(twin, twin.with_name("bob"))
    (record := twin.with_name("bob") / "twin.json").write_text(
        record.read_text("utf-8").replace('"name": "ann"', '"name": "bob"'), "utf-8"
    )
    for name in (ann, "bob"):
        output_of("chat", name, "--model", script, stdin="Hello, what can I do for you?\n")
    assert "its sessions are erased" in output_of("memory", "forget", ann, "--conversation", "talk-03")
    assert list(twin.glob("sessions*")) == []
    assert len(sessions_of("bob")) == 1
    assert "its sessions" not in output_of("memory", "forget", ann, "--conversation", "talk-04")


# play and watch -------------------------------------------------------------------------------------------------------


def test_play_without_a_twin_needs_no_model_and_is_kept_for_the_user(agents: Path, tmp_path: Path) -> None:
    text = output_of("play", "my_agents:good", stdin="the weather please\n/twin\n")
    assert "agent  Which city do you mean?" in text
    assert "there is no twin to hand over to" in text
    assert stat.S_IMODE((tmp_path / "data" / "sessions.sqlite").stat().st_mode) == 0o600
    text = output_of("play", "my_agents:good", "--resume", stdin="Oslo\n")
    assert "you  the weather please" in text
    assert text.count("agent  Which city do you mean?") == 2


def test_play_hands_over_to_the_twin(ann: str, script: str, agents: Path) -> None:
    command = ("play", "my_agents:good", "--twin", ann, "--model", script)
    text = output_of(*command, "--agent-first", stdin="/twin 2\nme again\n")
    assert text.count("agent  Which city do you mean?") == 4
    assert text.count("Ann  the weather in") == 2
    [session] = sessions_of(ann)
    assert text.endswith(f"to go on: usertwin play my_agents:good --twin ann --resume {session.id}\n")


def test_watch_shows_the_closeness_the_memories_and_each_turn(ann: str, script: str, agents: Path) -> None:
    command = ("watch", ann, "--agent", "my_agents:good", "--model", script)
    text = output_of(*command, "--max-turns", "2", "--goal", "A refund.")
    assert "not measured; run usertwin eval ann" in text
    assert "A refund." in text
    assert text.count("why Ann says this") == 2
    assert text.count("agent  Which city do you mean?") == 2
    text = output_of(*command, "--step", stdin="\n/quit\n")
    assert text.count("why Ann says this") == 1
    assert f"usertwin watch ann --agent my_agents:good --resume {sessions_of(ann)[0].id}" in text


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (("play", "nonsense"), '"nonsense" is not an agent'),
        (("play", "demo", "--twin", "nobody"), 'there is no twin "nobody"'),
        (("watch", "ann", "--agent", "no_such:agent"), '"no_such"'),
        (("watch", "ann", "--agent", "demo", "--max-turns", "0"), "max_turns is 0"),
        (("play", "demo", "--agent-timeout", "0"), "agent_timeout is 0.0"),
    ],
)
def test_wrong_arguments_are_reported_in_one_sentence(ann: str, command: tuple[str, ...], error: str) -> None:
    assert error in error_of(*command)


@pytest.mark.parametrize(
    ("encoding", "option"), [("ascii", ()), ("cp1252", ()), ("latin-1", ("--plain",)), ("utf-8", ("--plain",))]
)
def test_every_command_fits_80_columns_in_every_encoding(
    ann: str, tmp_path: Path, agents: Path, encoding: str, option: tuple[str, ...]
) -> None:
    model = write_script(tmp_path, *(f"Zoë – “{n}” … 日本 🙂 → \x1b[31m\x07" for n in range(9)))
    entries = "/twin 1\n/why\n/undo\nna\xefve\n/help\n/nope\n/save x y\n".encode(encoding, "replace")
    for command in (("chat", ann), ("play", "my_agents:fancy", "--twin", ann), ("watch", ann, "--agent", "my_agents:fancy")):
        runner = CliRunner(charset=encoding)
        result = runner.invoke(main, [*command, "--model", model, *option], input=entries, env={"COLUMNS": "80"})
        assert result.exit_code == 0, repr(result.exception)
        (agents / "x y").unlink()
        text = result.stdout_bytes.decode(encoding)
        assert "\x1b" not in text
        assert "\x07" not in text
        assert option or not [line for line in text.splitlines() if cell_len(line) > 80 and "to go on" not in line]
        assert not option or all(re.match(r"(usertwin|Ann|you|agent|Enter[^:]*): ", line) for line in text.splitlines()), text
