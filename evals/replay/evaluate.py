"""Evaluate a twin on the held-out turns of its person."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from usertwin.evals.metrics.closeness import closeness
from usertwin.evals.metrics.statistics import evenly_spaced
from usertwin.memory import Embedder, Scorer
from usertwin.simulator import SimulatedUser

from .arms import Arms
from .endings import endings
from .held_out import held_out_pairs, other_person
from .leak_checks import check_split
from .replay import Replay, ReplayConfig, ReplayProgress, quiet


def twin_arm(user: SimulatedUser) -> str:
    """The arm that is what the twin does: with or without traces, as was found best for it."""
    return "recalled_pairs" if user.settings.traces == "none" else "recalled_triples"


async def evaluate(
    user: SimulatedUser,
    scorer: Scorer,
    embedder: Embedder,
    *,
    folder: Path,
    against: str | Path | None = None,
    protocol: ReplayConfig = ReplayConfig(),
    progress: ReplayProgress = quiet,
) -> dict[str, Any]:
    """Measure how close a twin is to the person, beside the baselines.

    Args:
        user: the twin.
        scorer: the model under which real actions are scored.
        embedder: for recall in the other person's past, and for similarity.
        folder: the twin's folder, which holds the held-out conversations.
        against: another log with turns of the same speaker to measure on instead.
        protocol: how to measure.
        progress: is told how far things are.

    Returns:
        Everything that `usertwin eval --json` writes.

    Raises:
        LogError: there is nothing to measure on.
        UsageError: no such arm, or a number that makes no sense.
        TwinError: something that is held out is in the memory.
    """
    protocol.check()
    held_out, dropped = held_out_pairs(user, folder, against)
    # Moments that were added later may be in the memory; each moment is shown only what came before it.
    check_split(user.record, (triple.pair for triple in user.store.triples()), held_out, by_time=False)
    with ExitStack() as stack:
        other = other_person(user, folder, embedder, stack)
        progress("recalling", 0, 1)
        arms = Arms(user, protocol.arms, other, seed=protocol.seed)
        replay = Replay(user, scorer, embedder, arms, protocol, user.name)
        turns = await replay.run(
            evenly_spaced([pair for pair in held_out if not pair.abandoned], protocol.limit), progress=progress
        )
    told = endings(user, held_out, seed=protocol.seed)
    found = closeness(turns, twin_arm(user), seed=protocol.seed)
    return {
        "twin": user.name,
        **{name: value for name, value in found.items() if name != "people"},
        "ending": {} if told is None else {"f1": told["f1"]},
        "models": models_of(user, scorer),
        "k": user.k,
        "triples": len(user.store),
        "against": None if against is None else str(against),
        "dropped_conversations": dropped,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def models_of(user: SimulatedUser, scorer: Scorer) -> dict[str, str | None]:
    """The names of the models that a measurement rests on."""
    return {
        "action": user.model.name,
        "scorer": scorer.name,
        "embedder": user.store.embedder.name,
        "proposer": user.record.recipe.model,
        **({} if user.reasoner is user.model else {"reasoner": user.reasoner.name}),
    }
