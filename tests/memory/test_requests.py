"""Limits of concurrent requests over event loops and threads, and requests that are repeated. No test waits."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from conftest import function_model
from usertwin.memory import ChatModel
from usertwin.memory.models.chat import Ledger, Sample, sample
from usertwin.memory.models.requests import ConcurrencyLimit, RetryPolicy, is_transient, retry_after
from usertwin.memory.models.token_writer import WrittenTokens
from usertwin.personas import ModelError, UsageError
from usertwin.simulator import load_model


class Waits:
    """Seconds that were waited, without waiting."""

    def __init__(self) -> None:
        self.seconds = list[float]()

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def waits() -> Waits:
    return Waits()


def complete(model: ChatModel, **options: Any) -> list[Sample]:
    return asyncio.run(sample(model, [("user", "hello")], **options))


# Repeated requests ----------------------------------------------------------------------------------------------------


class FaultyServer:
    """An OpenAI-compatible server on the loopback interface that fails first.

    Attributes:
        faults: how the next requests fail: a status with headers, or "close" for a connection that is reset.
        requests: the number of requests.
    """

    def __init__(self) -> None:
        self.faults: list[tuple[int, dict[str, str], str] | str] = []
        self.requests = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # named by the standard library
                self.rfile.read(int(self.headers["Content-Length"]))
                server.requests += 1
                fault = server.faults.pop(0) if server.faults else (200, {}, "")
                if isinstance(fault, str):
                    reset = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                    self.connection.close()
                    self.close_connection = True
                    return
                status, headers, code = fault
                message = {"role": "assistant", "content": "at last"}
                good = {
                    "id": "1", "object": "chat.completion", "created": 1, "model": "m",
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                }  # fmt: skip
                raw = json.dumps(good if status == 200 else {"error": {"message": "not now", "code": code}}).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def finish(self) -> None:
                """End a request whose connection may be closed."""
                with suppress(ValueError, OSError):
                    super().finish()

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = FaultyServer()
    thread = threading.Thread(target=server.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.server.shutdown()
    server.server.server_close()
    thread.join()


def endpoint_model(server: FaultyServer, waits: Waits, **policy: Any) -> ChatModel:
    return replace(load_model(f"openai:m@{server.url}"), retries=RetryPolicy(sleep=waits, **policy))


def test_a_busy_failing_and_breaking_endpoint_is_asked_again(faulty: FaultyServer, waits: Waits) -> None:
    faulty.faults = [(429, {"Retry-After": "7"}, ""), (500, {}, ""), "close", (503, {"retry-after-ms": "2500"}, "")]
    ledger, own = Ledger(), Ledger()
    [completion] = complete(replace(endpoint_model(faulty, waits), ledger=own), ledger=ledger)
    assert completion.text == "at last"
    assert faulty.requests == 5  # the client's own retries would add to these
    assert (ledger.calls, ledger.retries, own.retries) == (1, 4, 4)
    assert ledger.to_json()["retries"] == 4
    first, second, third, fourth = waits.seconds
    assert 7 <= first <= 7.7
    assert 0 <= second <= 2
    assert 0 <= third <= 2
    assert 2.5 <= fourth <= 2.75


@pytest.mark.parametrize("fault", [(400, {}, ""), (401, {}, ""), (404, {}, ""), (501, {}, ""), (429, {}, "insufficient_quota")])
def test_what_waiting_does_not_help_is_an_error_at_once(fault: Any, faulty: FaultyServer, waits: Waits) -> None:
    faulty.faults = [fault]
    with pytest.raises(ModelError, match="did not answer"):
        complete(endpoint_model(faulty, waits))
    assert (faulty.requests, waits.seconds) == (1, [])


def test_an_endpoint_that_stays_broken_is_given_up_after_some_attempts(faulty: FaultyServer, waits: Waits) -> None:
    faulty.faults = [(500, {}, "")] * 9
    ledger = Ledger()
    with pytest.raises(ModelError, match=r"did not answer: .*Error code: 500"):
        complete(endpoint_model(faulty, waits, attempts=3), ledger=ledger)
    assert (faulty.requests, len(waits.seconds), ledger.retries, ledger.calls) == (3, 2, 2, 0)
    faulty.faults = ["close"] * 9
    with pytest.raises(ModelError, match=r"did not answer: .*[Cc]onnection"):
        complete(endpoint_model(faulty, waits, attempts=3))
    assert faulty.requests == 6


def test_a_rate_limit_is_waited_for_within_a_time(faulty: FaultyServer, waits: Waits) -> None:
    faulty.faults = [(429, {"Retry-After": "10"}, "")] * 99
    with pytest.raises(ModelError, match=r"did not answer: .*Error code: 429"):
        complete(endpoint_model(faulty, waits, seconds=60.0, attempts=2))
    assert 50 <= sum(waits.seconds) <= 60
    assert faulty.requests == len(waits.seconds) + 1 == 6
    faulty.faults, waits.seconds = [(429, {"Retry-After": "3600"}, "")], []
    with pytest.raises(ModelError):
        complete(endpoint_model(faulty, waits))
    assert waits.seconds == []  # longer than we wait at all


def test_waits_without_a_retry_after_grow_and_are_random(faulty: FaultyServer) -> None:
    runs = [Waits(), Waits()]
    for waits in runs:
        faulty.faults = [(429, {}, "")] * 5
        complete(endpoint_model(faulty, waits))
    for waits in runs:
        assert all(0 <= seconds <= 0.5 * 2**number for number, seconds in enumerate(waits.seconds))
    assert runs[0].seconds != runs[1].seconds


def test_each_of_several_completions_is_repeated_by_itself(faulty: FaultyServer, waits: Waits) -> None:
    faulty.faults = [(200, {}, ""), (429, {"Retry-After": "1"}, "")]
    assert [item.text for item in complete(endpoint_model(faulty, waits), n=3)] == ["at last"] * 3
    assert (faulty.requests, len(waits.seconds)) == (4, 1)


def test_a_retry_after_may_be_a_date_and_nonsense_is_ignored() -> None:
    def error(headers: dict[str, str]) -> httpx.HTTPStatusError:
        request = httpx.Request("POST", "http://x")
        return httpx.HTTPStatusError("no", request=request, response=httpx.Response(429, headers=headers, request=request))

    soon = retry_after(error({"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)}))
    assert soon is not None
    assert 80 < soon <= 90
    assert retry_after(error({"Retry-After": format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)})) == 0
    assert [retry_after(error({"Retry-After": text})) for text in ("soon", "-3", "inf", "nan", "")] == [None] * 5
    assert retry_after(error({"retry-after-ms": "1500", "Retry-After": "9"})) == 1.5
    assert retry_after(ValueError("no")) is None
    assert is_transient(error({}))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(), True),
        (httpx.ConnectError("no"), True),
        (httpx.ReadTimeout("no"), True),
        (ValueError("429"), False),
        (TimeoutError(), False),
        (asyncio.CancelledError(), False),
        (KeyError("connection"), False),
    ],
)
def test_broken_connections_of_any_client_are_transient(error: BaseException, expected: bool) -> None:
    assert is_transient(error) is expected


def test_a_cancelled_call_is_not_repeated(faulty: FaultyServer) -> None:
    async def cancel() -> None:
        async def sleep(seconds: float) -> None:
            task.cancel()
            await asyncio.sleep(0)

        faulty.faults = [(500, {}, "")] * 9
        model = replace(load_model(f"openai:m@{faulty.url}"), retries=RetryPolicy(sleep=sleep))
        task = asyncio.create_task(sample(model, [("user", "hello")]))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert faulty.requests == 1


# Limits ---------------------------------------------------------------------------------------------------------------


class Gauge:
    """Counts who is inside at the same time."""

    def __init__(self) -> None:
        self.inside = self.most = self.total = 0
        self._lock = threading.Lock()

    async def enter(self, steps: int = 3) -> None:
        """Stay inside for some steps of the event loop."""
        with self._lock:
            self.inside += 1
            self.total += 1
            self.most = max(self.most, self.inside)
        for _ in range(steps):
            await asyncio.sleep(0)
        with self._lock:
            self.inside -= 1


def test_at_most_so_many_are_inside_in_the_order_in_which_they_came() -> None:
    limit, gauge, order = ConcurrencyLimit(3), Gauge(), list[int]()

    async def one(number: int) -> None:
        async with limit:
            order.append(number)
            await gauge.enter()

    async def run() -> None:
        await asyncio.gather(*(one(number) for number in range(20)))

    asyncio.run(run())
    asyncio.run(run())  # another event loop
    assert (gauge.most, gauge.total, order) == (3, 40, [*range(20), *range(20)])


def test_threads_with_event_loops_of_their_own_share_a_limit() -> None:
    limit, gauge = ConcurrencyLimit(2), Gauge()

    async def one() -> None:
        async with limit:
            await gauge.enter(steps=5)

    async def run() -> None:
        await asyncio.gather(*(one() for _ in range(50)))

    threads = [threading.Thread(target=asyncio.run, args=(run(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (gauge.total, gauge.inside) == (200, 0)
    assert gauge.most <= 2


@pytest.mark.parametrize("granted", [False, True], ids=["waiting", "just granted"])
def test_a_cancelled_waiter_takes_no_place(granted: bool) -> None:
    async def run() -> list[str]:
        limit, events = ConcurrencyLimit(1), list[str]()

        async def one(name: str) -> None:
            async with limit:
                events.append(name)

        await limit.__aenter__()
        waiting = [asyncio.create_task(one(name)) for name in "abc"]
        await asyncio.sleep(0)
        if granted:
            await limit.__aexit__()  # "a" has its place, but has not run yet
        waiting[0].cancel()
        if not granted:
            await asyncio.sleep(0)
            await limit.__aexit__()
        await asyncio.wait(waiting)
        async with asyncio.timeout(60), limit:
            second = asyncio.create_task(one("second"))
            for _ in range(9):
                await asyncio.sleep(0)
            events.append("first")
        await second
        return events

    assert asyncio.run(run()) == ["b", "c", "first", "second"]


def test_an_exception_inside_frees_the_place() -> None:
    limit = ConcurrencyLimit(1)

    async def fail() -> None:
        async with limit:
            raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            asyncio.run(fail())


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="limit of concurrent requests is 0; it must be at least 1"):
        ConcurrencyLimit(0)


def test_models_share_a_limit_for_all_their_requests_also_of_a_token_writer() -> None:
    limit, gauge = ConcurrencyLimit(2), Gauge()

    class Writer:
        vocabulary_size = 1

        def encode(self, turns: Any) -> list[list[int]]:
            """See `TokenWriter.encode`."""
            return [[0] for _ in turns]

        async def write(self, *_: Any, **__: Any) -> list[WrittenTokens]:
            """See `TokenWriter.write`."""
            await gauge.enter()
            return [WrittenTokens("x", input_tokens=1, cached_tokens=0, output_tokens=1, at_limit=False)]

    model, chat = function_model(lambda prompt, seed: "x", limit=limit)
    answer = type(chat)._agenerate

    class Slow(type(chat)):
        async def _agenerate(self, *args: Any, **options: Any) -> Any:
            await gauge.enter()
            return await answer(self, *args, **options)

    plain = replace(model, chat=Slow(reply=lambda prompt, seed: "x"))
    writing = replace(plain, token_writer=Writer())  # pyright: ignore[reportArgumentType]

    async def run() -> None:
        calls = [sample(plain, [("user", str(number))], n=2) for number in range(5)]
        words = [sample(writing, [("user", "hi")], next_token=lambda history, likely: likely) for _ in range(5)]
        await asyncio.gather(*calls, *words)

    asyncio.run(run())
    assert (gauge.total, gauge.most) == (15, 2)
