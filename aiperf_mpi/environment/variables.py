# SPDX-License-Identifier: Apache-2.0
"""All that is to be said of the environment variables of a rank, before anything reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from aiperf_mpi.environment import devices, jax_variables, own
from aiperf_mpi.machine.affinity import cpus_of_process
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.probe import NotKnown, probe


def judge_variables(
    trains: bool, host_devices: int = 0, environ: Mapping[str, str] = os.environ
) -> tuple[Finding, ...]:
    """Return the findings on this process's variables; those of devices and JAX count on a trainer.

    `host_devices` are the devices of the CPU that the configuration asks for; accelerators are not used then.
    """
    judges: list[Callable[[], tuple[Finding, ...]]] = [lambda: own.judge(environ)]
    if trains:
        judges.append(lambda: jax_variables.judge(environ, len(cpus_of_process()), host_devices))
    if trains and not host_devices:
        judges.append(lambda: devices.judge(environ))
    found = [probe("variables of the environment", judge, seconds=None) for judge in judges]
    return tuple(one for told in found if not isinstance(told, NotKnown) for one in told)
