"""The peers' ways of making a simulated user, with the same model behind them and the same person in front.

The one design choice: a peer is its documented form, written here in our own words: what it tells the model, and nothing of
ours. What it knows of the person is what our persona counted in the same log, with the same few real turns; what it lacks is
the memory. A model that follows instructions gets it in the peer's roles; one that continues transcripts gets the same text
before the transcript, in which such models do better for the peers, too (measured: evals/EXPERIMENTS.md).

    openevals   create_llm_simulated_user: a system text, the chat with the roles exchanged (langchain-ai/openevals 0.2)
    tau2        the user simulator of tau2-bench 1.0: guidelines and a scenario as the system text, the roles exchanged
    persona     a description drawn from the log, in the manner of the twin's own prompt, without any moment
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from usertwin.evals.arm_names import PEERS, Peer
from usertwin.memory.models.chat import Style
from usertwin.memory.text.prompt_template import PromptTemplate
from usertwin.memory.text.transcript import ME, current_moment
from usertwin.personas import Pair, Persona
from usertwin.simulator.prompts import Messages, act_messages

#: What tau2's user writes when its task is done; never part of what it says.
STOP = "###STOP###"
_OPENING = "Begin the conversation as your instructions say. Write only the message."


def peer_versions() -> dict[str, str]:
    """The versions of the prompts, for a run's manifest."""
    return {peer: _template(peer).version for peer in PEERS}


@lru_cache
def _template(peer: Peer) -> PromptTemplate:
    return PromptTemplate(Path(__file__).parent / f"peer_{peer}.txt")


def peer_transcript(peer: Peer, persona: Persona, pair: Pair, *, turns: int) -> str:
    """What a peer tells a model, and then the present moment, to be continued; after this text real actions are scored.

    Args:
        peer: which.
        persona: who is played.
        pair: the present moment.
        turns: how many turns of the chat are shown, as many as the twin is shown.
    """
    return f"{_template(peer).fill(me=ME, persona=persona, goal=pair.goal)}\n\n{current_moment(pair, turns)}"


def peer_messages(peer: Peer, style: Style, persona: Persona, pair: Pair, *, turns: int) -> Messages:
    """What a peer sends its model, (role, text); where it follows instructions the person is the "assistant"."""
    if style == "transcript":
        return [("user", peer_transcript(peer, persona, pair, turns=turns))]
    if peer == "persona":
        return act_messages(style, persona, pair, (), "", turns=turns)
    system = _template(peer).fill(me=ME, persona=persona, goal=pair.goal)
    chat = [("assistant" if turn.speaker == pair.speaker else "user", turn.text) for turn in pair.context[-turns:]]
    return [("system", system), *(chat or [("user", _OPENING)])]


def said_by(peer: Peer, text: str) -> str:
    """What a peer's user says, of what its model wrote."""
    while peer == "tau2" and STOP in text:  # taken out once, what is left may join to another one
        text = text.replace(STOP, "")
    return text.strip()
