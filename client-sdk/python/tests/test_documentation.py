"""The README's and the examples' code runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Daemon

ROOT = Path(__file__).resolve().parent.parent
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(daemon: Daemon, *arguments: str) -> str:
    environment = {**os.environ, "MNEME_SOCKET": str(daemon.socket), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_has_its_snippets() -> None:
    assert len(SNIPPETS) == 4
    assert EXAMPLES


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "Ada drinks her tea at four"), (1, "note 7"), (2, "I am allergic to nuts"), (3, "tea Ada drinks her tea at four")],
)
def test_snippets_of_the_readme_run_word_for_word(own_daemon: Daemon, number: int, said: str) -> None:
    if "langgraph" in SNIPPETS[number]:
        pytest.importorskip("langgraph", reason="the package langgraph is not installed")
    assert said in run(own_daemon, "-c", SNIPPETS[number])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(own_daemon: Daemon, example: Path) -> None:
    text = example.read_text(encoding="utf-8")
    for package in re.findall(r"^# needs: (.+)$", text, re.M):
        pytest.importorskip(package, reason=f"the package {package} is not installed")
    expected = re.findall(r"^# prints: (.+)$", text, re.M)
    assert expected
    printed = run(own_daemon, str(example))
    for line in expected:
        assert line in printed
