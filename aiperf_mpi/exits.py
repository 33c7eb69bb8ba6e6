# SPDX-License-Identifier: Apache-2.0
"""The exit codes of every command: a contract with job scripts."""

from __future__ import annotations

#: Agreed by all ranks of a run; the highest of their wishes holds.
EXIT_VALID, EXIT_USAGE, EXIT_INVALID, EXIT_DRAINED, EXIT_FAILURE = 0, 2, 3, 4, 5

#: What a shell reports of a program that a closed pipe ended: 128 + SIGPIPE.
EXIT_BROKEN_PIPE = 141
