"""A program as an agent: one JSON line of the conversation on its standard input, one line of its reply on standard output.

The line that it gets is {"thread_id", "messages", "message"}. Its reply is a line of JSON in any form that a function may
return, or else a line of text. A process serves one conversation at a time, and the next one after that.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
import weakref
from collections import deque
from contextlib import suppress
from functools import partial
from typing import IO, Any, cast

from usertwin.personas import AgentError, UsageError
from usertwin.personas.reading import parse_json

from .arguments import Moment
from .call import AgentCall, Returned
from .turn import Message, clean, in_thread

#: Seconds in which a process must end after its standard input was closed, and lines of its standard error in an error.
_END, _LINES = 2.0, 8
#: Bytes of a reply; the characters of a reply that we accept are fewer.
MAX_BYTES = 256 * 2**20
#: Processes that wait for a turn; beyond these the one that waits longest is ended.
_MAX_IDLE = 64


def command_agent(command: str | list[str]) -> AgentCall:
    """Return a program and its arguments as an agent. A text is split into words as a shell does, and no shell runs.

    Raises:
        UsageError: there is no such program.
    """
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise UsageError(f'"command:{clean(str(command))}": {error}; close the quotation') from None
    if not words:
        raise UsageError("command: names no program; write command:PROGRAM ARGUMENTS, such as command:node agent.js")
    if shutil.which(words[0]) is None:
        raise UsageError(f'command: there is no program "{words[0]}"; name one on the PATH, or a file that may be executed')
    processes = _Processes(words)
    return _CommandCall(processes)


class _CommandCall(AgentCall):
    """A program that starts with its first turn, and ends when the call is closed, or no longer used."""

    def __init__(self, processes: _Processes) -> None:
        super().__init__(processes.ask, ours=True, end=processes.release)
        self._processes = processes
        weakref.finalize(self, processes.close)

    def close(self) -> None:
        """End all processes of the program."""
        self._processes.close()


class _Process:
    """A running program, whose standard error is read to its end by a thread."""

    def __init__(self, words: list[str]) -> None:
        try:
            self.popen = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for us alone
            )  # fmt: skip
        except OSError as error:
            raise AgentError(f"the program {words[0]} cannot be started: {error.strerror}") from None
        self.last_lines = deque[str](maxlen=_LINES)
        self._reader = threading.Thread(target=self._drain, daemon=True, name="usertwin-agent-stderr")
        self._reader.start()

    def _drain(self) -> None:
        for line in cast("IO[bytes]", self.popen.stderr):
            self.last_lines.append(line[:2_000].decode("utf-8", "replace").strip())

    def exchange(self, request: dict[str, Any]) -> bytes:
        """Return the line with which the program answers. AgentError if it ends."""
        stream = cast("IO[bytes]", self.popen.stdin)
        with suppress(OSError):  # a program that has ended is noticed below
            stream.write(json.dumps(request, default=str).encode() + b"\n")
            stream.flush()
        line = cast("IO[bytes]", self.popen.stdout).readline(MAX_BYTES)
        if line:
            return line
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(_END)
        self._reader.join(_END)
        said = " | ".join(filter(None, self.last_lines))
        ending = end_of_process(self.popen).replace("its connection with usertwin", "its standard output")
        raise AgentError(clean(f"the agent's program {ending} before it replied" + (f": {said}" if said else "")))

    def close(self) -> None:
        """End the program: by the end of its standard input, or else by force, with all that it started."""
        with suppress(OSError):
            cast("IO[bytes]", self.popen.stdin).close()
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(_END if self.popen.poll() is None else 0)
        kill_process(self.popen)


class _Processes:
    """The processes of a program: one for each conversation that is under way."""

    def __init__(self, words: list[str]) -> None:
        self._words, self._lock = words, threading.Lock()
        self._free, self._of_thread = list[_Process](), dict[str, _Process]()

    async def ask(self, messages: list[Message], thread_id: str) -> Any:
        moment = Moment(messages, thread_id)
        request = {"thread_id": thread_id, "messages": messages, "message": moment.text}
        process = self._of_thread.get(thread_id) or await in_thread(self._take)
        self._of_thread.pop(thread_id, None)  # the latest is the last
        self._of_thread[thread_id] = process
        try:
            line = await in_thread(partial(process.exchange, request))
        except BaseException:  # it is late, or has ended
            self._of_thread.pop(thread_id, None)
            kill_process(process.popen)
            raise
        return Returned(_parsed(line))

    def release(self, thread_id: str) -> None:
        """Let the process of a conversation serve the next one."""
        if (process := self._of_thread.pop(thread_id, None)) is not None:
            self._free.append(process)

    def close(self) -> None:
        """End all processes."""
        processes = [*self._free, *self._of_thread.values()]
        self._free.clear()
        self._of_thread.clear()
        for process in processes:
            process.close()

    def _take(self) -> _Process:
        with self._lock:
            while self._free:
                process = self._free.pop()
                if process.popen.poll() is None:
                    return process
                process.close()
            while len(self._of_thread) >= _MAX_IDLE:
                self._of_thread.pop(next(iter(self._of_thread))).close()
            return _Process(self._words)


def _parsed(line: bytes) -> Any:
    """Return the value of a line of JSON, or the line as text."""
    text = line.decode("utf-8", "replace").strip()
    try:
        value = parse_json(text)
    except ValueError:
        return text
    return text if isinstance(value, int | float) else value


# How processes end ------------------------------------------------------------------------------------------------------


def end_of_process(process: subprocess.Popen[bytes]) -> str:
    """Return how a process ended, as "ended with exit code 1"."""
    code = process.returncode
    if code is None:
        return "closed its connection with usertwin"
    if code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def kill_process(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # its group has its own id, also when only children are left
        else:
            process.kill()
    process.wait()
