"""Tests of `usertwin suite run` and `usertwin eval --out`: output, files, and resumption after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from invented_suite import JUDGED, learned_twin, sane, speaks, suite_file

from conftest import Endpoint
from usertwin.evals.cli.main import main
from usertwin.evals.records.measured_turns import MANIFEST, RESULT, VERDICTS, read_result
from usertwin.evals.records.run_folder import HTML_REPORT, MARKDOWN_REPORT

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUICK = ("replies = 3", "replies = 2"), ("turns = 6", "turns = 4"), ('people = ["Ann", "Bob"]', 'people = ["Ann"]')


def usertwin(*words: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done


def refused(*words: str | Path) -> str:
    """Return the error message: one line, no traceback."""
    message = usertwin(*words, code=2).stderr.strip()
    assert message.startswith("usertwin: ")
    assert "\n" not in message
    return message


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# A suite ---------------------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_people_and_the_work_and_writes_nothing(tmp_path: Path) -> None:
    file = suite_file(tmp_path, JUDGED)
    before = contents(tmp_path)
    output = usertwin("suite", "run", file, "--out", tmp_path / "run", "--dry-run").output
    assert output.splitlines()[:3] == ["shop/Ann", "shop/Bob", "2 people of 1 corpora and 0 twins, 3 arms"]
    assert "about 36 turns scored" in output
    assert "36 replies written by" in output.replace("\n", " ")
    assert "verdicts of" in output
    assert contents(tmp_path) == before


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("turns =", "turn ="), 'suite.toml: turn: there is no such key; did you mean "turns"?'),
        (('"Bob"', '"Bod"'), 'log.jsonl: no turns by "Bod"; name a speaker with --speaker (most frequent: '),
        (("log.jsonl", "lag.jsonl"), "lag.jsonl"),
        (("scripted:action.txt", "scripted:nowhere.txt"), "nowhere.txt: the script cannot be read"),
        (('"fake:"', '"fake"'), 'models.scorer: "fake" cannot score texts'),
    ],
)  # fmt: skip
def test_an_error_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, change: tuple[str, str], message: str, dry: tuple[str, ...]
) -> None:
    assert message in refused("suite", "run", suite_file(tmp_path, change), "--out", tmp_path / "run", *dry)
    assert not (tmp_path / "run").exists()


def test_a_run_is_in_a_folder_of_its_name_and_ends_with_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = usertwin("suite", "run", suite_file(tmp_path, JUDGED, *QUICK)).output
    folder = tmp_path / "runs" / "suite"
    assert f"report: runs/suite/{HTML_REPORT}" in output
    result = read_result(folder)
    assert result["summary"] in " ".join(output.split())
    assert "the judge (scripted:judge.txt)" in " ".join(output.split())
    assert 'answers "1" in 100%' in output.replace("\n", " ")  # the judge of this suite always answers "1"
    assert (folder / HTML_REPORT).stat().st_size > 10_000
    assert result["suite_text"] == (tmp_path / "suite.toml").read_text("utf-8")


def test_report_compare_and_export_read_a_finished_run_and_refuse_any_other(tmp_path: Path) -> None:
    run = tmp_path / "run"
    usertwin("suite", "run", suite_file(tmp_path, JUDGED, *QUICK), "--out", run)
    (run / HTML_REPORT).unlink()
    assert "written to" in usertwin("report", run).output
    assert (run / HTML_REPORT).exists()
    usertwin("compare", run, run)
    lines = usertwin("export", run, "--out", "-").output.splitlines()
    assert all(json.loads(line) for line in lines)

    manifest = json.loads((run / MANIFEST).read_text("utf-8"))
    (run / MANIFEST).write_text(json.dumps(manifest | {"state": "interrupted"}), "utf-8")
    for words in (("report", run), ("compare", run, run), ("export", run, "--out", "-")):
        assert "this run is not finished; run the same command again to resume it" in refused(*words)
    (run / MANIFEST).write_text(json.dumps(manifest | {"format": 7}), "utf-8")
    for words in (("report", run), ("compare", run, run), ("export", run, "--out", "-"), ("judge-by-hand", run)):
        assert "a run of format 7, but this version reads format 1" in refused(*words)
    for words in (("report", tmp_path), ("compare", tmp_path, run), ("export", tmp_path, "--out", "-")):
        assert "holds no run; name the folder of a run" in refused(*words)


def test_the_small_example_suite_runs(tmp_path: Path) -> None:
    before = {path.name for path in EXAMPLES.iterdir()}
    usertwin("suite", "run", EXAMPLES / "suite_small.toml", "--out", tmp_path / "run")
    result = read_result(tmp_path / "run")
    assert (len(result["people"]), len(result["arms"]), result["turns"]) == (2, 4, 24)
    identical = result["judge"]["sanity"]["identical"]
    assert (identical["ties"]["value"], identical["holds"]) == (1.0, None)  # too few conversations for a verdict
    assert any('answers "tie" in 100%' in warning for warning in result["warnings"])
    assert {path.name for path in EXAMPLES.iterdir()} == before


# One twin --------------------------------------------------------------------------------------------------------------


def test_a_twin_is_measured_into_a_folder_and_the_same_command_makes_no_call(tmp_path: Path) -> None:
    learned_twin(tmp_path)
    script, run = tmp_path / "says.txt", tmp_path / "run"
    script.write_text("sonata chord tempo\noctave treble\n", "utf-8")
    words = ("eval", "cid", "--model", f"scripted:{script}", "--scorer", "fake:", "--limit", "4", "--generate", "2")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path)
        usertwin(*words, "--arms", "no_memory,recalled_pairs,openevals", "--out", run, "--json", tmp_path / "figures.json")
    result = read_result(run)
    assert list(result["arms"]) == ["no_memory", "recalled_pairs", "openevals"]
    assert json.loads((tmp_path / "figures.json").read_text("utf-8")) == result
    assert (run / HTML_REPORT).exists()
    records = contents(run / "people")
    script.write_text("something else\n", "utf-8")  # the reply to a repeated request
    usertwin(*words, "--arms", "no_memory,recalled_pairs,openevals", "--out", run)
    assert contents(run / "people") == records
    assert {key: value for key, value in read_result(run).items() if key != "measured_at"} == {
        key: value for key, value in result.items() if key != "measured_at"
    }
    assert "(different keys:" in refused(*words, "--arms", "no_memory,recalled_pairs", "--out", run)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("eval", "nobody", "--out", "run"), "nobody"),
        (("eval", "cid", "--judge", "scripted:x"), "--judge needs --out"),
        (("eval", "cid", "--out", "run", "--arms", "x"), 'there is no arm "x"; there are no_memory,'),
        (("eval", "cid", "--out", "run", "--against", "log.jsonl"), "--against and --out exclude each other"),
        (("eval", "cid", "--out", "run", "--limit", "-1"), "limit is -1; it must be at least 1"),
        (("eval", "cid", "--out", "run", "--samples", "0"), "samples is 0; it must be at least 1"),
        (("eval", "cid", "--out", "run", "--model", "scripted:no.txt", "--scorer", "fake:"), "no.txt: the script cannot"),
    ],
)  # fmt: skip
def test_an_error_of_an_evaluation_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    learned_twin(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert message in refused(*words)
    assert not (tmp_path / "run").exists()


# A kill ----------------------------------------------------------------------------------------------------------------


class KillingEndpoint(Endpoint):
    """An endpoint that kills a process at request number `at` instead of a response."""

    victim: subprocess.Popen[str] | None = None
    at: int | None = None

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """See `Endpoint.answer`."""
        prompt = "\n".join(message["content"] for message in body["messages"])
        if len(self.requests) == self.at and self.victim is not None:
            os.kill(self.victim.pid, signal.SIGKILL)
            self.victim.wait()
        self.content = sane(prompt, 0) if body["model"] == "judge" else speaks(prompt, body.get("seed") or 0)
        self.max_choices = 1
        return super().answer(body)


def test_a_run_that_was_killed_twice_is_resumed_without_repeated_requests(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.__class__ = KillingEndpoint
    assert isinstance(endpoint, KillingEndpoint)
    named = JUDGED[0], f'{JUDGED[0]}\njudge = "openai:judge@{endpoint.url}"'
    file = suite_file(tmp_path, named, ('action = "scripted:action.txt"', f'action = "openai:action@{endpoint.url}"'), *QUICK)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "usertwin.evals", "suite", "run", str(file), "--out", str(run)]
    total = 0
    for at in (5, 9):  # while replies are written, and while they are judged
        endpoint.requests, endpoint.at = [], at
        endpoint.victim = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
        output, _ = endpoint.victim.communicate(timeout=120)
        assert endpoint.victim.returncode == -signal.SIGKILL, output
        assert json.loads((run / MANIFEST).read_text("utf-8"))["state"] == "interrupted"
        assert not any((run / name).exists() for name in (HTML_REPORT, MARKDOWN_REPORT, RESULT))
        assert "this run is not finished" in refused("report", run)
        total += len(endpoint.requests) - 1  # the last one had no response
    endpoint.requests, endpoint.at, endpoint.victim = [], None, None
    usertwin("suite", "run", file, "--out", run)
    total += len(endpoint.requests)
    endpoint.requests = []
    usertwin("suite", "run", file, "--out", tmp_path / "whole")
    assert total - len(endpoint.requests) in (0, 1)  # two samples of a reply are one request
    killed, whole = read_result(run), read_result(tmp_path / "whole")
    assert {key for key in whole if killed[key] != whole[key]} <= {"measured_at"}
    assert len((run / VERDICTS).read_text("utf-8").splitlines()) == len(
        (tmp_path / "whole" / VERDICTS).read_text("utf-8").splitlines()
    )


# The real tiny model ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_person_of_the_real_chats_is_measured_with_the_real_tiny_model(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(
        """
        name = "one real person"
        arms = ["no_memory", "recalled_pairs", "openevals"]
        turns = 3
        replies = 1
        k = 2
        window = 3
        [[corpora]]
        name = "casual chat"
        from = "chitchat"
        people = ["476cf2c1-305f-4e4a-957a-8faea639f1be"]
        max_triples = 20
        """,
        "utf-8",
    )
    usertwin("suite", "run", tmp_path / "suite.toml", "--out", tmp_path / "run")
    result = read_result(tmp_path / "run")
    assert list(result["arms"]) == ["no_memory", "recalled_pairs", "openevals"]
    for measures in result["arms"].values():
        assert measures["bits_per_char"]["n"] == 3
        assert 0.3 < measures["bits_per_char"]["value"] < 4.0  # a language model predicts English partly
        assert measures["chrf"]["n"] == 1
    assert result["models"]["action"] == "local"
    [leak] = result["leakage"].values()
    assert leak["memorized"]["n"] > 0
