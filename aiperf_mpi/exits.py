# SPDX-License-Identifier: Apache-2.0
"""The exit codes of all commands; job scripts rely on them."""

from __future__ import annotations

#: All ranks of a run agree on one code: the highest that any of them asks for.
EXIT_VALID, EXIT_USAGE, EXIT_INVALID, EXIT_DRAINED, EXIT_FAILURE = 0, 2, 3, 4, 5

#: Exit code, as a shell reports it, of a program ended by a closed pipe: 128 + SIGPIPE.
EXIT_BROKEN_PIPE = 141
