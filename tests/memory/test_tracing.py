"""memory/twin/add_traces.py: no call is made twice, whatever stops a learning; every trace passed the guards; bad input is a reason."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from kill_writer import Child, killed_at
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult

from conftest import recipe, function_model
from usertwin.memory import ChatModel, Recipe, Triple, TripleStore, alearn
from usertwin.memory.models.completion_cache import COMPLETIONS_FILE
from usertwin.memory.models.chat import Price, PromptStyle
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.guards import MIN_KEPT_SHARE, REASONS, kept_share, rejection_reason
from usertwin.memory.recon.propose import CONTEXT_TURNS, proposal_template
from usertwin.memory.twin.append import aappend
from usertwin.memory.twin.forget import forget
from usertwin.memory.twin.record import twin_folder
from usertwin.personas import ChatLog, Conversation, ModelError, Turn
from usertwin.personas.chat_log import sort_by_time

WORDS = ("tired", "happy", "curious", "hurried", "unsure", "polite", "cold", "hungry", "proud", "bored", "calm", "shy")
BACKWARD = recipe(method="backward", max_traces=12)
RECON = recipe(method="recon", candidates=2, max_traces=12)
_LABEL = re.compile(r"^(?:Attempt|Note) ([A-Z]):$", re.MULTILINE)
_MARKS = ("style", "intent", "values", "plausible", "specific", "clear")


def talk(number: int, said: str = "", asked: str = "") -> Conversation:
    """A talk of Ann that is like no other; what she says first, and what she is asked, may be given."""
    turns = (
        Turn("desk", "agent", asked or f"Good day, this is desk {number}. What is it?"),
        Turn("Ann", "user", said or f"hi the lamp from shop {number} is broken"),
        Turn("desk", "agent", f"Is that everything about {number}?"),
        Turn("Ann", "user", "no that was all for now bye"),
    )
    return Conversation(f"talk-{number:02d}", turns, f"2024-03-{number + 1:02d}T10:00:00+00:00")


def lamps(*first: Conversation) -> ChatLog:
    """Fourteen talks of Ann, all different; some may be given, which come to be the first."""
    return ChatLog(sort_by_time([*first, *map(talk, range(len(first), 14))], "test"), "test")


class Counted(BaseChatModel):
    """Answers by the prompt and the seed alone, and writes a line to a file for each call; from one on it never answers."""

    path: str
    left: int | None = None
    stuck: Callable[[], None] | None = None
    calls: int = 0
    running: int = 0
    peak: int = 0

    @property
    def _llm_type(self) -> str:
        return "counted"

    def _generate(self, *args: Any, **options: Any) -> ChatResult:
        raise AssertionError("learning is asynchronous")

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, *, seed: int = 0, n: int = 1, **options: Any
    ) -> ChatResult:
        key = hashlib.sha256(f"{messages[-1].text}/{seed}/{n}".encode()).hexdigest()
        self._write(f"{key} asked\n")
        self.calls += 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        if self.left is not None and self.calls > self.left and self.stuck is not None:
            self.stuck()
            await asyncio.Event().wait()
        for _ in range(20):
            await asyncio.sleep(0)
        self.running -= 1
        self._write(f"{key} answered\n")
        usage = UsageMetadata(input_tokens=100, output_tokens=10 * n, total_tokens=100 + 10 * n)
        said = [f"felt {WORDS[int(key[i : i + 2], 16) % 12]} and {WORDS[int(key[i + 2], 16) % 12]}." for i in range(n)]
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text, usage_metadata=usage)) for text in said])

    def _write(self, line: str) -> None:
        with open(self.path, "ab", buffering=0) as file:
            file.write(line.encode())


class Several(Counted):
    """The same as a model that gives several answers to one prompt."""

    n: int | None = None


def lines(path: Path, what: str) -> list[str]:
    """The calls that were asked, or answered, in order."""
    told = [line.split() for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    return [key for key, done in told if done == what]


def run(how: Recipe, chat: BaseChatModel | ChatModel, log: ChatLog | None = None, **options: Any) -> Any:
    model = chat if isinstance(chat, ChatModel) else ChatModel("scripted:test", chat, "transcript")
    options = {"embedder": FakeEmbedder(), "scorer": FakeScorer(), "name": "ann"} | options
    return asyncio.run(alearn(options.pop("name"), log or lamps(), how, model=model, **options))


def memory(name: str = "ann", home: Path | None = None) -> list[Triple]:
    with TripleStore(twin_folder(name, home), FakeEmbedder()) as store:
        return list(store.triples())


def free(triples: Sequence[Triple]) -> list[Triple]:
    """The triples without what they cost."""
    return [replace(t, provenance=None if t.provenance is None else replace(t.provenance, cost={})) for t in triples]


def texts(triples: Sequence[Triple]) -> list[float | None]:
    """How many texts each trace took, written for it or taken from where they were kept."""
    found = [None if t.provenance is None else t.provenance.cost for t in triples]
    return [None if cost is None else (cost["calls"] or 0) + (cost["repeated"] or 0) for cost in found]


def kept_answers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{COMPLETIONS_FILE}*"))


def judge_and_reconstruct(prompt: str, seed: int) -> str:
    """A model that writes traces, reconstructions and verdicts, by the prompt and the seed alone."""
    labels = _LABEL.findall(prompt)
    if labels:
        return json.dumps({"scores": {label: dict.fromkeys(_MARKS, 5) for label in labels}, "ranking": labels[::-1]})
    digest = hashlib.sha256(f"{prompt}/{seed}".encode()).digest()
    return f"felt {WORDS[digest[0] % 12]} and {WORDS[digest[1] % 12]}, wanted {WORDS[digest[2] % 12]} people."


# Killed and continued ------------------------------------------------------------------------------------------------


def learn_counting(
    there: Connection, home: str, calls: str, how: Recipe, concurrency: int, left: int | None, step: int | None
) -> None:
    """Learn, saying how far it has come and when a call is stuck; may be killed at a step of making the traces."""
    os.environ["USERTWIN_ONLY_SCRIPTED"] = "1"
    chat = Counted(path=calls, left=left, stuck=lambda: there.send("stuck"))
    with ExitStack() as stack:

        def progress(stage: str, done: int, total: int) -> None:
            if stage == "traces" and not told:
                told.append(stage)
                stack.enter_context(killed_at(step))
            there.send((stage, done))

        told: list[str] = []
        run(how, chat, home=home, concurrency=concurrency, progress=progress)
    there.send("complete")


@pytest.mark.parametrize("how", [BACKWARD, RECON], ids=["backward", "recon"])
@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("left", [0, 5])
def test_a_learning_killed_while_it_makes_traces_repeats_only_the_calls_that_were_in_flight(
    tmp_path: Path, how: Recipe, concurrency: int, left: int
) -> None:
    first, second, whole = (tmp_path / name for name in ("first", "second", "whole"))
    child = Child(learn_counting, str(tmp_path / "killed"), str(first), how, concurrency, left, None)
    stuck = 0
    while stuck < concurrency:
        stuck += child.hear() == "stuck"
    child.kill()
    assert child.process.exitcode == -signal.SIGKILL
    assert Child(learn_counting, str(tmp_path / "killed"), str(second), how, concurrency, None, None).end()[-1] == "complete"
    assert Child(learn_counting, str(tmp_path / "uncut"), str(whole), how, concurrency, None, None).end()[-1] == "complete"

    expected = lines(whole, "asked")
    assert len(expected) == len(set(expected)) >= 12 * (1 if how is BACKWARD else 2)
    both = Counter(lines(first, "asked") + lines(second, "asked"))
    assert set(both) == set(expected)
    assert both.total() <= len(expected) + concurrency * how.candidates
    again = {key for key, times in both.items() if times > 1}
    assert len(again) <= concurrency * how.candidates
    if how is BACKWARD:  # one call a moment: what was answered is kept
        assert again == set(lines(first, "asked")) - set(lines(first, "answered"))
    killed, told = memory(home=tmp_path / "killed"), memory(home=tmp_path / "uncut")
    assert free(killed) == free(told)
    assert texts(killed) == texts(told)
    assert sum(triple.reasoning is not None for triple in killed) > 3


def test_a_learning_that_is_killed_at_many_steps_asks_nothing_again_that_was_kept(tmp_path: Path) -> None:
    calls, whole, killed = tmp_path / "calls", tmp_path / "whole", 0
    said: list[Any] = []
    for step in (1, 3, 5, 7, 9, 12, 16, 22, 30, 60, None):
        child = Child(learn_counting, str(tmp_path / "killed"), str(calls), BACKWARD, 1, None, step)
        said = child.end()
        if child.process.exitcode != -signal.SIGKILL:
            break
        killed += 1
    assert said[-1] == "complete"
    assert killed > 4
    assert Child(learn_counting, str(tmp_path / "uncut"), str(whole), BACKWARD, 1, None, None).end()[-1] == "complete"
    assert set(lines(calls, "asked")) == set(lines(whole, "asked"))
    assert len(lines(whole, "asked")) <= len(lines(calls, "asked")) <= len(lines(whole, "asked")) + killed
    assert free(memory(home=tmp_path / "killed")) == free(memory(home=tmp_path / "uncut"))


def test_what_a_killed_learning_was_told_serves_another_recipe(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    child = Child(learn_counting, str(tmp_path / "home"), str(first), BACKWARD, 1, 5, None)
    while child.hear() != "stuck":
        pass
    child.kill()
    work = tmp_path / "home" / ".ann.partial"
    assert f"{COMPLETIONS_FILE}-wal" in kept_answers(work)  # nothing was tidied
    chat = Counted(path=str(second))
    run(replace(BACKWARD, window=5), chat, home=tmp_path / "home")  # other memories, the same questions
    assert len(lines(first, "answered")) == 5
    assert len(lines(second, "asked")) == 12 - 5
    assert set(lines(first, "answered")).isdisjoint(lines(second, "asked"))


# Asked again ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "backward"},
        {"method": "backward", "proposal_mode": "forward"},
        {"method": "recon"},
        {"method": "recon", "candidates": 4, "proposal_mode": "scaffolded"},
        {"method": "recon", "proposal_mode": "search", "max_calls": 5},
        {"method": "recon", "fidelity": "judge", "actor": "a", "judge": "j"},
        {"method": "recon", "fidelity": "rank", "actor": "a"},
        {"method": "recon", "fidelity": "choice"},
        {"method": "recon", "fidelity": "prior"},
        {"method": "quality", "judge": "j"},
        {"method": "random"},
        {"method": "longest"},
    ],
    ids=str,
)
@pytest.mark.parametrize("style", ["transcript", "instruction"])
def test_the_same_learning_again_makes_no_call_and_gives_the_same_traces(changes: dict[str, Any], style: PromptStyle) -> None:
    how = recipe(**({"max_traces": 4} | changes))
    model, chat = function_model(judge_and_reconstruct, style, controls=False, price=Price(1.0, 1.0))
    roles = {"actor": replace(model, name="a"), "judge": replace(model, name="j")}
    run(how, model, concurrency=2, **roles)
    first, asked = memory(), len(chat.requests)
    assert asked >= 4
    assert any(triple.reasoning for triple in first)
    run(how, model, overwrite=True, concurrency=2, **roles)
    assert len(chat.requests) == asked
    assert free(memory()) == free(first)
    costs = [triple.provenance.cost for triple in memory() if triple.provenance is not None]
    assert {(cost["calls"], cost["dollars"], cost["output_tokens"]) for cost in costs} == {(0, 0.0, 0)}
    assert texts(memory()) == texts(first)


def test_another_seed_another_model_or_more_of_the_log_asks_what_is_new(tmp_path: Path) -> None:
    chat = Counted(path=str(tmp_path / "calls"))
    run(replace(BACKWARD, max_traces=4), chat)
    run(replace(BACKWARD, max_traces=6), chat, overwrite=True)
    assert chat.calls == 6
    run(replace(BACKWARD, max_traces=6, seed=1), chat, overwrite=True)
    assert chat.calls == 12
    run(replace(BACKWARD, max_traces=6), ChatModel("other", chat, "transcript"), overwrite=True)
    assert chat.calls == 18
    run(replace(BACKWARD, max_traces=6), chat, overwrite=True)  # what was told before the others is still known
    assert chat.calls == 18


def test_what_is_added_to_a_twin_asks_only_what_is_new_and_keeps_it(tmp_path: Path) -> None:
    chat = Counted(path=str(tmp_path / "calls"))
    run(replace(BACKWARD, max_traces=3), chat)
    before = {triple.id: triple for triple in memory()}
    more = ChatLog(tuple(map(talk, range(20, 23))), "more")
    model = ChatModel("scripted:test", chat, "transcript")
    _, new = asyncio.run(aappend("ann", more, embedder=FakeEmbedder(), model=model, scorer=FakeScorer(), max_traces=4))
    assert (new, chat.calls) == (6, 7)
    after = {triple.id: triple for triple in memory()}
    assert {name: after[name] for name in before} == before
    assert sum(t.provenance is not None for name, t in after.items() if name not in before) == 4
    assert kept_answers(twin_folder("ann")) == [COMPLETIONS_FILE]


def test_a_twin_that_was_learned_without_a_trace_may_get_some_for_what_is_added(tmp_path: Path) -> None:
    chat = Counted(path=str(tmp_path / "calls"))
    run(replace(BACKWARD, max_traces=0), chat)
    model = ChatModel("scripted:test", chat, "transcript")
    more = ChatLog(tuple(map(talk, range(20, 23))), "more")
    asyncio.run(aappend("ann", more, embedder=FakeEmbedder(), model=model, scorer=FakeScorer(), max_traces=2))
    assert [triple.provenance is not None for triple in memory()][-6:] == [False] * 4 + [True] * 2


def test_answers_are_kept_with_the_twin_and_gone_when_something_is_forgotten(tmp_path: Path) -> None:
    chat = Counted(path=str(tmp_path / "calls"))
    run(BACKWARD, chat)
    folder = twin_folder("ann")
    assert kept_answers(folder) == [COMPLETIONS_FILE]
    forget(folder, FakeEmbedder(), conversation="talk-03")
    assert kept_answers(folder) == []
    left = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"lamp from shop 3 " not in left
    run(BACKWARD, chat, overwrite=True)
    assert chat.calls == 24


def test_a_twin_without_traces_keeps_no_answers(tmp_path: Path) -> None:
    chat = Counted(path=str(tmp_path / "calls"))
    run(recipe(method="none", model=None, scorer=None), chat)
    assert (chat.calls, kept_answers(twin_folder("ann"))) == (0, [])


def test_kept_answers_that_are_damaged_are_told_and_the_twin_goes_on_without_them(tmp_path: Path) -> None:
    chat = Counted(path=str(tmp_path / "calls"))
    run(BACKWARD, chat)
    (twin_folder("ann") / COMPLETIONS_FILE).write_bytes(b"this is no database, but it is longer than a header" * 40)
    with pytest.raises(ModelError, match=r"answers\.sqlite: the completion cache cannot be used .*; delete the file") as error:
        run(BACKWARD, chat, overwrite=True)
    Path(str(error.value).split(": ")[0]).unlink()
    run(BACKWARD, chat, overwrite=True)
    assert chat.calls == 24
    assert sum(triple.provenance is not None for triple in memory()) == 12


# At once, and what it cost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 2, 5])
@pytest.mark.parametrize(("kind", "candidates"), [(Counted, 1), (Several, 1), (Several, 3)])
def test_never_more_calls_wait_than_moments_may(tmp_path: Path, kind: type[Counted], candidates: int, concurrency: int) -> None:
    chat = kind(path=str(tmp_path / "calls"))
    run(replace(RECON, candidates=candidates), chat, concurrency=concurrency)
    assert chat.peak == concurrency
    assert chat.calls >= 12


def test_a_model_that_gives_one_text_at_a_time_is_asked_for_all_of_a_moment_at_once(tmp_path: Path) -> None:
    chat = Counted(path=str(tmp_path / "calls"))
    run(replace(RECON, candidates=3), chat, concurrency=2)
    assert 3 < chat.peak <= 2 * 3


@pytest.mark.parametrize("price", [None, Price(2.0, 10.0)])
def test_what_each_trace_cost_is_in_its_provenance_and_adds_up(tmp_path: Path, price: Price | None) -> None:
    chat = Several(path=str(tmp_path / "calls"))
    run(RECON, ChatModel("scripted:test", chat, "transcript", price=price), concurrency=3)
    costs = [triple.provenance.cost for triple in memory() if triple.provenance is not None]
    assert len(costs) == 12
    assert sum(cost["input_tokens"] or 0 for cost in costs) == 100 * chat.calls
    assert sum(cost["calls"] or 0 for cost in costs) == sum(cost["output_tokens"] or 0 for cost in costs) / 10 >= 24
    for cost in costs:
        read, written = cost["input_tokens"] or 0, cost["output_tokens"] or 0
        dollars = None if price is None else pytest.approx((2 * read + 10 * written) / 1e6)
        assert (cost["dollars"], cost["repeated"]) == (dollars, 0)


def test_reconstructions_and_verdicts_are_part_of_the_cost() -> None:
    model, chat = function_model(judge_and_reconstruct, "instruction", price=Price(0.0, 0.0))
    run(
        recipe(fidelity="judge", actor="a", judge="j", max_traces=5), model,
        actor=replace(model, name="a", price=Price(1.0, 1.0)), judge=replace(model, name="j"),
    )  # fmt: skip
    costs = [triple.provenance.cost for triple in memory() if triple.provenance is not None]
    assert sum(cost["calls"] or 0 for cost in costs) == len(chat.requests)
    assert all((cost["calls"] or 0) >= 2 + 2 + 1 and (cost["dollars"] or 0) > 0 for cost in costs)  # the paper's 2N + 1


# What is stored ------------------------------------------------------------------------------------------------------


def mixed(prompt: str, seed: int) -> str:
    """Good traces, empty ones, copies of the action, announcements, and parts of the prompt."""
    actions = [line.removeprefix("Me: ") for line in prompt.splitlines() if line.startswith("Me: ")]
    digest = hashlib.sha256(f"{prompt}/{seed}".encode()).digest()[0]
    return (
        f"felt {WORDS[digest % 12]} about shop and desk.",
        "",
        f"will say {actions[-1]}",
        f"was {WORDS[digest % 12]}, so my reply is: hello",
        "felt relieved that the waiting was over, and I wanted to close the matter quickly",
        f"was {WORDS[digest % 12]} and wanted my lamp and the bye and everything.",
        "word " * 200,
    )[seed % 7919 % 7 if digest % 3 else digest % 7]


@pytest.mark.parametrize("method", ["recon", "random", "longest", "quality", "backward"])
@pytest.mark.parametrize("how", ["backward", "forward", "scaffolded", "search"])
def test_every_trace_that_is_stored_has_passed_every_guard(method: str, how: str) -> None:
    def say(prompt: str, seed: int) -> str:
        return judge_and_reconstruct(prompt, seed) if _LABEL.search(prompt) else mixed(prompt, seed)

    model, _ = function_model(say)
    run(recipe(method=method, proposal_mode=how, candidates=3, max_calls=6, judge="j"), model, judge=model)
    triples, stored = memory(), 0
    examples = proposal_template(model, how).text  # pyright: ignore[reportArgumentType]
    for triple in triples:
        assert triple.provenance is not None
        assert triple.provenance.rejected == Counter(c.rejected for c in triple.provenance.proposals if c.rejected_by is not None)
        if triple.reasoning is None:
            assert set(triple.provenance.rejected) <= set(REASONS)
            assert sum(triple.provenance.rejected.values()) == triple.provenance.candidates > 0
            continue
        stored += 1
        assert rejection_reason(triple.reasoning, triple.pair, examples, FakeEmbedder()) is None
        assert kept_share(FakeScorer(), triple.pair, triple.reasoning, CONTEXT_TURNS) >= MIN_KEPT_SHARE
        assert triple.reasoning in [c.trace for c in triple.provenance.proposals if c.rejected_by is None]
        assert method != "recon" or (triple.score or 0.0) >= 0.0
    assert stored >= 3
    seen = sum((Counter(dict(t.provenance.rejected)) for t in triples if t.provenance is not None), Counter[str]())
    assert len(seen) >= 3, seen  # there was something to reject


# Bad input -----------------------------------------------------------------------------------------------------------

ACTIONS = {
    "one word": "ok",
    "an emoji": "😀",
    "a link": "https://shop.example/lamps?id=17#reviews",
    "3,000 words": " ".join(f"word{i % 700}" for i in range(3000)),
    "another script": "да, лампа сломана, верните деньги",
    "a script without spaces": "はい、ランプが壊れています",
    "from right to left": "نعم المصباح مكسور",
    "dots": "...",
}
BAD: dict[str, Callable[[str], str]] = {
    "nothing": lambda _: "",
    "whitespace": lambda _: " \n\t \n",
    "the prompt": lambda prompt: prompt,
    "the action": lambda prompt: prompt.rstrip("\n").rpartition("Me: ")[2].partition("\n")[0],
    "10,000 tokens": lambda _: "lamp, " * 10_000,
    "one endless word": lambda _: "a" * 40_000,
    "half an object": lambda _: '{"noticed": "it was bro',
    "deep brackets": lambda _: "[" * 10_000,
    "tags": lambda _: "<think>" * 2_000 + "</action>" * 2_000,
}


def odd_talks() -> list[Conversation]:
    return [talk(place, action, "Что случилось? 何ですか? ما الأمر؟") for place, action in enumerate(ACTIONS.values())]


@pytest.mark.parametrize(
    ("style", "says"), [("instruction", says) for says in BAD] + [("transcript", says) for says in BAD if "object" not in says]
)
def test_a_model_that_writes_nothing_of_use_leaves_pairs_without_a_trace_and_a_reason(style: PromptStyle, says: str) -> None:
    model, chat = function_model(lambda prompt, _: BAD[says](prompt), style, structured=style == "instruction")
    run(recipe(candidates=2), model, lamps(*odd_talks()))
    triples = memory()
    assert {triple.pair.action for triple in triples} >= {"ok", "😀", ACTIONS["3,000 words"]}
    assert chat.requests
    for triple in triples:
        assert triple.provenance is not None
        assert sum(triple.provenance.rejected.values()) == triple.provenance.candidates >= 2, triple
        assert set(triple.provenance.rejected) <= set(REASONS)
        assert (triple.reasoning, triple.score) == (None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "backward"},
        {"proposal_mode": "search", "max_calls": 4},
        {"fidelity": "judge"},
        {"fidelity": "rank"},
        {"fidelity": "choice"},
        {"fidelity": "prior"},
        {"method": "quality"},
    ],
    ids=str,
)
def test_whatever_an_action_is_its_pair_is_kept_and_tried(changes: dict[str, Any]) -> None:
    model, _ = function_model(judge_and_reconstruct, "instruction")
    run(recipe(**({"actor": "a", "judge": "j"} | changes)), model, lamps(*odd_talks()), actor=model, judge=model)
    triples = memory()
    assert {triple.pair.action for triple in triples} >= {"ok", "😀", ACTIONS["3,000 words"], ACTIONS["from right to left"]}
    assert all(triple.provenance is not None for triple in triples)
    assert all(t.reasoning or sum(t.provenance.rejected.values()) for t in triples if t.provenance is not None)


def test_a_judge_that_says_nothing_of_use_is_a_reason() -> None:
    model, _ = function_model(judge_and_reconstruct, "instruction")
    mute, chat = function_model(lambda _prompt, _seed: "I would rather not", "instruction")
    run(recipe(fidelity="judge", actor="a", judge="j", max_traces=3), model, actor=model, judge=replace(mute, name="j"))
    tried = [triple.provenance for triple in memory() if triple.provenance is not None]
    assert [(found.rejected, found.candidates) for found in tried] == [({"no_verdict": 2}, 2)] * 3
    assert len(chat.requests) == 3 * 3  # asked for again before it is given up
    assert all(triple.reasoning is None for triple in memory())
