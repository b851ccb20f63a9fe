"""OpenAI-compatible endpoints as agents: both APIs, streams, limits, and servers that want roles to alternate."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from desk_talk import scripted_twin

from conftest import Endpoint
from usertwin.personas import AgentError, ModelError, UsageError
from usertwin.simulator import as_agent, endpoint_agent, simulate

TALK = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "a bell"},
]
KEY = "sk-canary-of-the-endpoint"


class Server:
    """A server whose answer is a function of the request: a JSON body, the events of a stream, or (status, error)."""

    def __init__(self, rule: Callable[[dict[str, Any]], Any]) -> None:
        self.requests = list[dict[str, Any]]()
        self.headers = list[dict[str, str]]()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # named by the standard library
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body | {"path": self.path})
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                answer = rule(body)
                status, kind = 200, "application/json"
                if isinstance(answer, tuple):
                    status, answer = answer[0], {"error": {"message": answer[1], "type": "invalid_request_error"}}
                raw = json.dumps(answer).encode()
                if isinstance(answer, list):
                    kind = "text/event-stream"
                    raw = "".join(f"data: {json.dumps(event)}\n\n" for event in answer).encode() + b"data: [DONE]\n\n"
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[dict[str, Any]], Any]], Server]]:
    """Start servers, and allow models that are not scripted."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = list[Server]()

    def start(rule: Callable[[dict[str, Any]], Any]) -> Server:
        servers.append(Server(rule))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


Serve = Callable[[Callable[[dict[str, Any]], Any]], Server]


def ask(agent: Any, messages: list[dict[str, Any]] = TALK) -> list[dict[str, Any]]:
    return asyncio.run(as_agent(agent)(messages, "t"))  # pyright: ignore[reportArgumentType]


def completion(finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": None} | message}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def chunks(*texts: str, finish_reason: str = "stop") -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": text} for text in texts), {}]
    reasons = [None] * (len(deltas) - 1) + [finish_reason]
    return [
        {
            "id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        }
        for delta, reason in zip(deltas, reasons, strict=True)
    ]  # fmt: skip


def response(*output: dict[str, Any], **fields: Any) -> dict[str, Any]:
    base = {"id": "r", "object": "response", "created_at": 1, "model": "m", "parallel_tool_calls": False, "tools": []}
    return base | {"tool_choice": "auto", "status": "completed", "output": list(output)} | fields


def output_text(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}


OK = {"role": "assistant", "content": "Which one?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "lookup", "arguments": "{}"}}


# What is sent and what comes back ---------------------------------------------------------------------------------------


def test_an_endpoint_gets_the_conversation_and_nothing_else(serve: Serve) -> None:
    server = serve(lambda body: completion(content="Which one?"))
    assert ask(f"openai:shop@{server.url}") == [OK]
    assert server.requests == [{"path": "/v1/chat/completions", "model": "shop", "messages": TALK}]


def test_options_of_the_user_are_sent(serve: Serve) -> None:
    server = serve(lambda body: completion(content="Which one?"))
    assert ask(endpoint_agent(f"openai:shop@{server.url}", options={"temperature": 0.0})) == [OK]
    assert server.requests[0]["temperature"] == 0.0


def test_the_path_of_a_url_names_the_api(serve: Serve) -> None:
    server = serve(lambda body: response(output_text("Which one?")) if "input" in body else completion(content="Which one?"))
    assert ask(f"openai:shop@{server.url}/chat/completions") == ask(f"openai:shop@{server.url}/responses") == [OK]
    assert ask(endpoint_agent(f"openai:shop@{server.url}", api="responses")) == [OK]
    assert [request["path"] for request in server.requests] == ["/v1/chat/completions", "/v1/responses", "/v1/responses"]
    assert server.requests[1] == {"path": "/v1/responses", "model": "shop", "input": TALK}


def test_streams_of_both_apis_are_joined(serve: Serve) -> None:
    events = [
        {"type": "response.output_text.delta", "delta": text, "item_id": "m", "output_index": 0, "content_index": 0,
         "sequence_number": 1, "logprobs": []} for text in ("Which ", "one?")
    ]  # fmt: skip
    done = {"type": "response.completed", "sequence_number": 3, "response": response(output_text("Which one?"))}
    server = serve(lambda body: [*events, done] if "input" in body else chunks("Which ", "one?"))
    for api in ("chat", "responses"):
        assert ask(endpoint_agent(f"openai:shop@{server.url}", api=api, stream=True)) == [OK]
    assert all(request["stream"] is True for request in server.requests)


def test_a_refusal_is_speech_and_a_call_of_a_tool_is_named(serve: Serve) -> None:
    server = serve(lambda body: completion(refusal="I cannot help."))
    assert ask(f"openai:shop@{server.url}") == [{"role": "assistant", "content": "I cannot help."}]
    server = serve(lambda body: completion(finish_reason="tool_calls", tool_calls=[CALL]))
    with pytest.raises(AgentError, match="the agent only called lookup"):
        ask(f"openai:shop@{server.url}")
    server = serve(lambda body: completion(content="One moment.", tool_calls=[CALL]))
    assert ask(f"openai:shop@{server.url}") == [{"role": "assistant", "content": "One moment.", "tool_calls": [CALL]}]


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_that_the_servers_limit_cut_is_passed_on_and_says_so(serve: Serve, stream: bool) -> None:
    def rule(body: dict[str, Any]) -> Any:
        return chunks("Which ", "on", finish_reason="length") if stream else completion("length", content="Which on")

    server = serve(rule)
    cut = {"role": "assistant", "content": "Which on", "finish_reason": "length"}
    agent = endpoint_agent(f"openai:shop@{server.url}", stream=stream)
    assert ask(agent) == [cut]
    ask(agent, [*TALK, cut, {"role": "user", "content": "sorry?"}])
    assert server.requests[-1]["messages"][3] == {"role": "assistant", "content": "Which on"}  # as the protocol has it


def test_a_response_that_the_servers_limit_cut_says_so_and_an_empty_one_is_an_error(serve: Serve) -> None:
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    server = serve(lambda body: response(output_text("Which on"), **cut))
    assert ask(f"openai:shop@{server.url}/responses") == [
        {"role": "assistant", "content": "Which on", "finish_reason": "length"}
    ]
    for empty in (response(**cut), completion("length", content="")):
        server = serve(lambda body, empty=empty: empty)
        path = "/responses" if "output" in empty else ""
        with pytest.raises(AgentError, match="stopped at a limit of the server before it answered"):
            ask(f"openai:shop@{server.url}{path}")


# Servers that want another form -----------------------------------------------------------------------------------------

#: Refusals of chat templates and servers, as they are known.
REFUSALS = [
    (400, "Conversation roles must alternate user/assistant/user/assistant/..."),
    (400, "After the optional system message, conversation roles must alternate user and assistant roles"),
    (500, "Jinja Exception: Conversation roles must alternate user/assistant/user/assistant/..."),
    (400, "The first message must be from the user"),
    (400, 'messages: first message must use the "user" role'),
    (400, "Conversations must start with a user prompt."),
    (
        422,
        "Expected last role User or Tool (or Assistant with prefix) for serving but got assistant, roles must alternate",
    ),
    (400, 'messages: roles must alternate between "user" and "assistant", but found multiple "user" roles in a row'),
    (400, "Please ensure that multiturn requests alternate between user and model."),
    (400, "consecutive user messages are not allowed"),
    (400, "No user query found in messages."),
]


@pytest.mark.parametrize(("status", "text"), REFUSALS)
def test_roles_are_adapted_only_when_the_server_refuses_and_that_is_said_once(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, status: int, text: str
) -> None:
    def rule(body: dict[str, Any]) -> Any:
        roles = [message["role"] for message in body["messages"]]
        right = all(role == ("user", "assistant")[i % 2] for i, role in enumerate(roles))
        return completion(content="Which one?") if right else (status, text)

    monkeypatch.setattr("usertwin.simulator.agents.endpoint._RETRIES", 0)
    server = serve(rule)
    agent = as_agent(f"openai:shop@{server.url}")
    with caplog.at_level(logging.WARNING, "usertwin.simulator"):
        ask(agent)
        assert caplog.text == ""
        talk = [{"role": "assistant", "content": "Hello!"}, TALK[0], *TALK[2:]]
        assert ask(agent, talk) == [OK]
        assert ask(agent, talk) == [OK]
    assert caplog.text.count("refused the conversation as it is") == 1
    assert len(server.requests) == 4  # the refused one is not sent again
    assert [message["role"] for message in server.requests[-1]["messages"]] == ["user", "assistant", "user"]
    assert server.requests[-1]["messages"][1:] == [talk[0], {"role": "user", "content": "hello\n\na bell"}]


def test_an_agent_may_open_the_conversation_with_a_server_that_wants_a_message(serve: Serve) -> None:
    server = serve(lambda body: completion(content="Hello!") if body["messages"] else (400, "messages: list is too short"))
    assert ask(f"openai:shop@{server.url}", []) == [{"role": "assistant", "content": "Hello!"}]
    assert [message["role"] for message in server.requests[-1]["messages"]] == ["user"]


def test_a_server_that_only_streams_is_asked_for_a_stream(serve: Serve) -> None:
    server = serve(lambda body: chunks("Which ", "one?") if body.get("stream") else (400, "stream must be set to true"))
    agent = as_agent(f"openai:shop@{server.url}")
    assert ask(agent) == ask(agent) == [OK]
    assert [request.get("stream") for request in server.requests] == [None, True, True]


def test_a_refusal_for_another_reason_is_an_error_of_the_agent(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", KEY)
    server = serve(lambda body: (401, f"wrong key {KEY}"))
    with pytest.raises(AgentError, match=r"the endpoint .* did not answer: AuthenticationError: .*wrong key \*\*\*"):
        ask(f"openai:shop@{server.url}#SHOP_KEY")
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_a_busy_server_is_asked_again(serve: Serve) -> None:
    answers = iter([(429, "slow down"), completion(content="Which one?")])
    assert ask(f"openai:shop@{serve(lambda body: next(answers)).url}") == [OK]


# What is refused up front -----------------------------------------------------------------------------------------------


def test_wrong_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match='"local" is not an endpoint; use openai:NAME'):
        endpoint_agent("local")
    with pytest.raises(UsageError, match='"completions" is not an API of an endpoint; use chat or responses'):
        endpoint_agent("openai:x", api="completions")  # pyright: ignore[reportArgumentType]
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    with pytest.raises(ModelError, match="needs a key: set OPENAI_API_KEY"):
        as_agent("openai:gpt-5-mini")


def test_an_endpoint_talks_with_a_twin(ann: str, endpoint: Endpoint) -> None:
    with scripted_twin(ann) as user:
        simulations = [simulate(user, f"openai:shop@{endpoint.url}", max_turns=2) for _ in range(2)]
    assert {(simulation.stop_reason, simulation.error) for simulation in simulations} == {("max_turns", None)}
    assert [len(request["messages"]) for request in endpoint.requests] == [1, 3, 1, 3]
