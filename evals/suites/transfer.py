"""Traces made by one model, used by another: what they are worth there, beside the same moments without traces.

The one design choice: the comparison is paired within the user of the traces, so that models which predict better or worse as
such can stand in one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from usertwin.evals.metrics.closeness import closeness
from usertwin.evals.records.measured_turns import MeasuredTurn

_ARM, _AGAINST = "recalled_triples", "recalled_pairs"


def transfer_result(turns: Mapping[tuple[str, str], Sequence[MeasuredTurn]], *, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each (proposer, scorer): how many more bits per character the real turns cost with its traces than without."""
    rows: list[dict[str, Any]] = []
    for (proposer, scorer), measured in turns.items():
        paired = closeness(measured, _ARM, seed=seed, contrasts=[(_ARM, _AGAINST)])["paired"]
        difference = paired.get(f"{_ARM} - {_AGAINST}", {}).get("bits_per_char")
        rows.append({"proposer": proposer, "scorer": scorer, "arm": _ARM, "against": _AGAINST, "bits_per_char": difference})
    return rows
