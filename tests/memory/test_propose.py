"""memory/recon/propose.py: the prompts of each mode, and the parsing of completions."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import function_model, scripted
from usertwin.memory import ChatModel
from usertwin.memory.models.chat import Ledger, Price, PromptStyle, Usage
from usertwin.memory.models.completion_cache import CompletionCache
from usertwin.memory.recon.guards import rejection_reason
from usertwin.memory.recon.propose import (
    CONTEXT_TURNS,
    MALFORMED,
    PROPOSAL_MODES,
    ProposalMode,
    clauses_of,
    clean_line,
    in_first_person,
    paraphrase,
    proposal_prompt,
    proposal_template,
    propose,
)
from usertwin.memory.text.transcript import escaped_line
from usertwin.personas import ModelError, Pair, Turn, UsageError
from usertwin.simulator.backends.scripted import ScriptedChatModel

ACTION = "the early train to Rome please"
GOAL = "You want to see the sea."
PAIR = Pair(
    speaker="Ann",
    context=(Turn("Bob", "agent", "Hello there"), Turn("Ann", "user", "hi"), Turn("Bob", "agent", "When do you want to go?")),
    action=ACTION,
    goal=GOAL,
    conversation_id="talk",
    position=3,
    when=1.0,
)
MOMENT = "Them: Hello there\nMe: hi\nThem: When do you want to go?"
LENSES = ("how I am by nature", "what I value", "how I take the world to be")
STYLES: tuple[PromptStyle, ...] = ("transcript", "instruction")
OBJECT = {"noticed": "I saw a choice.", "felt": "I was calm", "wanted": "to save  time!", "decided": "to keep it short?"}


class Recording(ScriptedChatModel):
    """A scripted model that also records the options of each call."""

    options: list[dict[str, Any]] = []  # noqa: RUF012 - a pydantic field, copied for each model

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> Any:
        self.options.append({"stop": stop, **options})
        return super()._generate(messages, stop, run_manager, **options)


def instructed(*answers: str) -> ChatModel:
    return replace(scripted(*answers), style="instruction")


def traces(model: ChatModel, mode: ProposalMode = "backward", n: int = 1, pair: Pair = PAIR, **options: Any) -> list[str]:
    return asyncio.run(propose(model, pair, "Ann Smith", proposal_mode=mode, n=n, seed=0, **options))


def prompts_of(model: ChatModel) -> list[str]:
    assert isinstance(model.chat, ScriptedChatModel)
    return model.chat.prompts


def prompt_of(style: PromptStyle, mode: ProposalMode, pair: Pair = PAIR, **facts: Any) -> str:
    model = replace(scripted("felt calm"), style=style, **facts)
    traces(model, mode, pair=pair)
    (prompt,) = prompts_of(model)
    return prompt


# Prompts ------------------------------------------------------------------------------------------------------------


def test_there_are_four_proposal_modes() -> None:
    assert PROPOSAL_MODES == ("backward", "forward", "scaffolded", "search")
    model = scripted("felt calm")
    with pytest.raises(
        UsageError, match='the proposal mode is "sideways"; it must be one of backward, forward, scaffolded, search'
    ):
        traces(model, "sideways")  # pyright: ignore[reportArgumentType]
    assert prompts_of(model) == []


def test_transcript_prompt_ends_with_pair_action_and_opening_of_a_note() -> None:
    opening, end = prompt_of("transcript", "backward").rsplit("\n\n", 1)
    assert end == f"{MOMENT}\nMe: {ACTION}\nBefore I wrote that, I"
    assert opening == proposal_template(scripted()).text.rsplit("\n\n", 1)[0]


def test_a_forward_transcript_ends_before_the_action_and_tells_the_goal() -> None:
    end = prompt_of("transcript", "forward").rsplit("\n\n", 1)[1]
    assert end == f"(My goal: {GOAL})\n{MOMENT}\nBefore I answered, I"


def test_a_scaffolded_transcript_begins_its_note_with_a_lens() -> None:
    end = prompt_of("transcript", "scaffolded").rsplit("\n\n", 1)[1]
    assert end == f"{MOMENT}\nMe: {ACTION}\nSeen by {LENSES[0]}, I"


@pytest.mark.parametrize("mode", PROPOSAL_MODES)
def test_examples_of_a_transcript_prompt_are_notes_on_other_pairs_with_the_same_opening(mode: ProposalMode) -> None:
    *examples, end = prompt_of("transcript", mode).split("\n\n")
    opening = end.splitlines()[-1]
    assert len(examples) == 4
    for example_ in examples:
        lines = example_.splitlines()
        assert {line.split(":")[0] for line in lines if ": " in line} == {"Them", "Me"}
        (note,) = [line for line in lines if not line.startswith(("Them: ", "Me: "))]
        assert note.startswith(opening.replace(LENSES[0], "") if mode != "scaffolded" else "Seen by ")


@pytest.mark.parametrize("style", STYLES)
def test_drafts_of_a_search_use_the_backward_prompt(style: PromptStyle) -> None:
    assert prompt_of(style, "search") == prompt_of(style, "backward")
    model = replace(scripted(), style=style)
    assert proposal_template(model, "search").version == proposal_template(model, "backward").version


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("mode", PROPOSAL_MODES)
def test_the_prompt_is_the_one_whose_version_is_stored(style: PromptStyle, mode: ProposalMode) -> None:
    text = proposal_template(replace(scripted(), style=style), mode).text
    assert prompt_of(style, mode).startswith(text.split("{{", maxsplit=1)[0])


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("mode", PROPOSAL_MODES)
def test_proposal_prompt_equals_the_sent_prompt(style: PromptStyle, mode: ProposalMode, structured: bool) -> None:
    lens = LENSES[0] if mode == "scaffolded" else ""
    expected = proposal_prompt(style, PAIR, "Ann Smith", mode, lens=lens, structured=structured)
    assert expected == prompt_of(style, mode, structured=structured)


@pytest.mark.parametrize("mode", PROPOSAL_MODES)
def test_instruction_prompt_has_name_context_and_goal(mode: ProposalMode) -> None:
    prompt = prompt_of("instruction", mode)
    for expected in ("Ann Smith", GOAL, MOMENT, "first person", "at most 60 words"):
        assert expected in prompt
    for wanted in ("notice", "fe", "want", "decide"):
        assert wanted in prompt
    assert (ACTION in prompt) == (mode != "forward")
    assert ("Do not quote or paraphrase the reply" in prompt) == (mode != "forward")
    assert ("Do not write the reply itself" in prompt) == (mode == "forward")
    assert not any(mark in prompt for mark in ("{{", "{%", "}}"))


@pytest.mark.parametrize("mode", PROPOSAL_MODES)
def test_instruction_prompt_of_a_first_turn_without_a_goal(mode: ProposalMode) -> None:
    prompt = prompt_of("instruction", mode, replace(PAIR, context=(), goal=""))
    assert "(Ann Smith speaks first.)" in prompt
    assert "What only" not in prompt


@pytest.mark.parametrize("mode", PROPOSAL_MODES)
def test_transcript_prompt_of_a_first_turn_without_a_goal(mode: ProposalMode) -> None:
    end = prompt_of("transcript", mode, replace(PAIR, context=(), goal="")).split("\n\n", 4)[-1].lstrip("\n")
    assert "Them:" not in end
    assert end.startswith("Before I answered, I" if mode == "forward" else f"Me: {ACTION}\n")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("mode", PROPOSAL_MODES)
def test_only_the_latest_turns_are_shown(style: PromptStyle, mode: ProposalMode) -> None:
    turns = tuple(Turn("Bob", "agent", f"turn number {number}.") for number in range(CONTEXT_TURNS + 1))
    prompt = prompt_of(style, mode, replace(PAIR, context=turns))
    assert "turn number 0." not in prompt
    assert "\nThem: turn number 1.\nThem: turn number 2.\n" in prompt


marks = st.text(min_size=1, max_size=30).map(lambda text: f"⟦{text}⟧")


@given(action=marks, goal=st.text(max_size=40), said=st.lists(st.text(max_size=40), max_size=6), style=st.sampled_from(STYLES))
def test_a_forward_prompt_never_has_the_action_in_it(action: str, goal: str, said: list[str], style: PromptStyle) -> None:
    turns = tuple(Turn("Bob", "agent", text.replace("⟦", "")) for text in said)
    pair = replace(PAIR, context=turns, goal=goal.replace("⟦", ""), action=action)
    assert "⟦" not in prompt_of(style, "forward", pair)
    assert prompt_of(style, "forward", pair) == prompt_of(
        style, "forward", replace(pair, action="other", ends_conversation=True)
    )
    assert "⟦" in prompt_of(style, "backward", pair)


@given(st.text(), st.text(), st.sampled_from(STYLES), st.sampled_from(PROPOSAL_MODES))
@example("{{ 1 + 1 }}", "{% include 'x' %}", "instruction", "backward")
def test_any_pair_fills_the_prompt_and_none_is_read_as_template_code(
    action: str, said: str, style: PromptStyle, mode: ProposalMode
) -> None:
    model = replace(scripted("felt calm"), style=style)
    pair = replace(PAIR, context=(Turn("Bob", "agent", said),), action=action, goal=said)
    assert traces(model, mode, pair=pair) == ["I felt calm" if style == "transcript" else "felt calm"]
    if mode != "forward":
        shown = escaped_line(action) if style == "transcript" else action
        assert " ".join(shown.split()) in " ".join(prompts_of(model)[0].split())


# Lenses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "shares"), [(0, []), (1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (4, [2, 1, 1]), (8, [3, 3, 2])])
def test_scaffolded_samples_are_distributed_over_the_lenses(n: int, shares: list[int]) -> None:
    model = scripted("felt calm")
    assert traces(model, "scaffolded", n) == ["I felt calm"] * n
    ends = [prompt.splitlines()[-1] for prompt in prompts_of(model)]
    assert [ends.count(f"Seen by {lens}, I") for lens in LENSES if any(lens in end for end in ends)] == shares


def test_instruction_prompt_has_a_lens_only_if_scaffolded() -> None:
    model = instructed("felt calm")
    traces(model, "scaffolded", 3)
    expected = [prompt.split("Explain it by ")[1].split(". Do not")[0] for prompt in prompts_of(model)]
    assert [part.split(" (")[0] for part in expected] == [
        "my personality",
        "what I value",
        "what I believe the world to be like",
    ]
    for mode in ("backward", "forward", "search"):
        assert "Explain it by" not in prompt_of("instruction", mode)


@pytest.mark.parametrize("mode", PROPOSAL_MODES)
def test_zero_traces_call_no_model(mode: ProposalMode) -> None:
    model = scripted("felt calm")
    assert traces(model, mode, 0) == []
    assert prompts_of(model) == []


# Parsing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "trace"),
    [
        ("  wanted the  sea \nThem: more", "I wanted the sea"),
        ("felt tired. I wanted to sle", "I felt tired."),
        ("felt tired, wanted tea, and was about", "I felt tired, wanted tea"),
        ("felt tired and was about", "I felt tired and was about"),
        ("felt tired , so", "I felt tired"),
        ("felt tired.", "I felt tired."),
        ("'m happy", "I'm happy"),
        ("’d rather sleep.", "I’d rather sleep."),
        ("'ve had enough, and", "I've had enough"),
        ("'quoted' words", "I 'quoted' words"),
        ("felt <action>take it</action> glad.", "I felt glad."),
        ("", ""),
        (" \t ", ""),
        (" \nfelt tired.", ""),
        ("<think>so many words", ""),
    ],
)
def test_a_continuation_is_one_line_in_the_first_person_without_the_clause_that_was_cut_off(written: str, trace: str) -> None:
    assert traces(scripted(written)) == [trace]


def test_an_instructed_model_may_write_several_lines_of_plain_words() -> None:
    assert traces(instructed("I wanted the sea\n\nand  was in a hurry, and")) == ["I wanted the sea and was in a hurry, and"]


@pytest.mark.parametrize(
    "around",
    [
        "{}",
        " \n{}\n",
        "```json\n{}\n```",
        "```\n{}\n```",
        "<think>{{ so many words }}</think>\n{}",
        "<reply>x</reply><think>y</think>{}",
    ],
)
def test_an_object_becomes_sentences_whatever_is_around_it(around: str) -> None:
    answer = around.replace("{}", json.dumps(OBJECT))
    assert traces(instructed(answer)) == ["I saw a choice. I was calm. to save time! to keep it short?"]


def test_a_field_without_text_is_left_out() -> None:
    assert traces(instructed(json.dumps(OBJECT | {"felt": " ", "noticed": "", "more": "x"}))) == [
        "to save time! to keep it short?"
    ]
    assert traces(instructed(json.dumps(dict.fromkeys(OBJECT, "")))) == [""]


def test_fields_of_other_names_are_read_if_all_are_text() -> None:
    assert traces(instructed('{"reasoning": "I was in a hurry"}')) == ["I was in a hurry."]
    assert traces(instructed('<think>{"felt": "x"}</think>{"reasoning": "I was calm."}')) == ["I was calm."]
    assert traces(instructed('{"reasoning": 3}')) == [MALFORMED]
    assert traces(instructed("{}")) == [MALFORMED]


@pytest.mark.parametrize(
    "answer",
    [
        "{",
        '{"noticed": "I saw',
        json.dumps({"noticed": "x", "felt": "y", "wanted": "z"}),
        json.dumps(OBJECT | {"felt": None}),
        json.dumps(OBJECT | {"felt": ["glad"]}),
        json.dumps(OBJECT | {"felt": 3}),
        json.dumps(OBJECT) + " I hope that helps.",
        '{"noticed": "a line\nbreak", "felt": "", "wanted": "", "decided": ""}',
        '{"noticed":' * 10_000,
        "{" + "[" * 10_000,
    ],
)
def test_a_broken_object_is_malformed_and_no_trace(answer: str) -> None:
    assert traces(instructed(answer)) == [MALFORMED]


@pytest.mark.parametrize("answer", ["", " \n\t\n ", "\u2028", "```\n```", "<think>never ended", "<action>take it</action>"])
@pytest.mark.parametrize("style", STYLES)
def test_empty_completion_is_an_empty_trace(answer: str, style: PromptStyle) -> None:
    assert traces(replace(scripted(answer), style=style), n=2) == ["", ""]
    assert traces(replace(scripted(), style=style)) == [""]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("mode", PROPOSAL_MODES)
def test_a_model_that_repeats_its_prompt_is_noticed(style: PromptStyle, mode: ProposalMode) -> None:
    model, _ = function_model(lambda prompt, _: prompt, style)
    examples = proposal_template(model, mode).text
    for trace in traces(model, mode, 3):
        assert rejection_reason(trace, PAIR, examples) in {"echoes_examples", "too_long", "quotes_action"}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("answer", ["word " * 10_000, "so, " * 10_000, "well. " * 10_000, "<a " * 10_000, "日" * 10_000])
def test_ten_thousand_tokens_come_back_as_one_line_that_is_too_long(style: PromptStyle, answer: str) -> None:
    (trace,) = traces(replace(scripted(answer), style=style))
    assert rejection_reason(trace, PAIR) == "too_long"
    assert len(trace.splitlines()) == 1


@given(st.text(), st.sampled_from(STYLES))
@example("'\n", "transcript")
@example("{\ud800", "instruction")
def test_any_completion_becomes_one_line(said: str, style: PromptStyle) -> None:
    (trace,) = traces(replace(scripted(said), style=style))
    assert len(trace.splitlines()) <= 1
    assert trace == trace.strip()


# Cleaning, parts -----------------------------------------------------------------------------------------------------

marked = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<Action>", "</action>", "<reply>", "```", "```json", "<b>", "\n", "\u2028", "a", " "]
    )
    | st.text(max_size=3)
).map("".join)


@given(st.text() | marked)
def test_clean_line_is_idempotent_and_without_markup(text: str) -> None:
    result = clean_line(text)
    assert len(result.splitlines()) <= 1
    assert result == " ".join(result.split()) == clean_line(result)
    assert "```" not in result
    assert not any(mark in result.casefold() for mark in ("<think>", "</think>", "<action>", "</action>", "<b>"))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("I <b>felt</b>\nglad", "I felt glad"),
        ("<THINK>no\nno</think> I felt glad <action>go</action><reply>go", "I felt glad"),
        ("```text\nI felt glad\n```", "I felt glad"),
        ("1 < 2 and 3 > 2, <3", "1 < 2 and 3 > 2, <3"),
    ],
)
def test_blocks_of_markup_go_and_words_stay(text: str, clean: str) -> None:
    assert clean_line(text) == clean


@given(st.text() | st.lists(st.sampled_from(["a", "b.", "c,", "d;", "!", "?", ".", " "])).map(" ".join))
def test_the_parts_of_a_tracejoin_back(text: str) -> None:
    trace = clean_line(text)
    assert " ".join(clauses_of(trace)) == trace
    assert all(clauses_of(trace))


def test_parts_are_clauses() -> None:
    assert clauses_of("I was calm, wanted tea; it was 3.5 o'clock! So") == [
        "I was calm,",
        "wanted tea;",
        "it was 3.5 o'clock!",
        "So",
    ]
    assert clauses_of("") == []


def test_only_a_clipped_verb_is_joined_to_the_person() -> None:
    expected = {"'m in": "I'm in", "’ll go": "I’ll go", "felt": "I felt", "'mad' he": "I 'mad' he", "'": "I '"}
    assert {text: in_first_person(text) for text in expected} == expected


# Options and cost ----------------------------------------------------------------------------------------------------


def test_transcript_stops_at_the_line_and_sends_no_schema() -> None:
    chat = Recording(answers=["felt calm"])
    traces(ChatModel("m", chat, "transcript", structured=True))
    (options,) = chat.options
    assert options["stop"] == ["\n"]
    assert options["max_tokens"] < 100
    assert "response_format" not in options


def test_schema_is_sent_only_to_a_structured_model() -> None:
    chat = Recording(answers=[json.dumps(OBJECT)])
    traces(ChatModel("m", chat, structured=True))
    traces(ChatModel("m", chat, structured=False))
    held, free = chat.options
    schema = held["response_format"]["json_schema"]["schema"]
    assert schema["required"] == list(schema["properties"]) == list(OBJECT)
    assert schema["additionalProperties"] is False
    assert "response_format" not in free
    assert 'the keys "noticed", "felt", "wanted" and "decided"' in chat.prompts[0]
    assert "JSON" not in chat.prompts[1]
    assert "Write only the reasons." in chat.prompts[1]


@pytest.mark.parametrize(("mode", "n"), [("backward", 3), ("forward", 2), ("scaffolded", 4), ("search", 1)])
def test_each_text_is_a_call_and_its_tokens_are_counted(mode: ProposalMode, n: int) -> None:
    model, ledger = replace(scripted("felt very calm"), price=Price(2.0, 100.0)), Ledger()
    traces(model, mode, n, ledger=ledger)
    read = sum(len(prompt.split()) for prompt in prompts_of(model))
    assert (ledger.calls, ledger.cache_hits) == (n, 0)
    assert ledger.usage == Usage(read, 0, 3 * n)
    assert ledger.dollars == pytest.approx((2 * read + 100 * 3 * n) / 1e6)


def test_cached_completions_are_reused(tmp_path: Any) -> None:
    answers = CompletionCache(tmp_path / "answers.sqlite")
    model, ledger = replace(scripted("felt calm", "felt tired", "felt bored"), cache=answers), Ledger()
    result = traces(model, n=2, ledger=ledger)
    assert traces(model, n=2, ledger=ledger) == result == ["I felt calm", "I felt tired"]
    assert (ledger.calls, ledger.cache_hits, len(prompts_of(model))) == (2, 2, 2)
    assert traces(model, "forward", ledger=ledger) == ["I felt bored"]
    assert (
        asyncio.run(propose(model, PAIR, "Ann Smith", n=2, seed=1, ledger=ledger)) == result
    )  # another seed is another request
    assert (ledger.calls, ledger.cache_hits) == (5, 2)
    answers.close()


def test_unknown_price_makes_the_cost_unknown() -> None:
    ledger = Ledger()
    traces(replace(scripted("felt calm"), price=Price(1.0, 1.0)), ledger=ledger)
    traces(scripted("felt calm"), ledger=ledger)
    assert (ledger.calls, ledger.dollars) == (2, None)


def test_seeds_reach_the_sampler_one_for_each_text() -> None:
    model, chat = function_model(lambda _, seed: f"was number {seed}")
    result = asyncio.run(propose(model, PAIR, "Ann", n=3, seed=40))
    assert result == ["I was number 40", "I was number 41", "I was number 42"]
    assert sorted(seed for _, seed in chat.requests) == [40, 41, 42]


def test_a_model_that_does_not_answer_is_named() -> None:
    def fail(prompt: str, seed: int) -> str:
        raise ConnectionError("nobody there")

    model, _ = function_model(fail)
    for mode in PROPOSAL_MODES:
        with pytest.raises(ModelError, match='"telling" did not answer: ConnectionError: nobody there'):
            traces(model, mode, 2)


# Paraphrase (control C2) ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_a_paraphrase_is_of_the_text_alone(style: PromptStyle) -> None:
    model, ledger = replace(scripted("the first <b>one</b> of the morning"), style=style), Ledger()
    text = "the early\ntrain {{ please }}"
    assert asyncio.run(paraphrase(model, text, seed=0, ledger=ledger)) == "the first one of the morning"
    (prompt,) = prompts_of(model)
    assert "the early train {{ please }}" in prompt
    assert ledger.calls == 1
    if style == "transcript":
        assert prompt.endswith("\n\nthe early train {{ please }}\nIn other words:")


def test_a_paraphrase_by_transcript_is_one_line_and_by_instruction_may_be_more() -> None:
    said = "one\ntwo"
    assert asyncio.run(paraphrase(scripted(said), "x", seed=0)) == "one"
    assert asyncio.run(paraphrase(instructed(said), "x", seed=0)) == "one two"
    assert asyncio.run(paraphrase(scripted(""), "x", seed=0)) == ""
