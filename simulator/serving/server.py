"""Runs the endpoint with uvicorn until it is told to end: on Ctrl-C or SIGTERM it finishes the running answers."""

from __future__ import annotations

import errno
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from usertwin.personas import UsageError
from usertwin.personas.reading import reason

if TYPE_CHECKING:
    from starlette.applications import Starlette


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a port; 0 for a free one. UsageError if the port or the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OverflowError:
        raise UsageError(f"--port: {port} is no port; give a number from 0 to 65535") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"--port: {port} is in use by another program; give another port, or 0 for a free one") from None
        raise UsageError(f"--host: {host} cannot be listened on ({reason(error)}); give an address of this machine") from None


def run(app: Starlette, listener: socket.socket, *, grace: float) -> None:
    """Serve until SIGINT or SIGTERM; running answers get `grace` seconds, and a second signal ends them at once."""
    import uvicorn

    config = uvicorn.Config(
        app, log_config=None, access_log=False, proxy_headers=False, server_header=False, ws="none", http="h11", loop="asyncio",
        lifespan="off", timeout_graceful_shutdown=max(1, round(grace)),
    )  # fmt: skip
    with _quiet_signals():
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _quiet_signals() -> Generator[None]:
    """Let signals that uvicorn has handled, and raises again when it has ended, do nothing more."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda number, frame: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
