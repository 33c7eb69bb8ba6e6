# SPDX-License-Identifier: Apache-2.0
"""`doctor` under a launcher: every rank checks its part, and rank 0 judges the job and prints it once."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiperf_mpi.config import Config, ConfigError, from_toml
from aiperf_mpi.machine.affinity import ranges
from aiperf_mpi.machine.source import source
from aiperf_mpi.parallel import examination
from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.binding import local_devices
from aiperf_mpi.parallel.launch.kinds import kinds
from aiperf_mpi.parallel.launch.launcher import Launcher, LaunchError, detect
from aiperf_mpi.parallel.launch.likeness import judge_ranks
from aiperf_mpi.parallel.launch.mpi import MPI
from aiperf_mpi.parallel.launch.placement import TRAINER
from aiperf_mpi.parallel.launch.ranks import Ranks, split
from aiperf_mpi.parallel.preflight import bind_devices
from aiperf_mpi.parallel.shared.clock import measure_offset
from aiperf_mpi.planning import shared_memory
from aiperf_mpi.planning.finding import Finding, refusal
from aiperf_mpi.planning.provenance import provenance
from aiperf_mpi.site import accelerators, bounded, clocks, folders, likeness, output
from aiperf_mpi.site.child import JAX_PROGRAM, Child
from aiperf_mpi.site.merged import merge
from aiperf_mpi.site.text import Examination

#: Variables of launchers with the rank of a process on its host.
_LOCAL_RANKS = (
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "PALS_LOCAL_RANKID",
    "SLURM_LOCALID",
)


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


def examine_job(read: Callable[[], Config], show: Callable[[Examination], None], started: float) -> int:
    """Check all ranks of this job; rank 0 shows what was found. End the job with 0 or 2.

    `read` returns the configuration, on rank 0 alone. Return the exit code where MPI does not connect the
    ranks.
    """
    launcher = detect()
    # Start processes before MPI: a fork after its initialisation is unsafe on some fabrics.
    jax = Child(JAX_PROGRAM) if _first_by_environment(os.environ, launcher) else None
    program = {"program": lambda: (provenance(source()),)} if launcher.speaks else {}
    origin = bounded.findings(program, examination.CHECK_SECONDS)
    try:
        try:
            job.initialise()
        except LaunchError as error:
            return examination.examine_unconnected(read, show, started, str(error))
        with job.job() as world:
            part, found = _lay_out(world, read)
            found += origin + _local(part) + _network(part) + _seen_by_all(part) + _jax(part, jax)
            merged = kinds(world, [finding.to_dict() for finding in found])
            alike = (*judge_ranks(world), *_jax_alike(part, jax), *_clocks(part))
            code = 0
            if world.rank == 0:
                every = [((0,), alike), *((ranks, _read(one)) for one, ranks in merged)]
                shown = Examination(
                    merge(every, part.hosts),
                    ranks=world.size,
                    hosts=tuple(dict.fromkeys(part.hosts)),
                    launcher=launcher.name,
                    preset=part.config.run.preset,
                    output=part.config.run.output,
                    seconds=time.monotonic() - started,
                )
                show(shown)
                code = shown.code
            job.agreed_exit(world, code)
    finally:
        folders.remove_all()
        if jax is not None:
            jax.end()


def _lay_out(world: MPI.Intracomm, read: Callable[[], Config]) -> tuple[Part, tuple[Finding, ...]]:
    """Hand on the configuration and split the ranks; return this rank's part, and on rank 0 the layout."""
    config, problem = None, None
    if world.rank == 0:
        try:
            config = read()
        except ConfigError as error:
            problem = str(error)
    job.raise_alike(world, problem)
    config = from_toml(world.bcast(config.to_toml() if config is not None else None))

    host, parallel, ranks, refused = socket.gethostname(), config.parallel, None, ""
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
    nodes, replicas = ranks.n_nodes, ranks.n_replicas
    count = f"{nodes} node{'s' * (nodes > 1)}, {replicas} replica{'s' * (replicas > 1)}"
    return Finding("ok", "roles", f"{', '.join(what)}: {count}")


def _some(ranks: Sequence[int], does: str) -> str:
    """Return ranks and what they do: "rank 1 trains", "ranks 2-3 train"."""
    return f"rank {ranks[0]} {does}s" if len(ranks) == 1 else f"ranks {ranges(ranks, 24)} {does}"


def _local(part: Part) -> tuple[Finding, ...]:
    """Make the checks of this rank that need no other rank, but for the binding of devices. Collective."""
    bound: tuple[Finding, ...] = ()
    config, ranks = part.config, part.ranks
    if ranks is not None:
        try:
            bind_devices(config, ranks)
        except LaunchError as error:
            bound = (refusal("accelerators", str(error)),) if part.world.rank == 0 else ()
    checks: dict[str, bounded.Check] = {}
    if part.first:
        checks |= examination.host_checks(config, _windows(part))
        if not part.host_trains:
            del checks["accelerators"], checks["scratch"]
    if part.trains or (ranks is None and part.first):
        checks["data set"] = lambda: examination.judge_data(config)
    if part.world.rank == 0:
        checks |= examination.job_checks(config)
    return bound + bounded.findings(checks, examination.CHECK_SECONDS)


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
    from aiperf_mpi.links.candidates import candidates, facts
    from aiperf_mpi.parallel.replica.cluster import check_setting, met

    setting = part.config.parallel.address
    known = ranks.team.allgather((ranks.rank, facts(setting)))
    members, of = [rank for rank, _ in known], [fact for _, fact in known]
    try:
        check_setting(setting, members, of)
        way = met(ranks.team, candidates(of, setting), 0, members, of)
    except ConfigError as error:
        return (refusal(subject, str(error)),)
    return (Finding("ok", subject, f"the trainers of each replica reach one another at {way.text}"),)


def _seen_by_all(part: Part) -> tuple[Finding, ...]:
    """Try the output folder on rank 0, and then from the first rank of each host. Collective."""
    world, made, found = part.world, list[Path](), tuple[Finding, ...]()

    def here() -> tuple[Finding, ...]:
        replicas = 1 if part.ranks is None else part.ranks.n_replicas
        folder, tried = output.try_output(part.config, replicas)
        made.extend([folder] if folder is not None else [])
        return tried

    if world.rank == 0:
        found = bounded.findings({output.OUTPUT: here}, examination.CHECK_SECONDS / 2)
    folder = world.bcast(str(made[0]) if made else "")
    if folder and world.rank and part.first:
        seen: bounded.Check = lambda: output.try_seen(Path(folder), world.rank)  # noqa: E731
        found = bounded.findings({output.OUTPUT: seen}, examination.CHECK_SECONDS / 2)
    world.Barrier()
    for path in made:
        folders.remove(path)
    return found


def _jax(part: Part, asked: Child | None) -> tuple[Finding, ...]:
    """Judge what JAX finds on this host, on the rank that has asked it.

    A host without trainer needs no JAX.
    """
    if asked is None or not part.host_trains:
        return ()
    told = asked.answer(examination.JAX_SECONDS)
    return tuple(
        finding for finding in accelerators.judge_jax(told, local_devices()) if finding.level != "ok"
    )


def _jax_alike(part: Part, asked: Child | None) -> tuple[Finding, ...]:
    """Return on rank 0 whether all hosts with trainers have the same devices. Collective."""
    told = asked.told if asked is not None and part.host_trains else {}
    devices = {"devices": accelerators.devices_of(told)} if told.get("kinds") else None
    different = kinds(part.world, devices)
    return likeness.judge(different, "JAX") if different else ()


def _clocks(part: Part) -> tuple[Finding, ...]:
    """Return on rank 0 how far the wall clocks of the hosts are apart. Collective."""
    offset = measure_offset(part.world, time.time)
    mine = (part.host, offset.seconds, offset.uncertainty) if part.first else None
    rows = part.world.gather(mine, root=0)
    return (clocks.judge([clocks.HostClock(*row) for row in rows if row]),) if rows else ()


def _first_by_environment(environ: Mapping[str, str], launcher: Launcher) -> bool:
    """Return whether this is the first process of its host, by the launcher's variables."""
    local = next((environ[name] for name in _LOCAL_RANKS if environ.get(name, "").isdigit()), None)
    return int(local) == 0 if local is not None else launcher.speaks


def _read(values: Sequence[Mapping[str, str]]) -> tuple[Finding, ...]:
    """Return findings from their dictionaries."""
    return tuple(Finding(**value) for value in values)  # type: ignore[arg-type]
