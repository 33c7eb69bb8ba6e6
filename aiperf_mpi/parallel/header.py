# SPDX-License-Identifier: Apache-2.0
"""The header of a result: what applies to the run as a whole, known before its core time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aiperf_mpi import __version__
from aiperf_mpi.config import classify
from aiperf_mpi.config.classes import RULES, OfficialRules
from aiperf_mpi.machine.inventory import environment, packages
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.parallel.preflight import Facts
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.probe import NotKnown, probe
from aiperf_mpi.results.evidence.reading import packed_set
from aiperf_mpi.results.file.rows import RunHeader


def header_of(
    context: Context,
    facts: Facts,
    run_id: str,
    argv: Sequence[str],
    machine: dict[str, Any],
    rules: OfficialRules = RULES,
) -> RunHeader:
    """Return the header of the result: what applies to the run as a whole. On rank 0."""
    config, ranks = context.config, context.ranks
    packed = packed_set(facts.manifest)
    cls, division, departures = classify(
        config, packed.manifest if packed else None, context.resumed.segments + 1, rules=rules
    )
    return RunHeader(
        run_id=run_id,
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
        manifest=facts.manifest,
        staging_seconds=facts.staging_seconds,
        staged_bytes=facts.staged_bytes,
        hash_seconds=facts.hash_seconds,
        config_toml=config.to_toml(),
        config_sha256=config.sha256,
        argv=tuple(argv),
        environment=_known("environment", environment),
        inventory=machine,
        packages=_known("packages", packages),
        version=__version__,
    )


def _known(what: str, function: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Return what a part of the inventory found, or the reason why it found nothing."""
    found = probe(what, function, seconds=None)
    return {"not known": found} if isinstance(found, NotKnown) else found
