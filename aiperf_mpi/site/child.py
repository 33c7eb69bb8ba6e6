# SPDX-License-Identifier: Apache-2.0
"""Ask a library in a process of its own: one that hangs or crashes when it is loaded does no harm there.

A child is started before MPI, as a fork after its initialisation is unsafe on some fabrics. It gets none of
the launcher's variables, so that no library takes it for a rank.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiperf_mpi.launchers import LAUNCHER_PREFIXES
from aiperf_mpi.planning.finding import Finding

#: Print the vendor and the version of the MPI library, without starting it.
MPI_PROGRAM = """
import json
try:
    import mpi4py
    mpi4py.rc(initialize=False, finalize=False)
    from mpi4py import MPI
    name, version = MPI.get_vendor()
    told = {"vendor": name, "version": ".".join(map(str, version))}
except BaseException as error:
    told = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(told), flush=True)
"""

#: Print the devices that JAX finds. A GPU's memory is not taken, as a run may use it now.
JAX_PROGRAM = """
import json, os
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
try:
    import jax
    devices = jax.local_devices()
    told = {
        "platform": devices[0].platform,
        "kinds": [device.device_kind for device in devices],
        "capability": str(getattr(devices[0], "compute_capability", "")),
    }
except BaseException as error:
    told = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(told), flush=True)
"""


def not_known(subject: str, told: Mapping[str, Any]) -> Finding | None:
    """Return the warning for a program that could not be asked; None if it has answered."""
    if told.get("asked", True):
        return None
    remedy = (
        "let this user start processes of this Python (ulimit -u and -n, permissions), and import by hand "
        "what does not answer: a file system or a driver may be slow"
    )
    return Finding("warn", subject, f"not known: {told['error']}", remedy)


class Child:
    """A program of Python in a process of its own, which prints one JSON object as its last line."""

    def __init__(self, program: str, environ: Mapping[str, str] = os.environ) -> None:
        """Start the program. An error of the start becomes the answer."""
        package = str(Path(__file__).resolve().parents[2])
        kept = {name: value for name, value in environ.items() if not name.startswith(LAUNCHER_PREFIXES)}
        self._process: subprocess.Popen[bytes] | None = None
        self._error = ""
        self.told: dict[str, Any] = {}
        # A rank changes its own variables by its role, after this.
        self.environ = dict(environ)
        self._started = time.monotonic()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, (package, kept.get("PYTHONPATH"))))},
            )
        except OSError as error:
            what = f"{error.filename}: " if isinstance(error.filename, str) else ""
            self._error = f"the process does not start: {what}{error.strerror}"

    def answer(self, seconds: float) -> dict[str, Any]:
        """Return what the program printed, or {"error": reason}; end it `seconds` after its start.

        Where the program could not be asked, "asked" is false too. The answer stays in `told`.
        """
        if not self.told:
            self.told = self._asked(seconds)
        return self.told

    def _asked(self, seconds: float) -> dict[str, Any]:
        if self._process is None:
            return {"error": self._error, "asked": False}
        try:
            out, err = self._process.communicate(timeout=max(0.1, self._started + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.end()
            return {"error": f"no answer within {seconds:g} s", "asked": False}
        try:
            told = json.loads(out.decode(errors="replace").strip().rpartition("\n")[2])
        except ValueError:
            told = None
        if isinstance(told, dict):
            return told
        return {"error": _last_words(self._process.returncode, err.decode(errors="replace").splitlines())}

    def __enter__(self) -> Child:
        """Return this program, which ends with the `with` block."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        self.end()

    def end(self) -> None:
        """Kill the process, if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()


def _last_words(code: int, lines: Sequence[str]) -> str:
    """Return why a program ended without an answer: the line that says most, and its exit code."""
    spoken = [line.strip() for line in lines if line.strip()]
    named = [line for line in spoken if "rror" in line or "nknown" in line or "nvalid" in line]
    last = (named or spoken or ["no message"])[0]
    return f"{last[:300]} (the process ended with {code})"
