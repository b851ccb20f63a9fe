"""Evaluate a twin on the held-out turns of its person."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from usertwin.evals.metrics.closeness import closeness
from usertwin.evals.metrics.statistics import evenly_spaced
from usertwin.memory import Embedder, Scorer
from usertwin.memory.progress import Progress, no_progress
from usertwin.simulator import SimulatedUser

from .arms import Arms
from .endings import measure_endings
from .held_out import held_out_pairs, other_person_store
from .leak_checks import check_split
from .replay import Replay, ReplayConfig


def twin_arm(user: SimulatedUser) -> str:
    """Return the arm that the twin uses: "recon" (recalled pairs with its traces) or "recalled_pairs" (without traces)."""
    return "recalled_pairs" if user.settings.traces == "none" else "recon"


async def evaluate(
    user: SimulatedUser, scorer: Scorer, embedder: Embedder, *, folder: Path, against: str | Path | None = None,
    config: ReplayConfig | None = None, progress: Progress = no_progress,
) -> dict[str, Any]:  # fmt: skip
    """Measure how close a twin is to its person, beside the baselines.

    Args:
        user: the twin.
        scorer: the model that scores real actions.
        embedder: for recall from the other person's past, and for similarities.
        folder: the twin's folder, which holds the held-out conversations.
        against: another log with turns of the same speaker, to measure on instead.
        config: how to measure; the default configuration if None.
        progress: called with a stage, the number of finished turns, and the total.

    Returns:
        The JSON object that `usertwin eval --json` writes.

    Raises:
        LogError: no held-out turn.
        UsageError: an unknown arm, or a number out of range.
        TwinError: a held-out conversation is in the memory.
    """
    config = config or ReplayConfig()
    config.check()
    held_out, dropped = held_out_pairs(user, folder, against)
    # Not by time: pairs added later may be in the memory, and each turn recalls only earlier ones.
    check_split(user.record, (triple.pair for triple in user.store.triples()), held_out, by_time=False)
    with ExitStack() as stack:
        other = other_person_store(user, folder, embedder, stack)
        progress("recalling", 0, 1)
        arms = Arms(user, names=config.arms, other=other, seed=config.seed)
        replay = Replay(user=user, scorer=scorer, embedder=embedder, arms=arms, config=config, person=user.name)
        pairs = evenly_spaced([pair for pair in held_out if not pair.abandoned], config.limit)
        turns = await replay.run(pairs, progress=progress)
    endings = measure_endings(user, held_out, seed=config.seed)
    result = closeness(turns, twin_arm(user), seed=config.seed)
    models: dict[str, str | None] = {"action": user.model.name, "scorer": scorer.name, "embedder": user.store.embedder.name}
    models["proposer"] = user.record.recipe.model
    models |= {} if user.reasoner is user.model else {"reasoner": user.reasoner.name}
    return {
        "twin": user.name,
        **{name: value for name, value in result.items() if name != "people"},
        "ending": {} if endings is None else {"f1": endings["f1"]},
        "models": models,
        "k": user.k,
        "triples": len(user.store),
        "against": None if against is None else str(against),
        "dropped_conversations": dropped,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
