"""`usertwin serve` as a program: what it prints, its token, how it ends, and what it refuses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from cli_runner import error_of, write_script
from desk_talk import TALK

from conftest import Endpoint

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("starlette", reason="needs the extra serve")

KEY = "sk-canary-0123456789abcdef"
BODY = {"model": "ann", "messages": []}


class Program:
    """A running `usertwin serve`, with what it has printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.printed = process, list[str]()
        assert process.stderr is not None
        for line in process.stderr:
            self.printed.append(line)
            if "Ctrl-C ends it" in line:
                break
        [self.url] = re.findall(r"http://\S+/v1", "".join(self.printed))
        self.url = self.url.replace("0.0.0.0", "127.0.0.1")

    def post(self, **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}/chat/completions", json=BODY, headers=headers, timeout=60, trust_env=False)

    def end(self, number: int) -> int:
        """Send a signal, read the rest of the output, and return the exit code."""
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=60)
        self.printed.append(rest)
        return self.process.returncode


@contextmanager
def program(*options: str, **environment: str) -> Iterator[Program]:
    command = [sys.executable, "-m", "usertwin.evals", "serve", *options, "--port", "0"]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)
    try:
        yield Program(process)
    finally:
        process.kill()
        process.communicate()


def test_it_serves_until_it_is_interrupted(ann: str, tmp_path: Any) -> None:
    with program("ann", "--model", write_script(tmp_path, *TALK)) as serving:
        answer = serving.post().json()
        assert answer["choices"][0]["message"]["content"] == TALK[1]
        assert serving.end(signal.SIGINT) == 0
    printed = "".join(serving.printed)
    assert f"serving ann at {serving.url}" in printed
    assert "POST /v1/chat/completions 200" in printed
    assert printed.endswith("stopped\n")
    assert TALK[1] not in printed


def test_any_other_address_needs_a_token_which_is_made_if_there_is_none(ann: str, tmp_path: Any) -> None:
    with program("ann", "--model", write_script(tmp_path, *TALK), "--host", "0.0.0.0") as serving:
        assert serving.process.stderr is not None
        [token] = re.findall(r"API key: (\S{40,})$", serving.process.stderr.readline().strip())
        assert "not encrypted" in serving.process.stderr.readline()
        assert serving.post().status_code == serving.post(Authorization="Bearer wrong").status_code == 401
        assert serving.post(Authorization=f"Bearer {token}").status_code == 200
        assert serving.end(signal.SIGTERM) == 0
    rest = "".join(serving.printed)
    assert token not in rest


def test_a_running_answer_is_finished_before_the_end(ann: str, endpoint: Endpoint) -> None:
    asked, released = threading.Event(), threading.Event()
    answer = endpoint.answer

    def slow(body: dict[str, Any]) -> dict[str, Any]:
        asked.set()
        assert released.wait(60)
        return answer(body)

    endpoint.answer = slow
    endpoint.content = "the weather in Oslo please"
    answers = list[httpx.Response]()
    options = ("ann", "--model", f"openai:m@{endpoint.url}#DESK_KEY", "--style", "transcript", "--no-log")
    with program(*options, DESK_KEY=KEY, USERTWIN_SERVE_TOKEN=KEY + "2") as serving:
        caller = threading.Thread(target=lambda: answers.append(serving.post(Authorization=f"Bearer {KEY}2")))
        caller.start()
        assert asked.wait(60)
        threading.Timer(0.3, released.set).start()
        assert serving.end(signal.SIGTERM) == 0
        caller.join()
    assert answers[0].status_code == 200
    assert answers[0].json()["choices"][0]["message"]["content"] == "the weather in Oslo please"
    assert KEY not in "".join(serving.printed)
    assert KEY not in answers[0].text


def test_what_it_refuses(ann: str, tmp_path: Any) -> None:
    script = write_script(tmp_path, *TALK)
    assert error_of("serve") == "no twin is named; name one or more to serve (there are: ann)"
    assert 'no twin "bob"' in error_of("serve", "ann", "bob", "--model", script, "--port", "0")
    assert "--rate is 0; it must be above 0" in error_of("serve", "ann", "--rate", "0")
    assert "--waiting is -1" in error_of("serve", "ann", "--waiting", "-1")
    assert "give at least 8 ASCII characters" in error_of("serve", "ann", "--token", "short")
    assert "--port: 70000 is no port" in error_of("serve", "ann", "--port", "70000", "--model", script)
    assert "--host: 192.0.2.1 cannot be listened on" in error_of("serve", "ann", "--host", "192.0.2.1", "--model", script)


def test_a_port_in_use_is_named(ann: str, tmp_path: Any) -> None:
    script = write_script(tmp_path, *TALK)
    with program("ann", "--model", script) as serving:
        port = httpx.URL(serving.url).port
        assert f"--port: {port} is in use" in error_of("serve", "ann", "--model", script, "--port", str(port))
