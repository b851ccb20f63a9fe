"""Does a twin drift: how near it stays to the person the longer it has been talking in its own words.

The one design choice: the other side says what it really said, whatever the twin says, so that each turn of a free simulation
still has a real turn to be compared with; only the twin's own past turns are its own. The same turn after the real history is
the yardstick, and the difference is what its own words cost it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from usertwin.evals.metrics.reply_similarity import embedding_similarities
from usertwin.evals.metrics.statistics import evenly_spaced, mean_over_people
from usertwin.evals.metrics.writing_style import style_distance
from usertwin.memory import Embedder
from usertwin.personas import Pair
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import as_shown

#: At which of the twin's turns in a conversation it is looked at.
DEPTHS = (1, 3, 5, 10)


@dataclass(frozen=True, slots=True)
class Drifted:
    """One turn of a free simulation.

    Attributes:
        person: whose.
        conversation_id: where.
        depth: the how manieth turn of the person it is, from 1.
        action: what the person really said.
        free: what the twin says after its own earlier turns.
        led: what it says after the person's real ones.
        free_similarity: cosine of `free` and the real turn.
        led_similarity: the same of `led`.
    """

    person: str
    conversation_id: str
    depth: int
    action: str
    free: str
    led: str
    free_similarity: float
    led_similarity: float


async def drift(
    user: SimulatedUser,
    embedder: Embedder,
    pairs: Sequence[Pair],
    person: str,
    *,
    most: int,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[Drifted]:
    """Let a twin talk through held-out conversations in its own words.

    Args:
        user: the twin.
        embedder: tells how like two texts are.
        pairs: the person's held-out moments, in order.
        person: what to call the person in the records.
        most: in how many conversations, the longest ones.
        seed: for the sampler.
        progress: is told how far things are.

    Returns:
        A record for each of `DEPTHS` that a conversation reaches.

    Raises:
        ModelError: the model does not answer.
    """
    talks: dict[str, list[Pair]] = {}
    for pair in pairs:
        if not pair.abandoned:
            talks.setdefault(pair.conversation_id, []).append(pair)
    longest = sorted(talks.values(), key=lambda talk: -min(len(talk), DEPTHS[-1]))[: 2 * most]
    chosen = evenly_spaced(longest, most)
    found: list[Drifted] = []
    for number, talk in enumerate(chosen):
        progress("drifting", number, len(chosen))
        found += await _talk(user, embedder, talk[: DEPTHS[-1]], person, seed)
    progress("drifting", len(chosen), len(chosen))
    return found


async def _talk(user: SimulatedUser, embedder: Embedder, talk: Sequence[Pair], person: str, seed: int) -> list[Drifted]:
    own: dict[int, str] = {}  # what the twin said, by the place of the turn: the same words may have been said twice
    found: list[tuple[int, Pair, str, str]] = []
    for depth, pair in enumerate(talk, 1):
        first = pair.position - len(pair.context)
        instead = tuple(
            replace(turn, text=own[place]) if place in own else turn for place, turn in enumerate(pair.context, first)
        )
        free = await _reply(user, replace(pair, context=instead), seed)
        if depth in DEPTHS:
            same = instead == pair.context  # at the first turn the two histories are one
            found.append((depth, pair, free, free if same else await _reply(user, pair, seed)))
        if free:  # of a silence nothing stands in a history; the real turn does
            own[pair.position] = free
    reals = [pair.action for _, pair, _, _ in found]
    freely = await asyncio.to_thread(embedding_similarities, [free for _, _, free, _ in found], reals, embedder)
    led_by = await asyncio.to_thread(embedding_similarities, [led for _, _, _, led in found], reals, embedder)
    return [
        Drifted(person, pair.conversation_id, depth, pair.action, free, led, mine, theirs)
        for (depth, pair, free, led), mine, theirs in zip(found, freely, led_by, strict=True)
    ]


async def _reply(user: SimulatedUser, pair: Pair, seed: int) -> str:
    """What the twin says at a moment, after what it would recall and think there."""
    traced = user.settings.traces != "none"
    recalled = await asyncio.to_thread(
        user.store.recall, pair, user.k, before=pair.when, with_trace=traced, ranking=user.ranking
    )  # fmt: skip
    _, [answer] = await user.sample_reply(pair, as_shown([one.triple for one in recalled], user.settings.traces), seed=seed)
    return answer.text


def drift_result(records: Sequence[Drifted], *, seed: int = 0) -> dict[str, Any]:
    """For each depth: how like the real turn the twin is in its own words, and after the real ones, with intervals."""
    found: dict[str, Any] = {}
    for depth in DEPTHS:
        here = [one for one in records if one.depth == depth]
        if not here:
            continue
        where = [(one.person, one.conversation_id) for one in here]
        values = {
            "similarity": [one.free_similarity for one in here],
            "real_history": [one.led_similarity for one in here],
            "difference": [one.free_similarity - one.led_similarity for one in here],
        }
        found[str(depth)] = {name: _mean(each, where, seed) for name, each in values.items()} | {
            "style": {
                "value": style_distance([one.free for one in here], [one.action for one in here]),
                "low": None,
                "high": None,
                "n": len(here),
            }
        }
    return found


def _mean(values: Sequence[float], where: Sequence[tuple[str, str]], seed: int) -> dict[str, Any] | None:
    found = mean_over_people(values, [person for person, _ in where], [talk for _, talk in where], seed=seed)
    return None if found is None else found[0].estimate().to_json()
