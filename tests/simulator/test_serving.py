"""`usertwin serve`: the official OpenAI client, raw requests, hostile input, limits, and several twins at once."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from desk_talk import TALK, scripted_twin

from conftest import function_model
from usertwin.memory import Settings
from usertwin.personas import ModelError, TwinError
from usertwin.simulator import SimulatedUser
from usertwin.simulator.serving.app import TwinServer, is_loopback
from usertwin.simulator.serving.errors import RequestError
from usertwin.simulator.serving.limits import Limits, RateLimit
from usertwin.simulator.serving.requests import read_chat, read_response

uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("starlette", reason="needs the extra serve")

TOKEN = "canary-token-0123456789"
ASKED = [{"role": "assistant", "content": "Hello, what can I do for you?"}]


class Running:
    """A server on a free port of the loopback interface, with what it logs."""

    def __init__(self, twins: dict[str, SimulatedUser], limits: Limits, token: str, seed: int) -> None:
        self.log: list[str] = []
        app = TwinServer(twins, limits, token=token, seed=seed, log=self.log.append).app()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", http="h11"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.listener.close()

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, **options)

    def post(self, body: Any, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        options.setdefault("headers", {"Content-Type": "application/json"})
        return httpx.post(self.url + path, content=raw, timeout=60, trust_env=False, **options)

    def error(self, body: Any, path: str = "/v1/chat/completions", **options: Any) -> dict[str, Any]:
        """Return the error that a request gets, with its status."""
        answer = self.post(body, path, **options)
        assert list(answer.json()) == ["error"], answer.text
        assert list(answer.json()["error"]) == ["message", "type", "param", "code"]
        return answer.json()["error"] | {"status": answer.status_code}


Serve = Callable[..., Running]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Return a function that serves twins by name; it takes limits by name, a token and a seed."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    started: list[Running] = []

    def start(twins: dict[str, SimulatedUser], *, token: str = "", seed: int = 0, **limits: Any) -> Running:
        started.append(Running(twins, Limits(**limits), token, seed))
        return started[-1]

    yield start
    for running in started:
        running.close()


@pytest.fixture
def ann_user(ann: str) -> Iterator[SimulatedUser]:
    with scripted_twin(ann) as user:
        yield user


@pytest.fixture
def running(ann_user: SimulatedUser, serve: Serve) -> Running:
    return serve({"ann": ann_user})


def echo_twin(ann: str, reply: Callable[[str, int], str] = lambda prompt, seed: f"turn with seed {seed}") -> SimulatedUser:
    """Return a twin whose turn is a function of prompt and seed."""
    model, _ = function_model(reply)
    return SimulatedUser.load(ann, model=model, settings=Settings(reasons=False))


# The official client -----------------------------------------------------------------------------------------------------


def test_a_chat_completion(running: Running) -> None:
    answer = running.client().chat.completions.create(model="ann", messages=ASKED)  # pyright: ignore
    [choice] = answer.choices
    assert (answer.model, answer.object) == ("ann", "chat.completion")
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TALK[1], "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    extra = answer.model_extra["usertwin"]  # pyright: ignore
    assert (extra["done"], extra["reasoning"], extra["seed"], extra["ignored"]) == (False, TALK[0], 0, [])
    assert [set(memory) for memory in extra["recalled"]] == [{"id", "similarity"}] * len(extra["recalled"])
    assert extra["recalled"]


def test_an_empty_conversation_lets_the_twin_begin(running: Running) -> None:
    answer = running.client().chat.completions.create(model="ann", messages=[])
    assert answer.choices[0].message.content == TALK[1]


def test_a_streamed_chat_completion_is_the_same_turn_in_pieces(running: Running) -> None:
    stream = running.client().chat.completions.create(
        model="ann",
        messages=ASKED,
        stream=True,
        stream_options={"include_usage": True},  # pyright: ignore
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(filter(None, pieces)) == TALK[1]
    assert len(pieces) > 4
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-2:] == [None, "stop"]
    assert chunks[-2].model_extra["usertwin"]["reasoning"] == TALK[0]  # pyright: ignore
    assert not chunks[-1].choices
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_asynchronous_client(running: Running) -> None:
    async def ask() -> tuple[str | None, list[str | None]]:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none") as client:
            whole = await client.chat.completions.create(model="ann", messages=[])
            stream = await client.chat.completions.create(model="ann", messages=ASKED, stream=True)  # pyright: ignore
            return whole.choices[0].message.content, [chunk.choices[0].delta.content async for chunk in stream]

    whole, pieces = asyncio.run(ask())
    assert (whole, "".join(filter(None, pieces))) == (TALK[1], TALK[3])


def test_a_response(running: Running) -> None:
    answer = running.client().responses.create(model="ann", input="Which day?", instructions="You want the weather.")
    assert (answer.output_text, answer.status, answer.instructions) == (TALK[1], "completed", "You want the weather.")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0
    assert answer.model_extra["usertwin"]["reasoning"] == TALK[0]  # pyright: ignore


def test_a_streamed_response(running: Running) -> None:
    with running.client().responses.stream(model="ann", input=ASKED) as stream:  # pyright: ignore
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == TALK[1]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") == len(TALK[1].split())


def test_models(running: Running) -> None:
    client = running.client()
    [model] = client.models.list().data
    assert (model.id, model.owned_by) == ("ann", "usertwin")
    assert model.created > 1_700_000_000
    assert client.models.retrieve("ann") == model
    with pytest.raises(openai.NotFoundError, match="its twins: ann"):
        client.models.retrieve("bob")


def test_langchain_talks_with_a_twin(running: Running) -> None:
    from langchain_core.messages import AIMessage, SystemMessage
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model="ann", base_url=f"{running.url}/v1", api_key="none", seed=3)  # pyright: ignore[reportArgumentType]
    answer = chat.invoke([SystemMessage("You want the weather."), AIMessage("Hello, what can I do for you?")])
    assert answer.content == TALK[1]


def test_curl(running: Running) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    body = json.dumps({"model": "ann", "messages": ASKED, "stream": True})
    command = ["curl", "-sN", f"{running.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-2]]
    assert "".join(delta.get("content", "") for delta in deltas) == TALK[1]


# What reaches the twin ---------------------------------------------------------------------------------------------------


def test_roles_goal_and_seed_reach_the_twin(ann: str, serve: Serve) -> None:
    prompts = list[str]()

    def reply(prompt: str, seed: int) -> str:
        prompts.append(prompt)
        return f"turn with seed {seed}"

    with echo_twin(ann, reply) as user:
        running = serve({"ann": user}, seed=5)
        messages = [
            {"role": "system", "content": "You want a window seat."},
            {"role": "assistant", "content": "Welcome aboard."},
            {"role": "user", "content": [{"type": "text", "text": "hello there"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {}}]},
            {"role": "tool", "tool_call_id": "1", "content": "seats: 0"},
            {"role": "assistant", "content": "It is full."},
        ]
        answers = [
            running.client().chat.completions.create(model="ann", messages=messages, **options)  # pyright: ignore
            for options in ({}, {"seed": 7}, {"metadata": {"seed": "7", "goal": "You want to complain."}})
        ]
    texts = [answer.choices[0].message.content for answer in answers]
    assert texts == [f"turn with seed {5 * 7919 + 3}", f"turn with seed {7 * 7919 + 3}", f"turn with seed {7 * 7919 + 3}"]
    assert all(text in prompts[0] for text in ("You want a window seat.", "Welcome aboard.", "hello there", "It is full."))
    assert "seats: 0" not in prompts[0]
    assert "You want to complain." in prompts[2]
    assert prompts[0] == prompts[1]


def test_roles_can_be_swapped_for_tools_in_which_the_model_is_the_assistant(ann: str, serve: Serve) -> None:
    prompts = list[str]()
    with echo_twin(ann, lambda prompt, seed: prompts.append(prompt) or "a seat please") as user:
        running = serve({"ann": user})
        messages = [{"role": "assistant", "content": "hello there"}, {"role": "user", "content": "Welcome aboard."}]
        body = {"model": "ann", "messages": messages}
        assert 'set "metadata": {"twin_role": "assistant"}' in running.error(body)["message"]
        swapped = running.post(body | {"usertwin": {"twin_role": "assistant"}}).json()
        plain = running.post({"model": "ann", "messages": [
            {"role": "user", "content": "hello there"}, {"role": "assistant", "content": "Welcome aboard."}
        ]}).json()  # fmt: skip
    assert swapped["choices"] == plain["choices"]
    assert prompts[0] == prompts[1]


def test_the_twin_that_leaves_says_so(ann: str, serve: Serve) -> None:
    with scripted_twin(ann, "is done", "no thats all thank you bye") as user:
        user.last_turn = type("Leaves", (), {"leaves": lambda self, pair: True})()  # pyright: ignore
        answer = serve({"ann": user}).post({"model": "ann", "messages": ASKED}).json()
    assert answer["usertwin"]["done"] is True
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["message"]["content"] == "no thats all thank you bye"


def test_a_twin_that_leaves_without_a_word_sends_an_empty_turn(ann: str, serve: Serve) -> None:
    with scripted_twin(ann) as user:
        user.abandonment = type("Leaves", (), {"leaves": lambda self, neighbours, query: True})()  # pyright: ignore
        messages = [{"role": "user", "content": "hi"}, *ASKED]
        running = serve({"ann": user})
        answer = running.post({"model": "ann", "messages": messages}).json()
        streamed = running.post({"model": "ann", "input": messages, "stream": True}, "/v1/responses").text
    assert answer["choices"][0]["message"]["content"] == ""
    assert answer["usertwin"]["done"] is True
    assert '"status": "completed"' in streamed


def test_the_turn_is_cut_at_a_stop_text(running: Running) -> None:
    answer = running.client().chat.completions.create(model="ann", messages=[], stop=["Oslo", "nowhere"])
    assert answer.choices[0].message.content == TALK[1].partition("Oslo")[0]


def test_what_is_ignored_is_said(running: Running) -> None:
    body = {
        "model": "ann", "temperature": 0.1, "max_tokens": 5, "top_p": None, "tools": [], "tool_choice": "auto", "n": 1,
        "response_format": {"type": "text"}, "user": "me", "messages": [{"role": "assistant", "content": [
            {"type": "text", "text": "Which of these?"}, {"type": "image_url", "image_url": {"url": "data:,"}}
        ]}],
    }  # fmt: skip
    assert running.post(body).json()["usertwin"]["ignored"] == ["max_tokens", "temperature", "user", "content: image_url"]


# Bad input ---------------------------------------------------------------------------------------------------------------

BAD = [
    ({"n": 2}, "n is 2; a twin says one turn", "n"),
    ({"n": True}, "n is true; give a whole number", "n"),
    ({"tools": [{"type": "function"}]}, "tools is not supported: a twin writes text and calls no tools", "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format is not supported", "response_format"),
    ({"logprobs": True}, "logprobs is not supported", "logprobs"),
    ({"model": "bob"}, 'model "bob" is not a twin of this server; its twins: ann', "model"),
    ({"model": "../ann"}, "is not a twin of this server", "model"),
    ({"model": 3}, "model is 3; give a text", "model"),
    ({"messages": "hi"}, 'messages is "hi"; give a list of messages', "messages"),
    ({"messages": None}, "messages is null", "messages"),
    ({"messages": [3]}, "messages[0] is 3", "messages[0]"),
    ({"messages": [{"role": "boss", "content": "hi"}]}, 'messages[0].role is "boss"; it must be one of', "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role is", "messages[0].role"),
    ({"messages": [{"role": "assistant", "content": 3}]}, 'needs a "content" that is text, not 3', "messages"),
    ({"messages": [{"role": "user", "content": "hi"}]}, "the last message is the twin's own", "messages"),
    ({"seed": 1.5}, "seed is 1.5; give a whole number", "seed"),
    ({"seed": 10**30}, "seed is", "seed"),
    ({"stream": "yes"}, 'stream is "yes"; give true or false', "stream"),
    ({"stream_options": 1}, "stream_options is 1; give an object", "stream_options"),
    ({"stop": [1]}, "stop is [1]; give a text, or at most 4 texts", "stop"),
    ({"metadata": "goal"}, 'metadata is "goal"; give an object', "metadata"),
    ({"metadata": {"goal": 3}}, "goal is 3; give a text", "goal"),
    ({"usertwin": {"gaol": "x"}}, 'usertwin: there is no field "gaol"', "usertwin"),
    ({"usertwin": {"twin_role": "system"}}, 'twin_role is "system"', "twin_role"),
]  # fmt: skip


def test_wrong_fields_are_named(running: Running) -> None:
    for fields, message, param in BAD:
        error = running.error({"model": "ann", "messages": ASKED} | fields)
        assert message in error["message"]
        assert (error["status"], error["param"]) == (404 if "not a twin" in message else 400, param), message


BROKEN = [
    (b"", "it is not JSON"),
    (b"{", "it is not JSON"),
    (b"[]", "the body is [];"),
    (b'"hi"', 'the body is "hi"'),
    (b'{"model": "ann", "model": "bob"}', "occurs twice"),
    (b'{"model": NaN}', "NaN"),
    (b'{"model": "\xff"}', "UTF-8"),
    (b"[" * 50_000, "nested too deeply"),
    (b'{"messages": ' + b'{"a":' * 200 + b"1" + b"}" * 201, "nested too deeply"),
    (b'{"seed": ' + b"9" * 5000 + b"}", "digits"),
    (b"{}", "messages is missing"),
    (b'{"messages": []}', "model is missing"),
]


def test_broken_bodies_are_refused(running: Running) -> None:
    for raw, message in BROKEN:
        error = running.error(raw)
        assert message in error["message"]
        assert error["status"] == 400


def test_half_a_character_is_replaced_and_control_characters_are_kept_from_the_log(running: Running) -> None:
    answer = running.post(b'{"model": "ann", "messages": [{"role": "assistant", "content": "\\ud83d and \\u0000\\u001b[2J"}]}')
    assert answer.status_code == 200
    error = running.error(b'{"model": "\\ud83d\\u001b[2J", "messages": []}')
    assert error["code"] == "model_not_found"
    httpx.get(f"{running.url}/v1/%1b[2J", trust_env=False)
    assert "\x1b" not in "".join(running.log)


def test_a_body_that_is_too_large_is_refused(ann_user: SimulatedUser, serve: Serve) -> None:
    running = serve({"ann": ann_user}, body_bytes=10_000)
    body = {"model": "ann", "messages": [{"role": "assistant", "content": "x" * 20_000}]}
    assert running.error(body)["message"] == "the body is larger than 10,000 bytes; send fewer or shorter messages"

    def pieces() -> Iterator[bytes]:
        yield from [b"x" * 1000] * 30

    headers = {"Content-Type": "application/json"}
    chunked = httpx.post(f"{running.url}/v1/responses", content=pieces(), headers=headers, trust_env=False)
    assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "request_too_large")


def test_a_body_that_does_not_arrive_is_given_up(ann_user: SimulatedUser, serve: Serve) -> None:
    running = serve({"ann": ann_user}, body_seconds=0.05)
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as client:
        head = f"POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nContent-Type: application/json\r\n"
        client.sendall(head.encode() + b"Content-Length: 100\r\n\r\n{")
        assert b"408" in client.recv(4096)


def test_another_path_or_method_or_type_is_refused_in_the_same_shape(running: Running) -> None:
    assert running.error({}, "/v1/embeddings")["message"].startswith("there is nothing at this path")
    assert running.error({}, "/v1/models")["status"] == 405
    assert running.error({}, headers={"Content-Type": "text/plain"})["status"] == 415
    assert httpx.get(f"{running.url}/health", trust_env=False).json() == {"status": "ok"}


WRONG_RESPONSES = [
    ({"input": 3}, "input is 3"),
    ({"previous_response_id": "resp_1"}, "the server keeps no conversations"),
    ({"background": True}, "background is not supported"),
    ({"input": [{"type": "item_reference", "id": "1"}]}, "input[0].role is null"),
    ({"instructions": 3}, "instructions is 3; give a text"),
    ({"text": {"format": {"type": "json_schema"}}}, "text is not supported"),
]


def test_wrong_fields_of_a_response_are_named(running: Running) -> None:
    for fields, message in WRONG_RESPONSES:
        error = running.error({"model": "ann", "input": "hi"} | fields, "/v1/responses")
        assert error["status"] == 400
        assert message in error["message"]


def test_what_the_agents_tools_did_is_not_shown_to_the_twin() -> None:
    items = [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "One moment."}]},
        {"type": "function_call", "name": "f", "call_id": "1", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "secret"},
    ]
    request = read_response(json.dumps({"model": "ann", "input": items}).encode())
    assert [message["role"] for message in request.messages] == ["assistant"]


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_text_is_what_the_agent_says_however_roles_are_called(role: str) -> None:
    request = read_response(json.dumps({"model": "ann", "input": "hi", "metadata": {"twin_role": role}}).encode())
    assert request.messages == ({"role": "agent", "content": "hi"},)


# Failures ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ModelError("the model did not answer"), 503, "model_unavailable"),
        (TwinError("no turn in four attempts"), 500, "twin_error"),
        (ValueError(f"a text with {TOKEN}"), 500, "internal_error"),
        (TimeoutError(), 504, "timeout"),
    ],
    ids=["model", "twin", "other", "time"],
)
def test_a_failed_turn_has_a_status(error: Exception, status: int, code: str, ann_user: SimulatedUser, serve: Serve) -> None:
    async def fail(*args: Any, **options: Any) -> Any:
        raise error

    ann_user.arespond = fail  # pyright: ignore
    running = serve({"ann": ann_user})
    for stream in (False, True):
        answer = running.error({"model": "ann", "messages": ASKED, "stream": stream})
        assert (answer["status"], answer["code"], answer["type"]) == (status, code, "server_error")
        assert TOKEN not in answer["message"]
    assert TOKEN not in "".join(running.log)
    assert ("ValueError at fail:" in "".join(running.log)) == (code == "internal_error")


def test_a_turn_that_takes_too_long_is_given_up(ann_user: SimulatedUser, serve: Serve) -> None:
    async def wait(*args: Any, **options: Any) -> Any:
        await asyncio.sleep(60)

    ann_user.arespond = wait  # pyright: ignore
    assert serve({"ann": ann_user}, turn_seconds=0.01).error({"model": "ann", "messages": []})["code"] == "timeout"


def test_a_turn_ends_when_its_caller_is_gone(ann_user: SimulatedUser, serve: Serve) -> None:
    began, ended = threading.Event(), threading.Event()

    async def wait(*args: Any, **options: Any) -> Any:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    ann_user.arespond = wait  # pyright: ignore
    running = serve({"ann": ann_user})
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as client:
        body = b'{"model": "ann", "messages": []}'
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}"
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        assert began.wait(20)
    assert ended.wait(20)


# Who may ask, and how much -----------------------------------------------------------------------------------------------


def test_a_token_is_asked_for_and_told_nobody(ann_user: SimulatedUser, serve: Serve) -> None:
    running = serve({"ann": ann_user}, token=TOKEN)
    for key in ("none", "x", TOKEN[:-1], TOKEN + "1", "ключ"):
        error = running.error(
            {"model": "ann", "messages": []},
            headers={"Authorization": f"Bearer {key}".encode(), "Content-Type": "application/json"},
        )
        assert (error["status"], error["code"]) == (401, "invalid_api_key")
        assert TOKEN not in str(error)
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=TOKEN)
    assert client.chat.completions.create(model="ann", messages=[]).choices[0].message.content == TALK[1]
    with pytest.raises(openai.AuthenticationError):
        running.client().models.list()
    assert TOKEN not in "".join(running.log)


def test_without_a_token_only_this_machine_may_ask(running: Running) -> None:
    """A web page can make a name of its own point to 127.0.0.1."""
    headers = {"Host": "evil.example", "Content-Type": "application/json"}
    assert running.error({"model": "ann", "messages": []}, headers=headers)["code"] == "wrong_host"
    assert running.post({"model": "ann", "messages": []}, headers=headers | {"Host": "localhost:1"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("LocalHost", True), ("0.0.0.0", False),
     ("::", False), ("10.0.0.1", False), ("example.com", False), ("127.0.0.1.evil.com", False), ("", False)],
)  # fmt: skip
def test_loopback_addresses(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_client_that_asks_too_often_has_to_wait(ann_user: SimulatedUser, serve: Serve) -> None:
    running = serve({"ann": ann_user}, per_minute=2)
    statuses = [running.post({"model": "ann", "messages": []}).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    answer = running.post({"model": "ann", "messages": []})
    assert int(answer.headers["retry-after"]) in range(1, 31)


def test_the_rate_is_refilled_evenly_and_for_each_client() -> None:
    now = [0.0]
    rate = RateLimit(60, lambda: now[0])
    for _ in range(60):
        rate.take("a")
    rate.take("b")
    with pytest.raises(RequestError, match="more than 60 requests in a minute; wait 1 s"):
        rate.take("a")
    now[0] = 2.0
    rate.take("a")
    rate.take("a")
    with pytest.raises(RequestError):
        rate.take("a")


def test_requests_beyond_those_that_may_wait_are_refused(ann_user: SimulatedUser, serve: Serve) -> None:
    respond, release = ann_user.arespond, threading.Event()
    began = threading.Semaphore(0)

    async def slow(*args: Any, **options: Any) -> Any:
        began.release()
        await asyncio.to_thread(release.wait, 30)
        return await respond(*args, **options)

    ann_user.arespond = slow  # pyright: ignore
    running = serve({"ann": ann_user}, concurrency=1, waiting=0)
    body, results = {"model": "ann", "messages": []}, list[int]()
    first = threading.Thread(target=lambda: results.append(running.post(body).status_code))
    first.start()
    assert began.acquire(timeout=30)
    assert running.error(body)["code"] == "server_busy"
    release.set()
    first.join()
    assert results == [200]
    assert running.post(body).status_code == 200


def test_several_twins_answer_at_once_each_for_itself(ann: str, serve: Serve) -> None:
    names = ("ann", "bea", "cem")
    twins = {name: echo_twin(ann, lambda prompt, seed, name=name: f"{name} with seed {seed}") for name in names}
    running = serve(twins, concurrency=4)

    async def ask_all() -> list[tuple[str, int, str | None]]:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none") as client:

            async def ask(name: str, seed: int) -> tuple[str, int, str | None]:
                answer = await client.chat.completions.create(model=name, messages=[], seed=seed)
                return name, seed, answer.choices[0].message.content

            return await asyncio.gather(*(ask(name, seed) for name in names for seed in range(8)))

    answers = asyncio.run(ask_all())
    assert len(answers) == 24
    assert all(text == f"{name} with seed {seed * 7919}" for name, seed, text in answers)
    for user in twins.values():
        user.close()


def test_a_request_without_anything_but_the_twin() -> None:
    request = read_chat(b'{"model": "ann", "messages": [], "usertwin": {"goal": "You want a seat.", "seed": 3}}')
    assert (request.twin, request.messages, request.goal, request.seed) == ("ann", (), "You want a seat.", 3)
