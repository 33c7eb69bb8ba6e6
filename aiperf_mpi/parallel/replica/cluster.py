# SPDX-License-Identifier: Apache-2.0
"""A replica of several processes as one JAX cluster: its own coordinator address, and nobody else in it.

JAX's own detection of clusters would make one of all ranks of the job, so it is off. Who belongs to a cluster
is fixed for a process's life.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import jax
from mpi4py import MPI

#: Seconds that the processes of a replica have to find one another.
JOIN_SECONDS = 120


def join(comm: MPI.Intracomm) -> None:
    """Make one JAX cluster of the trainers of `comm`, before any of them asks JAX for its devices.
    Collective.

    The first one's address is a port of its host that it has bound already, so that nobody else can: JAX's
    service binds it too, as both share it (SO_REUSEPORT). It is on the loopback where all are on one host,
    else under its host's name.

    What remains: another process of the same user that asks for this very number and shares it as well; and a
    firewall between two hosts that lets no free port through. Either ends the job with JAX's error, within
    JOIN_SECONDS.
    """
    # JAX would take SIGTERM as a notice of preemption and go on: this program's own handlers decide what it
    # means.
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
    """A free TCP port of this host, on all its addresses, that only who shares it can bind while the context
    lasts."""
    # JAX's service listens on [::], which is all of IPv4 too where a host has both.
    both = socket.has_dualstack_ipv6()
    with socket.socket(socket.AF_INET6 if both else socket.AF_INET) as holder:
        if both:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("", 0))
        yield int(holder.getsockname()[1])
