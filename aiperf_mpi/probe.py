# SPDX-License-Identifier: Apache-2.0
"""Ask the system one thing, and never raise or wait long: a failure becomes the reason.

What the system does not tell must not end a run. A file of the kernel may be missing, a library may raise
anything, and a dead network file system answers never.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

#: Seconds that an answer of the kernel, a file system or a library may take.
PROBE_SECONDS = 5.0

#: Most characters of a reason.
_MOST = 300


class NotKnown(str):
    """The reason why a value is not known; it takes the place of the value in an inventory."""

    __slots__ = ()


class Call:
    """A call of a function in a thread of its own, which goes on if the function does not return.

    Attributes:
        outcome: what the function has returned, or the exception that it has raised; empty before.
    """

    def __init__(self, name: str, function: Callable[[], Any]) -> None:
        """Begin the call. Where the limit on threads is reached, this thread makes it, without a bound."""
        self.outcome: list[Any] = []
        self._function = function
        self._thread = threading.Thread(target=self._make, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._make()

    def _make(self) -> None:
        try:
            self.outcome.append(self._function())
        except BaseException as error:
            # A signal that ends the program interrupts its main thread, which must not go on.
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            self.outcome.append(error)

    def answered(self, seconds: float) -> bool:
        """Wait for the outcome, for `seconds` at most; return whether it is there."""
        if not self.outcome:
            self._thread.join(max(0.0, seconds))
        return bool(self.outcome)


def probe(
    what: str, function: Callable[..., Any], *arguments: Any, seconds: float | None = PROBE_SECONDS
) -> Any:
    """Return `function(*arguments)`, or NotKnown with the reason if it raises or takes over `seconds` s.

    Any exception counts. The function runs in a thread of its own, which goes on if the function does not
    return; with `seconds` None it runs in the calling thread, as calls of MPI must. `what` names the value.
    """
    if seconds is None:
        try:
            return function(*arguments)
        except Exception as error:
            return _unknown(what, error)
    call = Call(f"probe: {what}", lambda: function(*arguments))
    if not call.answered(seconds):
        return NotKnown(f"not known: {what}: no answer in {seconds:g} s")
    (outcome,) = call.outcome
    return _unknown(what, outcome) if isinstance(outcome, BaseException) else outcome


def _unknown(what: str, error: BaseException) -> NotKnown:
    return NotKnown(f"not known: {what}: {reason(error)}")


def reason(error: BaseException) -> str:
    """Return the kind and the text of an error in one line that any encoding can store."""
    try:
        text = str(error)
    except Exception:
        text = "an error without a text"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    line = " ".join(f"{type(error).__name__}: {text}".encode(errors="replace").decode().split())
    return line if len(line) <= _MOST else f"{line[:_MOST]}..."
