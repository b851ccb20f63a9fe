"""Drift: how the similarity to the person falls as a twin talks on from its own replies.

Design: the other side keeps its real turns, and only the twin's earlier turns are replaced by its replies (free-running). So
every simulated turn has a real turn to compare with. The reply after the real history (teacher-forced) is the reference.
The difference is the cost of the twin's own words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from usertwin.evals.metrics.reply_similarity import embedding_similarities
from usertwin.evals.metrics.statistics import Estimate, evenly_spaced, mean_over_people
from usertwin.evals.metrics.writing_style import style_distance
from usertwin.evals.records.result_shapes import DriftTurn
from usertwin.memory import Embedder
from usertwin.memory.concurrency import to_thread
from usertwin.memory.progress import Progress, no_progress
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
    for pair in pairs:
        if not pair.abandoned:
            conversations.setdefault(pair.conversation_id, []).append(pair)
    by_length = sorted(conversations.values(), key=lambda own: -min(len(own), DEPTHS[-1]))
    selected = evenly_spaced(by_length[: 2 * max_conversations], max_conversations)
    records: list[DriftTurn] = []
    for number, conversation in enumerate(selected):
        progress("drifting", number, len(selected))
        records += await _simulate(user, embedder, conversation[: DEPTHS[-1]], person, seed)
    progress("drifting", len(selected), len(selected))
    return records


async def _simulate(
    user: SimulatedUser, embedder: Embedder, conversation: Sequence[Pair], person: str, seed: int
) -> list[DriftTurn]:
    own: dict[int, str] = {}  # replies by position, since two turns may have the same text
    replies: list[tuple[int, Pair, str, str]] = []
    for depth, pair in enumerate(conversation, 1):
        first = pair.position - len(pair.context)
        context = tuple(
            replace(turn, text=own[position]) if position in own else turn for position, turn in enumerate(pair.context, first)
        )
        free = await _reply(user, replace(pair, context=context), seed)
        if depth in DEPTHS:
            same_context = context == pair.context  # at the first turn
            replies.append((depth, pair, free, free if same_context else await _reply(user, pair, seed)))
        if free:  # an empty reply leaves no turn, so the real one stays in the history
            own[pair.position] = free
    reals = [pair.action for _, pair, _, _ in replies]
    texts = [free for _, _, free, _ in replies], [forced for _, _, _, forced in replies]
    similarities = [await to_thread(embedding_similarities, column, reals, embedder) for column in texts]
    return [
        DriftTurn(
            person=person, conversation_id=pair.conversation_id, depth=depth, action=pair.action, free=free, forced=forced,
            free_similarity=free_similarity, forced_similarity=forced_similarity,
        )
        for (depth, pair, free, forced), free_similarity, forced_similarity in zip(replies, *similarities, strict=True)
    ]  # fmt: skip


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
