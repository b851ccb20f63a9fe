"""Programs as agents: lines of JSON on standard input and output, one process for a conversation, and how they end."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_runner import WEATHER, run, write_script
from desk_talk import scripted_twin

from usertwin.personas import AgentError, UsageError
from usertwin.simulator import as_agent, command_agent, simulate, simulate_many

TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "a bell"}]
#: The start of a program in Python that answers each line.
LOOP = "import json, os, sys, time\ncalls = 0\nfor line in sys.stdin:\n    calls += 1\n    asked = json.loads(line)\n    "


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], list[str]]:
    """Return a function that makes a program whose loop runs these statements for each line."""

    def make(statement: str) -> list[str]:
        path = tmp_path / f"agent_{len(list(tmp_path.iterdir()))}.py"
        path.write_text(LOOP + statement.replace("\n", "\n    ") + "\n", "utf-8")
        return [sys.executable, "-u", str(path)]

    return make


Program = Callable[[str], list[str]]


def ask(agent: Any, thread_id: str = "t", messages: list[dict[str, Any]] = TALK) -> list[str]:
    replies = asyncio.run(as_agent(agent)(messages, thread_id))  # pyright: ignore[reportArgumentType]
    return [reply["content"] for reply in replies]


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_program_gets_a_line_of_json_and_answers_with_a_line(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    agent = command_agent(program("open('asked.json', 'w').write(line)\nprint('Which one?')"))
    assert ask(agent) == ["Which one?"]
    asked = json.loads((tmp_path / "asked.json").read_text("utf-8"))
    assert asked == {"thread_id": "t", "messages": TALK, "message": "a bell"}
    agent.close()


@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ('"Which one?"', ["Which one?"]),
        ('{"content": "Which\\none?"}', ["Which\none?"]),
        ('{"messages": [{"role": "assistant", "content": "Well."}, "Which one?"], "cart": [1]}', ["Well.", "Which one?"]),
        ("42", ["42"]),
        ("{no json", ["{no json"]),
        ("Größe?", ["Größe?"]),
    ],
)
def test_a_line_is_json_or_text(program: Program, line: str, replies: list[str]) -> None:
    agent = command_agent(program(f"sys.stdout.buffer.write({line.encode()!r} + b'\\n')\nsys.stdout.flush()"))
    assert ask(agent) == replies
    assert agent.state_of("t") == ({"cart": [1]} if "cart" in line else None)
    agent.close()


def test_a_process_serves_a_conversation_and_then_the_next_one(program: Program) -> None:
    agent = command_agent(program("print(f'{os.getpid()} {calls}')"))
    first, second = ask(agent, "one")[0].split(), ask(agent, "two")[0].split()
    assert ask(agent, "one")[0].split() == [first[0], "2"]
    assert second[1] == "1"
    assert first[0] != second[0]
    agent.state_of("one")  # the conversation is over
    assert ask(agent, "three")[0].split() == [first[0], "3"]
    agent.close()
    assert not is_running(int(first[0]))
    assert not is_running(int(second[0]))


def test_conversations_at_once_have_processes_of_their_own(program: Program) -> None:
    agent = command_agent(program("time.sleep(0.05)\nprint(f'{os.getpid()} {asked[\"thread_id\"]}')"))

    async def all_at_once() -> list[str]:
        replies = await asyncio.gather(*(agent(TALK, f"t-{i}") for i in range(4)))
        return [reply[0]["content"] for reply in replies]

    answers = [answer.split() for answer in asyncio.run(all_at_once())]
    assert [answer[1] for answer in answers] == ["t-0", "t-1", "t-2", "t-3"]
    assert len({answer[0] for answer in answers}) == 4
    agent.close()


def test_a_program_that_is_no_longer_used_ends(program: Program) -> None:
    agent = command_agent(program("print(os.getpid())"))
    process = int(ask(agent)[0])
    assert is_running(process)
    del agent
    gc.collect()
    assert not is_running(process)


def test_a_crash_is_an_error_with_the_last_lines_of_standard_error(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_API_KEY", "canary-of-the-program")
    statement = "print('looking', os.environ['SHOP_API_KEY'], file=sys.stderr)\nraise KeyError('no \\x1b bell')"
    agent = command_agent(program(statement))
    complaint = r"the agent's program ended with exit code 1 before it replied: looking \*\*\*.*KeyError"
    for _ in range(2):  # the next turn gets a new process
        with pytest.raises(AgentError, match=complaint) as caught:
            ask(agent)
        assert "canary" not in str(caught.value)
        assert "\x1b" not in str(caught.value)
    agent = command_agent(program("os.kill(os.getpid(), 9)"))
    with pytest.raises(AgentError, match="the agent's program was killed by SIGKILL before it replied"):
        ask(agent)
    agent = command_agent(program("sys.exit()"))
    with pytest.raises(AgentError, match="the agent's program ended with exit code 0 before it replied"):
        ask(agent)


def test_an_empty_line_is_an_empty_reply(program: Program) -> None:
    agent = command_agent(program("print()"))
    with pytest.raises(AgentError, match="an empty reply"):
        ask(agent)
    agent.close()


def test_a_program_that_hangs_is_late_and_is_killed_with_what_it_started(ann: str, program: Program, tmp_path: Path) -> None:
    note = tmp_path / "processes"
    agent = command_agent(
        program(
            "import subprocess\nchild = subprocess.Popen(['sleep', '600'])\n"
            f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\ntime.sleep(600)"
        )
    )
    with scripted_twin(ann) as user:
        simulation = simulate(user, agent, max_turns=1, agent_timeout=3)
    assert simulation.stop_reason == "agent_timeout"
    parent, child = map(int, note.read_text().split())
    assert not is_running(parent)
    deadline = time.monotonic() + 30
    while is_running(child) and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child) or Path(f"/proc/{child}/stat").read_text().split()[2] == "Z"


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("", "names no program; write command:PROGRAM ARGUMENTS"),
        ("no-such-program-here --x", 'there is no program "no-such-program-here"; name one on the PATH'),
        ("python 'agent.py", "No closing quotation; close the quotation"),
    ],
)
def test_a_command_that_cannot_run_is_refused(command: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        as_agent(f"command:{command}")


def test_a_program_talks_with_a_twin_in_python_and_on_the_command_line(ann: str, program: Program, tmp_path: Path) -> None:
    words = program("print('Which one? ' + str(calls))")
    spec = f"command:{' '.join(words)}"
    with scripted_twin(ann) as user:
        [first, second] = simulate_many(user, spec, count=2, max_turns=2, out=tmp_path / "run")
    assert {first.stop_reason, second.stop_reason} == {"max_turns"}
    assert [m["content"] for m in first.messages if m["role"] == "assistant"] == ["Which one? 1", "Which one? 2"]
    script = write_script(tmp_path, *WEATHER)
    result = run("simulate", ann, "--agent", spec, "--model", script, "--max-turns", "1")
    assert result.exit_code == 0, result.output
    assert "Which one? 1" in result.output
