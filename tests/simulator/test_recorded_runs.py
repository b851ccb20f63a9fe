"""Recorded runs: equal conversations from a replay with no model, no agent and no network, and a loud miss for all else."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.outputs import ChatResult

from conftest import FunctionChatModel
from usertwin.memory import ChatModel, Settings
from usertwin.memory.models.chat import PromptStyle, sample
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.recording import Recording
from usertwin.memory.own_words.own_words import DEFAULT_WEIGHTS
from usertwin.personas import AgentError, ModelError, ReplayMiss, UsageError
from usertwin.simulator import SimulatedUser, Simulation, as_agent, asimulate, load_model
from usertwin.simulator.agents import Failure
from usertwin.simulator.recording import (
    RecordedEmbedder,
    load_user,
    recorded_agent,
    recorded_model,
    replayed_model,
    run_recorded_turn,
)
from usertwin.simulator.recording import models as models_module

NAME = "openai:gpt-5-mini"


class Unrepeatable(FunctionChatModel):
    """A model that never gives an answer twice, and answers concurrent requests in a random order."""

    async def _agenerate(self, *args: Any, **options: Any) -> ChatResult:
        for _ in range(random.randrange(6)):
            await asyncio.sleep(0)
        return await super()._agenerate(*args, **options)


def unrepeatable(style: PromptStyle = "transcript", **facts: Any) -> ChatModel:
    numbers = count()
    chat = Unrepeatable(reply=lambda prompt, seed: f"please take number {next(numbers)} for me")
    return ChatModel(NAME, chat, style, **facts)


def unrepeatable_agent() -> Callable[..., Any]:
    numbers = count()

    async def agent(messages: list[dict[str, Any]]) -> str:
        for _ in range(random.randrange(6)):
            await asyncio.sleep(0)
        return f"Your ticket is {next(numbers)}."

    return agent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.recording"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid every model that is not scripted, and every connection."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a replay opens no connection")

    monkeypatch.setenv("USERTWIN_ONLY_SCRIPTED", "1")
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def converse(
    user: SimulatedUser, recording: Recording, agent: Any, seeds: Sequence[int], *, concurrency: int, turns: int = 2
) -> list[dict[str, Any]]:
    """Return the conversations of these seeds, in their order, without what differs from run to run by its nature."""

    async def run() -> list[Simulation]:
        limit = asyncio.Semaphore(concurrency)

        async def one(number: int, seed: int) -> Simulation:
            call = recorded_agent(None if agent is None else as_agent(agent), recording, "desk", conversation=f"talk/{number}")
            async with limit:
                return await asimulate(user, call, seed=seed, max_turns=turns, goal="You want a number.")

        order = list(enumerate(seeds))
        random.shuffle(order)
        simulations = dict(zip(order, await asyncio.gather(*(one(*item) for item in order)), strict=True))
        return [simulations[item] for item in enumerate(seeds)]

    return [without_times(simulation) for simulation in asyncio.run(run())]


def without_times(simulation: Simulation) -> dict[str, Any]:
    raw = simulation.to_json()
    del raw["thread_id"], raw["seconds"]
    for exchange in raw["exchanges"]:
        del exchange["twin_seconds"], exchange["agent_seconds"]
    return raw


SEEDS = (0, 1, 2, 3, 0, 1, 4, 5)


def record(path: Path, twin: str, model: ChatModel, agent: Any, **options: Any) -> list[dict[str, Any]]:
    arguments: dict[str, Any] = {"seeds": SEEDS, "concurrency": 8} | options
    with Recording(path, "record") as recording, load_user(twin, recording, model=model) as user:
        return converse(user, recording, agent, **arguments)


# Whole runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("style", ["transcript", "instruction"])
def test_a_run_of_eight_at_a_time_is_replayed_equal_without_model_agent_or_network(
    style: PromptStyle, ann: str, path: Path
) -> None:
    first = record(path, ann, unrepeatable(style), unrepeatable_agent())
    assert {raw["stop_reason"] for raw in first} <= {"max_turns", "user_stop"}
    assert len({str(raw["messages"]) for raw in first}) == len(SEEDS)
    for concurrency in (1, 8):
        with Recording(path, "replay") as recording, load_user(ann, recording, model=NAME) as user:
            assert converse(user, recording, None, SEEDS, concurrency=concurrency) == first
            recording.check()


def test_two_conversations_with_one_seed_and_one_question_get_one_answer(ann: str, path: Path) -> None:
    first = record(path, ann, unrepeatable(), unrepeatable_agent(), seeds=(5,) * 8)
    assert len({raw["messages"][0]["content"] for raw in first}) == 1
    assert len({raw["messages"][1]["content"] for raw in first}) == 8


def test_recording_goes_on_where_it_was_stopped(ann: str, path: Path) -> None:
    whole = record(path, ann, unrepeatable(), unrepeatable_agent(), seeds=(0, 1))
    model = unrepeatable()
    more = record(path, ann, model, unrepeatable_agent(), seeds=(0, 1, 2))
    assert more[0]["messages"][0] == whole[0]["messages"][0]  # the model is not asked again
    with Recording(path, "replay") as recording, load_user(ann, recording, model=NAME) as user:
        assert converse(user, recording, None, (0, 1, 2), concurrency=8) == more


@pytest.mark.parametrize("change", ["seed", "turns", "goal", "agent", "conversation", "memory"])
def test_what_was_not_recorded_is_a_loud_miss(change: str, ann: str, path: Path) -> None:
    record(path, ann, unrepeatable(), unrepeatable_agent(), seeds=(0,))
    settings = Settings(k=1) if change == "memory" else None
    with Recording(path, "replay") as recording, load_user(ann, recording, model=NAME, settings=settings) as user:
        spec, conversation = ("other" if change == "agent" else "desk"), f"talk/{int(change == 'conversation')}"
        goal = "You want two numbers." if change == "goal" else "You want a number."
        call = recorded_agent(None, recording, spec, conversation=conversation)
        turns, seed = (3 if change == "turns" else 2), int(change == "seed")
        asyncio.run(asimulate(user, call, seed=seed, max_turns=turns, goal=goal))
        with pytest.raises(ReplayMiss, match=r"run\.recording: the recording has no "):
            recording.check()


def test_a_changed_prompt_is_refused_in_one_sentence(ann: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(path, ann, unrepeatable(), unrepeatable_agent(), seeds=(0,))
    monkeypatch.setattr(models_module, "prompt_versions", lambda style: {"transcript": "5"})
    complaint = r'run\.recording: the prompt "transcript" was recorded with another version \(4, now 5\); record the run again'
    for mode in ("record", "replay"):
        with Recording(path, mode) as recording, pytest.raises(UsageError, match=complaint):
            load_user(ann, recording, model=unrepeatable())


def test_another_model_is_refused_or_a_miss(ann: str, path: Path) -> None:
    record(path, ann, unrepeatable(identity="a"), unrepeatable_agent(), seeds=(0,))
    with Recording(path, "record") as recording:
        with pytest.raises(UsageError, match=r'the model "openai:gpt-5-mini" was recorded with another identity \(a, now b\)'):
            recorded_model(unrepeatable(identity="b"), recording)
        recorded_model(unrepeatable("instruction"), recording)
    with Recording(path, "replay") as recording:
        with pytest.raises(UsageError, match="in the styles transcript and instruction; name one with --style"):
            replayed_model(NAME, recording)
        assert replayed_model(NAME, recording, "transcript").identity == "a"
        with pytest.raises(ReplayMiss, match='no model of "openai:gpt-5"'):
            replayed_model("openai:gpt-5", recording)


def test_a_replayed_model_has_the_facts_that_prompts_depend_on_and_cannot_be_asked(path: Path) -> None:
    facts: dict[str, Any] = {
        "supports_sampling_params": False, "bypass_cache": {"extra_body": {"cache_prompt": False}}, "structured": True,
        "identity": "w", "max_n": 3, "control_tokens": ("<|end|>",), "context_tokens": 99,
    }  # fmt: skip
    counted = list[str]()

    def count_tokens(text: str) -> int:
        counted.append(text)
        return len(text)

    with Recording(path, "record") as recording:
        model = recorded_model(unrepeatable("instruction", **facts, count_tokens=count_tokens), recording)
        assert model.count_tokens is not None
        assert [model.count_tokens(text) for text in ("abc", "abc", "")] == [3, 3, 0]
        assert counted == ["abc", ""]
        recorded_model(unrepeatable("instruction", **facts, count_tokens=count_tokens), recording)  # equal facts
    with Recording(path, "replay") as recording:
        replayed = replayed_model(NAME, recording)
        assert {name: getattr(replayed, name) for name in facts} == facts | {"control_tokens": ["<|end|>"]}
        assert (replayed.style, replayed.token_writer) == ("instruction", None)
        assert replayed.count_tokens is not None
        assert [replayed.count_tokens("abc"), replayed.count_tokens("")] == [3, 0]
        with pytest.raises(ReplayMiss, match="token count"):
            replayed.count_tokens("other")
        with pytest.raises(ModelError, match="replays a recording and cannot be asked"):
            asyncio.run(sample(replace(replayed, recording=None), [("user", "hi")]))


# Embeddings -----------------------------------------------------------------------------------------------------------


class CountingEmbedder(FakeEmbedder):
    """An embedder that records the texts of its calls, and whose vectors depend on its calls before."""

    def __init__(self) -> None:
        super().__init__(8)
        self.calls = list[list[str]]()

    def embed(self, texts: Sequence[str]) -> Any:
        """See `Embedder.embed`."""
        self.calls.append(list(texts))
        matrix = super().embed(texts) + np.float32(0.1) * len(self.calls)
        return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def test_embeddings_are_replayed_bit_by_bit_whatever_the_batches(path: Path) -> None:
    live = CountingEmbedder()
    with Recording(path, "record") as recording:
        embedder = RecordedEmbedder(live, recording)
        first = embedder.embed(["a b", "c", "a b"])
        second = embedder.embed(["c", "d"])
    assert live.calls == [["a b", "c"], ["d"]]
    assert first.dtype == np.float32
    assert np.array_equal(first[1], second[0])
    with Recording(path, "replay") as recording:
        embedder = RecordedEmbedder(None, recording, "fake:8")
        assert (embedder.name, embedder.dimension, embedder.embed([]).shape) == ("fake:8", 8, (0, 8))
        assert embedder.embed(["d", "c", "a b"]).tobytes() == np.stack([second[1], first[1], first[0]]).tobytes()
        with pytest.raises(ReplayMiss, match='no embedding of "fake:8"'):
            embedder.embed(["a b", "new"])
        with pytest.raises(ReplayMiss, match='no embedding of "other"'):
            _ = RecordedEmbedder(None, recording, "other").dimension


# Agents ---------------------------------------------------------------------------------------------------------------


def turn(agent: Any, recording: Recording, timeout: float = 5.0, messages: Sequence[dict[str, Any]] = ()) -> Any:
    call = recorded_agent(None if agent is None else as_agent(agent), recording, "desk", conversation="talk/0")
    return asyncio.run(run_recorded_turn(call, messages, "thread", timeout))


async def hangs(messages: Any) -> str:
    await asyncio.sleep(3600)
    return ""


def raises(messages: Any) -> str:
    raise ValueError("no such\norder")


@pytest.mark.parametrize(
    ("agent", "failure"),
    [
        (raises, Failure("agent_error", "the agent raised ValueError: no such order")),
        (lambda messages: None, Failure("agent_error", "the agent returned None instead of a reply")),
        (hangs, Failure("agent_timeout", "the agent took longer than 0.05 seconds")),
    ],
)
def test_failures_of_the_agent_are_replayed_with_their_reason_and_sentence(agent: Any, failure: Failure, path: Path) -> None:
    messages = [{"role": "user", "content": "hi \ud83d"}]
    with Recording(path, "record") as recording:
        assert turn(agent, recording, 0.05, messages) == failure
    with Recording(path, "replay") as recording:
        assert turn(None, recording, messages=messages) == failure
        with pytest.raises(ReplayMiss, match='no agent reply of "desk"'):
            turn(None, recording)


def test_the_last_reply_counts_since_an_agent_that_is_recorded_is_always_called(path: Path) -> None:
    replies = iter([[{"role": "assistant", "content": "one", "tool_calls": []}], "two"])
    with Recording(path, "record") as recording:
        assert [message["content"] for _ in range(2) for message in turn(lambda messages: next(replies), recording)] == [
            "one", "two",
        ]  # fmt: skip
    with Recording(path, "replay") as recording:
        assert turn(None, recording) == [{"role": "assistant", "content": "two"}]


def test_an_agent_is_begun_and_closed_when_it_is_recorded_only(path: Path) -> None:
    events = list[str]()

    class Begun(type(as_agent(raises))):
        async def begin(self) -> None:
            events.append("begin")

        def close(self) -> None:
            events.append("close")

    async def reply(messages: list[Any], thread_id: str) -> str:
        return "yes"

    async def use(recording: Recording) -> None:
        call = recorded_agent(Begun(reply), recording, "desk", conversation="talk/0")
        await call.begin()
        assert await run_recorded_turn(call.in_own_loop(), (), "thread", 5.0) == [{"role": "assistant", "content": "yes"}]
        call.close()

    with Recording(path, "record") as recording:
        asyncio.run(use(recording))
    assert events == ["begin", "close"]
    with Recording(path, "replay") as recording:
        asyncio.run(use(recording))
    assert events.count("begin") == 1


def test_an_agent_without_a_recording_runs_as_before_and_a_plain_call_raises_its_failure(path: Path) -> None:
    call = as_agent(lambda messages: "hello")
    assert asyncio.run(run_recorded_turn(call, (), "thread", 5.0)) == [{"role": "assistant", "content": "hello"}]
    with Recording(path, "record") as recording:
        failing = recorded_agent(as_agent(raises), recording, "desk", conversation="talk/0")
        with pytest.raises(AgentError, match="the agent raised ValueError"):
            asyncio.run(failing((), "thread"))


# The real model -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("words", [None, DEFAULT_WEIGHTS], ids=["alone", "own words"])
def test_a_conversation_with_the_real_model_is_replayed_without_it(
    words: Any, ann: str, path: Path, request: pytest.FixtureRequest
) -> None:
    settings = Settings(k=4, window=3, traces="none", reasons=False, words=words)
    agent = unrepeatable_agent()
    with Recording(path, "record") as recording, load_user(ann, recording, model="local", settings=settings) as user:
        first = converse(user, recording, agent, (0,), concurrency=1)
    assert {raw["stop_reason"] for raw in first} <= {"max_turns", "user_stop"}
    request.getfixturevalue("no_network")
    with pytest.raises(ModelError):
        load_model("local")
    with Recording(path, "replay") as recording, load_user(ann, recording, model="local", settings=settings) as user:
        assert (user.model.token_writer is None, user.model.context_tokens) == (False, 4096)
        assert converse(user, recording, None, (0,), concurrency=1) == first
        recording.check()
