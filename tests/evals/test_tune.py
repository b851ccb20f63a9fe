"""Tuning: the simplest of the best settings is chosen, and the twin uses it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from conftest import FunctionChatModel, function_model, recipe, scripted, small_conversation, small_log
from usertwin.evals import ReplayConfig, evaluate
from usertwin.evals.tuning.tune import KS, WINDOWS, TunePlan, tune, tune_plan, validation_pairs
from usertwin.memory import ChatModel, Provenance, Settings, Triple, TripleStore, TwinRecord, alearn, existing_twin
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.memory.triples import Candidate
from usertwin.memory.twin.record import HELD_OUT_FILE
from usertwin.personas import ChatLog, Persona, TwinError, UsageError, read_conversations, write_conversations
from usertwin.simulator import SimulatedUser

pytestmark = pytest.mark.usefixtures("two_clusters_suffice", "repeats_count")

#: The first proposals and the Recon-selected traces of the twin.
FIRST, SELECTED = "a first guess", "the better reason"
PLAIN = Settings(k=4, window=3, traces="none", reasons=False)
#: The number in "tomorrow, day 7", which identifies the conversation.
DAY = re.compile(r"day (\d+)")
WHICH_DAY = [
    {"role": "assistant", "content": "Hello, what can I do for you?"},
    {"role": "user", "content": "hi, the weather in Oslo please"},
    {"role": "assistant", "content": "Which day do you mean for Oslo?"},
]


class ScorerBy:
    """A scorer that computes nats by a function of prompt and completion and records its items."""

    name = "by hand"

    def __init__(self, nats: Callable[[str, str], float]) -> None:
        self._nats = nats
        self.items: list[tuple[str, str]] = []

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`."""
        self.items += items
        return [Likelihood(self._nats(prompt, continuation), 1) for prompt, continuation in items]


def count_recalled(prompt: str) -> int:
    """Return the number of recalled pairs in a prompt."""
    return prompt.count("\n\n")


def present_context(prompt: str) -> str:
    """Return the present context of a prompt."""
    return prompt.split("\n\n")[-1]


@pytest.fixture
def twin(ann: str) -> str:
    """Ann's twin, whose selected traces differ from the first proposals."""
    provenance = Provenance(
        method="recon",
        proposer="test",
        scorer="test",
        prompt_version="1",
        seed=0,
        candidates=2,
        rejected={},
        proposals=(Candidate(FIRST, 0.1, None), Candidate(SELECTED, 0.4, None)),
    )
    with TripleStore(existing_twin(ann), FakeEmbedder(), create=False) as store:
        store.set_traces([replace(t, reasoning=SELECTED, score=0.4, provenance=provenance) for t in store.triples()])
    return ann


def tuned(name: str, scorer: ScorerBy, model: ChatModel | None = None, **options: Any) -> Settings:
    """Return the settings of a tuned twin."""
    with SimulatedUser.load(name, model=model or function_model(lambda *_: "I wonder")[0]) as user:
        return asyncio.run(tune(user, scorer, folder=existing_twin(name), **options))


def what(settings: Settings) -> Settings:
    """Return settings without the comparison behind them."""
    return replace(settings, measured=None)


# The choice ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nats", "best"),
    [
        (lambda prompt, _: -10.0, PLAIN),
        (lambda prompt, _: -10.0 + 5 * (SELECTED in prompt), replace(PLAIN, traces="recon")),
        (lambda prompt, _: -10.0 + 5 * (FIRST in prompt), replace(PLAIN, traces="backward")),
        (lambda prompt, _: -10.0 + 5 * (SELECTED in prompt or FIRST in prompt), replace(PLAIN, traces="backward")),
        (
            lambda prompt, _: -10.0 + 5 * ("thinking" in present_context(prompt)),
            Settings(k=4, window=3, traces="recon", reasons=True),
        ),
        (lambda prompt, _: -10.0 + min(8, count_recalled(prompt)), replace(PLAIN, k=8)),
        (lambda prompt, _: -50.0 + count_recalled(prompt), replace(PLAIN, k=32)),
        (lambda prompt, _: -50.0 + present_context(prompt).count("Them:"), replace(PLAIN, window=6)),
        (
            lambda prompt, _: -50.0 + min(8, count_recalled(prompt)) + 5 * (SELECTED in prompt),
            replace(PLAIN, k=8, traces="recon"),
        ),
        (lambda prompt, _: -10.0 - count_recalled(prompt), PLAIN),
        (lambda prompt, _: -10.0 - 1e-3 * ("thinking" in prompt), PLAIN),
    ],
    ids=[
        "all the same", "the chosen trace helps", "the first trace helps", "any trace helps", "a thought of its own helps",
        "more moments help", "many moments help", "more of the chat helps", "more moments and the chosen trace help",
        "moments harm", "traces harm",
    ],
)  # fmt: skip
def test_the_simplest_of_the_best_settings_is_chosen(twin: str, nats: Callable[[str, str], float], best: Settings) -> None:
    assert what(tuned(twin, ScorerBy(nats))) == best


@pytest.mark.parametrize(("in_one", "in_the_other", "traces"), [(3.0, -2.0, "none"), (3.0, 2.0, "recon")])
def test_a_mixed_effect_is_within_the_standard_error(twin: str, in_one: float, in_the_other: float, traces: str) -> None:
    """Both help on average, the first only since one conversation gains more than the other loses."""
    [one, other] = TwinRecord.load(existing_twin(twin)).validation
    cities = {name: small_conversation(int(name.removeprefix("talk-"))).turns[2].text.split()[4] for name in (one, other)}

    def nats(prompt: str, continuation: str) -> float:
        where = in_one if cities[one] in present_context(prompt) + continuation else in_the_other
        return -20.0 + where * (SELECTED in prompt)

    assert tuned(twin, ScorerBy(nats)).traces == traces


@examples(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    more=st.floats(-2, 2),
    longer=st.floats(-2, 2),
    harm=st.lists(st.floats(0.01, 5), min_size=6, max_size=6),
    own=st.floats(0, 3),
)
def test_harmful_traces_are_not_shown(twin: str, more: float, longer: float, harm: list[float], own: float) -> None:
    """However much the rest matters, and however unequal the harm is."""
    actions: dict[str, float] = {}

    def nats(prompt: str, continuation: str) -> float:
        cost = actions.setdefault(continuation, harm[len(actions) % len(harm)])
        worse = cost * ("thinking" in prompt) + own * ("thinking" in present_context(prompt))
        return -100.0 + more * count_recalled(prompt) + longer * present_context(prompt).count("Them:") - worse

    found = tuned(twin, ScorerBy(nats))
    assert (found.traces, found.reasons) == ("none", False)


def test_one_validation_conversation_gives_the_simplest_setting(twin: str) -> None:
    folder = existing_twin(twin)
    record = TwinRecord.load(folder)
    replace(record, validation=record.validation[:1]).save(folder)
    assert what(tuned(twin, ScorerBy(lambda prompt, _: -10.0 + 5 * (SELECTED in prompt)))) == PLAIN


def test_without_traces_only_plain_settings_are_compared() -> None:
    asyncio.run(alearn("plain", small_log(), recipe(method="none", model=None, scorer=None), embedder=FakeEmbedder()))
    model, chat = function_model(lambda *_: "I wonder")
    scorer = ScorerBy(lambda prompt, _: -20.0 + min(8, count_recalled(prompt)))
    found = tuned("plain", scorer, model)
    assert what(found) == replace(PLAIN, k=8)
    assert chat.requests == []
    assert found.measured is not None
    assert {row["traces"] for row in found.measured["settings"]} == {"none"}


def test_without_validation_turns_no_model_is_called(twin: str) -> None:
    folder = existing_twin(twin)
    replace(TwinRecord.load(folder), validation=()).save(folder)
    scorer = ScorerBy(lambda *_: -1.0)
    assert tuned(twin, scorer) == Settings(traces="none", reasons=False)
    assert scorer.items == []


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_an_error(twin: str, limit: int) -> None:
    with pytest.raises(UsageError, match=f"limit is {limit}; tuning needs at least 1 validation turn"):
        tuned(twin, ScorerBy(lambda *_: -1.0), limit=limit)


# Validation turns -------------------------------------------------------------------------------------------------------


def days_of(names: Sequence[str]) -> set[int]:
    return {int(name.removeprefix("talk-")) for name in names}


def test_only_validation_conversations_are_scored(twin: str) -> None:
    record = TwinRecord.load(existing_twin(twin))
    model, chat = function_model(lambda *_: "I wonder")
    scorer = ScorerBy(lambda *_: -1.0)
    tuned(twin, scorer, model)
    own = {
        turn.text for number in days_of(record.validation) for turn in small_conversation(number).turns if turn.speaker == "Ann"
    }
    assert {continuation.strip() for _, continuation in scorer.items} == own
    read = {int(day) for text in [*map("".join, scorer.items), *chat.prompts] for day in DAY.findall(text)}
    assert read <= days_of(record.corpus) | days_of(record.validation)
    assert not read & days_of(record.test)


def test_a_missing_held_out_file_gives_no_turns(twin: str) -> None:
    """The strongest form of the same: without the test conversations everything is decided alike."""
    before = tuned(twin, ScorerBy(lambda prompt, _: -20.0 + count_recalled(prompt)))
    path, known = existing_twin(twin) / HELD_OUT_FILE, set(TwinRecord.load(existing_twin(twin)).validation)
    kept = [one for one in read_conversations(path).conversations if one.conversation_id in known]
    assert len(kept) == 2
    write_conversations(kept, path)
    assert tuned(twin, ScorerBy(lambda prompt, _: -20.0 + count_recalled(prompt))) == before


def test_no_later_pair_or_same_conversation_is_shown(twin: str) -> None:
    scorer = ScorerBy(lambda *_: -1.0)
    tuned(twin, scorer)
    for prompt, _ in scorer.items:
        past = prompt.removesuffix(present_context(prompt))
        assert not {int(day) for day in DAY.findall(past)} & days_of(TwinRecord.load(existing_twin(twin)).validation)


def test_pairs_added_later_are_not_shown(twin: str) -> None:
    """A memory grows; turns after the validation turns would reveal their continuation."""
    with TripleStore(existing_twin(twin), FakeEmbedder(), create=False) as store:
        pairs = [replace(triple.pair, conversation_id=f"since {n}", when=9e9) for n, triple in enumerate(store.triples())]
        store.add([Triple(replace(pair, action=f"since then, {pair.action}")) for pair in pairs])
    scorer = ScorerBy(lambda *_: -1.0)
    tuned(twin, scorer)
    assert not any("since then" in prompt for prompt, _ in scorer.items)


def test_an_undated_log_is_tuned_with_the_whole_memory(tmp_path: Path) -> None:
    log = ChatLog(tuple(replace(one, started_at=None) for one in map(small_conversation, range(20))), "test")
    asyncio.run(alearn("bea", log, recipe(method="none", model=None, scorer=None), embedder=FakeEmbedder()))
    scorer = ScorerBy(lambda *_: -1.0)
    tuned("bea", scorer)
    assert {count_recalled(prompt) for prompt, _ in scorer.items} == set(KS)


def test_abandoned_pairs_are_not_tuned_on(tmp_path: Path) -> None:
    talks = [replace(one, turns=one.turns[:-1]) for one in map(small_conversation, range(20))]
    asyncio.run(alearn("cy", ChatLog(tuple(talks), "test"), recipe(method="backward", model="x"), embedder=FakeEmbedder(),
                      model=scripted("is in a hurry")))  # fmt: skip
    with SimulatedUser.load("cy", model=scripted("x")) as user:
        pairs = validation_pairs(user, existing_twin("cy"), 100)
    assert pairs
    assert not any(pair.abandoned for pair in pairs)


# The plan --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 4, 24])
def test_the_plan_equals_the_work_done(twin: str, limit: int) -> None:
    model, chat = function_model(lambda *_: "I wonder")
    scorer, updates, said = ScorerBy(lambda *_: -1.0), list[tuple[str, int, int]](), list[TunePlan]()
    with SimulatedUser.load(twin, model=model) as user:
        planned = tune_plan(user, len(validation_pairs(user, existing_twin(twin), limit)))
        found = asyncio.run(
            tune(
                user, scorer, folder=existing_twin(twin), limit=limit, on_plan=said.append,
                progress=lambda *now: updates.append(now),
            )
        )  # fmt: skip
    assert said == [planned]
    assert planned == TunePlan(min(limit, 6), len(KS) + len(WINDOWS) - 1 + 3, min(limit, 6))
    assert len(scorer.items) == planned.measurements
    assert len(chat.requests) == planned.thoughts
    assert updates[0] == ("tuning", 0, planned.measurements)
    assert updates[-1] == ("tuning", planned.measurements, planned.measurements)
    assert [done for _, done, _ in updates] == sorted(done for _, done, _ in updates)
    assert found.measured is not None
    assert len(found.measured["settings"]) == planned.settings
    assert found.measured["turns"] == planned.turns
    assert str(planned) == (
        f"8 settings on {planned.turns} validation turns: {planned.measurements} turns scored "
        f"and {planned.turns} traces written"
    )


def test_the_window_of_the_recipe_is_compared_too() -> None:
    made = recipe(method="none", model=None, scorer=None, window=5)
    asyncio.run(alearn("wide", small_log(), made, embedder=FakeEmbedder()))
    scorer = ScorerBy(lambda *_: -1.0)
    with SimulatedUser.load("wide", model=scripted("x")) as user:
        planned = tune_plan(user, len(validation_pairs(user, existing_twin("wide"), 24)))
    found = tuned("wide", scorer)
    assert (planned.settings, planned.thoughts, len(scorer.items)) == (6, 0, 36)
    assert found.measured is not None
    assert [(row["k"], row["window"]) for row in found.measured["settings"]] == [*((k, 6) for k in KS), (4, 3), (4, 5)]
    assert "traces" not in str(planned)


def test_reasoning_uses_the_context_of_the_setting(twin: str) -> None:
    model, chat = function_model(lambda *_: "I wonder")
    scorer = ScorerBy(lambda *_: -1.0)
    assert what(tuned(twin, scorer, model)) == PLAIN
    assert (
        max(len(present_context(prompt).splitlines()) for prompt in chat.prompts) == 1 + 3 + 1
    )  # the goal, three turns, the thought
    thoughts = [prompt for prompt, _ in scorer.items if "I wonder" in present_context(prompt)]
    assert thoughts == [f"{prompt} I wonder)\nMe:" for prompt in chat.prompts]
    assert all(SELECTED in prompt and FIRST not in prompt for prompt in chat.prompts)


def test_empty_reasoning_leaves_the_prompt_unchanged(twin: str) -> None:
    scorer = ScorerBy(lambda *_: -1.0)
    tuned(twin, scorer, scripted(""))
    assert not any("thinking" in present_context(prompt) for prompt, _ in scorer.items)


def test_a_seed_is_reproducible_and_reaches_the_reasoner(twin: str) -> None:
    def run(seed: int) -> tuple[Settings, list[int]]:
        model, chat = function_model(lambda *_: "I wonder")
        return tuned(twin, ScorerBy(lambda prompt, _: -20.0 + count_recalled(prompt)), model, seed=seed), [
            seed for _, seed in chat.requests
        ]

    assert run(3) == run(3)
    assert not set(run(3)[1]) & set(run(100)[1])


# Records --------------------------------------------------------------------------------------------------------------


def test_the_report_compares_with_the_best_plain_setting(twin: str) -> None:
    found = tuned(twin, ScorerBy(lambda prompt, _: -20.0 + min(8, count_recalled(prompt)) + 5 * (SELECTED in prompt)), seed=2)
    measured_record = found.measured
    assert measured_record is not None
    assert json.loads(json.dumps(measured_record, allow_nan=False)) == measured_record
    assert {key: measured_record[key] for key in ("turns", "conversations", "scorer", "model", "seed")} == {
        "turns": 6, "conversations": 2, "scorer": "by hand", "model": "telling", "seed": 2,
    }  # fmt: skip
    rows = measured_record["settings"]
    assert [(row["k"], row["window"], row["traces"], row["reasons"]) for row in rows] == [
        *((k, 6, "none", False) for k in KS), (8, 3, "none", False),
        (8, 3, "backward", False), (8, 3, "recon", False), (8, 3, "recon", True),
    ]  # fmt: skip
    assert [row["chosen"] for row in rows] == [False] * 6 + [True, False]
    assert [row["against_plain"] is None for row in rows] == [place == 4 for place in range(8)]
    for row in rows:
        assert set(row["bits_per_char"]) == {"value", "low", "high", "n"}
        assert row["bits_per_char"]["n"] == 6
    [plain, chosen] = (row["bits_per_char"]["value"] for row in (rows[4], rows[6]))
    assert rows[6]["against_plain"]["value"] == pytest.approx(chosen - plain)
    assert rows[6]["against_plain"]["high"] < 0 < rows[0]["against_plain"]["low"]


def test_bits_per_character_are_those_of_the_real_turns(twin: str) -> None:
    scorer = ScorerBy(lambda *_: -2.0)
    found = tuned(twin, scorer)
    characters = sum(len(continuation) - 1 for _, continuation in scorer.items[:6])  # the end of the line counts, the space not
    assert found.measured is not None
    assert found.measured["settings"][0]["bits_per_char"]["value"] == pytest.approx(6 * 2 / 0.6931471805599453 / characters)


def test_recorded_settings_are_those_of_the_loaded_twin(twin: str) -> None:
    folder = existing_twin(twin)
    found = tuned(twin, ScorerBy(lambda prompt, _: -20.0 + min(8, count_recalled(prompt)) + 5 * (SELECTED in prompt)))
    record = replace(TwinRecord.load(folder), settings=found)
    record.save(folder)
    assert TwinRecord.load(folder) == record
    with SimulatedUser.load(twin, model=scripted("hi")) as user:
        assert user.settings == found
        assert user.k == found.k == 8
    with SimulatedUser.load(twin, model=scripted("hi"), k=2) as user:
        assert (user.k, user.settings.k) == (2, 8)  # who asks for another number is given it
    with SimulatedUser.load(twin, model=scripted("hi"), settings=Settings(k=1)) as user:
        assert user.settings == Settings(k=1)


def test_a_record_without_settings_loads(twin: str) -> None:
    path = existing_twin(twin) / "twin.json"
    raw = json.loads(path.read_text("utf-8"))
    del raw["settings"]
    for key in ("proposal_mode", "fidelity", "actor", "judge", "max_calls"):
        del raw["recipe"][key]
    path.write_text(json.dumps(raw), "utf-8")
    record = TwinRecord.load(path.parent)
    assert record.settings is None
    assert record.recipe == recipe()
    assert (record.recipe.proposal_mode, record.recipe.fidelity) == ("backward", "guarded_gain")
    with SimulatedUser.load(twin, model=scripted("hi")) as user:
        assert user.settings == Settings(k=8, window=6, traces="recon", reasons=True)


@pytest.mark.parametrize("damage", [{"k": 4, "magic": 1}, [4], "often"])
def test_invalid_settings_are_a_damaged_twin(twin: str, damage: object) -> None:
    path = existing_twin(twin) / "twin.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"settings": damage}), "utf-8")
    with pytest.raises(TwinError, match="is damaged"):
        TwinRecord.load(path.parent)


@given(
    st.builds(
        Settings,
        k=st.integers(0, 50),
        window=st.integers(1, 50),
        traces=st.sampled_from(["none", "backward", "recon"]),
        reasons=st.booleans(),
        measured=st.none()
        | st.dictionaries(st.text(max_size=5), st.none() | st.floats(-9, 9) | st.text(max_size=5), min_size=1),
    )
)
@examples(max_examples=40)
def test_settings_round_trip(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> None:
    folder = tmp_path_factory.mktemp("record")
    asked = TwinRecord(
        name="x",
        persona=Persona("Ann"),
        recipe=recipe(method="none"),
        state="complete",
        learned_at="2024",
        dated=True,
        corpus_ends=1.0,
        corpus=(),
        validation=(),
        test=(),
        other_speaker=None,
        versions={},
        settings=settings,
    )
    asked.save(folder)
    assert TwinRecord.load(folder) == asked


# Settings of a twin ---------------------------------------------------------------------------------------------------


def prompts_and_reply(name: str, settings: Settings) -> tuple[list[str], Any]:
    """Return the prompts of one turn of a twin with these settings, and its reply."""
    chat = FunctionChatModel(reply=lambda prompt, _: "I wonder" if prompt.endswith("thinking:") else "tomorrow please")
    with SimulatedUser.load(name, model=ChatModel("telling", chat, "transcript"), settings=settings) as user:
        answer = asyncio.run(user.arespond(WHICH_DAY))
    return chat.prompts, answer


def test_without_traces_prompts_have_none_but_the_reply_lists_them(twin: str) -> None:
    prompts, answer = prompts_and_reply(twin, Settings(k=4, window=6, traces="none", reasons=False))
    assert not any("thinking" in prompt or SELECTED in prompt or FIRST in prompt for prompt in prompts)
    assert len(prompts) == 1
    assert {row.triple.reasoning for row in answer.recalled} == {SELECTED}


@pytest.mark.parametrize("traces", ["none", "backward", "recon"])
def test_settings_with_traces_and_without_recall_the_same_pairs(twin: str, traces: Any) -> None:
    with TripleStore(existing_twin(twin), FakeEmbedder(), create=False) as store:
        kept = next(t.id for t in store.triples() if t.pair.action.startswith("no thats all"))
        store.set_traces([replace(t, reasoning=None, score=None, provenance=None) for t in store.triples() if t.id != kept])
    _, answer = prompts_and_reply(twin, Settings(k=4, window=6, traces=traces, reasons=False))
    assert [row.triple.id == kept for row in answer.recalled] == [False, False, False, True]


def test_backward_shows_the_first_proposals(twin: str) -> None:
    prompts, answer = prompts_and_reply(twin, Settings(k=4, window=6, traces="backward", reasons=False))
    assert prompts[0].count(f"(Me thinking: {FIRST})") == 4
    assert SELECTED not in prompts[0]
    assert {row.triple.reasoning for row in answer.recalled} == {FIRST}


def test_recon_shows_the_selected_traces(twin: str) -> None:
    prompts, _ = prompts_and_reply(twin, Settings(k=4, window=6, traces="recon", reasons=False))
    assert prompts[0].count(f"(Me thinking: {SELECTED})") == 4
    assert FIRST not in prompts[0]


@pytest.mark.parametrize(("reasons", "thought"), [(False, ""), (True, "I wonder")])
def test_reasoning_is_sampled_only_if_the_settings_say_so(twin: str, reasons: bool, thought: str) -> None:
    prompts, answer = prompts_and_reply(twin, Settings(k=4, window=6, traces="recon", reasons=reasons))
    assert answer.reasoning == thought
    assert len(prompts) == 1 + reasons
    assert ("thinking" in present_context(prompts[-1])) is reasons


@pytest.mark.parametrize(("k", "window"), [(1, 1), (4, 2), (8, 3)])
def test_prompts_hold_k_pairs_and_window_turns(twin: str, k: int, window: int) -> None:
    [prompt], answer = prompts_and_reply(twin, Settings(k=k, window=window, traces="recon", reasons=False))
    assert count_recalled(prompt) == len(answer.recalled) == k
    assert len(present_context(prompt).splitlines()) == window + 1


def test_an_instruction_model_gets_the_same_content(twin: str) -> None:
    for settings, shown in (
        (Settings(k=2, window=6, traces="none", reasons=False), ""),
        (Settings(k=2, window=6, traces="backward", reasons=True), FIRST),
    ):
        model, chat = function_model(lambda *_: "tomorrow please", "instruction")
        with SimulatedUser.load(twin, model=model, settings=settings) as user:
            asyncio.run(user.arespond(WHICH_DAY))
        assert len(chat.prompts) == 1 + settings.reasons
        assert all(shown in prompt and SELECTED not in prompt for prompt in chat.prompts)


@pytest.mark.parametrize(
    ("traces", "arm", "with_thought"),
    [("none", "recalled_pairs", 0), ("backward", "recon", 12), ("recon", "recon", 12)],
)
def test_an_evaluation_names_the_twins_arm(twin: str, traces: Any, arm: str, with_thought: int) -> None:
    model, chat = function_model(lambda prompt, _: "I wonder" if prompt.endswith("thinking:") else "fine")
    scorer, folder = ScorerBy(lambda *_: -1.0), existing_twin(twin)
    settings = Settings(k=4, window=2, traces=traces, reasons=traces != "none")
    with SimulatedUser.load(twin, model=model, settings=settings) as user:
        result = asyncio.run(evaluate(user, scorer, FakeEmbedder(), folder=folder, config=ReplayConfig(generate=2)))
    assert (result["twin_arm"], result["k"]) == (arm, 4)
    assert sum(prompt.endswith("thinking:") for prompt in chat.prompts) == with_thought
    shown = [prompt for prompt, _ in scorer.items[4::5]]
    assert all((FIRST if traces == "backward" else SELECTED) in prompt for prompt in shown)
    lines = 1 + 2 + bool(with_thought) + 1  # the goal, two turns, the twin's own trace, the action
    assert max(len(present_context(prompt).splitlines()) for prompt in shown) == lines
    assert all(("(Me thinking: I wonder)" in present_context(prompt)) is bool(with_thought) for prompt in shown)


def test_a_twin_that_was_never_tuned_is_measured_with_its_traces(twin: str) -> None:
    with SimulatedUser.load(twin, model=scripted("hi")) as user:
        result = asyncio.run(
            evaluate(user, FakeScorer(), FakeEmbedder(), folder=existing_twin(twin), config=ReplayConfig(generate=0))
        )
    assert (result["twin_arm"], result["k"]) == ("recon", 8)
