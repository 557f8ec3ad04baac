"""The built wheel installs into a clean virtual environment, needs nothing else, and its quick start runs word for word."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from conftest import Daemon
from test_documentation import ROOT, SNIPPETS


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if built.returncode != 0 and "hatchling" in built.stderr:
        pytest.skip("pip cannot fetch hatchling, which builds the wheel")
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "mneme/py.typed" in names and "mneme/compat/langgraph.py" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mneme"}


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a clean environment with the wheel in it."""
    clean = tmp_path_factory.mktemp("clean")
    venv.create(clean, with_pip=True)
    python = clean / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-index", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return python


@pytest.mark.parametrize(
    ("number", "said"), [(0, "Ada drinks her tea at four"), (1, "note 7"), (2, "I am allergic to nuts")]
)
def test_the_quick_start_runs_with_the_installed_wheel(python: Path, own_daemon: Daemon, number: int, said: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["MNEME_SOCKET"] = str(own_daemon.socket)
    command = [str(python), "-I", "-c", SNIPPETS[number]]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert said in ran.stdout


@pytest.mark.parametrize("module", ["langgraph", "langchain"])
def test_a_missing_package_is_told_with_what_installs_it(python: Path, module: str) -> None:
    command = [str(python), "-I", "-c", f"import mneme.compat.{module}"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode != 0 and f"mneme[{module}]" in ran.stderr
