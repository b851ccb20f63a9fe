"""The twin: its answers, its prompts, and its LangGraph graph."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NotRequired, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import MemorySaver
from langgraph.graph import END, START, StateGraph
from pydantic import PrivateAttr

from conftest import recipe, scripted, small_conversation
from usertwin.memory import ChatModel, Settings, Triple, alearn
from usertwin.memory.models.chat import Usage
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.personas import ChatLog, LogError, ModelError, Pair, Persona, Turn, TwinError
from usertwin.simulator import Answer, SimulatedUser
from usertwin.simulator.backends.scripted import ScriptedChatModel
from usertwin.simulator.prompts import act_messages, prompt_versions, reason_messages
from usertwin.simulator.turn_text import is_repetitive

HELLO = [{"role": "assistant", "content": "Hello, what can I do for you?"}]
WHICH_DAY = [
    *HELLO,
    {"role": "user", "content": "hi, the weather in Oslo please"},
    {"role": "assistant", "content": "Which day do you mean for Oslo?"},
]


SUNNY = "It will be sunny. Anything else?"


class Recording(ScriptedChatModel):
    """A scripted model that records the options of its calls."""

    _calls: list[dict[str, Any]] = PrivateAttr(default_factory=list)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        self._calls.append(kwargs | {"stop": stop})
        return super()._generate(messages, stop, run_manager, **kwargs)


def recording(*answers: str, style: Any = "transcript", sampling: bool = True) -> ChatModel:
    return ChatModel("scripted:recording", Recording(answers=list(answers)), style, supports_sampling_params=sampling)


def calls(user: SimulatedUser) -> list[dict[str, Any]]:
    """Return the options of the model's calls."""
    return user.model.chat._calls  # pyright: ignore


def prompts(user: SimulatedUser) -> list[str]:
    """Return the model's prompts."""
    return user.model.chat.prompts  # pyright: ignore


@pytest.fixture
def user(ann: str) -> Iterator[SimulatedUser]:
    """Ann with one scripted reasoning and one turn."""
    with SimulatedUser.load(ann, model=recording("wants it tomorrow", "tomorrow please")) as user:
        yield user


# Answers ----------------------------------------------------------------------------------------------------------------


def test_an_answer_holds_its_memories_reasoning_and_usage(user: SimulatedUser) -> None:
    answer = user.respond(WHICH_DAY)
    assert answer.action == "tomorrow please"
    assert answer.reasoning == "wants it tomorrow"
    assert answer.done is False
    assert answer.message == {"role": "user", "content": "tomorrow please"}
    assert answer.usage == Usage(sum(len(prompt.split()) for prompt in prompts(user)), 0, 5)
    assert len(answer.recalled) == user.k
    similarities = [memory.similarity for memory in answer.recalled]
    assert similarities == sorted(similarities, reverse=True)
    best = answer.recalled[0]
    assert best.similarity == pytest.approx(1.0, abs=1e-4)  # the memory holds the same context
    assert best.triple.pair.context[-1].text == "Which day do you mean for Oslo?"
    assert best.triple.pair.action.startswith("tomorrow, day")
    held = next(triple for triple in user.store.triples() if triple.id == best.triple.id)
    assert (best.triple.reasoning, best.triple.score) == (held.reasoning, held.score)
    assert held.reasoning is not None
    assert isinstance(held.score, float)


def test_arespond_equals_respond(user: SimulatedUser) -> None:
    assert asyncio.run(user.arespond(WHICH_DAY)) == user.respond(WHICH_DAY)


def test_respond_works_inside_a_running_event_loop(user: SimulatedUser) -> None:
    async def notebook() -> Answer:
        return user.respond(WHICH_DAY)

    assert asyncio.run(notebook()).action == "tomorrow please"


@pytest.mark.parametrize(
    "messages",
    [
        WHICH_DAY,
        {"messages": WHICH_DAY},
        [AIMessage(WHICH_DAY[0]["content"]), HumanMessage(WHICH_DAY[1]["content"]), AIMessage(WHICH_DAY[2]["content"])],
        {"turns": [{"speaker": m["role"], "role": m["role"], "text": m["content"]} for m in WHICH_DAY]},
    ],
)
def test_a_conversation_may_have_any_accepted_shape(user: SimulatedUser, messages: Any) -> None:
    user.respond(messages)
    end = "Me: hi, the weather in Oslo please\nThem: Which day do you mean for Oslo?\n(Me thinking: wants it tomorrow)\nMe:"
    assert prompts(user)[-1].endswith(end)


def test_the_twin_may_open_the_conversation(user: SimulatedUser) -> None:
    assert user.respond([]).action == "tomorrow please"


def test_malformed_messages_are_refused(user: SimulatedUser) -> None:
    for nonsense in (3, "hello", [{"content": "no role"}]):
        with pytest.raises(LogError):
            user.respond(nonsense)


def test_the_twin_leaves_after_a_typical_last_turn(ann: str) -> None:
    with SimulatedUser.load(ann, model=scripted("is done", "no thats all thank you bye")) as user:
        messages = [*WHICH_DAY, {"role": "user", "content": "today"}, {"role": "assistant", "content": SUNNY}]
        assert user.respond(messages).done is True
        assert SimulatedUser(user.record, user.store, user.model, last_turn=None).respond(messages).done is False


def test_an_unknown_twin_is_refused_with_the_list_of_twins(ann: str) -> None:
    with pytest.raises(TwinError, match=r'no twin "bob".*there: ann.*usertwin learn bob'):
        SimulatedUser.load("bob", model=scripted("hi"))


# Recall -----------------------------------------------------------------------------------------------------------------


def test_a_live_conversation_can_recall_the_whole_memory(user: SimulatedUser) -> None:
    user.k = 1000
    recalled = user.respond(HELLO).recalled
    assert len(recalled) == len(list(user.store.triples())) > 20
    assert {memory.triple.pair.conversation_id for memory in recalled} == {t.pair.conversation_id for t in user.store.triples()}


def test_a_twin_with_k_0_recalls_nothing(ann: str) -> None:
    with SimulatedUser.load(ann, model=scripted("tomorrow please"), k=0) as user:
        answer = user.respond(WHICH_DAY)
    assert answer.recalled == ()
    assert answer.reasoning == ""  # a transcript model needs examples of reasoning
    assert prompts(user) == [
        "Them: Hello, what can I do for you?\nMe: hi, the weather in Oslo please\nThem: Which day do you mean for Oslo?\nMe:"
    ]


def test_a_twin_without_traces_does_not_reason(log: ChatLog) -> None:
    asyncio.run(alearn("plain", log, recipe(method="none", model=None, scorer=None), embedder=FakeEmbedder()))
    with SimulatedUser.load("plain", model=scripted("tomorrow please")) as user:
        answer = user.respond(WHICH_DAY)
    assert answer.reasoning == ""
    assert len(prompts(user)) == 1
    assert "thinking" not in prompts(user)[0]


def test_held_out_conversations_are_never_recalled(user: SimulatedUser) -> None:
    user.k = 1000
    held_out = {*user.record.validation, *user.record.test}
    assert held_out
    assert not held_out & {memory.triple.pair.conversation_id for memory in user.respond(WHICH_DAY).recalled}


# The model --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["transcript", "instruction"])
@pytest.mark.parametrize(
    ("reply", "discarded"),
    [
        ("<think>\nSECRET, be short.\n</think>\n\ni need a bell", 0),
        ("SECRET plan.\n</think>\ni need a bell", 0),
        ("Me: i need a bell", 0),
        ("<think>SECRET", 1),
        ("hello <think>SECRET</think> there", 1),
        ("(Me thinking: SECRET) hello", 1),
        ("Them: SECRET", 1),
    ],
)
def test_only_the_persons_words_are_sent_and_a_defective_turn_is_asked_for_again(
    ann: str, style: Any, reply: str, discarded: int
) -> None:
    with SimulatedUser.load(
        ann, model=recording(reply, "i need a bell", style=style), settings=Settings(reasons=False)
    ) as user:
        answer = user.respond(WHICH_DAY)
    assert (answer.action, answer.discarded) == ("i need a bell", discarded)
    assert answer.to_json()["discarded"] == discarded
    assert len(calls(user)) == 1 + discarded


def test_a_model_that_writes_only_reasoning_is_a_twin_error(ann: str) -> None:
    user = SimulatedUser.load(ann, model=recording("<think>SECRET"), settings=Settings(reasons=False))
    with user, pytest.raises(TwinError, match="wrote unfinished reasoning instead of a turn 4 times in a row"):
        user.respond(HELLO)


def test_a_model_that_is_empty_at_its_limit_is_a_model_error(ann: str) -> None:
    class Cut(ScriptedChatModel):
        def _generate(self, *args: Any, **options: Any) -> Any:
            result = super()._generate(*args, **options)
            result.generations[0].message.response_metadata = {"finish_reason": "length"}
            return result

    user = SimulatedUser.load(ann, model=ChatModel("m", Cut(answers=[" "])), settings=Settings(reasons=False))
    with (
        user,
        pytest.raises(ModelError, match=r'"m" stopped at its limit of 9,692 tokens before it answered; let it reason less'),
    ):
        user.respond(HELLO)
    with (
        SimulatedUser.load(ann, model=recording("hi"), reasoner=ChatModel("m", Cut(answers=[" "]))) as reasoning,
        pytest.raises(ModelError, match=r'"m" stopped at its limit of 8,592 tokens before it answered'),
    ):
        reasoning.respond(HELLO)


def test_the_users_description_of_the_person_is_in_every_prompt(ann: str) -> None:
    for style in ("transcript", "instruction"):
        with SimulatedUser.load(ann, model=recording("a thought.", "hello", style=style)) as user:
            assert user.persona.derived
            user.record = replace(user.record, persona=replace(user.persona, name="Mira", description="An impatient courier."))
            user.respond(HELLO)
            assert prompts(user)
            assert all("An impatient courier." in prompt for prompt in prompts(user))
            if style == "transcript":
                assert all(prompt.startswith("(About me: Mira. An impatient courier.)\n") for prompt in prompts(user))


def test_a_description_from_the_log_is_in_no_transcript(ann: str) -> None:
    with SimulatedUser.load(ann, model=recording("hello")) as user:
        user.respond(HELLO)
        assert not any("About me" in prompt for prompt in prompts(user))


def test_an_instruction_has_the_whole_conversation_and_a_transcript_counts_what_it_lacks(ann: str) -> None:
    talk = [{"role": ("assistant", "user")[i % 2], "content": f"turn {i} {'x' * 400} end{i}"} for i in range(13)]
    for style, cut in (("transcript", 7), ("instruction", 0)):
        with SimulatedUser.load(ann, model=recording("hello", style=style), settings=Settings(window=6, reasons=False)) as user:
            answer = user.respond(talk, goal="GOAL " + "y" * 900 + " END")
            assert (answer.cut_turns, answer.cut_recalled) == (cut, 0)
            assert all(f"turn {i} " in prompts(user)[0] and f"end{i}" in prompts(user)[0] for i in range(cut, 13))
            assert "GOAL" in prompts(user)[0]


def test_what_does_not_fit_into_the_context_is_counted(ann: str) -> None:
    model = replace(recording("hello", style="instruction"), context_tokens=600, count_tokens=lambda text: len(text) // 4)
    with SimulatedUser.load(ann, model=model, settings=Settings(reasons=False)) as user:
        answer = user.respond([{"role": "assistant", "content": "so " * 900 + "END"}], goal="GOAL")
    assert answer.cut_recalled == len(answer.recalled) > 0
    assert answer.cut_turns == 1
    assert "END</them>\n" in prompts(user)[0]
    assert "GOAL" in prompts(user)[0]


def test_a_model_that_writes_nothing_is_a_twin_error(ann: str) -> None:
    with (
        SimulatedUser.load(ann, model=scripted("")) as user,
        pytest.raises(TwinError, match=r'"scripted:test" wrote nothing 4 times'),
    ):
        user.respond(WHICH_DAY)


def test_an_empty_turn_is_sampled_again_with_another_seed(ann: str) -> None:
    with SimulatedUser.load(ann, model=recording("a thought", " \n", "tomorrow")) as user:
        assert user.respond(WHICH_DAY).action == "tomorrow"
        seeds = [call["seed"] for call in calls(user)]
    assert len(seeds) == 3
    assert len(set(seeds[1:])) == 2


def test_a_repeated_turn_is_sampled_again(ann: str) -> None:
    again = ("a thought", "Hi, the weather  in OSLO please", "Which day do you mean for Oslo?", "tomorrow")
    with SimulatedUser.load(ann, model=recording(*again)) as user:
        answer = user.respond(WHICH_DAY)
    assert answer.action == "tomorrow"
    assert answer.usage.output_tokens == sum(len(text.split()) for text in again)  # rejected attempts count


def test_a_repeated_turn_is_accepted_after_the_last_attempt(ann: str) -> None:
    with SimulatedUser.load(ann, model=recording("hi, the weather in Oslo please")) as user:
        assert user.respond(WHICH_DAY).action == "hi, the weather in Oslo please"
        assert len(calls(user)) == 5


def test_a_short_turn_may_be_repeated(ann: str) -> None:
    messages = [{"role": "user", "content": "yes please"}, {"role": "assistant", "content": "Tomorrow?"}]
    with SimulatedUser.load(ann, model=recording("yes please")) as user:
        assert user.respond(messages).action == "yes please"
        assert len(calls(user)) == 2  # the reasoning and one attempt


def test_a_model_that_does_not_answer_is_a_model_error(ann: str) -> None:
    class Broken(ScriptedChatModel):
        def _generate(self, *arguments: Any, **named: Any) -> Any:
            raise OSError("no route to host")

    with (
        SimulatedUser.load(ann, model=ChatModel("openai:far", Broken(answers=[]), "transcript")) as user,
        pytest.raises(ModelError, match='"openai:far" did not answer: OSError: no route to host'),
    ):
        user.respond(WHICH_DAY)


def test_seeds_reach_the_model_and_differ_by_turn_and_by_conversation(ann: str) -> None:
    def seeds(seed: int, messages: list[dict[str, str]]) -> list[int]:
        with SimulatedUser.load(ann, model=recording("a thought", "tomorrow")) as user:
            user.respond(messages, seed=seed)
            return [call["seed"] for call in calls(user)]

    assert seeds(1, WHICH_DAY) == seeds(1, WHICH_DAY)
    assert seeds(1, WHICH_DAY) != seeds(2, WHICH_DAY)
    assert seeds(1, WHICH_DAY) != seeds(1, HELLO)


def test_a_transcript_model_stops_at_the_end_of_the_line(user: SimulatedUser) -> None:
    user.respond(WHICH_DAY)
    assert [call["stop"] for call in calls(user)] == [["\n"], ["\n"]]
    assert calls(user)[1]["max_tokens"] == user.writer.max_tokens <= 400


def test_text_after_the_line_of_a_transcript_model_is_cut(ann: str) -> None:
    script = ScriptedChatModel(
        answers=[], rules=[("tomorrow)\nMe:", "tomorrow\nThem: Fine"), ("(Me", "wants tomorrow)\nMe: x")]
    )
    with SimulatedUser.load(ann, model=ChatModel("scripted:long", script, "transcript")) as user:
        answer = user.respond(WHICH_DAY)
    assert (answer.reasoning, answer.action) == ("wants tomorrow", "tomorrow")


def test_a_model_without_sampling_params_gets_none(ann: str) -> None:
    model = recording("a thought", "tomorrow", style="instruction", sampling=False)
    with SimulatedUser.load(ann, model=model) as user:
        user.respond(WHICH_DAY)
        assert all(call.keys() == {"max_tokens", "stop"} and call["stop"] is None for call in calls(user))


# The prompts ------------------------------------------------------------------------------------------------------------


def test_the_act_prompt_begins_with_the_reason_prompt_and_its_completion(user: SimulatedUser) -> None:
    user.respond(WHICH_DAY, goal="You want the weather for Oslo.")
    reason, act = prompts(user)
    assert act == reason + " wants it tomorrow)\nMe:"
    assert "(My goal: You want the weather for Oslo.)" in reason


def test_the_most_similar_pair_is_shown_last(user: SimulatedUser) -> None:
    answer = user.respond(WHICH_DAY)
    reason = prompts(user)[0]
    examples = reason.split("\n\n")[:-1]
    assert len(examples) == user.k
    for example, memory in zip(examples, reversed(answer.recalled), strict=True):
        assert f"(Me thinking: {memory.triple.reasoning})\nMe: {memory.triple.pair.action}" in example


_TEXT = st.text(min_size=1, max_size=30).filter(lambda text: text.strip())
_TURN = st.builds(Turn, st.sampled_from(["Ann", "desk", "guide"]), st.just("user"), _TEXT)


def _pair(context: list[Turn], action: str, goal: str) -> Pair:
    return Pair(
        speaker="Ann", context=tuple(context), action=action, goal=goal, conversation_id="c", position=len(context), when=0.0
    )


_PAIR = st.builds(_pair, st.lists(_TURN, max_size=8), _TEXT, st.just("") | _TEXT)


@settings(max_examples=60, deadline=None)
@given(_PAIR, st.lists(st.tuples(_PAIR, st.none() | _TEXT), max_size=4), _TEXT)
def test_any_act_prompt_begins_with_its_reason_prompt(query: Pair, past: list[tuple[Pair, str | None]], thought: str) -> None:
    recalled, persona = [Triple(pair, trace) for pair, trace in past], Persona("Ann")
    [(_, reason)] = reason_messages("transcript", persona, query, recalled)
    [(_, act)] = act_messages("transcript", persona, query, recalled, thought)
    assert act.startswith(reason)
    assert act.removeprefix(reason) == f" {' '.join(thought.split())})\nMe:"


@settings(max_examples=60, deadline=None)
@given(_PAIR, st.lists(st.tuples(_PAIR, st.none() | _TEXT), max_size=4), _TEXT)
def test_no_prompt_contains_the_action(query: Pair, past: list[tuple[Pair, str | None]], thought: str) -> None:
    recalled, persona = [Triple(pair, trace) for pair, trace in past], Persona("Ann")
    secret = _pair(list(query.context), "xyzzy plugh", query.goal)
    for style in ("transcript", "instruction"):
        prompt = [*reason_messages(style, persona, secret, recalled), *act_messages(style, persona, secret, recalled, thought)]
        assert not any("xyzzy" in text for _, text in prompt)


def test_an_instruction_prompt_names_persona_goal_context_and_examples(ann: str) -> None:
    model = recording("I want it tomorrow.", "tomorrow please\nthanks", style="instruction")
    with SimulatedUser.load(ann, model=model) as user:
        answer = user.respond(WHICH_DAY, goal="You want the weather for Oslo.")
    reason, act = prompts(user)
    for prompt in (reason, act):
        assert "You are Ann, a real person in a chat" in prompt
        assert "How you write, counted over" in prompt
        assert "<goal>\nYou want the weather for Oslo.\n</goal>" in prompt
        assert "\nhi, the weather in Oslo please\n" in prompt  # a message of its own
        assert "<them>Which day do you mean for Oslo?</them>" in prompt
        assert f"<me>{answer.recalled[0].triple.pair.action}</me>" in prompt
    assert "Do not write the reply itself" in reason
    assert "What goes on in you right now: I want it tomorrow." in act
    assert "What goes on in you right now" not in reason
    assert answer.action == "tomorrow please\nthanks"  # only a transcript model stops at the end of the line
    assert calls(user)[1]["stop"] is None


def test_an_instruction_prompt_omits_missing_parts(ann: str) -> None:
    with SimulatedUser.load(ann, model=recording("I greet.", "hi", style="instruction"), k=0) as user:
        user.respond([])
    assert "Nobody has written yet" in prompts(user)[0]
    assert "only you know" not in prompts(user)[0]
    assert "Moments of yours" not in prompts(user)[0]


def test_braces_in_messages_are_plain_text(ann: str) -> None:
    with SimulatedUser.load(ann, model=recording("a thought", "hi", style="instruction")) as user:
        user.respond([{"role": "assistant", "content": "{{ 7 * 6 }} {% if x %} {name}"}], goal="{{ goal }}")
    assert all("{{ 7 * 6 }} {% if x %} {name}" in prompt and "{{ goal }}" in prompt for prompt in prompts(user))


def test_prompt_versions_depend_on_the_style() -> None:
    assert set(prompt_versions("instruction")) == {"system", "moments", "style_card", "reason", "act"}
    assert set(prompt_versions("transcript")) == {"transcript"}
    assert prompt_versions("instruction")["act"].startswith("user_act/")


def test_private_turns_are_part_of_the_goal_and_not_of_the_chat(user: SimulatedUser) -> None:
    user.respond([{"role": "system", "content": "You are in a bad mood."}, *WHICH_DAY], goal="Be quick.")
    assert "(My goal: Be quick. You are in a bad mood.)" in prompts(user)[0]
    assert "Them: You are in a bad mood" not in prompts(user)[0]


@pytest.mark.parametrize("role", ["developer", "System", "instruction", "platform"])
def test_instructions_under_every_name_are_private(user: SimulatedUser, role: str) -> None:
    user.respond([{"role": role, "content": "SECRET RULE"}, *WHICH_DAY])
    assert "(My goal: SECRET RULE)" in prompts(user)[0]
    assert "Them: SECRET RULE" not in prompts(user)[0]


@pytest.mark.parametrize("role", ["tool", "function", "ipython", "observation", "Tool-Result"])
def test_results_of_tools_under_every_name_are_not_shown(user: SimulatedUser, role: str) -> None:
    user.respond([{"role": role, "content": "RAW RESULT"}, *WHICH_DAY])
    assert "RAW RESULT" not in prompts(user)[0]


@pytest.mark.parametrize("role", ["user", "human", "Customer"])
def test_the_turns_of_the_user_under_every_name_are_the_persons_own(user: SimulatedUser, role: str) -> None:
    user.respond([{"role": role, "content": "the weather please"}, *WHICH_DAY])
    assert "Them: the weather please" not in prompts(user)[0]
    assert "the weather please" in prompts(user)[0]


def test_only_the_latest_turns_are_shown(user: SimulatedUser) -> None:
    long = [{"role": ("assistant", "user")[i % 2], "content": f"turn {i}"} for i in range(51)]
    user.respond(long)
    assert "turn 50" in prompts(user)[0]
    assert "turn 40" not in prompts(user)[0]


# Single steps, for the evaluation ---------------------------------------------------------------------------------------


def second_turn(user: SimulatedUser) -> Pair:
    """Return the pair of a second turn."""
    return next(triple.pair for triple in user.store.triples() if triple.pair.position == 3)


def test_sample_action_returns_n_turns_for_the_act_prompt(ann: str) -> None:
    with SimulatedUser.load(ann, model=recording(" one \n more", "two")) as user:
        pair = second_turn(user)
        shown = [one.triple for one in user.store.recall(pair, 2)]
        samples = asyncio.run(user.sample_action(pair, shown, "is in a hurry", seed=7, bypass_cache=False, n=3))
        assert [reply.text for reply in samples] == ["one", "two", "one"]  # cut at the end of the line, and stripped
        [(_, prompt)] = act_messages("transcript", user.persona, pair, shown, "is in a hurry", turns=user.settings.window)
        assert prompts(user) == [prompt] * 3
        assert [call["seed"] for call in calls(user)] == [7, 8, 9]


def test_complete_samples_turns_for_any_prompt_with_the_persons_token_limit(ann: str) -> None:
    with SimulatedUser.load(ann, model=recording(" hi \n", "hello", style="instruction")) as user:
        samples = asyncio.run(user.writer.complete([("system", "Be Ann."), ("user", "Hello?")], n=2, seed=3))
        assert [reply.text for reply in samples] == ["hi", "hello"]
        assert prompts(user) == ["Be Ann.\nHello?"] * 2
        assert {call["max_tokens"] for call in calls(user)} == {user.writer.max_tokens}


# The graph --------------------------------------------------------------------------------------------------------------


def test_the_graph_streams_recall_reason_act_in_order(user: SimulatedUser) -> None:
    steps = list(user.graph.stream({"messages": WHICH_DAY}, stream_mode="updates"))
    assert [list(step) for step in steps] == [["recall"], ["reason"], ["act"]]
    recall, reason, act = (next(iter(step.values())) for step in steps)
    assert len(recall["recalled"]) == user.k
    assert reason["reasoning"] == "wants it tomorrow"
    assert act["action"] == "tomorrow please"
    assert [message.content for message in act["messages"]] == ["tomorrow please"]


def test_the_graph_streams_the_same_asynchronously(user: SimulatedUser) -> None:
    async def steps() -> list[str]:
        return [name async for step in user.graph.astream({"messages": WHICH_DAY}, stream_mode="updates") for name in step]

    assert asyncio.run(steps()) == ["recall", "reason", "act"]


def test_the_message_stream_of_the_graph_names_the_steps(user: SimulatedUser) -> None:
    async def streamed() -> list[tuple[str, str]]:
        stream = user.graph.astream({"messages": WHICH_DAY}, stream_mode="messages")
        return [(meta["langgraph_node"], message.content) async for message, meta in stream]  # pyright: ignore

    parts = asyncio.run(streamed())
    assert ("reason", "wants it tomorrow") in parts
    assert ("act", "tomorrow please") in parts


def test_invoke_equals_ainvoke(user: SimulatedUser) -> None:
    by_invoke = user.graph.invoke({"messages": WHICH_DAY, "goal": "Be quick."})
    by_ainvoke = asyncio.run(user.graph.ainvoke({"messages": WHICH_DAY, "goal": "Be quick."}))
    for state in (by_invoke, by_ainvoke):
        assert state["action"] == "tomorrow please"
        assert state["messages"][-1] == HumanMessage("tomorrow please", id=state["messages"][-1].id)
    assert {k: v for k, v in by_invoke.items() if k != "messages"} == {k: v for k, v in by_ainvoke.items() if k != "messages"}


def test_a_checkpointer_remembers_the_conversation_between_invocations(ann: str) -> None:
    model = recording("wants the weather", "hi, the weather in Oslo please", "wants it tomorrow", "tomorrow please")
    with SimulatedUser.load(ann, model=model) as user:
        graph = user.build(checkpointer=MemorySaver())
        config: Any = {"configurable": {"thread_id": "one"}}
        first = graph.invoke({"messages": HELLO, "goal": "You want the weather for Oslo."}, config)
        second = graph.invoke({"messages": WHICH_DAY[-1:]}, config)
        assert [m.content for m in second["messages"]] == [*(m["content"] for m in WHICH_DAY), "tomorrow please"]
        assert "Me: hi, the weather in Oslo please\nThem: Which day do you mean for Oslo?\n(Me thinking:" in prompts(user)[2]
        assert "(My goal: You want the weather for Oslo.)" in prompts(user)[2]  # given once, kept for the conversation
        assert first["usage"]["output_tokens"] == 9
        assert second["usage"]["output_tokens"] == 5  # of this turn alone
        assert [s.next for s in graph.get_state_history(config)].count(()) == 2  # the history holds each turn
        other: Any = {"configurable": {"thread_id": "other"}}
        assert len(graph.invoke({"messages": HELLO}, other)["messages"]) == 2


def test_a_checkpointed_state_is_plain_json(user: SimulatedUser) -> None:
    import json

    saver = MemorySaver()
    graph = user.build(checkpointer=saver)
    config: Any = {"configurable": {"thread_id": "one"}}
    graph.invoke({"messages": HELLO}, config)
    values = {key: value for key, value in graph.get_state(config).values.items() if key != "messages"}
    assert json.loads(json.dumps(values)) == values


def test_the_twin_can_be_a_node_of_another_graph(user: SimulatedUser) -> None:
    class Outer(TypedDict):
        messages: list[Any]
        action: NotRequired[str]

    graph = StateGraph(Outer)
    graph.add_node("user", user.graph)
    graph.add_edge(START, "user")
    graph.add_edge("user", END)
    assert graph.compile().invoke({"messages": WHICH_DAY})["action"] == "tomorrow please"


def test_the_graph_can_be_drawn(user: SimulatedUser) -> None:
    drawn = user.graph.get_graph()
    assert list(drawn.nodes) == ["__start__", "recall", "reason", "act", "__end__"]
    assert user.graph.name == "twin:ann"


PLACES: list[Any] = [
    [],
    HELLO,
    WHICH_DAY,
    [{"role": "system", "content": "You are in Bergen."}, {"role": "assistant", "content": "Hi!", "name": "Bob"}, *WHICH_DAY],
    [AIMessage("Hello?"), HumanMessage("hi"), HumanMessage("again"), AIMessage("Which day?", name="Eva")],
    {"turns": [{"speaker": "Bob", "role": "agent", "text": "Hello?"}, {"speaker": "Ann", "role": "customer", "text": "hi"}]},
]


@pytest.mark.parametrize("messages", PLACES)
@pytest.mark.parametrize("traces", ["recon", "none"])
def test_a_turn_is_that_of_the_graph_which_runs_where_it_is_observed(ann: str, messages: Any, traces: Any) -> None:
    from langchain_core.callbacks import BaseCallbackHandler

    answers, seen = list[Answer](), list[list[str]]()
    for config in (None, {"callbacks": [BaseCallbackHandler()]}):
        model = recording("wants it", "for tomorrow please")
        with SimulatedUser.load(ann, model=model, settings=Settings(traces=traces)) as user:
            answers.append(asyncio.run(user.arespond(messages, goal="Be quick.", seed=5, config=config)))  # pyright: ignore
            seen.append([*prompts(user), *(str(call) for call in calls(user))])
    assert answers[0] == answers[1]
    assert seen[0] == seen[1]
    assert answers[0].action == "for tomorrow please" or traces == "none"


@pytest.mark.parametrize("messages", PLACES[1:-1])
def test_a_run_that_continues_from_a_checkpoint_finds_its_place_again(ann: str, messages: Any) -> None:
    seen = list[list[str]]()
    for pauses in (True, False):
        with SimulatedUser.load(ann, model=recording("wants it", "for tomorrow please")) as user:
            graph, config = user.build(checkpointer=MemorySaver()), {"configurable": {"thread_id": "one"}}
            state: Any = {"messages": messages, "goal": "Be quick."}
            for _ in range(3 if pauses else 1):
                graph.invoke(state, config, interrupt_before=["reason", "act"] if pauses else None)  # pyright: ignore
                state = None
            seen.append(prompts(user))
    assert seen[0] == seen[1]
    assert len(seen[0]) == 2


def test_a_turn_converts_its_conversation_once(user: SimulatedUser, monkeypatch: pytest.MonkeyPatch) -> None:
    from usertwin.simulator import user as module

    converted, convert = list[Any](), module.as_conversation
    monkeypatch.setattr(module, "as_conversation", lambda *given: converted.append(given) or convert(*given))
    user.respond(WHICH_DAY)
    assert len(converted) == 1


def test_concurrent_turns_recall_what_they_recall_alone(ann: str) -> None:
    places = [[{"role": "assistant", "content": f"Which day, and which town, number {number}?"}] for number in range(20)]

    async def together(user: SimulatedUser) -> list[Answer]:
        return await asyncio.gather(*(user.arespond(place) for place in places))

    with SimulatedUser.load(ann, model=recording("tomorrow please"), settings=Settings(reasons=False)) as user:
        alone = [user.respond(place).recalled for place in places]
        assert [answer.recalled for answer in asyncio.run(together(user))] == alone


def test_callbacks_in_the_config_see_the_model_calls(user: SimulatedUser) -> None:
    from langchain_core.callbacks import BaseCallbackHandler

    class Listener(BaseCallbackHandler):
        seen = 0

        def on_chat_model_start(self, *arguments: Any, **named: Any) -> None:
            self.seen += 1

    listener = Listener()
    user.respond(WHICH_DAY, config={"callbacks": [listener]})
    assert listener.seen == 2


def test_a_live_conversation_with_a_known_id_still_recalls_that_conversation(user: SimulatedUser) -> None:
    past = small_conversation(0)
    user.k = 1000
    recalled = user.respond({"conversation_id": past.conversation_id, "turns": past.to_json()["turns"][:4]}).recalled
    assert past.conversation_id in {memory.triple.pair.conversation_id for memory in recalled}  # it is not a replay


@pytest.mark.parametrize(
    ("text", "repetitive"),
    [
        ("I'm sorry, I'm sorry, I'm sorry, I'm sorry, I'm sorry, I'm sorry", True),
        ("no no no no no no no no no no no no", True),
        ("I would like to know where my parcel is, since it should have come on Monday", False),
        ("yes yes yes", False),
        ("", False),
    ],
)
def test_repetitive_texts_are_detected(text: str, repetitive: bool) -> None:
    assert is_repetitive(text) is repetitive
