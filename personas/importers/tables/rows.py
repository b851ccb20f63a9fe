"""The rows of tables: CSV and TSV, Parquet, JSON lines; of one file, or of all such files of a folder or zip."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any, cast

from usertwin.personas.errors import LogError

from ..records import records
from ..source import Source
from ..thread import Tally

_DELIMITERS = ",;\t|"
_CSV, _PARQUET, _JSON = (".csv", ".tsv"), (".parquet",), (".jsonl", ".ndjson", ".json")
_ARROW = "Parquet files need pyarrow: pip install 'usertwin[parquet]'"
_BATCH = 2000


def files(source: Source) -> list[str]:
    """Return the files of the kind of table that there are most of, or the only file."""
    kinds = [source.ending(*kind) for kind in (_PARQUET, _CSV, _JSON)]
    return max(kinds, key=len) or (list(source.names) if len(source.names) == 1 else [])


def first_row(source: Source) -> dict[str, Any]:
    """Return the first row, with the names of the columns as keys; {} if there is none."""
    for name in files(source)[:1]:
        if name.lower().endswith(_JSON):
            return source.only(name).record
        if name.lower().removesuffix(".gz").endswith((*_CSV, *_PARQUET)):
            for _, row in rows(source, name, Tally(skip_bad_lines=True)):
                return row
    return {}


def rows(source: Source, name: str, tally: Tally) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a file with their numbers. LogError if it cannot be read."""
    lower = name.lower().removesuffix(".gz")
    if lower.endswith(_PARQUET):
        return _parquet(source, name)
    return _csv(source, name, tally) if lower.endswith((*_CSV, ".txt")) else records(source, name, tally)


def _csv(source: Source, name: str, tally: Tally) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = source.text_lines(name)
    header = next(lines, "")
    delimiter = max(_DELIMITERS, key=header.count)
    reader = csv.reader(chain([header], (f"{line}\n" for line in lines)), delimiter=delimiter)
    try:
        names = next(reader, [])
        for number, values in enumerate(reader, 2):
            if len(values) != len(names):
                if values:
                    tally.drop("damaged", f"{source.place(name)}, row {number}: {len(values)} values, {len(names)} columns")
                continue
            yield number, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise LogError(f"{source.place(name)}:{reader.line_num}: is not CSV ({error}); save the table again") from None


def _parquet(source: Source, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise LogError(f"{source.place(name)}: {_ARROW}") from None
    number = 0
    with source.open(name) as file:
        try:
            for batch in parquet.ParquetFile(file).iter_batches(_BATCH):
                for row in cast("list[dict[str, Any]]", batch.to_pylist()):
                    yield (number := number + 1), row
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise LogError(f"{source.place(name)}: is not Parquet ({error})") from None
