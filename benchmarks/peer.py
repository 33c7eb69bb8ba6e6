# SPDX-License-Identifier: Apache-2.0
"""Starts the process of `torch_peer.py` and asks it one question after the other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


class Peer:
    """The process of `torch_peer.py`."""

    def __init__(self, python: str) -> None:
        words = [python or sys.executable, str(Path(__file__).with_name("torch_peer.py"))]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **question: Any) -> dict[str, Any]:
        """Send a question and return the answer; raises RuntimeError for an error or a dead peer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"PyTorch's process ended with status {self._process.wait()}")
        reply = json.loads(line)
        if "failed" in reply:
            raise RuntimeError(reply["failed"])
        return reply

    def end(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=60)
