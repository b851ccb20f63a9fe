"""The model for a conversation in which the user named none, and what the tiny model cannot do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .downloads import SMALL, TINY, cache_folder, cached_file

#: Bytes of free memory with which the small model is used unasked, and of disk that stay free after its download.
MIN_MEMORY, MIN_DISK = 6_000_000_000, 3_000_000_000
_CONTROL_GROUP = Path("/sys/fs/cgroup")
_MINUTES = round(SMALL.size * 8 / 100e6 / 60 + 0.5)


def acting_model(named: str | None) -> str:
    """Return the model that acts in a conversation: the named one, or else the small one if this machine is ready for it.

    It is ready if the weights are in the cache and 6 GB of memory are free; else the model is the tiny one.
    """
    if named is not None:
        return named
    ready = not _is_restricted() and cached_file(SMALL) is not None and not memory_obstacle()
    return SMALL.model if ready else TINY.model


def tiny_model_note(model: str, *, goal: str = "", option: str = "--model") -> str:
    """Return one sentence on what the tiny model cannot do and how to get the model that can; "" for any other model.

    `option` is the one that names the model.
    """
    if model.partition("+")[0] != TINY.model or _is_restricted():
        return ""
    lacks = "pursues no goal and soon loses the thread" if goal else "soon loses the thread of a conversation"
    missing = f"{SMALL.size / 1e9:.1f} GB to download once, about {_MINUTES} minutes at 100 Mbit/s"
    cost = missing if cached_file(SMALL) is None else "its weights are on this machine"
    needs = "; ".join(filter(None, (cost, memory_obstacle())))
    return f"the model {model} (135 million parameters) {lacks}; {option} {SMALL.model} does better ({needs})"


def fetch_obstacle() -> str:
    """Return why the small model should not be downloaded unasked; "" if nothing speaks against it."""
    if _is_restricted():
        return "USERTWIN_ONLY_SCRIPTED forbids it"
    if obstacle := memory_obstacle():
        return obstacle
    needed, free = SMALL.size + MIN_DISK, _free_disk(cache_folder())
    return f"it needs {needed / 1e9:.1f} GB of free disk space, and {free / 1e9:.1f} GB are free" if free < needed else ""


def memory_obstacle() -> str:
    """Return that too little memory is free for the small model; "" if there is enough."""
    free = free_memory()
    return f"it needs {MIN_MEMORY / 1e9:.0f} GB of free memory, and {free / 1e9:.1f} GB are free" if free < MIN_MEMORY else ""


def free_memory() -> int:
    """Return the bytes of memory that this process can still use: those of the machine, or of its control group if fewer."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (int((_CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (_CONTROL_GROUP / "memory.stat").read_text().splitlines())
        return min(free, limit - used + int(statistics["inactive_file"]))  # the kernel frees these pages when it needs them
    except (OSError, ValueError, KeyError):  # no control groups, or no limit
        return free


def _is_restricted() -> bool:
    return bool(os.environ.get("USERTWIN_ONLY_SCRIPTED"))


def _free_disk(folder: Path) -> int:
    """Return the free bytes of the disk of a folder, which need not exist."""
    return shutil.disk_usage(next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())).free
