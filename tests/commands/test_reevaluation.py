# SPDX-License-Identifier: Apache-2.0
"""`verify --reevaluate` on checkpoints from elsewhere (real ones: tests/end_to_end/test_run.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.__main__ import main
from aiperf_mpi.commands.reevaluation import Repetition
from aiperf_mpi.network.architecture import resnet50
from aiperf_mpi.training.checkpoint import save_checkpoint
from aiperf_mpi.training.model.initial import initial_variables
from tests.helpers.results.changes import written
from tests.helpers.results.example_run import example_run
from tests.helpers.training.cases import TINY


@pytest.mark.parametrize(("wrong", "agrees"), [(61, False), (62, True), (63, True), (64, True), (65, False)])
def test_one_image_of_a_small_set_may_differ(wrong: int, agrees: bool) -> None:
    repetition = Repetition(6, wrong / 360, 63 / 360, 360)
    assert repetition.agrees is agrees and ("passed" if agrees else "FAILED") in str(repetition)
    assert not Repetition(6, float("nan"), 63 / 360, 360).agrees


def test_a_hostile_checkpoint_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The example's best trial is 6, a child of ResNet-50.
    result = written(example_run(), tmp_path)
    checkpoint = tmp_path / "checkpoints" / "6.h5"
    checkpoint.parent.mkdir()
    another = resnet50(TINY)
    save_checkpoint(tmp_path / "other.h5", 6, another, initial_variables(another, np.random.default_rng(0)))
    for data, words in (
        (np.random.default_rng(1).bytes(5000), "not a checkpoint"),
        ((tmp_path / "other.h5").read_bytes(), "it holds another network"),
    ):
        checkpoint.write_bytes(data)
        assert main(["verify", "--reevaluate", str(result)]) == 2
        output = capsys.readouterr()
        assert output.out.startswith("AIPERF_MPI status: VALID\n"), output
        assert output.err.count("\n") == 1 and words in output.err and "Traceback" not in output.err, (
            output.err
        )


def test_a_missing_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = written(example_run(), tmp_path)
    assert main(["verify", "--reevaluate", str(result)]) == 2
    assert f"{tmp_path / 'checkpoints' / '6.h5'}: no such file" in capsys.readouterr().err
