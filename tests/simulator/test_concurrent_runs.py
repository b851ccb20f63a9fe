"""Runs of many conversations at once: order, limits, budgets, stopping and kills."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_runner import write_script
from desk_talk import Desk

from conftest import scripted
from usertwin.memory.event_loop import run_sync
from usertwin.memory.models.chat import FREE, Usage
from usertwin.personas import UsageError
from usertwin.simulator import Scenario, SimulatedUser, Simulation, as_agent, simulate_many
from usertwin.simulator.runs.jobs import Budget, Spending, jobs_of
from usertwin.simulator.runs.local import Twins
from usertwin.simulator.runs.many import RunOptions, arun
from usertwin.simulator.runs.run_folder import read_run
from usertwin.simulator.runs.runner import Progress, Watcher

TEN = Scenario(name="ten", twins=("ann",), goal="You want the weather in Oslo.", max_turns=3, repeats=10)
TURN = "what is the weather in Oslo"


@pytest.fixture
def user(ann: str) -> Iterator[SimulatedUser]:
    with SimulatedUser.load(ann, model=replace(scripted(TURN), price=FREE)) as user:
        yield user


def jobs(count: int = 10) -> Any:
    return jobs_of([(TEN, "ann", number) for number in range(count)], 0)


def run_all(user: SimulatedUser, agent: Any, *, count: int = 10, watcher: Watcher | None = None, **options: Any) -> Progress:
    spending = options.pop("spending", None)
    twins = Twins(model=user.model, opened={"ann": user})
    call = as_agent(agent).in_own_loop()
    work = arun(jobs(count), call, twins, RunOptions(**options), watcher=watcher, spending=spending)
    return run_sync(work)


class Waiting:
    """An agent whose replies come in a random order, and that counts how many conversations use it at a time."""

    def __init__(self, seconds: float = 0.01) -> None:
        self.seconds, self.now, self.most, self.calls = seconds, 0, 0, 0

    async def __call__(self, messages: list[dict[str, Any]], thread_id: str) -> str:
        self.now, self.calls = self.now + 1, self.calls + 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(self.seconds * (hash(thread_id) % 7 + 1) / 7)
        self.now -= 1
        return f"For which day? ({len(messages)})"


def content(folder: Path) -> dict[str, bytes]:
    names = ("conversations.jsonl", "scenarios.json", "summary.json")
    return {name: (folder / name).read_bytes() for name in names}


def test_the_order_in_which_conversations_end_does_not_change_the_files(user: SimulatedUser, tmp_path: Path) -> None:
    agent = Waiting()
    run_all(user, agent, out=tmp_path / "many", concurrency=6)
    assert agent.most > 1
    run_all(user, Waiting(0), out=tmp_path / "one", concurrency=1)
    assert content(tmp_path / "many") == content(tmp_path / "one")
    ids = [simulation.id for simulation in read_run(tmp_path / "many").simulations]
    assert ids == [f"ten/ann/{number}" for number in range(10)]


def test_only_some_conversations_use_the_agent_at_a_time_and_waiting_is_not_its_fault(user: SimulatedUser) -> None:
    agent, ended = Waiting(0.2), list[Simulation]()
    watcher = Watcher(on_finished=lambda job, simulation, progress: ended.append(simulation))
    run_all(user, agent, count=6, concurrency=6, agent_concurrency=1, agent_timeout=0.4, watcher=watcher)
    assert agent.most == 1
    assert {simulation.stop_reason for simulation in ended} == {"max_turns"}  # the last one waits for over a second


def test_each_conversation_has_a_thread_id_of_its_own_and_another_one_when_it_runs_again(
    user: SimulatedUser, tmp_path: Path
) -> None:
    seen = list[str]()

    def agent(messages: list[dict[str, Any]], thread_id: str) -> str:
        seen.append(thread_id)
        return "For which day?"

    def interrupt(job: object, exchange: object, progress: Progress) -> None:
        if progress.turns == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(user, agent, out=tmp_path / "run", count=3, watcher=Watcher(interrupt))
    [unfinished] = (tmp_path / "run" / "unfinished.jsonl").read_text("utf-8").splitlines()
    run_all(user, agent, out=tmp_path / "run", count=3)
    threads = list(dict.fromkeys(seen))
    assert len(threads) == 4  # an agent that keeps conversations by their ids does not know the one that was stopped
    assert [simulation.thread_id for simulation in read_run(tmp_path / "run").simulations] == [threads[0], *threads[2:]]
    assert json.loads(unfinished)["id"] == "ten/ann/1"
    assert not (tmp_path / "run" / "unfinished.jsonl").exists()


@pytest.mark.parametrize(
    ("budget", "said"),
    [(Budget(tokens=200), "200 tokens"), (Budget(dollars=1e-4), "0.0001 dollars"), (Budget(seconds=1e-6), "1e-06 seconds")],
)
def test_a_budget_ends_a_run_between_two_turns_and_a_larger_one_continues_it(
    user: SimulatedUser, tmp_path: Path, budget: Budget, said: str
) -> None:
    spending = _Counted(budget)
    progress = run_all(user, Desk(), out=tmp_path / "run", budget=budget, spending=spending)
    assert progress.done < 10
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert (summary["finished"], summary["stopped_by"]) == (False, said)
    assert run_all(user, Desk(), out=tmp_path / "run").done == 10
    run_all(user, Desk(), out=tmp_path / "whole")
    costs = {"summary.json": b""}  # that of the first start is in it
    assert content(tmp_path / "run") | costs == content(tmp_path / "whole") | costs


def test_a_budget_of_dollars_needs_a_price(ann: str, tmp_path: Path) -> None:
    with SimulatedUser.load(ann, model=scripted(TURN)) as user:
        with pytest.raises(UsageError, match=r"a budget of dollars needs the price of scripted:test; give it with --price"):
            run_all(user, Desk(), out=tmp_path / "run", budget=Budget(dollars=5))
        assert not (tmp_path / "run").exists()


def test_the_cost_of_a_run_is_that_of_all_its_starts(user: SimulatedUser, tmp_path: Path) -> None:
    def summary() -> dict[str, Any]:
        return json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))

    first = _Counted(Budget(tokens=100))
    run_all(user, Desk(), out=tmp_path / "run", spending=first)
    assert summary()["dollars"] == pytest.approx(first.dollars)
    second = _Counted()
    run_all(user, Desk(), out=tmp_path / "run", spending=second)
    assert summary()["dollars"] == pytest.approx(first.dollars + second.dollars)  # pyright: ignore[reportOperatorIssue]


class _Counted(Spending):
    """Spending of a model that counts ten tokens and costs a dollar for a hundred thousand of them."""

    def add(self, usage: Usage, dollars: float | None) -> None:
        super().add(Usage(8, 0, 2), 1e-5)


@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "5"])
def test_a_budget_that_is_no_number_above_0_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"budget: tokens is .*; it must be a number above 0"):
        Budget(tokens=value)


def test_stopping_keeps_what_was_said_and_the_same_call_continues(user: SimulatedUser, tmp_path: Path) -> None:
    spending = Spending()
    watcher = Watcher(on_exchange=lambda job, exchange, progress: spending.stop() if progress.turns == 8 else None)
    progress = run_all(user, Desk(), out=tmp_path / "run", concurrency=2, spending=spending, watcher=watcher)
    rows = [json.loads(line) for line in (tmp_path / "run" / "unfinished.jsonl").read_text("utf-8").splitlines()]
    assert rows
    assert all(row["messages"] for row in rows)
    assert progress.done + len(rows) <= 10
    assert run_all(user, Desk(), out=tmp_path / "run", concurrency=2).done == 10


def test_a_failure_of_ours_ends_the_run_with_its_error(user: SimulatedUser, tmp_path: Path) -> None:
    def fail(job: object, simulation: Simulation, progress: object) -> None:
        raise UsageError("the disk is full")

    with pytest.raises(UsageError, match="the disk is full"):
        run_all(user, Waiting(), out=tmp_path / "run", concurrency=4, watcher=Watcher(on_finished=fail))
    assert run_all(user, Waiting(), out=tmp_path / "run", concurrency=4).done == 10


def test_processes_of_an_agent_are_one_for_each_conversation_at_a_time(
    user: SimulatedUser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pid_agent.py").write_text(
        "import os, time\ndef reply(messages):\n    time.sleep(0.05)\n    return str(os.getpid())\n", "utf-8"
    )
    monkeypatch.chdir(tmp_path)
    ended = list[Simulation]()
    twins = Twins(model=user.model, opened={"ann": user})
    options = RunOptions(agent_process=True, concurrency=2)
    watcher = Watcher(on_finished=lambda job, simulation, progress: ended.append(simulation))
    run_sync(arun(jobs(4), "pid_agent:reply", twins, options, watcher=watcher))
    pids = [{m["content"] for m in simulation.messages if m["role"] == "assistant"} for simulation in ended]
    assert all(len(replies) == 1 for replies in pids)
    assert len(set.union(*pids)) == 2


def test_in_async_code_a_run_uses_the_loop_of_the_caller(user: SimulatedUser) -> None:
    loops = set[int]()

    async def agent(messages: list[dict[str, Any]]) -> str:
        loops.add(id(asyncio.get_running_loop()))
        return "For which day?"

    async def main() -> int:
        twins = Twins(model=user.model, opened={"ann": user})
        await arun(jobs(3), agent, twins, RunOptions(concurrency=3))
        return id(asyncio.get_running_loop())

    assert loops == {asyncio.run(main())} or not loops


def test_simulate_many_runs_several_at_a_time(user: SimulatedUser) -> None:
    agent = Waiting()
    simulations = simulate_many(user, agent, count=5, max_turns=2, concurrency=5)
    assert agent.most > 1
    assert [simulation.repeat for simulation in simulations] == [0, 1, 2, 3, 4]


_SCRIPT = """
import sys, time
from usertwin.simulator import SimulatedUser, simulate_many
from usertwin.simulator.backends.load import load_model

def agent(messages, thread_id):
    time.sleep(0.01)
    return f"For which day? ({len(messages)})"

with SimulatedUser.load("ann", model=load_model(sys.argv[2])) as user:
    print("ready", flush=True)
    simulate_many(user, agent, count=12, max_turns=3, concurrency=4, out=sys.argv[1], spec="agent")
"""


def test_a_killed_run_is_continued_to_the_files_of_an_undisturbed_one(ann: str, tmp_path: Path) -> None:
    script = write_script(tmp_path, json.dumps({"when": "", "say": TURN}))
    (tmp_path / "talk.py").write_text(_SCRIPT, "utf-8")

    def start(folder: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "talk.py"), str(tmp_path / folder), script]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))

    whole = start("whole")
    assert whole.wait(120) == 0
    for lines in (1, 5, 9):
        process = start("run")
        path = tmp_path / "run" / "conversations.jsonl"
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and path.read_bytes().count(b"\n") >= lines:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.wait(60)
    if json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))["finished"] is not True:
        assert start("run").wait(120) == 0
    assert content(tmp_path / "run") == content(tmp_path / "whole")


def test_a_run_in_a_thread_of_its_own_works(user: SimulatedUser) -> None:
    counts = list[int]()
    thread = threading.Thread(target=lambda: counts.append(run_all(user, Waiting(), count=3, concurrency=3).done))
    thread.start()
    thread.join(60)
    assert counts == [3]
