"""The benchmark of running conversations: `make bench ONLY=simulate`."""

from __future__ import annotations

from collections.abc import Iterator

from ..figures import Figure
from .embedding import embedding_part
from .processor_time import processor_part
from .throughput import throughput_part


def simulate_part() -> Iterator[tuple[str, Figure]]:
    """Yield all figures of running conversations."""
    yield from embedding_part()
    yield from processor_part()
    yield from throughput_part()
