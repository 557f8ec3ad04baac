"""A peer that says what a test tells it to: for what a sound daemon never does, or does at moments that cannot be chosen."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

HELLO = {
    "protocol": 1,
    "protocol_min": 1,
    "server": "scripted",
    "boot": "b",
    "limits": {
        "frame_bytes_max": 4194304,
        "requests_in_flight_max": 64,
        "text_bytes_max": 65536,
        "recall_limit_max": 1000,
        "import_batch_max": 1000,
        "idle_timeout_ms": 900000,
        "from_the_future": 1,
    },
}

# Gets a request and its number; gives the members of the response, raw bytes, or None to hang up.
Answer = Callable[[Dict[str, Any], int], Any]


class ScriptedDaemon:
    """Answers `hello` itself and everything else by the script. Keeps what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mneme-")
        self.socket = Path(self._folder.name) / "s"
        self.seen: List[Dict[str, Any]] = []
        self.connections = 0
        self._answer = answer
        self._returns: Optional[threading.Timer] = None
        self._listen()

    def _listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.socket))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def restart(self, away_s: float) -> None:
        """Stops listening, as a daemon that ended, and listens again later. What is connected stays so."""
        self.socket.unlink()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._returns = threading.Timer(away_s, self._listen)
        self._returns.start()

    def __enter__(self) -> "ScriptedDaemon":
        return self

    def __exit__(self, *_: object) -> None:
        if self._returns is not None:
            self._returns.join()
        self._listener.close()
        self._folder.cleanup()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(peer, self.connections), daemon=True).start()

    def _serve(self, peer: socket.socket, connection: int) -> None:
        with peer, peer.makefile("rb") as lines:
            for line in lines:
                request = json.loads(line)
                if request["method"] == "hello":
                    answer: Optional[Any] = {"result": HELLO}
                else:
                    self.seen.append({**request, "connection": connection})
                    answer = self._answer(request, len(self.seen))
                if answer is None:
                    peer.shutdown(socket.SHUT_RDWR)
                    return
                if isinstance(answer, dict):
                    answer = json.dumps({"jsonrpc": "2.0", "id": request["id"], **answer}).encode() + b"\n"
                try:
                    peer.sendall(answer)
                except OSError:
                    return
