"""A small Ray cluster for tests, on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

_ATTEMPTS = 4


@contextmanager
def ray_cluster(processors: int = 2) -> Iterator[str]:
    """Start a cluster and yield its address; it ends with the context. The test is skipped without Ray."""
    pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    for attempt in range(1, _ATTEMPTS + 1):
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in names]
            for free in sockets:
                free.bind(("127.0.0.1", 0))
            ports = {name: free.getsockname()[1] for name, free in zip(names, sockets, strict=True)}
        # With ports of its own choice, Ray 2.60 gives its helpers 15 seconds to start, and fails on a busy machine.
        node = {"num_cpus": processors, "object_store_memory": 100 * 2**20, "include_dashboard": False, **ports}
        try:
            cluster = Cluster(initialize_head=True, head_node_args=node)
        except Exception:  # it did not start within Ray's own 30 seconds
            if attempt == _ATTEMPTS:
                raise
        else:
            break
    try:
        yield cluster.address
    finally:
        cluster.shutdown()
