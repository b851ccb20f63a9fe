"""The command `usertwin import`, `learn` from an export, and what a later export adds to a twin's memory."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from cli_runner import error_of, output_of, run
from import_samples import CLAUDE, IRC, chatgpt, lines, node

from usertwin.memory import TripleStore, TwinRecord, existing_twin
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.personas import load_log, read_conversations

WORDS = ("kettle", "spoon", "saucer", "lemon", "sugar", "biscuit", "honey", "ginger")


def export(path: Path, days: int, turns: int = 6, shift: int = 0) -> Path:
    """Write a ChatGPT export with a conversation a day, without ids if shifted; each is cut `shift` messages later."""
    talks = list[object]()
    for day in range(days):
        nodes = [node("r", None)]
        for number in range(turns):
            role = "user" if number % 2 == 0 else "assistant"
            text = f"{role} wants {WORDS[day % 8]} {day} and {WORDS[number]} {number}"
            at = 1760000000 + 86400 * day + 60 * number
            nodes.append(node(f"m{number}", "r" if number <= shift else f"m{number - 1}", role, text, create_time=at))
        kept = [nodes[0], *nodes[1 + shift :]]
        talks.append(chatgpt(*kept, current=f"m{turns - 1}", create_time=None, **({} if shift else {"id": f"c{day}"})))
    path.write_text(json.dumps(talks))
    return path


def test_import_shows_what_was_read_and_writes_it(tmp_path: Path) -> None:
    log, out = export(tmp_path / "conversations.json", 12), tmp_path / "log.jsonl.gz"
    text = output_of("import", log, CLAUDE[1].write(tmp_path / "c"), "--out", out)
    parts = (
        "conversations.json: ChatGPT data export", "data.zip: Claude data export", "13 conversations, 73 turns, 2 speakers",
        "2025-10-09 to 2026-03-01", "1 dropped: placeholder of the platform", f"learn NAME --from {out} --speaker user",
    )  # fmt: skip
    for part in parts:
        assert part in text
    assert len(read_conversations(out).conversations) == 13
    dates = [json.loads(line)["started_at"] for line in gzip.decompress(out.read_bytes()).splitlines()]
    assert dates == sorted(dates)
    assert out.stat().st_mode & 0o777 == 0o600


def test_import_of_too_little_says_so_and_hostile_names_are_inert(tmp_path: Path) -> None:
    log = tmp_path / "a.jsonl"
    log.write_text(lines({"thread": "x", "speaker": "\x1b[31mred[bold]", "text": "hi"}))
    text = output_of("import", log, "--out", tmp_path / "o.jsonl")
    assert "no speaker has the 20 turns in 3 conversations" in text
    assert "\x1b" not in text
    assert "␛[31mred[bold]" in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("none.jsonl", "--out", "o.jsonl"), "none.jsonl: no such file"),
        (("log.jsonl", "--out", "log.jsonl"), "--out: log.jsonl is one of the logs to read; name another file"),
        (("log.jsonl", "--out", "."), "--out: . is a folder; name a file"),
        (("log.jsonl", "--out", "o.jsonl", "--format", "msn"), '--format: "msn" is no format; choose one of chatgpt'),
        (("log.jsonl", "--out", "o.jsonl", "--gap", "long"), '--gap: "long" is no duration'),
        (("log.jsonl", "--out", "o.jsonl"), "log.jsonl: no known format: holds JSON with the keys 'a'"),
    ],
)
def test_wrong_input_is_one_sentence(
    options: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.jsonl").write_text(lines({"a": 1}))
    assert error_of("import", *options).startswith(sentence)
    assert not (tmp_path / "o.jsonl").exists()


def test_learn_reads_an_export_and_a_later_one_adds_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USERTWIN_HOME", str(tmp_path / "home"))
    log = export(tmp_path / "conversations.json", 14)
    learn = ("learn", "tea", "--speaker", "user", "--traces", "none", "--tune-turns", "0", "--embedder", "fake:")
    assert run(*learn, "--from", log).exit_code == 0
    folder = existing_twin("tea", None)
    record = TwinRecord.load(folder)
    held_out = {*record.validation, *record.test}
    assert output_of("memory", "add", "tea", "--from", log).strip() == "nothing added: every pair is known or held out"
    added = output_of("memory", "add", "tea", "--from", export(tmp_path / "later.json", 15, turns=8))
    assert added.strip() == f"{2 * len(record.corpus) + 5} pairs added"  # a turn and an ending in each known one; a new one
    output_of("memory", "add", "tea", "--from", export(tmp_path / "cut.json", 14, turns=8, shift=2))
    texts = {turn.text for c in load_log(log).conversations if c.conversation_id in held_out for turn in c.turns}
    with TripleStore(folder, FakeEmbedder(), create=False) as store:
        triples = store.triples()
        remembered = {triple.pair.action for triple in triples}
        remembered |= {turn.text for triple in triples for turn in triple.pair.context}
    assert texts
    assert not texts & remembered


def test_learn_cuts_at_the_given_silence(tmp_path: Path) -> None:
    source = IRC[1].write(tmp_path)
    assert "2 conversations" in output_of("import", source, "--out", tmp_path / "o.jsonl")
    assert "1 conversations" in output_of("import", source, "--out", tmp_path / "o.jsonl", "--gap", "2d")
