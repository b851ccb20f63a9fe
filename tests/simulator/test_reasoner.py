"""The model that reasons for a twin: its synthesizer, or the model that acts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import PrivateAttr
from reasoning_twins import adapter_folder, set_synthesizer
from rich.console import Console

from conftest import recipe
from usertwin.memory import ChatModel, Settings, TripleStore, TwinRecord, existing_twin
from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.models.token_limits import REASONING_ROOM
from usertwin.personas import ModelError, UsageError
from usertwin.simulator import SimulatedUser
from usertwin.simulator.backends.scripted import ScriptedChatModel
from usertwin.simulator.prompts import prompt_versions
from usertwin.simulator.reasoner import resolve_synthesizer
from usertwin.simulator.terminal.views import why

HELLO = [{"role": "assistant", "content": "Hello, what can I do for you?"}]
BYPASS_CACHE = {"extra_body": {"cache_prompt": False}}


class Recording(ScriptedChatModel):
    """A scripted model that records the options of its calls."""

    _calls: list[dict[str, Any]] = PrivateAttr(default_factory=list)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        self._calls.append(kwargs | {"stop": stop})
        return super()._generate(messages, stop, run_manager, **kwargs)


def model(name: str, *answers: str, style: PromptStyle = "transcript") -> ChatModel:
    return ChatModel(f"scripted:{name}", Recording(answers=list(answers)), style, bypass_cache=BYPASS_CACHE)


def calls(chat: ChatModel) -> list[dict[str, Any]]:
    """Return the options of a model's calls."""
    return chat.chat._calls  # pyright: ignore


def prompts(chat: ChatModel) -> list[str]:
    """Return a model's prompts."""
    return chat.chat.prompts  # pyright: ignore


def bypassed(chat: ChatModel) -> list[bool]:
    """Return for each call of a model whether it bypassed the prompt cache."""
    return ["extra_body" in call for call in calls(chat)]


@pytest.fixture
def actor() -> ChatModel:
    return model("actor", "hi, the weather please")


@pytest.fixture
def thinker() -> ChatModel:
    return model("thinker", "I felt calm and wanted it short)")


@pytest.fixture
def user(ann: str, actor: ChatModel, thinker: ChatModel) -> Iterator[SimulatedUser]:
    with SimulatedUser.load(ann, model=actor, reasoner=thinker) as user:
        yield user


@pytest.fixture
def synthesizer(tmp_path: Path) -> str:
    """The name of the model that reasons."""
    path = tmp_path / "thinker.txt"
    path.write_text("felt calm and wanted to stay calm.\nfelt calm and wanted to stay proud.\n", "utf-8")
    return f"scripted:{path}"


# The two steps ----------------------------------------------------------------------------------------------------------


def test_the_reasoning_of_one_model_is_in_the_prompt_of_the_other(
    user: SimulatedUser, actor: ChatModel, thinker: ChatModel
) -> None:
    answer = user.respond(HELLO)
    assert (answer.reasoning, answer.action) == ("I felt calm and wanted it short", "hi, the weather please")
    [thought], [turn] = prompts(thinker), prompts(actor)
    assert thought.endswith("Them: Hello, what can I do for you?\n(Me thinking:")
    assert turn.endswith("Them: Hello, what can I do for you?\n(Me thinking: I felt calm and wanted it short)\nMe:")


def test_the_reasoner_sees_the_traces_of_the_recalled_triples(user: SimulatedUser, thinker: ChatModel) -> None:
    traces = {memory.triple.reasoning for memory in user.respond(HELLO).recalled} - {None}
    assert traces
    assert all(f"(Me thinking: {trace})" in prompts(thinker)[0] for trace in traces)


def test_usage_counts_the_tokens_of_both_models(user: SimulatedUser, actor: ChatModel, thinker: ChatModel) -> None:
    used = user.respond(HELLO).usage
    assert used.input_tokens == sum(len(prompt.split()) for prompt in [*prompts(actor), *prompts(thinker)])


def test_the_actor_bypasses_its_cache_after_the_reasoning_of_another_model(
    user: SimulatedUser, actor: ChatModel, thinker: ChatModel
) -> None:
    user.respond(HELLO)
    assert (bypassed(thinker), bypassed(actor)) == ([True], [True])


def test_a_single_model_reuses_the_cache_of_its_reasoning_prompt(ann: str, actor: ChatModel) -> None:
    with SimulatedUser.load(ann, model=actor) as user:
        assert user.reasoner is actor
        user.respond(HELLO)
    assert bypassed(actor) == [True, False]


def test_the_same_chat_model_under_two_names_counts_as_one_model(ann: str, actor: ChatModel) -> None:
    with SimulatedUser.load(ann, model=actor, reasoner=replace(actor, name="the same")) as user:
        assert user.respond(HELLO).reasoner is None
    assert bypassed(actor) == [True, False]


def test_a_second_attempt_reuses_the_cache_of_the_first(ann: str, thinker: ChatModel) -> None:
    actor = model("actor", "", "hi there")
    with SimulatedUser.load(ann, model=actor, reasoner=thinker) as user:
        assert user.respond(HELLO).action == "hi there"
    assert bypassed(actor) == [True, False]


def test_sample_reply_takes_the_same_two_steps(user: SimulatedUser, actor: ChatModel, thinker: ChatModel) -> None:
    shown = [triple for triple in user.store.triples() if triple.reasoning][:3]
    thought, [turn] = asyncio.run(user.sample_reply(shown[0].pair, shown, seed=3))
    assert (thought, turn.text) == ("I felt calm and wanted it short", "hi, the weather please")
    assert (bypassed(thinker), bypassed(actor)) == ([True], [True])
    assert (calls(thinker)[0]["seed"], calls(actor)[0]["seed"]) == (3, 3)


def test_the_reasoner_is_not_called_if_the_settings_disable_reasoning(ann: str, actor: ChatModel, thinker: ChatModel) -> None:
    with SimulatedUser.load(ann, model=actor, reasoner=thinker, settings=Settings(reasons=False)) as user:
        assert user.respond(HELLO).reasoning == ""
    assert (prompts(thinker), bypassed(actor)) == ([], [True])


def test_the_reasoning_prompt_never_contains_the_action(user: SimulatedUser, thinker: ChatModel) -> None:
    shown = [triple for triple in user.store.triples() if triple.reasoning][:3]
    query = replace(shown[0].pair, action="a turn with xyzzy")
    asyncio.run(user.sample_reply(query, shown, seed=0))
    assert "xyzzy" not in prompts(thinker)[0]


# Two styles -------------------------------------------------------------------------------------------------------------


def test_an_instruction_reasoner_works_with_a_transcript_actor(ann: str, actor: ChatModel) -> None:
    thinker = model("thinker", "I am in a hurry.\nThat is all.", style="instruction")
    with SimulatedUser.load(ann, model=actor, reasoner=thinker) as user:
        answer = user.respond(HELLO)
    assert answer.reasoning == "I am in a hurry. That is all."
    assert "Do not write the reply itself." in prompts(thinker)[0]
    assert prompts(actor)[0].endswith("(Me thinking: I am in a hurry. That is all.)\nMe:")
    assert (calls(thinker)[0]["stop"], calls(actor)[0]["stop"]) == (None, ["\n"])
    assert (calls(thinker)[0]["max_tokens"], calls(actor)[0]["max_tokens"] < 400) == (REASONING_ROOM + 400, True)


def test_a_transcript_reasoner_works_with_an_instruction_actor(ann: str, thinker: ChatModel) -> None:
    actor = model("actor", "hi, the weather please", style="instruction")
    with SimulatedUser.load(ann, model=actor, reasoner=thinker) as user:
        user.respond(HELLO)
    assert prompts(thinker)[0].endswith("(Me thinking:")
    assert "What goes on in you right now: I felt calm and wanted it short\n" in prompts(actor)[0]
    assert (calls(thinker)[0]["stop"], calls(thinker)[0]["max_tokens"]) == (["\n"], 60)
    assert (calls(actor)[0]["stop"], calls(actor)[0]["max_tokens"]) == (None, REASONING_ROOM + 1500)


@pytest.mark.parametrize("styles", [("transcript", "instruction"), ("instruction", "transcript")])
def test_without_example_traces_a_transcript_model_on_either_side_disables_reasoning(
    ann: str, styles: tuple[PromptStyle, PromptStyle]
) -> None:
    actor, thinker = model("actor", "hi", style=styles[0]), model("thinker", "I hm", style=styles[1])
    with SimulatedUser.load(ann, model=actor, reasoner=thinker, settings=Settings(traces="none")) as user:
        assert user.respond(HELLO).reasoning == ""
    assert prompts(thinker) == []


@pytest.mark.parametrize(
    ("written", "thought"),
    [
        ('{"noticed": "I saw it", "felt": "I was calm", "wanted": "", "decided": "to ask"}', "I saw it. I was calm. to ask."),
        ('{"noticed": "I saw', ""),
        ("<think>a plan</think>I was calm.", "I was calm."),
    ],
)
def test_reasoning_in_the_form_of_a_json_object_becomes_text(ann: str, actor: ChatModel, written: str, thought: str) -> None:
    with SimulatedUser.load(ann, model=actor, reasoner=model("thinker", written, style="instruction")) as user:
        assert user.respond(HELLO).reasoning == thought


def test_prompt_versions_cover_the_styles_of_both_models() -> None:
    both = prompt_versions("instruction")
    shared = {name: both[name] for name in ("system", "moments", "style_card")} | prompt_versions("transcript")
    assert prompt_versions("transcript", "instruction") == shared | {"reason": both["reason"]}
    assert prompt_versions("instruction", "transcript") == shared | {"act": both["act"]}


# The name of the reasoner -----------------------------------------------------------------------------------------------


def shown(renderable: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_an_answer_names_a_separate_reasoner(user: SimulatedUser) -> None:
    answer = user.respond(HELLO)
    assert answer.reasoner == "scripted:thinker"
    assert "(reasoned by scripted:thinker)" in shown(why(answer, "Ann"))


def test_no_reasoner_is_named_for_a_single_model_or_empty_reasoning(ann: str, actor: ChatModel) -> None:
    with SimulatedUser.load(ann, model=actor) as user:
        alone = user.respond(HELLO)
    with SimulatedUser.load(ann, model=actor, reasoner=model("thinker", " ")) as user:
        empty = user.respond(HELLO)
    assert (alone.reasoner, empty.reasoner) == (None, None)
    assert "reasoned by" not in shown(why(alone, "Ann")) + shown(why(empty, "Ann"))


# Opening a twin ---------------------------------------------------------------------------------------------------------


def test_load_opens_a_twin_with_its_synthesizer(ann: str, actor: ChatModel, synthesizer: str) -> None:
    set_synthesizer(ann, synthesizer)
    with SimulatedUser.load(ann, model=actor) as user:
        assert (user.model, user.reasoner.name) == (actor, synthesizer)
        assert user.respond(HELLO).reasoning == "felt calm and wanted to stay calm."


def test_load_does_not_load_the_synthesizer_if_the_settings_disable_reasoning(ann: str, actor: ChatModel) -> None:
    set_synthesizer(ann, "scripted:/no/such/file", Settings(reasons=False))
    with SimulatedUser.load(ann, model=actor) as user:
        assert user.reasoner is actor
    set_synthesizer(ann, "scripted:/no/such/file", Settings(reasons=True))
    with SimulatedUser.load(ann, model=actor, settings=Settings(reasons=False)) as user:
        assert user.reasoner is actor


def test_a_synthesizer_that_also_acts_is_loaded_once(ann: str, synthesizer: str) -> None:
    set_synthesizer(ann, synthesizer)
    with SimulatedUser.load(ann, model=synthesizer) as user:
        assert user.reasoner is user.model


def test_load_accepts_another_reasoner_by_name_or_as_a_model(
    ann: str, actor: ChatModel, thinker: ChatModel, synthesizer: str
) -> None:
    set_synthesizer(ann, "scripted:/no/such/file")
    with SimulatedUser.load(ann, model=actor, reasoner=thinker) as given, SimulatedUser.load(
        ann, model=actor, reasoner=synthesizer
    ) as named, SimulatedUser.load(ann, model=actor, reasoner="scripted:actor") as same:  # fmt: skip
        assert (given.reasoner, named.reasoner.name, same.reasoner) == (thinker, synthesizer, actor)


def test_a_missing_synthesizer_is_a_model_error_with_the_way_out(ann: str, actor: ChatModel, tmp_path: Path) -> None:
    set_synthesizer(ann, f"scripted:{tmp_path}/gone.txt")
    with pytest.raises(
        ModelError,
        match=r'"ann" reasons with "scripted:.*gone.txt".*cannot be loaded.*--overwrite, or open it in Python with reasoner=',
    ):
        SimulatedUser.load(ann, model=actor)


def test_a_failed_load_closes_the_memory(ann: str, actor: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[TripleStore] = []
    close = TripleStore.close

    def listening(store: TripleStore) -> None:
        closed.append(store)
        close(store)

    monkeypatch.setattr(TripleStore, "close", listening)
    set_synthesizer(ann, "scripted:/no/such/file")
    with pytest.raises(ModelError):
        SimulatedUser.load(ann, model=actor)
    assert len(closed) == 1


# The recipe and the synthesizer's name ----------------------------------------------------------------------------------


def test_a_record_without_the_synthesizer_field_is_read(ann: str) -> None:
    path = existing_twin(ann) / "twin.json"
    raw = json.loads(path.read_text("utf-8"))
    assert raw["recipe"].pop("synthesizer") is None
    path.write_text(json.dumps(raw), "utf-8")
    assert TwinRecord.load(path.parent).recipe == recipe()


@pytest.mark.parametrize("changes", [{"method": "none"}, {"model": "local"}, {"model": None}])
def test_a_recipe_whose_synthesizer_proposes_no_traces_is_refused(changes: dict[str, Any]) -> None:
    good = recipe(model="local+a", synthesizer="local+a")
    good.check()
    with pytest.raises(UsageError, match='the synthesizer "local\\+a" does not propose the traces'):
        replace(good, **changes).check()


def test_an_adapters_folder_resolves_to_its_base_with_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter_folder(tmp_path / "adapter", base="local")
    monkeypatch.chdir(tmp_path)
    assert resolve_synthesizer("adapter") == resolve_synthesizer(str(folder)) == f"local+{folder.resolve()}"
    assert resolve_synthesizer("local+adapter") == f"local+{folder.resolve()}"


def test_paths_in_a_synthesizers_name_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthesizer: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_synthesizer("scripted:thinker.txt") == synthesizer
    assert resolve_synthesizer(synthesizer) == synthesizer


@pytest.mark.parametrize("name", ["local", "local:small", "openai:gpt-5-mini", "openai:a@http://localhost:1/v1"])
def test_a_synthesizer_without_a_path_keeps_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_synthesizer(name) == name


def test_a_text_that_is_neither_an_adapter_nor_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither an adapter's folder nor a model: .*no/such"):
        resolve_synthesizer("no/such")
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        resolve_synthesizer(str(tmp_path))
