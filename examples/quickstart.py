"""From a chat log to a simulated conversation, offline and without any weights: everything here is scripted or fake.

Run it: python examples/quickstart.py
"""

import asyncio
import tempfile
from pathlib import Path

from usertwin.memory import ChatModel, Recipe, alearn
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.personas import Conversation, Turn, load_log, write_conversations
from usertwin.simulator import SimulatedUser, simulate
from usertwin.simulator.backends.scripted import ScriptedChatModel

#: What the twin's model says: a thought and a turn, three times.
SAID = ["I am hungry", "one plum cake pls", "I know when", "tomorrow, if thats ok", "I have it all", "no thats all, thx bye"]


def a_log(path: Path) -> None:
    """Write twelve talks between Ann and a bakery."""
    cakes = ("carrot", "lemon", "plum")
    talks = [
        Conversation(
            f"talk-{day}",
            (
                Turn("bakery", "agent", "Good morning! What would you like?"),
                Turn("ann", "user", f"one {cakes[day % 3]} cake pls"),
                Turn("bakery", "agent", "For when?"),
                Turn("ann", "user", "tomorrow, if thats ok"),
                Turn("bakery", "agent", "Of course. Anything else?"),
                Turn("ann", "user", "no thats all, thx bye"),
            ),
            f"2026-05-{day + 1:02d}",
        )
        for day in range(12)
    ]
    write_conversations(talks, path)


def my_agent(messages: list[dict[str, str]]) -> str:
    """The agent under test."""
    return ("Good morning! What would you like?", "For when?", "Of course. Anything else?")[min(2, len(messages) // 2)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        a_log(Path(folder) / "log.jsonl")
        thinker = ChatModel("scripted:thoughts", ScriptedChatModel(answers=["I wanted cake", "I was in a hurry"]))
        talker = ChatModel("scripted:talk", ScriptedChatModel(answers=SAID), style="transcript")
        recipe = Recipe(
            source="log.jsonl", speaker="ann", method="recon", candidates=2, max_triples=None, max_traces=None, window=6,
            embedder="fake:256", model=thinker.name, scorer="fake:", seed=0,
        )  # fmt: skip
        log = load_log(Path(folder) / "log.jsonl")
        asyncio.run(alearn("ann", log, recipe, embedder=FakeEmbedder(), model=thinker, scorer=FakeScorer(), home=folder))
        with SimulatedUser.load("ann", home=folder, model=talker, embedder=FakeEmbedder()) as ann:
            conversation = simulate(ann, my_agent, turns=4, agent_first=True)
    for message in conversation.messages:
        print(f"{message['role']:>9}: {message['content']}")
    print("ended:", conversation.stop_reason)
    nearest = conversation.exchanges[0].answer.recalled[0]
    print(f"the first turn came from {nearest['conversation_id']} ({nearest['similarity']:.2f} alike): {nearest['action']!r}")


if __name__ == "__main__":
    main()
