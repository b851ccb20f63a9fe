"""One turn of the agent under test, which may do anything: it is over at its deadline, and every failure is a sentence.

Design: behind the synchronous functions, agents have an event loop of their own, so that one that blocks does not block the
twin. It lives as long as the process, since HTTP clients belong to the loop that opened them; it is replaced only after an
agent blocked or closed it. In async code an agent runs in the caller's loop, for the same reason. There, nothing can interrupt
an agent that blocks, and its turn counts as late when it returns.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent import futures
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, cast

from usertwin.memory import event_loop
from usertwin.memory.event_loop import cancel_tasks
from usertwin.personas import AgentError, UsertwinError
from usertwin.personas.printable import printable

P = ParamSpec("P")
T = TypeVar("T")

#: An OpenAI-style message.
Message = dict[str, Any]

#: Characters of an exception's text in our error, and exceptions of a group that it names.
_MAX_TEXT, _MAX_GROUP = 2_000, 3
#: Frames of a traceback that are kept, and the folders whose frames are left out: ours, and those that run threads and loops.
_MAX_FRAMES = 30
_NOT_THE_AGENT = tuple(
    str(Path(file).parent) + os.sep for file in (__file__, event_loop.__file__, asyncio.__file__, futures.__file__)
)
#: Seconds in which a cancelled agent may clean up, a loop must respond, and the program must end.
_GRACE, _RESPONSE, _EXIT = 1.0, 0.5, 3.0


class Call(Protocol):
    """What `run_turn` runs: an agent as one async call."""

    own_loop: bool

    def __call__(self, messages: Sequence[Message], thread_id: str) -> Coroutine[Any, Any, list[Message]]:
        """Return the agent's new messages."""
        ...


class OnlyToolCalls(AgentError):
    """The agent called tools and said nothing; `messages` are its calls."""

    def __init__(self, text: str, messages: Sequence[Message]) -> None:
        super().__init__(text)
        self.messages = tuple(messages)


@dataclass(frozen=True, slots=True)
class Failure:
    """How the agent failed.

    Attributes:
        reason: the stop reason of its conversation.
        error: one sentence.
        messages: its messages without a text, if any.
        traceback: where its own code raised the exception, as lines; "" if that is not known.
    """

    reason: Literal["agent_error", "agent_timeout"]
    error: str
    messages: tuple[Message, ...] = ()
    traceback: str = ""


async def run_turn(call: Call, messages: Sequence[Message], thread_id: str, timeout: float) -> list[Message] | Failure:
    """Return the agent's new messages, or how it failed. Only a cancellation of the caller is raised."""
    started, caller = time.perf_counter(), asyncio.current_task()
    steps = _Steps(call(messages, thread_id), None if call.own_loop else caller)
    loop = await _agent_loop(_depth.get()) if call.own_loop else None
    running: asyncio.Future[_Outcome]
    if loop is not None:
        running = asyncio.wrap_future(loop.submit(_outcome(steps)))
    else:
        running = asyncio.get_running_loop().create_task(_outcome(steps))
    try:
        in_time = await _wait(running, started + timeout, caller)
        if not in_time:
            running.cancel()
            if loop is not None:
                loop.suspect()
            else:
                await _abandon(running, steps)
    except asyncio.CancelledError:
        running.cancel()
        raise
    if not in_time or (not running.cancelled() and running.result().finished - started > timeout):
        return Failure("agent_timeout", f"the agent took longer than {timeout:g} seconds")
    return Failure("agent_error", "the agent cancelled its own call") if running.cancelled() else running.result().result


async def _wait(running: asyncio.Future[_Outcome], deadline: float, caller: asyncio.Task[Any] | None) -> bool:
    """Return whether the agent's turn is over before the deadline."""
    while not running.done():
        seconds = deadline - time.perf_counter()
        if seconds <= 0:
            return False
        try:
            await asyncio.wait({running}, timeout=None if seconds == float("inf") else seconds)
        except asyncio.CancelledError:
            if caller is None or caller.cancelling():  # else the agent cancelled all tasks, which `_Steps` has undone
                raise
    return True


async def _abandon(running: asyncio.Future[_Outcome], steps: _Steps) -> None:
    """End a cancelled turn: at once if the agent lets itself be cancelled, by force after a while."""
    await asyncio.wait({running}, timeout=_GRACE)
    if not running.done():
        steps.abandoned = True
        running.cancel()


# What the agent does ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a turn ended, and when."""

    result: list[Message] | Failure
    finished: float


async def _outcome(steps: _Steps) -> _Outcome:
    """Return how the agent's turn ends, whatever it raises; only the user's Ctrl-C is raised again."""
    try:
        result: list[Message] | Failure = await steps
    except BaseException as error:
        if steps.abandoned or (isinstance(error, KeyboardInterrupt) and _is_ctrl_c(steps.caller)):
            raise
        try:
            text = await in_thread(partial(failure_text, error))  # an exception's text may be code that hangs
        except BaseException:
            text = f"the agent raised {name_of(error)}"
        calls = error.messages if isinstance(error, OnlyToolCalls) else ()
        result = Failure("agent_error", text, calls, own_frames(error))
    return _Outcome(result, time.perf_counter())


def _is_ctrl_c(caller: asyncio.Task[Any] | None) -> bool:
    """Return whether a KeyboardInterrupt is the user's: on Ctrl-C `asyncio.run` first cancels the task and raises it later."""
    if threading.current_thread() is not threading.main_thread():
        return False
    return bool(caller and caller.cancelling()) or signal.getsignal(signal.SIGINT) is signal.default_int_handler


class _Steps:
    """The coroutine of an agent's turn, step by step.

    It stays ours: an agent that cancels all tasks does not cancel its caller, a forked copy of the process ends here, and a
    coroutine that swallows its cancellation can be abandoned.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, list[Message]], caller: asyncio.Task[Any] | None) -> None:
        self.coroutine, self.caller, self.abandoned, self._process = coroutine, caller, False, os.getpid()

    def __await__(self) -> Generator[Any, Any, list[Message]]:
        step: Callable[[Any], Any] = self.coroutine.send
        argument: Any = None
        while True:
            tasks = [task for task in (asyncio.current_task(), self.caller) if task is not None]
            before = [task.cancelling() for task in tasks]
            try:
                awaited = step(argument)
            except StopIteration as stop:
                return stop.value
            finally:
                _end_fork(self._process)
                cancels = [task.cancelling() - count for task, count in zip(tasks, before, strict=True)]
                if len(tasks) == 2 and cancels[0]:  # Ctrl-C cancels the caller only
                    for _ in range(cancels[1]):
                        tasks[1].uncancel()
            try:
                argument, step = (yield awaited), self.coroutine.send
            except BaseException as error:
                if self.abandoned or isinstance(error, GeneratorExit):  # it is destroyed with its loop
                    self.abandoned = True
                    with contextlib.suppress(BaseException):  # a stubborn one refuses even this
                        self.coroutine.close()
                    raise
                argument, step = error, cast("Callable[[Any], Any]", self.coroutine.throw)


def _end_fork(process: int) -> None:
    """End this process if it is a copy that the agent made by a fork: it must not go on as a second simulation."""
    if os.getpid() != process:
        os._exit(1)


# Exceptions as sentences ------------------------------------------------------------------------------------------------


def failure_text(error: BaseException) -> str:
    """Return an agent's exception as one short sentence that is safe to print, whatever its class does."""
    return _text_of(error) if isinstance(error, UsertwinError) else f"the agent raised {describe(error)}"


def describe(error: BaseException) -> str:
    """Return the name and the text of an exception, and of the first exceptions in a group."""
    text = f"{name_of(error)}: {_text_of(error)}"
    if isinstance(error, BaseExceptionGroup):
        try:
            parts = cast("Sequence[BaseException]", error.exceptions[:_MAX_GROUP])
            text = clean(text + ": " + "; ".join(f"{name_of(part)}: {_text_of(part)}" for part in parts))
        except BaseException:  # a class of the agent's
            return text
    return text


def name_of(value: object) -> str:
    """Return the name of a value's class, whatever that class does."""
    return clean(type.__dict__["__name__"].__get__(type(value)))


def _text_of(error: BaseException) -> str:
    try:
        return " ".join(line.strip() for line in clean(str(error)).splitlines())
    except BaseException as second:  # whatever its __str__ does
        return f"(its text cannot be read: {name_of(second)})"


def clean(text: str) -> str:
    """Return a plain string of at most 2,000 characters that is safe to print."""
    text = str.__str__(text)  # of a subclass, a plain copy
    text = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
    return printable(text)


def own_frames(error: BaseException) -> str:
    """Return where an exception, its causes and the first ones of groups were raised, without our frames and event loops'."""
    try:
        parts, at = list[str](), cast("BaseException | None", error)
        while at is not None and len(parts) < _MAX_GROUP:
            stack = traceback.extract_tb(at.__traceback__)
            frames = [frame for frame in stack if not frame.filename.startswith(_NOT_THE_AGENT)]
            parts.insert(0, f"{''.join(traceback.format_list(frames[-_MAX_FRAMES:]))}{name_of(at)}\n")  # its text may be code
            cause = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
            at = at.exceptions[0] if isinstance(at, BaseExceptionGroup) else cause
        return printable("then:\n".join(parts))
    except Exception:  # such as a source file that cannot be decoded
        return ""


# Threads ----------------------------------------------------------------------------------------------------------------


async def in_thread(work: Callable[[], T]) -> T:
    """Run a blocking function on its own daemon thread, which does not keep the program alive if it never returns."""
    return await asyncio.wrap_future(_start_thread(work))


def _start_thread(work: Callable[[], T]) -> Future[T]:
    result: Future[T] = Future()
    result.set_running_or_notify_cancel()  # a caller that is cancelled leaves the function running
    context, process = copy_context(), os.getpid()

    def run() -> None:
        try:
            value = context.run(work)
        except BaseException as error:
            _end_fork(process)
            holds = isinstance(error, Exception) and not isinstance(error, StopIteration | CancelledError)  # as a future can
            result.set_exception(error if holds else AgentError(failure_text(error)))
        else:
            _end_fork(process)
            result.set_result(value)

    threading.Thread(target=run, daemon=True, name="usertwin-agent").start()
    return result


class _DaemonThreads(ThreadPoolExecutor):
    """A thread for each call, which the interpreter does not wait for at its end, unlike the threads of a pool."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return _start_thread(partial(fn, *args, **kwargs))


class _AgentLoop:
    """An event loop on a daemon thread, for agents only; see `_loops` for its depth."""

    def __init__(self, depth: int) -> None:
        self.loop, self._depth = asyncio.new_event_loop(), depth
        self.loop.set_default_executor(_DaemonThreads())
        self._probe: threading.Event | None = None
        self._pending, self._ended = set[Future[_Outcome]](), False
        self._thread = threading.Thread(target=self._run, daemon=True, name="usertwin-agent-loop")
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self.loop.is_closed():
            with contextlib.suppress(BaseException):  # such as a SystemExit in a task of the agent's
                self.loop.run_forever()  # an agent may stop it
        self._ended = True
        for future in tuple(self._pending):
            _fail(future)

    def submit(self, work: Coroutine[Any, Any, _Outcome]) -> Future[_Outcome]:
        """Start a coroutine in the loop."""
        token = _depth.set(self._depth + 1)
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        _depth.reset(token)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        if self._ended:
            _fail(future)
        return future

    async def is_held_up(self) -> bool:
        """Return whether a turn blocks the loop while it waits for another thread, which may be that of the caller."""
        frames = sys._current_frames() if self._pending else {}  # pyright: ignore[reportPrivateUsage] - public, if for few uses
        frame = frames.get(self._thread.ident or 0)
        if frame is None or frame.f_code.co_filename != threading.__file__:
            return False
        responded = threading.Event()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(responded.set)
        return not await in_thread(partial(responded.wait, _RESPONSE))

    def suspect(self) -> None:
        """Check later whether the loop still runs, after a turn that was late."""
        self._probe = threading.Event()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._probe.set)

    async def responds(self) -> bool:
        """Return whether the loop can run another turn."""
        if not self._thread.is_alive() or self.loop.is_closed():
            return False
        if self._probe is None or await in_thread(partial(self._probe.wait, _RESPONSE)):
            self._probe = None
            return True
        return False


def _fail(future: Future[_Outcome]) -> None:
    with contextlib.suppress(Exception):  # done meanwhile
        future.set_result(_Outcome(Failure("agent_error", "the agent closed its event loop"), time.perf_counter()))


_lock = threading.Lock()
#: The loops by depth: an agent may itself wait for a conversation with another one.
_loops: dict[int, _AgentLoop] = {}
_depth: ContextVar[int] = ContextVar("usertwin_agent_depth", default=0)


async def _agent_loop(depth: int) -> _AgentLoop:
    """Return the process's loop for agents, a new one if there is none that responds.

    An agent may wait for a thread of its own that waits for a conversation. A new thread does not know its depth, so that
    conversation is given the next loop when the turn before it holds up this one.
    """
    present = _loops.get(depth)
    if present is not None and await present.responds():
        return await _agent_loop(depth + 1) if await present.is_held_up() else present
    with _lock:
        if _loops.get(depth) is present:
            _loops[depth] = _AgentLoop(depth)
        return _loops[depth]


@atexit.register
def _end_background_tasks() -> None:
    """Cancel what agents left running, so that it can clean up."""
    for present in _loops.values():
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(cancel_tasks(), present.loop).result(2 * _GRACE)


def exit_soon(code: str | int | None) -> None:
    """End the program with its exit code in a few seconds, even if an agent left threads behind that never end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    timer = threading.Timer(_EXIT, os._exit, [code if isinstance(code, int) else int(bool(code))])
    timer.daemon = True
    timer.start()
