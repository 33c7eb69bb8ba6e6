# SPDX-License-Identifier: Apache-2.0
"""`doctor` under a launcher: every rank checks its part, and rank 0 judges the job and prints it once."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from aiperf_mpi.config import Config, ConfigError, from_toml
from aiperf_mpi.ending import process
from aiperf_mpi.launchers import local_rank
from aiperf_mpi.parallel import examination
from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.allotment import find_resources
from aiperf_mpi.parallel.launch.kinds import kinds
from aiperf_mpi.parallel.launch.launcher import Launcher, LaunchError, check_library, check_size, detect
from aiperf_mpi.parallel.launch.likeness import judge_ranks
from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.launch.placement import TRAINER
from aiperf_mpi.parallel.launch.ranks import Ranks, split
from aiperf_mpi.parallel.launch.start import INIT_VARIABLE, share, step, together
from aiperf_mpi.parallel.preflight import bind_devices
from aiperf_mpi.parallel.shared.clock import measure_offset
from aiperf_mpi.planning import shared_memory
from aiperf_mpi.planning.finding import Finding, refusal
from aiperf_mpi.planning.rank_resources import ranks_in_words
from aiperf_mpi.printable import counted
from aiperf_mpi.site import accelerators, bounded, clocks, folders, likeness, modules, output
from aiperf_mpi.site.child import JAX_PROGRAM, Child
from aiperf_mpi.site.merged import merge
from aiperf_mpi.site.text import Examination

#: Seconds that ranks wait for one another, unless AIPERF_MPI_INIT_SECONDS says more; of many ranks some
#: milliseconds each. A rank without MPI tells it before (`examination.refuse_job`).
INIT_SECONDS, RANK_SECONDS = 17.0, 0.02


@dataclass(frozen=True)
class Part:
    """What one rank has to check.

    Attributes:
        world, host: COMM_WORLD, and the name of this rank's host.
        hosts: of all ranks.
        config: of rank 0.
        ranks: the split, None where the layout is refused.
    """

    world: MPI.Intracomm
    host: str
    hosts: tuple[str, ...]
    config: Config
    ranks: Ranks | None

    @property
    def first(self) -> bool:
        """Whether this is the first rank of its host."""
        return self.hosts.index(self.host) == self.world.rank

    @property
    def trains(self) -> bool:
        """Whether this rank is a trainer."""
        return self.ranks is not None and self.ranks.role == TRAINER

    @property
    def host_trains(self) -> bool:
        """Whether a rank of this host is a trainer."""
        if self.ranks is None:
            return True
        return any(place.role == TRAINER and place.host == self.host for place in self.ranks.places)


@dataclass(frozen=True)
class Prepared:
    """What this rank has started before MPI: what is asked, the process that asks JAX, and its findings."""

    request: examination.Request
    jax: Child | None
    found: tuple[Finding, ...]

    def complete(self) -> str:
        """Return the configuration as TOML, on MPI's rank 0."""
        return (self.request.config or self.request.read()).to_toml()


def prepare(request: examination.Request) -> Prepared:
    """Start what must start before MPI: a fork after its initialisation is unsafe on some fabrics."""
    launcher = detect()
    process.cleanups.append(folders.remove_all)
    os.environ.setdefault(INIT_VARIABLE, f"{max(INIT_SECONDS, (launcher.size or 0) * RANK_SECONDS):g}")
    process.step = "JAX in a process of its own"
    jax = Child(JAX_PROGRAM) if _first_by_environment(os.environ, launcher) else None
    if jax is not None:
        process.cleanups.append(jax.end)
    process.step = "program"
    program = dict[str, bounded.Check]()
    if launcher.speaks:
        program["program"] = lambda: examination.judge_program(request.config)
        program[modules.SUBJECT] = lambda: modules.judge(examination.CHECK_SECONDS - 1)
    return Prepared(request, jax, bounded.findings(program, examination.CHECK_SECONDS))


def examine_job(prepared: Prepared, words: Sequence[str]) -> NoReturn:
    """Check all ranks of this job; rank 0 shows what was found. End the job with 0 or 2.

    `words` is the command line, which all ranks have alike.
    """
    launcher, (library, _) = detect(), MPI.get_vendor()
    try:
        check_library(launcher, library)
        check_size(launcher, library, job.start_mpi().size)
    except LaunchError as error:
        examination.refuse_job(prepared.request, str(error))
    with job.job(words=words) as world:
        try:
            part, found = _lay_out(world, from_toml(share("configuration", prepared.complete)))
            found += prepared.found + _bind(part)
            found += together("checks of each rank", lambda: _local(part))
            found += _resources(part) + _network(part) + _seen_by_all(part)
            found += together("devices of JAX", lambda: _jax(part, prepared.jax))
            with step("comparison of the ranks"):
                merged = kinds(world, [finding.to_dict() for finding in found])
                alike = (*judge_ranks(world), *_jax_alike(part, prepared.jax), *_clocks(part))
            code = together("findings", lambda: _show(part, prepared, merged, alike))
        finally:
            folders.remove_all()
        job.agreed_exit(world, code)


def _show(
    part: Part,
    prepared: Prepared,
    merged: Sequence[tuple[Sequence[Mapping[str, str]], Sequence[int]]],
    alike: Sequence[Finding],
) -> int:
    """Show on rank 0 what all ranks have found; return the exit code, on other ranks 0."""
    if part.world.rank:
        return 0
    every: list[tuple[Sequence[int], Sequence[Finding]]] = [((0,), alike)]
    every += [(ranks, [Finding(**values) for values in one]) for one, ranks in merged]  # type: ignore[arg-type]
    found = Examination(
        merge(every, part.hosts),
        ranks=part.world.size,
        hosts=tuple(dict.fromkeys(part.hosts)),
        launcher=detect().name,
        preset=part.config.run.preset,
        output=part.config.run.output,
        seconds=time.monotonic() - prepared.request.started,
    )
    prepared.request.show(found)
    return found.code


def _lay_out(world: MPI.Intracomm, config: Config) -> tuple[Part, tuple[Finding, ...]]:
    """Split the ranks; return this rank's part, and on rank 0 the layout. Collective."""
    host, parallel, ranks, refused = socket.gethostname(), config.parallel, None, ""
    with step("roles of the ranks"):
        hosts = tuple(world.allgather(host))
        try:
            ranks = split(
                world,
                parallel.ranks_per_node,
                parallel.trainers_per_node,
                trainers_per_replica=parallel.trainers_per_replica,
            )
        except LaunchError as error:
            refused = str(error)
    if world.rank:
        return Part(world, host, hosts, config, ranks), ()
    vendor, version = MPI.get_vendor()
    mpi = f"{vendor} {'.'.join(map(str, version))} under {detect().name}: {world.size} ranks"
    layout = refusal("roles", refused) if ranks is None else _layout(ranks)
    return Part(world, host, hosts, config, ranks), (Finding("ok", "MPI", mpi), layout)


def _layout(ranks: Ranks) -> Finding:
    """Return who does what, in one line."""
    trainers = [place.rank for place in ranks.places if place.role == TRAINER]
    generators = [place.rank for place in ranks.places if place.rank and place.role != TRAINER]
    what = [f"rank 0 coordinates, {_some(trainers, 'train')}"]
    what.append(_some(generators, "generate") if generators else "trainers generate in a thread")
    count = f"{counted(ranks.n_nodes, 'node')}, {counted(ranks.n_replicas, 'replica')}"
    return Finding("ok", "roles", f"{', '.join(what)}: {count}")


def _some(ranks: Sequence[int], does: str) -> str:
    """Return ranks and what they do: "rank 1 trains", "ranks 2-3 train"."""
    return f"{ranks_in_words(ranks, 24)} {does}{'s' if len(ranks) == 1 else ''}"


def _bind(part: Part) -> tuple[Finding, ...]:
    """Divide the accelerators as a run does; return on rank 0 why that is refused. Collective."""
    if part.ranks is None:
        return ()
    try:
        bind_devices(part.config, part.ranks)
    except LaunchError as error:
        return (refusal("accelerators", str(error)),) if part.world.rank == 0 else ()
    return ()


def _resources(part: Part) -> tuple[Finding, ...]:
    """Return on rank 0 what all ranks may use of their hosts' cores and memory. Collective."""
    return () if part.ranks is None else find_resources(part.config, part.ranks)


def _local(part: Part) -> tuple[Finding, ...]:
    """Make the checks of this rank that need no other rank."""
    config, checks = part.config, dict[str, bounded.Check]()
    if part.first:
        checks |= examination.host_checks(config, _windows(part))
        if not part.host_trains:
            for subject in ("accelerators", "scratch", "staging"):
                del checks[subject]
    if part.trains or (part.ranks is None and part.first):
        checks["data set"] = lambda: examination.judge_data(config)
    checks["variables"] = lambda: examination.judge_environment(config, part.trains)
    if part.world.rank == 0:
        checks |= examination.job_checks(config)
    return bounded.findings(checks, examination.CHECK_SECONDS)


def _windows(part: Part) -> int:
    """Return the bytes of the windows on this host."""
    config, ranks = part.config, part.ranks
    if ranks is None:
        return shared_memory.coordinator_bytes(config) if part.world.rank == 0 else 0
    nodes = {place.node: place for place in ranks.places if place.host == part.host and place.rank}
    need = shared_memory.coordinator_bytes(config) if ranks.with_coordinator else 0
    for one in nodes.values():
        users = sum(place.queue_group == one.queue_group for place in ranks.places)
        need += shared_memory.node_bytes(config, len(one.queue_group_replicas), users)
    return need


def _network(part: Part) -> tuple[Finding, ...]:
    """Let the trainers of each replica over several hosts try to meet. Collective."""
    subject, ranks = "network", part.ranks
    if ranks is None:
        return ()
    hosts: dict[int, set[str]] = {}
    for place in ranks.places:
        hosts.setdefault(place.replica, set()).add(place.host)
    if not any(len(names) > 1 for replica, names in hosts.items() if replica >= 0):
        fine = Finding("ok", subject, "only MPI's own: no replica has trainers on several hosts")
        return (fine,) if part.world.rank == 0 else ()
    if ranks.team is None:
        return ()
    from aiperf_mpi.parallel.replica.cluster import meet

    try:
        with ExitStack() as held:
            text = meet(ranks.team, part.config.parallel.address, held).way.text
    except ConfigError as error:
        return (refusal(subject, str(error)),)
    return (Finding("ok", subject, f"the trainers of each replica reach one another at {text}"),)


def _seen_by_all(part: Part) -> tuple[Finding, ...]:
    """Try the output folder on rank 0, and then from the first rank of each other host. Collective."""
    world, seconds, claimed = part.world, examination.CHECK_SECONDS / 2, list[Path]()

    def claim() -> tuple[Finding, ...]:
        with process.making:
            path, tried = output.try_output(part.config, 1 if part.ranks is None else part.ranks.n_replicas)
        claimed.extend([path] if path is not None else [])
        return tried

    def claim_first() -> tuple[Finding, ...]:
        return bounded.findings({output.OUTPUT: claim}, seconds) if world.rank == 0 else ()

    found = together("output folder", claim_first)
    path = share("output folder", lambda: str(claimed[0]) if claimed else "")

    def see() -> tuple[Finding, ...]:
        if not path or not part.first or part.host == part.hosts[0]:
            return ()
        return bounded.findings({output.OUTPUT: lambda: output.try_seen(Path(path), world.rank)}, seconds)

    found += together("output folder on all hosts", see)
    folders.remove_all()
    return found


def _jax(part: Part, asked: Child | None) -> tuple[Finding, ...]:
    """Judge what JAX finds on this host, on the rank that has asked it.

    A host without trainer needs no JAX.
    """
    if asked is None or not part.host_trains:
        return ()
    found = examination.judge_jax(part.config, asked)
    return tuple(finding for finding in found if finding.level != "ok")


def _jax_alike(part: Part, asked: Child | None) -> tuple[Finding, ...]:
    """Return on rank 0 whether all hosts with trainers have the same devices. Collective."""
    if emulated := part.config.parallel.host_devices:
        return (accelerators.of_cpu(emulated),) if part.world.rank == 0 else ()
    told = asked.told if asked is not None and part.host_trains else {}
    devices = {
        "devices": accelerators.devices_of(told),
        accelerators.AUTOMATIC: accelerators.precision_of(told),
    }
    different = kinds(part.world, devices if told.get("kinds") else None)
    return likeness.judge(different, "JAX") if different else ()


def _clocks(part: Part) -> tuple[Finding, ...]:
    """Return on rank 0 how far the wall clocks of the hosts are apart. Collective."""
    offset = measure_offset(part.world, time.time)
    mine = (part.host, offset.seconds, offset.uncertainty) if part.first else None
    rows = part.world.gather(mine, root=0)
    return (clocks.judge([clocks.HostClock(*row) for row in rows if row]),) if rows else ()


def _first_by_environment(environ: Mapping[str, str], launcher: Launcher) -> bool:
    """Return whether this is the first process of its host, by the launcher's variables."""
    local = local_rank(environ)
    return launcher.speaks if local is None else local == 0
