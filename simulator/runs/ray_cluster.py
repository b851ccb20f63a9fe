"""The connection with a Ray cluster, which is started on this machine if there is none."""

from __future__ import annotations

import logging
import os
import socket
import time
from importlib import import_module
from typing import Any

from usertwin.personas import UsageError

from ..backends.llama_cpp import cores

#: Seconds in which the processors of workers that have ended become free, in which a cluster must accept a connection, and
#: between two looks.
_FREED, _ANSWER, _LOOK = 10.0, 5.0, 0.2
#: Bytes of the object store of a cluster that is started for a run; JSON text of a conversation is small.
_OBJECT_STORE = 100 * 2**20
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


class RayCluster:
    """The cluster that runs at an address, "HOST:PORT"; without one, that of RAY_ADDRESS, of this machine, or a new one.

    Attributes:
        ray: the module.

    Raises:
        UsageError: Ray is not installed.
    """

    def __init__(self, address: str | None = None) -> None:
        self.ray, self._is_ours = _ray(), False
        self._address = address or os.environ.get("RAY_ADDRESS")

    def connect(self, workers: int | None) -> int:
        """Connect, unless the program is connected, and return the number of workers, by default one for each free processor.

        Raises:
            UsageError: there is no such cluster, it cannot be used, or it has too few free processors.
        """
        if not self.ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # reports of a cluster that we start
            self._start(workers or 0)
            self._is_ours = True
        wanted, deadline = workers or 1, time.monotonic() + _FREED
        while (free := int(self.ray.available_resources().get("CPU", 0))) < wanted and time.monotonic() < deadline:
            time.sleep(_LOOK)
        if free < wanted:
            self.close()
            way_out = "start more nodes, or lower the number of workers"
            raise UsageError(f"the Ray cluster has {free} free processors and {wanted} workers need one each; {way_out}")
        return workers or free

    def close(self) -> None:
        """Disconnect, and end a cluster that was started here."""
        if self._is_ours:
            self.ray.shutdown()

    def _start(self, workers: int) -> None:
        try:
            if self._address is not None:
                _check_address(self._address)
            self.ray.init(address=self._address or "auto", **_QUIET)
        except ConnectionError:
            if self._address is not None:
                raise
            self._start_here(max(workers, cores()))
        except RuntimeError as error:  # the cluster has another version of Ray or Python
            raise UsageError(f"the Ray cluster cannot be used: {first_line(error)}") from None

    def _start_here(self, processors: int) -> None:
        try:
            self.ray.init(
                "local", num_cpus=processors, object_store_memory=_OBJECT_STORE, include_dashboard=False, **_QUIET
            )  # fmt: skip
        except Exception as error:  # Ray has no class for this
            raise UsageError(
                f"a Ray cluster cannot be started on this machine ({first_line(error)}); start one with: ray start --head"
            ) from None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; Ray writes paragraphs."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _ray() -> Any:
    try:
        return import_module("ray")
    except ImportError:
        raise UsageError("a run on Ray needs the package ray; install it with: pip install 'usertwin[ray]'") from None


def _check_address(address: str) -> None:
    """Raise UsageError if nothing answers at the address of a cluster; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise UsageError(f'"{address}" is not the address of a Ray cluster; use HOST:PORT of its head node')
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f'there is no Ray cluster at "{address}" ({error}); start one with: ray start --head') from None
