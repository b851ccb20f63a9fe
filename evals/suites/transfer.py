"""Transfer of traces: traces of one model, used by another, against the same pairs without traces.

Design: the difference is paired within the model that uses the traces, so models of any strength fit into one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from usertwin.evals.metrics.closeness import closeness
from usertwin.evals.metrics.statistics import evenly_spaced
from usertwin.evals.records.measured_turns import MeasuredTurn
from usertwin.evals.replay.arms import Arms
from usertwin.evals.replay.held_out import held_out_pairs
from usertwin.evals.replay.replay import Replay, ReplayConfig

from .measure_person import Person, PersonMeasurement

_ARM, _AGAINST = "recon", "recalled_pairs"


async def run_transfer(measurement: PersonMeasurement, people: Sequence[Person]) -> list[dict[str, Any]]:
    """Do the missing part of the experiment, and return its rows; none without the table [transfer].

    Twins learned before are skipped, since the suite has no log to learn them from.
    """
    transfer, models, seed = measurement.suite.transfer, measurement.models, measurement.suite.seed
    if transfer is None:
        return []
    config = ReplayConfig(arms=(_AGAINST, _ARM), limit=transfer.turns, generate=0, seed=seed)
    turns: dict[tuple[str, str], list[MeasuredTurn]] = {}
    for number, person in enumerate(people):
        if person.corpus is None:
            continue
        for place, proposer in enumerate(transfer.proposers):
            name = f"{person.twin}-by{place}"
            twin = await measurement.learn(person, proposer, name=name)
            with measurement.open_twin(person, name, measurement.trace_settings) as user:
                arms = Arms(user=user, names=config.arms, seed=seed)
                spoken = [pair for pair in held_out_pairs(user, twin)[0] if not pair.abandoned]
                for other, scorer in enumerate(transfer.scorers):
                    replay = Replay(
                        user=user, scorer=models.scorer(scorer), embedder=models.embedder(), arms=arms, config=config,
                        person=person.label,
                    )  # fmt: skip
                    path = measurement.folder / f"transfer-{number}-{place}-{other}.part"
                    measured = await replay.run(evenly_spaced(spoken, config.limit), path=path, progress=measurement.progress)
                    turns.setdefault((proposer, scorer), []).extend(measured)
    return transfer_result(turns, seed=seed)


def transfer_result(turns: Mapping[tuple[str, str], Sequence[MeasuredTurn]], *, seed: int = 0) -> list[dict[str, Any]]:
    """Return a row for each (proposer, scorer): bits per character of the real turns with its traces minus without."""
    rows: list[dict[str, Any]] = []
    for (proposer, scorer), measured in turns.items():
        paired = closeness(measured, _ARM, seed=seed, contrasts=[(_ARM, _AGAINST)])["paired"]
        difference = paired.get(f"{_ARM} - {_AGAINST}", {}).get("bits_per_char")
        rows.append({"proposer": proposer, "scorer": scorer, "arm": _ARM, "against": _AGAINST, "bits_per_char": difference})
    return rows
