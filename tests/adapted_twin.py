"""A twin of an invented person, the tiny model that plays it, and an adapter for both; and a process that kills itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_model import one_thread

from usertwin.evals.metrics import statistics
from usertwin.evals.tuning.adapt import AdaptConfig, adapt
from usertwin.memory import Settings
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.twin.record import TwinAdapter, update_record
from usertwin.simulator import SimulatedUser

EMBEDDER = FakeEmbedder(64)
#: Three steps of eight rows.
CONFIG = AdaptConfig(rows=24, rank=4, limit=6)
SETTINGS = Settings(k=2, window=3, traces="none", reasons=False)
#: An attempt that paid, as a record holds it.
ATTEMPT = TwinAdapter(
    used=True, base="transformers:/nowhere", weights="0" * 32, identity="0" * 64, turns=24, remembered=36, epochs=1, rank=4,
    trained_at="2026-12-01T10:00:00+00:00", difference=-0.0271, low=-0.034, high=-0.02, validation_turns=6, conversations=2,
)  # fmt: skip


def opened(base: Path | str, **options: Any) -> SimulatedUser:
    """Open the twin "cid", played by a transformers folder or a named model."""
    model = f"transformers:{base}" if isinstance(base, Path) else base
    return SimulatedUser.load("cid", model=model, embedder=EMBEDDER, **options)


def with_settings(folder: Path, settings: Settings = SETTINGS) -> Path:
    """Give a twin settings whose prompts fit into the tiny model, and return its folder."""
    update_record(folder, lambda record: replace(record, settings=settings))
    return folder


def adapted(folder: Path, base: Path, config: AdaptConfig = CONFIG, **options: Any) -> TwinAdapter:
    """Adapt the twin in one thread."""
    with one_thread(), opened(base) as user:
        return adapt(user, folder, config, **options)


def weights_in(folder: Path) -> dict[str, list[float]]:
    """Return the weights of an adapter."""
    from safetensors.torch import load_file

    return {name: tensor.flatten().tolist() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}


def killed_while_adapting(folder: Path, base: Path, step: int) -> None:
    """Adapt the twin in another process, which kills itself after a step."""
    process = multiprocessing.get_context("spawn").Process(target=_adapt_until_killed, args=(folder, base, step), daemon=True)
    process.start()
    process.join(240)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL, f"the process was not killed: {process.exitcode}"


def _adapt_until_killed(folder: Path, base: Path, step: int) -> None:
    statistics.MIN_CONVERSATIONS = 2

    def die(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("adapting", step):
            os.kill(os.getpid(), signal.SIGKILL)

    adapted(folder, base, progress=die)
