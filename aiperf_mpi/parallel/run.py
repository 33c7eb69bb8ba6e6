# SPDX-License-Identifier: Apache-2.0
"""One launch from start to end: writer, MPI, split, checks, devices, data, windows, roles, result, verdict."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from aiperf_mpi import __version__
from aiperf_mpi.config import Config, ConfigError, classify, from_toml
from aiperf_mpi.data.catalogue import check_dataset
from aiperf_mpi.parallel import comm, launch
from aiperf_mpi.parallel.binding import host_share, local_devices, role_environment
from aiperf_mpi.parallel.comm import Ranks
from aiperf_mpi.parallel.context import Context, open_windows, owns_best, rank_row, send_rank_row, start_core_clock
from aiperf_mpi.parallel.coordinator import End, commit_initial, coordinate, utc_now
from aiperf_mpi.parallel.drain import Drain
from aiperf_mpi.parallel.machine import NO_DEVICE, Sight, look, start_monitor
from aiperf_mpi.parallel.messages import Reason
from aiperf_mpi.parallel.placement import TRAINER
from aiperf_mpi.results.client import WriterClient, WriterStatus
from aiperf_mpi.results.rows import RunHeader
from aiperf_mpi.search.architecture import Architecture
from aiperf_mpi.search.tpe import missing
from aiperf_mpi.system.inventory import environment, inventory, packages
from aiperf_mpi.system.phases import PhaseTimer
from aiperf_mpi.system.storage import default_output, prepare_output
from aiperf_mpi.system.view import View
from aiperf_mpi.system.walltime import DEFAULT_RESERVE, check_limit

#: Seconds that the writer has for the final result (a million trials take some minutes).
RESULT_SECONDS = 900.0

#: Seconds that a compilation may go on behind the end of a run (half of the wall time that is kept back for validating
#: and writing), and behind a drain, which must end soon.
COMPILE_SECONDS, DRAIN_SECONDS = DEFAULT_RESERVE / 2, 15.0

#: Exit codes of runs whose result could not be written: drained as asked, or failed.
EXIT_WITHOUT_RESULT = {"drained": comm.EXIT_DRAINED, "time_limit": comm.EXIT_FAILURE}


@dataclass(frozen=True)
class Facts:
    """What a trainer found before the core time: its devices, and which images it really has."""

    device: str = ""
    n_devices: int = 0
    dataset_sha256: str = ""
    train_images: int = 0
    val_images: int = 0


def run(config: Config, argv: Sequence[str], drain: Drain) -> NoReturn:
    """Run the benchmark on this rank; ends the process with the exit code that all ranks agree on.

    Arguments:
        config: this rank's configuration; rank 0's holds.
        argv: the command line, for the result.
        drain: what hears the signals that ask the run to drain, installed since the process began.
    """
    started = time.monotonic()
    timer = PhaseTimer()
    timer.switch("init")

    # Processes are started before MPI is: a fork behind its initialisation is unsafe on some fabrics.
    first = launch.detect().rank == 0
    writer = WriterClient.start() if first else None
    machine = inventory() if first else {}

    with comm.job() as world:
        # Behind MPI only where the launcher did not say who is first, or said it of another one than MPI does.
        if world.rank == 0:
            writer, machine = writer or WriterClient.start(), machine or inventory()
        elif writer is not None:
            writer.abandon()
            writer = None
        config = from_toml(world.bcast(config.to_toml() if world.rank == 0 else None))
        parallel = config.parallel
        ranks = comm.split(world, parallel.ranks_per_node, parallel.trainers_per_node,
                           trainers_per_replica=parallel.trainers_per_replica)  # fmt: skip
        found = os.path.isdir(os.path.expanduser(config.run.output))
        config = check_all(config, ranks)
        try:
            sight = look(config, ranks, bind_devices(config, ranks))
            with timer("data"):
                workshop, facts = open_workshop(config, ranks)
            windows = open_windows(config, ranks)
        except launch.LaunchError:
            # A refused run leaves nothing behind, but what was there already.
            if world.rank == 0 and not found:
                os.rmdir(config.run.output)
            raise
        context = Context(config, ranks, windows, timer, started, start_core_clock(ranks), facts.n_devices)

        if writer is not None:
            code, clean = lead(context, writer, drain, header_of(context, facts, argv, machine | sight.inventory)), True
        else:
            code, clean = comm.EXIT_VALID, work(context, workshop, facts, sight)
        comm.agreed_exit(world, code, clean)


# -- before the core time ----------------------------------------------------------------------------------------------


def check_all(config: Config, ranks: Ranks) -> Config:
    """Look for everything that would end the run later: data, wall time, output folder. Collective.

    Returns the configuration with the absolute path of the output folder, made by rank 0. Raises LaunchError on all
    ranks where anything is wrong on one of them.
    """
    wrong, output, host = None, "", f"rank {ranks.rank} on {ranks.host}"
    try:
        if ranks.rank == 0:
            wrong = check_limit(config.run.time_limit)
        elif ranks.role == TRAINER:
            check_dataset(config)
    except ConfigError as error:
        wrong = f"{host}: {error}" if ranks.rank else str(error)
    if wrong is None and ranks.rank and config.hpo.enabled and config.hpo.method == "tpe" and (lacking := missing()):
        wrong = f"{host}: {lacking}"
    comm.raise_alike(ranks.world, wrong)

    # The folder comes last, so that a refused run leaves none behind.
    try:
        if ranks.rank == 0:
            output = str(prepare_output(config, ranks.n_replicas, config.run.output or default_output()))
    except ConfigError as error:
        wrong = str(error)
    comm.raise_alike(ranks.world, wrong)
    output = ranks.world.bcast(output, root=0)
    unseen = f"{host} does not see the output folder {output}: it must lie on a file system that all nodes share"
    comm.raise_alike(ranks.world, None if os.path.isdir(output) else unseen)
    return replace(config, run=replace(config.run, output=output))


def bind_devices(config: Config, ranks: Ranks) -> tuple[str, ...]:
    """Give this rank's process the devices of its role, before anything imports JAX. Collective.

    Returns the names of all accelerators that the node's trainers have now.
    """
    parallel = config.parallel
    every = ranks.world.allgather(local_devices())
    trainers = [p.rank for p in ranks.places if p.role == TRAINER and p.node == ranks.node_index]
    offers: Sequence[Sequence[str]] = tuple(every[rank] for rank in trainers)
    wrong = None
    try:
        # What CPUs play is counted by node; devices are the host's, of which several nodes may be cut.
        trainer, shared = max(ranks.node_rank, 0), offers
        if ranks.role == TRAINER and not parallel.host_devices:
            trainer, shared = host_share(ranks.places, ranks.rank, every)
        os.environ.update(role_environment(ranks.role, trainer, shared, parallel.host_devices,
                                           together=parallel.trainers_per_replica > 1))  # fmt: skip
    except launch.LaunchError as error:
        wrong = f"rank {ranks.rank} on {ranks.host}: {error}"
    comm.raise_alike(ranks.world, wrong)
    if ranks.node is None:
        return ()
    bound = ranks.node.allgather(local_devices())[: ranks.node_trainers]
    return tuple(dict.fromkeys(name for names in bound for name in names))


def open_workshop(config: Config, ranks: Ranks) -> tuple[Any, Facts]:
    """This trainer's devices and images, None on other ranks, and what all trainers have in common. Collective.

    Raises LaunchError on all ranks where a trainer has no data, too few for a batch on all of its devices, or other
    devices or images than the first one.
    """
    workshop, facts, wrong = None, Facts(), None
    if ranks.role == TRAINER:
        from aiperf_mpi.parallel.workshop import prepare

        try:
            workshop = prepare(config, ranks.replica, ranks.team)
            data = workshop.dataset
            facts = Facts(workshop.device, len(workshop.devices), data.sha256, len(data.train_labels),
                          len(data.val_labels))  # fmt: skip
        except ConfigError as error:
            wrong = f"rank {ranks.rank} on {ranks.host}: {error}"

    # Those without data wait here for those who load it, without taking a core from them.
    comm.wait(ranks.world.Ibarrier())
    comm.raise_alike(ranks.world, wrong)
    root = next(place.rank for place in ranks.places if place.role == TRAINER)
    common = ranks.world.bcast(facts, root=root)
    if ranks.role == TRAINER and facts != common:
        wrong = (
            f"rank {ranks.rank} on {ranks.host} has {facts}, but rank {root} has {common}: all replicas need the same "
            "devices and the same images"
        )
    comm.raise_alike(ranks.world, wrong)
    return workshop, common


def header_of(context: Context, facts: Facts, argv: Sequence[str], machine: dict[str, Any]) -> RunHeader:
    """What the result says of the run as a whole, on rank 0."""
    config, ranks = context.config, context.ranks
    cls, division, departures = classify(config)
    return RunHeader(
        run_id=uuid.uuid4().hex,
        seed=config.run.seed,
        time_limit=config.run.time_limit,
        tick=config.run.tick,
        base=Architecture(config.base).to_json(),
        train_images=facts.train_images,
        val_images=facts.val_images,
        n_ranks=ranks.size,
        n_nodes=ranks.n_nodes,
        n_replicas=ranks.n_replicas,
        n_devices=facts.n_devices * ranks.n_replicas,
        n_generators=ranks.n_generators,
        cls=cls,
        division=division,
        departures=tuple(str(departure) for departure in departures),
        precision=config.train.precision,
        dataset=config.data.name,
        dataset_sha256=facts.dataset_sha256,
        config_toml=config.to_toml(),
        config_sha256=config.sha256,
        argv=tuple(argv),
        environment=environment(),
        inventory=machine,
        packages=packages(),
        version=__version__,
    )


# -- the core time -----------------------------------------------------------------------------------------------------


def lead(context: Context, writer: WriterClient, drain: Drain, header: RunHeader) -> int:
    """Rank 0's part, from its first word to the verdict; returns its exit code."""
    config, timer = context.config, context.timer
    view = View(config.run.view, sys.stderr)
    writer.send_open(header, Path(config.run.output), config.result.fsync_seconds, config.result.partial_seconds)
    commit_initial(context)
    context = start(context)
    writer.send_start(utc_now())
    view.log(f"core time starts: {header.n_replicas} replicas, {header.n_devices} devices, {config.run.time_limit:g} s")
    sleep_untimed(context)
    end = coordinate(context, writer, drain, view)

    # The result: the windows go first, so that the other ranks only wait for the verdict.
    with timer("communicate"):
        context.windows.close()
    writer.send_rank(rank_row(context, "", NO_DEVICE).tobytes())
    total = time.monotonic() - context.started
    status = writer.close(end.name, end.core_seconds, total, end.cause, timeout=RESULT_SECONDS)
    view.close()
    return conclude(status, end)


def conclude(status: WriterStatus, end: End) -> int:
    """Judge the result file as anybody can, print the verdict, and return its exit code."""
    from aiperf_mpi.results import judge, report

    for error in status.errors:
        print(f"aiperf_mpi: {error}", file=sys.stderr, flush=True)
    if status.result:
        verdict = judge.judge(status.result)
        lines, code = report.verdict_lines(verdict), report.exit_code(verdict)
    else:
        lines, code = report.lines_without_result(end.name), EXIT_WITHOUT_RESULT[end.name]
    print("\n".join(lines), flush=True)
    return code


def work(context: Context, workshop: Any, facts: Facts, sight: Sight) -> bool:
    """The part of a trainer or generator, from the start of the core time to its farewell; whether it may exit now, as
    nothing runs in it any more."""
    clean, trains = True, context.ranks.role == TRAINER
    context = start(context)
    monitor = start_monitor(context, sight.probe)
    sleep_untimed(context)

    if trains:
        from aiperf_mpi.parallel import best, trainer

        trained = trainer.train(context, workshop)
        if monitor is not None:
            monitor.finish()
        whole = reached_limit(context)
        if whole:
            best.validate_best(context, workshop, trained.replica.best)
        clean = trainer.finish(trained, COMPILE_SECONDS if whole else DRAIN_SECONDS)
        workshop.cache.close()
    else:
        from aiperf_mpi.parallel import generator

        generator.generate(context)
        if reached_limit(context):
            with context.timer("idle"):
                owns_best(context.ranks)
    send_rank_row(context, facts.device if trains else "", sight.uuids)
    context.windows.close()
    if trains:
        from aiperf_mpi.parallel import cluster

        cluster.leave()
    return clean


def start(context: Context) -> Context:
    """Put trial 0 in its place and start the core time, with everything made ready. Collective."""
    if context.ranks.replica == 0 and context.ranks.leads:
        from aiperf_mpi.parallel import trainer

        trainer.propose_initial(context)
    if context.ranks.role != TRAINER and context.ranks.rank:
        from aiperf_mpi.parallel import generator

        generator.warm_up(context)
    comm.wait(context.ranks.world.Ibarrier())
    return replace(context, clock=start_core_clock(context.ranks))


def reached_limit(context: Context) -> bool:
    """Whether the run ended by its time limit, and not by a drain: rank 0's word, which all ranks wait for.

    A rank that saw the limit itself may be ahead of a drain's message, so nobody decides alone.
    """
    messages = context.windows.messages
    while (stop := messages.stop_requested()) is None:
        context.pause(context.config.parallel.poll_seconds)
    return stop.reason is Reason.LIMIT


def sleep_untimed(context: Context) -> None:
    """The injected fault of that name: a sleep that no phase accounts for, which the sum of the phases must show."""
    fault = context.config.fault
    if fault.untimed_sleep_seconds and fault.untimed_sleep_rank == context.ranks.rank:
        phase = context.timer.switch(None)
        time.sleep(fault.untimed_sleep_seconds)
        context.timer.switch(phase)
