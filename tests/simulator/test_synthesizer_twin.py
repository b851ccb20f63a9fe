"""A twin that was learned with a synthesizer: its traces are that model's, and so is its reasoning; acting is another's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pydantic import PrivateAttr
from rich.console import Console
from safetensors.numpy import save_file

from conftest import recipe
from usertwin.evals.cli.main import main
from usertwin.memory import ChatModel, Settings, TripleStore, TwinRecord, existing_twin
from usertwin.memory.models.chat import Style
from usertwin.personas import ModelError, UsageError
from usertwin.simulator import SimulatedUser, load_embedder
from usertwin.simulator.backends.scripted import ScriptedChatModel
from usertwin.simulator.prompts import prompt_versions
from usertwin.simulator.reasoner import synthesizer_named
from usertwin.simulator.terminal import why

HELLO = [{"role": "assistant", "content": "Hello, what can I do for you?"}]
FAKES = ("--scorer", "fake:", "--embedder", "fake:")
WORDS = ("calm", "proud", "shy", "bold", "tense", "keen", "glum", "warm", "cool", "hurt", "glad", "stern", "wary")
AFRESH = {"extra_body": {"cache_prompt": False}}


class Recording(ScriptedChatModel):
    """A scripted model that also remembers how it was called."""

    _calls: list[dict[str, Any]] = PrivateAttr(default_factory=list)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        self._calls.append(kwargs | {"stop": stop})
        return super()._generate(messages, stop, run_manager, **kwargs)


def model(name: str, *answers: str, style: Style = "transcript") -> ChatModel:
    return ChatModel(f"scripted:{name}", Recording(answers=list(answers)), style, bypass_cache=AFRESH)


def calls(chat: ChatModel) -> list[dict[str, Any]]:
    """How a model was called."""
    return chat.chat._calls  # pyright: ignore


def prompts(chat: ChatModel) -> list[str]:
    """What a model was asked."""
    return chat.chat.prompts  # pyright: ignore


def afresh(chat: ChatModel) -> list[bool]:
    """Which of its calls a model computed from the start."""
    return ["extra_body" in call for call in calls(chat)]


@pytest.fixture
def actor() -> ChatModel:
    return model("actor", "hi, the weather please")


@pytest.fixture
def thinker() -> ChatModel:
    return model("thinker", "I felt calm and wanted it short)")


@pytest.fixture
def user(ann: str, actor: ChatModel, thinker: ChatModel) -> Iterator[SimulatedUser]:
    with SimulatedUser.load(ann, model=actor, reasoner=thinker) as found:
        yield found


@pytest.fixture
def script(tmp_path: Path) -> str:
    """The name of the model that acts."""
    path = tmp_path / "actor.txt"
    path.write_text("".join(f"the weather in {word} please\n" for word in WORDS), "utf-8")
    return f"scripted:{path}"


@pytest.fixture
def synthesizer(tmp_path: Path) -> str:
    """The name of the model that reasons."""
    path = tmp_path / "thinker.txt"
    path.write_text("".join(f"felt {one} and wanted to stay {other}.\n" for one in WORDS for other in WORDS[:3]), "utf-8")
    return f"scripted:{path}"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every prompt that a script is asked from now on, with the script's first answer."""
    found: list[tuple[str, str]] = []
    answered = ScriptedChatModel._generate

    def listening(self: ScriptedChatModel, messages: Any, *rest: Any, **options: Any) -> Any:
        found.append((self.answers[0], "\n".join(str(message.text) for message in messages)))
        return answered(self, messages, *rest, **options)

    monkeypatch.setattr(ScriptedChatModel, "_generate", listening)
    return found


def remade(name: str, synthesizer: str | None, settings: Settings | None = None) -> None:
    """Have a twin's record say that it was learned with a synthesizer."""
    record = TwinRecord.load(existing_twin(name))
    made = replace(record.recipe, model=synthesizer or record.recipe.model, synthesizer=synthesizer)
    replace(record, recipe=made, settings=settings).save(existing_twin(name))


def run(*arguments: str | Path, said: str = "") -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=said, env={"COLUMNS": "400"})


def done(*arguments: str | Path, said: str = "") -> str:
    result = run(*arguments, said=said)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    [sentence] = result.stderr.splitlines()
    return sentence


def learn(log: Path, script: str, *more: str | Path) -> tuple[str | Path, ...]:
    return ("learn", "sam", "--from", log, "--speaker", "Ann", "--model", script, "--candidates", "2", *FAKES, *more)


# The two steps ---------------------------------------------------------------------------------------------------------


def test_one_model_reasons_and_another_acts_upon_it(user: SimulatedUser, actor: ChatModel, thinker: ChatModel) -> None:
    answer = user.respond(HELLO)
    assert (answer.reasoning, answer.action) == ("I felt calm and wanted it short", "hi, the weather please")
    [thought], [turn] = prompts(thinker), prompts(actor)
    assert thought.endswith("Them: Hello, what can I do for you?\n(Me thinking:")
    assert turn.endswith("Them: Hello, what can I do for you?\n(Me thinking: I felt calm and wanted it short)\nMe:")


def test_the_reasoner_is_shown_the_traces_of_what_came_to_mind(user: SimulatedUser, thinker: ChatModel) -> None:
    traces = {row["reasoning"] for row in user.respond(HELLO).recalled} - {None}
    assert traces
    assert all(f"(Me thinking: {trace})" in prompts(thinker)[0] for trace in traces)


def test_an_answer_takes_the_tokens_of_both_models(user: SimulatedUser, actor: ChatModel, thinker: ChatModel) -> None:
    used = user.respond(HELLO).usage
    assert used.input_tokens == sum(len(prompt.split()) for prompt in [*prompts(actor), *prompts(thinker)])


def test_who_acts_reads_its_prompt_afresh_after_the_thought_of_another_model(
    user: SimulatedUser, actor: ChatModel, thinker: ChatModel
) -> None:
    user.respond(HELLO)
    assert (afresh(thinker), afresh(actor)) == ([True], [True])


def test_one_model_for_both_goes_on_from_what_it_computed_for_the_thought(ann: str, actor: ChatModel) -> None:
    with SimulatedUser.load(ann, model=actor) as user:
        assert user.reasoner is actor
        user.respond(HELLO)
    assert afresh(actor) == [True, False]


def test_one_model_in_two_records_is_still_one_model(ann: str, actor: ChatModel) -> None:
    with SimulatedUser.load(ann, model=actor, reasoner=replace(actor, name="the same")) as user:
        assert user.respond(HELLO).reasoner is None
    assert afresh(actor) == [True, False]


def test_a_second_try_goes_on_from_the_first_one(ann: str, thinker: ChatModel) -> None:
    actor = model("actor", "", "hi there")
    with SimulatedUser.load(ann, model=actor, reasoner=thinker) as user:
        assert user.respond(HELLO).action == "hi there"
    assert afresh(actor) == [True, False]


def test_a_reply_in_a_measurement_is_thought_and_said_in_the_same_way(
    user: SimulatedUser, actor: ChatModel, thinker: ChatModel
) -> None:
    shown = [triple for triple in user.store.triples() if triple.reasoning][:3]
    thought, [turn] = asyncio.run(user.sample_reply(shown[0].pair, shown, seed=3))
    assert (thought, turn.text) == ("I felt calm and wanted it short", "hi, the weather please")
    assert (afresh(thinker), afresh(actor)) == ([True], [True])
    assert (calls(thinker)[0]["seed"], calls(actor)[0]["seed"]) == (3, 3)


def test_nobody_is_asked_for_a_thought_where_none_is_wanted(ann: str, actor: ChatModel, thinker: ChatModel) -> None:
    with SimulatedUser.load(ann, model=actor, reasoner=thinker, settings=Settings(reasons=False)) as user:
        assert user.respond(HELLO).reasoning == ""
    assert (prompts(thinker), afresh(actor)) == ([], [True])


def test_the_thought_never_sees_the_action_that_is_yet_to_come(user: SimulatedUser, thinker: ChatModel) -> None:
    shown = [triple for triple in user.store.triples() if triple.reasoning][:3]
    query = replace(shown[0].pair, action="a turn that nobody ever wrote")
    asyncio.run(user.sample_reply(query, shown, seed=0))
    assert "nobody ever wrote" not in prompts(thinker)[0]


# Two styles ------------------------------------------------------------------------------------------------------------


def test_a_reasoner_that_follows_instructions_may_think_for_one_that_continues_text(ann: str, actor: ChatModel) -> None:
    thinker = model("thinker", "I am in a hurry.\nThat is all.", style="instruction")
    with SimulatedUser.load(ann, model=actor, reasoner=thinker) as user:
        answer = user.respond(HELLO)
    assert answer.reasoning == "I am in a hurry. That is all."
    assert "Do not write the reply itself." in prompts(thinker)[0]
    assert prompts(actor)[0].endswith("(Me thinking: I am in a hurry. That is all.)\nMe:")
    assert (calls(thinker)[0]["stop"], calls(actor)[0]["stop"]) == (None, ["\n"])
    assert (calls(thinker)[0]["max_tokens"], calls(actor)[0]["max_tokens"] < 400) == (400, True)


def test_a_reasoner_that_continues_text_may_think_for_one_that_follows_instructions(ann: str, thinker: ChatModel) -> None:
    actor = model("actor", "hi, the weather please", style="instruction")
    with SimulatedUser.load(ann, model=actor, reasoner=thinker) as user:
        user.respond(HELLO)
    assert prompts(thinker)[0].endswith("(Me thinking:")
    assert "What goes on in you right now: I felt calm and wanted it short\n" in prompts(actor)[0]
    assert (calls(thinker)[0]["stop"], calls(thinker)[0]["max_tokens"]) == (["\n"], 60)
    assert (calls(actor)[0]["stop"], calls(actor)[0]["max_tokens"]) == (None, 1500)


@pytest.mark.parametrize("styles", [("transcript", "instruction"), ("instruction", "transcript")])
def test_without_examples_there_is_no_thought_if_one_of_the_two_continues_text(ann: str, styles: tuple[Style, Style]) -> None:
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
def test_a_thought_that_is_written_as_an_object_becomes_words(ann: str, actor: ChatModel, written: str, thought: str) -> None:
    with SimulatedUser.load(ann, model=actor, reasoner=model("thinker", written, style="instruction")) as user:
        assert user.respond(HELLO).reasoning == thought


def test_the_versions_of_both_styles_prompts_are_told() -> None:
    both = prompt_versions("instruction")
    assert prompt_versions("transcript", "instruction") == {"transcript": "1", "reason": both["reason"]}
    assert prompt_versions("instruction", "transcript") == {"act": both["act"], "transcript": "1"}


# Who reasoned ----------------------------------------------------------------------------------------------------------


def shown(renderable: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_an_answer_names_who_reasoned_where_that_is_not_who_acts(user: SimulatedUser) -> None:
    answer = user.respond(HELLO)
    assert answer.reasoner == "scripted:thinker"
    assert "(reasoned by scripted:thinker)" in shown(why(answer, "Ann"))


def test_nobody_is_named_where_one_model_does_both_or_nothing_was_thought(ann: str, actor: ChatModel) -> None:
    with SimulatedUser.load(ann, model=actor) as user:
        alone = user.respond(HELLO)
    with SimulatedUser.load(ann, model=actor, reasoner=model("thinker", " ")) as user:
        empty = user.respond(HELLO)
    assert (alone.reasoner, empty.reasoner) == (None, None)
    assert "reasoned by" not in shown(why(alone, "Ann")) + shown(why(empty, "Ann"))


# Opening a twin --------------------------------------------------------------------------------------------------------


def test_a_twin_is_opened_with_the_synthesizer_it_was_learned_with(ann: str, actor: ChatModel, synthesizer: str) -> None:
    remade(ann, synthesizer)
    with SimulatedUser.load(ann, model=actor) as user:
        assert (user.model, user.reasoner.name) == (actor, synthesizer)
        assert user.respond(HELLO).reasoning == "felt calm and wanted to stay calm."


def test_the_synthesizer_is_not_loaded_for_a_twin_that_does_not_reason(ann: str, actor: ChatModel) -> None:
    remade(ann, "scripted:/no/such/file", Settings(reasons=False))
    with SimulatedUser.load(ann, model=actor) as user:
        assert user.reasoner is actor
    remade(ann, "scripted:/no/such/file", Settings(reasons=True))
    with SimulatedUser.load(ann, model=actor, settings=Settings(reasons=False)) as user:
        assert user.reasoner is actor


def test_a_synthesizer_that_also_acts_is_loaded_once(ann: str, synthesizer: str) -> None:
    remade(ann, synthesizer)
    with SimulatedUser.load(ann, model=synthesizer) as user:
        assert user.reasoner is user.model


def test_another_reasoner_may_be_named_or_given(ann: str, actor: ChatModel, thinker: ChatModel, synthesizer: str) -> None:
    remade(ann, "scripted:/no/such/file")
    with SimulatedUser.load(ann, model=actor, reasoner=thinker) as given, SimulatedUser.load(
        ann, model=actor, reasoner=synthesizer
    ) as named, SimulatedUser.load(ann, model=actor, reasoner="scripted:actor") as same:  # fmt: skip
        assert (given.reasoner, named.reasoner.name, same.reasoner) == (thinker, synthesizer, actor)


def test_a_synthesizer_that_is_gone_is_said_with_the_way_out(ann: str, actor: ChatModel, tmp_path: Path) -> None:
    remade(ann, f"scripted:{tmp_path}/gone.txt")
    with pytest.raises(
        ModelError, match=r'"ann" reasons with "scripted:.*gone.txt".*--overwrite, or open it in Python with reasoner='
    ):
        SimulatedUser.load(ann, model=actor)


def test_a_twin_that_cannot_be_opened_leaves_its_memory_closed(
    ann: str, actor: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[TripleStore] = []
    close = TripleStore.close

    def listening(store: TripleStore) -> None:
        closed.append(store)
        close(store)

    monkeypatch.setattr(TripleStore, "close", listening)
    remade(ann, "scripted:/no/such/file")
    with pytest.raises(ModelError):
        SimulatedUser.load(ann, model=actor)
    assert len(closed) == 1


# The recipe and the synthesizer's name ---------------------------------------------------------------------------------


def test_a_record_from_before_there_were_synthesizers_is_read(ann: str) -> None:
    path = existing_twin(ann) / "twin.json"
    raw = json.loads(path.read_text("utf-8"))
    assert raw["recipe"].pop("synthesizer") is None
    path.write_text(json.dumps(raw), "utf-8")
    assert TwinRecord.load(path.parent).recipe == recipe()


@pytest.mark.parametrize("changes", [{"method": "none"}, {"model": "local"}, {"model": None}])
def test_a_synthesizer_that_proposes_nothing_is_refused(changes: dict[str, Any]) -> None:
    good = recipe(model="local+a", synthesizer="local+a")
    good.check()
    with pytest.raises(UsageError, match='the synthesizer "local\\+a" is to propose the traces'):
        replace(good, **changes).check()


def adapter(folder: Path, **facts: object) -> Path:
    """A folder with a LoRA adapter of one layer."""
    folder.mkdir()
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {f"{layer}.lora_A.weight": np.zeros((2, 8), "f4"), f"{layer}.lora_B.weight": np.zeros((8, 2), "f4")},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}), "utf-8")
    (folder / "usertwin.json").write_text(json.dumps({"format": 1, "style": "transcript"} | facts), "utf-8")
    return folder


def test_an_adapters_folder_is_the_model_it_was_trained_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter(tmp_path / "adapter", base="local")
    monkeypatch.chdir(tmp_path)
    assert synthesizer_named("adapter") == synthesizer_named(str(folder)) == f"local+{folder.resolve()}"
    assert synthesizer_named("local+adapter") == f"local+{folder.resolve()}"


def test_paths_in_a_synthesizers_name_hold_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthesizer: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert synthesizer_named("scripted:thinker.txt") == synthesizer
    assert synthesizer_named(synthesizer) == synthesizer


@pytest.mark.parametrize("name", ["local", "local:small", "openai:gpt-5-mini", "openai:a@http://localhost:1/v1"])
def test_a_synthesizer_without_a_path_keeps_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert synthesizer_named(name) == name


def test_what_is_neither_an_adapter_nor_a_model_is_no_synthesizer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder of an adapter, and no model either: .*no/such"):
        synthesizer_named("no/such")
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        synthesizer_named(str(tmp_path))


# The commands ----------------------------------------------------------------------------------------------------------


def test_learning_takes_its_traces_from_the_synthesizer_and_says_who_reasons(
    log_file: Path, script: str, synthesizer: str
) -> None:
    text = done(*learn(log_file, script, "--synthesizer", synthesizer, "--measure", "0", "--fidelity", "rank"))
    made = TwinRecord.load(existing_twin("sam")).recipe
    assert (made.model, made.synthesizer, made.actor) == (synthesizer, synthesizer, script)
    with TripleStore(existing_twin("sam"), load_embedder("fake:"), create=False) as store:
        traces = [triple.reasoning for triple in store.triples() if triple.reasoning]
    assert traces
    assert all(trace.startswith("I felt ") for trace in traces)
    assert f"reasons with: {synthesizer}" in text
    assert f" texts of {synthesizer} " in text


def test_a_dry_run_says_who_reasons_and_asks_nobody(
    log_file: Path, script: str, synthesizer: str, asked: list[tuple[str, str]]
) -> None:
    assert f"the twin reasons with: {synthesizer}" in done(*learn(log_file, script, "--synthesizer", synthesizer, "--dry-run"))
    assert asked == []


def test_an_adapters_folder_is_planned_in_the_style_it_was_trained_in(log_file: Path, script: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", base="local:small", style="instruction")
    text = done(*learn(log_file, script, "--synthesizer", folder, "--dry-run"))
    assert f"about 84 texts of local:small+{folder} (at most 252 where guards reject)" in text
    assert "7,560 written: $0.00" in text  # as objects, which are longer than a line


def test_the_synthesizer_keeps_its_own_style(
    log_file: Path, script: str, synthesizer: str, asked: list[tuple[str, str]]
) -> None:
    done(
        *learn(log_file, script, "--synthesizer", synthesizer, "--style", "instruction", "--max-traces", "2", "--measure", "0")
    )
    assert asked
    assert all(prompt.endswith("Before I wrote that, I") for _, prompt in asked)


def test_a_synthesizer_without_traces_is_refused_before_anything_is_read(script: str, synthesizer: str) -> None:
    sentence = refused(*learn(Path("no such log"), script, "--synthesizer", synthesizer, "--traces", "none"))
    assert "a synthesizer makes traces, and --traces none makes none" in sentence


def test_learning_decides_with_thoughts_of_the_synthesizer(
    log_file: Path, script: str, synthesizer: str, asked: list[tuple[str, str]]
) -> None:
    done(*learn(log_file, script, "--synthesizer", synthesizer, "--measure", "4"))
    thoughts = [said for said, prompt in asked if prompt.endswith("(Me thinking:")]
    assert thoughts
    assert set(thoughts) == {"felt calm and wanted to stay calm."}


def test_tuning_asks_the_synthesizer_even_if_the_twin_did_not_reason_until_now(
    ann: str, script: str, synthesizer: str, asked: list[tuple[str, str]]
) -> None:
    remade(ann, synthesizer, Settings(traces="none", reasons=False))
    done("tune", ann, "--turns", "4", "--model", script, "--scorer", "fake:")
    assert {said for said, prompt in asked if prompt.endswith("(Me thinking:")} == {"felt calm and wanted to stay calm."}


def test_show_tells_who_reasons_and_who_would(ann: str, synthesizer: str) -> None:
    assert "reasons with" not in done("show", ann)
    remade(ann, synthesizer)
    assert f"reasons with {synthesizer}" in " ".join(done("show", ann).split())
    remade(ann, synthesizer, Settings(traces="none", reasons=False))
    assert f"reasons with nothing, since that was not found to help; its traces are by {synthesizer}" in " ".join(
        done("show", ann).split()
    )


def test_a_chat_shows_who_reasoned(ann: str, script: str, synthesizer: str) -> None:
    remade(ann, synthesizer)
    text = done("chat", ann, "--model", script, said="Hello, what can I do for you?\n/why\n/quit\n")
    assert f"felt calm and wanted to stay calm.  (reasoned by {synthesizer})" in text


def test_a_chat_with_a_twin_whose_synthesizer_is_gone_is_refused_in_one_sentence(ann: str, script: str) -> None:
    remade(ann, "scripted:/no/such/file")
    assert 'the twin "ann" reasons with "scripted:/no/such/file", which cannot be had' in refused(
        "chat", ann, "--model", script
    )


def test_controls_do_not_need_the_synthesizer(ann: str, script: str) -> None:
    remade(ann, "scripted:/no/such/file")
    done("controls", ann, "--limit", "4", "--model", script, "--scorer", "fake:")


def test_a_simulation_and_a_measurement_keep_who_reasoned(
    ann: str, script: str, synthesizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remade(ann, synthesizer)
    (tmp_path / "desk.py").write_text("def reply(messages):\n    return 'Which city?'\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    done("simulate", ann, "--agent", "desk:reply", "--turns", "1", "--model", script, "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))["models"]["reasoner"] == synthesizer
    line = (tmp_path / "run" / "conversations.jsonl").read_text("utf-8")
    assert json.loads(line)["exchanges"][0]["answer"]["reasoner"] == synthesizer
    done("eval", ann, "--limit", "2", "--model", script, "--scorer", "fake:", "--json", tmp_path / "eval.json")
    assert json.loads((tmp_path / "eval.json").read_text("utf-8"))["models"]["reasoner"] == synthesizer


def test_moments_that_are_added_get_their_traces_from_the_synthesizer_unless_a_model_is_named(
    ann: str, script: str, synthesizer: str, tmp_path: Path, asked: list[tuple[str, str]]
) -> None:
    remade(ann, synthesizer)
    log = tmp_path / "more.jsonl"
    turns = [
        {"speaker": "desk-0", "role": "agent", "text": "Welcome back, what is it today?"},
        {"speaker": "Ann", "role": "user", "text": "hi, is the harbour open tonight"},
    ]
    for number, more in enumerate([(), ("--model", script)]):
        told = {"conversation_id": f"new-{number}", "started_at": f"2024-05-0{number + 1}T10:00:00+00:00", "turns": turns}
        log.write_text(json.dumps(told) + "\n", "utf-8")
        done("memory", "add", ann, "--from", log, "--max-traces", "1", "--scorer", "fake:", *more)
    [first, *_, last] = [said for said, _ in asked]
    assert (first, last) == ("felt calm and wanted to stay calm.", "the weather in calm please")
