# SPDX-License-Identifier: Apache-2.0
"""What a setting is, the settings of a run, and how they are read; presets/ has the configurations that
ship."""

from aiperf_mpi.config.config import Config, Departure, classify, from_toml, load, preset_names
from aiperf_mpi.config.setting import ConfigError

__all__ = ["Config", "ConfigError", "Departure", "classify", "from_toml", "load", "preset_names"]
