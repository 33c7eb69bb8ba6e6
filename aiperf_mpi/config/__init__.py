# SPDX-License-Identifier: Apache-2.0
"""Settings of a run: their declaration, their values and how they are read; presets/ has configurations."""

from aiperf_mpi.config.classes import Departure, classify
from aiperf_mpi.config.config import Config, from_toml, load, preset_expectation, preset_names
from aiperf_mpi.config.setting import ConfigError

__all__ = [
    "Config",
    "ConfigError",
    "Departure",
    "classify",
    "from_toml",
    "load",
    "preset_expectation",
    "preset_names",
]
