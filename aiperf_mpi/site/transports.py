# SPDX-License-Identifier: Apache-2.0
"""Variables of MPI's network libraries that name devices or transports which this host does not have.

MPI ends the process in its initialisation, or waits there, before the program can say anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from aiperf_mpi.planning.finding import Finding

SUBJECT = "variables"

#: Variables with a list of network interfaces or devices: of UCX, libfabric, Open MPI and MPICH.
_INTERFACES = (
    "UCX_NET_DEVICES",
    "FI_TCP_IFACE",
    "FI_SOCKETS_IFACE",
    "FI_VERBS_IFACE",
    "OMPI_MCA_btl_tcp_if_include",
    "OMPI_MCA_oob_tcp_if_include",
    "PRTE_MCA_oob_tcp_if_include",
    "PRTE_MCA_prte_if_include",
    "HYDRA_IFACE",
)

#: Variables that choose transports -> those that need a device of InfiniBand or its like.
_TRANSPORTS = {
    "UCX_TLS": {
        "rc",
        "rc_x",
        "rc_v",
        "dc",
        "dc_x",
        "ud",
        "ud_x",
        "ud_v",
        "ib",
        "rc_mlx5",
        "dc_mlx5",
        "ud_mlx5",
    },
    "FI_PROVIDER": {"verbs", "psm2", "psm3", "opx", "cxi", "efa", "gni", "verbs;ofi_rxm"},
    "OMPI_MCA_btl": {"openib"},
    "OMPI_MCA_mtl": {"psm", "psm2"},
}

#: Folders of the kernel with the devices of such networks.
_FABRICS = ("sys/class/infiniband", "sys/class/cxi", "sys/class/hfi1")


def judge(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> tuple[Finding, ...]:
    """Return a warning for each variable all of whose devices or transports this host lacks."""
    return tuple(
        Finding(
            "warn",
            SUBJECT,
            f"{name}={environ[name][:80]}: this host has no {thing}, so MPI may not start",
            f"correct {name}, or unset it",
        )
        for name, thing in (*_without_device(environ, root), *_without_fabric(environ, root))
    )


def _without_device(environ: Mapping[str, str], root: Path) -> Iterator[tuple[str, str]]:
    """Yield variables that name devices which the kernel does not show."""
    for name in _INTERFACES:
        entries = [entry.strip() for entry in environ.get(name, "").split(",") if entry.strip()]
        # "^" excludes what follows, and a network or an address is not a device.
        named = [entry.partition(":")[0] for entry in entries if not re.match(r"\^|all$|[\d.]+(/|$)", entry)]
        if not named or len(named) < len(entries):
            continue
        if not any(
            (root / folder / device).exists() for folder in ("sys/class/net", *_FABRICS) for device in named
        ):
            yield name, f"device {', '.join(named)[:80]}"


def _without_fabric(environ: Mapping[str, str], root: Path) -> Iterator[tuple[str, str]]:
    """Yield variables that allow only transports of a network which this host does not have."""
    if any(list((root / folder).glob("*")) for folder in _FABRICS):
        return
    for name, needing in _TRANSPORTS.items():
        chosen = {entry.strip().lower() for entry in environ.get(name, "").split(",")} - {"", "self", "sm"}
        if chosen and chosen <= needing:
            yield name, "InfiniBand or like network for it"
