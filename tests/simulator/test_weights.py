"""Local weights: models that several threads load at the same time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest

from usertwin.memory.models.scoring import Precision
from usertwin.simulator.backends.weights import load_transformers


@pytest.fixture
def _rapid_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_rapid_switches")
def test_models_loaded_at_the_same_time_have_weights_of_their_own_precision(base: Path) -> None:
    def load(number: int) -> tuple[Precision, set[str]]:
        precision = get_args(Precision)[number % 2]
        model, _ = load_transformers(base, precision)
        return precision, {str(weights.dtype) for weights in model.parameters()}

    with ThreadPoolExecutor(6) as pool:
        loaded = list(pool.map(load, range(24)))
    assert all(dtypes == {f"torch.{precision}"} for precision, dtypes in loaded)
