"""The wheel holds every file but benchmarks and measured results, and works outside the checkout, beside like-named folders."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("personas", "memory", "simulator", "evals")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the tracked files and nothing else."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if name.startswith((*(f"{f}/" for f in FOLDERS), "pyproject.toml", "README.md", "LICENSE")):
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        target,
        source,
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    [found] = target.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that holds the wheel, and nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True, timeout=300)
    return python


@pytest.fixture(scope="module")
def furnished(bare: Path) -> Path:
    """The same interpreter with the dependencies of this environment in its reach (but not this checkout)."""
    site = subprocess.run(
        [bare, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True, check=True
    )
    (Path(site.stdout.strip()) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return bare


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the interpreter somewhere."""
    return subprocess.run([python, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_every_tracked_file_of_the_four_folders(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    kept_out = ("evals/benchmarks/", "evals/results/", "evals/EXPERIMENTS.md")
    wanted = {f"usertwin/{name}" for name in tracked.split() if not name.startswith(kept_out)}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == wanted


def test_the_packages_import_in_a_bare_environment_outside_the_checkout(bare: Path, tmp_path: Path) -> None:
    code = "import usertwin.personas as p, usertwin.memory, usertwin.simulator, usertwin.evals; print(p.__file__)"
    done = run(bare, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout
    for folder in FOLDERS:  # nothing of ours lies about under a name that others use
        assert run(bare, "-c", f"import {folder}", cwd=tmp_path).returncode != 0


def test_the_command_runs_from_the_wheel(furnished: Path, tmp_path: Path) -> None:
    done = run(furnished.parent / "usertwin", "--version", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0.1.0" in done.stdout


def test_a_project_with_its_own_memory_and_evals_works_beside_it(furnished: Path, tmp_path: Path) -> None:
    for folder in ("memory", "evals"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(f"WHOSE = 'mine: {folder}'\n")
    (tmp_path / "test_mine.py").write_text(
        "import evals, memory\n"
        "import usertwin.evals.pytest_plugin, usertwin.memory\n\n"
        "def test_mine(simulate):\n"
        "    assert memory.WHOSE == 'mine: memory' and evals.WHOSE == 'mine: evals'\n"
        "    assert usertwin.memory.__file__ != memory.__file__\n"
        "    assert callable(simulate)\n"
    )
    done = run(furnished, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
