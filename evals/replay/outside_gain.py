"""How much the person's own past helps a model outside the action model's family to predict a reply, for the likelihood judge.

The gain is paired: the same text after the same context, once with pairs of the person before it, and once with pairs of
another person. So a text that is likely in any case gains nothing.

Design: the pairs are the most similar ones that no arm was shown. After the pairs that an arm was shown, a copy of one of them
would gain more than the real turn.
"""

from __future__ import annotations

from collections.abc import Mapping

from usertwin.evals.records.measured_turns import REAL_TURN
from usertwin.memory import Scorer, Triple
from usertwin.memory.text.transcript import action_completion
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import act_transcript

from .arms import HeldOutTurn


def outside_gains(scorer: Scorer, user: SimulatedUser, turn: HeldOutTurn, replies: Mapping[str, str]) -> dict[str, float]:
    """Return the gain of a reply of each arm, and of the real turn (`REAL_TURN`), in bits per character.

    Empty if there are no pairs of the other person, or none of this one that no arm was shown.
    """
    own, others = _unseen(user, turn), turn.shown.get("other_person", ())
    if not own or not others:
        return {}
    actions = {name: action_completion(text) for name, text in {REAL_TURN: turn.pair.action, **replies}.items()}
    prompts = [act_transcript(turn.pair, shown, persona=user.persona, turns=user.settings.window) for shown in (own, others)]
    items = list(dict.fromkeys((prompt, action) for prompt in prompts for action in actions.values()))
    bits = {item: likelihood.bits for item, likelihood in zip(items, scorer.score(items), strict=True)}
    own_prompt, others_prompt = prompts
    return {
        name: (bits[others_prompt, action] - bits[own_prompt, action]) / (len(action) - 1) for name, action in actions.items()
    }


def _unseen(user: SimulatedUser, turn: HeldOutTurn) -> list[Triple]:
    """Return the person's most similar pairs that no arm was shown, without traces, as many as the twin recalls."""
    shown = {triple.id for triples in turn.shown.values() for triple in triples}
    recalled = user.store.recall(turn.pair, user.k + len(shown), before=turn.pair.when, ranking=user.ranking)
    return [Triple(item.triple.pair) for item in recalled if item.triple.id not in shown][: user.k]
