"""An agent in a process of its own, so that nothing it does can end or block this one.

Requests and replies are JSON lines on the process's standard input and output. What the agent prints goes to standard error,
and its own standard input is empty.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import IO, Any, cast

from usertwin.personas import AgentError, ModelError, UsageError, UsertwinError

from .call import AgentCall, Returned
from .command import MAX_BYTES, end_of_process, kill_process
from .shapes import as_agent
from .turn import Failure, Message, OnlyToolCalls, clean, in_thread, run_turn

#: Seconds in which the agent must be loaded, and in which its process may end by itself.
_START, _END = 120.0, 2.0
_CODE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from usertwin.simulator.agents.process import serve; serve()"


class AgentProcess(AgentCall):
    """An agent that runs in a process of its own; a new one if the last one ended.

    Args:
        agent: what `load_agent` accepts, or a function at the top of a module, which the process imports.

    Raises:
        UsageError: another process cannot import the agent by name.
    """

    def __init__(self, agent: Any) -> None:
        super().__init__(self._ask, ours=True)
        self._spec = agent if isinstance(agent, str) else _importable_name(agent)
        self._process: subprocess.Popen[bytes] | None = None
        self._started_before = False

    async def begin(self) -> None:
        """Start the process, unless it runs.

        Raises:
            UsageError, ModelError: the agent cannot be loaded, at the first start.
            AgentError: the agent cannot be loaded, later.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        try:
            answer = await asyncio.wait_for(in_thread(self._start), _START)
        except TimeoutError:
            answer = {"refused": f"{self._spec}: the agent was not loaded within {_START:g} seconds"}
        except AgentError as error:
            answer = {"refused": f"{self._spec}: {error}"}
        except BaseException:
            self.close()
            raise
        if "refused" in answer:
            self.close()
            kind = AgentError if self._started_before else ModelError if answer.get("model") else UsageError
            raise kind(clean(str(answer["refused"])))
        self._started_before = True

    def close(self) -> None:
        """End the process, and all processes that the agent started."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(OSError):
            cast("IO[bytes]", process.stdin).close()  # tells it to end
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END if process.poll() is None else 0)
        kill_process(process)

    def _start(self) -> dict[str, Any]:
        command = [sys.executable, "-c", _CODE, json.dumps(sys.path), self._spec]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True  # Ctrl-C is for us alone
        )  # fmt: skip
        return _read(self._process, "before it was loaded")

    async def _ask(self, messages: list[Message], thread_id: str) -> Any:
        process = self._process
        if process is None:
            raise AgentError("the agent's process has ended")
        try:
            answer = await in_thread(partial(_exchange, process, {"messages": messages, "thread_id": thread_id}))
        except BaseException:  # late, or its answers cannot be understood
            kill_process(process)
            raise
        if answer.get("messages"):
            raise OnlyToolCalls(clean(str(answer["error"])), answer["messages"])
        if "error" in answer:
            raise AgentError(clean(str(answer["error"])))
        return Returned(answer.get("replies"), answer.get("state"), is_new=True)


def _exchange(process: subprocess.Popen[bytes], request: dict[str, Any]) -> dict[str, Any]:
    stream = cast("IO[bytes]", process.stdin)
    with suppress(OSError):  # a process that has ended is noticed below
        stream.write(json.dumps(request).encode() + b"\n")
        stream.flush()
    return _read(process, "before it replied")


def _read(process: subprocess.Popen[bytes], when: str) -> dict[str, Any]:
    """Return the next answer of the process. AgentError if it has ended, or writes something else."""
    line = cast("IO[bytes]", process.stdout).readline(MAX_BYTES)
    if not line:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END)
        raise AgentError(f"the agent's process {end_of_process(process)} {when}")
    try:
        answer: object = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise AgentError(f"the agent's process wrote to its connection with usertwin {when}")
    return cast("dict[str, Any]", answer)


def _importable_name(agent: Any) -> str:
    module, name = str(getattr(agent, "__module__", "")), str(getattr(agent, "__qualname__", ""))
    try:
        found = attrgetter(name)(sys.modules[module])
    except (AttributeError, KeyError):
        found = None
    if found is not agent or module == "__main__":
        raise UsageError(
            'an agent in a process of its own is imported there, and this one cannot be; name it as "module:attribute"'
        )
    return f"{module}:{name}"


# In the process of the agent --------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer requests on standard input until it ends; the program of the agent's process."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)

    def send(answer: dict[str, Any]) -> None:
        replies.write(json.dumps(answer).encode() + b"\n")
        replies.flush()

    try:
        call = as_agent(sys.argv[2])
    except UsertwinError as error:
        send({"refused": str(error), "model": isinstance(error, ModelError)})
    else:
        send({"ready": True})
        with suppress(KeyboardInterrupt):  # the agent interrupted its process
            asyncio.run(_serve(call, requests, send))


async def _serve(call: AgentCall, requests: IO[bytes], send: Callable[[dict[str, Any]], None]) -> None:
    loop, waiting = asyncio.get_running_loop(), asyncio.Queue[bytes]()

    def read() -> None:
        for line in requests:
            loop.call_soon_threadsafe(waiting.put_nowait, line)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(waiting.put_nowait, b"")
        time.sleep(_END)
        os._exit(0)  # the agent does not let the process end

    threading.Thread(target=read, daemon=True, name="usertwin-requests").start()
    while line := await waiting.get():
        request = json.loads(line)
        result = await run_turn(call, request["messages"], request["thread_id"], float("inf"))
        if isinstance(result, Failure):
            send({"error": result.error, "messages": result.messages})
        else:
            send({"replies": result, "state": call.state_so_far(request["thread_id"])})
