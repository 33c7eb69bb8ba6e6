# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that start ranks: which MPI, and a way to run a program of `programs/` and read its reports."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import launch

PROGRAMS = Path(__file__).parent / "programs"

Reports = list[dict[str, Any]]


def under_both(*cases: tuple[Any, ...], openmpi: Collection[tuple[Any, ...]]) -> list[Any]:
    """Cases for `parametrize` with the MPI in front: each under MPICH and, as Open MPI's launcher takes a second or two
    to start and to end, those of `openmpi` under Open MPI, the rest of them with --full."""
    unknown = set(openmpi) - set(cases)
    if unknown:
        raise ValueError(f"not among the cases: {unknown}")
    return [("mpich", *case) for case in cases] + [
        pytest.param("openmpi", *case, marks=[] if case in openmpi else pytest.mark.full) for case in cases
    ]


@pytest.fixture(params=["mpich", "openmpi"])
def mpi(request: pytest.FixtureRequest) -> str:
    """Each MPI that has an environment here (or the one that a test names, by `under_both` and indirect)."""
    return require(request.param)


@pytest.fixture
def mpich() -> str:
    """MPICH, for what only its variables can emulate."""
    return require("mpich")


def several_hosts(mpi: str, hosts: int, ranks_per_host: int) -> list[str]:
    """Arguments for the launcher of `mpi` that make this machine several; skips where it lets nobody rename it."""
    ssh = PROGRAMS / "fake_ssh"
    if subprocess.run([ssh, "h0", "true"], capture_output=True, timeout=30).returncode:
        pytest.skip("this machine lets nobody run a command under another host name (unshare --user --uts)")
    names = ",".join(f"h{i}:{ranks_per_host}" for i in range(hosts))
    if mpi == "openmpi":
        place = f"ppr:{ranks_per_host}:node:oversubscribe"
        return ["--prtemca", "plm_ssh_agent", str(ssh), "--host", names, "--map-by", place]
    return ["-launcher", "ssh", "-launcher-exec", str(ssh), "-hosts", names]


def require(mpi: str) -> str:
    """The name of an MPI, or a skip where it has no environment."""
    if not launch.available(mpi):
        pytest.skip(f"there is no environment for {mpi} ({launch.launcher(mpi)} is missing): see bin/test")
    return mpi


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., Reports]:
    """`run_program(mpi, ranks, name, *arguments, env=None, launcher=())` runs programs/<name>.py, which must end with
    0, and returns what each rank reported, by rank."""

    def run(
        mpi: str, ranks: int, name: str, *arguments: object, env: Mapping[str, str] | None = None,
        launcher: Sequence[str] = (), timeout: float = 120,
    ) -> Reports:  # fmt: skip
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        command = [PROGRAMS / f"{name}.py", folder, *(str(argument) for argument in arguments)]
        done = launch.mpirun(ranks, command, mpi=mpi, env=env, launcher_arguments=launcher, timeout=timeout)
        said = f"{name} with {ranks} ranks ended with {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, said
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]

    return run
