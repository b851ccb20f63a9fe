"""Tests of memory/twin/add_traces.py: no call is repeated, every stored trace passed the guards, and costs add up."""

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

from conftest import function_model, recipe
from usertwin.memory import ChatModel, Recipe, Triple, TripleStore, alearn
from usertwin.memory.models.chat import Price, PromptStyle
from usertwin.memory.models.completion_cache import COMPLETIONS_FILE
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.recon.guards import MIN_KEPT_SHARE, REASONS, kept_share, rejection_reason
from usertwin.memory.recon.propose import CONTEXT_TURNS, proposal_template
from usertwin.memory.store import schema
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


def talk(number: int, action: str = "", question: str = "") -> Conversation:
    """Return a distinct conversation of Ann; her first turn and the one before it may be given."""
    turns = (
        Turn("desk", "agent", question or f"Good day, this is desk {number}. What is it?"),
        Turn("Ann", "user", action or f"hi the lamp from shop {number} is broken"),
        Turn("desk", "agent", f"Is that everything about {number}?"),
        Turn("Ann", "user", "no that was all for now bye"),
    )
    return Conversation(f"talk-{number:02d}", turns, f"2024-03-{number + 1:02d}T10:00:00+00:00")


def lamps(*first: Conversation) -> ChatLog:
    """Return fourteen different conversations of Ann; given ones come first."""
    return ChatLog(sort_by_time([*first, *map(talk, range(len(first), 14))], "test"), "test")


class LoggingModel(BaseChatModel):
    """A model whose reply depends on prompt and seed only. It logs each call to a file; after `limit` calls it hangs."""

    path: str
    limit: int | None = None
    on_hang: Callable[[], None] | None = None
    calls: int = 0
    running: int = 0
    peak: int = 0

    @property
    def _llm_type(self) -> str:
        return "counted"

    def _generate(self, *args: Any, **options: Any) -> ChatResult:
        raise AssertionError("models are called asynchronously")

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, *, seed: int = 0, n: int = 1, **options: Any
    ) -> ChatResult:
        key = hashlib.sha256(f"{messages[-1].text}/{seed}/{n}".encode()).hexdigest()
        self._write(f"{key} requested\n")
        self.calls += 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        if self.limit is not None and self.calls > self.limit and self.on_hang is not None:
            self.on_hang()
            await asyncio.Event().wait()
        for _ in range(20):
            await asyncio.sleep(0)
        self.running -= 1
        self._write(f"{key} completed\n")
        usage = UsageMetadata(input_tokens=100, output_tokens=10 * n, total_tokens=100 + 10 * n)
        replies = [f"felt {WORDS[int(key[i : i + 2], 16) % 12]} and {WORDS[int(key[i + 2], 16) % 12]}." for i in range(n)]
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text, usage_metadata=usage)) for text in replies])

    def _write(self, line: str) -> None:
        with open(self.path, "ab", buffering=0) as file:
            file.write(line.encode())


class BatchLoggingModel(LoggingModel):
    """The same, with several completions for one prompt."""

    n: int | None = None


def logged(path: Path, event: str) -> list[str]:
    """Return the keys of the calls that were "requested" or "completed", in order."""
    lines = [line.split() for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    return [key for key, logged_event in lines if logged_event == event]


def run(recipe_: Recipe, chat: BaseChatModel | ChatModel, log: ChatLog | None = None, **options: Any) -> Any:
    model = chat if isinstance(chat, ChatModel) else ChatModel("scripted:test", chat, "transcript")
    options = {"embedder": FakeEmbedder(), "scorer": FakeScorer(), "name": "ann"} | options
    return asyncio.run(alearn(options.pop("name"), log or lamps(), recipe_, model=model, **options))


def memory(name: str = "ann", home: Path | None = None) -> list[Triple]:
    with TripleStore(twin_folder(name, home), FakeEmbedder()) as store:
        return list(store.triples())


def without_costs(triples: Sequence[Triple]) -> list[Triple]:
    """Return the triples without their costs."""
    return [replace(t, provenance=None if t.provenance is None else replace(t.provenance, cost={})) for t in triples]


def completions(triples: Sequence[Triple]) -> list[float | None]:
    """Return the number of completions, new and cached, behind each trace."""
    costs = [None if t.provenance is None else t.provenance.cost for t in triples]
    return [None if cost is None else (cost["calls"] or 0) + (cost["repeated"] or 0) for cost in costs]


def cache_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{COMPLETIONS_FILE}*"))


def judge_and_reconstruct(prompt: str, seed: int) -> str:
    """Return a trace, a reconstruction or a verdict that depends on prompt and seed only."""
    labels = _LABEL.findall(prompt)
    if labels:
        return json.dumps({"scores": {label: dict.fromkeys(_MARKS, 5) for label in labels}, "ranking": labels[::-1]})
    digest = hashlib.sha256(f"{prompt}/{seed}".encode()).digest()
    return f"felt {WORDS[digest[0] % 12]} and {WORDS[digest[1] % 12]}, wanted {WORDS[digest[2] % 12]} people."


# Killed and resumed ---------------------------------------------------------------------------------------------------


def learn_counting(
    connection: Connection, home: str, calls: str, recipe_: Recipe, concurrency: int, limit: int | None, step: int | None
) -> None:
    """Learn and report progress and hanging calls; may be killed at a step of adding traces."""
    os.environ["USERTWIN_ONLY_SCRIPTED"] = "1"
    chat = LoggingModel(path=calls, limit=limit, on_hang=lambda: connection.send("hangs"))
    with ExitStack() as stack:

        def progress(stage: str, done: int, total: int) -> None:
            if stage == "traces" and not stages:
                stages.append(stage)
                stack.enter_context(killed_at(step))
            connection.send((stage, done))

        stages: list[str] = []
        run(recipe_, chat, home=home, concurrency=concurrency, progress=progress)
    connection.send("complete")


@pytest.mark.parametrize("recipe_", [BACKWARD, RECON], ids=["backward", "recon"])
@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("limit", [0, 5])
def test_a_killed_run_repeats_only_the_calls_in_flight(tmp_path: Path, recipe_: Recipe, concurrency: int, limit: int) -> None:
    first, second, whole = (tmp_path / name for name in ("first", "second", "whole"))
    child = Child(learn_counting, str(tmp_path / "killed"), str(first), recipe_, concurrency, limit, None)
    hanging = 0
    while hanging < concurrency:
        hanging += child.hear() == "hangs"
    child.kill()
    assert child.process.exitcode == -signal.SIGKILL
    assert (
        Child(learn_counting, str(tmp_path / "killed"), str(second), recipe_, concurrency, None, None).end()[-1] == "complete"
    )
    assert Child(learn_counting, str(tmp_path / "uncut"), str(whole), recipe_, concurrency, None, None).end()[-1] == "complete"

    expected = logged(whole, "requested")
    assert len(expected) == len(set(expected)) >= 12 * (1 if recipe_ is BACKWARD else 2)
    both = Counter(logged(first, "requested") + logged(second, "requested"))
    assert set(both) == set(expected)
    assert both.total() <= len(expected) + concurrency * recipe_.candidates
    repeated = {key for key, times in both.items() if times > 1}
    assert len(repeated) <= concurrency * recipe_.candidates
    if recipe_ is BACKWARD:  # one call a pair, and completed calls are cached
        assert repeated == set(logged(first, "requested")) - set(logged(first, "completed"))
    killed, uncut = memory(home=tmp_path / "killed"), memory(home=tmp_path / "uncut")
    assert without_costs(killed) == without_costs(uncut)
    assert completions(killed) == completions(uncut)
    assert sum(triple.reasoning is not None for triple in killed) > 3


def test_a_run_killed_at_many_steps_repeats_no_cached_call(tmp_path: Path) -> None:
    calls, whole, killed = tmp_path / "calls", tmp_path / "whole", 0
    messages: list[Any] = []
    for step in (1, 3, 5, 7, 9, 12, 16, 22, 30, 60, None):
        child = Child(learn_counting, str(tmp_path / "killed"), str(calls), BACKWARD, 1, None, step)
        messages = child.end()
        if child.process.exitcode != -signal.SIGKILL:
            break
        killed += 1
    assert messages[-1] == "complete"
    assert killed > 4
    assert Child(learn_counting, str(tmp_path / "uncut"), str(whole), BACKWARD, 1, None, None).end()[-1] == "complete"
    assert set(logged(calls, "requested")) == set(logged(whole, "requested"))
    assert len(logged(whole, "requested")) <= len(logged(calls, "requested")) <= len(logged(whole, "requested")) + killed
    assert without_costs(memory(home=tmp_path / "killed")) == without_costs(memory(home=tmp_path / "uncut"))


def test_the_completions_of_a_killed_run_serve_another_recipe(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    child = Child(learn_counting, str(tmp_path / "home"), str(first), BACKWARD, 1, 5, None)
    while child.hear() != "hangs":
        pass
    child.kill()
    work = tmp_path / "home" / ".ann.partial"
    assert f"{COMPLETIONS_FILE}-wal" in cache_files(work)  # as a killed process leaves it
    chat = LoggingModel(path=str(second))
    run(replace(BACKWARD, window=5), chat, home=tmp_path / "home")  # other pairs, equal prompts
    assert len(logged(first, "completed")) == 5
    assert len(logged(second, "requested")) == 12 - 5
    assert set(logged(first, "completed")).isdisjoint(logged(second, "requested"))


# The completion cache -------------------------------------------------------------------------------------------------


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
def test_learning_again_makes_no_call_and_gives_the_same_traces(changes: dict[str, Any], style: PromptStyle) -> None:
    recipe_ = recipe(**({"max_traces": 4} | changes))
    model, chat = function_model(judge_and_reconstruct, style, supports_sampling_params=False, price=Price(1.0, 1.0))
    roles = {"actor": replace(model, name="a"), "judge": replace(model, name="j")}
    run(recipe_, model, concurrency=2, **roles)
    first, calls = memory(), len(chat.requests)
    assert calls >= 4
    assert any(triple.reasoning for triple in first)
    run(recipe_, model, overwrite=True, concurrency=2, **roles)
    assert len(chat.requests) == calls
    assert without_costs(memory()) == without_costs(first)
    costs = [triple.provenance.cost for triple in memory() if triple.provenance is not None]
    assert {(cost["calls"], cost["dollars"], cost["output_tokens"]) for cost in costs} == {(0, 0.0, 0)}
    assert completions(memory()) == completions(first)


def test_another_seed_model_or_limit_calls_only_for_what_is_new(tmp_path: Path) -> None:
    chat = LoggingModel(path=str(tmp_path / "calls"))
    run(replace(BACKWARD, max_traces=4), chat)
    run(replace(BACKWARD, max_traces=6), chat, overwrite=True)
    assert chat.calls == 6
    run(replace(BACKWARD, max_traces=6, seed=1), chat, overwrite=True)
    assert chat.calls == 12
    run(replace(BACKWARD, max_traces=6), ChatModel("other", chat, "transcript"), overwrite=True)
    assert chat.calls == 18
    run(replace(BACKWARD, max_traces=6), chat, overwrite=True)  # the first completions are still cached
    assert chat.calls == 18


def test_appending_calls_only_for_new_pairs_and_caches_them(tmp_path: Path) -> None:
    chat = LoggingModel(path=str(tmp_path / "calls"))
    run(replace(BACKWARD, max_traces=3), chat)
    before = {triple.id: triple for triple in memory()}
    added = ChatLog(tuple(map(talk, range(20, 23))), "added")
    model = ChatModel("scripted:test", chat, "transcript")
    _, new = asyncio.run(aappend("ann", added, embedder=FakeEmbedder(), model=model, scorer=FakeScorer(), max_traces=4))
    assert (new, chat.calls) == (6, 7)
    after = {triple.id: triple for triple in memory()}
    assert {name: after[name] for name in before} == before
    assert sum(t.provenance is not None for name, t in after.items() if name not in before) == 4
    assert cache_files(twin_folder("ann")) == [COMPLETIONS_FILE]


def test_appending_reads_the_memory_once_for_the_models_of_leaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(replace(BACKWARD, max_traces=0), LoggingModel(path=str(tmp_path / "calls")))
    read, decode = Counter[str](), schema.decode
    monkeypatch.setattr(schema, "decode", lambda row: (read.update(["row"]), decode(row))[1])
    added = ChatLog((talk(20),), "added")
    _, new = asyncio.run(aappend("ann", added, embedder=FakeEmbedder()))
    assert 0 < read["row"] <= len(memory()) + new
    assert new == 2


def test_a_twin_without_traces_may_get_some_for_appended_pairs(tmp_path: Path) -> None:
    chat = LoggingModel(path=str(tmp_path / "calls"))
    run(replace(BACKWARD, max_traces=0), chat)
    model = ChatModel("scripted:test", chat, "transcript")
    added = ChatLog(tuple(map(talk, range(20, 23))), "added")
    asyncio.run(aappend("ann", added, embedder=FakeEmbedder(), model=model, scorer=FakeScorer(), max_traces=2))
    assert [triple.provenance is not None for triple in memory()][-6:] == [False] * 4 + [True] * 2


def test_completions_are_cached_with_the_twin_and_deleted_on_forgetting(tmp_path: Path) -> None:
    chat = LoggingModel(path=str(tmp_path / "calls"))
    run(BACKWARD, chat)
    folder = twin_folder("ann")
    assert cache_files(folder) == [COMPLETIONS_FILE]
    forget(folder, FakeEmbedder(), conversation="talk-03")
    assert cache_files(folder) == []
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"lamp from shop 3 " not in content
    run(BACKWARD, chat, overwrite=True)
    assert chat.calls == 24


def test_a_twin_without_traces_has_no_completion_cache(tmp_path: Path) -> None:
    chat = LoggingModel(path=str(tmp_path / "calls"))
    run(recipe(method="none", model=None, scorer=None), chat)
    assert (chat.calls, cache_files(twin_folder("ann"))) == (0, [])


def test_a_damaged_completion_cache_is_an_error_and_can_be_deleted(tmp_path: Path) -> None:
    chat = LoggingModel(path=str(tmp_path / "calls"))
    run(BACKWARD, chat)
    (twin_folder("ann") / COMPLETIONS_FILE).write_bytes(b"this is no database, but it is longer than a header" * 40)
    with pytest.raises(ModelError, match=r"answers\.sqlite: the completion cache cannot be used .*; delete the file") as error:
        run(BACKWARD, chat, overwrite=True)
    Path(str(error.value).split(": ")[0]).unlink()
    run(BACKWARD, chat, overwrite=True)
    assert chat.calls == 24
    assert sum(triple.provenance is not None for triple in memory()) == 12


# Concurrency and cost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 2, 5])
@pytest.mark.parametrize(("kind", "candidates"), [(LoggingModel, 1), (BatchLoggingModel, 1), (BatchLoggingModel, 3)])
def test_no_more_calls_wait_than_the_concurrency(
    tmp_path: Path, kind: type[LoggingModel], candidates: int, concurrency: int
) -> None:
    chat = kind(path=str(tmp_path / "calls"))
    run(replace(RECON, candidates=candidates), chat, concurrency=concurrency)
    assert chat.peak == concurrency
    assert chat.calls >= 12


def test_single_completions_of_one_pair_are_requested_concurrently(tmp_path: Path) -> None:
    chat = LoggingModel(path=str(tmp_path / "calls"))
    run(replace(RECON, candidates=3), chat, concurrency=2)
    assert 3 < chat.peak <= 2 * 3


@pytest.mark.parametrize("price", [None, Price(2.0, 10.0)])
def test_the_cost_of_each_trace_is_in_its_provenance_and_adds_up(tmp_path: Path, price: Price | None) -> None:
    chat = BatchLoggingModel(path=str(tmp_path / "calls"))
    run(RECON, ChatModel("scripted:test", chat, "transcript", price=price), concurrency=3)
    costs = [triple.provenance.cost for triple in memory() if triple.provenance is not None]
    assert len(costs) == 12
    assert sum(cost["input_tokens"] or 0 for cost in costs) == 100 * chat.calls
    assert sum(cost["calls"] or 0 for cost in costs) == sum(cost["output_tokens"] or 0 for cost in costs) / 10 >= 24
    for cost in costs:
        input_tokens, output_tokens = cost["input_tokens"] or 0, cost["output_tokens"] or 0
        dollars = None if price is None else pytest.approx((2 * input_tokens + 10 * output_tokens) / 1e6)
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


# Guards ---------------------------------------------------------------------------------------------------------------


def mixed(prompt: str, seed: int) -> str:
    """Return a good trace, an empty one, a copy of the action, an announcement, or a part of the prompt."""
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
@pytest.mark.parametrize("mode", ["backward", "forward", "scaffolded", "search"])
def test_every_stored_trace_has_passed_every_guard(method: str, mode: str) -> None:
    def reply(prompt: str, seed: int) -> str:
        return judge_and_reconstruct(prompt, seed) if _LABEL.search(prompt) else mixed(prompt, seed)

    model, _ = function_model(reply)
    run(recipe(method=method, proposal_mode=mode, candidates=3, max_calls=6, judge="j"), model, judge=model)
    triples, stored = memory(), 0
    examples = proposal_template(model, mode).text  # pyright: ignore[reportArgumentType]
    for triple in triples:
        assert triple.provenance is not None
        assert triple.provenance.rejected == Counter(
            c.rejected_by for c in triple.provenance.proposals if c.rejected_by is not None
        )
        if triple.reasoning is None:
            assert set(triple.provenance.rejected) <= set(REASONS)
            assert sum(triple.provenance.rejected.values()) == triple.provenance.candidates > 0
            continue
        stored += 1
        saw_action = mode != "forward"  # without it, only the guards of form apply
        assert rejection_reason(triple.reasoning, triple.pair, examples, FakeEmbedder(), saw_action=saw_action) is None
        kept = kept_share(FakeScorer(), triple.pair, triple.reasoning, CONTEXT_TURNS)
        assert kept >= MIN_KEPT_SHARE or not saw_action
        assert triple.reasoning in [c.trace for c in triple.provenance.proposals if c.rejected_by is None]
        assert method != "recon" or (triple.score or 0.0) >= 0.0
    assert stored >= 3
    rejections = sum((Counter(dict(t.provenance.rejected)) for t in triples if t.provenance is not None), Counter[str]())
    assert len(rejections) >= 3, rejections  # several guards had something to reject


# Unusual actions and useless replies ----------------------------------------------------------------------------------

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
USELESS: dict[str, Callable[[str], str]] = {
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
#: Useless replies without a word, or without the object that the prompt asks for, and what the error says of them.
WORDLESS = {
    **dict.fromkeys(("nothing", "whitespace", "tags", "deep brackets"), "it wrote nothing"),
    "half an object": "it did not write the JSON object that the prompt requires",
}


def odd_talks() -> list[Conversation]:
    return [talk(place, action, "Что случилось? 何ですか? ما الأمر؟") for place, action in enumerate(ACTIONS.values())]


@pytest.mark.parametrize(
    ("style", "name"),
    [("instruction", name) for name in USELESS] + [("transcript", name) for name in USELESS if "object" not in name],
)
def test_useless_replies_leave_pairs_without_a_trace_and_with_a_reason(style: PromptStyle, name: str) -> None:
    model, chat = function_model(lambda prompt, _: USELESS[name](prompt), style, structured=style == "instruction")
    if name in WORDLESS:  # a fault of the model, and no pair counts as tried
        with pytest.raises(
            ModelError, match=rf'"telling" made no trace: {WORDLESS[name]} in all \d+ proposals for 5 pairs; use an'
        ):
            run(recipe(candidates=2), model, lamps(*odd_talks()))
        assert all(triple.provenance is None for triple in memory())
        return
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
def test_a_pair_with_any_action_is_stored_and_tried(changes: dict[str, Any]) -> None:
    model, _ = function_model(judge_and_reconstruct, "instruction")
    run(recipe(**({"actor": "a", "judge": "j"} | changes)), model, lamps(*odd_talks()), actor=model, judge=model)
    triples = memory()
    assert {triple.pair.action for triple in triples} >= {"ok", "😀", ACTIONS["3,000 words"], ACTIONS["from right to left"]}
    assert all(triple.provenance is not None for triple in triples)
    assert all(t.reasoning or sum(t.provenance.rejected.values()) for t in triples if t.provenance is not None)


def test_a_judge_without_a_verdict_is_an_error_and_no_pair_counts_as_tried() -> None:
    model, _ = function_model(judge_and_reconstruct, "instruction")
    useless, chat = function_model(lambda _prompt, _seed: "I would rather not", "instruction")
    judged = recipe(fidelity="judge", actor="a", judge="j", max_traces=3)
    with pytest.raises(
        ModelError, match='the judge "j" gave no readable verdict in all 6 proposals for 3 pairs; use another judge'
    ):
        run(judged, model, actor=model, judge=replace(useless, name="j"))
    assert len(chat.requests) == 3 * 3  # a verdict is requested three times
    assert all(triple.provenance is None for triple in memory())
    run(judged, model, actor=model, judge=model)  # the same command with a judge that answers
    assert any(triple.reasoning for triple in memory())


def test_a_pair_without_a_verdict_among_others_counts_its_proposals_as_rejected() -> None:
    model, _ = function_model(judge_and_reconstruct, "instruction")

    def sometimes(prompt: str, seed: int) -> str:
        return "I would rather not" if "desk 0" in prompt else judge_and_reconstruct(prompt, seed)

    judge, _ = function_model(sometimes, "instruction")
    run(recipe(fidelity="judge", actor="a", judge="j"), model, actor=model, judge=replace(judge, name="j"))
    rejected = [t.provenance.rejected for t in memory() if t.provenance is not None and not t.reasoning]
    assert {"no_verdict": 2} in rejected
