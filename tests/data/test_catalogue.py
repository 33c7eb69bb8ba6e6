# SPDX-License-Identifier: Apache-2.0
"""The registry of data sets and their modules agree."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from aiperf_mpi.config import load
from aiperf_mpi.config.datasets import DATASETS
from aiperf_mpi.data.catalogue import check_dataset


@pytest.mark.parametrize("name", DATASETS)
def test_each_registered_data_set_has_check_and_load(name: str) -> None:
    module = import_module(f"aiperf_mpi.data.{name}")
    assert callable(module.check) and callable(module.load)


def test_each_module_that_loads_a_data_set_is_registered(root: Path) -> None:
    loading = {
        path.stem for path in (root / "aiperf_mpi/data").glob("*.py") if "\ndef load(" in path.read_text()
    }
    assert loading == set(DATASETS)


@pytest.mark.parametrize("preset", ["demo", "imagenet-synthetic"])
def test_data_sets_without_files_pass_the_check(preset: str) -> None:
    check_dataset(load(preset))
