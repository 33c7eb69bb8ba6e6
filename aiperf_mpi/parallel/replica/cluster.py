# SPDX-License-Identifier: Apache-2.0
"""A replica of several processes as one JAX cluster with its own coordinator address.

JAX's own detection of clusters would join all ranks of the job, so it is off. A process belongs to the same
cluster for its whole life.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import jax

from aiperf_mpi.parallel.launch.mpi import MPI

#: Seconds that the processes of a replica have to find one another.
JOIN_SECONDS = 120


def join(comm: MPI.Intracomm) -> None:
    """Join the trainers of `comm` to one JAX cluster, before any of them asks JAX for its devices.
    Collective.

    The address is a port that the first trainer has already bound on its host, so that no other program can
    bind it. JAX's service binds it too, as both share it (SO_REUSEPORT). The address is on the loopback where
    all trainers are on one host, else it has the host's name.

    Two cases remain: another process of the same user that asks for this port and shares it as well, and a
    firewall between two hosts that blocks it. Either ends the job with JAX's error, within JOIN_SECONDS.
    """
    # JAX would take SIGTERM as a notice of preemption and go on; this program has its own handlers.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    host = socket.gethostname()
    together = len(set(comm.allgather(host))) == 1
    with held_port() if comm.rank == 0 else nullcontext(0) as port:
        address = comm.bcast(f"{'127.0.0.1' if together else host}:{port}" if comm.rank == 0 else "")
        jax.distributed.initialize(
            address,
            comm.size,
            comm.rank,
            cluster_detection_method="deactivate",
            initialization_timeout=JOIN_SECONDS,
        )


def leave() -> None:
    """Take this process out of its cluster, if it is in one, before it exits. Collective over the cluster."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


@contextmanager
def held_port() -> Iterator[int]:
    """Hold a free TCP port of this host, on all its addresses; meanwhile only sockets that share it can bind
    it."""
    # JAX's service listens on [::], which includes all IPv4 addresses where a host has both.
    both = socket.has_dualstack_ipv6()
    with socket.socket(socket.AF_INET6 if both else socket.AF_INET) as holder:
        if both:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("", 0))
        yield int(holder.getsockname()[1])
