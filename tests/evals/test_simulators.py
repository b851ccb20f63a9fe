"""Simulated users of the user's as arms: any shape is asked for the person's turn, and measured without likelihoods."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from invented_suite import Models, suite_file

from conftest import scripted
from usertwin.evals.arm_names import arm_names, check_arms, simulators_of
from usertwin.evals.records.measured_turns import read_turns
from usertwin.evals.replay.evaluate import evaluate
from usertwin.evals.replay.held_out import held_out_pairs
from usertwin.evals.replay.replay import ReplayConfig
from usertwin.evals.replay.simulators import Simulator, load_simulators
from usertwin.evals.suites.config import read_suite
from usertwin.evals.suites.run import SuiteRun
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.twin.record import default_home
from usertwin.personas import ModelError, Pair, UsageError
from usertwin.simulator import SimulatedUser, load_model

pytestmark = pytest.mark.usefixtures("repeats_count")

MODULE = """
calls = []

def respond(messages, persona, goal):
    calls.append((messages, persona, goal))
    return {"role": "user", "content": f"I am {persona.name} and heard: {messages[-1]['content']}"}

async def later(messages):
    return "tomorrow please"

def fails(messages):
    raise ValueError("no idea")

def wants_more(messages, tools):
    return "?"

thing = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with simulators, which can be imported from the current folder."""
    (tmp_path / "my_simulators.py").write_text(MODULE, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_simulators", raising=False)
    return "my_simulators"


@pytest.fixture
def user(ann: str) -> Iterator[SimulatedUser]:
    with SimulatedUser.load(ann, model=scripted("hi"), k=3) as twin:
        yield twin


def pair_of(user: SimulatedUser) -> Pair:
    """Return a held-out pair in whose context both sides speak."""
    pairs = held_out_pairs(user, default_home() / "ann")[0]
    return next(pair for pair in pairs if len(pair.context) > 2 and not pair.abandoned)


def reply(target: Any, user: SimulatedUser) -> str:
    return asyncio.run(Simulator("mine", target).reply(user.persona, pair_of(user), turns=6, seed=3))


# Names ----------------------------------------------------------------------------------------------------------------


def test_a_simulator_has_a_name_and_a_target() -> None:
    arms = check_arms(["mine = my_module:respond", "no_memory", "gpt=openai:gpt-5-mini@http://127.0.0.1:9/v1?a=b"])
    assert arms == ("no_memory", "mine = my_module:respond", "gpt = openai:gpt-5-mini@http://127.0.0.1:9/v1?a=b")
    assert arm_names(arms) == ("no_memory", "mine", "gpt")
    assert simulators_of(arms)["gpt"].endswith("?a=b")
    assert check_arms(arms) == arms


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ("=my:respond", "is no simulator; write NAME=MODULE:ATTRIBUTE"),
        ("mine=", "is no simulator; write NAME=MODULE:ATTRIBUTE"),
        ("a - b=my:respond", "is no simulator; write NAME=MODULE:ATTRIBUTE"),
        ("recon=my:respond", 'there is another arm "recon"; give the simulator another name'),
        ("chosen=my:respond", 'there is another arm "chosen"'),
    ],
)
def test_a_wrong_name_is_refused(arm: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_arms(["no_memory", arm])


def test_two_simulators_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match='there is another arm "mine"'):
        check_arms(["mine=a:b", "mine=a:c"])


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nowhere:respond", 'arm "mine": "nowhere:respond": there is no module "nowhere"'),
        ("my_simulators:nothing", 'arm "mine": .* has no "nothing"'),
        ("my_simulators:thing", 'arm "mine": int is no simulator'),
        ("my_simulators:wants_more", 'arm "mine": wants_more takes tools; give it one argument for the messages, or any of'),
        ("what is this", 'arm "mine": "what is this" is no simulator'),
    ],
)
def test_a_simulator_that_cannot_be_used_is_one_sentence(module: str, target: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        load_simulators(check_arms([f"mine={target}"]))
    assert "\n" not in str(error.value)


# Shapes ---------------------------------------------------------------------------------------------------------------


def test_a_function_gets_persona_goal_and_the_chat_with_the_person_as_user(module: str, user: SimulatedUser) -> None:
    [simulator] = load_simulators(check_arms([f"mine={module}:respond"])).values()
    pair = pair_of(user)
    text = reply(simulator.target, user)
    [(messages, persona, goal)] = __import__(module).calls
    assert text == f"I am {user.persona.name} and heard: {pair.context[-1].text}"
    assert (persona, goal) == (user.persona, pair.goal)
    assert messages[0]["role"] == "system"
    assert user.persona.description in messages[0]["content"]
    assert [message["role"] for message in messages[1:]] == [
        "user" if turn.speaker == pair.speaker else "assistant" for turn in pair.context
    ]


def test_asynchronous_functions_and_callable_objects_reply(module: str, user: SimulatedUser) -> None:
    class Object:
        def __call__(self, chat: list[dict[str, Any]]) -> list[dict[str, str]]:
            return [*chat, {"role": "user", "content": "and Rome?"}]

    [simulator] = load_simulators(check_arms([f"mine={module}:later"])).values()
    assert reply(simulator.target, user) == "tomorrow please"
    assert reply(Object(), user) == "and Rome?"


def test_a_simulator_that_fails_is_one_sentence(module: str, user: SimulatedUser) -> None:
    [simulator] = load_simulators(check_arms([f"mine={module}:fails"])).values()
    with pytest.raises(ModelError, match=r'the arm "mine" did not reply in talk-.*: it raised ValueError: no idea; mend it'):
        reply(simulator.target, user)
    with pytest.raises(ModelError, match="not a message"):
        reply(lambda messages: 3, user)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_real_openevals_user_replies(user: SimulatedUser, asynchronous: bool) -> None:
    prebuilts = pytest.importorskip("openevals.simulators.prebuilts")
    from langchain_core.language_models.fake_chat_models import FakeListChatModel

    make = prebuilts.create_async_llm_simulated_user if asynchronous else prebuilts.create_llm_simulated_user
    target = make(system="You are Ann.", client=FakeListChatModel(responses=["tomorrow, please"]))
    assert reply(target, user) == "tomorrow, please"
    assert reply(make(system="x", client=FakeListChatModel(responses=["no"]), fixed_responses=["a", "fixed"]), user) == "fixed"


@pytest.mark.parametrize("checkpointer", [False, True])
def test_a_langgraph_graph_replies(user: SimulatedUser, checkpointer: bool) -> None:
    from langchain_core.messages import HumanMessage
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.graph import START, MessagesState, StateGraph

    def speak(state: MessagesState) -> dict[str, Any]:
        return {"messages": [HumanMessage(f"after {len(state['messages'])}: {state['messages'][-1].content}")]}

    builder = StateGraph(MessagesState)
    builder.add_node("speak", speak)
    builder.add_edge(START, "speak")
    graph = builder.compile(checkpointer=InMemorySaver() if checkpointer else None)
    context = pair_of(user).context
    for _ in range(2):  # a conversation of its own each time, also for a graph that remembers
        graph_reply = asyncio.run(Simulator("mine", graph).reply(user.persona, pair_of(user), turns=6, seed=_))
        assert graph_reply == f"after {1 + len(context)}: {context[-1].text}"


def test_another_twin_is_a_simulator(user: SimulatedUser) -> None:
    with SimulatedUser.load("ann", model=scripted("wants it", "for Oslo please")) as twin:
        assert reply(twin.graph, user) in {"wants it", "for Oslo please"}


class _Endpoint(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that keeps the messages of each request."""

    requests: list[list[dict[str, str]]] = []  # noqa: RUF012 - of the class, since each request has its own object

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(body["messages"])
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "from afar"}}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        content = json.dumps(answer | {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_an_endpoint_plays_the_user(user: SimulatedUser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED", raising=False)
    server = HTTPServer(("127.0.0.1", 0), _Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        model = load_model(f"openai:played@http://127.0.0.1:{server.server_port}/v1")
        assert reply(model, user) == "from afar"
    finally:
        server.shutdown()
        server.server_close()
    [messages] = _Endpoint.requests
    assert messages[0]["role"] == "system"
    assert user.persona.description in messages[0]["content"]
    roles = ["assistant" if turn.speaker == pair_of(user).speaker else "user" for turn in pair_of(user).context]
    assert [message["role"] for message in messages[1:]] == roles


# Measurement ----------------------------------------------------------------------------------------------------------


def test_a_simulator_is_measured_beside_the_twin_without_likelihoods(module: str, user: SimulatedUser) -> None:
    config = ReplayConfig(arms=check_arms(["recalled_pairs", f"mine={module}:respond"]), generate=4, samples=2, choices=3)
    result = asyncio.run(evaluate(user, FakeScorer(), FakeEmbedder(), folder=default_home() / "ann", config=config))
    assert list(result["arms"]) == ["recalled_pairs", "mine"]
    assert {"chrf", "embedding_similarity"} <= set(result["arms"]["mine"])
    assert not {"bits_per_char", "choice"} & set(result["arms"]["mine"])
    assert "chrf" in result["paired"].get("recalled_pairs - mine", {}) or result["twin_arm"] == "recon"
    assert len(__import__(module).calls) == 4 * 2


def test_a_suite_measures_a_simulator_and_names_it_in_the_report(module: str, tmp_path: Path) -> None:
    arms = ('"other_person", "recalled_pairs"]', f'"other_person", "recalled_pairs", "mine = {module}:respond"]')
    suite = read_suite(suite_file(tmp_path, arms))
    result = asyncio.run(SuiteRun(suite, tmp_path / "run", models=Models().of(suite)).run())
    assert "mine" in result["arms"]
    assert "recalled_pairs - mine" in result["paired"]
    assert "mine" in (tmp_path / "run" / "report.md").read_text("utf-8")
    replies = [turn.replies["mine"] for turn in read_turns(tmp_path / "run") if turn.replies]
    assert all(text.startswith("I am ") for texts in replies for text in texts)
    calls = len(__import__(module).calls)
    assert asyncio.run(SuiteRun(suite, tmp_path / "run", models=Models().of(suite)).run())["arms"] == result["arms"]
    assert len(__import__(module).calls) == calls  # a finished run asks nothing again


def test_a_suite_with_a_missing_simulator_is_refused_before_any_work(tmp_path: Path) -> None:
    suite = read_suite(suite_file(tmp_path, ('"recalled_pairs"]', '"recalled_pairs", "mine = nowhere:respond"]')))
    with pytest.raises(UsageError, match=r'arm "mine": .*there is no module "nowhere"'):
        SuiteRun(suite, tmp_path / "run", models=Models().of(suite)).check()
