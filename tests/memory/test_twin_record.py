"""Tests of memory/twin/record.py and recipe.py: names of twins, twin.json in both formats, and the list of twins."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import recipe
from usertwin.memory import Settings, TwinRecord, existing_twin, list_twins
from usertwin.memory.own_words.word_weights import WordWeights
from usertwin.memory.twin.record import default_home, twin_folder
from usertwin.personas import Persona, TwinError

RECORD = TwinRecord(
    name="ann",
    persona=Persona("Ann", "Writes “short” turns.", 5, ("hi", "bye")),
    recipe=recipe(max_triples=7),
    state="complete",
    learned_at="2024-03-01T10:00:00+00:00",
    dated=True,
    corpus_ends=1709287200.5,
    corpus=("a",),
    validation=("talk-1",),
    test=("talk-2", "talk-3"),
    other_speaker=None,
    versions={"usertwin": "0.1.0"},
)


def save_twin(home: Path, name: str) -> None:
    folder = home / name
    folder.mkdir(parents=True)
    replace(RECORD, name=name).save(folder)


# Names ----------------------------------------------------------------------------------------------------------------


@given(st.text(max_size=70) | st.from_regex(r"[A-Za-z0-9._/\\-]{1,66}", fullmatch=True))
def test_a_name_is_a_folder_in_the_home_or_refused(name: str) -> None:
    try:
        folder = twin_folder(name, "/home-of-twins")
    except TwinError:
        return
    assert folder.parent == Path("/home-of-twins")
    assert folder.name == name
    assert not name.startswith((".", "-"))
    assert name.isascii()
    assert len(name) <= 64


@pytest.mark.parametrize("name", ["a", "Ann", "user-1777b3e5-9e12", "a.b_c-d", "0", "a" * 64, "console", "com10", "a.con"])
def test_ordinary_names_are_accepted(name: str) -> None:
    assert twin_folder(name, "h") == Path("h", name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/b", "a\\b", "/a", ".a", "-a", "a.", "a b", "é", "a\n", "a" * 65, "a:b"]
)
def test_names_that_are_not_folder_names_on_every_system_are_refused(name: str) -> None:
    with pytest.raises(TwinError, match="cannot be a twin's name; use at most 64 letters"):
        twin_folder(name)


@pytest.mark.parametrize("name", ["con", "CON", "nul", "aux.txt", "PRN.a.b", "com1", "LPT9"])
def test_names_of_windows_devices_are_refused(name: str) -> None:
    with pytest.raises(TwinError, match="cannot be a twin's name"):
        twin_folder(name)


def test_weights_of_a_layer_that_was_never_used_are_left_out(tmp_path: Path) -> None:
    replace(RECORD, settings=Settings(words=WordWeights(own=(0.1,)))).save(tmp_path)
    raw = json.loads((tmp_path / "twin.json").read_text("utf-8"))
    raw["settings"]["words"]["others"] = []
    (tmp_path / "twin.json").write_text(json.dumps(raw), "utf-8")
    assert TwinRecord.load(tmp_path).settings == Settings(words=WordWeights(own=(0.1,)))
    raw["settings"]["words"]["others"] = [0.2]
    (tmp_path / "twin.json").write_text(json.dumps(raw), "utf-8")
    with pytest.raises(TwinError, match="is damaged"):
        TwinRecord.load(tmp_path)


# Recipes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "scored", "reconstructs", "judged"),
    [
        ({"method": "recon"}, True, False, False),
        ({"method": "recon", "fidelity": "rank"}, True, True, False),
        ({"method": "recon", "fidelity": "judge"}, True, True, True),
        ({"method": "backward", "fidelity": "judge"}, False, False, False),
        ({"method": "quality", "fidelity": "rank"}, False, False, True),
        ({"method": "random", "proposal_mode": "search"}, True, False, False),
        ({"method": "longest", "proposal_mode": "search", "fidelity": "rank"}, True, True, False),
        ({"method": "none", "proposal_mode": "search", "fidelity": "judge"}, False, False, False),
    ],
)
def test_a_recipe_knows_which_models_it_uses(changes: dict[str, str], scored: bool, reconstructs: bool, judged: bool) -> None:
    made = recipe(**changes, actor="an actor", judge="a judge")
    assert (made.scored, made.reconstructs, made.judged) == (scored, reconstructs, judged)
    traced = changes["method"] != "none"
    used = {"model": traced, "scorer": traced, "actor": reconstructs, "judge": judged}
    assert made.without_unused() == replace(made, **{name: getattr(made, name) if used[name] else None for name in used})


# The home -------------------------------------------------------------------------------------------------------------


def test_the_home_is_usertwin_home_or_in_the_users_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("USERTWIN_HOME", str(tmp_path / "here"))
    assert default_home() == tmp_path / "here"
    assert twin_folder("ann") == tmp_path / "here" / "ann"
    assert twin_folder("ann", tmp_path / "there") == tmp_path / "there" / "ann"
    monkeypatch.delenv("USERTWIN_DATA")
    for value in (None, ""):
        if value is None:
            monkeypatch.delenv("USERTWIN_HOME")
        else:
            monkeypatch.setenv("USERTWIN_HOME", value)
        assert default_home().parts[-2:] == ("usertwin", "twins")
        assert default_home().is_absolute()


def test_only_complete_folders_are_listed(tmp_path: Path) -> None:
    assert list_twins(tmp_path / "nothing-here") == []
    for name in ("bob", "ann", ".ann.partial", ".ann.old"):
        save_twin(tmp_path, name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "twin.json").write_text("{}", "utf-8")
    assert list_twins(tmp_path) == ["ann", "bob"]


def test_the_error_for_a_missing_twin_names_the_existing_ones(tmp_path: Path) -> None:
    with pytest.raises(TwinError, match=r'no twin "ann" .*none yet.*usertwin learn ann --from FILE --speaker WHO'):
        existing_twin("ann", tmp_path)
    save_twin(tmp_path, "bob")
    save_twin(tmp_path, "cleo")
    with pytest.raises(TwinError, match=r"there: bob, cleo"):
        existing_twin("ann", tmp_path)
    assert existing_twin("bob", tmp_path) == tmp_path / "bob"
    with pytest.raises(TwinError, match="cannot be a twin's name"):
        existing_twin("../bob", tmp_path / "inner")


# The record -----------------------------------------------------------------------------------------------------------


def test_a_record_survives_saving_and_loading(tmp_path: Path) -> None:
    measured = RECORD.with_closeness({"arms": {"no_memory": {"value": 1.25, "n": 60}}})
    for record in (RECORD, measured, replace(RECORD, state="interrupted", other_speaker="Bob")):
        record.save(tmp_path)
        assert TwinRecord.load(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["twin.json"]
    assert RECORD.closeness is None


MEASURED = {
    "settings": [
        {"k": 8, "window": 6, "traces": "none", "reasons": False, "chosen": False},
        {"k": 8, "window": 6, "traces": "recon", "reasons": True, "chosen": True},
    ],
    "turns": 24,
}


@pytest.mark.parametrize("fidelity", ["guarded_gain", "gain"])
@pytest.mark.parametrize("settings", [None, Settings(), Settings(traces="backward"), Settings(k=4, measured=MEASURED)])
def test_a_record_of_format_1_equals_its_form_in_format_2(tmp_path: Path, fidelity: str, settings: Settings | None) -> None:
    record = replace(RECORD, recipe=recipe(proposal_mode="search", max_calls=5, fidelity=fidelity), settings=settings)
    record.save(tmp_path)
    raw = json.loads((tmp_path / "twin.json").read_text("utf-8"))
    old = raw["recipe"]
    old["how"], old["calls"] = old.pop("proposal_mode"), old.pop("max_calls")
    old["fidelity"] = {"guarded_gain": "novel"}.get(fidelity, fidelity)
    shown = (
        [] if settings is None else [raw["settings"], *((settings.measured or {}) and raw["settings"]["measured"]["settings"])]
    )
    for values in shown:
        values["traces"] = {"recon": "chosen"}.get(values["traces"], values["traces"])
    text = json.dumps(raw | {"format": 1})
    assert "guarded_gain" not in text
    assert '"recon"' not in text.replace('"method": "recon"', "")
    (tmp_path / "twin.json").write_text(text, "utf-8")
    assert TwinRecord.load(tmp_path) == record


def test_a_record_of_format_1_without_fidelity_and_settings_has_the_defaults(tmp_path: Path) -> None:
    RECORD.save(tmp_path)
    raw = json.loads((tmp_path / "twin.json").read_text("utf-8"))
    for key in ("proposal_mode", "fidelity", "actor", "judge", "max_calls", "synthesizer"):
        del raw["recipe"][key]
    del raw["settings"]
    (tmp_path / "twin.json").write_text(json.dumps(raw | {"format": 1}), "utf-8")
    assert TwinRecord.load(tmp_path) == RECORD


def test_an_interrupted_save_leaves_the_previous_record(tmp_path: Path) -> None:
    RECORD.save(tmp_path)
    (tmp_path / "twin.json.partial").write_text('{"format": 1, "na', "utf-8")
    assert TwinRecord.load(tmp_path) == RECORD


@given(st.data())
def test_a_truncated_record_is_damaged(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("twin")
    RECORD.save(folder)
    data_ = (folder / "twin.json").read_bytes()
    (folder / "twin.json").write_bytes(data_[: data.draw(st.integers(0, len(data_) - 3))])
    with pytest.raises(TwinError, match=r"twin\.json: is damaged .*--overwrite"):
        TwinRecord.load(folder)


@pytest.mark.parametrize("key", ["name", "persona", "recipe", "state", "corpus_ends", "validation", "test", "versions"])
def test_a_record_without_a_required_key_is_damaged(tmp_path: Path, key: str) -> None:
    RECORD.save(tmp_path)
    raw = json.loads((tmp_path / "twin.json").read_text("utf-8"))
    del raw[key]
    (tmp_path / "twin.json").write_text(json.dumps(raw), "utf-8")
    with pytest.raises(TwinError, match=r"is damaged"):
        TwinRecord.load(tmp_path)


@pytest.mark.parametrize(
    "change", [{"persona": 3}, {"persona": {"name": ""}}, {"recipe": {}}, {"test": 3}, {"what": "is this"}]
)
def test_a_record_with_an_invalid_value_is_damaged(tmp_path: Path, change: dict[str, object]) -> None:
    RECORD.save(tmp_path)
    raw = json.loads((tmp_path / "twin.json").read_text("utf-8"))
    (tmp_path / "twin.json").write_text(json.dumps(raw | change), "utf-8")
    with pytest.raises(TwinError, match=r"is damaged"):
        TwinRecord.load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"twin"'])
def test_a_record_that_is_not_an_object_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "twin.json").write_text(text, "utf-8")
    with pytest.raises(TwinError, match=r"is damaged"):
        TwinRecord.load(tmp_path)


def test_a_record_that_is_not_utf_8_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "twin.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TwinError, match=r"is damaged"):
        TwinRecord.load(tmp_path)


def test_a_newer_format_is_named_in_the_error(tmp_path: Path) -> None:
    RECORD.save(tmp_path)
    text = (tmp_path / "twin.json").read_text("utf-8")
    assert '"format": 2' in text
    (tmp_path / "twin.json").write_text(text.replace('"format": 2', '"format": 3'), "utf-8")
    with pytest.raises(TwinError, match=r"newer usertwin; upgrade"):
        TwinRecord.load(tmp_path)


def test_a_folder_without_a_record_and_a_file_are_not_twins(tmp_path: Path) -> None:
    with pytest.raises(TwinError, match=r"is not a complete twin"):
        TwinRecord.load(tmp_path)
    with pytest.raises(TwinError, match=r"is not a complete twin"):
        TwinRecord.load(tmp_path / "missing")
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(TwinError, match=r"is not a complete twin"):
        TwinRecord.load(tmp_path / "file")


def test_opening_a_twin_does_not_read_the_names_of_all_twins(tmp_path: Path) -> None:
    save_twin(tmp_path, "ann")
    read: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event in {"os.scandir", "os.listdir"}:
            read.append(str(arguments[0]))

    sys.addaudithook(watch)
    try:
        existing_twin("ann", tmp_path)
        assert str(tmp_path) not in read
        list_twins(tmp_path)
        assert str(tmp_path) in read  # the hook sees it
    finally:
        watching = False
