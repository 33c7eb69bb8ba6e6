# SPDX-License-Identifier: Apache-2.0
"""The MPI of tests that start ranks, and launcher arguments that make one machine look like several."""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from typing import Any

import pytest

from tests.helpers import launch

#: The programs that ranks run.
PROGRAMS = launch.ROOT / "tests" / "programs" / "parallel"

#: Emulations of a network on one machine; the sleeping target proves that every operation crosses it.
NETWORKS = {
    "ofi": {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"},
    "ucx": {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ucx", "UCX_TLS": "tcp,self"},
}

#: Marks a test that runs under both MPIs in each run of the tests.
BOTH = pytest.mark.parametrize("mpi", ["mpich", "openmpi"], indirect=True)

#: The report of each rank of a program, by rank.
Reports = list[dict[str, Any]]


def under_both(*cases: tuple[Any, ...], openmpi: Collection[tuple[Any, ...]]) -> list[Any]:
    """Return cases for `parametrize` with the MPI as first value: each under MPICH, and those of `openmpi`
    under Open MPI, whose launcher is slow; --full runs all under both."""
    unknown = set(openmpi) - set(cases)
    if unknown:
        raise ValueError(f"not among the cases: {unknown}")
    return [("mpich", *case) for case in cases] + [
        pytest.param("openmpi", *case, marks=[] if case in openmpi else pytest.mark.full) for case in cases
    ]


def several_hosts(mpi: str, hosts: int, ranks_per_host: int) -> list[str]:
    """Return arguments for the launcher of `mpi` that make this machine look like several; skip where its
    name cannot change."""
    ssh = PROGRAMS / "launch" / "fake_ssh"
    if subprocess.run([ssh, "h0", "true"], capture_output=True, timeout=30).returncode:
        pytest.skip("this machine does not allow another host name (unshare --user --uts)")
    names = ",".join(f"h{i}:{ranks_per_host}" for i in range(hosts))
    if mpi == "openmpi":
        place = f"ppr:{ranks_per_host}:node:oversubscribe"
        return ["--prtemca", "plm_ssh_agent", str(ssh), "--host", names, "--map-by", place]
    return ["-launcher", "ssh", "-launcher-exec", str(ssh), "-hosts", names]


def require(mpi: str) -> str:
    """Return the name of an MPI; skip the test where it has no environment."""
    if not launch.available(mpi):
        pytest.skip(f"there is no environment for {mpi} ({launch.launcher(mpi)} is missing): see bin/test")
    return mpi
