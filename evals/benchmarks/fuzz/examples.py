"""Valid examples of every format: a learned twin, a run of a suite, a training, an adapter, logs and settings."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from usertwin.evals.judges.human_judge import HumanLabel
from usertwin.evals.metrics.closeness import closeness
from usertwin.evals.records.measured_turns import ContextFit, MeasuredTurn, PastTurn, RecalledTurn
from usertwin.evals.records.verdicts import JudgeVerdict
from usertwin.memory import ChatModel, Recipe, Settings, TwinRecord, alearn
from usertwin.memory.models.chat import sample
from usertwin.memory.models.completion_cache import CompletionCache
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.score_cache import CachedScorer
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.twin.record import update_record
from usertwin.personas import ChatLog, Conversation, Turn

#: The person in the examples.
SPEAKER = "Ann"
FIT = ContextFit(latest=0.4, context=0.3, own=0.2, goal=0.1)
EMBEDDER = FakeEmbedder(32)


def conversation(number: int) -> Conversation:
    """Return a conversation of Ann with a desk, or of Bob with it; some end with an unanswered turn."""
    name = SPEAKER if number % 3 else "Bob"
    turns = [
        Turn("guide", "system", f"You want a ticket to town {number}."),
        Turn("desk", "agent", "Hello, what can I do for you?", "2026-05-01T10:00:00Z"),
        Turn(name, "user", f"a ticket to town {number} please"),
        Turn("desk", "agent", "On which day?"),
        Turn(name, "user", f"on day {number}, thanks"),
        Turn("desk", "agent", "Anything else?"),
    ]
    turns += [] if number % 4 == 0 else [Turn(name, "user", f"no thats all {number}")]
    return Conversation(f"talk-{number:02d}", tuple(turns), f"2026-04-{number % 28 + 1:02d}T10:00:00+00:00", {"note": "x"})


def conversations() -> tuple[Conversation, ...]:
    """Return the conversations of the examples, oldest first."""
    return tuple(conversation(number) for number in range(24))


def logs() -> list[bytes]:
    """Return logs in every accepted form."""
    records = [c.to_json() for c in conversations()]
    lines = "\n".join(json.dumps(record) for record in records).encode()
    messages: list[dict[str, Any]] = [
        {"created_at": 1777600000 + number, "messages": c.to_messages(SPEAKER)} for number, c in enumerate(conversations())
    ]
    with_tools = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    as_messages = "\n".join(json.dumps(m | {"messages": [*m["messages"], with_tools]}) for m in messages).encode()
    return [lines, as_messages, json.dumps(records[:18], indent=1).encode(), gzip.compress(lines, 1, mtime=0)]


def oyez() -> bytes:
    """Return an oral argument as Oyez has it."""
    speaker = {"name": "Ann", "identifier": "ann", "roles": [{"type": "scotus_justice", "date_start": 0}]}
    turns = [{"start": 0.0, "stop": 2.5, "speaker": speaker, "text_blocks": [{"text": "Go on. (Laughter)"}]}]
    return json.dumps(
        {
            "id": 1,
            "title": "Oral Argument - May 01, 2026",
            "transcript": {"title": "A v. B", "sections": [{"turns": turns}]},
        }
    ).encode()


def learn_twin(home: Path) -> Path:
    """Learn a twin with every file that a twin can have, and return its folder."""
    recipe = Recipe(
        source="log.jsonl",
        speaker=SPEAKER,
        method="none",
        candidates=1,
        max_triples=None,
        max_traces=None,
        window=6,
        embedder=EMBEDDER.name,
        model=None,
        scorer=None,
        seed=0,
    )
    asyncio.run(alearn("ann", ChatLog(conversations(), "log.jsonl"), recipe, embedder=EMBEDDER, home=home))
    folder = home / "ann"
    (folder / "leaving.json").write_text('{"threshold": 0.5, "f1": 0.4, "abandonments": 5, "validation_turns": 9}')
    weights = [0.0] * 514
    (folder / "ending.json").write_text(
        json.dumps({"weights": weights, "bias": 0.1, "threshold": 0.5, "f1": 0.4, "endings": 5, "validation_turns": 9})
    )
    estimate = {"value": 1.2, "low": 1.1, "high": 1.3, "n": 9}
    row = {
        "k": 4,
        "window": 6,
        "traces": "none",
        "reasons": False,
        "bits_per_char": estimate,
        "against_plain": None,
        "chosen": True,
    }
    measured = {"settings": [row], "turns": 9, "conversations": 3, "scorer": "fake:", "model": "scripted:x", "seed": 0}
    result = closeness(turns(), "recalled_pairs") | {
        "twin": "ann",
        "measured_at": "2026-05-01T10:00:00+00:00",
        "models": {"scorer": "fake:", "action": "scripted:x"},
    }

    def change(record: TwinRecord) -> TwinRecord:
        return replace(record, settings=Settings(traces="none", reasons=False, measured=measured), closeness=result)

    update_record(folder, change)
    return folder


def write_caches(folder: Path) -> None:
    """Write a cache of completions and one of scores."""
    complete(folder / "answers.sqlite")
    CachedScorer(FakeScorer(), folder / "scores.sqlite").score([("a b", "b c")])


def complete(path: Path) -> None:
    """Sample a completion, from the cache at a path if it is there."""
    from usertwin.simulator.backends.scripted import ScriptedChatModel

    cache = CompletionCache(path)
    try:
        model = ChatModel("scripted:test", ScriptedChatModel(answers=["hello"]), cache=cache)
        asyncio.run(sample(model, [("user", "hi")], max_tokens=9))
    finally:
        cache.close()


def turns() -> list[MeasuredTurn]:
    """Return measured turns of two people under three arms."""
    return [
        MeasuredTurn(
            person=f"chat/p{number % 2}",
            conversation_id=f"c{number % 3}",
            position=number,
            context=(("desk", "Hello?"),),
            action=f"action {number}",
            characters=9,
            goal="a ticket",
            other_action="no",
            past=PastTurn(
                conversation_id="c8", position=1, context=(("desk", "Hi"),), action="yes", fit=FIT, misplaced_fit=FIT
            ),
            real_fit=FIT,
            fit={"recalled_pairs": FIT, "no_memory": FIT, "openevals": FIT},
            bits={"recalled_pairs": 20.0 + number, "no_memory": 22.0, "openevals": 25.0},
            replies={"recalled_pairs": (f"reply {number}",), "no_memory": ("hi",), "openevals": ("Hello, how are you?",)},
            reasoning={"recalled_pairs": "wants a ticket"},
            choice={"recalled_pairs": 1.0, "no_memory": 0.0},
            similarity={"recalled_pairs": (0.4,), "no_memory": (0.1,)},
            rank={"recalled_pairs": (0.5,)},
            recalled=(RecalledTurn(conversation_id="c9", position=1, similarity=0.7, context=(("desk", "Hi"),), action="yo"),),
        )
        for number in range(8)
    ]


def verdicts() -> list[JudgeVerdict]:
    """Return verdicts of a judge on the pairs of replies."""
    return [
        JudgeVerdict(
            key=f"k{number}",
            pair=f"p{number}",
            kind="contrast",
            judge="openai:j",
            identity="",
            prompt="judge/1",
            seed=0,
            labels=("1", "2"),
            a="recalled_pairs",
            b="no_memory",
            person="chat/p0",
            conversation_id=f"c{number}",
            position=1,
            sample=0,
        )
        for number in range(4)
    ]


def labels() -> list[HumanLabel]:
    """Return labels of a human rater on the same pairs."""
    return [
        HumanLabel(
            rater="me",
            pair=f"p{number}",
            order="ab",
            label="1",
            when="2026-05-01T10:00:00+00:00",
            a="recalled_pairs",
            b="no_memory",
            person="chat/p0",
            conversation_id=f"c{number}",
            position=1,
            sample=0,
        )
        for number in range(4)
    ]


def result() -> dict[str, Any]:
    """Return a result with every part that a report can show."""
    estimate = {"value": 0.4, "low": 0.3, "high": 0.5, "n": 8, "p": 0.04, "visible": 0.01}
    judged = {"win": estimate, "ties": estimate, "decided": estimate, "p": 0.1}
    model = {
        "kind": "recon",
        "bits_per_char": estimate,
        "against": estimate,
        "without_thoughts": estimate,
        "without_thoughts_against": None,
    }
    leakage = {"near_duplicates": 1, "of": 9, "memorized": {"value": 0.1, "n": 9}, "checked": ["split by time"]}
    bins = [{"low": 0.0, "high": 0.5, "predicted": 0.2, "observed": 0.1, "n": 9}]
    return closeness(turns(), "recalled_pairs") | {
        "format": 1,
        "name": "a suite",
        "measured_at": "2026-05-01T10:00:00+00:00",
        "warnings": ["few people"],
        "models": {"scorer": "fake:", "action": "scripted:x", "judge": None},
        "settings": {"k": 4},
        "versions": {"usertwin": "0"},
        "judge": {
            "model": "openai:j",
            "contrasts": {"recalled_pairs - no_memory": judged},
            "sanity": {"identical": {"win": estimate, "ties": estimate, "must": "all ties", "holds": True}},
            "consistent": estimate,
            "first": estimate,
            "unreadable": {"value": 0.0, "n": 9},
            "warnings": ["w"],
        },
        "leakage": {"chat/p0": leakage},
        "endings": {"chat/p0": {"f1": estimate, "calibration": {"brier": estimate, "bins": bins}}, "chat/p1": None},
        "drift": {"1": {"similarity": estimate, "real_history": estimate, "difference": estimate, "style": None}},
        "transfer": [{"proposer": "a", "scorer": "b", "arm": "recon", "against": "recalled_pairs", "bits_per_char": estimate}],
        "user_models": {
            "of": "person",
            "base": "local",
            "thoughts": 4,
            "examples": [9],
            "steps": [3],
            "turns": 9,
            "people": 2,
            "rows": [model],
            "paired": {"recon - backward": estimate},
        },
        "suite_text": "turns = 3",
    }


def facts() -> dict[str, Any]:
    """Return the facts about a person of a run."""
    drift = {
        "person": "a",
        "conversation_id": "c",
        "depth": 1,
        "action": "x",
        "free": "y",
        "forced": "z",
        "free_similarity": 0.1,
        "forced_similarity": 0.2,
    }
    return {
        "twin_arm": "recalled_pairs",
        "triples": 9,
        "k": 4,
        "window": 6,
        "endings": None,
        "drift": [drift],
        "leakage": result()["leakage"]["chat/p0"],
    }


def training() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the manifest of a training and the result of a method."""
    estimate = {"value": 0.02, "low": 0.01, "high": 0.03}
    change = {"base": 0.1, "trained": 0.2, "difference": estimate}
    group = {
        "n": 9,
        "people": 2,
        "base": estimate,
        "trained": estimate,
        "difference": estimate,
        "leak_rate": change,
        "reveals_action": change,
        "words": change,
    }
    manifest = {
        "format": 2,
        "kind": "training",
        "state": "complete",
        "plan": {"base": "local", "scorer": "local", "methods": ["dpo"]},
        "people": {"seen": ["a"], "unseen": ["b"]},
        "pairs": {"train": 9},
        "sources": {"a": "b"},
        "versions": {"trl": "1"},
        "started_at": "2026-05-01T10:00:00+00:00",
    }
    outcome = {
        "method": "dpo",
        "steps": 4,
        "tokens": 99,
        "seconds": 1.5,
        "stopped": "the audit rises.",
        "measured": {"scorer": "local", "seen": group, "unseen": group, "people": {"b": group}},
        "examples": [{"action": "x", "base": "y", "trained": "z"}],
    }
    return manifest, outcome


PERSONA = b'name = "Ann"\ndescription = "Writes short turns."\ntypical_words = 5\nsample_turns = ["hi", "thanks"]\n'
LEARN_RECIPE = b"""from = "log.jsonl"
speaker = "Ann"
traces = "recon"
candidates = 3
max_traces = 20
window = 6
model = "local"
scorer = "fake:"
embedder = "fake:"
fidelity = "gain"
price = "0.25/2"
seed = 3
skip_bad_lines = true
"""
TRAIN_RECIPE = b"""from = ["chitchat", "log.jsonl"]
method = ["dpo", "sft"]
base = "local"
scorer = "local"
learning_rate = 1e-4
beta = 0.1
weights = "1/0.2/0.1/0.1"
hold_out = ["Ann"]
samples = 4
"""
SUITE = b"""name = "two"
arms = ["no_memory", "recalled_pairs", "openevals"]
turns = 10
replies = 5
k = 4
window = 6
twins = ["ann"]
[models]
action = "scripted:x.txt"
scorer = "fake:"
judge = "openai:gpt@http://localhost:1/v1"
precision = "float32"
[traces]
pairs = 10
fidelity = "gain"
[transfer]
proposers = ["local"]
scorers = ["local"]
[user_models]
kinds = ["none", "recon"]
epochs = 2
learning_rate = 2e-4
[[corpora]]
name = "chat"
from = "chitchat"
people = 2
[[corpora]]
name = "court"
from = "oyez:~/court"
people = ["Ann"]
"""
MODEL_NAMES = (
    b"local",
    b"local:small",
    b"local:models/x.gguf",
    b"local+adapter",
    b"hf:owner/repo/file.gguf",
    b"transformers:folder+adapter",
    b"openai:gpt-5-mini",
    b"openai:m@http://user:pw@localhost:1/v1#GROQ_API_KEY",
    b"scripted:x.txt",
    b"fake:",
    b"fake:32",
)
COMPLETIONS = (
    b'{"closer": "1"}',
    b'<think>{"closer": "2"}</think> {"closer": "tie"}',
    b'{"scores": {"A": {"style": 3, "content": 4}, "B": {"style": 1, "content": 2}}, "ranking": ["A", "B"]}',
    b'{"situation": "They ask.", "feeling": "Tired.", "intention": "Leave."}',
    b"I felt tired, so I left. And then",
    b"<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>yes<|return|>",
    b"Me: ok thanks\nAgent: bye",
    b"Ann: sure <|im_end|>",
)
SCRIPT = b'hello there\n{"when": "price", "say": "how much"}\nbye\n'
