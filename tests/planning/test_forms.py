# SPDX-License-Identifier: Apache-2.0
"""The forms in which a run trains follow from its devices, unless the configuration names them."""

from __future__ import annotations

import pytest

from aiperf_mpi.config import load
from aiperf_mpi.opcount.forms import FORM_SETS
from aiperf_mpi.planning.forms import choose_forms, with_forms
from aiperf_mpi.training.settings import settings_of


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([("cuda", "9.0")] * 4, "lean"),
        ([("gpu", "8.0")], "lean"),
        ([("rocm", "gfx942")], "lean"),
        ([("tpu", "")], "plain"),
        ([("cpu", "")] * 2, "plain"),
        ([("cuda", "9.0"), ("cpu", "")], "plain"),
    ],
)
def test_devices_train_in_lean_forms_where_these_were_measured(
    devices: list[tuple[str, str]], expected: str
) -> None:
    config, measured = load("demo"), frozenset(("cuda", "gpu", "rocm"))
    assert config.train.forms == "auto" and choose_forms(config, devices, measured) == expected
    assert choose_forms(with_forms(config, "folded"), devices, measured) == "folded"
    # No device has trained in them yet.
    assert choose_forms(config, devices) == "plain"


def test_the_steps_of_a_run_have_the_forms_of_its_configuration() -> None:
    config = load("demo")
    assert settings_of(config, 8).forms == ()
    for name, forms in FORM_SETS.items():
        assert settings_of(with_forms(config, name), 8).forms == forms
