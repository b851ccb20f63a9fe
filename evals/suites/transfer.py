"""Transfer of traces: traces of one model, used by another, against the same pairs without traces.

Design: the difference is paired within the model that uses the traces, so models of any strength fit into one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usertwin.evals.metrics.closeness import closeness
from usertwin.evals.records.measured_turns import MeasuredTurn

from .measure_person import Person, PersonMeasurement

_ARM, _AGAINST = "recon", "recalled_pairs"


async def run_transfer(measurement: PersonMeasurement, people: Sequence[Person], folder: Path) -> list[dict[str, Any]]:
    """Do the missing part of the experiment, and return its rows; none without the table [transfer].

    Args:
        measurement: learns and measures people.
        people: the people of the suite; twins learned before are skipped.
        folder: the run's folder.
    """
    transfer = measurement.suite.transfer
    turns: dict[tuple[str, str], list[MeasuredTurn]] = {}
    for number, person in enumerate(people if transfer else ()):
        if person.corpus is None or transfer is None:
            continue
        for place, proposer in enumerate(transfer.proposers):
            name = f"{person.twin}-by{place}"
            twin = await measurement.learn(person, proposer, name=name)
            for other, scorer in enumerate(transfer.scorers):
                path = folder / "people" / f"transfer-{number}-{place}-{other}.part"
                measured = await measurement.transfer_turns(person, name, twin, scorer, transfer.turns, path)
                turns.setdefault((proposer, scorer), []).extend(measured)
    return transfer_result(turns, seed=measurement.suite.seed)


def transfer_result(turns: Mapping[tuple[str, str], Sequence[MeasuredTurn]], *, seed: int = 0) -> list[dict[str, Any]]:
    """Return a row for each (proposer, scorer): bits per character of the real turns with its traces minus without."""
    rows: list[dict[str, Any]] = []
    for (proposer, scorer), measured in turns.items():
        paired = closeness(measured, _ARM, seed=seed, contrasts=[(_ARM, _AGAINST)])["paired"]
        difference = paired.get(f"{_ARM} - {_AGAINST}", {}).get("bits_per_char")
        rows.append({"proposer": proposer, "scorer": scorer, "arm": _ARM, "against": _AGAINST, "bits_per_char": difference})
    return rows
