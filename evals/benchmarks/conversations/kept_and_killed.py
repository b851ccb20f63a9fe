"""Benchmarks of many conversations: agents that keep their connections, and runs that are killed and continued."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from usertwin.evals.cli.demo import ROBIN
from usertwin.memory import ChatModel, Recipe, alearn
from usertwin.personas.importers.chitchat import load_chitchat
from usertwin.simulator import SimulatedUser, asimulate, load_embedder, simulate

from ..figures import Figure, single_figure

#: Conversations in a row with each agent, tests in a row under each plugin, and kills.
CONVERSATIONS, TESTS, KILLS = 1000, 100, 50
_RUN = 40  #: conversations of a run that is killed
_MAX_WAIT = 300.0


class _Completions(BaseHTTPRequestHandler):
    """A chat endpoint that keeps its connections open and always says the same."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "Which number would you like?"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Write nothing: clients that are gone close their connections."""


@contextmanager
def _endpoint() -> Generator[str]:
    server = _Server(("127.0.0.1", 0), _Completions)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()


def _http_agent(url: str) -> Any:
    import httpx

    client = httpx.AsyncClient()

    async def reply(messages: list[dict[str, Any]]) -> str:
        answer = await client.post(f"{url}/chat/completions", json={"messages": messages})
        return answer.json()["choices"][0]["message"]["content"]

    return reply


def _chat_openai(url: str) -> Any:
    import httpx
    from langchain_openai import ChatOpenAI

    # By default all these models of a process share one client, which works in one event loop only.
    client = httpx.AsyncClient()
    return ChatOpenAI(model="m", base_url=url, api_key=lambda: "none", max_retries=0, http_async_client=client)


def react_agent(url: str) -> Any:
    """Return a ReAct agent over a chat endpoint."""
    from langgraph.prebuilt import create_react_agent  # pyright: ignore[reportDeprecated] - what people have

    return create_react_agent(_chat_openai(url), [])  # pyright: ignore[reportDeprecated]


AGENTS: tuple[Callable[[str], Any], ...] = (_http_agent, _chat_openai, react_agent)


@contextmanager
def _learned_twin() -> Generator[Path]:
    """The home of a twin "bench" that was learned without models."""
    with tempfile.TemporaryDirectory() as home:
        embedder = load_embedder("fake:")
        recipe = Recipe(
            source="chitchat", speaker=ROBIN.speaker, method="none", candidates=1, max_triples=50, max_traces=None, window=6,
            embedder=embedder.name, model=None, scorer=None, seed=0,
        )  # fmt: skip
        asyncio.run(alearn("bench", load_chitchat(), recipe, embedder=embedder, home=home))
        yield Path(home)


def kept_connections_part() -> Iterator[tuple[str, Figure]]:
    """Yield how many of a thousand conversations in a row fail with agents that keep their connections.

    Each agent talks behind the synchronous function, and in the event loop of a caller, and in tests under three plugins.
    """
    from usertwin.simulator.backends.scripted import ScriptedChatModel

    chat = ScriptedChatModel(answers=["I would like a number, please"])
    with _learned_twin() as home, _endpoint() as url:
        with SimulatedUser.load("bench", home=home, model=ChatModel("scripted:bench", chat)) as user:
            failed = 0
            for make in AGENTS:
                agent = make(url)
                for _ in range(CONVERSATIONS):
                    failed += simulate(user, agent, max_turns=1).stop_reason == "agent_error"
                failed += asyncio.run(_failures_in_one_loop(user, make(url)))
        n = 2 * CONVERSATIONS * len(AGENTS)
        yield "simulate.kept_connections_failed", single_figure(failed, "conversations", "0", n=n)
        script = home / "script.jsonl"
        script.write_text(json.dumps({"when": "", "say": "I would like a number, please"}), "utf-8")
        yield "plugin.kept_connections_failed", single_figure(_failed_tests(home, url, script), "tests", "0", n=3 * TESTS)


async def _failures_in_one_loop(user: SimulatedUser, agent: Any) -> int:
    talks = [await asimulate(user, agent, max_turns=1) for _ in range(CONVERSATIONS)]
    return sum(simulation.stop_reason == "agent_error" for simulation in talks)


_TESTS = """
import pytest
from usertwin.evals.benchmarks.conversations.kept_and_killed import react_agent

OF_SYNC, OF_ASYNCIO, OF_ANYIO = (react_agent({url!r}) for _ in range(3))

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.parametrize("number", range({tests}))
def test_sync(simulate, number):
    simulate(OF_SYNC)

@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("number", range({tests}))
async def test_asyncio(simulate, number):
    await simulate(OF_ASYNCIO)

@pytest.mark.anyio
async def test_anyio(simulate):
    for number in range({tests}):
        await simulate(OF_ANYIO, seed=number)
"""


def _failed_tests(home: Path, url: str, script: Path) -> int:
    """Return how many tests of one file do not pass, all with one agent for each event loop."""
    file = home / "test_kept.py"
    file.write_text(_TESTS.format(url=url, tests=TESTS), "utf-8")
    options = {"twin": "bench", "model": f"scripted:{script}", "max-turns": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=strict", str(file)]
    command += [part for name, value in options.items() for part in (f"--usertwin-{name}", value)]
    command += ["--junitxml", str(home / "junit.xml")]
    environment = os.environ | {"USERTWIN_HOME": str(home)}
    subprocess.run(command, cwd=home, env=environment, capture_output=True, timeout=_MAX_WAIT * 4, check=False)
    from xml.etree import ElementTree

    suite = ElementTree.parse(home / "junit.xml").getroot()[0].attrib
    expected, bad = 2 * TESTS + 1, sum(int(suite[key]) for key in ("failures", "errors", "skipped"))
    return bad + expected - int(suite["tests"])


_KILLED_RUN = """
import sys, time
from usertwin.simulator import SimulatedUser, load_model, simulate_many

def agent(messages, thread_id):
    time.sleep(0.005)
    return f"Which number would you like? ({len(messages)})"

with SimulatedUser.load("bench", home=sys.argv[1], model=load_model(sys.argv[2])) as user:
    print("ready", flush=True)
    simulate_many(user, agent, count=int(sys.argv[4]), max_turns=3, concurrency=4, out=sys.argv[3], spec="agent")
"""


def killed_runs_part() -> Iterator[tuple[str, Figure]]:
    """Yield how many runs that were killed at a random moment and continued differ from an undisturbed one."""
    with _learned_twin() as home:
        script = home / "script.jsonl"
        script.write_text(json.dumps({"when": "", "say": "I would like a number, please"}), "utf-8")
        seconds = _run(home, script, home / "whole")
        whole, differing, rng = _content(home / "whole"), 0, random.Random(0)
        for number in range(KILLS):
            folder = home / f"run{number}"
            _run(home, script, folder, kill_after=rng.uniform(0, seconds))
            if not _is_finished(folder):
                _run(home, script, folder)
            differing += _content(folder) != whole
        yield "simulate.killed_runs_differing", single_figure(differing, "runs", f"0, of {_RUN} conversations", n=KILLS)


def _run(home: Path, script: Path, folder: Path, *, kill_after: float | None = None) -> float:
    """Run the conversations, or kill the process some seconds after it is ready; return the seconds from there to its end."""
    command = [sys.executable, "-c", _KILLED_RUN, str(home), f"scripted:{script}", str(folder), str(_RUN)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    started = time.perf_counter()
    try:
        process.wait(_MAX_WAIT if kill_after is None else kill_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return time.perf_counter() - started


def _content(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("conversations.jsonl", "scenarios.json", "summary.json")]


def _is_finished(folder: Path) -> bool:
    summary = folder / "summary.json"
    return summary.exists() and json.loads(summary.read_text("utf-8"))["finished"] is True
