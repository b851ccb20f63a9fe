"""Runs of many conversations: their folder, continuation, concurrency, budgets, and no secrets."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from desk_talk import Desk, scripted_twin
from hypothesis import given, settings
from hypothesis import strategies as st

from usertwin.memory.run_lock import exclusive_run
from usertwin.personas import UsageError
from usertwin.simulator import Exchange, SimulatedUser, Simulation, simulate_many
from usertwin.simulator.runs.run_folder import RunFolder, read_run


@pytest.fixture
def user(ann: str) -> Iterator[SimulatedUser]:
    with scripted_twin(ann) as user:
        yield user


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "conversations.jsonl").read_text("utf-8").splitlines()]


def test_a_run_is_written_conversation_by_conversation(user: SimulatedUser, tmp_path: Path) -> None:
    out, on_disk = tmp_path / "deep" / "run", list[int]()

    def agent(thread_id: str) -> str:
        path = out / "conversations.jsonl"
        on_disk.append(len(path.read_text("utf-8").splitlines()) if path.exists() else 0)
        return "Für welchen Tag?"

    simulations = simulate_many(user, agent, count=3, max_turns=1, out=out, goal="You want the weather.")
    assert on_disk == [0, 1, 2]  # each is written before the next one begins
    assert [simulation.to_json() for simulation in simulations] == [s.to_json() for s in read_run(out).simulations]
    first = lines(out)[0]
    assert first["messages"][1]["content"] == "Für welchen Tag?"
    assert first["exchanges"][0]["answer"]["recalled"][0]["position"] <= 1  # an opening recalls openings
    assert json.loads((out / "summary.json").read_text("utf-8")) == {"finished": True, "stop_reasons": {"max_turns": 3}}


def test_each_conversation_has_the_next_seed(user: SimulatedUser) -> None:
    simulations = simulate_many(user, Desk(), count=3, max_turns=1, seed=5)
    assert [simulation.seed for simulation in simulations] == [5, 6, 7]


def test_on_exchange_gets_the_number_of_the_conversation(user: SimulatedUser) -> None:
    seen: list[int] = []
    simulate_many(user, Desk(), count=2, max_turns=2, on_exchange=lambda number, _: seen.append(number))
    assert seen == [1, 1, 2, 2]


def test_the_manifest_holds_everything_to_repeat_the_run(user: SimulatedUser, tmp_path: Path) -> None:
    simulate_many(
        user, Desk(), count=2, max_turns=1, out=tmp_path / "run", spec="my_agent:desk", seed=3, goal="You want the weather."
    )
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    assert manifest["kind"] == "simulate"
    assert manifest["models"] == {"action": "scripted:test", "style": "transcript"}
    ann = manifest["twins"]["ann"]
    assert (ann["speaker"], ann["k"], ann["embedder"], ann["scorer"]) == ("Ann", user.k, "fake:256", "fake:")
    assert {"langgraph"} <= ann["versions"].keys()
    assert manifest["agent"] == "my_agent:desk"
    assert manifest["limits"] == {"agent_timeout": 120.0, "twin_timeout": None, "agent_process": False}
    assert (manifest["seed"], manifest["conversations"]) == (3, 2)
    assert manifest["prompts"]
    [scenario] = json.loads((tmp_path / "run" / "scenarios.json").read_text("utf-8"))
    assert (scenario["goal"], scenario["max_turns"]) == ("You want the weather.", 1)


def test_the_folder_holds_no_secrets(user: SimulatedUser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-secret-key")

    def agent(api_key: str, messages: list[dict[str, Any]]) -> str:
        return "For which day?"

    simulate_many(user, functools.partial(agent, "sk-a-secret-key"), max_turns=1, out=tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        assert "sk-a-secret-key" not in path.read_text("utf-8"), path.name


def test_the_manifest_names_arguments_that_are_not_json(user: SimulatedUser, tmp_path: Path) -> None:
    def booked(messages: list[dict[str, Any]]) -> bool:
        return True

    [simulation] = simulate_many(user, Desk(), out=tmp_path / "run", goal_reached=booked)
    assert simulation.stop_reason == "goal_reached"
    assert "booked" in (tmp_path / "run" / "scenarios.json").read_text("utf-8")


def test_a_folder_with_a_run_is_refused_and_unchanged(user: SimulatedUser, tmp_path: Path) -> None:
    simulate_many(user, Desk(), max_turns=1, out=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match=r"holds a run already.*--out") as caught:
        simulate_many(user, Desk(), max_turns=1, out=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_a_folder_that_cannot_be_created_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match=r"cannot be created.*--out"):
            RunFolder(path)


def test_an_invalid_agent_leaves_no_folder_behind(user: SimulatedUser, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes no arguments"):
        simulate_many(user, lambda: "hi", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stopped_run_keeps_its_complete_conversations(user: SimulatedUser, tmp_path: Path) -> None:
    def stop_at_second(number: int, exchange: Exchange) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_many(user, Desk(), count=3, max_turns=1, out=tmp_path / "run", on_exchange=stop_at_second)
    assert len(lines(tmp_path / "run")) == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text("utf-8")) == {
        "finished": False,
        "stop_reasons": {"max_turns": 1},
    }


def test_the_same_call_continues_a_stopped_run(user: SimulatedUser, tmp_path: Path) -> None:
    talked: list[int] = []

    def stop_at_third(number: int, exchange: Exchange) -> None:
        talked.append(number)
        if number == 3 and len(talked) == 3:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"count": 4, "max_turns": 1, "seed": 7, "on_exchange": stop_at_third}
    with pytest.raises(KeyboardInterrupt):
        simulate_many(user, Desk(), out=tmp_path / "run", **options)
    with (tmp_path / "run" / "conversations.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"twin": "ann", "go')  # the kill of a process may leave half a line
    (tmp_path / "run" / "summary.json").unlink()
    simulations = simulate_many(user, Desk(), out=tmp_path / "run", **options)
    assert talked == [1, 2, 3, 3, 4]
    assert [line["seed"] for line in lines(tmp_path / "run")] == [7, 8, 9, 10]
    assert [simulation.seed for simulation in simulations] == [7, 8, 9, 10]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert summary == {"finished": True, "stop_reasons": {"max_turns": 4}}


@pytest.mark.parametrize(
    ("change", "key"),
    [({"seed": 3}, '"seed"'), ({"goal": "a refund"}, '"scenarios"'), ({"count": 5}, '"conversations", "scenarios"')],
)
def test_another_unfinished_run_is_refused_and_unchanged(
    user: SimulatedUser, tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    simulate_many(user, Desk(), max_turns=1, count=4, out=tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text('{"finished": false, "stop_reasons": {}}', "utf-8")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UsageError, match=rf"an unfinished run with a different {key}; name another folder with --out"):
        simulate_many(user, Desk(), out=tmp_path / "run", **{"max_turns": 1, "count": 4, **change})
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_run_that_another_process_works_on_is_refused(user: SimulatedUser, tmp_path: Path) -> None:
    with exclusive_run(tmp_path / "run"), pytest.raises(UsageError, match="another process works on this run"):
        simulate_many(user, Desk(), max_turns=1, out=tmp_path / "run")


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"twin": "ann"}',
        '{"twin": "ann", "exchanges": [{"answer": 3}]}',
        '{"exchanges": [{"answer": {"recalled": [{}]}}]}',
    ],
)
def test_a_line_that_is_no_conversation_is_named(user: SimulatedUser, tmp_path: Path, line: str) -> None:
    simulate_many(user, Desk(), max_turns=1, out=tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "conversations.jsonl").write_text(line + "\n", "utf-8")
    with pytest.raises(
        UsageError, match=r"conversations\.jsonl:1: not a valid conversation: .*; name another folder with --out"
    ):
        simulate_many(user, Desk(), max_turns=1, out=tmp_path / "run")


def test_count_below_one_is_refused(user: SimulatedUser) -> None:
    with pytest.raises(UsageError, match="count is 0; it must be at least 1"):
        simulate_many(user, Desk(), count=0)


def test_a_run_continues_after_a_failed_conversation(user: SimulatedUser, tmp_path: Path) -> None:
    calls: list[int] = []

    def agent(messages: list[dict[str, Any]]) -> str:
        calls.append(len(calls))
        if len(calls) == 1:
            raise ValueError("not ready")
        return "For which day?"

    simulations = simulate_many(user, agent, count=2, max_turns=1, out=tmp_path / "run")
    assert [simulation.stop_reason for simulation in simulations] == ["agent_error", "max_turns"]
    assert [line["error"] for line in lines(tmp_path / "run")] == ["the agent raised ValueError: not ready", None]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=30), min_size=1, max_size=3))
def test_any_text_is_one_line_of_the_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    for text in texts:
        folder.add(Simulation(twin="ann", goal=text, seed=0, thread_id="t", messages=[{"role": "user", "content": text}]))
    assert [line["goal"] for line in _json_lines(folder.path / "conversations.jsonl")] == texts


def _json_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]
