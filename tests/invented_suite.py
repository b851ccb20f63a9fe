"""A small suite of invented people, with models that answer from the prompt alone, count calls, and fail on demand."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conftest import FunctionChatModel, recipe
from usertwin.evals.suites.config import Suite, read_suite
from usertwin.evals.suites.models import SuiteModels
from usertwin.memory import ChatModel, alearn
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.twin.record import twin_folder
from usertwin.personas import Conversation, ModelError, Turn, read_conversations

#: The words of each person; no two people share a word.
WORDS = {
    "Ann": "lamp table garden window kettle carpet pillow candle",
    "Bob": "engine piston clutch brake wheel gasket throttle bumper",
    "Cid": "sonata chord tempo rhythm octave treble melody fugue",
    "Dan": "harbour anchor rudder sail mast tide dock compass",
    "Eve": "butter flour oven yeast sugar dough crust spoon",
    "Fay": "meadow heifer plough barley stable fence orchard hay",
}
_DESK = "parcel invoice address receipt voucher delivery branch counter courier customs stamp label ticket queue form desk"
_PARTS = re.compile(r"The real reply:\n(.*)\n\nReply 1:\n(.*)\n\nReply 2:\n(.*)\n\nAnswer", re.DOTALL)


def talk(speaker: str, number: int, *, turns: int = 3, same_as: int | None = None) -> Conversation:
    """Return a conversation of a person with a desk, unlike any other; or a copy of conversation `same_as` on another day."""
    rng = random.Random(f"{speaker}/{number if same_as is None else same_as}")
    words, desk, spoken = WORDS[speaker].split(), _DESK.split(), list[Turn]()
    for _ in range(turns):
        spoken.append(Turn("desk", "agent", " ".join(rng.choices(desk, k=7)) + "?"))
        spoken.append(Turn(speaker, "user", " ".join(rng.choices(words, k=rng.randint(3, 7)))))
    day = f"2024-{number // 28 + 1:02d}-{number % 28 + 1:02d}"
    return Conversation(f"{speaker.lower()}-{number:02d}", tuple(spoken), f"{day}T10:00:00+00:00")


def write_log(path: Path, *speakers: str, more: Sequence[Conversation] = ()) -> Path:
    """Write a log of eighteen conversations of each speaker, and `more`; return its path."""
    talks = [talk(speaker, number) for number in range(18) for speaker in speakers]
    path.write_text("".join(json.dumps(talk.to_json()) + "\n" for talk in [*talks, *more]), "utf-8")
    return path


SUITE = """\
name = "invented"
arms = ["no_memory", "other_person", "recalled_pairs"]
turns = 6
replies = 3
samples = 2
sanity = 3
k = 3
window = 4

[models]
action = "scripted:action.txt"
scorer = "fake:"
proposer = "scripted:action.txt"
embedder = "fake:64"

[[corpora]]
name = "shop"
from = "log.jsonl"
people = ["Ann", "Bob"]
"""


def suite_file(folder: Path, *changes: tuple[str, str]) -> Path:
    """Write the suite above with its log and scripts into a folder; each change is (old text, new text)."""
    if not (folder / "log.jsonl").exists():
        write_log(folder / "log.jsonl", "Ann", "Bob")
    (folder / "action.txt").write_text("lamp table garden\nengine piston clutch brake\n", "utf-8")
    (folder / "judge.txt").write_text('x{"closer": "1"}\n', "utf-8")
    text = SUITE
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    (folder / "suite.toml").write_text(text, "utf-8")
    return folder / "suite.toml"


JUDGED = ('embedder = "fake:64"', 'embedder = "fake:64"\njudge = "scripted:judge.txt"')
TRACED = (
    'arms = ["no_memory", "other_person", "recalled_pairs"]',
    'arms = ["no_memory", "recalled_pairs", "recon"]',
)


def speaks(prompt: str, seed: int) -> str:
    """Reply with words of "Me" in the prompt, or with a plain answer without such words."""
    words = [word for line in re.findall(r"Me: (.+)", prompt) for word in line.split()]
    rng = random.Random(f"{prompt}/{seed}")
    return " ".join(rng.choices(words, k=4)) if words else f"{rng.choice(_DESK.split())} please"


def sane(prompt: str, seed: int) -> str:
    """Judge by the words that each reply shares with the real one."""
    parts = _PARTS.search(prompt)
    assert parts is not None, prompt
    real, first, second = (set(part.split()) for part in parts.groups())
    shared = [len(real & words) / max(1, len(real | words)) for words in (first, second)]
    label = "tie" if shared[0] == shared[1] else "1" if shared[0] > shared[1] else "2"
    return json.dumps({"closer": label})


class Models:
    """The models of a suite, which record their prompts; the action model and the judge can fail after some calls.

    Attributes:
        action: the model that writes replies and proposes traces.
        judge: the judge.
        max_calls: the calls after which each of them fails; None for never.
    """

    def __init__(
        self, *, action: Callable[[str, int], str] = speaks, judge: Callable[[str, int], str] = sane,
        max_calls: tuple[int | None, int | None] = (None, None),
    ) -> None:  # fmt: skip
        self.action, self.judge = (
            FunctionChatModel(reply=self._until(say, limit)) for say, limit in zip((action, judge), max_calls, strict=True)
        )

    @staticmethod
    def _until(say: Callable[[str, int], str], limit: int | None) -> Callable[[str, int], str]:
        answered = 0

        def reply(prompt: str, seed: int) -> str:
            nonlocal answered
            if limit is not None and answered >= limit:
                raise ModelError("the model is down; start it again")
            answered += 1
            return say(prompt, seed)

        return reply

    @property
    def calls(self) -> tuple[int, int]:
        """The numbers of calls of the action model and of the judge."""
        return len(self.action.requests), len(self.judge.requests)

    def of(self, suite: Suite) -> SuiteModels:
        """Return the models for a run of a suite."""
        names, transfer = suite.models, suite.transfer
        chats = {names.action, names.proposer, names.trained or names.proposer, *(transfer.proposers if transfer else ())}
        loaded: dict[tuple[str, str], Any] = {("chat", name): ChatModel(name, self.action, "transcript") for name in chats}
        if names.judge is not None:
            loaded["judge", names.judge] = ChatModel(names.judge, self.judge)
        return SuiteModels(suite, None, loaded=loaded)


def small_suite(folder: Path, *changes: tuple[str, str]) -> Suite:
    """Return the suite above, read from its file."""
    return read_suite(suite_file(folder, *changes))


def learned_twin(folder: Path, *, overwrite: bool = False, seed: int = 0) -> Path:
    """Learn a twin "cid" from a log of Cid and Bob in a folder, and return the twin's folder."""
    log = read_conversations(write_log(folder / "cid.jsonl", "Cid", "Bob"))
    settings = recipe(speaker="Cid", method="none", model=None, scorer=None, embedder="fake:64", seed=seed)
    asyncio.run(alearn("cid", log, settings, embedder=FakeEmbedder(64), overwrite=overwrite))
    return twin_folder("cid")
