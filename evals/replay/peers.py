"""Peers: the prompts of other simulated users, with the same model and the same person.

Design: a peer is its documented prompt, paraphrased, without additions of ours. Its description of the person and its few real
turns come from our persona of the same log; it has no memory. A model that follows instructions gets it in the peer's roles. A
model that continues transcripts gets the same text before the transcript, which is better for it (evals/EXPERIMENTS.md).

    openevals   create_llm_simulated_user: a system text, the chat with the roles exchanged (langchain-ai/openevals 0.2);
                openevals_written has the same prompt with the description of `write_persona`
    tau2        the user simulator of tau2-bench 1.0: guidelines and a scenario as the system text, the roles exchanged
    persona     a description from the log, in the form of the twin's own prompt, without anything of its memory: no recalled
                pairs, no style card, no thoughts before the reply
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from usertwin.evals.arm_names import PEERS, Peer
from usertwin.evals.metrics.statistics import evenly_spaced
from usertwin.memory.models.chat import PromptStyle, sample
from usertwin.memory.text.prompt_template import PromptTemplate
from usertwin.memory.text.transcript import ME, format_action_prompt, single_line
from usertwin.personas import ModelError, Pair, Persona
from usertwin.simulator import SimulatedUser
from usertwin.simulator.prompts import Messages, act_messages

#: The stop token of tau2's user, which is not part of its reply.
STOP = "###STOP###"
#: Turns of the person from which a description is written, the characters of each, and the tokens of the description.
_TURNS, _CHARACTERS, _TOKENS = 40, 200, 250
_DESCRIBE = PromptTemplate(Path(__file__).parent / "peer_description.txt")
_OPENING = "Begin the conversation as your instructions say. Write only the message."


def peer_versions() -> dict[str, str]:
    """Return the versions of the prompts, for a run's manifest."""
    return {peer: _template(peer).version for peer in PEERS} | {"description": _DESCRIBE.version}


@lru_cache
def _template(peer: Peer) -> PromptTemplate:
    return PromptTemplate(Path(__file__).parent / f"peer_{peer.removesuffix('_written')}.txt")


async def write_persona(user: SimulatedUser, *, seed: int = 0) -> Persona:
    """Return the twin's persona with a description that its model writes from turns in the memory, evenly spaced.

    Raises:
        ModelError: the model does not answer, or writes nothing.
    """
    spoken = [triple.pair.action for triple in user.store.triples() if not triple.pair.abandoned]
    turns = [single_line(text)[:_CHARACTERS] for text in evenly_spaced(spoken, _TURNS)]
    prompt = _DESCRIBE.fill(turns=turns)
    [answer] = await sample(user.model, [("user", prompt)], seed=seed, max_tokens=_TOKENS, stop=["\n\n"], bypass_cache=True)
    if not answer.text.strip():
        raise ModelError(
            f'the model "{user.model.name}" wrote no description of the person; name another one, or no arm for it'
        )
    return replace(user.persona, description=single_line(answer.text))


def system_text(persona: Persona, goal: str) -> str:
    """Return the text with which a simulator of the user's, or the model behind it, learns whom it plays."""
    return _template("openevals").fill(me=ME, persona=persona, goal=goal)


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
