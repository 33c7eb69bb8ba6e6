# SPDX-License-Identifier: Apache-2.0
"""Standard input, output and error of a command: what is closed, full, or has no reader.

An answer that cannot be written must not look like success, and a message must not get into a file that took
the number of a closed descriptor.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

from aiperf_mpi.ending import Refusal
from aiperf_mpi.files import system_reason
from aiperf_mpi.printable import one_line

_INPUT, _OUTPUT, _ERROR = 0, 1, 2


class OutputLost(Refusal):
    """What a command prints cannot be written to standard output.

    Attributes:
        closed_pipe: whether the reader has closed the pipe, as `| head` does.
    """

    def __init__(self, error: OSError) -> None:
        self.closed_pipe = error.errno == errno.EPIPE
        reason = "it is closed" if error.errno == errno.EBADF else system_reason(error).lower()
        super().__init__(f"cannot write to standard output: {reason}")


class Output(io.FileIO):
    """Standard output, whose first write that fails raises OutputLost.

    What follows is discarded, so that Python's flush at the exit does not fail as well.
    """

    lost = False

    def write(self, data: Any, /) -> int:
        """Write bytes; return how many. Raises OutputLost."""
        if self.lost:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self.lost = True
            raise OutputLost(error) from None


def guard() -> None:
    """Open the standard descriptors that are closed, and replace standard output by one of class Output.

    A closed standard output stays one that cannot be written.
    """
    for number in (_INPUT, _OUTPUT, _ERROR):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken. The null device, opened for reading, refuses all writes.
            os.set_inheritable(os.open(os.devnull, os.O_WRONLY if number == _ERROR else os.O_RDONLY), True)
    if sys.stderr is None:
        sys.stderr = open(_ERROR, "w", buffering=1, errors="backslashreplace", closefd=False)
    raw, before = Output(_OUTPUT, "w", closefd=False), sys.stdout
    unbuffered = isinstance(before, io.TextIOWrapper) and before.write_through
    # Print "?" for characters that the encoding lacks: the lines of a tree must not end a report.
    sys.stdout = io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=before.encoding if before is not None else None,
        errors="replace",
        line_buffering=raw.isatty(),
        write_through=unbuffered,
    )


def tell(text: str) -> None:
    """Print one line on standard error, if it can be written: the exit code says the same without it."""
    try:
        print(one_line(text), file=sys.stderr, flush=True)
    except OSError:
        return
