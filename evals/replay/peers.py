"""Peers: the prompts of other simulated users, with the same model and the same person.

Design: a peer is its documented prompt, paraphrased, without additions of ours. Its description of the person and its few real
turns come from our persona of the same log; it has no memory. A model that follows instructions gets it in the peer's roles. A
model that continues transcripts gets the same text before the transcript, which is better for it (evals/EXPERIMENTS.md).

    openevals   create_llm_simulated_user: a system text, the chat with the roles exchanged (langchain-ai/openevals 0.2)
    tau2        the user simulator of tau2-bench 1.0: guidelines and a scenario as the system text, the roles exchanged
    persona     a description from the log, in the form of the twin's own prompt, without recalled pairs
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from usertwin.evals.arm_names import PEERS, Peer
from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.text.prompt_template import PromptTemplate
from usertwin.memory.text.transcript import ME, format_action_prompt
from usertwin.personas import Pair, Persona
from usertwin.simulator.prompts import Messages, act_messages

#: The stop token of tau2's user, which is not part of its reply.
STOP = "###STOP###"
_OPENING = "Begin the conversation as your instructions say. Write only the message."


def peer_versions() -> dict[str, str]:
    """Return the versions of the prompts, for a run's manifest."""
    return {peer: _template(peer).version for peer in PEERS}


@lru_cache
def _template(peer: Peer) -> PromptTemplate:
    return PromptTemplate(Path(__file__).parent / f"peer_{peer}.txt")


def peer_transcript(peer: Peer, persona: Persona, pair: Pair, *, turns: int) -> str:
    """Return a peer's prompt and the present context (as many turns as the twin is shown), before a real action is scored."""
    return f"{_template(peer).fill(me=ME, persona=persona, goal=pair.goal)}\n\n{format_action_prompt(pair, turns)}"


def peer_messages(peer: Peer, style: PromptStyle, persona: Persona, pair: Pair, *, turns: int) -> Messages:
    """Return a peer's messages, (role, text); for a model that follows instructions the person is the "assistant"."""
    if style == "transcript":
        return [("user", peer_transcript(peer, persona, pair, turns=turns))]
    if peer == "persona":
        return act_messages(style, persona, pair, (), "", turns=turns)
    system = _template(peer).fill(me=ME, persona=persona, goal=pair.goal)
    chat = [("assistant" if turn.speaker == pair.speaker else "user", turn.text) for turn in pair.context[-turns:]]
    return [("system", system), *(chat or [("user", _OPENING)])]


def reply_of_peer(peer: Peer, text: str) -> str:
    """Return the reply in an answer: stop tokens of tau2 and surrounding blanks removed."""
    while peer == "tau2" and STOP in text:  # removing one may join its neighbours to another one
        text = text.replace(STOP, "")
    return text.strip()
