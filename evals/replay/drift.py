"""Drift: how the similarity to the person falls as a twin talks on from its own replies.

Design: the other side keeps its real turns, and only the twin's earlier turns are replaced by its replies (free-running). So
every simulated turn has a real turn to compare with. The reply after the real history (teacher-forced) is the reference.
The difference is the cost of the twin's own words.

The twin also decides after each turn whether it leaves, and is then led on. A conversation is too short if it would have left
before the person did, and too long if it would not have left where the person did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from usertwin.evals.metrics.reply_similarity import embedding_similarities
from usertwin.evals.metrics.statistics import Estimate, evenly_spaced, mean_over_people
from usertwin.evals.metrics.writing_style import style_distance
from usertwin.evals.records.result_shapes import DriftTurn
from usertwin.memory import Embedder
from usertwin.memory.concurrency import to_thread
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.twin.abandonment import NEIGHBOURS
from usertwin.personas import Pair
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import with_shown_traces

#: Turns of the person in a conversation, counted from 1, at which drift is measured.
DEPTHS = (1, 3, 5, 10)


async def drift(
    user: SimulatedUser, embedder: Embedder, pairs: Sequence[Pair], person: str, *,
    max_conversations: int, seed: int = 0, progress: Progress = no_progress,
) -> list[DriftTurn]:  # fmt: skip
    """Let a twin talk through held-out conversations in its own words, at most `max_conversations`; long ones are preferred.

    `pairs` are the person's held-out pairs, in order; `person` is the name in the records. `progress` is called with
    "drifting", the number of finished conversations, and the total.

    Returns:
        A record for each of `DEPTHS` that a conversation reaches. Raises ModelError if the model does not answer.
    """
    conversations: dict[str, list[Pair]] = {}
    silent: dict[str, Pair] = {}
    for pair in pairs:
        if pair.abandoned:
            silent[pair.conversation_id] = pair
        else:
            conversations.setdefault(pair.conversation_id, []).append(pair)
    by_length = sorted(conversations.values(), key=lambda own: -min(len(own), DEPTHS[-1]))
    selected = evenly_spaced(by_length[: 2 * max_conversations], max_conversations)
    records: list[DriftTurn] = []
    for number, conversation in enumerate(selected):
        progress("drifting", number, len(selected))
        records += await _simulate(user, embedder, conversation, silent.get(conversation[0].conversation_id), person, seed)
    progress("drifting", len(selected), len(selected))
    return records


async def _simulate(
    user: SimulatedUser, embedder: Embedder, conversation: Sequence[Pair], silent: Pair | None, person: str, seed: int
) -> list[DriftTurn]:
    """Return the records of a conversation; `silent` is the pair in which the person left it without a word, if they did."""
    own: dict[int, str] = {}  # replies by position, since two turns may have the same text
    replies: list[tuple[int, Pair, str, str]] = []
    left_after: int | None = None
    for depth, pair in enumerate(conversation[: DEPTHS[-1]], 1):
        now = _with_replies(pair, own)
        if left_after is None and await _leaves_silently(user, now):
            left_after = depth - 1
        free = await _reply(user, now, seed)
        if left_after is None and free and user.last_turn is not None and user.last_turn.leaves(replace(now, action=free)):
            left_after = depth
        if depth in DEPTHS:
            same_context = now.context == pair.context  # at the first turn
            replies.append((depth, pair, free, free if same_context else await _reply(user, pair, seed)))
        if free:  # an empty reply leaves no turn, so the real one stays in the history
            own[pair.position] = free
    if left_after is None and silent is not None and len(conversation) <= DEPTHS[-1]:
        left_after = len(conversation) if await _leaves_silently(user, _with_replies(silent, own)) else None
    reals = [pair.action for _, pair, _, _ in replies]
    texts = [free for _, _, free, _ in replies], [forced for _, _, _, forced in replies]
    similarities = [await to_thread(embedding_similarities, column, reals, embedder) for column in texts]
    return [
        DriftTurn(
            person=person, conversation_id=pair.conversation_id, depth=depth, action=pair.action, free=free, forced=forced,
            free_similarity=free_similarity, forced_similarity=forced_similarity, turns=len(conversation),
            left_after=left_after,
        )
        for (depth, pair, free, forced), free_similarity, forced_similarity in zip(replies, *similarities, strict=True)
    ]  # fmt: skip


def _with_replies(pair: Pair, own: Mapping[int, str]) -> Pair:
    """Return a pair in whose context the twin's replies, by position, stand in the place of the person's turns."""
    first = pair.position - len(pair.context)
    context = (
        replace(turn, text=own[position]) if position in own else turn for position, turn in enumerate(pair.context, first)
    )
    return replace(pair, context=tuple(context))


async def _leaves_silently(user: SimulatedUser, pair: Pair) -> bool:
    """Return whether the twin leaves without a word, as in a conversation."""
    if user.abandonment is None or not any(turn.speaker == pair.speaker for turn in pair.context):
        return False
    neighbours = await to_thread(user.store.recall, pair, NEIGHBOURS, before=pair.when, abandoned=None)
    return user.abandonment.leaves(neighbours, pair)


async def _reply(user: SimulatedUser, pair: Pair, seed: int) -> str:
    """Return the twin's reply to a context, after recall and reasoning."""
    [recalled] = await to_thread(user.recall_many, [pair], before=[pair.when])
    shown = with_shown_traces([match.triple for match in recalled], user.settings.traces)
    _, [answer] = await user.sample_reply(pair, shown, seed=seed)
    return answer.text


def drift_result(records: Sequence[DriftTurn]) -> dict[str, Any]:
    """Return, by depth, the similarity to the real turn of free-running and teacher-forced replies, with intervals."""
    result: dict[str, Any] = {}
    measured = len({record.person for record in records})
    for depth in DEPTHS:
        rows = [record for record in records if record.depth == depth]
        if not rows:
            continue
        people, conversations = [row.person for row in rows], [row.conversation_id for row in rows]
        values = {
            "similarity": [row.free_similarity for row in rows],
            "real_history": [row.forced_similarity for row in rows],
            "difference": [row.free_similarity - row.forced_similarity for row in rows],
        }
        means = {name: mean_over_people(column, people, conversations, measured=measured) for name, column in values.items()}
        style = style_distance([row.free for row in rows], [row.action for row in rows])
        result[str(depth)] = {
            **{name: mean and mean.estimate().to_json() for name, mean in means.items()},
            "style": Estimate(style, None, None, len(rows)).to_json(),
        }
    return result


def length_result(records: Sequence[DriftTurn]) -> dict[str, Any]:
    """Return the shares of conversations that were too short, as long as the real one, and too long; {} without any.

    A conversation of which only the first turns were simulated is as long if the twin did not leave in them.
    """
    ends = {
        (record.person, record.conversation_id): (record.turns, record.left_after)
        for record in records
        if record.turns is not None
    }
    if not ends:
        return {}
    short = [left is not None and left < turns for turns, left in ends.values()]
    long = [left is None and turns <= DEPTHS[-1] for turns, left in ends.values()]
    kinds = {"too_short": short, "as_long": [not (a or b) for a, b in zip(short, long, strict=True)], "too_long": long}
    people, conversations = [person for person, _ in ends], [conversation for _, conversation in ends]
    shares = {
        kind: mean_over_people([float(value) for value in values], people, conversations, share=True)
        for kind, values in kinds.items()
    }
    return {kind: share and share.estimate().to_json() for kind, share in shares.items()}
