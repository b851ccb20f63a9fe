"""The options that run conversations on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from usertwin.personas import UsageError

_Command = TypeVar("_Command", bound=Callable[..., Any])


def cluster_options(command: _Command) -> _Command:
    """Add --on and --workers, the arguments `place` and `workers`."""
    command = click.option("--workers", type=int, help="Workers on the cluster.  [default: one for each free processor]")(
        command
    )
    return click.option(
        "--on", "place", metavar="ray[:HOST:PORT]", help="Run the conversations on the workers of a Ray cluster."
    )(command)


def cluster_arguments(place: str | None, workers: int | None) -> dict[str, Any] | None:
    """Return the arguments of `RayExecutor` that the options give; None without --on. UsageError for another place."""
    if place is None:
        if workers is not None:
            raise UsageError("--workers is the number of workers on a cluster; give --on, too, or use --parallel")
        return None
    kind, colon, address = place.partition(":")
    if kind != "ray" or (colon and not address):
        raise UsageError(f'--on: "{place}" is no place to run; use ray, or ray:HOST:PORT')
    return {"address": address or None, "workers": workers}
