"""From a chat log to a simulated conversation, offline and without weights: all models are scripted or fake.

Run it: python examples/quickstart.py
"""

import tempfile
from pathlib import Path

from usertwin.personas import Conversation, Turn, write_conversations
from usertwin.simulator import SimulatedUser, learn, simulate

#: The replies of the model that proposes traces.
TRACES = ["wanted cake", "was in a hurry"]
#: The replies of the model that acts: reasoning and turn, three times.
REPLIES = ["I am hungry", "one plum cake pls", "I know when", "tomorrow, if thats ok", "I have it all", "no thats all, thx bye"]


def write_log(path: Path) -> None:
    """Write twelve conversations between Ann and a bakery."""
    cakes = ("carrot", "lemon", "plum")
    conversations = [
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
    write_conversations(conversations, path)


def my_agent(messages: list[dict[str, str]]) -> str:
    """The agent under test."""
    return ("Good morning! What would you like?", "For when?", "Of course. Anything else?")[min(2, len(messages) // 2)]


def main() -> None:
    """Learn a twin of Ann and let it talk with the agent."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_log(folder / "log.jsonl")
        (folder / "traces.txt").write_text("\n".join(TRACES))
        (folder / "replies.txt").write_text("\n".join(REPLIES))

        # For a real twin leave out model, scorer and embedder: the defaults run on this machine.
        learn("ann", log=folder / "log.jsonl", speaker="ann", home=folder,
              model=f"scripted:{folder / 'traces.txt'}", scorer="fake:", embedder="fake:")  # fmt: skip
        with SimulatedUser.load("ann", home=folder, model=f"scripted:{folder / 'replies.txt'}") as ann:
            conversation = simulate(ann, my_agent, max_turns=4, agent_first=True)

    for message in conversation.messages:
        print(f"{message['role']:>9}: {message['content']}")
    print("stop reason:", conversation.stop_reason)
    nearest = conversation.exchanges[0].answer.recalled[0]
    pair = nearest.triple.pair
    print(f"nearest memory of the first turn: {pair.conversation_id}, similarity {nearest.similarity:.2f}: {pair.action!r}")


if __name__ == "__main__":
    main()
