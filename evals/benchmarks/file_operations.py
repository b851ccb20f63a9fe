"""Stop a process at a chosen file operation, or let that operation fail: what a kill -9 or a full disk does to it.

Design: the Linux kernel holds every system call that may change a file until this process has decided about it (seccomp with
user notification), so the calls of SQLite, FAISS and other compiled libraries count too. It needs no compiler and no root.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: What happens to an operation: it goes on, the process is killed before it or after half of its bytes, or it fails (errno).
Decision = Literal["go on", "kill", "kill in half"] | int

#: Number of each system call on x86-64 and on arm64 (None: there is none), and which argument names the file: a path, a path
#: after the descriptor of a folder, or a descriptor.
_CALLS: dict[str, tuple[int | None, int | None, Literal["path", "path at", "descriptor"], int]] = {
    "open": (2, None, "path", 0),
    "openat": (257, 56, "path at", 1),
    "creat": (85, None, "path", 0),
    "mkdir": (83, None, "path", 0),
    "mkdirat": (258, 34, "path at", 1),
    "rmdir": (84, None, "path", 0),
    "unlink": (87, None, "path", 0),
    "unlinkat": (263, 35, "path at", 1),
    "rename": (82, None, "path", 0),
    "renameat": (264, 38, "path at", 1),
    "renameat2": (316, 276, "path at", 1),
    "link": (86, None, "path", 1),
    "linkat": (265, 37, "path at", 3),
    "symlink": (88, None, "path", 1),
    "symlinkat": (266, 36, "path at", 2),
    "truncate": (76, 45, "path", 0),
    "ftruncate": (77, 46, "descriptor", 0),
    "write": (1, 64, "descriptor", 0),
    "pwrite64": (18, 68, "descriptor", 0),
    "writev": (20, 66, "descriptor", 0),
    "pwritev": (296, 70, "descriptor", 0),
    "fallocate": (285, 47, "descriptor", 0),
    "fsync": (74, 82, "descriptor", 0),
    "fdatasync": (75, 83, "descriptor", 0),
    "sendfile": (40, 71, "descriptor", 0),
    "copy_file_range": (326, 285, "descriptor", 2),
}
_COLUMN, _SECCOMP = {"x86_64": (0, 317), "aarch64": (1, 277)}.get(platform.machine(), (None, 0))
_NAMES: dict[int, str] = (
    {} if _COLUMN is None else {numbers[_COLUMN]: name for name, numbers in _CALLS.items() if numbers[_COLUMN] is not None}  # type: ignore[misc]
)
_MAX_PATH = _PAGE = 4096
_OPENS = {"open": 1, "openat": 2}  #: position of the flags
_FLAGS = os.O_CREAT | os.O_TRUNC
_WRITES = ("write", "pwrite64")
#: Operations for which a full disk has room: removing, renaming, and cutting.
_TAKES_NO_SPACE = ("rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2", "truncate", "ftruncate")

# From linux/seccomp.h, linux/filter.h and linux/prctl.h.
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_SET_FILTER, _NEW_LISTENER, _NO_NEW_PRIVILEGES, _CONTINUE = 1, 8, 38, 1
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_SET, _RETURN, _ALLOW, _NOTIFY = 0x20, 0x15, 0x45, 0x06, 0x7FFF0000, 0x7FC00000
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")

#: Seconds without an operation or an end after which a process counts as hung.
_PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class FileOperation:
    """A system call that is about to change a file.

    Attributes:
        call: name of the system call.
        path: the file or folder.
        flags: of an `open`.
    """

    call: str
    path: Path
    flags: int = 0

    @property
    def takes_space(self) -> bool:
        """Whether it fails on a full disk."""
        return self.call not in _TAKES_NO_SPACE and not (self.call in _OPENS and self.path.exists())

    @property
    def changes(self) -> bool:
        """Whether the file or folder differs after it. SQLite's shared memory does not count: each process remakes it."""
        if self.path.name.endswith("-shm"):
            return False
        if self.call in _OPENS:
            return bool(self.flags & os.O_TRUNC) or not self.path.exists()
        if self.call in ("mkdir", "mkdirat"):
            return not self.path.exists()
        if self.call in ("rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2"):
            return os.path.lexists(self.path)
        return self.call not in ("fsync", "fdatasync")

    @property
    def can_be_half(self) -> bool:
        """Whether a kill after a part of its bytes is worth a try: SQLite's own files have its journals for that."""
        return self.call in _WRITES and ".sqlite" not in self.path.name

    def __str__(self) -> str:
        return f"{self.call} {self.path.name}"


def can_supervise() -> bool:
    """Return whether this system can hold the file operations of a process."""
    if _COLUMN is None or not sys.platform.startswith("linux"):
        return False
    try:
        return os.waitstatus_to_exitcode(supervise(lambda: None, Path("/nowhere"), lambda _: "go on")) == 0
    except OSError:
        return False


def supervise(work: Callable[[], object], folder: Path, decide: Callable[[FileOperation], Decision]) -> int:
    """Run `work` in a forked process and decide about each of its file operations below `folder`; return its wait status.

    A process that makes no progress for two minutes is killed with SIGALRM, to tell it from one killed by a decision.
    """
    ours, theirs = socket.socketpair()
    process = fork(lambda: _filtered(theirs, work))
    theirs.close()
    with ours:
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        os.waitpid(process, 0)
        raise OSError("this system does not hold system calls for another process (seccomp)")
    listener = descriptors[0]
    try:
        waiting = select.poll()
        waiting.register(listener, select.POLLIN)
        while True:
            events = waiting.poll(1000 * _PATIENCE)
            if not events:
                os.kill(process, signal.SIGALRM)
                break
            if not events[0][1] & select.POLLIN:  # no process of the filter is left
                break
            _answer(listener, process, folder, decide)
    finally:
        os.close(listener)
    return os.waitpid(process, 0)[1]


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a forked process that then exits; return the id of the process."""
    process = os.fork()
    if process:
        return process
    try:
        work()
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else error.code is not None)
    except BaseException:  # must not propagate into the caller's code in the copy of this process
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)
    os._exit(0)


def exit_code(process: int) -> int:
    """Wait for a forked process; return its exit code, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


# The process that is held --------------------------------------------------------------------------------------------


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def _filtered(theirs: socket.socket, work: Callable[[], object]) -> None:
    """Install the filter, send its listener to the parent, and do the work."""
    lines: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, 0)]  # the number of the system call
    for number, name in _NAMES.items():
        if name in _OPENS:
            flags = 16 + 8 * _OPENS[name]
            lines += [(_JUMP_IF_EQUAL, 0, 4, number), (_LOAD, 0, 0, flags), (_JUMP_IF_SET, 0, 1, _FLAGS),
                      (_RETURN, 0, 0, _NOTIFY), (_RETURN, 0, 0, _ALLOW)]  # fmt: skip
        else:
            lines += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _NOTIFY)]
    lines.append((_RETURN, 0, 0, _ALLOW))
    program = _Program(len(lines), (_Instruction * len(lines))(*lines))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    listener = libc.syscall(_SECCOMP, _SET_FILTER, _NEW_LISTENER, ctypes.byref(program))
    if listener < 0:
        os._exit(71)  # the parent reads the end of the socket
    socket.send_fds(theirs, [b"."], [listener])
    os.close(listener)
    theirs.close()
    work()


# The process that decides --------------------------------------------------------------------------------------------


def _answer(listener: int, process: int, folder: Path, decide: Callable[[FileOperation], Decision]) -> None:
    """Receive an operation, decide about it, and let it go on or fail; or kill its process."""
    buffer = bytearray(_NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer)
    except OSError:  # its process has ended meanwhile
        return
    notification, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
    decision: Decision = "go on"
    operation = _operation(thread, _NAMES[number], arguments)
    if operation is not None and operation.path.is_relative_to(folder):
        decision = decide(operation)
    if decision in ("kill", "kill in half"):
        if decision == "kill in half":
            _write_half(thread, _NAMES[number], arguments)
        os.kill(process, signal.SIGKILL)
        return
    failed = isinstance(decision, int)
    answer = struct.pack("=QqiI", notification, 0, -decision if failed else 0, 0 if failed else _CONTINUE)  # type: ignore[operator]
    try:
        fcntl.ioctl(listener, _SEND, answer)
    except OSError:  # its process has ended meanwhile
        return


def _operation(thread: int, name: str, arguments: list[int]) -> FileOperation | None:
    """Return a file operation from the arguments of a system call; None if its process has ended or it is no file."""
    _, _, kind, position = _CALLS[name]
    try:
        if kind == "descriptor":
            path = os.readlink(f"/proc/{thread}/fd/{arguments[position] & 0xFFFFFFFF}")
            return FileOperation(name, Path(path)) if path.startswith("/") else None
        path = _text(thread, arguments[position])
        descriptor = ctypes.c_int(arguments[position - 1] & 0xFFFFFFFF).value if kind == "path at" else -1
        base = os.readlink(f"/proc/{thread}/cwd" if descriptor < 0 else f"/proc/{thread}/fd/{descriptor}")
        flags = arguments[_OPENS[name]] if name in _OPENS else 0
        return FileOperation(name, Path(os.path.normpath(os.path.join(base, path))), flags)
    except OSError:
        return None


def _memory(thread: int, address: int, size: int) -> bytes:
    """Return `size` bytes of the memory of a process, fewer at the end of a mapping."""
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as file:
        file.seek(address)
        return file.read(size)


def _text(thread: int, address: int) -> str:
    """Return a path in the memory of a process; it ends with a zero byte."""
    content = b""
    while b"\0" not in content and len(content) < _MAX_PATH:
        start = address + len(content)
        content += _memory(thread, start, _PAGE - start % _PAGE)  # the next page may not exist
    return os.fsdecode(content.split(b"\0", 1)[0])


def _write_half(thread: int, call: str, arguments: list[int]) -> None:
    """Write the first half of the bytes of a held `write` or `pwrite64`, where the call would have written them."""
    number, address, size, offset = arguments[:4]
    data = _memory(thread, address, size // 2)
    descriptor = os.open(f"/proc/{thread}/fd/{number}", os.O_WRONLY)
    try:
        if call == "write":
            facts = dict(line.split(":\t", 1) for line in Path(f"/proc/{thread}/fdinfo/{number}").read_text().splitlines()[:2])
            appends = int(facts["flags"], 8) & os.O_APPEND
            offset = os.fstat(descriptor).st_size if appends else int(facts["pos"])
        os.pwrite(descriptor, data, offset)
    finally:
        os.close(descriptor)
