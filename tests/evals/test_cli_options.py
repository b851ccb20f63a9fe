"""evals/cli/parts/options.py: prices, numbers and JSON files that several commands take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from usertwin.evals.cli.parts.options import check_concurrency, check_writable, is_standard_output, parse_price, write_json
from usertwin.memory.models.chat import Price
from usertwin.personas import UsageError


def test_a_price_is_given_for_input_and_output_tokens() -> None:
    assert parse_price("0.25/2") == Price(0.25, 2.0)
    assert parse_price(None) is None


@pytest.mark.parametrize("text", ["nonsense", "1", "1/2/3", "-1/2", "nan/2", "inf/2", "/", ""])
def test_anything_else_is_no_price(text: str) -> None:
    with pytest.raises(UsageError, match="is not a price; give dollars per million input and output tokens"):
        parse_price(text)


@pytest.mark.parametrize("concurrency", [0, -1])
def test_a_concurrency_below_1_is_refused(concurrency: int) -> None:
    with pytest.raises(UsageError, match=f"--concurrency is {concurrency}; it must be at least 1"):
        check_concurrency(concurrency)
    for valid in (None, 1, 8):
        check_concurrency(valid)


def test_figures_go_to_a_file_to_standard_output_or_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    assert [is_standard_output(place) for place in (None, path, Path("-"))] == [False, False, True]
    for place in (None, path, Path("-")):
        write_json(place, {"n": "é"})
    assert json.loads(path.read_text("utf-8")) == json.loads(capsys.readouterr().out) == {"n": "é"}


def test_the_folder_of_a_twin_takes_no_run(tmp_path: Path) -> None:
    (tmp_path / "twin.json").touch()
    for folder in (tmp_path, tmp_path / "runs" / "first"):
        with pytest.raises(UsageError, match=r"lies in the folder of the twin .*; name another folder with --out"):
            check_writable(folder, "--out")


def test_a_file_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "figures.json"):
        with pytest.raises(UsageError, match=r"--json: .* cannot be written; name a file in an existing folder"):
            is_standard_output(path)
