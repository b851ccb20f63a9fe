"""Files that usertwin writes: private under any umask, whole, and never through a link."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from usertwin.personas import UsageError
from usertwin.personas.files import (
    create_database,
    create_private,
    open_private,
    private_folder,
    private_umask,
    refuse_links_in,
    replacement,
    write_private,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes and links of POSIX")


@pytest.fixture(params=[0o022, 0o000, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


def _append(path: Path) -> None:
    with open_private(path, "a", encoding="utf-8") as file:
        file.write("new")


def _replace(path: Path) -> None:
    with replacement(path) as partial:
        partial.write_text("new", "utf-8")


WRITERS: list[Callable[[Path], None]] = [
    lambda path: write_private(path, "new"), lambda path: write_private(path, b"new"), _append, _replace, create_private,
    create_database,
]  # fmt: skip
writers = pytest.mark.parametrize("write", WRITERS)


@writers
def test_new_files_and_folders_are_private_under_any_umask(write: Callable[[Path], None], umask: int, tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "a" / "b")
    write(folder / "x")
    assert [mode(path) for path in (tmp_path / "a", folder, folder / "x")] == ["0o700", "0o700", "0o600"]
    assert [path.name for path in folder.iterdir()] == ["x"]


def test_the_files_beside_a_database_are_private(umask: int, tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    create_database(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE t (x)")
        files = {file.name: mode(file) for file in tmp_path.iterdir()}
    assert files == dict.fromkeys(["x.sqlite", "x.sqlite-wal", "x.sqlite-shm"], "0o600")


def test_files_of_libraries_are_private_in_the_block_only(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with private_umask():
            (tmp_path / "in").write_text("x", "utf-8")
        (tmp_path / "after").write_text("x", "utf-8")
    finally:
        os.umask(before)
    assert (mode(tmp_path / "in"), mode(tmp_path / "after")) == ("0o600", "0o644")


@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to], ids=["symbolic", "hard"])
@writers
def test_a_link_is_refused_and_its_target_stays(
    write: Callable[[Path], None], plant: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    target, link = tmp_path / "target", tmp_path / "folder" / "x"
    target.write_text("old", "utf-8")
    link.parent.mkdir()
    plant(link, target)
    with pytest.raises(UsageError, match=r"link"):
        write(link)
    assert target.read_text("utf-8") == "old"
    assert [path.name for path in link.parent.iterdir()] == ["x"]


@writers
def test_a_link_to_nothing_creates_nothing(write: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(tmp_path / "new")
    with pytest.raises(UsageError, match="is a symbolic link"):
        write(tmp_path / "x")
    assert not (tmp_path / "new").exists()


@writers
def test_a_folder_in_the_place_of_a_file_is_an_error_of_the_system(write: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="directory"):
        write(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@writers
def test_a_pipe_is_refused(write: Callable[[Path], None], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    with pytest.raises(UsageError, match="is not a plain file"):
        write(tmp_path / "x")


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_links_beside_a_database_are_refused(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"x.sqlite{suffix}").symlink_to(tmp_path / "new")
    with pytest.raises(UsageError, match="is a symbolic link"):
        create_database(tmp_path / "x.sqlite")


def _fill(folder: Path, kind: str) -> None:
    place, target = folder / "inner" / "x", folder.parent / "target"
    target.write_text("old", "utf-8")
    match kind:
        case "file":
            place.symlink_to(target)
        case "folder":
            place.symlink_to(folder.parent)
        case "nothing":
            place.symlink_to(folder / "none")
        case "hard":
            place.hardlink_to(target)
        case _:
            os.mkfifo(place)


@pytest.mark.parametrize("kind", ["file", "folder", "nothing", "hard", "pipe"])
def test_a_folder_with_a_link_at_any_depth_is_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    refuse_links_in(folder)
    _fill(folder, kind)
    with pytest.raises(UsageError, match=r"inner/x: is "):
        refuse_links_in(folder)


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    with pytest.raises(UsageError, match="name the folder that it leads to"):
        refuse_links_in(tmp_path / "link")
    refuse_links_in(tmp_path / "missing")


def test_folders_above_may_be_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_private(private_folder(tmp_path / "link" / "run") / "x", "new")
    refuse_links_in(tmp_path / "link" / "run")
    assert (tmp_path / "real" / "run" / "x").read_text("utf-8") == "new"


def test_a_failed_replacement_leaves_the_old_file_alone(tmp_path: Path) -> None:
    write_private(tmp_path / "x", "old")
    with pytest.raises(OSError), replacement(tmp_path / "x") as partial:
        (partial / "y").write_text("half", "utf-8")
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == {"x": "old"}


def test_secrets_are_masked_in_texts_and_bytes_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-1")
    write_private(tmp_path / "text", '{"error": "wrong key sk-canary-1 at http://ann:pw@host/v1", "lone": "\udc80"}')
    write_private(tmp_path / "bytes", b"sk-canary-1")
    assert (tmp_path / "text").read_text("utf-8") == '{"error": "wrong key *** at http://host/v1", "lone": "\\udc80"}'
    assert (tmp_path / "bytes").read_bytes() == b"sk-canary-1"


def test_a_long_name_of_wide_characters_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("日" * 80)
    write_private(path, "new")
    assert path.read_text("utf-8") == "new"
