# SPDX-License-Identifier: Apache-2.0
"""A replica of several processes as one JAX cluster: its own coordinator address, and nobody else in it.

JAX's own detection of clusters would make one of all ranks of the job, so it is off. Who belongs to a cluster is fixed
for a process's life.
"""

from __future__ import annotations

import socket

import jax
from mpi4py import MPI

#: Seconds that the processes of a replica have to find one another.
JOIN_SECONDS = 120


def join(comm: MPI.Intracomm) -> None:
    """Make one JAX cluster of the trainers of `comm`, before any of them asks JAX for its devices. Collective.

    The first one's address is a port that is free on its host: on the loopback where all are on one host, else under
    its host's name.
    """
    # JAX would take SIGTERM as a notice of preemption and go on: this program's own handlers decide what it means.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    host = socket.gethostname()
    together = len(set(comm.allgather(host))) == 1
    address = comm.bcast(f"{'127.0.0.1' if together else host}:{_free_port()}" if comm.rank == 0 else "")
    jax.distributed.initialize(
        address, comm.size, comm.rank, cluster_detection_method="deactivate", initialization_timeout=JOIN_SECONDS
    )


def leave() -> None:
    """Take this process out of its cluster, if it is in one, before it exits. Collective over the cluster."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
