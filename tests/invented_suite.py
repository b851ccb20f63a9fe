"""A small suite of invented people, with models that answer by the prompt alone and can be made to fail, and be counted."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conftest import Telling, recipe
from usertwin.evals.suites.config import Suite, read_suite
from usertwin.evals.suites.models import SuiteModels
from usertwin.memory import ChatModel, alearn
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.twin.record import twin_folder
from usertwin.personas import Conversation, ModelError, Turn, read_conversations

#: Who says what: nobody shares a word with anybody else.
WORDS = {
    "Ann": "lamp table garden window kettle carpet pillow candle",
    "Bob": "engine piston clutch brake wheel gasket throttle bumper",
    "Cid": "sonata chord tempo rhythm octave treble melody fugue",
}
_DESK = "parcel invoice address receipt voucher delivery branch counter courier customs stamp label ticket queue form desk"
_PARTS = re.compile(r"The real reply:\n(.*)\n\nReply 1:\n(.*)\n\nReply 2:\n(.*)\n\nAnswer", re.DOTALL)


def talk(speaker: str, number: int, *, turns: int = 3, same_as: int | None = None) -> Conversation:
    """A talk of somebody with a desk that is like no other, or the same as an earlier one on another day."""
    rng = random.Random(f"{speaker}/{number if same_as is None else same_as}")
    words, desk, said = WORDS[speaker].split(), _DESK.split(), list[Turn]()
    for _ in range(turns):
        said.append(Turn("desk", "agent", " ".join(rng.choices(desk, k=7)) + "?"))
        said.append(Turn(speaker, "user", " ".join(rng.choices(words, k=rng.randint(3, 7)))))
    day = f"2024-{number // 28 + 1:02d}-{number % 28 + 1:02d}"
    return Conversation(f"{speaker.lower()}-{number:02d}", tuple(said), f"{day}T10:00:00+00:00")


def write_log(path: Path, *speakers: str, more: Sequence[Conversation] = ()) -> Path:
    """A log of eighteen talks of each of them, and some more."""
    talks = [talk(speaker, number) for number in range(18) for speaker in speakers]
    path.write_text("".join(json.dumps(one.to_json()) + "\n" for one in [*talks, *more]), "utf-8")
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
    """The suite above in a folder with its log and script; each change is a text and what stands there instead."""
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
    'arms = ["no_memory", "recalled_pairs", "recalled_triples"]',
)


def speaks(prompt: str, seed: int) -> str:
    """Some words that "Me" said in the prompt, or a plain answer where there are none."""
    said = [word for line in re.findall(r"Me: (.+)", prompt) for word in line.split()]
    rng = random.Random(f"{prompt}/{seed}")
    return " ".join(rng.choices(said, k=4)) if said else f"{rng.choice(_DESK.split())} please"


def sane(prompt: str, seed: int) -> str:
    """What a judge says that counts the words a reply shares with the real one."""
    found = _PARTS.search(prompt)
    assert found is not None, prompt
    real, one, two = (set(part.split()) for part in found.groups())
    shared = [len(real & said) / max(1, len(real | said)) for said in (one, two)]
    label = "tie" if shared[0] == shared[1] else "1" if shared[0] > shared[1] else "2"
    return json.dumps({"closer": label})


class Models:
    """The models of a suite, with what they were asked; the action model and the judge may go down after some calls.

    Attributes:
        action: the model that writes, and proposes.
        judge: the model that judges.
        most: after how many calls each of them is down; None: never.
    """

    def __init__(
        self, *, action: Callable[[str, int], str] = speaks, judge: Callable[[str, int], str] = sane,
        most: tuple[int | None, int | None] = (None, None),
    ) -> None:  # fmt: skip
        self.action, self.judge = (
            Telling(say=self._until(say, limit)) for say, limit in zip((action, judge), most, strict=True)
        )

    @staticmethod
    def _until(say: Callable[[str, int], str], most: int | None) -> Callable[[str, int], str]:
        answered = 0

        def said(prompt: str, seed: int) -> str:
            nonlocal answered
            if most is not None and answered >= most:
                raise ModelError("the model is down; start it again")
            answered += 1
            return say(prompt, seed)

        return said

    @property
    def calls(self) -> tuple[int, int]:
        """How often the action model and the judge were asked."""
        return len(self.action.asked), len(self.judge.asked)

    def of(self, suite: Suite) -> SuiteModels:
        """As a run takes them."""
        names, transfer = suite.models, suite.transfer
        chats = {names.action, names.proposer, names.trained or names.proposer, *(transfer.proposers if transfer else ())}
        kept: dict[tuple[str, str], Any] = {("chat", name): ChatModel(name, self.action, "transcript") for name in chats}
        if names.judge is not None:
            kept["judge", names.judge] = ChatModel(names.judge, self.judge)
        return SuiteModels(suite, None, kept=kept)


def small_suite(folder: Path, *changes: tuple[str, str]) -> Suite:
    """The suite above as it is read."""
    return read_suite(suite_file(folder, *changes))


def learned_twin(folder: Path, *, overwrite: bool = False, seed: int = 0) -> Path:
    """The folder of a twin "cid" that is learned from a log of Cid and Bob in a folder."""
    log = read_conversations(write_log(folder / "cid.jsonl", "Cid", "Bob"))
    how = recipe(speaker="Cid", method="none", model=None, scorer=None, embedder="fake:64", seed=seed)
    asyncio.run(alearn("cid", log, how, embedder=FakeEmbedder(64), overwrite=overwrite))
    return twin_folder("cid")
