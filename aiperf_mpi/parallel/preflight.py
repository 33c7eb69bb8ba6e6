# SPDX-License-Identifier: Apache-2.0
"""Checks and preparations before the core time: devices, data, wall time, output folder."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aiperf_mpi.config import Config, ConfigError
from aiperf_mpi.config.classes import RULES, OfficialRules
from aiperf_mpi.config.programs import cache_place
from aiperf_mpi.data.catalogue import check_dataset
from aiperf_mpi.ending import lines, process, write_error
from aiperf_mpi.environment.jax_variables import told_by_variable
from aiperf_mpi.environment.variables import judge_variables
from aiperf_mpi.interpreter import check_versions as unfit_package
from aiperf_mpi.parallel.launch import launcher
from aiperf_mpi.parallel.launch.allotment import judge_resources
from aiperf_mpi.parallel.launch.binding import host_share, local_devices, role_environment
from aiperf_mpi.parallel.launch.findings import compare_findings
from aiperf_mpi.parallel.launch.job import raise_alike
from aiperf_mpi.parallel.launch.likeness import judge_ranks
from aiperf_mpi.parallel.launch.placement import TRAINER
from aiperf_mpi.parallel.launch.ranks import Ranks
from aiperf_mpi.parallel.launch.start import DATA_SECONDS, DATA_VARIABLE, seconds_of, share, step, together
from aiperf_mpi.parallel.staging import NOT_STAGED, Staged
from aiperf_mpi.planning.finding import Finding, first_failure
from aiperf_mpi.planning.folder import RunFolder
from aiperf_mpi.planning.forms import choose_forms
from aiperf_mpi.planning.precision import choose_for
from aiperf_mpi.planning.provenance import hiding
from aiperf_mpi.planning.storage import claim_output
from aiperf_mpi.planning.walltime import check_limit
from aiperf_mpi.printable import counted, named
from aiperf_mpi.results.evidence import requirements
from aiperf_mpi.results.output.client import WriterClient
from aiperf_mpi.search.tpe import missing

#: Seconds in which a host must see the new output folder, and between two looks.
SEEN_SECONDS, _LOOK_SECONDS = 5.0, 0.1


@dataclass(frozen=True)
class Facts:
    """A trainer's devices and images, which all trainers must have alike; and what their staging has taken.

    Attributes:
        device, n_devices: kind and number of a trainer's devices.
        dataset_sha256, train_images, val_images: its images.
        manifest: JSON text of the manifest of a packed data set.
        staging_seconds, hash_seconds: of the node that took longest to copy packed pictures, and to check
            their hashes where they are not copied.
        staged_bytes: written by all nodes.
        precision, why_precision: of the activations, and why it is this one.
        forms: value of `train.forms` for these devices.
    """

    device: str = ""
    n_devices: int = 0
    dataset_sha256: str = ""
    train_images: int = 0
    val_images: int = 0
    manifest: str = field(default="{}", repr=False)
    staging_seconds: float = 0.0
    hash_seconds: float = 0.0
    staged_bytes: int = 0
    precision: str = ""
    why_precision: str = field(default="", repr=False)
    forms: str = "plain"


def check_all(
    config: Config,
    ranks: Ranks,
    source: Mapping[str, Any] | None = None,
    job_end: float | None = None,
    rules: OfficialRules = RULES,
    begun: float = 0.0,
) -> list[dict[str, str]]:
    """Check everything that would end the run later: data, wall time, what each rank may use. Collective.

    On rank 0, `source` describes the program, `job_end` is the batch system's answer on the job's end, and
    `begun` is the core time of a run that goes on.

    Return the warnings on rank 0, for the result, after they are logged. Raises AgreedError on all ranks if a
    check fails on any of them.
    """
    check_versions(ranks)
    together("checks", lambda: check_rank(config, ranks, job_end, rules, begun))
    together("settings and program", lambda: check_declared_official(config, ranks, source, rules))
    resources = judge_resources(config, ranks)
    found = [*find(config, ranks), *hiding(source)]
    return [*resources, *compare_findings(found)]


def check_versions(ranks: Ranks) -> None:
    """Check that all ranks have the same versions of Python, MPI and libraries. Collective.

    Raises AgreedError on all ranks where one differs; the message says which ranks have which version.
    """
    with step("versions of all ranks"):
        found = judge_ranks(ranks.world)
    raise_alike(ranks.world, first_failure(found))


def check_rank(
    config: Config,
    ranks: Ranks,
    job_end: float | None = None,
    rules: OfficialRules = RULES,
    begun: float = 0.0,
) -> None:
    """Check what this rank's role needs. Raises ConfigError or LaunchError."""
    if problem := unfit_package():
        raise launcher.LaunchError(problem)
    if ranks.rank == 0:
        if problem := check_limit(config.run.time_limit, told=job_end, done=begun):
            raise ConfigError(problem)
        return
    if ranks.role == TRAINER:
        check_dataset(config, rules.reference)
        cache_place(config.parallel.cache)
    if config.hpo.enabled and config.hpo.method == "tpe" and (lacking := missing()):
        raise ConfigError(lacking)


def decide_official(
    config: Config,
    facts: Facts,
    inventory: Mapping[str, Any],
    rules: OfficialRules = RULES,
    segments: int = 0,
) -> Config:
    """Return the configuration with `run.official` as the run is, and say what it lacks to be so. Collective.

    The configuration has the precision of the run; `inventory` is that of rank 0, and `segments` are those of
    the run before this one. Raises AgreedError where something is missing in a run that was said to be
    official.
    """

    def look() -> str:
        known = requirements.Known(config, facts.manifest, facts.device, inventory)
        lacks = requirements.missing(known, rules)
        if segments:
            lacks.append(f"one start alone: this one resumes a run of {counted(segments, 'segment')}")
        if lacks and config.run.official:
            raise ConfigError(refusal_of(lacks))
        write_error(lines("\n".join(requirements.class_lines(lacks))))
        return json.dumps(not lacks)

    official = json.loads(share("what an official run needs", look))
    return replace(config, run=replace(config.run, official=official))


def check_declared_official(
    config: Config, ranks: Ranks, source: Mapping[str, Any] | None, rules: OfficialRules
) -> None:
    """Refuse a run on rank 0 that is said to be official, and by settings or program is not. Raises
    ConfigError."""
    if ranks.rank or not config.run.official:
        return
    if lacks := requirements.missing_before_data(config, source, rules):
        raise ConfigError(refusal_of(lacks))


def refusal_of(lacks: Sequence[str]) -> str:
    """Return why a run that was said to be official may not start: each missing thing on one line."""
    head = "run.official: true, but this run would be a trial; mend this, or leave run.official out:"
    return "\n".join([head, *lacks])


def find(config: Config, ranks: Ranks) -> list[Finding]:
    """Return what the checks of this rank's environment find: the variables of JAX, CUDA, ROCm and ours."""
    return list(judge_variables(ranks.role == TRAINER, config.parallel.host_devices))


def open_output(
    config: Config, ranks: Ranks, writer: WriterClient | None, resumed: str = ""
) -> tuple[Config, RunFolder]:
    """Make the output folder on rank 0; return it, and the configuration with its absolute path. Collective.

    It comes after the checks, so that a refused run makes none; an end before the core time removes it. The
    run with the id `resumed` goes on in its own folder, which rank 0 holds.
    Raises AgreedError where it cannot be made or belongs to another run, or where a rank does not see it.
    """

    def make() -> str:
        own = RunFolder(Path(config.run.output), resumed)
        return json.dumps((own if resumed else make_output(config, ranks, writer)).to_dict())

    text = share("output folder", make)
    folder = RunFolder.from_dict(json.loads(text))
    together("output folder on all hosts", lambda: check_seen(folder, ranks))
    return replace(config, run=replace(config.run, output=str(folder.path))), folder


def make_output(config: Config, ranks: Ranks, writer: WriterClient | None) -> RunFolder:
    """Make the output folder, and tell the writer, which removes it at an end before the core time.

    Raises ConfigError where it cannot be made, LaunchError where the process has ended meanwhile.
    """

    def announce(folder: RunFolder) -> None:
        if process.cleaned:
            # Another thread ends this process, and its clean-up came too soon for this folder. That thread
            # alone speaks: this one waits in the next exchange.
            folder.remove()
            raise launcher.LaunchError
        if writer is not None:
            writer.send_folder(folder)

    with process.making:
        return claim_output(config, ranks.n_replicas, uuid.uuid4().hex, announce)


def check_seen(folder: RunFolder, ranks: Ranks) -> None:
    """Check that this rank sees the output folder that rank 0 made, and that a trainer may write there.

    Another host may see a new file of a network file system a little later. Raises LaunchError.
    """
    deadline = time.monotonic() + SEEN_SECONDS
    while folder.lost():
        if time.monotonic() > deadline:
            raise launcher.LaunchError(
                f"does not see the output folder {named(folder.path)}: it must be on a file system that all "
                "nodes share; name one with --output"
            )
        # Listing the folders makes the client of a network file system look again.
        for place in (folder.path.parent, folder.path):
            with suppress(OSError):
                os.listdir(place)
        time.sleep(_LOOK_SECONDS)
    if ranks.role == TRAINER and not os.access(folder.path, os.W_OK | os.X_OK, effective_ids=True):
        raise launcher.LaunchError(
            f"may not write into the output folder {named(folder.path)}; mount it for writing on all nodes, "
            "or name another one with --output"
        )


def bind_devices(config: Config, ranks: Ranks) -> tuple[str, ...]:
    """Give this rank's process the devices of its role, before anything imports JAX. Collective.

    Return the names of all accelerators that the node's trainers have now.
    """
    parallel = config.parallel
    every = ranks.world.allgather(local_devices())
    trainers = [p.rank for p in ranks.places if p.role == TRAINER and p.node == ranks.node_index]
    offers: Sequence[Sequence[str]] = tuple(every[rank] for rank in trainers)

    def bind() -> None:
        # CPUs emulate devices by node; real devices belong to the host, which may have several nodes.
        trainer, shared = max(ranks.node_rank, 0), offers
        if ranks.role == TRAINER and not parallel.host_devices:
            trainer, shared = host_share(ranks.places, ranks.rank, every)
        os.environ.update(
            role_environment(
                ranks.role, trainer, shared, parallel.host_devices, together=parallel.trainers_per_replica > 1
            )
        )

    together("devices", bind)
    if ranks.node is None:
        return ()
    bound = ranks.node.allgather(local_devices())[: ranks.node_trainers]
    return tuple(dict.fromkeys(name for names in bound for name in names))


def open_resources(config: Config, ranks: Ranks, staged: Staged = NOT_STAGED) -> tuple[Any, Facts]:
    """Return this trainer's devices and images (None on other ranks), and what all trainers have in common.
    Collective. The images are read from the copy on this node if they are `staged`.

    Raises AgreedError on all ranks where a trainer has no data, or too few for a batch on all of its devices.
    Raises it also where a trainer has other devices or images than the first one.
    """

    def gather() -> tuple[Any, Facts]:
        if ranks.role != TRAINER:
            return None, Facts()
        with told_by_variable():
            from aiperf_mpi.parallel.replica.resources import gather_resources

        found = gather_resources(staged.node_config(config), ranks.replica, ranks.team)
        data, chosen = found.dataset, choose_for(config, found.described)
        return found, Facts(
            found.device,
            len(found.devices),
            data.sha256,
            len(data.train.labels),
            len(data.val.labels),
            data.record,
            staged.seconds,
            staged.hash_seconds,
            staged.bytes,
            chosen.precision,
            chosen.why,
            choose_forms(config, found.described),
        )

    # Ranks without data wait for those that load it, without taking a core from them.
    resources, facts = together("data and devices", gather, seconds_of(DATA_VARIABLE, DATA_SECONDS))
    root = next(place.rank for place in ranks.places if place.role == TRAINER)
    common = ranks.world.bcast(facts, root=root)

    def compare() -> None:
        if ranks.role == TRAINER and facts != common:
            raise launcher.LaunchError(
                f"has {facts}, but rank {root} has {common}: all replicas need the same devices and the same "
                "images"
            )

    together("same data on all trainers", compare)
    return resources, common
