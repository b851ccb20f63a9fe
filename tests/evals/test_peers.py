"""Prompts of the peers, compared with openevals itself if it is installed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from conftest import PAIR
from usertwin.evals.arm_names import PEERS, Peer
from usertwin.evals.replay.peers import STOP, peer_messages, peer_transcript, peer_versions, reply_of_peer
from usertwin.memory.text.transcript import format_action_prompt
from usertwin.personas import Pair, Persona, Turn
from usertwin.simulator.prompts import act_messages

PERSONA = Persona("Ann", "Ann writes [short] turns.", 5, ("hi there", "no {{ thanks }}"))
ROLES = {"human": "user", "ai": "assistant", "system": "system"}
every_peer = pytest.mark.parametrize("peer", PEERS)


class RecordingClient(BaseChatModel):
    """A LangChain model that records its messages."""

    sent: list[list[BaseMessage]] = []  # noqa: RUF012 - a pydantic field, copied for each model

    @property
    def _llm_type(self) -> str:
        return "client"

    def _generate(self, messages: list[BaseMessage], *args: Any, **options: Any) -> ChatResult:
        self.sent.append(messages)
        return ChatResult(generations=[ChatGeneration(message=AIMessage("fine"))])


def sent_by_openevals(system: str, pair: Pair) -> list[tuple[str, str]]:
    """What openevals' own simulated user sends to its model: (role, text)."""
    simulators = pytest.importorskip("openevals.simulators")
    client = RecordingClient()
    user = simulators.create_llm_simulated_user(system=system, client=client)
    chat = [
        {"role": "user" if turn.speaker == pair.speaker else "assistant", "content": turn.text, "id": str(number)}
        for number, turn in enumerate(pair.context)
    ]  # in a trajectory the simulated user is the user
    user(chat, turn_counter=len(chat))
    [messages] = client.sent
    return [(ROLES[message.type], str(message.text)) for message in messages]


def talk(*said: tuple[str, str], goal: str = "You want to see the sea.") -> Pair:
    """Return a pair of Ann's after these turns."""
    context = tuple(Turn(who, "user" if who == "Ann" else "agent", text) for who, text in said)
    return replace(PAIR, context=context, goal=goal, position=len(context))


@pytest.mark.parametrize(
    "pair",
    [
        PAIR,
        talk(("Bob", "Hello")),
        talk(("Ann", "hi"), ("Bob", "two\nlines {{ 1 }}")),
        talk(("Bob", "Hello"), ("Cid", "and hello from me"), ("Ann", "hi both"), ("Bob", "so?"), goal=""),
    ],
)
def test_openevals_sends_the_same_roles_and_texts(pair: Pair) -> None:
    ours = peer_messages("openevals", "instruction", PERSONA, pair, turns=20)
    assert sent_by_openevals(ours[0][1], pair) == ours
    assert ours[0][0] == "system"


def test_without_a_context_both_ask_for_an_opening() -> None:
    ours = peer_messages("openevals", "instruction", PERSONA, talk(), turns=20)
    assert [role for role, _ in sent_by_openevals(ours[0][1], talk())] == [role for role, _ in ours] == ["system", "user"]
    assert "begin" in ours[1][1].lower()


def test_tau2_exchanges_the_roles() -> None:
    messages = peer_messages("tau2", "instruction", PERSONA, PAIR, turns=20)
    assert [role for role, _ in messages] == ["system", "user", "assistant", "user"]
    assert [text for _, text in messages[1:]] == ["Hello there", "hi", "When do you want to go?"]


@every_peer
def test_a_peers_prompt_holds_persona_and_goal(peer: Peer) -> None:
    for style in ("transcript", "instruction"):
        shown_text = "\n".join(text for _, text in peer_messages(peer, style, PERSONA, PAIR, turns=6))
        assert "Ann writes [short] turns." in shown_text
        assert "You want to see the sea." in shown_text
    without = peer_transcript(peer, PERSONA, replace(PAIR, goal=""), turns=6)
    assert "You want to see the sea." not in without


@every_peer
def test_a_peers_prompt_holds_real_turns_verbatim(peer: Peer) -> None:
    shown_text = peer_transcript(peer, PERSONA, PAIR, turns=6)
    assert all(turn in shown_text for turn in PERSONA.sample_turns)
    assert peer_transcript(peer, replace(PERSONA, sample_turns=()), PAIR, turns=6) != shown_text


@every_peer
def test_a_transcript_model_gets_the_same_text_before_the_context(peer: Peer) -> None:
    [(role, text)] = peer_messages(peer, "transcript", PERSONA, PAIR, turns=6)
    assert role == "user"
    assert text == peer_transcript(peer, PERSONA, PAIR, turns=6)
    shown_text, _, present = text.rpartition("\n\n")
    assert present == format_action_prompt(PAIR, 6)
    assert shown_text.strip()
    if peer != "persona":
        assert peer_messages(peer, "instruction", PERSONA, PAIR, turns=6)[0] == ("system", shown_text)


def test_the_persona_peer_uses_the_twins_prompt_without_memory() -> None:
    assert peer_messages("persona", "instruction", PERSONA, PAIR, turns=6) == act_messages(
        "instruction", PERSONA, PAIR, (), "", turns=6
    )


@every_peer
def test_peers_see_the_twins_context_window(peer: Peer) -> None:
    for style in ("transcript", "instruction"):
        shown_text = "\n".join(text for _, text in peer_messages(peer, style, PERSONA, PAIR, turns=1))
        assert "When do you want to go?" in shown_text
        assert "Hello there" not in shown_text


def test_no_peer_sees_the_action() -> None:
    for peer in PEERS:
        for style in ("transcript", "instruction"):
            assert PAIR.action not in "\n".join(text for _, text in peer_messages(peer, style, PERSONA, PAIR, turns=6))


@given(st.lists(st.sampled_from([STOP, "###", "ST", "OP", "###ST", "OP###", " bye", "\n", "ok"])).map("".join))
def test_the_stop_token_of_tau2_is_removed(text: str) -> None:
    said = reply_of_peer("tau2", text)
    assert STOP not in said
    assert said == said.strip()
    if STOP not in text:
        assert said == text.strip()


def test_other_text_and_other_peers_keep_it() -> None:
    assert reply_of_peer("tau2", "thanks, bye ###STOP###\n") == "thanks, bye"
    assert reply_of_peer("openevals", " ###STOP### ") == STOP


def test_every_prompt_has_a_version() -> None:
    versions = peer_versions()
    assert set(versions) == {*PEERS, "description"}
    assert len(set(versions.values())) == len(PEERS)  # openevals_written has the prompt of openevals
    assert all(version.startswith(f"peer_{peer.removesuffix('_written')}/") for peer, version in versions.items())
