"""The Oyez importer: arguments become conversations with verbatim text, and a justice's twin can be learned."""

from __future__ import annotations

import json
import tempfile
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from usertwin.evals.cli.main import main
from usertwin.memory import TwinRecord
from usertwin.memory.twin.record import twin_folder
from usertwin.personas import ChatLog, LogError, Turn, as_conversation, load_log, split_pairs, write_conversations

JUSTICE_SINCE_2009 = [{"type": "scotus_justice", "date_start": 1249707600, "date_end": 0, "role_title": "Associate Justice"}]


def speaker(name: str, roles: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"ID": 1, "name": name, "last_name": name, "roles": roles, "identifier": name.lower().replace(" ", "_")}


ROSE = speaker("Rose Winter", JUSTICE_SINCE_2009)
ABEL = speaker("Abel Summer")


def turn(who: dict[str, Any] | None, *texts: str | None, start: float = 0.0) -> dict[str, Any]:
    blocks = [{"start": start, "stop": start + 1, "text": text} for text in texts]
    return {"start": start, "stop": start + 1, "speaker": who, "text_blocks": blocks}


def argument(*turns: dict[str, Any], title: str | None = "Oral Argument - November 26, 2018") -> dict[str, Any]:
    middle = (len(turns) + 1) // 2
    sections = [{"start": 0, "stop": 9.5, "turns": list(part)} for part in (turns[:middle], turns[middle:])]
    transcript = {"title": "WEST, Petitioner, v. EAST", "duration": None, "sections": sections}
    return {"id": 24779, "title": title, "media_file": [{"id": 1}], "unavailable": None, "transcript": transcript}


def write(folder: Path, name: str, value: Any) -> Path:
    path = folder / f"{name}.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return path


def spoken(log: ChatLog) -> list[tuple[str, str]]:
    """Return the turns of the only conversation as (speaker, text)."""
    [conversation] = log.conversations
    return [(turn.speaker, turn.text) for turn in conversation.turns]


def one_argument(folder: Path, *turns: dict[str, Any], **settings: Any) -> ChatLog:
    """Return the log of a single argument."""
    return load_log(f"oyez:{write(folder, 'one', argument(*turns, **settings))}")


def test_file_becomes_a_conversation_with_date_roles_and_extra_keys(tmp_path: Path) -> None:
    write(
        tmp_path,
        "2018.17-1174-t01",
        argument(turn(ROSE, "We will hear you."), turn(ABEL, "May it please:", "First.")),
    )
    log = load_log(f"oyez:{tmp_path}")
    [conversation] = log.conversations
    assert (conversation.conversation_id, conversation.started_at) == ("2018.17-1174-t01", "2018-11-26")
    assert conversation.extra == {
        "source": "oyez", "title": "Oral Argument - November 26, 2018", "case": "WEST, Petitioner, v. EAST", "oyez_id": "24779",
    }  # fmt: skip
    assert conversation.turns == (
        Turn(
            "Rose Winter", "justice", "We will hear you.", time=None, extra={"start": 0, "stop": 1, "identifier": "rose_winter"}
        ),
        Turn(
            "Abel Summer",
            "advocate",
            "May it please: First.",
            time=None,
            extra={"start": 0, "stop": 1, "identifier": "abel_summer"},
        ),
    )


def test_a_single_file_is_read_like_a_folder(tmp_path: Path) -> None:
    path = write(tmp_path, "one", argument(turn(ROSE, "Yes?"), turn(ABEL, "Yes.")))
    assert load_log(f"oyez:{path}").conversations == load_log(f"oyez:{tmp_path}").conversations


def test_consecutive_turns_of_one_speaker_are_merged_from_first_start_to_last_stop(tmp_path: Path) -> None:
    log = one_argument(
        tmp_path, turn(ROSE, "One.", start=1), turn(ROSE, "Two.", start=5), turn(ROSE, "Three.", start=7), turn(ABEL, "No.")
    )
    assert spoken(log) == [("Rose Winter", "One.\nTwo.\nThree."), ("Abel Summer", "No.")]
    extra = log.conversations[0].turns[0].extra
    assert (extra["start"], extra["stop"]) == (1, 8)


def test_turn_with_only_stage_directions_is_dropped_and_its_neighbours_are_merged(tmp_path: Path) -> None:
    log = one_argument(tmp_path, turn(ROSE, "So."), turn(ABEL, "[Laughter]", "(Inaudible).", None, " "), turn(ROSE, "So what?"))
    assert spoken(log) == [("Rose Winter", "So.\nSo what?")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Well. [Laughter] I see.", "Well. I see."),
        ("the (INAUDIBLE). And", "the. And"),
        ("(Voice Overlap) -- no, [voice overlap]", "-- no,"),
        ("{Voice overlap} Yes (Laughter.) indeed [Recess]", "Yes indeed"),
        ("[Inauidble] typed (Luaghter) badly (cross-talk)", "typed badly"),
        ("3(a)(1), (recess appointments) of [the] [dollars]", "3(a)(1), (recess appointments) of [the] [dollars]"),
        ("an (inaugural) [laughter", "an (inaugural) [laughter"),
        ("two  blanks,\n a line", "two  blanks,\n a line"),
        ("--", "--"),
    ],
)  # fmt: skip
def test_stage_directions_are_removed_and_other_text_is_verbatim(text: str, expected: str, tmp_path: Path) -> None:
    assert spoken(one_argument(tmp_path, turn(ROSE, text))) == [("Rose Winter", expected)]


def test_turns_of_unknown_speakers_are_not_merged(tmp_path: Path) -> None:
    nameless = speaker("") | {"identifier": None}
    called = speaker("Unknown Speaker", JUSTICE_SINCE_2009)
    log = one_argument(tmp_path, turn(ROSE, "A."), turn(None, "B."), turn(nameless, "C."), turn(called, "D."), turn(ROSE, "E."))
    assert [(t.speaker, t.role, t.text) for t in log.conversations[0].turns] == [
        ("Rose Winter", "justice", "A."),
        ("Unknown Speaker", "unknown", "B."),
        ("Unknown Speaker", "unknown", "C."),
        ("Unknown Speaker", "unknown", "D."),
        ("Rose Winter", "justice", "E."),
    ]


def test_justice_is_an_advocate_before_joining_the_court(tmp_path: Path) -> None:
    before = one_argument(tmp_path, turn(ROSE, "May it please."), title="Oral Argument - May 5, 2004")
    assert before.conversations[0].turns[0].role == "advocate"
    undated = one_argument(tmp_path, turn(ROSE, "Counsel."), title=None)
    assert undated.conversations[0].turns[0].role == "justice"


@pytest.mark.parametrize(
    ("title", "started"),
    [
        ("Oral Reargument - October 9, 1961 (Part 2)", "1961-10-09"),
        ("Opinion Announcement - June 01, 2019", "2019-06-01"),
        ("Oral Argument, Part 1: february 28, 1955", "1955-02-28"),
        ("Oral Argument - February 31, 2018", None),
        ("Oral Argument", None),
        (None, None),
    ],
)
def test_date_comes_from_the_title(title: str | None, started: str | None, tmp_path: Path) -> None:
    assert one_argument(tmp_path, turn(ROSE, "Yes."), title=title).conversations[0].started_at == started


def test_arguments_are_sorted_by_date_then_file_name(tmp_path: Path) -> None:
    for name, day in (
        ("2018.b-t02", "6, 2018"),
        ("2018.b-t01", "6, 2018"),
        ("2018.a-t01", "6, 2018"),
        ("2019.z-t01", "5, 2018"),
    ):
        write(tmp_path, name, argument(turn(ROSE, "Yes."), title=f"Oral Argument - November {day}"))
    ids = [c.conversation_id for c in load_log(f"oyez:{tmp_path}").conversations]
    assert ids == ["2019.z-t01", "2018.a-t01", "2018.b-t01", "2018.b-t02"]


def test_files_without_a_transcript_are_dropped_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "2018.17-1174-t01", argument(turn(ROSE, "Yes.")))
    write(tmp_path, "2018.17-1174", {"ID": 5, "name": "West v. East", "title": 7, "oral_argument_audio": []})
    write(tmp_path, "case_summaries", [{"ID": 5}])
    write(tmp_path, "gone", argument() | {"transcript": None, "unavailable": True})
    write(tmp_path, "silent", argument(turn(ROSE, "(Inaudible)")))
    (tmp_path / "notes.txt").write_text("no argument", "utf-8")
    log = load_log(f"oyez:{tmp_path}")
    assert (len(log.conversations), log.files_without_turns) == (1, 4)


def test_log_survives_writing_and_reading(tmp_path: Path) -> None:
    log = one_argument(tmp_path, turn(ROSE, "Half an emoji: \ud83d"), turn(ABEL, "Yes."))
    write_conversations(log.conversations, tmp_path / "log.jsonl")
    assert load_log(tmp_path / "log.jsonl").conversations == log.conversations


# Errors -------------------------------------------------------------------------------


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"nowhere: no such file or folder; name .* --from oyez:FOLDER"):
        load_log(f"oyez:{tmp_path / 'nowhere'}")


def test_folder_without_an_argument_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "case", {"name": "West v. East"})
    with pytest.raises(LogError, match=r"no argument with a transcript \(1 files without one\); name a folder"):
        load_log(f"oyez:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"id":\n 5,, }', r"2: not JSON"),
        pytest.param("[" * 100_000, r"1: not JSON", id="deep"),
        (argument() | {"transcript": "text"}, r'1: "transcript" must be an object or null, not str'),
        (argument({"text_blocks": {}}), r'1: "text_blocks" must be a list or null, not dict'),
        (argument({"speaker": "Rose"}), r'1: a "speaker" must be an object or null, not str'),
        (argument(turn(ROSE | {"roles": [5]}, "Yes.")), r"1: a role must be an object or null, not int"),
        (argument(turn(ROSE, 5)), r'1: the "text" of a text block must be text or null, not int'),  # pyright: ignore[reportArgumentType]
    ],
)
def test_malformed_file_is_named_with_the_way_out_and_can_be_skipped(content: Any, reason: str, tmp_path: Path) -> None:
    write(tmp_path, "broken", content)
    with pytest.raises(LogError, match=rf"broken\.json:{reason}") as error:
        load_log(f"oyez:{tmp_path}")
    assert str(error.value).endswith("; fix or remove the file, or pass --skip-bad-lines")
    with pytest.raises(LogError, match=r"0 files without one; 1 malformed files were skipped"):
        load_log(f"oyez:{tmp_path}", skip_bad_lines=True)
    write(tmp_path, "whole", argument(turn(ROSE, "Yes.")))
    [bad] = load_log(f"oyez:{tmp_path}", skip_bad_lines=True).skipped
    assert bad.reason.startswith("broken.json: ")


def test_file_that_is_not_utf_8_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_bytes(b'{"title": "\xff"}')
    with pytest.raises(LogError, match=r"broken\.json:1: not UTF-8 text \(byte 11\); fix or remove the file"):
        load_log(f"oyez:{tmp_path}")


def test_undated_argument_among_dated_ones_is_named_and_can_be_skipped(tmp_path: Path) -> None:
    write(tmp_path, "dated", argument(turn(ROSE, "Yes.")))
    write(tmp_path, "undated", argument(turn(ROSE, "Yes."), title="Oral Argument"))
    with pytest.raises(LogError, match=r"undated\.json: no date in its title, while 1 other arguments have one; add a date"):
        load_log(f"oyez:{tmp_path}")
    log = load_log(f"oyez:{tmp_path}", skip_bad_lines=True)
    assert [c.conversation_id for c in log.conversations] == ["dated"]
    assert [bad.reason for bad in log.skipped] == ["undated.json: no date in its title"]


# Arbitrary JSON ------------------------------------------------------------------------------------------------------

_anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.none(), max_size=2)


def _or_odd(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(usual, usual, usual, usual, _anything)


_texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ["[Laughter]", "Yes (Inaudible). [", "({[", "\ud800"]
)
_speakers = st.none() | st.fixed_dictionaries(
    {"name": _or_odd(st.sampled_from(["Rose Winter", "Abel Summer", "Unknown Speaker", ""]))},
    optional={
        "roles": _or_odd(
            st.lists(st.fixed_dictionaries({"type": st.just("scotus_justice"), "date_start": _anything}), max_size=2)
        ),
        "identifier": _or_odd(_texts),
    },
)
_blocks = st.fixed_dictionaries({"text": _or_odd(_texts)}, optional={"start": _anything})
_turns = st.fixed_dictionaries(
    {"speaker": _or_odd(_speakers), "text_blocks": _or_odd(st.lists(_blocks, max_size=3))},
    optional={"start": _anything, "stop": _anything},
)
_sections = st.fixed_dictionaries({"turns": _or_odd(st.lists(_turns, max_size=4))})
_transcripts = st.fixed_dictionaries(
    {"sections": _or_odd(st.lists(_sections, max_size=2))}, optional={"title": _or_odd(_texts)}
)
_titles = st.sampled_from(["Oral Argument - May 1, 2000", "Opinion Announcement - May 99, 2000", ""])
_files = st.fixed_dictionaries({"transcript": _or_odd(_transcripts)}, optional={"title": _or_odd(_titles), "id": _anything})


@given(_or_odd(_files))
def test_any_json_gives_a_writable_log_or_a_log_error(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), "any", value)
        try:
            conversations = load_log(f"oyez:{path}").conversations
        except LogError:
            return
    [conversation] = conversations
    assert conversation.turns
    assert all(t.text.strip() and t.speaker for t in conversation.turns)
    assert as_conversation(json.loads(json.dumps(conversation.to_json()))) == conversation


@given(
    st.lists(
        st.tuples(st.sampled_from(["Rose", "Abel"]), st.lists(st.text("ab ([{)}]\n.,", max_size=20), max_size=3)), max_size=6
    )
)
def test_text_without_stage_directions_is_verbatim(turns: list[tuple[str, list[str]]]) -> None:
    stripped = [(name, [text.strip() for text in texts if text.strip()]) for name, texts in turns]
    kept = [(name, texts) for name, texts in stripped if texts]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), "any", argument(*(turn(speaker(name), *texts) for name, texts in turns)))
        if not kept:
            with pytest.raises(LogError, match="no argument with a transcript"):
                load_log(f"oyez:{path}")
            return
        turns_read = spoken(load_log(f"oyez:{path}"))
    in_a_row = [(name, list(group)) for name, group in groupby(kept, key=itemgetter(0))]
    assert turns_read == [(name, "\n".join(" ".join(texts) for _, texts in group)) for name, group in in_a_row]


# End to end -------------------------------------------------------------------------------------------------------


@pytest.fixture
def court(tmp_path: Path) -> Path:
    """A folder of ten invented arguments and a file of a case."""
    folder = tmp_path / "cases"
    folder.mkdir()
    june = speaker("June Frost", JUSTICE_SINCE_2009)
    for number in range(10):
        who = speaker(f"Counsel Number{number}")
        turns = [
            turn(june, f"We will hear argument in case {number}."),
            turn(who, "May it please the Court: the ferry was late."),
            turn(ROSE, f"How late was it, say, in hours of day {number}? [Laughter]"),
            turn(who, "Two hours, Justice Winter."),
            turn(ROSE, f"And who waited at pier {number}?"),
            turn(who, "Everybody did."),
            turn(ROSE, "Thank you."),
        ]
        write(folder, f"2018.17-{number}-t01", argument(*turns, title=f"Oral Argument - March {number + 1}, 2018"))
    write(folder, "2018.17-1", {"name": "West v. East"})
    return folder


def test_twin_of_a_justice_is_compared_with_another_justice(court: Path, tmp_path: Path) -> None:
    args = [
        "learn",
        "rose",
        "--from",
        f"oyez:{court}",
        "--speaker",
        "Rose Winter",
        "--traces",
        "none",
        "--embedder",
        "fake:64",
    ]
    done = CliRunner().invoke(main, [*args, "--tune-turns", "0"])
    assert done.exit_code == 0, done.output
    assert "1 files without a conversation were left out" in done.output
    record = TwinRecord.load(twin_folder("rose"))
    assert (record.state, record.other_speaker, record.dated) == ("complete", "June Frost", True)


def test_split_keeps_whole_arguments_together(court: Path) -> None:
    split = split_pairs(load_log(f"oyez:{court}"), "Rose Winter")
    assert split.test[-1].conversation_id == "2018.17-9-t01"
    assert max(pair.when for pair in split.corpus) < min(pair.when for pair in split.test)
    assert split.test[0].previous_role == "advocate"
