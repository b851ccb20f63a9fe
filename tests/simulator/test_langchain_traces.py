"""A conversation is one trace for LangChain callbacks and for LangSmith, with a run for each turn and each model call."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import pytest
from desk_talk import Desk, scripted_twin
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import RunnableLambda

from conftest import Endpoint
from usertwin.memory import ChatModel
from usertwin.memory.event_loop import run_sync
from usertwin.memory.models.chat import sample
from usertwin.simulator import SimulatedUser, asimulate, simulate, simulate_many
from usertwin.simulator.tracing import tracing


class Runs(BaseCallbackHandler):
    """Records the runs of a trace: the name, the parent, and how each ended."""

    def __init__(self) -> None:
        self.names: dict[UUID, str] = {}
        self.parents: dict[UUID, UUID | None] = {}
        self.ends: dict[UUID, Any] = {}
        self.metadata: dict[UUID, dict[str, Any]] = {}

    def _start(self, serialized: Any, given: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **options: Any) -> None:
        name = options.get("name") or (serialized or {}).get("name") or "?"
        self.names[run_id], self.parents[run_id] = name, parent_run_id
        self.metadata[run_id] = options.get("metadata") or {}

    def _end(self, outputs: Any, *, run_id: UUID, **options: Any) -> None:
        self.ends[run_id] = outputs

    on_chain_start = on_chat_model_start = _start
    on_chain_end = on_chain_error = on_llm_end = on_llm_error = _end

    def path(self, run: UUID | None) -> str:
        """Return the names of a run and those above it, the root first."""
        return "" if run is None else f"{self.path(self.parents[run])}/{self.names[run]}"

    @property
    def paths(self) -> list[str]:
        return [self.path(run) for run in self.names]

    def ended(self, name: str) -> list[Any]:
        """Return how the runs of a name ended, in the order in which they began."""
        return [self.ends[run] for run, given in self.names.items() if given == name]


@pytest.fixture
def user(ann: str) -> Iterator[SimulatedUser]:
    with scripted_twin(ann) as user:
        yield user


TURN, MODEL = "/conversation:ann/twin:ann", "ScriptedChatModel"


def test_a_conversation_is_one_trace_with_its_turns_and_model_calls(user: SimulatedUser) -> None:
    runs = Runs()
    with tracing(callbacks=[runs], tags=["nightly"]):
        simulation = simulate(user, Desk("For which day?", "It rains."), max_turns=2, seed=3)
    assert runs.paths.count("/conversation:ann") == 1
    assert runs.paths.count(TURN) == 2
    assert runs.paths.count(f"{TURN}/reason/{MODEL}") == runs.paths.count(f"{TURN}/act/{MODEL}") == 2
    assert runs.paths.count("/conversation:ann/agent") == 2
    assert set(runs.names) == set(runs.ends)
    tokens = [result.generations[0][0].message.usage_metadata for result in runs.ended(MODEL)]
    assert sum(usage["output_tokens"] for usage in tokens) == simulation.usage.output_tokens > 0
    [root] = runs.ended("conversation:ann")
    assert root == {"messages": simulation.messages, "stop_reason": "max_turns"}
    assert runs.ended("agent")[1] == {"messages": simulation.messages[3:]}
    [metadata] = [runs.metadata[run] for run, name in runs.names.items() if name == "conversation:ann"]
    assert metadata["thread_id"] == simulation.thread_id
    assert (metadata["twin"], metadata["seed"]) == ("ann", 3)


def test_without_callbacks_nothing_is_recorded_after_the_block(user: SimulatedUser) -> None:
    runs = Runs()
    with tracing(callbacks=[runs]):
        user.respond([])
    before = len(runs.names)
    simulate(user, Desk(), max_turns=1)
    assert runs.paths[0] == "/twin:ann"
    assert len(runs.names) == before


def test_the_callbacks_of_a_chain_around_it_reach_the_twin(user: SimulatedUser) -> None:
    """A conversation that a LangChain runnable starts is a part of its trace."""
    runs = Runs()

    async def step(turns: int) -> str:
        return (await asimulate(user, Desk(), max_turns=turns)).stop_reason

    chain = RunnableLambda(step).with_config(run_name="nightly")
    assert run_sync(chain.ainvoke(1, {"callbacks": [runs]})) == "max_turns"
    assert f"/nightly{TURN}/act/{MODEL}" in runs.paths


def test_the_runs_of_an_agent_are_below_its_turn(user: SimulatedUser) -> None:
    runs, model = Runs(), FakeListChatModel(responses=["For which day?"])
    with tracing(callbacks=[runs]):
        simulate(user, lambda messages: model.invoke("hi").content, max_turns=1)
        simulate(user, model, max_turns=1)
    assert runs.paths.count("/conversation:ann/agent/FakeListChatModel") == 2


def test_concurrent_conversations_have_traces_of_their_own(user: SimulatedUser) -> None:
    runs = Runs()
    with tracing(callbacks=[runs]):
        simulations = simulate_many(user, Desk(), count=4, max_turns=1, concurrency=4)
    threads = [runs.metadata[run]["thread_id"] for run, name in runs.names.items() if name == "conversation:ann"]
    assert sorted(threads) == sorted(simulation.thread_id for simulation in simulations)
    assert runs.paths.count("/conversation:ann/agent") == runs.paths.count(TURN) == 4
    turns = [runs.metadata[run]["thread_id"] for run, name in runs.names.items() if name == "agent"]
    assert sorted(turns) == sorted(threads)


def test_failures_are_failed_runs(user: SimulatedUser) -> None:
    def broken(messages: Any) -> str:
        raise ValueError("no desk is free")

    runs = Runs()
    with tracing(callbacks=[runs]):
        assert simulate(user, broken, max_turns=1).stop_reason == "agent_error"
    [agent], [root] = runs.ended("agent"), runs.ended("conversation:ann")
    assert "agent_error: the agent raised ValueError: no desk is free" in str(agent) == str(root)


def test_an_async_handler_gets_the_runs_too(user: SimulatedUser) -> None:
    names = list[str]()

    class Names(AsyncCallbackHandler):
        async def on_chain_start(self, *args: Any, **options: Any) -> None:
            names.append(options["name"])

    with tracing(callbacks=[Names()]):
        simulate(user, Desk(), max_turns=1)
    assert names[0] == "conversation:ann"
    assert names[-1] == "agent"


def test_several_completions_of_one_request_are_one_run_with_its_tokens(endpoint: Endpoint) -> None:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model="m", base_url=endpoint.url, api_key="none")  # pyright: ignore[reportArgumentType]
    runs = Runs()
    with tracing(callbacks=[runs]):
        samples = run_sync(sample(ChatModel("openai:m", chat), [("user", "hi")], n=3))
    assert len(samples) == 3
    assert samples[0].usage.output_tokens == 30
    [result] = runs.ended("ChatOpenAI")
    usages = [generation.message.usage_metadata for generation in result.generations[0]]
    assert [usage and usage["output_tokens"] for usage in usages] == [30, None, None]


class Writer:
    """A token writer of one turn."""

    async def write(self, messages: Any, next_token: Any, *, n: int, **options: Any) -> list[Any]:
        from usertwin.memory.models.token_writer import WrittenTokens

        return [WrittenTokens("tomorrow please", input_tokens=40, cached_tokens=10, output_tokens=2, at_limit=False)] * n


def test_what_a_token_writer_writes_is_a_run_with_its_tokens() -> None:
    model = ChatModel("local", FakeListChatModel(responses=["?"]), token_writer=Writer())  # pyright: ignore[reportArgumentType]
    runs = Runs()
    with tracing(callbacks=[runs]):
        run_sync(sample(model, [("user", "hi")], n=2, next_token=lambda tokens: tokens))  # pyright: ignore
    [result] = runs.ended("TokenWriter")
    messages = [generation.message for generation in result.generations[0]]
    assert [message.text for message in messages] == ["tomorrow please"] * 2
    assert [message.usage_metadata["output_tokens"] for message in messages] == [2, 2]


# LangSmith --------------------------------------------------------------------------------------------------------------


class LangSmith:
    """A LangSmith server on the loopback interface, which records runs."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # named by the standard library
                limits = {"size_limit": 100, "size_limit_bytes": 10**7, "scale_down_nempty_limit": 4}
                threads = {"scale_up_nthreads_limit": 1, "scale_up_qsize_trigger": 999}
                self._reply({"batch_ingest_config": {"use_multipart_endpoint": False, **limits, **threads}})

            def do_POST(self) -> None:  # named by the standard library
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for run in [*body.get("post", []), *body.get("patch", [])]:
                    kept = service.runs.setdefault(run["id"], {})
                    kept.update({key: value for key, value in run.items() if value is not None})
                self._reply({})

            def _reply(self, value: Any) -> None:
                raw = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def langsmith() -> Iterator[LangSmith]:
    service = LangSmith()
    thread = threading.Thread(target=service.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield service
    service.server.shutdown()
    service.server.server_close()
    thread.join()


#: A program that knows nothing of traces, with an agent that uses LangSmith without LangChain.
PROGRAM = """
import sys
sys.path[:0] = {path!r}
from desk_talk import scripted_twin
from langsmith import traceable
from usertwin.simulator import simulate

@traceable(name="look it up")
def look_up(day):
    return "It rains."

with scripted_twin("ann") as user:
    print(simulate(user, lambda messages: look_up("today"), max_turns=2).thread_id)
"""


def test_langsmith_gets_a_trace_of_each_conversation(ann: str, langsmith: LangSmith, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "TRACING": "true", "ENDPOINT": langsmith.url, "API_KEY": "lsv2_pt_canary_0123456789", "PROJECT": "twins",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"LANGSMITH_{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(path=sys.path)], capture_output=True, text=True, check=True, timeout=60
    )
    runs = langsmith.runs
    [root] = [run for run in runs.values() if run.get("parent_run_id") is None]
    assert root["name"] == "conversation:ann"
    assert {run["trace_id"] for run in runs.values()} == {root["id"]}
    assert root["extra"]["metadata"]["thread_id"] == done.stdout.strip()

    def path(run: dict[str, Any]) -> str:
        parent = run.get("parent_run_id")
        return (path(runs[parent]) if parent else "") + "/" + run["name"]

    paths = [path(run) for run in runs.values()]
    assert paths.count(TURN) == paths.count("/conversation:ann/agent/look it up") == 2
    models = [run for run in runs.values() if run["run_type"] == "llm"]
    assert len(models) == 4
    assert all(run["extra"]["metadata"]["usage_metadata"]["output_tokens"] > 0 for run in models)
    assert all(run.get("end_time") for run in runs.values())
    assert "canary" not in json.dumps(list(runs.values()))
