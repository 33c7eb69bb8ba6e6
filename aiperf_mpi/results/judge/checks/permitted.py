# SPDX-License-Identifier: Apache-2.0
"""The check that the configuration allows every candidate: its morphs, size and hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from aiperf_mpi.network.architecture import DEFAULT_KERNEL
from aiperf_mpi.network.morphism import Limits
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.file.rows import REJECTED
from aiperf_mpi.results.judge.checks.registry import check


@check(
    "I19",
    "morphs, units, parameters, batch and kernel of every candidate by the stored configuration",
    why=("Other networks or batches than those declared are another search."),
)
def permitted(e: Evidence) -> Iterator[str]:
    """The configuration allows every candidate."""
    config, search = e.config, e.config.search
    names = ("trial_id", "parent_id", "round", "batch_per_device", "kernel_size")
    trials = {name: e.column("trials", name) for name in names}
    limits = Limits(search.max_units, search.max_parameters)

    # A rejected record may hold any value; it was never trained and costs only its own time.
    for row in np.flatnonzero((e.status != REJECTED) | e.trained):
        architecture, own, name = e.architectures[row], e.morphs[row], f"trial {trials['trial_id'][row]}"
        if isinstance(architecture, str) or isinstance(own, str):
            continue
        if len(own) > search.max_morphs:
            yield f"{name}: {len(own)} morphs of its own, but search.max_morphs is {search.max_morphs}"
        if others := sorted({morph.op for morph in own} - set(search.morphs)):
            yield f"{name}: its morphs {', '.join(others)} are not in search.morphs"

        # The initial network is the configuration's own, whatever its size (V01).
        if trials["parent_id"][row] != -1 and not limits.allow(architecture):
            yield (
                f"{name}: {architecture.unit_count} units and {architecture.parameters} parameters are more "
                f"than "
                "search.max_units or search.max_parameters"
            )

        tuned = config.hpo.enabled and trials["round"][row] >= config.hpo.from_round
        batches = config.hpo.batches if tuned else (config.train.batch_per_device,)
        if (batch := int(trials["batch_per_device"][row])) not in batches:
            yield (
                f"{name}: batch_per_device is {batch}, but the configuration allows "
                f"{', '.join(map(str, batches))}"
            )
        kernels = (DEFAULT_KERNEL, *(config.hpo.kernels if tuned else ()))
        if (kernel := int(trials["kernel_size"][row])) not in kernels:
            yield (
                f"{name}: kernel_size is {kernel}, but the configuration allows "
                f"{', '.join(map(str, kernels))}"
            )
