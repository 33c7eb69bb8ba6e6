# SPDX-License-Identifier: Apache-2.0
"""The settings of a run that is resumed: those of its folder, but for the few that may differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiperf_mpi.config import Config, ConfigError, load
from aiperf_mpi.config.config import settings, value_of, with_changes
from aiperf_mpi.config.datasets import AUTO
from aiperf_mpi.config.paths import expanded
from aiperf_mpi.config.setting import toml_value
from aiperf_mpi.data.catalogue import resolved
from aiperf_mpi.results.output.resumption import stored_config

#: Settings that may differ from those of the segments before, other than `run.time_limit`, which may be
#: longer: where things are, how ranks are divided, and what rank 0 shows.
FREE = (
    "run.official",
    "run.output",
    "run.preset",
    "run.view",
    "data.path",
    "data.stage",
    "parallel.cache",
    "parallel.ranks_per_node",
    "parallel.trainers_per_node",
)

#: Settings whose value `auto` was decided when the run began.
DECIDED = ("train.precision", "train.forms")


def resumed_config(
    folder: str,
    preset: str | None = None,
    files: Sequence[str | Path] = (),
    sets: Sequence[str] = (),
    **flags: Any,
) -> Config:
    """Return the configuration of the run in the folder of `--resume`, with what other options change.

    The other arguments are those of `config.load`. Raises ConfigError where the folder has no run that can be
    resumed, or an option changes what must stay.
    """
    if flags.pop("output", None) is not None:
        raise ConfigError("--output: a run is resumed in its own folder; leave --output out")
    place = expanded("--resume", folder)
    stored = stored_config(place)
    if preset or files:
        asked = _as_decided(resolved(load(preset, files, sets, **flags)), stored, sets, flags)
    else:
        asked = resolved(with_changes(stored, sets, **flags))
    if problem := changed_setting(stored, asked):
        raise ConfigError(problem)
    if "run.official" in _named(sets) and asked.run.official:
        raise ConfigError("run.official: a run that is resumed is a trial; leave run.official out")
    return replace(asked, run=replace(asked.run, output=str(place), official=False))


def changed_setting(stored: Config, asked: Config) -> str:
    """Return what differs between a run's configuration and the one that is asked for, and must not; "" if
    nothing does."""
    for key in settings():
        before, now = value_of(stored, key), value_of(asked, key)
        if key in FREE or before == now or (key in DECIDED and now == AUTO):
            continue
        if key == "run.time_limit":
            if now > before:
                continue
            return f"{key}: {now:g} s is shorter than the {before:g} s of the run; a longer one extends it"
        return (
            f"{key}: {toml_value(now)} differs from the {toml_value(before)} of the run that is resumed; "
            "leave it out, or start a new run, without --resume"
        )
    return ""


def _as_decided(asked: Config, stored: Config, sets: Sequence[str], flags: Mapping[str, Any]) -> Config:
    """Return a configuration with the decided settings of the run, and its time limit unless one is given."""
    train = asked.train
    if train.precision == AUTO:
        train = replace(train, precision=stored.train.precision)
    if train.forms == AUTO:
        train = replace(train, forms=stored.train.forms)
    given = flags.get("time_limit") is not None or "run.time_limit" in _named(sets)
    run = asked.run if given else replace(asked.run, time_limit=stored.run.time_limit)
    return replace(asked, train=train, run=run)


def _named(sets: Sequence[str]) -> list[str]:
    """Return the keys of the options `--set`."""
    return [text.partition("=")[0].strip() for text in sets]
