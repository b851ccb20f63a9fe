"""Any HTTP endpoint as an agent by a TOML file: what is sent, what is read, and which files are refused with their line."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cli_runner import WEATHER, run, write_script
from desk_talk import scripted_twin

from usertwin.personas import AgentError, UsageError
from usertwin.simulator import as_agent, http_agent, simulate

TALK = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": 'a "bell"\nplease'},
]
KEY = "canary-of-the-desk"


class Desk:
    """A server whose answer is a function of the request: JSON, a text, bytes with their type, or (status, text)."""

    def __init__(self) -> None:
        self.requests = list[dict[str, Any]]()
        self.rule: Callable[[Any], Any] = lambda body: {"answer": {"text": "Which one?"}, "session": "s-1", "cart": ["bell"]}
        desk = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # named by the standard library
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = json.loads(raw) if raw else None
                headers = {name.lower(): value for name, value in self.headers.items()}
                desk.requests.append({"method": self.command, "path": self.path, "headers": headers, "body": body})
                answer, status, kind, extra = desk.rule(body), 200, "application/json", {}
                if isinstance(answer, tuple) and isinstance(answer[0], int):
                    status, answer, *rest = answer
                    extra = rest[0] if rest else {}
                elif isinstance(answer, tuple):
                    answer, kind = answer
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **extra}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DESK_KEY", KEY)
    server = Desk()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def write(tmp_path: Path, desk: Desk) -> Callable[[str], str]:
    """Return a function that writes a mapping file and returns the name of its agent; URL stands for the server's."""

    def write_file(text: str) -> str:
        path = tmp_path / "desk.toml"
        path.write_text(text.replace("URL", desk.url), "utf-8")
        return f"http:{path}"

    return write_file


Write = Callable[[str], str]


def ask(agent: Any, messages: list[dict[str, Any]] = TALK, thread_id: str = "t/1") -> list[str]:
    replies = asyncio.run(as_agent(agent)(messages, thread_id))  # pyright: ignore[reportArgumentType]
    return [reply["content"] for reply in replies]


PLAIN = 'url = "URL/chat"\nreply = "/answer/text"\n[body]\ntext = "{message}"\n'

# Requests and replies ---------------------------------------------------------------------------------------------------


def test_placeholders_and_secrets_are_filled_in(desk: Desk, write: Write) -> None:
    agent = write(
        'url = "URL/threads/{thread_id}/chat"\nmethod = "PUT"\nreply = "/answer/text"\nstate = "/cart"\n'
        '[headers]\nAuthorization = "Bearer ${DESK_KEY}"\nX-Thread = "{thread_id}"\n'
        '[body]\ntext = "{message}"\nall = "{messages}"\nbefore = "{history}"\nnote = "to {thread_id}: {message} {x}y"\n'
        'fixed = 3\nnested = [{ deep = "{message}" }]\n'.replace("{x}", "")
    )
    call = as_agent(agent)
    assert ask(call) == ["Which one?"]
    [request] = desk.requests
    text = TALK[-1]["content"]
    assert (request["method"], request["path"]) == ("PUT", "/threads/t%2F1/chat")
    assert (request["headers"]["authorization"], request["headers"]["x-thread"]) == (f"Bearer {KEY}", "t/1")
    assert request["body"] == {
        "text": text, "all": TALK, "before": TALK[:2], "note": f"to t/1: {text} y", "fixed": 3, "nested": [{"deep": text}],
    }  # fmt: skip
    assert call.state_of("t/1") == ["bell"]
    assert call.state_of("t/1") is None


def test_a_jmespath_expression_finds_the_reply(desk: Desk, write: Write) -> None:
    pytest.importorskip("jmespath")
    desk.rule = lambda body: {"output": [{"type": "log", "text": "SECRET"}, {"type": "text", "text": "Which one?"}]}
    assert ask(write(PLAIN.replace("/answer/text", "output[?type=='text'].text | [0]"))) == ["Which one?"]


@pytest.mark.parametrize(
    ("answer", "replies"),
    [
        ("Which one?", ["Which one?"]),
        (42, ["42"]),
        (["Well.", "Which one?"], ["Well.", "Which one?"]),
        ([{"role": "assistant", "content": "Which one?"}], ["Which one?"]),
        ([*TALK, {"role": "assistant", "content": "Which one?"}], ["Which one?"]),
    ],
)
def test_the_reply_has_any_shape_that_a_function_may_return(desk: Desk, write: Write, answer: Any, replies: list[str]) -> None:
    desk.rule = lambda body: {"answer": {"text": answer}}
    assert ask(write(PLAIN)) == replies


def test_an_answer_without_an_expression_is_text_or_a_message(desk: Desk, write: Write) -> None:
    agent = as_agent(write('url = "URL"\n[body]\ntext = "{message}"\n'))
    for answer in ((b"Which one?", "text/plain"), {"content": "Which one?"}, "Which one?", {"reply": "Which one?"}):
        desk.rule = lambda body, answer=answer: answer
        assert ask(agent) == ["Which one?"]


def test_what_the_server_gives_is_kept_for_its_conversation(desk: Desk, write: Write) -> None:
    agent = as_agent(write(PLAIN + 'session = "{id}"\n[keep]\nid = "/session"\n'))
    for thread in ("one", "one", "two"):
        ask(agent, thread_id=thread)
    agent.state_of("one")  # the conversation is over
    ask(agent, thread_id="one")
    assert [request["body"].get("session") for request in desk.requests] == [None, "s-1", None, None]
    assert "session" not in desk.requests[0]["body"]


def test_a_get_request_has_its_text_in_the_url(desk: Desk, write: Write) -> None:
    assert ask(write('url = "URL/ask?q={message}"\nmethod = "GET"\nreply = "/answer/text"\n')) == ["Which one?"]
    assert desk.requests[0]["path"] == "/ask?q=a%20%22bell%22%0Aplease"
    assert desk.requests[0]["body"] is None


@pytest.mark.parametrize(
    ("stream", "answer", "kind"),
    [
        ("", b'event: e\ndata: {"answer": {"text": "Which "}}\n\n:\ndata: {"answer": {"text": "one?"}}\n\ndata: [DONE]\n\n',
         "text/event-stream"),
        ("sse", b'data: {"answer": {"text": "Which "}}\n\ndata: {"end": true}\n\ndata: {"answer": {"text": "one?"}}\n\n',
         "text/plain"),
        ("lines", b'{"answer": {"text": "Which "}}\n\n{"answer": {"text": "Which one?"}}\n', "application/x-ndjson"),
    ],
)  # fmt: skip
def test_streams_are_joined(desk: Desk, write: Write, stream: str, answer: bytes, kind: str) -> None:
    desk.rule = lambda body: (answer, kind)
    assert ask(write((f'stream = "{stream}"\n' if stream else "") + PLAIN)) == ["Which one?"]


def test_a_stream_of_text_is_joined(desk: Desk, write: Write) -> None:
    desk.rule = lambda body: ("Which öne?".encode(), "text/plain")
    assert ask(write('url = "URL"\nstream = "text"\n[body]\ntext = "{message}"\n')) == ["Which öne?"]
    desk.rule = lambda body: (b"data: Which \n\ndata: one?\n\n", "text/event-stream")
    assert ask(write('url = "URL"\n[body]\ntext = "{message}"\n')) == ["Which one?"]


def test_a_login_in_the_url_is_sent_and_not_shown(desk: Desk, write: Write) -> None:
    desk.rule = lambda body: (500, b"broken")
    agent = write(PLAIN.replace("URL", desk.url.replace("//", "//ann:canary-pw@")))
    with pytest.raises(AgentError, match="answered 500") as caught:
        ask(agent)
    assert desk.requests[0]["headers"]["authorization"] == "Basic YW5uOmNhbmFyeS1wdw=="
    assert "canary" not in str(caught.value)


# Failures ---------------------------------------------------------------------------------------------------------------


def test_failures_of_the_server_are_errors_of_the_agent_without_keys(desk: Desk, write: Write) -> None:
    agent = as_agent(write(PLAIN + '[headers]\nX-Api-Key = "${DESK_KEY}"\n'))
    for answer, complaint in (
        ((401, f"no such key {KEY}".encode()), r"answered 401 Unauthorized: no such key \*\*\*"),
        ({"error": "closed", "code": 7}, 'has nothing at reply = "/answer/text"; it has error, code'),
        ((b"<html>", "text/html"), "is no JSON"),
        ({"answer": {"text": ""}}, "an empty reply"),
    ):
        desk.rule = lambda body, answer=answer: answer
        with pytest.raises(AgentError, match=complaint) as caught:
            ask(agent)
        assert KEY not in str(caught.value)


def test_a_busy_server_is_asked_again(desk: Desk, write: Write) -> None:
    answers: Iterator[Any] = iter(
        [(503, b"", {"Retry-After": "0"}), (429, b"", {"Retry-After": "0"}), {"answer": {"text": "Which one?"}}]
    )
    desk.rule = lambda body: next(answers)
    assert ask(write(PLAIN)) == ["Which one?"]
    desk.rule = lambda body: (429, b"slow down", {"Retry-After": "0"})
    with pytest.raises(AgentError, match="answered 429 Too Many Requests: slow down"):
        ask(write(PLAIN))


def test_a_server_that_is_not_there_is_an_error_of_the_agent(write: Write, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usertwin.simulator.agents.http_file._ATTEMPTS", 1)
    agent = write(PLAIN.replace("URL", "http://127.0.0.1:9"))
    with pytest.raises(AgentError, match=r"http://127.0.0.1:9/chat did not answer: ConnectError"):
        ask(agent)


# The file ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('url = "URL"\nreply = \n', r":2: it is not TOML"),
        ('reply = "x"\n', r":1: url: field required"),
        ('url = "URL"\n\nreplies = "x"\n', r":3: replies: "),
        ('url = "URL"\nmethod = "DELETE"\n', r":2: method: "),
        ('url = "URL"\n[headers]\nX-Count = 3\n', r":3: headers.X-Count: "),
        ('url = "URL"\n[body]\n# the text\ntext = "{mesage}"\n',
         r':4: "\{mesage\}" is not a placeholder; use \{history\}, \{message\}, \{messages\}, \{thread_id\}'),
        ('url = "URL"\n[headers]\nAuthorization = "Bearer ${NO_SUCH_KEY}"\n',
         r":3: the environment variable NO_SUCH_KEY is not set; set it"),
        ('url = "desk.example/chat"\n', r':1: "desk.example/chat" is not a URL of http or https'),
        ('url = "URL"\n[keep]\nmessage = "/x"\n', r':3: \[keep\] names "message", which is a placeholder of ours'),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_its_line_and_a_way_out(write: Write, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=r"desk\.toml" + complaint) as caught:
        as_agent(write(text))
    assert ";" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_expression_is_refused(write: Write) -> None:
    pytest.importorskip("jmespath")
    with pytest.raises(UsageError, match=r'desk.toml:2: reply: "answer\[" is not a JMESPath expression'):
        as_agent(write('url = "URL"\nreply = "answer["\n'))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.toml: no such file; docs/agents.md shows such a file"):
        http_agent(tmp_path / "none.toml")


# With a twin ------------------------------------------------------------------------------------------------------------


def test_an_http_agent_talks_with_a_twin(ann: str, desk: Desk, write: Write, tmp_path: Path) -> None:
    agent = write(PLAIN)
    with scripted_twin(ann) as user:
        assert [simulate(user, agent, max_turns=2).stop_reason for _ in range(2)] == ["max_turns"] * 2
    script = write_script(tmp_path, *WEATHER)
    result = run("simulate", ann, "--agent", agent, "--model", script, "--max-turns", "1", "--count", "2")
    assert result.exit_code == 0, result.output
    assert len(desk.requests) == 6
