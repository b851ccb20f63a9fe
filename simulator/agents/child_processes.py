"""How a process of an agent ended, and its end by force."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

#: Bytes of a reply; the characters of a reply that we accept are fewer.
MAX_BYTES = 256 * 2**20


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
