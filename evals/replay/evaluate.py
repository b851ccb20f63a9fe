"""Evaluate a twin on the held-out turns of its person."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from usertwin.evals.arm_names import ADAPTED, DEFAULT_ARMS, RERANKED, WORDS, arm_names, base_arm, check_arms
from usertwin.evals.metrics.closeness import closeness
from usertwin.evals.metrics.statistics import evenly_spaced
from usertwin.memory import Embedder, Scorer
from usertwin.memory.concurrency import to_thread
from usertwin.memory.progress import Progress, no_progress
from usertwin.simulator import SimulatedUser

from .adapted import is_adapted_twin, split_adapter
from .arms import Arms, own_words
from .endings import measure_endings
from .held_out import given_distractors, held_out_pairs, other_person_store
from .leak_checks import check_split, measure_memorization, without_near_duplicates
from .peers import write_persona
from .replay import Replay, ReplayConfig
from .simulators import load_simulators

#: The most turns on which memorization by the scorer is measured.
_MEMORIZATION_TURNS = 50


def twin_arm(user: SimulatedUser) -> str:
    """Return the arm that the twin uses: "recon" (pairs with its traces) or "recalled_pairs", as its settings say."""
    base, settings = "recalled_pairs" if user.settings.traces == "none" else "recon", user.settings
    base += ADAPTED if is_adapted_twin(user) else ""
    return base + (WORDS if settings.words is not None else "") + (RERANKED if settings.reranking is not None else "")


async def evaluate(
    user: SimulatedUser, scorer: Scorer, embedder: Embedder, *, folder: Path, against: str | Path | None = None,
    config: ReplayConfig | None = None, adapted: Scorer | None = None, progress: Progress = no_progress,
) -> dict[str, Any]:  # fmt: skip
    """Measure how close a twin is to its person, beside the baselines.

    Args:
        user: the twin.
        scorer: the model that scores real actions.
        embedder: for recall from the other person's past, and for similarities.
        folder: the twin's folder, which holds the held-out conversations.
        against: another log with turns of the same speaker, to measure on instead.
        config: how to measure; the default configuration if None.
        adapted: the scorer with the adapter of the twin (see `adapted_scorer`), for the bits of the arms that have it.
        progress: called with a stage, the number of finished turns, and the total.

    Returns:
        The JSON object that `usertwin eval --json` writes.

    Raises:
        LogError: no held-out turn.
        UsageError: an unknown arm, a number out of range, or no held-out turn that the memory does not nearly hold.
        TwinError: a held-out conversation is in the memory.
    """
    config = config or ReplayConfig()
    config.check()
    if config.arms == DEFAULT_ARMS:
        config = replace(config, arms=check_arms([*DEFAULT_ARMS, twin_arm(user)]))
    simulators, twin = load_simulators(config.arms), twin_arm(user)
    user, with_adapter = split_adapter(user, adapted)
    held_out, dropped = held_out_pairs(user, folder, against)
    known = [triple.pair for triple in user.store.triples()]
    # Not by time: pairs added later may be in the memory, and each turn recalls only earlier ones.
    check_split(user.record, known, held_out, by_time=False)
    fresh = without_near_duplicates(user.name, held_out, known)
    spoken = [pair for pair in fresh if not pair.abandoned]
    with ExitStack() as stack:
        other = other_person_store(user, folder, embedder, stack)
        progress("recalling", 0, 1)
        names = arm_names(config.arms)
        written = await write_persona(user, seed=config.seed) if "openevals_written" in map(base_arm, names) else None
        arms = Arms(
            user, names=names, other=other, written=written, simulators=simulators, words=own_words(user, scorer, names),
            adapted=with_adapter, seed=config.seed,
        )  # fmt: skip
        replay = Replay(
            user=user, scorer=scorer, embedder=embedder, arms=arms, config=config, person=user.name,
            given=given_distractors(user, folder),
        )  # fmt: skip
        turns = await replay.run(evenly_spaced(spoken, config.limit), progress=progress)
    memorized = await to_thread(measure_memorization, scorer, spoken, max_turns=_MEMORIZATION_TURNS)
    endings = measure_endings(user, folder, fresh)
    result = closeness(turns, twin if twin in names else base_arm(twin), seed=config.seed)
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
        "leakage": {"near_duplicates": len(held_out) - len(fresh), "of": len(held_out), "memorized": memorized},
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
