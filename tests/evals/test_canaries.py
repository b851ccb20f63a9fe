"""evals/benchmarks/canaries.py: no key, password or forgotten turn is where it does not belong; one that is there is found."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from usertwin.evals.benchmarks.canaries import (
    MEANT_FOR,
    OWN_KEY,
    PASSWORD,
    Search,
    Servers,
    search_files,
    search_requests,
    searched,
)
from usertwin.evals.benchmarks.crash_commands import Box, bytes_with
from usertwin.evals.benchmarks.figures import run_in_subprocess

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the benchmark forks")


def test_no_secret_and_no_forgotten_turn_is_where_it_does_not_belong() -> None:
    search = Search(**run_in_subprocess(searched, ["login"], ["learn", "eval", "simulate"]))
    assert search.meant > 0, "the secret did not even reach the server that it was meant for"
    assert (search.in_files, search.in_requests, search.unasked, search.failed) == ([], [], [], [])


def test_words_are_found_in_plain_binary_and_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": "the canary"}', "utf-8")
    (tmp_path / "b.sqlite").write_bytes(b"\0\1canary\2")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"a canary"))
    (tmp_path / "d.txt").write_text("a cannery", "utf-8")
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(b"a canary")[:-4])  # half a file
    assert bytes_with(["canary"], tmp_path) == ["a.json", "b.sqlite", "c.jsonl.gz", "e.jsonl.gz"]


def test_a_secret_in_the_output_or_at_another_server_is_counted(tmp_path: Path) -> None:
    box, search = Box(tmp_path / "box", tmp_path), Search()
    box.make()
    box.output.write_text(f"usertwin: the server says: {PASSWORD} is wrong\n", "utf-8")
    search_files(box, search)
    servers = Servers(tmp_path, dict.fromkeys(MEANT_FOR, 1))
    for server in ("own", "plain"):
        servers.log(server).write_text(json.dumps(["/v1", {"Authorization": f"Bearer {OWN_KEY}"}, ""]) + "\n", "utf-8")
    search_requests(servers, search)
    assert search.in_files == ["Pangolin6… in the output"]
    assert (search.requests, search.meant) == (2, 1)
    assert search.in_requests == ["sk-Wombat… sent to plain"]
