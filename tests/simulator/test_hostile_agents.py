"""Whatever an agent does, its conversation is recorded with the right reason and side, and the next one begins."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cli_runner import WEATHER, error_of, run, write_script
from desk_talk import Desk, scripted_twin

from conftest import scripted
from usertwin.evals.benchmarks.hostile_agents import processes
from usertwin.evals.benchmarks.hostile_agents.hostile import Hostile, good
from usertwin.evals.benchmarks.hostile_agents.run import AGENTS, mistakes
from usertwin.personas import UsageError
from usertwin.simulator import SimulatedUser, Simulation, asimulate, simulate, simulate_many
from usertwin.simulator.agents import AgentProcess
from usertwin.simulator.agents import turn as agent_turn

#: Agents in processes of their own that are tried here; each takes seconds, and the benchmark tries all.
_PROCESSES = ("segfault", "raise_here")
_MODULE = processes.__name__


@pytest.fixture(scope="module")
def shared_user(_learned_ann: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedUser]:
    home = tmp_path_factory.mktemp("hostile")
    shutil.copytree(_learned_ann, home, dirs_exist_ok=True)
    turns = [f"{word} {city} please" for word in ("the weather in", "a trip to") for city in ("Oslo", "Rome", "Lima")]
    with SimulatedUser.load("ann", home=home, model=scripted(*turns)) as user:
        user.last_turn = user.abandonment = None
        yield user


@pytest.fixture
def user(ann: str) -> Iterator[SimulatedUser]:
    with scripted_twin(ann) as user:
        yield user


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::pytest.PytestUnhandledThreadExceptionWarning",
    "ignore::DeprecationWarning", "ignore::RuntimeWarning",
)  # fmt: skip
@pytest.mark.parametrize(
    "hostile", [a for a in AGENTS if not a.own_process or a.agent.__name__ in _PROCESSES], ids=lambda agent: agent.name
)
def test_a_hostile_agent_is_recorded_and_the_run_goes_on(shared_user: SimulatedUser, hostile: Hostile) -> None:
    assert mistakes(shared_user, hostile) == []


def test_there_are_at_least_sixty_hostile_agents() -> None:
    assert len({agent.name for agent in AGENTS}) == len(AGENTS) >= 60


def test_mistakes_are_noticed(shared_user: SimulatedUser) -> None:
    """The tests above are only as good as this function."""
    [first, second] = mistakes(shared_user, Hostile("polite", good, "agent_error"))
    assert "max_turns" in first
    assert first == second
    assert mistakes(shared_user, Hostile("polite", good, "max_turns")) == []
    assert "ended with UsageError" in mistakes(shared_user, Hostile("no agent", 7, "agent_error"))[0]


# The loop of agents -----------------------------------------------------------------------------------------------------


class Loops:
    """An async agent that records its event loops and threads."""

    def __init__(self) -> None:
        self.loops, self.threads = list[asyncio.AbstractEventLoop](), set[threading.Thread]()

    async def __call__(self, messages: list[dict[str, Any]]) -> str:
        self.loops.append(asyncio.get_running_loop())
        self.threads.add(threading.current_thread())
        return "For which day?"


def test_an_agent_has_one_loop_for_the_life_of_the_process(user: SimulatedUser) -> None:
    agent, other = Loops(), Loops()
    for _ in range(2):
        simulate(user, agent, max_turns=2)
        simulate(user, other, max_turns=1)
    assert len({*agent.loops, *other.loops}) == 1
    assert threading.main_thread() not in agent.threads


def test_a_late_agent_that_does_not_block_keeps_its_loop(user: SimulatedUser) -> None:
    agent = Loops()

    async def late(messages: list[dict[str, Any]]) -> str:
        await asyncio.sleep(60)
        return "late"

    simulate(user, agent, max_turns=1)
    assert simulate(user, late, agent_timeout=0.05).stop_reason == "agent_timeout"
    simulate(user, agent, max_turns=1)
    assert len(set(agent.loops)) == 1


def test_an_agent_that_blocks_its_loop_loses_it(user: SimulatedUser) -> None:
    agent, released = Loops(), threading.Event()

    async def blocking(messages: list[dict[str, Any]]) -> str:
        released.wait(60)
        return "late"

    simulate(user, agent, max_turns=1)
    try:
        assert simulate(user, blocking, agent_timeout=0.05).stop_reason == "agent_timeout"
        simulate(user, agent, max_turns=1)
    finally:
        released.set()
    assert len(set(agent.loops)) == 2


def test_in_async_code_an_agent_runs_in_the_callers_loop(user: SimulatedUser) -> None:
    agent = Loops()

    async def both() -> bool:
        await asimulate(user, agent, max_turns=2)
        return set(agent.loops) == {asyncio.get_running_loop()}

    assert asyncio.run(both())


def test_a_background_task_of_an_agent_goes_on_between_conversations(user: SimulatedUser) -> None:
    tasks = list[asyncio.Task[None]]()
    finished = threading.Event()

    async def agent(messages: list[dict[str, Any]]) -> str:
        async def work() -> None:
            await asyncio.sleep(0.05)
            finished.set()

        tasks.append(asyncio.create_task(work()))
        return "For which day?"

    simulate(user, agent, max_turns=1)
    assert finished.wait(60)


def test_a_cancelled_caller_cancels_the_agent(user: SimulatedUser) -> None:
    cancelled = threading.Event()

    async def agent(messages: list[dict[str, Any]]) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "late"

    async def stop() -> None:
        await asyncio.wait_for(asimulate(user, agent), 0.3)

    with pytest.raises(TimeoutError):
        asyncio.run(stop())
    assert cancelled.is_set()


def test_conversations_beside_an_agent_that_cancels_all_tasks_are_recorded(user: SimulatedUser) -> None:
    async def cancel_all(messages: list[dict[str, Any]]) -> str:
        for task in asyncio.all_tasks():
            task.cancel()
        await asyncio.sleep(0)
        return "not reached"

    async def two() -> list[Simulation]:
        return [await asimulate(user, cancel_all, max_turns=1), await asimulate(user, Desk(), max_turns=1)]

    assert [simulation.stop_reason for simulation in asyncio.run(two())] == ["agent_error", "max_turns"]


def test_an_agent_may_itself_wait_for_a_conversation_with_an_agent(user: SimulatedUser) -> None:
    async def inner(messages: list[dict[str, Any]]) -> str:
        await asyncio.sleep(0)
        return "For which day?"

    async def outer(messages: list[dict[str, Any]]) -> str:
        return simulate(user, inner, max_turns=1).stop_reason  # blocks the loop of agents

    assert [m["content"] for m in simulate(user, outer, max_turns=1).messages if m["role"] == "assistant"] == ["max_turns"]


@pytest.mark.parametrize("door", ["simulate", "respond", "asimulate"])
def test_an_async_agent_may_wait_for_a_thread_of_its_own_that_talks_to_a_twin(user: SimulatedUser, door: str) -> None:
    """A new thread inherits no context, so it cannot know that the loop of agents waits for it."""

    async def inner(messages: list[dict[str, Any]]) -> str:
        await asyncio.sleep(0)
        return "For which day?"

    doors: dict[str, Callable[[], Any]] = {
        "simulate": lambda: simulate(user, inner, max_turns=2, agent_timeout=10).stop_reason,
        "respond": lambda: user.respond([]).action and "max_turns",
        "asimulate": lambda: asyncio.run(asimulate(user, inner, max_turns=2, agent_timeout=10)).stop_reason,
    }

    async def outer(messages: list[dict[str, Any]]) -> str:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(doors[door]).result()

    assert [m["content"] for m in simulate(user, outer, max_turns=1).messages if m["role"] == "assistant"] == ["max_turns"]


# The user's own Ctrl-C --------------------------------------------------------------------------------------------------


def interrupted(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python program, and press Ctrl-C when it has created the file "waiting"."""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    while not (folder / "waiting").exists() and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(program, process.returncode, out, err)


_PROGRAM = """
import asyncio, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from desk_talk import scripted_twin
from usertwin.simulator import asimulate, simulate, simulate_many
async def agent(messages):
    Path("waiting").touch()
    {wait}
    return "late"
with scripted_twin("ann") as user:
    try:
        {call}
    except KeyboardInterrupt:
        print("stopped")
"""


@pytest.mark.parametrize(
    ("wait", "call"),
    [
        ("await asyncio.sleep(60)", "simulate_many(user, agent, count=3, out='run')"),
        ("time.sleep(60)", "simulate_many(user, agent, count=3, out='run')"),
        ("await asyncio.sleep(60)", "asyncio.run(asimulate(user, agent))"),
    ],
)
def test_ctrl_c_stops_the_run(ann: str, tmp_path: Path, wait: str, call: str) -> None:
    tests = str(Path(__file__).resolve().parents[1])
    result = interrupted(_PROGRAM.format(tests=tests, wait=wait, call=call), tmp_path)
    assert (result.stdout, result.returncode) == ("stopped\n", 0), result.stderr
    if "run" in call and "many" in call:
        assert json.loads((tmp_path / "run" / "summary.json").read_text("utf-8")) == {"finished": False, "stop_reasons": {}}


# Limits -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        *(("agent_timeout", value, "above 0") for value in (0, -1, float("nan"), float("-inf"), "5", None, True)),
        *(("max_turns", value, "max_turns is") for value in (0, -1, 2.5, float("nan"), float("inf"), "3", None, True)),
        *(("count", value, "count is") for value in (0, -1, 2.5, float("nan"), "3", None, True)),
    ],
)
def test_a_limit_that_is_no_limit_is_refused_before_anything_starts(
    user: SimulatedUser, tmp_path: Path, option: str, value: Any, complaint: str
) -> None:
    agent, limit = Desk(), {option: value}
    with pytest.raises(UsageError, match=complaint):
        simulate_many(user, agent, out=tmp_path / "run", **limit)
    if option != "count":
        with pytest.raises(UsageError, match=complaint):
            simulate(user, agent, **limit)
        with pytest.raises(UsageError, match=complaint):
            asyncio.run(asimulate(user, agent, **limit))
    assert agent.calls == []
    assert not (tmp_path / "run").exists()


def test_an_infinite_timeout_is_no_limit(user: SimulatedUser, tmp_path: Path) -> None:
    [simulation] = simulate_many(user, Desk(), max_turns=1, agent_timeout=float("inf"), out=tmp_path / "run")
    assert simulation.stop_reason == "max_turns"
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    assert manifest["limits"]["agent_timeout"] is None


@pytest.mark.parametrize("options", [("--agent-timeout", "nan"), ("--agent-timeout", "-1"), ("--count", "-1")])
def test_the_command_line_refuses_such_limits(ann: str, tmp_path: Path, options: tuple[str, str]) -> None:
    script = write_script(tmp_path, *WEATHER)
    out = tmp_path / "run"
    assert "it must be" in error_of("simulate", ann, "--agent", "demo", "--model", script, "--out", out, *options)
    assert not out.exists()


# A process of its own ---------------------------------------------------------------------------------------------------


def test_a_run_goes_on_after_its_agent_ended_its_process(ann: str, tmp_path: Path) -> None:
    script, out = write_script(tmp_path, *WEATHER), tmp_path / "run"
    command = ("simulate", ann, "--model", script, "--count", "2", "--max-turns", "1", "--agent-process", "--out", out)
    result = run(*command, "--agent", f"{_MODULE}:end")
    assert result.exit_code == 1, result.output
    lines = [json.loads(line) for line in (out / "conversations.jsonl").read_text("utf-8").splitlines()]
    assert [line["stop_reason"] for line in lines] == ["agent_error"] * 2
    assert lines[0]["error"] == "the agent's process ended with exit code 0 before it replied"
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert summary == {"finished": True, "stop_reasons": {"agent_error": 2}}


def test_an_agent_in_its_own_process_keeps_its_state_and_hears_the_conversation(user: SimulatedUser) -> None:
    agent = f"{_MODULE}:remember"
    first, second = simulate_many(user, agent, count=2, max_turns=2, agent_process=True)
    replies = [[m["content"] for m in simulation.messages if m["role"] == "assistant"] for simulation in (first, second)]
    assert replies == [["call 1, 1 messages", "call 2, 3 messages"], ["call 3, 1 messages", "call 4, 3 messages"]]


@pytest.mark.parametrize(
    ("agent", "complaint"),
    [
        (lambda messages: "hi", "imported there"),
        (functools.partial(print), "imported there"),
        ("no_such_module_here:agent", 'no module "no_such_module_here"'),
    ],
)
def test_an_agent_that_another_process_cannot_import_is_refused(
    user: SimulatedUser, tmp_path: Path, agent: Any, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        simulate_many(user, agent, agent_process=True, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_process_that_cannot_start_again_is_an_error_of_the_agent(
    user: SimulatedUser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "fragile_agent.py"
    module.write_text("import os\ndef agent(messages):\n    os.remove(__file__)\n    os._exit(4)\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    first, second = simulate_many(user, "fragile_agent:agent", count=2, agent_process=True)
    assert "ended with exit code 4" in str(first.error)
    assert second.stop_reason == "agent_error"
    assert 'no module "fragile_agent"' in str(second.error)


def test_closing_an_agent_ends_its_process() -> None:
    process = AgentProcess(good)
    asyncio.run(process.begin())
    running = process._process
    assert running is not None
    assert running.poll() is None
    process.close()
    assert running.poll() is not None


# Without a process of its own -------------------------------------------------------------------------------------------


def usertwin(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `usertwin` as a program."""
    command = [sys.executable, "-m", "usertwin.evals", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)


def test_finished_conversations_are_kept_if_the_agent_ends_the_program(ann: str, tmp_path: Path) -> None:
    (tmp_path / "leaving_agent.py").write_text(
        "import os\nheard = []\ndef agent(messages):\n    heard.append(1)\n"
        "    return 'Which one?' if len(heard) < 2 else os._exit(0)\n",
        "utf-8",
    )
    script = write_script(tmp_path, *WEATHER)
    usertwin(tmp_path, "simulate", ann, "--agent", "leaving_agent:agent", "--model", script, "--count", "3", "--max-turns", "1",
             "--out", "run")  # fmt: skip
    assert len((tmp_path / "run" / "conversations.jsonl").read_text("utf-8").splitlines()) == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert summary == {"finished": False, "stop_reasons": {"max_turns": 1}}


def test_threads_that_an_agent_left_behind_do_not_keep_the_program_alive(ann: str, tmp_path: Path) -> None:
    (tmp_path / "threaded_agent.py").write_text(
        "import threading, time\ndef agent(messages):\n"
        "    threading.Thread(target=time.sleep, args=[600], daemon=False).start()\n    return None\n",
        "utf-8",
    )
    script = write_script(tmp_path, *WEATHER)
    result = usertwin(tmp_path, "simulate", ann, "--agent", "threaded_agent:agent", "--model", script)
    assert result.returncode == 1, result.stderr
    assert "agent_error: the agent returned None" in result.stdout


def test_an_agent_that_breaks_standard_output_changes_neither_the_report_nor_the_exit_code(ann: str, tmp_path: Path) -> None:
    (tmp_path / "closing_agent.py").write_text(
        "import sys\ndef agent(messages):\n    if sys.stdout:\n        sys.stdout.close()\n"
        "    sys.stdout = sys.stderr = object()\n    return 'Which one?'\n", "utf-8"
    )  # fmt: skip
    script = write_script(tmp_path, *WEATHER)
    command = ("simulate", ann, "--agent", "closing_agent:agent", "--model", script, "--count", "2", "--max-turns", "1")
    result = usertwin(tmp_path, *command)
    assert "conversation 1: 1 turns, max_turns" in result.stdout
    assert "conversation 2: 1 turns, agent_error: the agent raised AttributeError" in result.stdout  # object() has no close
    assert (result.returncode, result.stderr) == (1, "")


def test_an_agent_that_changes_the_folder_does_not_move_the_run(
    user: SimulatedUser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def agent(messages: list[dict[str, Any]]) -> str:
        os.chdir(tmp_path / "elsewhere")
        return "For which day?"

    simulate_many(user, agent, count=2, max_turns=1, out="run")
    assert len((tmp_path / "run" / "conversations.jsonl").read_text("utf-8").splitlines()) == 2


def test_errors_are_one_short_printable_sentence() -> None:
    group = ExceptionGroup("two", [ValueError("a"), KeyError("b")])
    assert agent_turn.failure_text(group) == (
        "the agent raised ExceptionGroup: two (2 sub-exceptions): ValueError: a; KeyError: 'b'"
    )
    assert agent_turn.failure_text(ValueError("two\n  lines")) == "the agent raised ValueError: two lines"
    assert len(agent_turn.failure_text(ExceptionGroup("x" * 10_000, [ValueError("x" * 10_000)] * 9))) < 2_200
    text = agent_turn.failure_text(ValueError("\x1b[2J \ud83d " + "x" * 10_000))
    assert len(text) < 2_200
    assert "\x1b" not in text
    assert text.encode("utf-8")
