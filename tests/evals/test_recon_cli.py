"""evals/cli/learn.py: learning with its plan and its price, `usertwin tune` and `usertwin controls`, as a user types them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from conftest import small_conversation
from usertwin.evals.cli.main import main
from usertwin.evals.traces.control_verdict import decision
from usertwin.memory import Settings, TripleStore, TwinRecord, existing_twin
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.twin.record import default_home
from usertwin.personas import write_conversations
from usertwin.simulator.backends.scripted import ScriptedChatModel

FAKES = ("--scorer", "fake:", "--embedder", "fake:")
WORDS = ("calm", "proud", "shy", "bold", "tense", "keen", "glum", "warm", "cool", "hurt", "glad", "stern", "wary")


@pytest.fixture
def script(tmp_path: Path) -> str:
    """The name of a model that thinks something else each time."""
    path = tmp_path / "script.txt"
    path.write_text("".join(f"felt {one} and wanted to stay {other}.\n" for one in WORDS for other in WORDS[:3]), "utf-8")
    return f"scripted:{path}"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every prompt that a scripted model is asked from now on."""
    prompts: list[str] = []
    answered = ScriptedChatModel._generate

    def listening(self: ScriptedChatModel, messages: Any, *rest: Any, **options: Any) -> Any:
        prompts.append("\n".join(str(message.text) for message in messages))
        return answered(self, messages, *rest, **options)

    monkeypatch.setattr(ScriptedChatModel, "_generate", listening)
    return prompts


def run(*arguments: str | Path, columns: int = 300) -> Result:
    """Run the program in this process, on a screen wide enough not to break sentences."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env={"COLUMNS": str(columns)})


def done(*arguments: str | Path, columns: int = 300) -> str:
    """What the program prints when all is well."""
    result = run(*arguments, columns=columns)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def refused(*arguments: str | Path) -> str:
    """The one sentence the program says about wrong input."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    [sentence] = result.stderr.splitlines()
    assert sentence.startswith("usertwin: ")
    return sentence.removeprefix("usertwin: ")


def learn(log: Path, model: str, *more: str | Path) -> tuple[str | Path, ...]:
    """The arguments of a learning without weights."""
    return ("learn", "sam", "--from", log, "--speaker", "Ann", "--model", model, "--candidates", "2", *FAKES, *more)


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def record(name: str = "sam") -> TwinRecord:
    return TwinRecord.load(existing_twin(name))


# learn: what it will take ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "more", "says"),
    [
        ("local", (), "about 84 texts of local (at most 252 where guards reject), 10,"),
        ("local", (), "and 2,520 written: $0.00"),
        ("local:small", ("--style", "instruction"), "7,560 written: $0.00"),
        ("openai:gpt-5-mini", (), "7,560 written: price not known (--price)"),
        ("openai:gpt-5-mini", ("--price", "0/1000"), "7,560 written: $7.56"),
        ("openai:gpt-5-mini", ("--price", "0/0"), "7,560 written: $0.00"),
        ("openai:gpt@http://localhost:1/v1", ("--price", "0/1000"), "7,560 written: $7.56"),
        ("local", ("--price", "1000/1000"), "2,520 written: $0.00"),
        ("local", ("--judge", "openai:gpt-5", "--traces", "quality"), "price not known (--price)"),
        ("local", ("--traces", "quality"), "about 126 texts of local"),
        ("local", ("--fidelity", "judge"), "about 210 texts of local"),
        ("local", ("--propose", "search", "--calls", "6"), "about 252 texts of local, "),
        ("local", ("--traces", "backward"), "about 42 texts of local (at most 126 where guards reject)"),
        ("local", ("--max-triples", "9", "--max-traces", "4"), "9 moments to remember, 4 to find traces for"),
        ("local", ("--traces", "none"), "42 moments to remember, 0 to find traces for"),
        ("local", ("--measure", "7"), "then up to 7 validation turns are scored"),
    ],
)
def test_a_dry_run_prints_the_plan_and_its_price_and_does_nothing(
    log_file: Path, tmp_path: Path, model: str, more: tuple[str, ...], says: str
) -> None:
    """Not even the key of a hosted model, or the weights of a local one, are looked for."""
    before = files(tmp_path)
    assert says in done(*learn(log_file, model, *more, "--dry-run"))
    assert files(tmp_path) == before
    assert not default_home().exists()


def test_a_dry_run_reads_as_much_as_the_prompts_are_long_and_more_where_each_text_needs_its_own(log_file: Path) -> None:
    def read(model: str) -> int:
        [found] = re.findall(r"([\d,]+) tokens read", done(*learn(log_file, model, "--style", "transcript", "--dry-run")))
        return int(found.replace(",", ""))

    assert read("openai:gpt-5-mini") == pytest.approx(2 * read("openai:gpt-4o"), abs=2)  # it writes one text a call
    assert read("local") == read("openai:gpt-4o")


def test_a_dry_run_asks_nobody_and_leaves_a_twin_as_it_is(log_file: Path, script: str, asked: list[str]) -> None:
    done(*learn(log_file, script))
    before = files(default_home())
    asked.clear()
    text = done(*learn(log_file, script, "--overwrite", "--seed", "3", "--dry-run"))
    assert "$0.00" in text
    assert "Talk to it" not in text
    assert asked == []
    assert files(default_home()) == before


def test_nothing_of_a_plan_is_said_where_it_does_not_apply(log_file: Path) -> None:
    text = done(*learn(log_file, "local", "--traces", "none", "--measure", "0", "--dry-run"))
    assert text == "42 moments to remember, 0 to find traces for\n"


def test_a_dry_run_refuses_what_learning_refuses(log_file: Path) -> None:
    for more, says in (
        (("--candidates", "0"), "0 candidates"),
        (("--max-triples", "0"), "0 triples at most"),
        (("--window", "0"), "a window of 0 turns"),
        (("--calls", "1"), "1 calls"),
        (("--propose", "search", "--fidelity", "judge"), "a search compares scores of different steps"),
        (("--model", "nonsense"), '"nonsense" is no model\'s name'),
        (("--model", "openai:"), '"openai:" is no model\'s name'),
        (("--speaker", "Zoe"), 'nobody called "Zoe"'),
        (("--price", "nonsense"), '"nonsense" is no price'),
    ):
        result = run(*learn(log_file, "local", *more, "--dry-run"))
        assert result.exit_code == 2
        assert says in result.stderr
        assert result.stdout == ""


# learn: what it then does ----------------------------------------------------------------------------------------------


def test_learning_says_its_plan_makes_traces_decides_and_shows_the_twin(log_file: Path, script: str) -> None:
    text = done(*learn(log_file, script))
    order = [
        "42 moments to remember, 42 to find traces for", "about 84 texts of scripted:", "then up to 24 validation turns",
        "deciding by measuring: 7 settings on 6 validation turns: 42 turns scored and 6 thoughts written",
        "What the twin is best shown", "Chosen, the simplest that is best within a standard error on 6 validation turns",
        "twin sam", "tell the action from other actions without the context", "more from kept answers", "Talk to it:",
    ]  # fmt: skip
    assert [one for one in order if one not in text] == []
    places = [text.index(one) for one in order]
    assert places == sorted(places)
    assert record().state == "complete"
    assert record().settings is not None
    with TripleStore(existing_twin("sam"), FakeEmbedder(), create=False) as store:
        assert all(triple.provenance is not None for triple in store.triples())


def test_what_was_planned_is_what_was_asked(log_file: Path, script: str, asked: list[str]) -> None:
    text = done(*learn(log_file, script, "--max-traces", "5"))
    [thoughts] = re.findall(r"and (\d+) thoughts written", text)
    [texts] = re.findall(r"about (\d+) texts", text)
    assert len(asked) == int(texts) + int(thoughts) == 10 + 6


def test_nothing_is_measured_if_nothing_is_to_be(log_file: Path, script: str) -> None:
    text = done(*learn(log_file, script, "--measure", "0"))
    assert "deciding" not in text
    assert "not measured whether that is best (usertwin tune)" in text
    assert record().settings is None


def test_every_way_to_make_traces_is_kept_in_the_recipe(log_file: Path, script: str) -> None:
    more = ("--max-traces", "2", "--measure", "0", "--overwrite")
    for traces, how, fidelity, actor in (
        ("random", "forward", "gain", None), ("longest", "scaffolded", "prior", None), ("recon", "search", "choice", None),
        ("recon", "backward", "rank", script), ("random", "search", "rank", script),
    ):  # fmt: skip
        done(*learn(log_file, script, "--traces", traces, "--propose", how, "--fidelity", fidelity, "--calls", "4", *more))
        made = record().recipe
        assert (made.method, made.proposal_mode, made.fidelity, made.max_calls, made.actor) == (traces, how, fidelity, 4, actor)


def test_a_judge_that_cannot_judge_leaves_the_moments_without_traces_and_says_why(log_file: Path, script: str) -> None:
    text = done(*learn(log_file, script, "--traces", "quality", "--max-traces", "3", "--measure", "0"))
    assert "42 triples, 0 with a trace (quality)" in text
    assert "rejected: 6 no_verdict" in text
    assert record().recipe.judge == script


def test_learning_the_same_again_asks_nothing(log_file: Path, script: str, asked: list[str]) -> None:
    """Of the traces; whoever wrote them, it was kept."""
    done(*learn(log_file, script, "--measure", "0"))
    asked.clear()
    text = done(*learn(log_file, script, "--measure", "0", "--overwrite"))
    assert asked == []
    assert re.search(r"0 texts, \d\d+ more from kept answers", text)


def test_stopped_while_deciding_the_same_command_goes_on_where_it_was(
    log_file: Path, script: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("usertwin.evals.cli.learn.tune_twin", stopped)
        result = run(*learn(log_file, script))
    assert result.exit_code == 130
    assert "what was done until now is kept" in result.stderr
    made = record()
    assert (made.state, made.settings) == ("complete", None)
    asked.clear()
    assert "What the twin is best shown" in done(*learn(log_file, script))
    assert len(asked) == 6  # the thoughts of the deciding
    assert replace(record(), settings=None) == made
    assert "--overwrite" in refused(*learn(log_file, script))


@pytest.mark.parametrize("more", [("--seed", "9"), ("--measure", "0"), ("--candidates", "3")])
def test_another_learning_of_the_same_name_still_asks_for_overwrite(log_file: Path, script: str, more: tuple[str, str]) -> None:
    done(*learn(log_file, script, "--measure", "0"))
    assert "--overwrite" in refused(*learn(log_file, script, *more))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--measure", "-1"), "the number of turns to measure on is at least 0"),
        (("--concurrency", "0"), "that of moments at once at least 1"),
        (("--concurrency", "-2"), "that of moments at once at least 1"),
        (("--price", "nonsense"), '"nonsense" is no price; write dollars for a million tokens read and written'),
        (("--price", "1"), '"1" is no price'),
        (("--price", "1/2/3"), '"1/2/3" is no price'),
        (("--price", "-1/2"), '"-1/2" is no price'),
        (("--price", "nan/2"), '"nan/2" is no price'),
        (("--price", "inf/2"), '"inf/2" is no price'),
        (("--price", "/"), '"/" is no price'),
        (("--fidelity", "judge", "--judge", "nonsense"), '"nonsense" is no model\'s name'),
        (("--fidelity", "rank", "--actor", "scripted:nowhere.txt"), "nowhere.txt: the script cannot be read"),
        (("--model", "openai:gpt-5"), "USERTWIN_ONLY_SCRIPTED forbids all others"),
    ],
)
def test_wrong_arguments_of_learn_get_one_sentence(log_file: Path, script: str, more: tuple[str, ...], says: str) -> None:
    assert says in refused(*learn(log_file, script, *more))
    assert not default_home().exists()


# tune ------------------------------------------------------------------------------------------------------------------


def test_tune_decides_and_keeps_what_it_found_in_the_record(ann: str, script: str) -> None:
    before = record(ann)
    assert before.settings is None
    text = done("tune", ann, "--model", script, "--scorer", "fake:", "--seed", "4")
    assert "7 settings on 6 validation turns: 42 turns scored and 6 thoughts written" in text
    found = record(ann).settings
    assert found is not None
    assert found.measured is not None
    assert (found.measured["scorer"], found.measured["model"], found.measured["seed"]) == ("fake:", script, 4)
    assert replace(record(ann), settings=None) == before
    assert f"{found.k} moments with" in done("show", ann)


def test_tune_on_fewer_turns_and_again_replaces_what_was_found(ann: str, script: str) -> None:
    TwinRecord.load(existing_twin(ann))
    replace(record(ann), settings=Settings(k=40, window=9, traces="backward")).save(existing_twin(ann))
    done("tune", ann, "--model", script, "--scorer", "fake:", "--turns", "2")
    found = record(ann).settings
    assert found is not None
    assert found.measured is not None
    assert found.measured["turns"] == 2
    assert found.k in {4, 8}


def test_tune_fits_into_eighty_columns(ann: str, script: str) -> None:
    text = done("tune", ann, "--model", script, "--scorer", "fake:", columns=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_a_twin_without_validation_turns_is_shown_no_traces_and_that_is_said(ann: str, script: str) -> None:
    replace(record(ann), validation=()).save(existing_twin(ann))
    text = done("tune", ann, "--model", script, "--scorer", "fake:")
    assert "nothing to decide on: there is no validation turn" in text
    assert record(ann).settings == Settings(traces="none", reasons=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("tune", "ann", "--turns", "0"), "0 turns to measure on: at least one is needed"),
        (("tune", "ann", "--turns", "-5"), "-5 turns to measure on"),
        (("tune", "nobody"), 'there is no twin "nobody"'),
        (("tune", "../ann"), "cannot be a twin's name"),
        (("tune", "ann", "--scorer", "openai:gpt"), '"openai:gpt" cannot score texts'),
        (("tune", "ann", "--model", "nonsense"), '"nonsense" is no model\'s name'),
        (("tune", "ann", "--model", "local"), "USERTWIN_ONLY_SCRIPTED"),
    ],
)
def test_wrong_arguments_of_tune_get_one_sentence(ann: str, script: str, arguments: tuple[str, ...], says: str) -> None:
    before = files(default_home())
    name, twin, *more = arguments
    assert says in refused(name, twin, "--model", script, "--scorer", "fake:", *more)
    assert files(default_home()) == before


def test_a_twin_whose_held_out_turns_are_gone_is_not_tuned(ann: str, script: str) -> None:
    (existing_twin(ann) / "held_out.jsonl.gz").write_bytes(b"garbage")
    for command in (("tune", ann), ("controls", ann)):
        assert "held_out.jsonl.gz" in refused(*command, "--model", script, "--scorer", "fake:")


# controls --------------------------------------------------------------------------------------------------------------


def controls(name: str, model: str, *more: str | Path) -> tuple[str | Path, ...]:
    """The arguments of the controls without weights."""
    return ("controls", name, "--model", model, "--scorer", "fake:", *more)


def test_controls_end_in_a_table_and_the_decision(ann: str, script: str) -> None:
    before = record(ann)
    text = done(*controls(ann, script))
    assert "6 validation turns: about 84 texts of scripted:" in text
    assert "scored under fake:" in text
    for name in (
        "own trace", "0 filler", "1 the action", "2 paraphrase", "3 shuffled", "4 other person", "5 bag of words", "6 keywords",
        "7 swapped", "8 forward",
    ):  # fmt: skip
        assert f"\n {name} " in text
    assert len(re.findall(r"^(?:yes|no ) (?:own beats|a swapped|the score|choosing)", text, re.MULTILINE)) == 8
    assert "The score is not shown to be more than leakage on this person, with these models" in text
    assert record(ann) == before


def test_controls_write_every_figure_with_every_moment(ann: str, script: str, tmp_path: Path) -> None:
    path = tmp_path / "controls.json"
    done(*controls(ann, script, "--limit", "4", "--json", path, "--seed", "2"))
    found = json.loads(path.read_text("utf-8"))
    assert (found["twin"], found["turns"], found["seed"]) == ("ann", 4, 2)
    assert found["models"] == {"proposer": script, "scorer": "fake:", "embedder": "fake:256"}
    assert set(found["cost"]) == {"calls", "repeated", "input_tokens", "cached_tokens", "output_tokens", "dollars"}
    assert found["decision"] == decision(found)
    assert len(found["moments"]) == 4
    assert {moment["conversation_id"] for moment in found["moments"]} <= set(record(ann).validation)
    for moment in found["moments"]:
        assert moment["traces"]["copy"]["trace"] == f"I would say: {moment['action']}"
        for told in moment["traces"].values():
            assert set(told) == {"trace", "gain", "novel", "rejected", "gives_away", "slot"}


def test_the_same_controls_again_ask_nothing(ann: str, script: str, tmp_path: Path, asked: list[str]) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    one_by_one = ("--concurrency", "1")  # else the script gives two answers to one question that is asked twice at once
    done(*controls(ann, script, "--json", first, *one_by_one))
    spent = len(asked)
    done(*controls(ann, script, "--json", second, *one_by_one))
    assert len(asked) == spent
    one, other = (json.loads(path.read_text("utf-8")) for path in (first, second))
    assert one["cost"]["calls"] > 0
    assert other["cost"]["calls"] == 0
    assert other["cost"]["repeated"] >= one["cost"]["calls"]
    assert {**one, "cost": 0} == {**other, "cost": 0}


def test_the_plan_of_the_controls_is_about_what_they_take(ann: str, script: str, asked: list[str]) -> None:
    text = done(*controls(ann, script))
    [planned] = re.findall(r"about (\d+) texts", text)
    assert len(asked) == pytest.approx(int(planned), rel=0.35)


def test_controls_of_a_twin_that_was_learned_in_another_way_follow_its_recipe(log_file: Path, script: str) -> None:
    done(*learn(log_file, script, "--propose", "forward", "--measure", "0"))
    assert "8 forward" in done(*controls("sam", script, "--limit", "2"))


def test_controls_fit_into_eighty_columns(ann: str, script: str) -> None:
    text = done(*controls(ann, script, "--limit", "4"))
    narrow = run(*controls(ann, script, "--limit", "4"), columns=80).stdout
    assert max(map(len, narrow.splitlines())) <= 80
    assert "…" not in narrow
    for figure in re.findall(r"[+-]\d\.\d+", text):
        assert figure in narrow


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ann", "--limit", "1"), "a limit of 1: controls need at least two turns"),
        (("ann", "--limit", "-3"), "a limit of -3"),
        (("ann", "--candidates", "0"), "0 candidates"),
        (("ann", "--concurrency", "0"), "0 moments at once: at least one must be"),
        (("ann", "--concurrency", "-1"), "-1 moments at once"),
        (("ann", "--price", "nonsense"), '"nonsense" is no price'),
        (("ann", "--json", "nowhere/controls.json"), "nowhere/controls.json: no file can be written there"),
        (("ann", "--json", "."), ".: no file can be written there"),
        (("nobody",), 'there is no twin "nobody"'),
        (("ann", "--scorer", "nonsense"), '"nonsense" cannot score texts'),
        (("ann", "--model", "scripted:nowhere.txt"), "nowhere.txt: the script cannot be read"),
    ],
)
def test_wrong_arguments_of_controls_get_one_sentence_and_nothing_is_asked(
    ann: str, script: str, asked: list[str], arguments: tuple[str, ...], says: str
) -> None:
    name, *more = arguments
    assert says in refused(*controls(name, script, *more))
    assert asked == []


def test_a_twin_with_too_few_validation_turns_is_told_so(ann: str, script: str) -> None:
    replace(record(ann), validation=()).save(existing_twin(ann))
    assert "at least two held-out turns of the person, and there are 0" in refused(*controls(ann, script))


def test_a_twin_without_anybody_to_compare_with_has_no_such_control(tmp_path: Path, script: str) -> None:
    path = tmp_path / "alone.jsonl"
    write_conversations([small_conversation(number) for number in range(20)], path)
    done(*learn(path, script, "--measure", "0"))
    text = done(*controls("sam", script))
    assert "4 other person" not in text
    assert "own beats other: not measured" in text
