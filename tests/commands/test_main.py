# SPDX-License-Identifier: Apache-2.0
"""The command line: a first word that is not a command."""

from __future__ import annotations

import pytest

from aiperf_mpi.__main__ import main


@pytest.mark.parametrize(
    ("word", "hint"), [("verfy", "did you mean verify?"), ("xyz", "commands: run, report, verify,")]
)
def test_an_unknown_command_names_the_nearest(
    word: str, hint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([word, "x"]) == 2
    output = capfd.readouterr()
    assert not output.out and output.err.startswith(f"aiperf_mpi: unknown command {word!r}; {hint}")
