"""A daemon of its own for the tests that need one: the program is named by MNEMED."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Iterator, List, Optional

import pytest

import mneme

START_S_MAX = 30.0


class Daemon:
    """A daemon with the small stand-in engine, in a folder of its own."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program = program
        self.folder = folder
        self.socket = folder / "run" / "mneme.sock"
        self.process: "Optional[subprocess.Popen[bytes]]" = None

    def start(self) -> None:
        environment = dict(os.environ)
        environment["MNEME_PATHS__STATE_DIR"] = str(self.folder / "state")
        environment["MNEME_PATHS__RUNTIME_DIR"] = str(self.folder / "run")
        self.process = subprocess.Popen(
            [self.program, "--set", "engine.program=fake"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("ab"),
        )
        until = time.monotonic() + START_S_MAX
        while time.monotonic() < until:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            try:
                with mneme.Client(self.socket) as client:
                    client.ping()
                return
            except mneme.errors.ConnectionFailed:
                time.sleep(0.02)
        raise AssertionError("the daemon does not start")

    def kill(self) -> None:
        """Ends it without warning."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def _daemon() -> Iterator[Daemon]:
    program = os.environ.get("MNEMED")
    if not program:
        pytest.skip("MNEMED names no daemon program")
    # A socket's path has at most 107 bytes: the usual folders of pytest are too deep.
    with tempfile.TemporaryDirectory(prefix="mneme-") as folder:
        daemon = Daemon(program, Path(folder))
        daemon.start()
        try:
            yield daemon
        finally:
            daemon.stop()


@pytest.fixture(scope="session")
def shared_daemon() -> Iterator[Daemon]:
    """One daemon for all tests that leave it as it is; each uses a namespace of its own."""
    yield from _daemon()


@pytest.fixture()
def own_daemon() -> Iterator[Daemon]:
    """A daemon for one test, which may kill it."""
    yield from _daemon()


@pytest.fixture()
def client(shared_daemon: Daemon) -> Iterator[mneme.Client]:
    with mneme.Client(shared_daemon.socket, client="pytest") as connected:
        yield connected


@pytest.fixture()
def namespace(request: pytest.FixtureRequest) -> str:
    """A drawer that no other test looks into."""
    name = request.node.name
    return "test/" + "".join(letter if letter.isalnum() else "-" for letter in name)[:100]


__all__: List[str] = []
