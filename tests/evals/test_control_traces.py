"""evals/traces/control_traces.py: each control is wrong in one way, and a planted case is decided correctly."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import fsum
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import FunctionChatModel, function_model
from usertwin.evals.traces.control_traces import ControlExperiment, estimated_calls, keywords, other_person_pairs
from usertwin.evals.tuning.tune import validation_pairs
from usertwin.memory import ChatModel, LikelihoodGain, Scorer, Synthesizer, Triple, TripleStore, TwinRecord, existing_twin
from usertwin.memory.models.chat import Ledger
from usertwin.memory.models.completion_cache import CompletionCache
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.guards import rejection_reason
from usertwin.memory.text.words import word_tokens
from usertwin.personas import ModelError, Pair, Turn, UsageError
from usertwin.simulator import SimulatedUser

pytestmark = pytest.mark.usefixtures("two_clusters_suffice")

WORDS = ("calm", "proud", "shy", "bold", "tense", "keen", "glum", "warm", "cool", "hurt", "glad", "stern", "wary", "mild")
#: The end of each of the three prompts.
BACKWARD, FORWARD, PARAPHRASE = "Before I wrote that, I", "Before I answered, I", "In other words:"


def words_for(text: str, count: int = 3) -> list[str]:
    """Return words that identify a text and occur in none."""
    rng = random.Random(crc32(text.encode()))
    return rng.sample(WORDS, count)


def last_block(prompt: str) -> str:
    """Return the last block of a prompt without its final line."""
    return prompt.split("\n\n")[-1].rsplit("\n", 1)[0]


def action_of(prompt: str) -> str:
    """Return the action in the last block of a prompt."""
    return last_block(prompt).rsplit("Me: ", 1)[1]


def writing(prompt: str, seed: int) -> str:
    """Write a thought that identifies the action and the number of the proposal; another one without the action."""
    if prompt.endswith(PARAPHRASE):
        return f"rather {' '.join(words_for(prompt))}"
    first, second, third = words_for(action_of(prompt) if prompt.endswith(BACKWARD) else f"unseen {last_block(prompt)}")
    return f"felt {first} at heart and {second} in part{' too' * (seed % 2)} and wanted to stay {third} in it all."


def pairs_of(count: int = 6) -> list[Pair]:
    """Return different held-out pairs of Ann, three in each conversation."""
    return [
        Pair(speaker="Ann", context=(Turn("desk", "agent", f"What about lamp {i}?"),),
             action=f"lamp {i} broke on its shelf, sir", goal="", conversation_id=f"new {i // 3}", position=i % 3, when=9e9)
        for i in range(count)
    ]  # fmt: skip


def others_of(count: int = 4) -> list[Pair]:
    """Return pairs of Bob."""
    return [
        Pair(
            speaker="Bob",
            context=(Turn("desk", "agent", f"And {i}?"),),
            action=f"I demand a refund for order {i}!!",
            goal="",
            conversation_id=f"bob {i}",
            position=1,
            when=1.0,
        )
        for i in range(count)
    ]


class Run:
    """A run of the controls on Ann's twin, with the prompts of the model."""

    def __init__(
        self,
        pairs: Sequence[Pair] | None = None,
        others: Sequence[Pair] | None = None,
        *,
        reply: Callable[[str, int], str] = writing,
        scorer: Scorer | None = None,
        model: ChatModel | None = None,
        seed: int = 0,
        concurrency: int = 1,
        **more: Any,
    ) -> None:
        self.pairs = pairs_of() if pairs is None else pairs
        self.others = others_of() if others is None else others
        built, self.chat = function_model(reply)
        model, scorer, embedder = model or built, scorer or FakeScorer(), FakeEmbedder()
        self.ledger = Ledger()
        synthesizer = Synthesizer(
            method="recon",
            model=model,
            fidelity=LikelihoodGain(scorer),
            scorer=scorer,
            embedder=embedder,
            **({"candidates": 3} | more),
        )
        controls = ControlExperiment(
            synthesizer=synthesizer,
            model=model,
            scorer=scorer,
            embedder=embedder,
            seed=seed,
            ledger=self.ledger,
            concurrency=concurrency,
        )
        self.progress: list[tuple[str, int, int]] = []
        with TripleStore(existing_twin("ann"), embedder, create=False) as store:
            self.distractors = Distractors([triple.pair for triple in store.triples()], embedder)
            self.result = asyncio.run(
                controls.measure(self.pairs, self.others, store, name="Ann", progress=lambda *now: self.progress.append(now))
            )
        self.traces = [
            {name: scores["trace"] for name, scores in turn["traces"].items()} for turn in self.result["turn_details"]
        ]

    def prompts_ending(self, ending: str) -> list[str]:
        """The prompts of one kind."""
        return [prompt for prompt in self.chat.prompts if prompt.endswith(ending)]


@pytest.fixture
def run(ann: str) -> Run:
    """An ordinary run."""
    return Run()


# What each control is --------------------------------------------------------------------------------------------------


def test_every_control_is_written_for_every_pair(run: Run) -> None:
    names = {"own", "filler", "copy", "paraphrase", "shuffled", "other", "bag", "keywords", "swapped", "forward"}
    assert [set(traces) for traces in run.traces] == [names] * 6
    assert {row["n"] for row in run.result["controls"].values()} == {6}


def test_the_own_trace_is_the_first_proposal_that_no_guard_rejects(ann: str) -> None:
    """Not the best-scored one: the last of the three would be likeliest, and the first quotes."""

    def reply(prompt: str, seed: int) -> str:
        if not prompt.endswith(BACKWARD):
            return writing(prompt, seed)
        return (f"said {action_of(prompt)}", "felt warm", f"felt {' '.join(action_of(prompt).split()[:2])} coming")[seed % 3]

    assert {traces["own"] for traces in Run(reply=reply).traces} == {"I felt warm"}


def test_pair_without_a_passing_trace_has_only_the_controls_that_need_none(ann: str) -> None:
    def reply(prompt: str, seed: int) -> str:
        return "" if prompt.endswith(BACKWARD) and "lamp 4" in prompt else writing(prompt, seed)

    experiment = Run(reply=reply)
    assert "own" not in experiment.traces[4]
    assert not {"bag", "keywords", "filler"} & set(experiment.traces[4])
    assert {"copy", "paraphrase", "forward", "other", "shuffled"} <= set(experiment.traces[4])
    assert experiment.result["controls"]["own"]["n"] == 5
    assert experiment.result["own_minus"]["copy"]["n"] == 5


def test_filler_is_as_many_words_as_the_own_trace_and_none_of_it(run: Run) -> None:
    for traces in run.traces:
        assert len(traces["filler"].split()) == len(traces["own"].split())
        assert not {*WORDS} & {*word_tokens(traces["filler"])}


@pytest.mark.parametrize("length", [2, 19, 20, 21, 45, 90])
def test_filler_is_as_many_words_however_many_they_are(ann: str, length: int) -> None:
    def reply(prompt: str, seed: int) -> str:
        return " ".join(["mild"] * (length - 1)) if prompt.endswith(BACKWARD) else writing(prompt, seed)

    for traces in Run(pairs_of(2), [], reply=reply).traces:
        assert len(traces["filler"].split()) == len(traces["own"].split()) == length


def test_copy_is_the_action_and_a_guard_rejects_it_every_time(run: Run) -> None:
    for pair, traces, turn in zip(run.pairs, run.traces, run.result["turn_details"], strict=True):
        assert traces["copy"] == f"I would say: {pair.action}"
        assert turn["traces"]["copy"]["rejected"] == rejection_reason(traces["copy"], pair) == "quotes_action"
    row = run.result["controls"]["copy"]
    assert (row["rejected"], row["reasons"], row["passing_gain"]) == (6, {"quotes_action": 6}, None)


def test_copy_has_the_highest_unguarded_gain(run: Run) -> None:
    rows = run.result["controls"]
    assert max(rows, key=lambda name: rows[name]["gain"]["value"]) == "copy"
    assert rows["copy"]["guarded_gain"]["value"] < rows["copy"]["gain"]["value"] / 2


def test_the_paraphrase_is_what_the_model_makes_of_the_action_alone(run: Run) -> None:
    assert [prompt.rsplit("\n", 2)[-2] for prompt in run.prompts_ending(PARAPHRASE)] == [pair.action for pair in run.pairs]
    for prompt, traces in zip(run.prompts_ending(PARAPHRASE), run.traces, strict=True):
        assert traces["paraphrase"] == writing(prompt, 0)


def test_shuffled_is_the_own_trace_of_another_conversation(run: Run) -> None:
    for pair, traces in zip(run.pairs, run.traces, strict=True):
        elsewhere = [
            turn["own"]
            for other_pair, turn in zip(run.pairs, run.traces, strict=True)
            if other_pair.conversation_id != pair.conversation_id
        ]
        assert traces["shuffled"] in elsewhere
        assert traces["shuffled"] != traces["own"]


def test_in_a_single_conversation_nothing_can_be_shuffled(ann: str) -> None:
    experiment = Run(pairs_of(3))
    assert not any("shuffled" in traces for traces in experiment.traces)
    assert experiment.result["decision"]["conditions"]["own beats shuffled"] is None


def test_other_is_a_trace_that_was_written_for_the_other_person(run: Run) -> None:
    bobs = {f"I {writing(prompt, 0)}" for prompt in run.prompts_ending(BACKWARD) if "refund" in last_block(prompt)}
    assert len(bobs) == 4
    assert {traces["other"] for traces in run.traces} == bobs
    assert not bobs & {traces["own"] for traces in run.traces}


def test_without_another_person_that_control_is_left_out(ann: str) -> None:
    experiment = Run(others=[])
    assert "other" not in experiment.result["controls"]
    assert experiment.result["decision"]["conditions"]["own beats other"] is None
    assert experiment.result["decision"]["more_than_leakage"] is None


def test_the_bag_holds_the_words_of_the_own_trace_in_another_order(run: Run) -> None:
    for traces in run.traces:
        assert Counter(traces["bag"].split()) == Counter(traces["own"].split())
    assert sum(traces["bag"] == traces["own"] for traces in run.traces) == 0


def test_keywords_are_telling_words_of_the_own_trace(run: Run) -> None:
    for pair, traces in zip(run.pairs, run.traces, strict=True):
        listed = traces["keywords"].split(", ")
        assert set(words_for(pair.action)) <= set(listed)
        assert set(listed) <= set(word_tokens(traces["own"]))
        assert 0 < len(listed) <= 6


def test_swapped_is_written_for_another_action_in_the_same_context(run: Run) -> None:
    for pair, traces, turn in zip(run.pairs, run.traces, run.result["turn_details"], strict=True):
        assert turn["other_action"] == run.distractors.nearest(pair, 1)[0] != pair.action
        [prompt, *_] = [
            prompt for prompt in run.prompts_ending(BACKWARD)
            if action_of(prompt) == turn["other_action"] and pair.context[-1].text in last_block(prompt)
        ]  # fmt: skip
        assert pair.action not in last_block(prompt)
        assert traces["swapped"] == f"I {writing(prompt, 0)}"


def test_the_contrast_is_how_much_each_trace_prefers_its_own_action(run: Run) -> None:
    scorer = FakeScorer()
    for pair, traces, turn in zip(run.pairs, run.traces, run.result["turn_details"], strict=True):
        both = [traces["own"], traces["swapped"]]
        real, other_pair = (
            asyncio.run(LikelihoodGain(scorer, guarded=False).score(replace(pair, action=action), both))
            for action in (pair.action, turn["other_action"])
        )
        expected = (real[0].value - real[1].value) - (other_pair[0].value - other_pair[1].value)
        assert turn["contrast"] == pytest.approx(expected)


def test_the_forward_trace_was_written_without_having_seen_the_action(run: Run) -> None:
    prompts = run.prompts_ending(FORWARD)
    assert len(prompts) == 6
    for pair, prompt, traces in zip(run.pairs, prompts, run.traces, strict=True):
        assert last_block(prompt) == f"Them: {pair.context[-1].text}"
        assert "broke" not in prompt
        assert traces["forward"] == f"I {writing(prompt, 0)}"


def test_each_trace_is_scored_as_traces_are(run: Run) -> None:
    for pair, traces, turn in zip(run.pairs, run.traces, run.result["turn_details"], strict=True):
        for guarded in (True, False):
            scores = asyncio.run(LikelihoodGain(FakeScorer(), guarded=guarded).score(pair, list(traces.values())))
            values = [turn["traces"][name]["guarded_gain" if guarded else "gain"] for name in traces]
            assert values == pytest.approx([score.value for score in scores])


@settings(max_examples=60)
@given(st.text(max_size=80), st.lists(st.text(max_size=40), max_size=4))
def test_keywords_are_at_most_six_words_of_the_text_each_once_in_its_order(text: str, corpus: list[str]) -> None:
    experiment, words = keywords(text, corpus), word_tokens(text)
    assert len(experiment) <= 6
    assert sorted(set(experiment), key=words.index) == experiment


def test_keywords_are_the_words_that_other_texts_do_not_have() -> None:
    corpus = ["felt tired after work and wanted quiet"] * 9
    text = "felt tired after work and wanted quiet, missing grandmother, violin, harbour, lantern, saffron and cobalt"
    assert keywords(text, corpus) == ["missing", "grandmother", "violin", "harbour", "lantern", "saffron"]
    assert keywords(f"{text} {text}, cobalt", corpus)[-1] == "cobalt"  # the word that is there most
    assert keywords("and so it is", corpus) == []


# What it takes ---------------------------------------------------------------------------------------------------------


def test_the_cost_counts_every_text(run: Run) -> None:
    assert run.result["cost"]["calls"] == run.ledger.calls == len(run.chat.requests)
    assert run.result["cost"]["repeated"] == 0
    # Three proposals, one forward, one paraphrase and two for the other action; two for Bob's; the rest is downstream.
    assert len(run.prompts_ending(FORWARD)) == len(run.prompts_ending(PARAPHRASE)) == 6
    assert len([prompt for prompt in run.prompts_ending(BACKWARD) if "lamp" in last_block(prompt)]) == 6 * (3 + 2)
    assert len([prompt for prompt in run.prompts_ending(BACKWARD) if "refund" in last_block(prompt)]) == 4 * 2


def test_calls_are_estimated_in_advance(ann: str) -> None:
    class Counting(FakeScorer):
        def __init__(self) -> None:
            self.items: set[tuple[str, str]] = set()

        def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
            self.items |= set(items)
            return super().score(items)

    scorer = Counting()
    experiment = Run(scorer=scorer)
    texts, scored = estimated_calls(6, 4, 3)
    assert texts == len(experiment.chat.requests)
    assert scored / 2 < len(scorer.items) <= scored  # the twin's memory has fewer other actions than could be chosen from
    assert estimated_calls(6, 99, 3) == estimated_calls(6, 6, 3)


def test_second_run_with_a_full_cache_samples_nothing(ann: str) -> None:
    cache = CompletionCache(existing_twin(ann) / "answers.sqlite")
    chats = [FunctionChatModel(reply=writing) for _ in range(2)]
    first, second = (Run(model=ChatModel("telling", chat, "transcript", cache=cache)) for chat in chats)
    cache.close()
    assert len(chats[0].requests) == first.result["cost"]["calls"] > 0
    assert chats[1].requests == []
    assert (second.result["cost"]["calls"], second.result["cost"]["repeated"]) == (
        0, first.result["cost"]["calls"] + first.result["cost"]["repeated"],
    )  # fmt: skip
    assert {**first.result, "cost": None} == {**second.result, "cost": None}


def test_concurrency_does_not_change_the_result(ann: str) -> None:
    turn, four = Run(), Run(concurrency=4)
    assert turn.result == four.result


def test_result_depends_on_the_seed(ann: str) -> None:
    first, again, other_pair = Run(seed=1), Run(seed=1), Run(seed=3)
    assert first.result == again.result
    assert [traces["own"] for traces in first.traces] == [traces["own"] for traces in other_pair.traces]  # by this model
    assert [traces["bag"] for traces in first.traces] != [traces["bag"] for traces in other_pair.traces]


def test_progress_reaches_the_end_of_each_stage(run: Run) -> None:
    assert [now for now in run.progress if now[1] == now[2]] == [
        ("control traces", 10, 10), ("control scores", 6, 6), ("downstream", 6, 6),
    ]  # fmt: skip
    assert run.progress == sorted(
        run.progress, key=lambda now: (["control traces", "control scores", "downstream"].index(now[0]), now[1])
    )


def test_too_few_pairs_or_an_incomplete_synthesizer_are_refused_before_any_call(ann: str) -> None:
    model, chat = function_model(writing)
    with pytest.raises(UsageError, match="there are 1 held-out turns of the person; controls need at least 2"):
        Run(pairs_of(1), model=model)
    with pytest.raises(UsageError, match="0 candidates"):
        Run(model=model, candidates=0)
    assert chat.requests == []


def test_a_model_that_fails_is_a_model_error(ann: str) -> None:
    def reply(prompt: str, seed: int) -> str:
        raise OSError("no route to host")

    with pytest.raises(ModelError, match='"telling" did not answer: OSError: no route to host'):
        Run(reply=reply)


def test_a_model_that_writes_nothing_leaves_only_the_copy(ann: str) -> None:
    experiment = Run(reply=lambda *_: "")
    assert list(experiment.result["controls"]) == ["copy"]
    assert experiment.result["decision"]["more_than_leakage"] is None
    assert experiment.result["downstream_turns"] == 0


# The pairs -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("repeats_count")
def test_pairs_are_validation_turns_and_never_test_turns(ann: str) -> None:
    folder = existing_twin(ann)
    record = TwinRecord.load(folder)
    with SimulatedUser.load(ann, model=function_model(writing)[0]) as user:
        experiment = validation_pairs(user, folder, 100)
        assert {pair.conversation_id for pair in experiment} == set(record.validation)
        assert not {pair.conversation_id for pair in experiment} & {*record.test, *record.corpus}
        assert {pair.speaker for pair in experiment} == {"Ann"}
        assert len(experiment) == 6
        assert len(validation_pairs(user, folder, 4)) == 4


def test_other_pairs_are_of_the_person_that_the_twin_is_compared_with(ann: str) -> None:
    folder = existing_twin(ann)
    with SimulatedUser.load(ann, model=function_model(writing)[0]) as user:
        experiment = other_person_pairs(user, folder, 5)
        assert len(experiment) == 5
        assert {pair.speaker for pair in experiment} == {"Bob"}
        assert not any(pair.abandoned for pair in experiment)
        user.record = replace(user.record, other_speaker=None)
        assert other_person_pairs(user, folder, 5) == []


# Downstream ------------------------------------------------------------------------------------------------------------


def test_benefit_is_measured_on_a_later_pair_against_no_trace(ann: str) -> None:
    """Each recalled pair is shown alone; a proposal with a certain word saves one bit per character."""

    class Too:
        name = "too"

        def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
            experiment: list[Likelihood] = []
            for prompt, line in items:
                shown = prompt.split("\n\n")
                won = len(shown) == 2 and " in part too and" in shown[0]
                experiment.append(Likelihood((len(line) - 1) * (-2 + won) * 0.6931471805599453, 1))
            return experiment

    experiment = Run(scorer=Too()).result
    assert experiment["downstream_turns"] == 6
    # Of the three proposals the second one has the word; all score alike, so that the first is chosen.
    assert experiment["downstream"]["random"]["value"] == pytest.approx(1 / 3)
    assert experiment["downstream"]["recon"]["value"] == experiment["downstream"]["backward"]["value"] == pytest.approx(0)


def test_no_later_pair_is_recalled_downstream(ann: str) -> None:
    """The memory holds the same pairs at a later time; they would be the most similar ones."""
    later = [replace(pair, conversation_id=f"later {i}", when=9.9e9) for i, pair in enumerate(pairs_of())]
    with TripleStore(existing_twin(ann), FakeEmbedder(), create=False) as store:
        store.add([Triple(pair) for pair in later])
    experiment = Run()
    assert experiment.result["downstream_turns"] == 6
    drafts = [prompt for prompt in experiment.prompts_ending(BACKWARD) if "lamp" in last_block(prompt)]
    assert len(drafts) == 6 * (3 + 2)  # for the pairs themselves only


# A planted case --------------------------------------------------------------------------------------------------------

DEGREES = ("hardly", "barely", "mildly", "fairly", "deeply")


def reason(action: str, degree: str) -> str:
    """Return a thought that supports an action by a degree; only this word order counts."""
    first, second, third = words_for(action)
    return f"was {degree} {first} then {second} and {third} about the whole of it"


class Planted:
    """A reader that knows the person: a reason for an action makes it likelier, by its degree, and the others less so.

    A word of the thought that the action has makes it likelier too, by far: without guards a copy is best. At a later moment a
    shown reason helps by its degree, whatever it is for.
    """

    name = "planted"

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`."""
        return [self._one(prompt, continuation) for prompt, continuation in items]

    def _one(self, prompt: str, line: str) -> Likelihood:
        *past, present = prompt.split("\n\n")
        thoughts = re.findall(r"\(Me thinking: (.*)\)", present)
        first, second, third = words_for(line.strip())
        help_ = 0.0
        for thought in thoughts:
            experiment = re.search(r"was (\w+) (\w+) then (\w+) and (\w+) about", thought)
            if experiment:
                fits = experiment.groups()[1:] == (first, second, third)
                help_ += 0.3 * (1 + DEGREES.index(experiment[1])) if fits else -0.2
        help_ += fsum(0.05 * DEGREES.index(turn) for text in past for turn in re.findall(rf"was ({'|'.join(DEGREES)})", text))
        said = {*word_tokens(" ".join(thoughts))}
        tokens = list(re.finditer(r"\s*\S+|\s+", line))
        each = [help_ - 8 + 4 * bool({*word_tokens(token[0])} & said) for token in tokens]
        return Likelihood(fsum(each), len(each), tuple(each), tuple(token.end() for token in tokens))


def reasoning(prompt: str, seed: int) -> str:
    """Write as a good model of the planted person: another degree for each sample, in an order drawn from the pair."""
    if prompt.endswith(PARAPHRASE):
        return "something else altogether"
    if prompt.endswith(FORWARD):
        return "was about to reply"
    order = random.Random(crc32(last_block(prompt).encode())).sample(DEGREES, 3)
    return reason(action_of(prompt), order[seed % 3])


def test_a_planted_reason_is_more_than_leakage_by_every_condition(ann: str) -> None:
    experiment = Run(pairs_of(12), reply=reasoning, scorer=Planted()).result
    assert experiment["decision"]["conditions"] == dict.fromkeys(experiment["decision"]["conditions"], True)
    assert experiment["decision"]["more_than_leakage"] is True
    rows = experiment["controls"]
    assert max(rows, key=lambda name: rows[name]["gain"]["value"]) == "copy"
    guarded = {name: row["passing_gain"]["value"] for name, row in rows.items() if row["passing_gain"] is not None}
    assert max(guarded, key=lambda name: guarded[name]) == "own"
    assert "copy" not in guarded


def test_gain_by_shared_words_alone_is_not_more_than_leakage(ann: str) -> None:
    """The same model and traces, under a scorer that rewards nothing but repeated words."""
    experiment = Run(pairs_of(12), reply=reasoning, scorer=FakeScorer()).result
    assert experiment["decision"]["more_than_leakage"] is not True
    assert experiment["decision"]["conditions"]["own beats bag"] is not True
    assert experiment["controls"]["copy"]["gain"]["value"] > experiment["controls"]["own"]["gain"]["value"] + 1
