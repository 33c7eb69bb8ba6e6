# SPDX-License-Identifier: Apache-2.0
"""A real Slurm of a few nodes on this host, in a folder of its own, for the length of a test.

The nodes are names for this host: each has its own slurmd. Nothing outside the folder is read or changed, and
only the processes started here are ended.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.helpers import launch

#: Commands that must be installed; on Debian: slurmctld, slurmd, slurm-client, munge.
COMMANDS = ("slurmctld", "slurmd", "srun", "sbatch", "squeue", "scancel", "sinfo", "munged")

#: Seconds within which all nodes must be idle, and seconds that the daemons have to end.
START_SECONDS, STOP_SECONDS = 60.0, 10.0

CONFIGURATION = """\
ClusterName=test
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
TmpFS={folder}/tmp.%n
ProctrackType=proctrack/linuxproc
TaskPlugin={task_plugin}
{task_parameters}
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=2
{more}
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port={ports} CPUs={cpus} RealMemory=2000
PartitionName=main Nodes=n[1-{nodes}] Default=YES MaxTime=60 State=UP
"""


def missing() -> str | None:
    """Return why no Slurm can be started here; None if it can."""
    lacking = [name for name in COMMANDS if shutil.which(name) is None]
    if lacking:
        return f"Slurm is not installed ({', '.join(lacking)})"
    return None if os.geteuid() == 0 else "only root can start Slurm's daemons"


@dataclass(frozen=True)
class Slurm:
    """A running Slurm.

    Attributes:
        folder: of its configuration, state and logs.
        environ: the environment in which its commands find it.
        nodes: the names of its nodes.
    """

    folder: Path
    environ: dict[str, str]
    nodes: tuple[str, ...]

    def call(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in Slurm's environment to its end, and return its output; see `launch.finish`."""
        return launch.finish(self.start(command, env=env, cwd=cwd), timeout)

    def start(
        self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start a command in Slurm's environment, in a process group of its own."""
        return subprocess.Popen(
            [str(part) for part in command],
            env={**self.environ, **(env or {})},
            cwd=cwd or self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def batch(
        self,
        script: Path,
        options: Sequence[str] = (),
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 180,
    ) -> tuple[int, str]:
        """Submit a job script and wait for its end; return its exit code and its output."""
        output = self.folder / f"job-{time.monotonic_ns()}.log"
        command: list[str | Path] = ["sbatch", "--wait", f"--output={output}", *options, script]
        done = self.call(command, env=env, cwd=cwd, timeout=timeout)
        text = output.read_text() if output.exists() else ""
        return done.returncode, done.stdout + done.stderr + text

    def logs(self) -> str:
        """Return the ends of the daemons' logs, for the message of a failed test."""
        return "\n".join(
            f"-- {path.name}\n{path.read_text(errors='replace')[-2000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )


@contextmanager
def slurm(
    nodes: int = 1, cpus: int = 2, task_plugin: str = "task/none", more: Sequence[str] = ()
) -> Iterator[Slurm]:
    """Run a Slurm of `nodes` nodes with `cpus` cores each for a `with` block; skip the test where none runs.

    `task_plugin` is "task/none", or "task/affinity", which binds each task to its cores. `more` are further
    lines of the configuration.
    """
    if why := missing():
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    running: list[subprocess.Popen[bytes]] = []
    cluster = Slurm(folder, _environment(folder), tuple(f"n{index + 1}" for index in range(nodes)))
    try:
        _configure(cluster, cpus, task_plugin, more)
        _start(cluster, running)
        yield cluster
    finally:
        _stop(cluster, running)
        shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path) -> dict[str, str]:
    """Return this environment without variables of a Slurm job, with the configuration's path."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return {**environ, "SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(launch.ROOT)}


def _configure(cluster: Slurm, cpus: int, task_plugin: str, more: Sequence[str]) -> None:
    """Write the configuration, the key of munge, and the folders of the daemons."""
    folder, controller = cluster.folder, _free_ports(1)[0]
    ports = _free_ports(len(cluster.nodes))
    for name in (
        "state",
        "munge",
        *(f"{kind}.{node}" for kind in ("spool", "tmp") for node in cluster.nodes),
    ):
        (folder / name).mkdir()
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    text = CONFIGURATION.format(
        host=socket.gethostname(),
        folder=folder,
        # MPICH names shared memory by job and step: a number that another Slurm used would meet its remains.
        first_job=random.SystemRandom().randrange(1000, 50_000_000),
        controller=controller,
        nodes=len(cluster.nodes),
        ports=",".join(map(str, ports)) if len(ports) == 1 else f"[{','.join(map(str, ports))}]",
        cpus=cpus,
        task_plugin=task_plugin,
        task_parameters="TaskPluginParam=Cores" if task_plugin == "task/affinity" else "",
        more="\n".join(more),
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")


def _free_ports(number: int) -> list[int]:
    """Return ascending TCP ports that nothing listens on now."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = sorted(one.getsockname()[1] for one in sockets)
    for one in sockets:
        one.close()
    return ports


def _start(cluster: Slurm, running: list[subprocess.Popen[bytes]]) -> None:
    """Start the daemons, appended to `running`, and wait until all nodes are idle."""
    munge = cluster.folder / "munge"
    daemons: list[list[str]] = [
        ["munged", "--foreground", "--force", f"--socket={munge}/socket", f"--key-file={munge}/key"]
        + [f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"],
        ["slurmctld", "-D", "-c"],
        *(["slurmd", "-D", "-N", node] for node in cluster.nodes),
    ]
    for command in daemons:
        log = cluster.folder / f"{'-'.join(part for part in command[:4] if '/' not in part)}.log"
        with log.open("wb") as file:
            running.append(
                subprocess.Popen(
                    command,
                    env=cluster.environ,
                    cwd=cluster.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        if command[0] == "munged":
            _wait_for(munge / "socket")
    end = time.monotonic() + START_SECONDS
    while True:
        shown = cluster.call(["sinfo", "--noheader", "--Node", "--format=%N %t"], timeout=30).stdout
        states = dict(line.split() for line in shown.splitlines() if len(line.split()) == 2)
        if len(states) == len(cluster.nodes) and set(states.values()) == {"idle"}:
            return
        if time.monotonic() > end:
            raise RuntimeError(f"Slurm does not start: {shown}\n{cluster.logs()}")
        time.sleep(0.2)


def _wait_for(path: Path) -> None:
    """Wait until a path exists, for some seconds at most."""
    end = time.monotonic() + 10
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)


def _stop(cluster: Slurm, running: list[subprocess.Popen[bytes]]) -> None:
    """Cancel the jobs, end the daemons, and kill what they have started and left."""
    try:
        cluster.call(["scancel", "--full", "--user=root"], timeout=10)
    except subprocess.TimeoutExpired:
        pass  # a controller that does not answer is ended below
    for daemon in reversed(running):
        daemon.terminate()
    psutil.wait_procs([psutil.Process(d.pid) for d in running if d.poll() is None], timeout=STOP_SECONDS)
    for process in _left(cluster):
        process.kill()
    for daemon in running:
        daemon.kill()
        daemon.wait()


def _left(cluster: Slurm) -> list[psutil.Process]:
    """Return the processes that still belong to this Slurm: those that know its configuration."""
    found, mine = [], cluster.environ["SLURM_CONF"]
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_CONF") == mine:
                found.append(process)
        except psutil.Error:
            continue  # it has ended, or belongs to another user
    return found
