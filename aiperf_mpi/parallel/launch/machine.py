# SPDX-License-Identifier: Apache-2.0
"""The survey of the nodes: a description of each kind of node for the result, and each node's probe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiperf_mpi.config import Config
from aiperf_mpi.machine.accelerators import (
    ACCELERATOR_SECONDS,
    Accelerators,
    NoAccelerators,
    open_accelerators,
)
from aiperf_mpi.machine.affinity import ranges
from aiperf_mpi.machine.filesystems import file_systems, places
from aiperf_mpi.machine.host import Host
from aiperf_mpi.machine.inventory import describe_node
from aiperf_mpi.machine.monitor import Probe
from aiperf_mpi.machine.rapl import zones
from aiperf_mpi.parallel.launch.binding import local_devices
from aiperf_mpi.parallel.launch.kinds import kinds
from aiperf_mpi.parallel.launch.launcher import detect
from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.launch.placement import TRAINER
from aiperf_mpi.parallel.launch.ranks import Ranks
from aiperf_mpi.probe import NotKnown
from aiperf_mpi.probe import probe as ask
from aiperf_mpi.results.evidence.ceiling import NO_UUIDS

#: Text in place of the UUIDs of a rank that drives no device.
NO_DEVICE = f"{NO_UUIDS}no trainer"


@dataclass(frozen=True)
class NodeSurvey:
    """The results of `survey_nodes` on one rank.

    Attributes:
        probe: reads the usage of this rank's node; None but on the node's first rank.
        uuids: of this rank's own devices, or the reason why there are none.
        inventory: on rank 0, the part of the inventory about MPI, file systems and nodes; {} elsewhere.
    """

    probe: Probe | None
    uuids: str
    inventory: dict[str, Any]


def survey_nodes(config: Config, ranks: Ranks, names: Sequence[str]) -> NodeSurvey:
    """Describe the machine, after devices are bound and the output folder is made. Collective.

    `names` are all accelerators that the trainers of this rank's node were offered.
    """
    probe, description, uuids = None, None, NO_DEVICE
    own = local_devices() if ranks.role == TRAINER and not _on_cpu() else ()
    driven = 0 if ranks.node is None else ranks.node.allreduce(len(own))
    if ranks.node_rank == 0:
        probe, description = _node(config, ranks, names, driven)
    if ranks.role == TRAINER:
        uuids = _uuids(_open(own))
    described = kinds(ranks.world, description)
    if ranks.rank:
        return NodeSurvey(probe, uuids, {})
    nodes = [{"nodes": ranges(ranks.places[rank].node for rank in own), **one} for one, own in described]
    here = ask("the file systems", lambda: file_systems(places(config.run.output, config.data.path)))
    library = ask("the MPI", mpi, seconds=None)
    return NodeSurvey(probe, uuids, {"mpi": library, "file_systems": here, "nodes": nodes})


def _uuids(accelerators: Accelerators) -> str:
    """Return the UUIDs of the accelerators, separated by commas, or the reason why there are none."""
    found = ask("the accelerators", accelerators.describe, seconds=ACCELERATOR_SECONDS)
    uuids = [found] if isinstance(found, NotKnown) else [str(device["uuid"]) for device in found]
    why = accelerators.why or next((text for text in uuids if " " in text), "")
    return f"{NO_UUIDS}{why}" if why else ",".join(uuids)


def _on_cpu() -> bool:
    """Return whether this rank computes on CPUs by choice, even if its host has accelerators."""
    return os.environ.get("JAX_PLATFORMS") == "cpu"


def _node(
    config: Config, ranks: Ranks, names: Sequence[str], driven: int
) -> tuple[Probe | None, dict[str, Any]]:
    """Return the probe and the description of this node; its trainers drive `driven` accelerators.

    What cannot be asked is a reason, and no probe.
    """
    accelerators = _open(names if driven else ())
    if driven not in (0, len(names)):
        # Where the launcher shows each trainer only its own device, the first rank cannot see the others.
        accelerators = NoAccelerators(
            f"trainers drive {driven} accelerators, but the node's first sees {len(names)}"
        )
    found = ask("RAPL", zones)
    counters, why = ((), found) if isinstance(found, NotKnown) else found
    first = min(place.node for place in ranks.places if place.host == ranks.host and place.node >= 0)
    probe = ask(
        "the node's use",
        lambda: Probe(Host(), accelerators, driven, counters, power=ranks.node_index == first),
        seconds=None,
    )
    described = ask(
        "the node",
        lambda: describe_node(places(config.run.output, config.data.path), accelerators, counters, why),
        seconds=None,
    )
    return (
        None if isinstance(probe, NotKnown) else probe,
        {"not known": described} if isinstance(described, NotKnown) else described,
    )


def _open(names: Sequence[str]) -> Accelerators:
    """Return the accelerators of these names; the reason in their place where none can be opened."""
    found = ask("the accelerators", open_accelerators, names, seconds=None)
    return NoAccelerators(str(found)) if isinstance(found, NotKnown) else found


def mpi() -> dict[str, str]:
    """Return the library of this run's MPI, its version, the version of the standard, and the launcher."""
    name, version = MPI.get_vendor()
    launcher = detect().name
    return {
        "library": " ".join(MPI.Get_library_version().replace("\0", "").split())[:500],
        "vendor": f"{name} {'.'.join(map(str, version))}",
        "standard": ".".join(map(str, MPI.Get_version())),
        "launcher": "not told by the environment" if launcher == "none" else launcher,
    }
