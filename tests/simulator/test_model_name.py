"""Model names: parsing, adapters, absolute paths, and what callers read from a name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.personas import UsageError
from usertwin.personas.secrets import take_logins
from usertwin.simulator.backends.model_name import ModelName, Role, fake_dimension, kind_of

_WORD = st.text("abc.-_/", min_size=1, max_size=8).map(lambda text: f"x{text}y")
_ABSOLUTE = _WORD.map(lambda text: str(Path("/nowhere") / text))
_PLAIN = st.one_of(
    st.sampled_from(["local", "local:small"]),
    _ABSOLUTE.map(lambda path: f"local:{path}.gguf"),
    st.tuples(st.text("abc", min_size=1), st.text("abc", min_size=1), _WORD).map(lambda part: "hf:{}/{}/{}.gguf".format(*part)),
)
_URL = st.text("abc:/@+.", max_size=9).map(lambda rest: f"http://{rest}").filter(lambda url: "@" not in take_logins(url))
_OTHER = st.one_of(
    _ABSOLUTE.map(lambda path: f"transformers:{path}"),
    _ABSOLUTE.map(lambda path: f"scripted:{path}"),
    _WORD.map(lambda name: f"openai:{name}"),
    st.tuples(_WORD, _URL).map(lambda part: f"openai:{part[0]}@{part[1]}"),
)


@given(_PLAIN | _OTHER | st.tuples(_PLAIN, _ABSOLUTE).map("+".join))
def test_a_name_round_trips(text: str) -> None:
    name = ModelName.parse(text)
    assert str(name) == take_logins(text)
    assert ModelName.parse(str(name)) == name
    assert name.resolved() == name  # absolute paths stay as they are
    assert kind_of(text) == name.kind


_PREFIXES = st.sampled_from(["local:", "transformers:", "hf:", "local+", "openai:", "scripted:", ""])


@given(_PREFIXES, st.text("+/abc.", max_size=12))
def test_any_text_is_a_name_that_round_trips_or_a_usage_error(prefix: str, rest: str) -> None:
    try:
        name = ModelName.parse(prefix + rest)
    except UsageError:
        return
    assert ModelName.parse(str(name)) == name


@pytest.mark.parametrize("text", ["local:x", "openai:a+b@http://x/+", "scripted:a+b", "local", "local:small"])
def test_most_names_have_no_adapter(text: str) -> None:
    assert ModelName.parse(text).adapter is None


def test_the_adapter_follows_the_last_plus_before_an_existing_folder(tmp_path: Path) -> None:
    for folder in ("base", "a+b", "a", "b", "ba+se"):
        (tmp_path / folder).mkdir()
    at = str(tmp_path)
    for text, base, adapter in (
        (f"local+{at}/a+b", "local", "a+b"),
        (f"local:small+{at}/a", "local:small", "a"),
        (f"transformers:{at}/base+{at}/a+b", f"transformers:{at}/base", "a+b"),
        (f"transformers:{at}/ba+se+{at}/b", f"transformers:{at}/ba+se", "b"),
        (f"transformers:{at}/ba+se", f"transformers:{at}/ba+se", None),
        (f"hf:org/repo/x.gguf+{at}/a", "hf:org/repo/x.gguf", "a"),
    ):
        name = ModelName.parse(text)
        assert (name.base, name.adapter) == (base, None if adapter is None else tmp_path / adapter)


def test_a_missing_adapter_is_still_parsed_as_one(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    for text in ("local", "local:small", "local:/x/y.gguf", "hf:org/repo/y.gguf", f"transformers:{tmp_path / 'base'}"):
        name = ModelName.parse(f"{text}+/no/such")
        assert (name.base, name.adapter) == (text, Path("/no/such"))


def test_relative_paths_start_from_the_given_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("models/base", "trained"):
        (tmp_path / folder).mkdir(parents=True)

    def resolve(text: str) -> str:
        return str(ModelName.parse(text, folder=tmp_path).resolved(tmp_path))

    at = tmp_path.resolve()
    assert resolve("local+trained") == f"local+{at}/trained"
    assert resolve("transformers:models/base+trained") == f"transformers:{at}/models/base+{at}/trained"
    assert resolve("local:x.gguf+trained") == f"local:{at}/x.gguf+{at}/trained"
    assert resolve("local:small+trained") == f"local:small+{at}/trained"
    assert resolve("scripted:x.txt") == f"scripted:{at}/x.txt"
    for text in ("openai:a/b", "openai:n@http://x", "local", "hf:org/repo/x.gguf"):
        assert resolve(text) == text
    monkeypatch.chdir(tmp_path)
    assert str(ModelName.parse("local+trained").resolved()) == f"local+{at}/trained"


@pytest.mark.parametrize(
    ("text", "role", "complaint"),
    [
        ("gpt-5", "chat model", '"gpt-5" is not a chat model; use "local"'),
        ("fake:", "chat model", "is not a chat model"),
        ("openai:@http://x", "chat model", "is not a chat model"),
        ("openai:gpt", "scorer", '"openai:gpt" cannot score texts; use "local"'),
        ("fake:64", "scorer", "cannot score texts"),
        ("fake:", "base", '"fake:" has no weights here; use "local"'),
        ("scripted:x", "base", "has no weights here"),
        ("local+/a", "base", '"local\\+/a" has an adapter; name the base model without one'),
        ("hf:repo", "chat model", r"write hf:OWNER/REPO/FILE\.gguf"),
        ("hf:org/repo", "scorer", r"write hf:OWNER/REPO/FILE\.gguf"),
        ("hf:org/repo/x.bin", "base", r"write hf:OWNER/REPO/FILE\.gguf"),
        ("hf://x.gguf", "chat model", r"write hf:OWNER/REPO/FILE\.gguf"),
    ],
)
def test_a_name_that_does_not_fill_the_role_is_refused(text: str, role: Role, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        ModelName.parse(text, role)


@pytest.mark.parametrize(
    "login", ["bob:dug/ong", "bob:dug#ong", "bob:dug ong", "bob:'dugong", "bob:du<g>ong", "bob:dug?ong"]
)  # fmt: skip
def test_a_login_that_cannot_be_taken_out_of_a_url_is_refused_without_showing_it(login: str) -> None:
    with pytest.raises(UsageError, match="write special characters of a login as %2F") as refused:
        ModelName.parse(f"openai:m@http://{login}@127.0.0.1:9/v1")
    assert "ong" not in str(refused.value)


def test_a_name_tells_callers_how_to_use_the_model() -> None:
    local, file, hub, folder, hosted, script = map(
        ModelName.parse, ("local", "local:~/x.gguf", "hf:o/r/x.gguf", "transformers:d", "openai:gpt-5-mini", "scripted:s")
    )
    assert [name.is_local for name in (local, file, hub, folder, hosted, script)] == [True, True, True, True, False, False]
    assert [name.is_free for name in (local, file, hub, folder, hosted, script)] == [True, True, True, True, False, True]
    assert [name.is_gguf for name in (local, file, hub, folder, hosted, script)] == [True, True, True, False, False, False]
    assert [name.is_built_in for name in (local, ModelName.parse("local:small"), file)] == [True, True, False]
    assert file.path == Path.home() / "x.gguf"
    assert (local.default_style, hosted.default_style) == ("transcript", "instruction")
    assert not hosted.supports_sampling_params
    assert ModelName.parse("openai:gpt-4.1").supports_sampling_params
    assert ModelName.parse("fake:", "scorer").kind == "fake"


def test_fake_dimension_reads_only_fake_embedders() -> None:
    assert (fake_dimension("fake:"), fake_dimension("fake:64")) == (256, 64)
    assert fake_dimension("all-MiniLM-L6-v2") is None
    assert fake_dimension("fake") is None


def test_kind_of_other_texts_is_none() -> None:
    assert [kind_of(text) for text in ("agent:reply", "demo", "", "localhost:x")] == [None] * 4
