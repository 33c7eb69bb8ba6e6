# SPDX-License-Identifier: Apache-2.0
"""Checks of the file itself: layout, identifiers and values of rows, the tree of trials, the
configuration."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from datetime import datetime

import numpy as np

from aiperf_mpi.network.architecture import DEFAULT_KERNEL
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.reading import classified_of
from aiperf_mpi.results.file.rows import DROPPED, FIRST_EPOCH, REJECTED, STATUS
from aiperf_mpi.results.file.schema import ENDS, SCHEMA, TABLES
from aiperf_mpi.results.file.versions import SCHEMAS
from aiperf_mpi.results.judge.checks.registry import check, rows_where, short
from aiperf_mpi.streams import trial_seed
from aiperf_mpi.trials.candidate import candidate_key

#: The form of a run's identifier, which becomes the name of a folder in a submission.
RUN_ID = "[A-Za-z0-9_-]{1,64}"

# -- the file --------------------------------------------------------------------------------------


@check(
    "I01",
    "every column, attribute and document of the file's schema, with its type and length",
    why="A tool that reads the file must find what the schema promises.",
)
def layout(e: Evidence) -> Iterator[str]:
    """The file has the layout of the schema."""
    yield from e.result.problems
    if (schema := e.attribute("schema")) != SCHEMA:
        yield f"attribute schema is {short(schema)!r}, not {SCHEMA!r}"
    if (version := e.attribute("schema_version")) not in SCHEMAS:
        yield f"attribute schema_version is {short(version)!r}, but this program judges {', '.join(SCHEMAS)}"
    for name, attribute in (("trials", "n_trials"), ("epochs", "n_epochs")):
        rows = len(e.column(name, TABLES[name].names[0]))
        if rows != e.attribute(attribute):
            yield f"attribute {attribute} is {e.attribute(attribute)}, but /{name} has {rows} rows"
    for path, text in e.result.documents.items():
        if path.endswith(("_json", "argv")):
            json.loads(text)


@check(
    "I02",
    "ascending ids, epochs in the order of their trials, every epoch's trial exists",
    why="A row that is lost or counted twice changes the score.",
)
def identity(e: Evidence) -> Iterator[str]:
    """Rows are identified: no trial twice, no epoch twice or without its trial."""
    ids = e.column("trials", "trial_id")
    yield f"= {len(ids)} trials, {len(e.of_trial)} epochs"
    yield from rows_where("trials", ids < 0, "trial_id is negative")
    yield from rows_where("trials", np.diff(ids, prepend=-1) <= 0, "trial_id does not ascend")
    yield from rows_where("epochs", e.of_trial < 0, "no trial has this trial_id")
    yield from rows_where(
        "epochs", np.diff(e.of_trial, prepend=-1) < 0, "epochs are not in the order of their trials"
    )
    number = e.column("epochs", "epoch")
    for row, rows in enumerate(e.own_epochs):
        if not np.array_equal(number[rows], np.arange(FIRST_EPOCH, FIRST_EPOCH + len(rows))):
            yield f"trial {ids[row]}: epochs are not {FIRST_EPOCH}, {FIRST_EPOCH + 1}, ... in order"
            break


@check(
    "I03",
    "known names, fractions in 0..1, flags 0 or 1, counts not negative",
    why="Impossible values show damage.",
)
def ranges(e: Evidence) -> Iterator[str]:
    """Every value is possible in its column."""
    trials, epochs = e.table("trials"), e.table("epochs")
    yield from rows_where("trials", e.status >= len(STATUS), "status is not a known name")
    yield from rows_where(
        "trials",
        (trials["replica"] < 0) | (trials["replica"] >= max(e.column("segments", "n_replicas"), default=0)),
        "replica does not exist",
    )
    for name in ("round", "batch_per_device", "batch_global", "kernel_size"):
        yield from rows_where("trials", trials[name] < 1, f"{name} is below 1")
    for name in ("epochs", "epochs_max", "patience"):
        yield from rows_where("trials", trials[name] < 0, f"{name} is negative")
    limited = (trials["epochs_max"] > 0) & (trials["epochs"] > trials["epochs_max"])
    yield from rows_where("trials", limited, "more epochs than epochs_max")
    yield from rows_where(
        "trials",
        trials["batch_global"] % np.maximum(trials["batch_per_device"], 1) != 0,
        "batch_global is not a multiple of batch_per_device",
    )
    for table, columns, names in (
        ("trials", trials, ("best_error", "predicted_error")),
        ("epochs", epochs, ("val_error",)),
    ):
        for name in names:
            yield from rows_where(
                table, (columns[name] < 0) | (columns[name] > 1), f"{name} is not between 0 and 1"
            )
    yield from rows_where("trials", trials["resumed"] > 1, "resumed is not 0 or 1")
    yield from rows_where("epochs", epochs["partial"] > 1, "partial is not 0 or 1")
    yield from rows_where("epochs", epochs["steps"] < 0, "steps is negative")
    if (end := e.attribute("end")) not in ENDS:
        yield f"attribute end is {short(end)!r}, none of {', '.join(ENDS)}"
    for name in ("core_seconds", "total_seconds", "time_limit", "tick"):
        if not (math.isfinite(e.attribute(name)) and e.attribute(name) >= 0):
            yield f"attribute {name} is {e.attribute(name)}"
    datetime.fromisoformat(e.attribute("core_start_utc"))
    if not re.fullmatch(RUN_ID, run_id := e.attribute("run_id")):
        yield f"attribute run_id is {short(run_id)!r}, but must be letters, digits, - and _"


# -- the tree of trials ----------------------------------------------------------------------------


@check(
    "I04",
    "one trial without a parent; every other parent is a trial before its child",
    why="A search has one beginning.",
)
def tree(e: Evidence) -> Iterator[str]:
    """The trials form a tree."""
    ids, parents = e.column("trials", "trial_id"), e.column("trials", "parent_id")
    roots = int((parents == -1).sum())
    yield f"= {roots} without a parent"
    if len(ids) and roots != 1:
        yield f"{roots} trials have no parent, but exactly one does, the initial architecture"
    known = np.isin(parents, ids) | (parents == -1)
    yield from rows_where("trials", ~known, "its parent does not exist")
    yield from rows_where("trials", known & (parents >= ids), "its parent is not before it")


@check(
    "I05",
    "replay of the morphs on the parent's architecture gives arch_json, arch_hash and group",
    why=("Operations are counted from the architecture, so it must be the one that was searched."),
)
def morphs_of_parents(e: Evidence) -> Iterator[str]:
    """Every child is a morph of its parent and has the hashes of its network."""
    trials = e.table("trials")
    yield f"= {len(e.architectures)} architectures replayed"
    for row, architecture in enumerate(e.architectures):
        name = f"trial {trials['trial_id'][row]}"
        own = e.morphs[row]
        if isinstance(architecture, str) or isinstance(own, str):
            # A record that does not replay is a reason to reject its candidate, which costs only its own
            # time.
            if not (e.status[row] == REJECTED and not trials["arch_json"][row]):
                yield f"{name}: {architecture}"
            continue
        if trials["parent_id"][row] == -1 and own:
            yield f"{name}: the initial architecture has morphs"
        for column, expected in (
            ("arch_json", architecture.to_json()),
            ("arch_hash", architecture.hash),
            ("group", architecture.group(len(own))),
            ("morphs", json.dumps([morph.to_dict() for morph in own], separators=(",", ":"))),
        ):
            if trials[column][row] != expected:
                yield f"{name}: {column} is not that of its parent's architecture with its morphs"
        places = architecture.own_kernel_morphs(len(own))
        kernels = {architecture.morphs[place].kernel for place in places} or {DEFAULT_KERNEL}
        if kernels != {trials["kernel_size"][row]}:
            yield (
                f"{name}: kernel_size is {trials['kernel_size'][row]}, but its own morphs have "
                f"{sorted(kernels)}"
            )


@check(
    "I06",
    "no two trained trials with the same network and global batch",
    why="Training a candidate again is not a search.",
)
def trained_once(e: Evidence) -> Iterator[str]:
    """No candidate was trained twice."""
    seen: dict[tuple[str, int], int] = {}
    columns = [e.column("trials", name).tolist() for name in ("trial_id", "arch_hash", "batch_global")]
    for row, (trial, arch_hash, batch) in enumerate(zip(*columns, strict=True)):
        if e.status[row] in (REJECTED, DROPPED) and not e.trained[row]:
            continue
        first = seen.setdefault((arch_hash, batch), trial)
        if first != trial:
            yield f"trial {trial} trains the candidate of trial {first} again"
    yield f"= {len(seen)} different candidates"


@check(
    "V16",
    "each trial's seed follows from the run's seed and the candidate",
    why="A run must be repeatable from its seed.",
)
def seeds(e: Evidence) -> Iterator[str]:
    """Every trial's seed follows from the run's."""
    columns = [e.column("trials", name).tolist() for name in ("seed", "batch_global")]
    for row, (seed, batch) in enumerate(zip(*columns, strict=True)):
        architecture = e.architectures[row]
        if isinstance(architecture, str) or batch < 0:
            if e.status[row] != REJECTED:
                yield f"/trials row {row}: its seed cannot be recomputed"
        elif seed != trial_seed(e.attribute("seed"), candidate_key(architecture.hash, batch)):
            yield f"/trials row {row}: seed {seed} is not the one that the run's seed gives"


# -- configuration ---------------------------------------------------------------------------------


@check(
    "V01",
    "class, division and all repeated settings follow from the stored configuration",
    why="The run must be the one that is claimed.",
)
def configuration(e: Evidence) -> Iterator[str]:
    """The attributes agree with the configuration that was run."""
    config, text = e.config, e.result.documents["config/resolved_toml"]
    cls, division, departures = classified_of(e)
    base = (
        e.architectures[0].base
        if e.architectures and not isinstance(e.architectures[0], str)
        else config.base
    )
    yield f"= {cls}, {division}, {len(departures)} departures"
    if base != config.base:
        yield "attribute base_json is not the network of the configuration"
    elif e.attribute("base_json") != e.root.to_json():
        yield "attribute base_json is not the text of its network"
    for name, expected in (
        ("class", cls),
        ("division", division),
        ("config_sha256", hashlib.sha256(text.encode()).hexdigest()),
        ("seed", config.run.seed),
        ("time_limit", config.run.time_limit),
        ("tick", config.run.tick),
        ("precision", config.train.precision),
        ("dataset", config.data.name),
        ("train_images", config.data.train_images),
        ("val_images", config.data.val_images),
    ):
        if (stored := e.attribute(name)) != expected:
            yield f"attribute {name} is {short(stored)!r}, but the configuration has {short(expected)!r}"
    if json.loads(e.result.documents["config/departures_json"]) != [
        str(departure) for departure in departures
    ]:
        yield "/config/departures_json is not the list of the configuration's departures"
