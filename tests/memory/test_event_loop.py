"""memory/event_loop.py: one event loop behind all synchronous functions, whatever thread, fork or interrupt they meet."""

from __future__ import annotations

import asyncio
import contextvars
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from usertwin.memory.event_loop import in_caller, run_sync

ROOT = Path(__file__).resolve().parents[2]


async def current() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_no_other_module_starts_event_loops() -> None:
    """But for those of agents, which may block theirs. Benchmarks are programs of their own."""
    starts = re.compile(r"asyncio\.(run|Runner|new_event_loop|get_event_loop)\(|run_until_complete")
    paths = [path for layer in ("personas", "memory", "simulator", "evals") for path in (ROOT / layer).rglob("*.py")]
    starting = {path.relative_to(ROOT) for path in paths if starts.search(path.read_text())}
    assert {path for path in starting if not {"benchmarks", "agents"} & set(path.parts)} == {Path("memory/event_loop.py")}


def test_every_call_of_every_thread_gets_the_same_loop() -> None:
    with ThreadPoolExecutor(8) as pool:
        loops = {run_sync(current()), run_sync(current()), *pool.map(lambda _: run_sync(current()), range(40))}
    assert len(loops) == 1


def test_results_of_threads_are_not_mixed_up() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda number: run_sync(double(number)), range(200))) == [2 * i for i in range(200)]


@pytest.mark.parametrize(
    "error", [ValueError("x"), SystemExit(3), GeneratorExit(), asyncio.CancelledError(), StopAsyncIteration()]
)
def test_every_exception_reaches_the_caller_and_the_loop_goes_on(error: BaseException) -> None:
    async def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        run_sync(fail())
    assert run_sync(current()).is_running()


def test_an_exit_in_a_background_task_and_a_stopped_loop_do_not_end_the_loop() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    async def work() -> str:
        task = asyncio.ensure_future(leave())
        await asyncio.wait([task])
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return f"{task.exception()!r}"

    before = run_sync(current())
    assert run_sync(work()) == "SystemExit(3)"
    assert run_sync(current()) is before


def test_background_tasks_go_on_between_calls() -> None:
    async def begin() -> tuple[asyncio.Task[None], threading.Event]:
        over = threading.Event()

        async def beat() -> None:
            for _ in range(3):
                await asyncio.sleep(0)
            over.set()

        return asyncio.ensure_future(beat()), over

    task, over = run_sync(begin())
    assert over.wait(60)
    assert run_sync(current()) is task.get_loop()


def test_the_context_is_carried_over() -> None:
    name = contextvars.ContextVar("name", default="nobody")

    async def read() -> str:
        return name.get()

    context = contextvars.copy_context()
    context.run(name.set, "ann")
    assert (context.run(lambda: run_sync(read())), run_sync(read())) == ("ann", "nobody")


# Calls inside of calls ------------------------------------------------------------------------------------------------


def test_a_call_inside_a_running_loop_uses_the_one_loop() -> None:
    async def notebook() -> tuple[Any, Any]:
        return asyncio.get_running_loop(), run_sync(current())

    own, other = asyncio.run(notebook())
    assert other is run_sync(current()) is not own


def test_blocking_calls_in_the_loop_itself_do_not_deadlock() -> None:
    """Each depth has one loop, also for threads that the work starts."""

    async def deep(depth: int) -> list[asyncio.AbstractEventLoop]:
        own = asyncio.get_running_loop()
        assert await asyncio.to_thread(lambda: run_sync(current())) is own
        return [own] if depth == 0 else [own, *run_sync(deep(depth - 1))]

    first, second = run_sync(deep(3)), run_sync(deep(3))
    assert len(set(first)) == 4
    assert first == second


def test_many_threads_of_the_loop_may_wait_for_it_at_once() -> None:
    """More than asyncio's default pool has threads."""
    everyone = threading.Barrier(50)

    def wait() -> Any:
        everyone.wait(60)
        return run_sync(asyncio.to_thread(threading.current_thread))

    async def work() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(wait) for _ in range(50)))

    assert len(run_sync(work())) == 50


# Callbacks ------------------------------------------------------------------------------------------------------------


async def call_back(function: Callable[..., Any], *args: Any) -> tuple[Any, threading.Thread]:
    return await in_caller(function, *args), threading.current_thread()


def test_a_callback_runs_in_the_calling_thread_where_it_may_call_again() -> None:
    def callback(text: str) -> tuple[str, Any, threading.Thread]:
        return text, run_sync(current()), threading.current_thread()

    (text, loop, thread), worker = run_sync(call_back(callback, "hi"))
    assert (text, loop, thread) == ("hi", run_sync(current()), threading.current_thread())
    assert worker is not thread


def test_in_async_code_a_callback_runs_where_it_is_called() -> None:
    thread, worker = asyncio.run(call_back(threading.current_thread))
    assert thread is worker is threading.current_thread()


def test_a_callback_after_the_end_of_the_call_runs_in_the_loop() -> None:
    async def begin() -> Coroutine[Any, Any, Any]:
        context = contextvars.copy_context()
        waiting = asyncio.Event()

        async def later() -> tuple[Any, threading.Thread]:
            await waiting.wait()
            return await call_back(threading.current_thread)

        task = asyncio.get_running_loop().create_task(later(), context=context)

        async def finish() -> Any:
            waiting.set()
            return await task

        return finish()

    thread, worker = run_sync(run_sync(begin()))
    assert thread is worker is not threading.current_thread()


@pytest.mark.parametrize("error", [KeyError("x"), StopIteration("x"), KeyboardInterrupt()])
def test_an_exception_of_a_callback_is_raised_in_the_work(error: BaseException) -> None:
    def callback() -> None:
        raise error

    async def work() -> str:
        try:
            await in_caller(callback)
        except BaseException as raised:
            return repr(raised)
        return ""

    expected = "coroutine raised StopIteration" if isinstance(error, StopIteration) else repr(error)
    assert expected in run_sync(work())


# Interrupts, forks and exits ------------------------------------------------------------------------------------------


def test_an_interrupt_cancels_the_work_waits_for_its_end_and_is_raised() -> None:
    ended: list[str] = []

    async def work() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        run_sync(work())
    assert ended == ["cleaned up"]


def run_script(code: str) -> str:
    """Run a program with all warnings; return what it prints, on both streams."""
    code = "import asyncio, os, sys, threading\nfrom usertwin.memory.event_loop import run_sync\n" + code
    command = [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", "-c", code]  # 3.12 warns of forks
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_forked_child_has_a_loop_of_its_own() -> None:
    """Also a child of the loop's thread, and one that is forked while the loop is blocked."""
    code = """
async def fork():
    if (pid := os.fork()) == 0:
        print("child", run_sync(asyncio.sleep(0, 1)), run_sync(nested()), flush=True)
        sys.stdout.flush()
        os._exit(0)
    return os.waitpid(pid, 0)[1]

async def nested():
    return run_sync(asyncio.sleep(0, 2))

print(run_sync(fork()), asyncio.run(fork()), run_sync(nested()), flush=True)
if os.fork() == 0:
    print("child", run_sync(nested()))  # it ends as programs do
else:
    os.wait()
    print(run_sync(asyncio.sleep(0, 3)))
"""
    assert run_script(code).split("\n") == ["child 1 2", "child 1 2", "0 0 2", "child 2", "3", ""]


def test_the_interpreter_exits_in_silence_whatever_is_left_running() -> None:
    code = """
async def background():
    try:
        await asyncio.Event().wait()
    finally:
        print("cleaned up")

async def numbers():
    try:
        yield 1
        yield 2
    finally:
        print("closed")

async def stubborn():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def work():
    kept.append(asyncio.ensure_future(background()))
    kept.append(numbers())
    await anext(kept[-1])
    kept.append(asyncio.ensure_future(asyncio.Event().wait()))
    kept.append(asyncio.ensure_future(stubborn()))
    kept.append(await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0))
    kept.append(await asyncio.open_connection(*kept[-1].sockets[0].getsockname()))
    await asyncio.sleep(0)

kept = []
run_sync(work())
threading.Thread(target=lambda: run_sync(asyncio.sleep(3600)), daemon=True).start()
"""
    lines = run_script(code).splitlines()
    assert [line for line in lines if "ResourceWarning" not in line and "_warn(" not in line] == ["cleaned up", "closed"]


def test_a_blocked_loop_does_not_keep_the_interpreter_alive() -> None:
    code = """
blocked = threading.Event()

async def block():
    blocked.set()
    threading.Event().wait()

threading.Thread(target=lambda: run_sync(block()), daemon=True).start()
blocked.wait()
"""
    assert run_script(code) == ""


def test_a_synchronous_call_leaves_no_idle_thread_behind() -> None:
    """One that computed would keep the threads of torch's that it started, which slows everybody's computing."""
    thread = run_sync(asyncio.to_thread(threading.current_thread))
    thread.join(60)
    assert not thread.is_alive()


def test_work_of_other_calls_goes_on_when_a_call_ends() -> None:
    started, release = threading.Event(), threading.Event()

    def wait() -> str:
        started.set()
        assert release.wait(60)
        return "ended"

    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(lambda: run_sync(asyncio.to_thread(wait)))
        assert started.wait(60)
        run_sync(asyncio.to_thread(str))
        release.set()
        assert long.result(60) == "ended"
