# SPDX-License-Identifier: Apache-2.0
"""One run from start to end: writer, MPI, split, checks, devices, data, windows, roles, result, verdict."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from aiperf_mpi.config import Config, from_toml
from aiperf_mpi.config.classes import RULES, OfficialRules
from aiperf_mpi.ending import watch
from aiperf_mpi.exits import EXIT_VALID
from aiperf_mpi.machine.monitor import Monitor, Probe, Sampler, stride
from aiperf_mpi.parallel.conclusion import conclude
from aiperf_mpi.parallel.coordinator.coordinator import commit_initial, coordinate, utc_now
from aiperf_mpi.parallel.coordinator.view import View
from aiperf_mpi.parallel.header import header_of
from aiperf_mpi.parallel.launch import job, launcher
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.launch.job import write_error
from aiperf_mpi.parallel.launch.machine import NO_DEVICE, NodeSurvey, survey_nodes
from aiperf_mpi.parallel.launch.placement import COORDINATOR, GENERATOR, TRAINER
from aiperf_mpi.parallel.launch.ranks import split
from aiperf_mpi.parallel.launch.start import LOOK_SECONDS, share, step, together
from aiperf_mpi.parallel.preflight import (
    Facts,
    bind_devices,
    check_all,
    decide_official,
    open_output,
    open_resources,
)
from aiperf_mpi.parallel.prepared import Prepared, prepare
from aiperf_mpi.parallel.rank_row import rank_row, send_rank_row
from aiperf_mpi.parallel.resume import (
    Resumption,
    check_same,
    leave_finished,
    progress_of,
    restore_history,
    restore_queue,
    take_over,
)
from aiperf_mpi.parallel.shared.context import Context, open_windows, owns_best, start_core_clock
from aiperf_mpi.parallel.shared.messages import Kind, Reason
from aiperf_mpi.parallel.staging import stage_pictures
from aiperf_mpi.planning.forms import with_forms
from aiperf_mpi.planning.precision import PRECISION, with_precision
from aiperf_mpi.planning.walltime import DEFAULT_RESERVE, remaining
from aiperf_mpi.printable import counted, plain
from aiperf_mpi.results.file.restored import Restored
from aiperf_mpi.results.file.rows import SAMPLE_ROW, RunHeader, new_row
from aiperf_mpi.results.output.client import WriterClient
from aiperf_mpi.training.faults import sleep_untimed

__all__ = ["Prepared", "prepare", "run"]

#: The modules of each role that are not imported with this one.
MODULES = {
    COORDINATOR: ("results.judge.judge", "results.output.repair", "results.report.answers"),
    TRAINER: ("parallel.replica.best", "parallel.replica.cluster", "parallel.trainer.trainer"),
    GENERATOR: ("parallel.generator.generator",),
}

#: Seconds that the writer has for the final result (a million trials take some minutes).
RESULT_SECONDS = 900.0

#: Seconds that a compilation may go on after the end of a run (half of the wall time reserved for validating
#: and writing), and after a drain, which must end soon.
COMPILE_SECONDS, DRAIN_SECONDS = DEFAULT_RESERVE / 2, 15.0


def run(prepared: Prepared, words: Sequence[str], rules: OfficialRules = RULES) -> NoReturn:
    """Run the benchmark on this rank, and end the process with the exit code that all ranks agree on.

    Arguments:
        prepared: what this rank has made before MPI's initialisation.
        words: the command line, which all ranks have alike.
        rules: what an official run must keep; the benchmark has one set of them, tests pass others.
    """
    timer = prepared.timer
    with job.job(words=words) as world:
        if world.rank:
            prepared.drop()
        text = share("configuration", prepared.complete)
        config = prepared.config or from_toml(text)
        parallel = config.parallel
        with step("roles of the ranks"):
            ranks = split(
                world,
                parallel.ranks_per_node,
                parallel.trainers_per_node,
                trainers_per_replica=parallel.trainers_per_replica,
            )
        past = take_over(config, ranks, prepared.writer) if prepared.resumes else Resumption()
        if past.done:
            leave_finished(prepared, past, world)
        begun = past.restored.taken.core_seconds
        findings = check_all(config, ranks, prepared.machine.get("source"), prepared.job_end, rules, begun)
        config, folder = open_output(config, ranks, prepared.writer, past.run_id)
        with step("devices"):
            names = bind_devices(config, ranks)
        with step("survey of the nodes"):
            survey = survey_nodes(config, ranks, names)
        with timer("data"):
            staged = stage_pictures(config, ranks)
            resources, facts = open_resources(config, ranks, staged)
        machine = prepared.machine | survey.inventory | {PRECISION: facts.why_precision, "findings": findings}
        config = with_forms(with_precision(config, facts.precision), facts.forms)
        check_same(config, facts, past)
        config = decide_official(config, facts, machine, rules, past.restored.segments)
        with step("windows"):
            windows = open_windows(config, ranks, past.restored)
            clock = start_core_clock(ranks, begun)
        context = Context(
            config, ranks, windows, timer, prepared.started, clock, facts.n_devices, past.restored
        )

        if prepared.writer is not None:
            header = header_of(context, facts, folder.run_id, words, machine, rules)
            left = remaining(told=prepared.job_end)
            ends = math.inf if left is None else time.monotonic() + left
            code = coordinate_run(context, prepared.writer, header, past, ends, rules)
            clean = True
        else:
            code, clean = EXIT_VALID, work(context, resources, facts, survey)
        job.agreed_exit(world, code, clean)


# -- the core time ---------------------------------------------------------------------------------


def coordinate_run(
    context: Context,
    writer: WriterClient,
    header: RunHeader,
    past: Resumption,
    job_end: float = math.inf,
    rules: OfficialRules = RULES,
) -> int:
    """Do rank 0's part, from the start of the result to the verdict; return its exit code.

    `past` are the segments of the run before this one, and `job_end` is the `time.monotonic()` at which the
    batch system ends the job.
    """
    config, timer = context.config, context.timer
    view = View(config.run.view, sys.stderr)
    with step("first record of the history", alone=True):
        restore_history(context) if context.resumed.slots else commit_initial(context)
        progress = progress_of(context, past.run)
    together("result files", lambda: open_files(writer, header, config, context.resumed))
    context = start(context)
    writer.send_start(utc_now())
    view.log(
        f"{started(context)}: {counted(header.n_replicas, 'replica')}, "
        f"{counted(header.n_devices, 'device')}, {config.run.time_limit:g} s, {header.precision} "
        f"({(header.inventory or {}).get(PRECISION)})"
    )
    sleep_untimed(config.fault, context.ranks.rank, context.timer)
    end = coordinate(context, writer, watch, view, progress, context.clock.at(job_end))

    # Close the windows before the result is written, so that the other ranks wait only for the verdict. That
    # is collective, so they stay open where ranks are missing.
    if not end.missing:
        with timer("communicate"):
            context.windows.close()
    writer.send_rank(rank_row(context, "", NO_DEVICE).tobytes())
    total = time.monotonic() - context.started
    status = writer.close(end.name, end.core_seconds, total, end.cause, timeout=RESULT_SECONDS)
    view.close()
    code = conclude(status, end, Path(config.run.output), header.run_id, rules)
    if end.missing:
        # The others wait in the closing of the windows; no agreement with all of them is possible.
        job.leave(code)
    return code


def started(context: Context) -> str:
    """Return how the core time begins, or goes on, for the log."""
    past = context.resumed
    if not past.segments:
        return "core time starts"
    return (
        f"core time goes on at {past.taken.core_seconds:.1f} s, as segment {past.segments + 1} of the run, "
        f"with {counted(len(past.taken.again), 'trial')} to begin again"
    )


def open_files(writer: WriterClient, header: RunHeader, config: Config, past: Restored) -> None:
    """Have the writer open the journal before the core time. Raises LaunchError where it cannot."""
    writer.send_open(
        header,
        Path(config.run.output),
        config.result.fsync_seconds,
        config.result.partial_seconds,
        past.taken if past.segments else None,
    )
    while not (writer.status().opened or writer.status().errors):
        writer.pump()
        time.sleep(LOOK_SECONDS)
    if writer.status().errors:
        raise launcher.LaunchError(plain(writer.status().errors[0]))


def work(context: Context, resources: Any, facts: Facts, survey: NodeSurvey) -> bool:
    """Do the part of a trainer or generator, from the start of the core time to its last row.

    Return whether the process may exit, as no compilation runs in it any more.
    """
    clean, trains, bytes_read = True, context.ranks.role == TRAINER, 0
    together("result files", lambda: None)
    context = start(context)
    monitor = start_monitor(context, survey.probe)
    sleep_untimed(context.config.fault, context.ranks.rank, context.timer)

    if trains:
        from aiperf_mpi.parallel.replica import best
        from aiperf_mpi.parallel.trainer import trainer

        kept = {trial: epochs for trial, epochs in context.resumed.taken.again.items() if epochs}
        trained = trainer.train(context, resources, survey.uuids, kept)
        bytes_read = resources.reader.bytes_read
        if monitor is not None:
            monitor.finish()
        whole = reached_limit(context)
        if whole:
            best.validate_best(context, resources, trained.state.best, trained.state.retirement.why)
        clean = trainer.finish(trained, COMPILE_SECONDS if whole else DRAIN_SECONDS)
        resources.cache.close()
        if not whole:
            wait_for_last_step(context)
    else:
        from aiperf_mpi.parallel.generator import generator

        generator.generate(context)
        if reached_limit(context):
            with context.timer("idle"):
                owns_best(context)
        else:
            wait_for_last_step(context)
    send_rank_row(context, facts.device if trains else "", survey.uuids, bytes_read)
    context.windows.close()
    if trains and not trained.state.retirement.stuck:
        from aiperf_mpi.parallel.replica import cluster

        cluster.leave()
    return clean


def start(context: Context) -> Context:
    """Queue trial 0, prepare the roles, and start the core time. Collective."""
    together("first candidate", lambda: warm_up(context))
    with step("start of the core time"):
        # From here on a signal to a rank other than 0 is one of the core time, for which all wait.
        if context.ranks.rank:
            watch.defer()
        wait(context.ranks.world.Ibarrier())
        clock = start_core_clock(context.ranks, context.resumed.taken.core_seconds)
    watch.core_time(context.windows.messages.ask_to_drain if context.ranks.rank else None)
    return replace(context, clock=clock)


def warm_up(context: Context) -> None:
    """Import what this role needs until its end, and queue trial 0 on the first trainer.

    A file system that fails later then costs neither core time nor the verdict.
    """
    for module in MODULES[context.ranks.role]:
        import_module(f"aiperf_mpi.{module}")
    if context.resumed.slots and context.ranks.leads:
        restore_queue(context)
    elif context.ranks.replica == 0 and context.ranks.leads:
        from aiperf_mpi.parallel.trainer import trainer

        trainer.propose_initial(context)
    if context.ranks.role != TRAINER and context.ranks.rank:
        from aiperf_mpi.parallel.generator import generator

        generator.warm_up(context)


def reached_limit(context: Context) -> bool:
    """Wait for rank 0's stop message; return whether the run ended by its time limit, and not by a drain.

    A rank that reaches the limit before a drain's message arrives must not decide alone. It then tells rank 0
    that it has ended its work, so that rank 0 knows which ranks all the others wait for. A rank that comes
    when rank 0 does not wait any more takes it for a drain: the best model is not validated without it.
    """
    messages = context.windows.messages
    while (stop := messages.stop_requested()) is None:
        context.pause(context.config.parallel.poll_seconds)
    if stop.reason is Reason.LIMIT:
        messages.send(Kind.RANK, b"")
    return stop.reason is Reason.LIMIT


def wait_for_last_step(context: Context) -> None:
    """Wait in a drain until all other ranks but 0 have ended their work; tell rank 0 that this one has.

    The core time of a drained run lasts to its last step, so the time of every rank does. A rank that comes
    when no rank waits any more begins no collective operation: the others may be in a different one.
    """
    workers, messages = context.ranks.workers, context.windows.messages
    if workers is None:
        raise RuntimeError("rank 0 has no step to wait for")
    messages.send(Kind.RANK, b"")
    if (stop := messages.stop_requested()) is not None and stop.reason is Reason.ALONE:
        return
    with context.timer("idle"):
        context.wait_for_ranks(workers.Ibarrier())


def start_monitor(context: Context, probe: Probe | None) -> Monitor | None:
    """Start the monitor of this node, on its first rank, where the configuration asks for one."""
    config, ranks = context.config, context.ranks
    seconds = config.monitor.seconds
    if probe is None or seconds <= 0:
        return None

    def warn(text: str) -> None:
        write_error(f"aiperf_mpi: rank {ranks.rank} on {ranks.host}: {text}\n")

    monitor = Monitor(
        Sampler(ranks.node_index, probe, warn),
        context.clock.now,
        seconds,
        stride(ranks.n_nodes, config.run.time_limit, seconds),
        seconds * (ranks.node_index + 1) / ranks.n_nodes,
        lambda values: context.windows.messages.post(Kind.SAMPLE, new_row(SAMPLE_ROW, **values)[0]),
        context.resumed.taken.core_seconds,
    )
    monitor.start()
    return monitor
