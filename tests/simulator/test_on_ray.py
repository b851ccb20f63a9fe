"""Runs on a Ray cluster: the files of a run in one process, whatever dies or is stopped meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_runner import error_of, run, write_script
from ray_cluster import ray_cluster

from conftest import scripted
from usertwin.memory.event_loop import run_sync
from usertwin.personas import ModelError, TwinError, UsageError, UsertwinError
from usertwin.simulator import Scenario
from usertwin.simulator.runs import on_ray
from usertwin.simulator.runs import ray_cluster as ray_cluster_module
from usertwin.simulator.runs.jobs import Budget, Spending, jobs_of
from usertwin.simulator.runs.local import Twins
from usertwin.simulator.runs.many import RunOptions, arun
from usertwin.simulator.runs.on_ray import RayExecutor, arun_on_ray
from usertwin.simulator.runs.run_folder import read_run
from usertwin.simulator.runs.runner import Progress, Watcher

pytestmark = pytest.mark.slow

SCENARIOS = (
    Scenario(name="weather", twins=("ann",), goal="You want the weather in Oslo.", max_turns=3),
    Scenario(name="rome", twins=("ann",), goal="You want the weather in Rome.", opener="hi there", max_turns=4),
    Scenario(name="angry", twins=("ann",), goal="You want the weather in Lima.", script={1: "break now"}),
)
AGENT = """
import os, pathlib, time

def reply(messages, thread_id):
    pathlib.Path(f"pid-{os.getpid()}").touch()
    time.sleep(0.02)
    if messages[-1]["content"] == "break now":
        raise ValueError("broken")
    return f"For which day? ({len(messages)})"

def slow(messages):
    if pathlib.Path("slowly").exists():
        time.sleep(0.3)
    return f"For which day? ({len(messages)})"

def deadly(messages):
    if messages[-1]["content"] == "hi there":
        time.sleep(0.3)
        os.kill(os.getpid(), 9)
    return f"For which day? ({len(messages)})"

def named(messages):
    return any(message["content"].startswith("For which day? (3)") for message in messages)
"""
RULES = (
    {"when": "(4)", "say": "no thats all thank you"},
    {"when": "(3)", "say": "and in Kyoto, please"},
    {"when": "(2)", "say": "tomorrow, if you can"},
    {"when": "", "say": "what is the weather in Oslo"},
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with ray_cluster() as address:
        yield address


@pytest.fixture
def model(ann: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a scripted model, in a folder with the agent and a twin."""
    (tmp_path / "ray_agent.py").write_text(AGENT, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("USERTWIN_ONLY_SCRIPTED", "1")
    monkeypatch.delitem(sys.modules, "ray_agent", raising=False)
    return write_script(tmp_path, *map(json.dumps, RULES))


def jobs(repeats: int = 4, scenarios: tuple[Scenario, ...] = SCENARIOS) -> Any:
    return jobs_of([(scenario, "ann", number) for scenario in scenarios for number in range(repeats)], 0)


def on_cluster(cluster: str, model: str, work: Any, agent: Any = "ray_agent:reply", **settings: Any) -> Progress:
    arguments = {name: settings.pop(name) for name in ("watcher", "spending", "workers") if name in settings}
    options = RunOptions(**({"concurrency": 4} | settings))
    arguments = {"workers": 2} | arguments
    return run_sync(arun_on_ray(work, agent, Twins(model=model), options, address=cluster, **arguments))


def here(model: str, work: Any, agent: Any = "ray_agent:reply", **settings: Any) -> Progress:
    with Twins(model=model) as twins:
        return run_sync(arun(work, agent, twins, RunOptions(**settings)))


def content(folder: str) -> dict[str, bytes]:
    return {name: Path(folder, name).read_bytes() for name in ("conversations.jsonl", "scenarios.json", "summary.json")}


def pids() -> set[int]:
    return {int(path.name.removeprefix("pid-")) for path in Path().glob("pid-*")}


def test_the_files_equal_those_of_a_run_in_one_process(cluster: str, model: str) -> None:
    assert on_cluster(cluster, model, jobs(), out="ray").done == 12
    assert len(pids() - {os.getpid()}) == 2
    here(model, jobs(), out="here")
    assert content("ray") == content("here")
    run_, local = read_run("ray"), read_run("here")
    assert {**run_.manifest, "started_at": "", "run_id": ""} == {**local.manifest, "started_at": "", "run_id": ""}
    assert {simulation.stop_reason for simulation in run_.simulations} >= {"max_turns", "agent_error"}
    assert all(exchange.twin_seconds > 0 for simulation in run_.simulations for exchange in simulation.exchanges[-1:])


def test_a_worker_that_is_killed_is_replaced_and_each_conversation_is_written_once(cluster: str, model: str) -> None:
    killed = set[int]()

    def kill(job: object, exchange: object, progress: Progress) -> None:
        if progress.turns >= 5 and not killed:
            victim = min(pids())
            killed.add(victim)
            os.kill(victim, signal.SIGKILL)

    assert on_cluster(cluster, model, jobs(), out="ray", watcher=Watcher(on_exchange=kill)).done == 12
    assert killed
    assert len(pids()) == 3  # two workers, and the successor of one
    here(model, jobs(), out="here")
    assert content("ray") == content("here")
    ids = [json.loads(line)["id"] for line in Path("ray/conversations.jsonl").read_text("utf-8").splitlines()]
    assert len(ids) == len(set(ids)) == 12


def test_a_conversation_that_always_ends_its_worker_is_named_and_the_others_are_not_blamed(cluster: str, model: str) -> None:
    work = jobs(3, SCENARIOS[:1]) + jobs(1, SCENARIOS[1:2])
    with pytest.raises(UsertwinError, match=r"rome/ann/0: this conversation ended its worker 3 times, .* \(--agent-process\)"):
        on_cluster(cluster, model, work, "ray_agent:deadly", out="ray", workers=1)
    on_cluster(cluster, model, work, "ray_agent:deadly", out="safe", agent_process=True)
    ended = {simulation.id: simulation for simulation in read_run("safe").simulations}
    assert ended["rome/ann/0"].stop_reason == "agent_error"
    assert "SIGKILL" in (ended["rome/ann/0"].error or "")
    assert {ended[f"weather/ann/{number}"].stop_reason for number in range(3)} == {"max_turns"}


_SCRIPT = """
import sys
from usertwin.evals.cli.main import main
main(["simulate", "ann", "--agent", "ray_agent:slow", "--model", sys.argv[1], "--count", "8", "--max-turns", "3", "--quiet",
      "--out", "ray", *sys.argv[2:]])
"""


def test_a_run_whose_driver_was_killed_is_continued_on_the_cluster_or_here(cluster: str, model: str) -> None:
    Path("drive.py").write_text(_SCRIPT, "utf-8")
    command = [sys.executable, "drive.py", model, "--on", f"ray:{cluster}", "--workers", "2", "--parallel", "4"]
    Path("slowly").touch()
    process = subprocess.Popen(command, start_new_session=True)
    lines = Path("ray/conversations.jsonl")
    deadline = time.monotonic() + 240
    while not (lines.exists() and lines.read_bytes().count(b"\n")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = lines.read_bytes().count(b"\n")
    assert 0 < before < 8
    Path("slowly").unlink()
    assert run("simulate", "ann", "--agent", "ray_agent:slow", "--model", model, "--count", "8", "--max-turns", "3",
               "--quiet", "--out", "ray", "--on", f"ray:{cluster}", "--workers", "1").exit_code == 0  # fmt: skip
    assert run("simulate", "ann", "--agent", "ray_agent:slow", "--model", model, "--count", "8", "--max-turns", "3",
               "--quiet", "--out", "here").exit_code == 0  # fmt: skip
    assert content("ray") == content("here")


LONG = Scenario(name="long", twins=("ann",), goal="You want the weather in Oslo.", max_turns=60)


def test_stopping_ends_the_turns_that_are_going_on_and_the_run_is_continued_here(cluster: str, model: str) -> None:
    spending, work = Spending(), jobs(3, (LONG,))
    watcher = Watcher(on_exchange=lambda job, exchange, progress: spending.stop() if progress.turns == 3 else None)
    Path("slowly").touch()
    progress = on_cluster(cluster, model, work, "ray_agent:slow", out="ray", concurrency=2, spending=spending, watcher=watcher)
    assert progress.done == 0
    rows = [json.loads(line) for line in Path("ray/unfinished.jsonl").read_text("utf-8").splitlines()]
    assert 1 <= len(rows) <= 2
    assert all(len(row["messages"]) == 2 * len(row["exchanges"]) > 0 for row in rows)
    Path("slowly").unlink()
    here(model, work, "ray_agent:slow", out="ray")
    here(model, work, "ray_agent:slow", out="here")
    assert content("ray") == content("here")


def test_a_budget_ends_a_run_on_a_cluster(cluster: str, model: str) -> None:
    Path("slowly").touch()
    progress = on_cluster(cluster, model, jobs(4, (LONG,)), "ray_agent:slow", out="ray", budget=Budget(tokens=500))
    assert progress.done == 0
    assert json.loads(Path("ray/summary.json").read_text("utf-8"))["stopped_by"] == "500 tokens"
    assert progress.spending.dollars == 0


def test_functions_of_a_scenario_are_imported_by_the_workers(cluster: str, model: str) -> None:
    import ray_agent  # pyright: ignore[reportMissingImports]

    ended = list[Any]()
    watcher = Watcher(on_finished=lambda job, simulation, progress: ended.append(simulation))
    known = Scenario(name="known", twins=("ann",), goal_reached=ray_agent.named)
    on_cluster(cluster, model, jobs(1, (known,)), agent=ray_agent.reply, watcher=watcher)
    assert [simulation.stop_reason for simulation in ended] == ["goal_reached"]
    unknown = Scenario(name="unknown", twins=("ann",), goal_reached=lambda messages: True)
    with pytest.raises(UsageError, match='scenario "unknown": goal_reached is imported by each worker, and this one cannot'):
        on_cluster(cluster, model, jobs(1, (unknown,)))


def test_what_a_worker_cannot_do_is_refused_before_the_folder_is_made(
    cluster: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ghost = types.ModuleType("ray_ghost")
    ghost.__dict__["reply"] = lambda messages: "hello"
    monkeypatch.setitem(sys.modules, "ray_ghost", ghost)
    with pytest.raises(UsageError, match='on a worker: "ray_ghost:reply": there is no module "ray_ghost"'):
        on_cluster(cluster, model, jobs(), "ray_ghost:reply", out="ray", workers=1)
    with pytest.raises(ModelError, match=r"on a worker: .*nothing\.txt: the script cannot be read"):
        on_cluster(cluster, "scripted:nothing.txt", jobs(), out="ray", workers=1)
    other = {"usertwin": "9.9"}
    monkeypatch.setattr(on_ray, "own_versions", lambda style: other)
    with pytest.raises(UsageError, match=r"a worker has another version of usertwin \(.*\) than this process \(9.9\)"):
        on_cluster(cluster, model, jobs(), out="ray", workers=1)
    assert not Path("ray").exists()


def test_twins_in_a_folder_that_a_worker_does_not_see_are_reported(cluster: str, model: str) -> None:
    options = RunOptions()
    work = arun_on_ray(jobs(), "demo", Twins("elsewhere", model), options, address=cluster, workers=1)
    with pytest.raises(TwinError, match=r"on a worker: the folder of the twins, .*elsewhere, is not there; share it"):
        run_sync(work)


def test_more_workers_than_processors_are_refused(cluster: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster_module, "_FREED", 0.0)
    with pytest.raises(UsageError, match="the Ray cluster has 2 free processors and 9 workers need one each"):
        run_sync(arun_on_ray(jobs(), "demo", Twins(model=model), RunOptions(), address=cluster, workers=9))


# Refused before Ray starts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        (lambda messages: "hello", 'the agent is imported by each worker, and this one cannot be; name it as "module'),
        ("ray_nowhere:reply", '"ray_nowhere:reply": there is no module "ray_nowhere"'),
        ("openai:x@http://me:secret@host/v1", "openai:x@http://host/v1: a login in a URL is not sent to workers"),
    ],
)
def test_an_agent_that_workers_cannot_have_is_refused(model: str, agent: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        RayExecutor(agent, Twins(model=model), RunOptions())


def test_a_model_that_was_loaded_here_is_refused() -> None:
    with pytest.raises(UsageError, match="workers open twins and models by themselves; give the twins' home and the model's"):
        RayExecutor("demo", Twins(model=scripted("hi")), RunOptions())


@pytest.mark.parametrize("option", ["--record", "--replay"])
def test_a_recording_is_refused(model: str, option: str) -> None:
    if option == "--replay":
        assert run("simulate", "ann", "--agent", "demo", "--model", model, "--record", "calls.sqlite").exit_code == 0
    error = error_of("simulate", "ann", "--agent", "demo", "--model", model, "--on", "ray", option, "calls.sqlite")
    assert error == "a recording is a file of one process; record or replay the run without a cluster"


@pytest.mark.parametrize("workers", [0, -1])
def test_less_than_one_worker_is_refused(model: str, workers: int) -> None:
    with pytest.raises(UsageError, match=rf"the number of workers is {workers}; it must be at least 1"):
        RayExecutor("demo", Twins(model=model), RunOptions(), workers=workers)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://host:10001", '"ray://host:10001" is not the address of a Ray cluster; use HOST:PORT of its head node'),
        ("host", '"host" is not the address of a Ray cluster'),
        ("127.0.0.1:1", 'there is no Ray cluster at "127.0.0.1:1"'),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(model: str, address: str, said: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match=said):
        run_sync(arun_on_ray(jobs(), "demo", Twins(model=model), RunOptions(), address=address))


def test_without_ray_the_command_to_install_it_is_named(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    error = error_of("simulate", "ann", "--agent", "demo", "--model", model, "--on", "ray")
    assert error == "a run on Ray needs the package ray; install it with: pip install 'usertwin[ray]'"


@pytest.mark.parametrize("place", ["spark", "ray:", ""])
def test_another_place_is_refused(ann: str, place: str) -> None:
    assert error_of("simulate", ann, "--agent", "demo", "--on", place) == (
        f'--on: "{place}" is no place to run; use ray, or ray:HOST:PORT'
    )


def test_workers_need_a_cluster(ann: str) -> None:
    assert "--workers is the number of workers on a cluster; give --on" in error_of(
        "simulate", ann, "--agent", "demo", "--workers", "2"
    )


def test_a_limit_for_the_agent_is_divided_among_the_workers() -> None:
    assert on_ray._shares(7, 3) == [3, 2, 2]
    assert on_ray._shares(None, 2) == [None, None]
