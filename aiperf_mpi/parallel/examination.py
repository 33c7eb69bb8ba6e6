# SPDX-License-Identifier: Apache-2.0
"""The checks of `doctor` that one process makes alone, with or without a launcher; none starts MPI."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import NoReturn

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.data.catalogue import check_dataset
from aiperf_mpi.ending import end_job, leave
from aiperf_mpi.environment.batch import judge_job
from aiperf_mpi.environment.variables import judge_variables
from aiperf_mpi.exits import EXIT_USAGE
from aiperf_mpi.launchers import local_rank, local_size
from aiperf_mpi.links.addresses import listed
from aiperf_mpi.links.candidates import facts
from aiperf_mpi.machine.inventory import packages
from aiperf_mpi.machine.source import source
from aiperf_mpi.parallel.launch.binding import local_devices
from aiperf_mpi.parallel.launch.launcher import detect, how_to_launch, more_cores
from aiperf_mpi.parallel.launch.placement import COORDINATOR, GENERATOR, TRAINER
from aiperf_mpi.planning import shared_memory
from aiperf_mpi.planning.finding import Finding, refusal
from aiperf_mpi.planning.provenance import before_official, hiding, provenance
from aiperf_mpi.planning.rank_resources import RankResources, own_resources
from aiperf_mpi.planning.resources import PROCESSES, judge_processes
from aiperf_mpi.planning.resources import judge as judge_resources
from aiperf_mpi.planning.walltime import check_limit, remaining
from aiperf_mpi.site import (
    accelerators,
    bounded,
    folders,
    library,
    likeness,
    modules,
    official,
    output,
    staging,
    transports,
)
from aiperf_mpi.site.child import JAX_PROGRAM, MPI_PROGRAM, Child
from aiperf_mpi.site.merged import merge
from aiperf_mpi.site.text import Examination

#: Seconds for the checks of files and devices, and for JAX from the start of its process.
CHECK_SECONDS, JAX_SECONDS = 6.0, 12.0

#: Ranks of a node that are assumed without a launcher: a trainer and two generators.
_RANKS_OF_NODE = 3

#: Processes of a launcher on its host: MPICH's mpiexec and its proxy.
_LAUNCHER_PROCESSES = 2


@dataclass(frozen=True)
class Request:
    """What `doctor` is asked to do on one rank.

    Attributes:
        started: `time.monotonic()` at the start of the command.
        config: the configuration, on the rank that the launcher calls 0.
        read: reads the configuration, where MPI calls another rank 0.
        show: prints what was found.
    """

    started: float
    config: Config | None
    read: Callable[[], Config]
    show: Callable[[Examination], None]


def examine_alone(config: Config, started: float, refused: Finding | None = None) -> Examination:
    """Check this host for a process without a launcher.

    `refused` is why MPI does not connect the ranks, where there is a launcher of another MPI.
    """
    host = socket.gethostname()
    trainers = config.parallel.trainers_per_node
    need = shared_memory.coordinator_bytes(config) + shared_memory.node_bytes(
        config, trainers, max(_RANKS_OF_NODE, trainers)
    )
    started_here = local_size()
    ranks = started_here if started_here > 1 else max(_RANKS_OF_NODE, 1 + trainers)
    checks = host_checks(config, need, ranks) | {"data set": lambda: judge_data(config)} | job_checks(config)
    checks["network"] = lambda: judge_network(config)
    checks["output"] = lambda: _output(config)
    checks["program"] = lambda: judge_program(config)
    checks[modules.SUBJECT] = lambda: modules.judge(CHECK_SECONDS - 1)
    checks["variables"] = lambda: (*judge_environment(config, True), *transports.judge())
    checks["batch system"] = judge_job
    checks["memory"] = lambda: judge_host(config, host)
    checks["versions"] = lambda: likeness.judge([(likeness.identity(), (0,))])
    with ExitStack() as ends:
        ends.callback(folders.remove_all)
        jax, mpi = (ends.enter_context(Child(program)) for program in (JAX_PROGRAM, MPI_PROGRAM))
        checks["MPI"] = lambda: (refused,) if refused is not None else _library(mpi)
        found = bounded.findings(checks, CHECK_SECONDS) + judge_jax(config, jax)
    return Examination(
        merge([((0,), found)], [host]),
        ranks=0,
        hosts=(host,),
        launcher="none",
        preset=config.run.preset,
        output=config.run.output,
        seconds=time.monotonic() - started,
    )


def refuse_job(request: Request, problem: str) -> NoReturn:
    """Show why MPI does not connect the ranks of a job, with the checks of one host, and end the job with 2.

    One rank shows it, after JAX_SECONDS at most. The others wait until it has ended the job; where it has no
    such problem, as MPI is missing on some hosts alone, they tell their own, before it gives up the wait for
    them in MPI_Init. Slurm's srun ends no job when one rank leaves: one rank of each host speaks there.
    """
    launcher = detect()
    if not launcher.speaks:
        time.sleep(JAX_SECONDS)
        if launcher.name == "srun" and local_rank():
            sys.exit(EXIT_USAGE)
        end_job(EXIT_USAGE, problem, f"rank {launcher.rank} on host {socket.gethostname()}")
    config = request.config or request.read()
    request.show(examine_alone(config, request.started, refusal("MPI", problem)))
    leave(EXIT_USAGE)


def host_checks(config: Config, need: int, ranks: int = 0) -> dict[str, bounded.Check]:
    """Return the checks that one process of each host makes; the windows need `need` bytes there.

    `ranks` is the number of ranks of this host for a process without MPI, which then still takes its part.
    """
    return {
        "shared memory": lambda: (shared_memory.judge(need, ranks=ranks, begun=not ranks),),
        "accelerators": lambda: accelerators.judge_devices(local_devices(), packages()),
        "scratch": lambda: output.try_scratch(config),
        staging.SUBJECT: lambda: staging.judge(config),
    }


def job_checks(config: Config) -> dict[str, bounded.Check]:
    """Return the checks that one process makes for the job as a whole."""
    return {"wall time": lambda: judge_wall_time(config), "official run": lambda: official.judge(config)}


def judge_program(config: Config | None) -> tuple[Finding, ...]:
    """Return what is known of the program's commit; a lack of it matters to a run that may be official."""
    known = source()
    found = provenance(known)
    if config is None or not before_official(config, known):
        found = Finding("ok", found.subject, found.text)
    return (found, *hiding(known))


def judge_host(config: Config, host: str) -> tuple[Finding, ...]:
    """Judge cores and memory of this host for one trainer."""
    on_cpu = bool(config.parallel.host_devices) or not local_devices()
    trainer = own_resources(0, host, TRAINER, on_cpu)
    windows = shared_memory.coordinator_bytes(config) + shared_memory.node_bytes(config, 1, _RANKS_OF_NODE)
    found = judge_resources([trainer], config, more_cores(detect(), ""), {host: windows})
    names = f"rank 0 on {host}"
    told = [replace(one, text=one.text.replace(names, "a trainer on this host")) for one in found]
    return (*(one for one in told if one.subject != PROCESSES), *_judge_processes(config, trainer))


def _judge_processes(config: Config, trainer: RankResources) -> tuple[Finding, ...]:
    """Judge the limits on processes for a run on this host: a coordinator, its trainers, and generators."""
    trainers = config.parallel.trainers_per_node
    generators = max(0, _RANKS_OF_NODE - 1 - trainers)
    roles = [COORDINATOR, *[TRAINER] * trainers, *[GENERATOR] * generators]
    # The threads of this process end before a run begins.
    ranks = [
        replace(trainer, rank=rank, role=role, threads=0 if rank else trainer.threads)
        for rank, role in enumerate(roles)
    ]
    found = judge_processes(ranks, config, begun=False, others=_LAUNCHER_PROCESSES)
    names = f"ranks 0-{len(ranks) - 1} on {trainer.host}"
    return tuple(
        replace(one, text=one.text.replace(names, f"{len(ranks)} ranks on this host")) for one in found
    )


def judge_data(config: Config) -> tuple[Finding, ...]:
    """Return whether a trainer can open the data set."""
    try:
        check_dataset(config)
    except ConfigError as error:
        return (refusal("data set", str(error)),)
    data = config.data
    where = f" in {data.path}" if data.path else ""
    return (Finding("ok", "data set", f"{data.name}{where}: {data.train_images} + {data.val_images} images"),)


def judge_jax(config: Config, asked: Child) -> tuple[Finding, ...]:
    """Judge the devices that JAX finds; a run on emulated devices of the CPU does not look at others."""
    if config.parallel.host_devices:
        return (accelerators.of_cpu(config.parallel.host_devices),)
    return accelerators.judge_jax(asked.answer(JAX_SECONDS), local_devices(asked.environ), asked.environ)


def judge_environment(config: Config, trains: bool) -> tuple[Finding, ...]:
    """Judge the variables of JAX, CUDA, ROCm and this program, for a trainer or another rank."""
    found = tuple(judge_variables(trains, config.parallel.host_devices))
    return found or (Finding("ok", "variables", "those of JAX, CUDA, ROCm and this program are fine"),)


def judge_network(config: Config) -> tuple[Finding, ...]:
    """Return whether this host has an address for a replica over several hosts, if the run may have one."""
    subject, setting, parallel = "network", config.parallel.address, config.parallel
    if parallel.trainers_per_replica <= parallel.trainers_per_node and not setting:
        return (Finding("ok", subject, "only MPI's own: no replica has trainers on several hosts"),)
    known = facts(setting)
    if known.problem:
        remedy = "name an interface, a network, a host name or an address that this host has or reaches"
        return (Finding("fail", subject, f"parallel.address: {known.problem}", remedy),)
    if not known.own:
        remedy = "set up an interface, or use one trainer a replica"
        return (Finding("fail", subject, "this host has no address but loopback", remedy),)
    if setting:
        return (Finding("ok", subject, f"parallel.address={setting} is {known.setting} here"),)
    names = f"the host's name means {known.name}" if known.name else "the host's name means none of them"
    return (Finding("ok", subject, f"{listed(known.own)}; {names}"),)


def judge_wall_time(config: Config, environ: Mapping[str, str] = os.environ) -> tuple[Finding, ...]:
    """Return whether the run fits into the time that the batch system leaves."""
    subject, limit = "wall time", config.run.time_limit
    try:
        if problem := check_limit(limit, environ=environ):
            return (refusal(subject, problem),)
        left = remaining(environ)
    except ConfigError as error:
        return (refusal(subject, str(error)),)
    if left is None:
        return (Finding("ok", subject, f"no job's end is known; the core time is {limit:g} s"),)
    return (Finding("ok", subject, f"{left:.0f} s are left in this job for a core time of {limit:g} s"),)


def _library(asked: Child) -> tuple[Finding, ...]:
    """Judge the MPI library and the launcher in the search path."""
    told = asked.answer(CHECK_SECONDS)
    return library.judge(told, how_to_launch(told.get("vendor", "")), library.launcher_in_path())


def _output(config: Config) -> tuple[Finding, ...]:
    """Try the output folder, and remove what the try has made."""
    folder, found = output.try_output(config, config.parallel.trainers_per_node)
    if folder is not None:
        folders.remove(folder)
    return found
