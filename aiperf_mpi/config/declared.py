# SPDX-License-Identifier: Apache-2.0
"""The settings of section `declared`: the peak rate of a device that the table of peaks does not know."""

from __future__ import annotations

from dataclasses import dataclass

from aiperf_mpi.config.datasets import AUTO
from aiperf_mpi.config.setting import ConfigError, setting, shown
from aiperf_mpi.machine.peaks import FORMS, MODULE, fastest, peak_of


@dataclass(frozen=True, slots=True)
class Declared:
    """The declared peak rate of a device; verdict and report say that it is declared, and by whom."""

    device: str = setting("", "name of the device, as JAX reports it; empty: no peak is declared")
    peak_ops: float = setting(
        0.0, "dense peak rate in op/s of one device at the run's precision", low=0, high=1e18
    )
    form: str = setting(
        MODULE, "form factor: the fastest known device of that form bounds the peak", choices=FORMS
    )
    source: str = setting("", "document of the maker that states the peak")
    vouched_by: str = setting("", "person and organisation that vouch for the peak")


def check_declared(declared: Declared, precision: str) -> None:
    """Raise ConfigError for a peak that is declared in part, or above all known devices of its form.

    The precision must be that of the run, as a peak has one.
    """
    stated = {name: getattr(declared, name) for name in ("device", "peak_ops", "source", "vouched_by")}
    if not any(stated.values()):
        return
    if missing := [f"declared.{name}" for name, value in stated.items() if not value]:
        raise ConfigError(
            f"{missing[0]} is missing: a declared peak has device, peak_ops, source and vouched_by"
        )
    if precision == AUTO:
        raise ConfigError(
            "train.precision: auto, but a declared peak is that of one precision: set float32, bfloat16 "
            "or float16"
        )
    if declared.peak_ops > (most := fastest(declared.form, precision)):
        raise ConfigError(
            f"declared.peak_ops: {declared.peak_ops:.4e} is more than the {most:.4e} op/s of the fastest "
            f"known {declared.form} at this precision"
        )


def check_unknown(declared: Declared) -> None:
    """Raise ConfigError for the declared peak of a device that the table knows, which would not count.

    Stored configurations are not checked so: the device may have come into the table later.
    """
    if peak_of(declared.device) is not None:
        raise ConfigError(
            f"declared.device: {shown(declared.device)} has a peak in aiperf_mpi/machine/peaks.py, which "
            "counts; leave section declared out"
        )
