"""OpenTelemetry spans by the GenAI conventions: names, attributes, parents, errors, and no text unless it is asked for."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from desk_talk import TALK, Desk, scripted_twin

from conftest import function_model, scripted
from usertwin.memory.models.chat import ChatModel, sample
from usertwin.memory.models.completion_cache import CompletionCache
from usertwin.memory.tracing import is_traced, span
from usertwin.personas import ModelError
from usertwin.simulator import Scenario, SimulatedUser, asimulate, simulate, simulate_many
from usertwin.simulator.tracing import tracing

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="needs opentelemetry-sdk")
SECRET = "sk-canary-0123456789abcdef"


class Spans:
    """Finished spans of a tracer provider of its own."""

    def __init__(self) -> None:
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self.exporter, self.provider = InMemorySpanExporter(), sdk.TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def all(self) -> list[Any]:
        """The spans in the order in which they began."""
        return sorted(self.exporter.get_finished_spans(), key=lambda one: one.start_time)

    def named(self, name: str) -> list[Any]:
        return [one for one in self.all if one.name == name]

    def path(self, one: Any) -> str:
        """Return the names of a span and those above it, the root first."""
        above = next((other for other in self.all if one.parent and other.context.span_id == one.parent.span_id), None)
        return (f"{self.path(above)} > " if above else "") + one.name

    @property
    def text(self) -> str:
        """Everything that the spans hold."""
        return "\n".join(one.to_json() for one in self.all)


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def user(ann: str) -> Iterator[SimulatedUser]:
    with scripted_twin(ann) as user:
        yield user


def test_a_conversation_is_one_trace(user: SimulatedUser, spans: Spans) -> None:
    with tracing(tracer_provider=spans.provider):
        simulation = simulate(user, Desk(), max_turns=2, seed=3)
    assert len({one.context.trace_id for one in spans.all}) == 1
    chat, root = f"chat {user.model.name}", "invoke_workflow conversation"
    paths = [spans.path(one) for one in spans.all]
    assert paths[0] == root
    assert paths.count(f"{root} > invoke_agent ann") == paths.count(f"{root} > invoke_agent agent") == 2
    assert paths.count(f"{root} > invoke_agent ann > {chat}") == 4
    assert paths.count(f"{root} > invoke_agent ann > retrieval") == 2
    assert f"{root} > invoke_agent ann > retrieval > embeddings fake:256" in paths
    assert {one.attributes["gen_ai.conversation.id"] for one in spans.all} == {simulation.thread_id}
    assert all(one.name.split()[0] == one.attributes["gen_ai.operation.name"] for one in spans.all)


def test_the_attributes_follow_the_conventions(user: SimulatedUser, spans: Spans) -> None:
    names = pytest.importorskip("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")
    with tracing(tracer_provider=spans.provider):
        simulation = simulate(user, Desk(), max_turns=2, seed=3)
    known = {value for name, value in vars(names).items() if name.startswith("GEN_AI_")} | {"gen_ai.retrieval.top_k"}
    used = {name for one in spans.all for name in one.attributes}
    assert {name for name in used if name.startswith("gen_ai.")} <= known
    assert {name for name in used if not name.startswith(("gen_ai.", "usertwin."))} == set()
    turn, chat = spans.named("invoke_agent ann")[0], spans.named(f"chat {user.model.name}")[0]
    assert turn.attributes["gen_ai.agent.name"] == "ann"
    assert turn.attributes["gen_ai.request.model"] == user.model.name
    assert (turn.kind.name, chat.kind.name) == ("INTERNAL", "CLIENT")
    assert chat.attributes["gen_ai.request.seed"] == 3 * 7919
    assert chat.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert chat.attributes["gen_ai.request.temperature"] == 0.8
    answer = simulation.exchanges[0].answer
    assert turn.attributes["gen_ai.usage.output_tokens"] == answer.usage.output_tokens
    assert turn.attributes["usertwin.recalled"] == len(answer.recalled)
    [root] = spans.named("invoke_workflow conversation")
    assert root.attributes["gen_ai.usage.input_tokens"] == simulation.usage.input_tokens
    assert root.attributes["usertwin.stop_reason"] == "max_turns"
    assert root.attributes["usertwin.turns"] == 2


def test_spans_hold_no_text_unless_it_is_asked_for(user: SimulatedUser, spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(messages: Any) -> str:
        raise ValueError("the agent's secret")

    scenario = Scenario(name="refund", goal="You want the goal's refund.", max_turns=1)
    with tracing(tracer_provider=spans.provider):
        simulate(user, Desk("For which day?"), scenario=scenario)
        simulate(user, broken, scenario=scenario)
    said = [*TALK, "For which day?", "the goal's refund", "secret", "weather", "Oslo"]
    assert [text for text in said if text in spans.text] == []
    monkeypatch.setenv("USERTWIN_TRACE_CONTENT", "1")
    with tracing(tracer_provider=spans.provider, content=False):
        user.respond([])
    assert "messages" not in spans.text
    with tracing(tracer_provider=spans.provider):
        user.respond([])
    assert "gen_ai.output.messages" in spans.text


def test_text_has_the_form_of_the_conventions_and_no_key(
    user: SimulatedUser, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESK_API_KEY", SECRET)
    with tracing(tracer_provider=spans.provider, content=True):
        simulate(user, Desk(f"Your key is {SECRET}."), max_turns=1)
    [turn] = spans.named("invoke_agent agent")
    assert json.loads(turn.attributes["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": TALK[1]}]}
    ]
    assert json.loads(turn.attributes["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "Your key is ***."}], "finish_reason": "stop"}
    ]
    assert SECRET not in spans.text


def test_a_failure_of_the_agent_is_an_error_of_its_turn_and_of_the_conversation(user: SimulatedUser, spans: Spans) -> None:
    def broken(messages: Any) -> str:
        raise ValueError

    with tracing(tracer_provider=spans.provider):
        simulate(user, broken, max_turns=1)
    [turn], [root] = spans.named("invoke_agent agent"), spans.named("invoke_workflow conversation")
    assert turn.attributes["error.type"] == root.attributes["error.type"] == "agent_error"
    assert turn.status.status_code.name == root.status.status_code.name == "ERROR"
    assert root.attributes["usertwin.fault"] == "agent"
    assert {one.status.status_code.name for one in spans.named("invoke_agent ann")} == {"UNSET"}


def test_a_model_that_does_not_answer_is_an_error_of_each_span_above_it(ann: str, spans: Spans) -> None:
    def refuse(prompt: str, seed: int) -> str:
        raise RuntimeError(f"wrong key {SECRET}")

    model, _ = function_model(refuse)
    with SimulatedUser.load(ann, model=model) as user, tracing(tracer_provider=spans.provider):
        assert simulate(user, Desk(), max_turns=1).stop_reason == "model_unavailable"
    failed = {one.name: one.attributes["error.type"] for one in spans.all if one.status.status_code.name == "ERROR"}
    assert failed == {
        "chat telling": "ModelError", "invoke_agent ann": "ModelError", "invoke_workflow conversation": "model_unavailable"
    }  # fmt: skip
    assert SECRET not in spans.text
    assert not any(one.events for one in spans.all)


def test_several_completions_are_one_span(spans: Spans, tmp_path: Any) -> None:
    model = ChatModel("scripted:test", scripted("a b", "c d e").chat, cache=CompletionCache(tmp_path / "cache.sqlite"))

    async def twice() -> None:
        for _ in range(2):
            await sample(model, [("user", "hi")], n=2, max_tokens=None)

    with tracing(tracer_provider=spans.provider):
        asyncio.run(twice())
    first, second = spans.all
    assert first.attributes["gen_ai.request.choice.count"] == 2
    assert first.attributes["gen_ai.usage.output_tokens"] == 5
    assert len(first.attributes["gen_ai.response.finish_reasons"]) == 2
    assert "gen_ai.request.max_tokens" not in first.attributes
    assert "usertwin.cache_hit" not in first.attributes
    assert second.attributes["usertwin.cache_hit"] is True


def test_concurrent_conversations_have_traces_of_their_own(user: SimulatedUser, spans: Spans) -> None:
    with tracing(tracer_provider=spans.provider):
        simulations = simulate_many(user, Desk(), count=5, max_turns=1, concurrency=5)
    traces: dict[str, set[str]] = {}
    for one in spans.all:
        traces.setdefault(one.context.trace_id, set()).add(one.attributes["gen_ai.conversation.id"])
    assert sorted(map(sorted, traces.values())) == sorted([simulation.thread_id] for simulation in simulations)


def test_the_span_of_a_caller_is_the_parent(user: SimulatedUser, spans: Spans) -> None:
    async def nightly() -> None:
        with spans.provider.get_tracer("tests").start_as_current_span("nightly"):
            await asimulate(user, Desk(), max_turns=1)

    with tracing(tracer_provider=spans.provider):
        asyncio.run(nightly())
    assert "nightly > invoke_workflow conversation > invoke_agent agent" in [spans.path(one) for one in spans.all]


def test_spans_of_an_agent_are_below_its_turn(user: SimulatedUser, spans: Spans) -> None:
    def agent(messages: Any) -> str:
        with spans.provider.get_tracer("agents").start_as_current_span("look it up"):
            return "It rains."

    with tracing(tracer_provider=spans.provider):
        simulate(user, agent, max_turns=1)
    [inner] = spans.named("look it up")
    assert spans.path(inner) == "invoke_workflow conversation > invoke_agent agent > look it up"


def test_without_a_provider_nothing_is_traced(user: SimulatedUser) -> None:
    assert not is_traced()
    with span("chat", "m") as current:
        current.set({"a": 1})
        current.set_input([("user", "hi")])
        current.fail("ModelError", "text")
    assert simulate(user, Desk(), max_turns=1).stop_reason == "max_turns"


def test_a_no_op_provider_costs_as_little(user: SimulatedUser) -> None:
    from opentelemetry.trace import NoOpTracerProvider

    with tracing(tracer_provider=NoOpTracerProvider()):
        assert not is_traced()


#: A program that sets the provider of the process, as `opentelemetry-instrument` does.
PROGRAM = """
import sys
sys.path[:0] = {path!r}
from desk_talk import Desk, scripted_twin
from usertwin.simulator import simulate

with scripted_twin("ann") as user:
    simulate(user, Desk(), max_turns=1)
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
    simulate(user, Desk(), max_turns=1)
    exporter = ConsoleSpanExporter(formatter=lambda one: one.name + "\\n")
    trace.set_tracer_provider(TracerProvider())
    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
    simulate(user, Desk(), max_turns=1)
"""


def test_the_provider_of_the_process_is_used_once_it_is_set(ann: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(path=sys.path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split("\n").count("invoke_workflow conversation") == 1


def test_an_error_in_a_block_is_raised_and_named(spans: Spans) -> None:
    def fail() -> None:
        with span("chat", "m"):
            raise ModelError("the text of an error")

    with tracing(tracer_provider=spans.provider), pytest.raises(ModelError, match="the text of an error"):
        fail()
    [one] = spans.all
    assert one.attributes["error.type"] == "ModelError"
    assert one.status.description is None
