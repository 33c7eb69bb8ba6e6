# SPDX-License-Identifier: Apache-2.0
"""A replica of several processes as one JAX cluster with its own coordinator address.

JAX's own detection of clusters would join all ranks of the job, so it is off. A process belongs to the same
cluster for its whole life.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax

from aiperf_mpi.config import ConfigError
from aiperf_mpi.links.candidates import Candidate, Facts, candidates, facts, why_none
from aiperf_mpi.links.handshake import Door, held_port, listening, reach
from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.probe import reason

#: Seconds that the processes of a replica have to form a cluster after each has reached each other.
JOIN_SECONDS = 60

#: Most pairs of hosts that a message names.
_MOST_PAIRS = 3

#: Variables that JAX or gRPC would follow to another coordinator, other devices or a proxy.
_DIVERTING = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_COORDINATOR_BIND_ADDRESS",
    "JAX_LOCAL_DEVICE_IDS",
    "JAX_PARTITION_INDEX",
    "JAX_SLICE_INDEX",
)

#: For each candidate, why other processes (by index in the replica) are not reached.
Failures = list[dict[int, str]]


class Meeting(NamedTuple):
    """Where the trainers of a replica meet: the way, the port of the service, and the facts of each."""

    way: Candidate
    port: int
    of: list[Facts]


def join(comm: MPI.Intracomm, setting: str = "") -> None:
    """Join the trainers of `comm` to one JAX cluster, before any of them asks JAX for its devices.
    Collective.

    `setting` is parallel.address. The port is one that the first trainer has bound on its host, so that no
    other program can bind it; JAX's service binds it too, as both share it (SO_REUSEPORT). Raises ConfigError
    like `meet`, and where JAX's cluster does not form.
    """
    with ExitStack() as held:
        way, port, of = meet(comm, setting, held)
        address = f"[{way.addresses[0]}]" if ":" in way.addresses[0] else way.addresses[0]
        several = len({fact.host for fact in of}) > 1
        own = way.addresses[comm.rank]
        _initialise(comm, f"{address}:{port}", own, setting if several else "", of[comm.rank])


def meet(comm: MPI.Intracomm, setting: str, held: ExitStack) -> Meeting:
    """Return where the trainers of `comm` meet. Collective.

    All agree on the first candidate address at which each of them reaches each other, as JAX's service and
    its all-reduce need. The port of the service is held until `held` closes. Raises ConfigError alike on all
    trainers if no candidate serves: it names which ranks cannot reach which.
    """
    known = comm.allgather((MPI.COMM_WORLD.rank, facts(setting)))
    world_ranks, of = [rank for rank, _ in known], [fact for _, fact in known]
    check_setting(setting, world_ranks, of)
    with ExitStack() as handshake:
        doors = open_doors(comm, held, handshake, world_ranks, of)
        way = met(comm, candidates(of, setting), doors, world_ranks, of)
    return Meeting(way, doors[0].port, of)


def check_setting(setting: str, world_ranks: Sequence[int], of: Sequence[Facts]) -> None:
    """Raise ConfigError for the first trainer whose host lacks what the setting names."""
    for rank, fact in zip(world_ranks, of, strict=True):
        if fact.problem:
            raise ConfigError(
                f"parallel.address: on host {fact.host} of rank {rank}: {fact.problem}; name an interface, a "
                "network, a host name or an address that the host of every trainer has or reaches"
            )


def open_doors(
    comm: MPI.Intracomm,
    held: ExitStack,
    handshake: ExitStack,
    world_ranks: Sequence[int],
    of: Sequence[Facts],
) -> list[Door]:
    """Listen until `handshake` closes, and return where each trainer listens. Collective.

    The first trainer listens at the port of the service, which is held until `held` closes. Raises
    ConfigError alike on all trainers if one of them cannot listen.
    """
    try:
        port = held.enter_context(held_port()) if comm.rank == 0 else 0
        mine: Door | str = handshake.enter_context(listening(port))
    except (OSError, RuntimeError) as error:
        mine = reason(error)
    doors: list[Door] = []
    for rank, fact, door in zip(world_ranks, of, comm.allgather(mine), strict=True):
        if isinstance(door, str):
            raise ConfigError(
                f"rank {rank} on host {fact.host} cannot listen at a TCP port, which the trainers of a "
                f"replica need: {door}; raise the limits on open files and processes (ulimit -n, ulimit -u)"
            )
        doors.append(door)
    return doors


def met(
    comm: MPI.Intracomm,
    ways: Sequence[Candidate],
    doors: Sequence[Door],
    world_ranks: Sequence[int],
    of: Sequence[Facts],
) -> Candidate:
    """Return the first candidate at which all trainers reach one another. Collective. Raises ConfigError."""
    others = [index for index in range(comm.size) if index != comm.rank]
    targets = [(way.addresses[index], doors[index]) for way in ways for index in others]
    answers = iter(reach(targets))
    mine = [{index: why for index in others if (why := next(answers))} for _ in ways]
    every = comm.allgather(mine)
    whole = [place for place in range(len(ways)) if not any(failures[place] for failures in every)]
    if whole:
        return ways[whole[0]]
    raise ConfigError(unreachable(ways, every, world_ranks, of))


def unreachable(
    ways: Sequence[Candidate], every: Sequence[Failures], world_ranks: Sequence[int], of: Sequence[Facts]
) -> str:
    """Return who cannot reach whom, by the candidate that comes closest, and what to do."""
    remedy = (
        "set parallel.address to an interface, a network, a host name or an address that joins these hosts, "
        "or let their firewalls pass TCP between them"
    )
    if not ways:
        return f"the trainers of a replica have no network in common: {why_none(of)}; {remedy}"

    def failing(place: int) -> list[tuple[int, int, str]]:
        return [(a, b, why) for a, each in enumerate(every) for b, why in each[place].items()]

    best = min(range(len(ways)), key=lambda place: len(failing(place)))
    # One pair of ranks stands for all of its two hosts.
    pairs = {(of[a].host, of[b].host): (a, b, why) for a, b, why in reversed(failing(best))}
    lines = [
        f"rank {world_ranks[a]} on host {of[a].host} cannot reach rank {world_ranks[b]} on host "
        f"{of[b].host} at {ways[best].addresses[b]}: {why}"
        for a, b, why in sorted(pairs.values())[:_MOST_PAIRS]
    ]
    more = f"; {len(pairs) - _MOST_PAIRS} more pairs of hosts" if len(pairs) > _MOST_PAIRS else ""
    tried = ", ".join(way.text for way in ways)
    problem = f"the trainers of a replica do not reach one another: {'; '.join(lines)}{more}"
    return f"{problem} (tried: {tried}); {remedy}"


def _initialise(comm: MPI.Intracomm, address: str, own: str, setting: str, fact: Facts) -> None:
    """Form JAX's cluster at `address`, with this process at its own address."""
    # JAX would take SIGTERM as a notice of preemption and go on; this program has its own handlers.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _listen_at(own)
    if setting and (interface := next((one.interface for one in fact.own if one.ip == own), "")):
        # NCCL and RCCL look for a network themselves unless they are told one.
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
    with _without_diversions():
        try:
            jax.distributed.initialize(
                address,
                comm.size,
                comm.rank,
                cluster_detection_method="deactivate",
                initialization_timeout=JOIN_SECONDS,
                coordinator_bind_address=f"[::]:{address.rpartition(':')[2]}",
            )
        except RuntimeError as error:
            text = str(error).strip().split("\n")[0]
            raise ConfigError(
                f"the JAX cluster of a replica's trainers at {address} did not form: {text}; set "
                "parallel.address to another network between their hosts"
            ) from error


def _listen_at(address: str) -> None:
    """Let the all-reduce of CPUs (gloo) listen at `address`: by itself it takes what the host's name means.

    JAX has no setting for it, so its call gets one more argument.
    """
    from jax._src import xla_bridge

    library: Any = getattr(xla_bridge, "_jax", None)
    call: Callable[..., Any] | None = getattr(library, "make_gloo_tcp_collectives", None)
    if call is not None:
        library.make_gloo_tcp_collectives = partial(getattr(call, "func", call), hostname=address)


@contextmanager
def _without_diversions() -> Iterator[None]:
    """Hide from JAX the variables that would divert it, while the block runs."""
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name in _DIVERTING or name.lower().endswith("_proxy")
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def leave() -> None:
    """Take this process out of its cluster, if it is in one, before it exits. Collective over the cluster."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()
