"""Importers of every format: what is kept, what is dropped and counted, ids, copies, times, and that nothing raises."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from import_samples import (
    OPENAI,
    SAMPLES,
    TELEGRAM,
    WHATSAPP,
    Sample,
    claude,
    claude_message,
    discord,
    discord_message,
    lines,
    mail,
    packed,
    slack,
    telegram,
    telegram_message,
)  # fmt: skip

from usertwin.personas import LogError, UsageError, UsertwinError, load_log, read_conversations, unpacking
from usertwin.personas.importers import source
from usertwin.personas.importers.assemble import Rules, assemble, make_rules, parse_duration
from usertwin.personas.importers.formats import FORMATS, find_format
from usertwin.personas.importers.placeholders import is_placeholder
from usertwin.personas.importers.read_logs import ImportSummary, import_to_file
from usertwin.personas.importers.source import open_source
from usertwin.personas.importers.thread import Tally

every_sample = pytest.mark.parametrize(
    "sample", SAMPLES, ids=[f"{sample.format}-{number}" for number, sample in enumerate(SAMPLES)]
)  # fmt: skip


def imported(sample: Sample, folder: Path, **options: object) -> tuple[ImportSummary, list[list[str]]]:
    """Import a sample, and return the summary and the turns of each conversation."""
    log, out = sample.write(folder / "in"), folder / "out.jsonl"
    summary = import_to_file([log], out, **options)  # pyright: ignore[reportArgumentType]
    talks = [[f"{t.speaker}: {t.text}" for t in c.turns] for c in read_conversations(out).conversations]
    return summary, talks


@every_sample
def test_sample_is_recognised_and_every_message_is_kept_or_counted(sample: Sample, tmp_path: Path) -> None:
    summary, talks = imported(sample, tmp_path)
    assert find_format(open_source(sample.write(tmp_path / "in"))).name == sample.format
    assert talks == sample.talks
    assert (summary.tally.dropped.total(), summary.tally.merged) == (sample.dropped, sample.merged), summary.tally.dropped
    assert sample.first is None or summary.first == sample.first
    kept = sum(map(len, sample.talks))
    assert (summary.turns, summary.conversations) == (kept, len(sample.talks))


def test_every_format_has_three_samples() -> None:
    counts = Counter(sample.format for sample in SAMPLES)
    assert counts.keys() == FORMATS.keys()
    assert min(counts.values()) >= 3
    assert len(counts) >= 20


@every_sample
def test_a_log_in_memory_is_the_imported_one(sample: Sample, tmp_path: Path) -> None:
    log = load_log(sample.write(tmp_path))
    assert sorted(t.text for c in log.conversations for t in c.turns) == sorted(
        t.split(": ", 1)[1] for x in sample.talks for t in x
    )
    assert len({c.conversation_id for c in log.conversations}) == len(log.conversations)


@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_damaged_files_raise_nothing_but_our_errors(number: int, tmp_path: Path) -> None:
    """Bytes are cut, doubled, replaced: a log is read or refused, and a written log can be read again."""
    sample, rng = SAMPLES[number], random.Random(number)
    for attempt in range(6):
        files: dict[str, str | bytes] = {}
        for name, content in sample.files.items():
            data = bytearray(content if isinstance(content, bytes) else content.encode())
            for _ in range(rng.choice((1, 1, 3, 9))):
                place = rng.randrange(len(data) or 1)
                piece = rng.choice(
                    (b"", b"null", b'"', b"{}", b"[1]", b"\xff", b"\x00", b"-1", b"1e999", b"\n", b"[" * 3000, b"\\ud800")
                )
                data[place : place + rng.choice((0, 1, 4, 20))] = piece
            files[name] = bytes(data)
        broken = Sample(format=sample.format, files=files, talks=[])
        try:
            log = broken.write(tmp_path / str(attempt))
            import_to_file([log], tmp_path / "out.jsonl", format_name=rng.choice((None, sample.format)), skip_bad_lines=True)
            read_conversations(tmp_path / "out.jsonl")
        except UsertwinError:
            continue


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), max_size=12) | st.sampled_from(
    ["", " ", "<Media omitted>", "1/2/26, 9:00 - x: y", "<b>", "[", '"', ",", "\u2028", "\x00", "\u200e", "= 1"]
)
messages = st.lists(st.tuples(st.sampled_from(["ann", "bob", "Cy D."]), words), min_size=1, max_size=12)


def _whatsapp(talk: list[tuple[str, str]]) -> str:
    return "".join(f"14/03/2026, 21:{n:02d} - {speaker}: {text}\n" for n, (speaker, text) in enumerate(talk))


def _csv(talk: list[tuple[str, str]]) -> str:
    rows = io.StringIO(newline="")
    csv.writer(rows, lineterminator="\n").writerows([("speaker", "text"), *talk])
    return rows.getvalue()


WRITERS: dict[str, Callable[[list[tuple[str, str]]], str]] = {
    "telegram": lambda talk: json.dumps(telegram(*(telegram_message(*item) for item in talk))),
    "discord": lambda talk: discord(*(discord_message(*item) for item in talk)),
    "claude": lambda talk: json.dumps([claude(*(claude_message(*item) for item in talk))]),
    "sharegpt": lambda talk: lines({"conversations": [{"from": a, "value": b} for a, b in talk]}),
    "usertwin": lambda talk: lines({"messages": [{"role": a, "content": b} for a, b in talk]}),
    "slack": lambda talk: json.dumps([slack(a, b, f"17735220{n:02d}.0") for n, (a, b) in enumerate(talk)]),
    "whatsapp": _whatsapp,
    "table": _csv,
}


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=30, deadline=None)
@given(talk=messages)
def test_every_written_message_is_kept_joined_or_dropped(name: str, talk: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / {"whatsapp": "a.txt", "table": "a.csv"}.get(name, "a.json")
        log.write_bytes(WRITERS[name](talk).encode())
        tally = Tally()
        kept = 0
        for thread in FORMATS[name].read(open_source(log), tally):
            for conversation in assemble(thread, Rules(), tally, is_thread=FORMATS[name].is_thread):
                kept += len(conversation.turns)
    assert kept + tally.merged + tally.dropped.total() == len(talk)


def test_an_undated_log_whose_numbers_fall_may_be_newest_first(tmp_path: Path) -> None:
    rows = [{"id": f"t{n}", "conversations": [{"from": "human", "value": f"hi {n}"}]} for n in range(9, 0, -1)]
    (tmp_path / "a.jsonl").write_text(lines(*rows))
    assert any("may be newest first" in note for note in load_log(tmp_path / "a.jsonl").notes())
    (tmp_path / "a.jsonl").write_text(lines(*rows[::-1]))
    assert not any("may be newest first" in note for note in load_log(tmp_path / "a.jsonl").notes())


def test_an_unknown_format_is_named_by_what_was_seen(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines({"foo": 1, "bar": 2}))
    with pytest.raises(LogError, match=r"no known format: holds JSON with the keys 'foo', 'bar'; name one with --format"):
        load_log(tmp_path / "a.jsonl")
    (tmp_path / "b.dat").write_bytes(b"\x00\x01\x02")
    with pytest.raises(LogError, match="holds binary data"):
        load_log(tmp_path / "b.dat")
    (tmp_path / "c.txt").write_text("Dear diary,\n")
    with pytest.raises(LogError, match='begins with "Dear diary,"'):
        load_log(tmp_path / "c.txt")
    with pytest.raises(UsageError, match='--format: "msn" is no format; choose one of chatgpt'):
        find_format(open_source(tmp_path / "c.txt"), "msn")


def test_a_second_export_adds_what_is_new_under_the_same_ids(tmp_path: Path) -> None:
    first, second, out = tmp_path / "1.jsonl", tmp_path / "2.jsonl", tmp_path / "out.jsonl"
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    grown = [*talk, {"role": "user", "content": "tea?"}]
    first.write_text(lines({"messages": talk}, {"messages": [{"role": "user", "content": "one"}, *talk]}))
    second.write_text(lines({"messages": grown}, {"messages": [{"role": "user", "content": "new"}, *talk]}))
    ids = {c.turns[0].text: c.conversation_id for c in load_log(first).conversations}
    later = {c.turns[0].text: c.conversation_id for c in load_log(second).conversations}
    assert (ids["hi"], len({*ids.values(), *later.values()})) == (later["hi"], 3)
    summary = import_to_file([first, second, first], out)
    assert [len(c.turns) for c in read_conversations(out).conversations] == [3, 3, 3]
    assert summary.tally.dropped == {"other state of a conversation": 2, "copy of a conversation": 5}
    assert (summary.turns, summary.speakers["user"].turns) == (9, 6)


def test_conversations_that_happen_to_have_one_id_are_both_kept(tmp_path: Path) -> None:
    names = ("a.jsonl", "b.jsonl")
    for name in names:
        talk = [{"from": "human", "value": f"hi from {name}"}, {"from": "gpt", "value": f"hello, {name}"}]
        (tmp_path / name).write_text(lines({"id": 7, "conversations": talk}))
    summary = import_to_file([tmp_path / name for name in names], tmp_path / "out.jsonl")
    ids = [c.conversation_id for c in read_conversations(tmp_path / "out.jsonl").conversations]
    assert (len(ids), ids[0], summary.tally.dropped.total()) == (2, "7", 0)
    assert ids[1].startswith("7-")


def test_conversations_of_one_file_with_one_beginning_are_kept_apart(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path = tmp_path / "a.jsonl"
    ends = ([], [{"role": "user", "content": "tea?"}], [{"role": "user", "content": "bye"}])
    path.write_text(lines(*({"messages": [*talk, *end]} for end in ends)))
    assert sorted(len(c.turns) for c in load_log(path).conversations) == [2, 3, 3]


def test_a_channel_is_cut_at_silences_and_its_parts_keep_their_ids(tmp_path: Path) -> None:
    heads = ("14.03.26, 09:00", "14.03.26, 09:05", "14.03.26, 20:00", "16.03.26, 09:00")
    text = "".join(f"{head} - {'Ann' if n % 2 else 'Bob'}: text {n}\n" for n, head in enumerate(heads))
    path = tmp_path / "c.txt"
    path.write_text(text)
    ids = [c.conversation_id for c in load_log(path).conversations]
    assert ids == [f"c@2026-03-{time}:00" for time in ("14T09:00", "14T20:00", "16T09:00")]
    path.write_text(text + "16.03.26, 09:30 - Bob: later\n")
    grown = load_log(path).conversations
    assert ([c.conversation_id for c in grown], len(grown[-1].turns)) == (ids, 2)
    assert len(load_log(path, rules=Rules(gap=86_400)).conversations) == 2
    assert len(load_log(path, rules=make_rules(gap="none")).conversations) == 1


def test_messages_of_one_speaker_are_joined_within_the_time_window(tmp_path: Path) -> None:
    sample = TELEGRAM[0].write(tmp_path)
    chat = json.loads(sample.read_text())
    base = chat["messages"][1]
    chat["messages"] = [base | {"text": f"t{n}", "date_unixtime": str(1773522000 + at)} for n, at in enumerate((0, 60, 500))]
    sample.write_text(json.dumps(chat))
    assert [t.text for t in load_log(sample).conversations[0].turns] == ["t0\nt1", "t2"]
    assert [t.text for t in load_log(sample, rules=make_rules(burst="none")).conversations[0].turns] == ["t0", "t1", "t2"]
    assert [t.text for t in load_log(sample, rules=make_rules(burst="1h")).conversations[0].turns] == ["t0\nt1\nt2"]


def test_times_without_a_zone_are_read_in_the_given_one(tmp_path: Path) -> None:
    log, out = WHATSAPP[1].write(tmp_path), tmp_path / "o.jsonl"
    assert any("--timezone" in note for note in import_to_file([log], out).notes())
    summary = import_to_file([log], out, rules=make_rules(timezone="Europe/Berlin"))
    assert summary.first == "2026-03-14T21:01:00+01:00"
    assert not any("--timezone" in note for note in summary.notes())


def test_messages_against_the_order_of_their_times_are_put_in_order(tmp_path: Path) -> None:
    sample = TELEGRAM[0].write(tmp_path)
    chat = json.loads(sample.read_text())
    base = chat["messages"][1]
    times = (300, 200, 600)
    chat["messages"] = [base | {"from": f"p{n}", "date_unixtime": str(1773522000 + at)} for n, at in enumerate(times)]
    sample.write_text(json.dumps(chat))
    log = load_log(sample)
    assert [t.speaker for t in log.conversations[0].turns] == ["p1", "p0", "p2"]
    assert any("not in the order of their times" in note for note in log.notes())


def test_a_conversation_without_a_date_among_dated_ones_is_kept(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "hi"}]
    rows = [
        {"id": str(n), "created_at": f"2026-03-0{n}T10:00:00Z" if n != 2 else None, "conversations": talk} for n in (1, 2, 3)
    ]
    (tmp_path / "a.jsonl").write_text(lines(*rows))
    log = load_log(tmp_path / "a.jsonl")
    assert [c.started_at for c in log.conversations] == ["2026-03-01T10:00:00Z"] * 2 + ["2026-03-03T10:00:00Z"]
    assert any("1 conversations have no date" in note for note in log.notes())


@pytest.mark.parametrize(
    ("text", "seconds"), [("4h", 14400), ("90m", 5400), ("30s", 30), ("2d", 172800), ("15", 15), ("none", 0), ("1.5h", 5400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("option", "text"), [("gap", "soon"), ("gap", "-1h"), ("burst", ""), ("timezone", "Mars"), ("timezone", "../etc/passwd")]
)
def test_wrong_rules_name_their_option(option: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"^--{option}: "):
        make_rules(**{option: text})


@pytest.mark.parametrize(
    "text", ["<Media omitted>", "\u200eimage omitted", "This message was deleted", "IMG-1.jpg (file attached)"]
)
def test_placeholders_are_whole_messages(text: str) -> None:
    assert is_placeholder(text)
    assert not is_placeholder(f"he wrote {text} again")


def test_parquet_rows_are_a_table(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = {"conversation_id": ["a", "a"], "author": ["ann", "bob"], "text": ["hi", "hello"]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    assert [t.speaker for t in load_log(tmp_path / "a.parquet").conversations[0].turns] == ["ann", "bob"]
    talks = {"conversation_id": ["c"], "conversation": [[{"role": "user", "content": "hi"}]]}
    (tmp_path / "lmsys").mkdir()
    parquet.write_table(pyarrow.table(talks), tmp_path / "lmsys" / "train-0.parquet")
    assert [t.text for t in load_log(tmp_path / "lmsys").conversations[0].turns] == ["hi"]
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(LogError, match="is not Parquet"):
        load_log(tmp_path / "b.parquet")


def test_a_zip_that_unpacks_to_far_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_UNPACKED", 1 << 20)
    (tmp_path / "a.zip").write_bytes(packed({"conversations.json": " " * (2 << 20)}))
    with pytest.raises(LogError, match="unpacks to 2 MiB, over 100 times its size"):
        load_log(tmp_path / "a.zip")


def test_a_gzip_file_that_unpacks_to_far_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_UNPACKED", 1 << 20)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b" " * (4 << 20)))
    with pytest.raises(LogError, match=r"a\.jsonl\.gz: .*unpacks to over 100 times its size; unpack it yourself"):
        load_log(tmp_path / "a.jsonl.gz")


def test_an_e_mail_of_many_quotes_is_read_in_a_moment(tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_text(mail(1, "ann@x.org", "Tea", "On On wrote wrote: " * 4000))
    assert len(load_log(tmp_path / "a.eml").conversations) == 1


def test_broken_records_stop_the_import_unless_they_are_skipped(tmp_path: Path) -> None:
    path = OPENAI[1].write(tmp_path)
    path.write_text(path.read_text() + "{\n" + lines({"prompt": "yo", "completion": "yes"}))
    with pytest.raises(LogError, match=r"a\.jsonl:2: not JSON .* pass --skip-bad-lines"):
        load_log(path)
    log = load_log(path, skip_bad_lines=True)
    assert (len(log.conversations), [bad.line for bad in log.skipped]) == (2, [2])
