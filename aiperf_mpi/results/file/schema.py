# SPDX-License-Identifier: Apache-2.0
"""The content of a result file: tables with their columns, attributes and documents.

Names, types, units and descriptions of columns are defined here and nowhere else; what ranks send is in rows.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from aiperf_mpi.phases import PHASES

SCHEMA = "aiperf_mpi.result"
SCHEMA_VERSION = "1.2"

#: How a run ended. Those of UNENDED are only in files that were never completed.
UNENDED = ("running", "killed")
ENDS = ("running", "time_limit", "drained", "killed")

#: The columns of a table by name, all of one length.
Columns = dict[str, np.ndarray]

#: Types of columns and attributes: numpy's names, and `str` for UTF-8 strings of variable length.
DTYPES = {"i4": "<i4", "i8": "<i8", "u1": "u1", "u8": "<u8", "f8": "<f8", "str": "str"}


@dataclass(frozen=True)
class Column:
    """A 1-D column of a table, or an attribute: `dtype` is a key of DTYPES, `units` is empty for names and
    ids."""

    name: str
    dtype: str
    units: str
    description: str


@dataclass(frozen=True)
class Table:
    """A group of columns of one length that share the dimension scale `scale`: row numbers or a key column.

    `unchecked` names the columns in which another plausible value passes every check of a trial run, and why.
    """

    name: str
    scale: str
    description: str
    columns: tuple[Column, ...]
    unchecked: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(column.name for column in self.columns)


def _columns(text: str) -> tuple[Column, ...]:
    """Return columns from lines `name dtype units description` (units `-` without a unit)."""
    rows = (line.split(maxsplit=3) for line in text.strip().splitlines())
    return tuple(
        Column(name, dtype, "" if units == "-" else units, about) for name, dtype, units, about in rows
    )


TRIALS = Table(
    "trials",
    "trial",
    "one row for each candidate that entered the history",
    _columns("""
        trial_id             i8  -   slot of the candidate's PROPOSED record
        parent_id            i8  -   trial whose architecture was morphed, -1 for the initial architecture
        replica              i4  -   replica that generated and trains the candidate
        round                i4  -   the candidate's ticket in its replica, from 1
        batch_per_device     i4  image  batch size on each device
        batch_global         i4  image  batch size over all devices of the replica
        micro_batch          i4  image  images that a device computes at a time in a step (0: never compiled)
        accumulation         i4  -   micro-batches of a step whose gradients are added (0: never compiled)
        kernel_size          i4  -   kernel size of the convolutions that the candidate's own morphs added
        epochs               i4  -   epochs trained, a partial one included
        epochs_max           i4  -   epochs that the round allows
        patience             i4  -   epochs without improvement after which training stops
        seed                 u8  -   seed of the initial weights and of the order of the data
        lr                   f8  1   initial learning rate
        arch_hash            str -   hash of the canonical network
        group                str -   the same hash with the kernel sizes of hyperparameter optimisation reset
        arch_json            str -   the architecture: base network and all morphs
        morphs               str -   the candidate's own morphs of its parent, a JSON list
        chosen_by            str -   what chose the network: initial, design, surrogate, evolution, random (empty: not recorded)
        tuned_by             str -   what chose batch and kernel size: default, design, optimiser, grid, random
        expected_error       f8  1   error that the surrogate or the optimiser expected (NaN: neither was asked)
        expected_deviation   f8  1   standard deviation of that, with the noise of one trial (NaN: neither was asked)
        status               str -   unfinished, done, stopped, failed, rejected or dropped
        cause                str -   why the trial failed, stopped or was rejected
        precision            str -   floating-point type of the matrix operands
        train_ops_per_image  u8  op  operations to train on one image, by the paper's Tables 1 and 2
        val_ops_per_image    u8  op  operations to validate one image
        opcount_methods      str -   versions of the methods that counted the candidate and checked its step
        jaxpr_ops            u8  op  products of matrices in a training step on a device, by its jaxpr (0: not counted)
        xla_ops              u8  op  a training step on a device by XLA's estimate (0: none)
        xla_model_ops        u8  op  the same by the model of XLA's rules (0: not counted)
        train_samples        u8  image  images trained on, over all epochs
        val_samples          u8  image  images validated, over all epochs
        ops                  str op  operations executed, exact decimal
        ops_f64              f8  op  ops as a float
        ops_credited         str op  operations that count for the score, exact decimal
        ops_credited_f64     f8  op  ops_credited as a float
        t_start              f8  s   start, since core start on rank 0's clock (NaN: never started)
        t_first_step         f8  s   dispatch of the first step, since core start on rank 0's clock (NaN: none)
        t_end                f8  s   end, since core start on rank 0's clock
        trace_seconds        f8  s   tracing and lowering the steps, also while another trial trained (NaN: not done)
        compile_seconds      f8  s   compiling them, or loading them from the cache (NaN: not done)
        best_error           f8  1   lowest validation error of a whole validation (NaN: none)
        predicted_error      f8  1   error predicted in the warm-up (steers the search only; NaN: none)
        morph_max_abs_diff   f8  1   largest difference from the parent's logits, over their largest (NaN: he)
        resumed              u1  -   1 if the trial was continued from a checkpoint
    """),
    unchecked={
        "cause": "text",
        "xla_ops": "bound to the model of XLA's rules and to the network, within bands (V06)",
        "xla_model_ops": "bound to XLA's estimate and to the network, within bands (V06)",
        "trace_seconds": "bound by the first step from above (V12)",
        "compile_seconds": "bound by the first step from above (V12)",
        "predicted_error": "steers the search only",
        "chosen_by": "tells of the search; does not enter the score",
        "tuned_by": "tells of the search; does not enter the score",
        "expected_error": "tells of the search; does not enter the score",
        "expected_deviation": "tells of the search; does not enter the score",
        "resumed": "1 is fatal for an official run (V20)",
    },
)

EPOCHS = Table(
    "epochs",
    "epoch_row",
    "one row for each epoch, or part of one, ordered by trial and epoch",
    _columns("""
        trial_id       i8  -   trial of the epoch
        epoch          i4  -   number of the epoch in its trial, from 0
        steps          i4  -   training steps
        t_start        f8  s   start, since core start on rank 0's clock
        t_end          f8  s   end, validation included, since core start on rank 0's clock
        train_samples  u8  image  images trained on
        val_samples    u8  image  images validated
        ops            u8  op  operations executed
        ops_credited   u8  op  operations that count for the score
        lr             f8  1   learning rate
        train_loss     f8  1   mean training loss (NaN: no step)
        val_loss       f8  1   mean validation loss (NaN unless the validation is whole)
        val_error      f8  1   validation error (NaN unless the validation is whole)
        partial        u1  -   1 if the epoch or its validation was cut short
    """),
    unchecked={
        "t_start": "bound by the epoch before it and by its own end (V12)",
        "train_loss": "does not enter the score; must be finite (V04)",
        "val_loss": "does not enter the score; must be finite (V04) and end its trial by the rule (I18)",
    },
)

SCORE_SERIES = Table(
    "score_series",
    "sample",
    "the score at each tick and at core stop, recomputed from the final rows",
    _columns("""
        t                   f8  s     time since core start
        cumulative_ops      str op    credited operations of rows that ended by then, exact decimal
        cumulative_ops_f64  f8  op    cumulative_ops as a float
        rate                f8  op/s  cumulative_ops over t
        best_error          f8  1     lowest validation error by then (NaN: none)
        regulated           f8  op/s  -ln(best_error) x rate (NaN: no error yet)
    """),
)

RANKS = Table(
    "ranks",
    "rank",
    "one row for each MPI rank",
    _columns("""
        rank          i4  -  rank in COMM_WORLD
        segment       i4  -  segment of the run in which it had this rank, from 1
        node          i4  -  index of its node (-1: coordinator)
        replica       i4  -  index of its replica (-1: none)
        local_rank    i4  -  rank in its node
        role          str -  coordinator, trainer or generator
        hostname      str -  name of its host
        device        str -  devices that it drives: their number and kind (empty: none)
        device_uuid   str -  their UUIDs, with commas between, or none: and why
        cpus          str -  CPUs that it may use, as a list of ranges
        numa          str -  NUMA nodes of these CPUs
        clock_offset  f8  s  its clock minus rank 0's at the start of the run
        clock_uncertainty  f8  s  bound of the error of that difference
        wall_seconds  f8  s  wall time of the rank
        bytes_read    i8  byte  read from the files of the data set for batches, up to core stop
    """)
    + tuple(Column(f"seconds_{phase}", "f8", "s", f"time in phase {phase}") for phase in PHASES),
    unchecked={
        "replica": "a place; the number of replicas is checked (V11)",
        "local_rank": "a place",
        "cpus": "a place",
        "numa": "a place",
        "clock_offset": "the rank's times are corrected by it before they are sent; must be finite (V12)",
        "clock_uncertainty": "bound from above (V12)",
        **{
            f"seconds_{phase}": "a share of the rank's wall time; sums of phases are bound (V13)"
            for phase in PHASES
            if phase not in ("init", "idle")
        },
    },
)

MESSAGES = Table(
    "messages",
    "message_row",
    "messages by rank and kind; kinds without a message have no row",
    _columns("""
        rank      i4  -     rank in COMM_WORLD
        segment   i4  -     segment of the run, from 1
        kind      str -     what was carried
        channel   str -     point-to-point or window
        sent      i8  -     messages sent, or writes to the window
        received  i8  -     messages received, or reads of the window
        bytes     i8  byte  bytes sent and received
    """),
    unchecked=dict.fromkeys(
        ("sent", "received", "bytes"), "a count that no row proves; must not be negative (I11)"
    ),
)

SAMPLES = Table(
    "samples",
    "sample_row",
    "use of the machine: one row for each node and window, ordered by node and time",
    _columns("""
        segment              i4  -     segment of the run, from 1; the order is by segment first, and energy and bytes count from its start
        t                    f8  s     end of the window, since core start on rank 0's clock
        node                 i4  -     index of the node
        window               i4  -     number of the window on its node, from 0
        count                i4  -     measurements in the window; instantaneous values are their means
        devices              i4  -     accelerators of the node that are read
        cpu_percent          f8  %     use of the host's CPUs in the window (100: all of them)
        process_percent      f8  %     CPU use of the process that measures, the node's first trainer (100: one CPU)
        memory_bytes         f8  byte  memory in use on the host
        process_bytes        f8  byte  memory resident in that process
        device_percent       f8  %     use of the accelerators, their mean (NaN: none is read)
        device_memory_bytes  f8  byte  memory in use on the accelerators, in all (NaN: not read)
        device_mhz           f8  MHz   clock of the accelerators, their mean (NaN: not read)
        device_celsius       f8  degC  temperature of the hottest accelerator (NaN: not read)
        device_watts         f8  W     power of the accelerators in the window, in all (NaN: not read)
        power_watts          f8  W     power in the window of accelerators and RAPL packages, in all (NaN: not read)
        energy_joules        f8  J     energy of the same since core start (NaN: not read)
        read_bytes           f8  byte  read from the host's disks since core start (NaN: not read)
        write_bytes          f8  byte  written to them since core start (NaN: not read)
        net_bytes            f8  byte  sent and received by network interfaces but loopback since core start (NaN: none)
        fabric_bytes         f8  byte  sent and received by InfiniBand ports since core start (NaN: there is none)
        sample_seconds       f8  s     CPU time that the measurements of the window took
    """),
    unchecked=dict.fromkeys(
        "count devices cpu_percent process_percent memory_bytes process_bytes device_percent device_memory_bytes "
        "device_mhz device_celsius device_watts read_bytes write_bytes net_bytes fabric_bytes sample_seconds".split(),
        "describes the use of the machine and does not enter the score; its bounds are checked (I17)",
    ),
)

SEGMENTS = Table(
    "segments",
    "segment",
    "one row for each start of the program on the run's folder: the first one, and each that resumed the run",
    _columns("""
        segment         i4  -  number of the segment, from 1
        start_utc       str -  start of its core time, ISO 8601
        t_start         f8  s  core time of the segments before it
        t_end           f8  s  core time at its end: of one that was killed, the last moment that its journal proves
        total_seconds   f8  s  wall time of rank 0 in it (NaN: it did not come to its end)
        end             str -  running, time_limit, drained or killed
        end_cause       str -  why it was drained
        hostname        str -  host of rank 0
        mpi             str -  MPI library
        version         str -  version of the program
        n_ranks         i4  -  MPI ranks
        n_nodes         i4  -  nodes (virtual ones count)
        n_replicas      i4  -  replicas
        n_devices       i4  -  devices that train
        n_generators    i4  -  generator ranks
        time_limit      f8  s  core time that was asked for
        lost_trials     i8  -  trials that its end cut short, and that a later segment went on with
        lost_epochs     i8  -  epochs of theirs after their last state, which are not in this file
    """),
    unchecked={"end_cause": "text", "hostname": "a name", "mpi": "a name", "version": "a name"},
)

TABLES = {table.name: table for table in (TRIALS, EPOCHS, SCORE_SERIES, RANKS, MESSAGES, SAMPLES, SEGMENTS)}

#: Scalar string datasets next to the tables.
DOCUMENTS = {
    "config/resolved_toml": "the configuration that was run",
    "config/argv": "the command line, a JSON list",
    "config/env_json": "the environment variables that matter, a JSON object",
    "config/departures_json": "where the configuration departs from the rules, a JSON list",
    "data/manifest_json": "the manifest of a packed data set, a JSON object (empty: the set is not packed)",
    "system/inventory_json": "the machine, a JSON object",
    "system/packages_json": "versions of the packages, a JSON object",
}

#: Attributes of the root group. Scores are NaN where the verdict allows none.
ATTRIBUTES = _columns("""
    schema              str -     aiperf_mpi.result
    schema_version      str -     version of this layout
    aiperf_mpi_version  str -     version of the program
    run_id              str -     identifier of the run
    class               str -     official or trial
    division            str -     closed or open
    end                 str -     running, time_limit, drained or killed
    end_cause           str -     why the run was drained
    complete            u1  -     1 once the file is whole; set last
    valid               u1  -     1 if the run is valid for its class
    invalid_reasons     str -     identifiers and texts of the failed checks, a JSON list
    score_ops           f8  op/s  the score (NaN unless valid and official)
    score_regulated     f8  op/s  the regulated score (NaN unless valid and official)
    trial_rate_ops      f8  op/s  the rate of a valid trial run (else NaN)
    unscored_rate_ops   f8  op/s  the rate of an invalid run (else NaN)
    total_ops           str op    credited operations, exact decimal
    best_error          f8  1     lowest validation error (NaN: none)
    best_trial          i8  -     trial that reached it (-1: none)
    error_final         f8  1     validation error of the best model loaded again (NaN: not done)
    error_final_trial   i8  -     trial of that model (-1: not done)
    peak_ops            f8  op/s  peak rate of all devices at the run's precision (NaN: not known)
    peak_source         str -     where their makers say so, or why it is not known
    mfu                 f8  1     the rate over peak_ops (NaN unless valid and known)
    core_start_utc      str -     start of the core time, ISO 8601
    core_stop_utc       str -     end of the core time, ISO 8601
    core_seconds        f8  s     length of the core time
    total_seconds       f8  s     wall time of the run on rank 0
    time_limit          f8  s     core time that was asked for
    tick                f8  s     distance of the samples of /score_series
    seed                u8  -     seed of the run
    precision           str -     floating-point type of the matrix operands
    dataset             str -     name of the data set
    dataset_sha256      str -     hash of the data set's content
    staging_seconds     f8  s     copying the data set to the nodes, longest of all nodes (0: not done)
    staged_bytes        i8  byte  copied to all nodes together
    hash_seconds        f8  s     checking the data set's hashes, longest of all nodes (0: not done)
    train_images        i8  image  images of the training set
    val_images          i8  image  images of the validation set
    base_json           str -     the initial architecture
    n_ranks             i4  -     MPI ranks
    n_nodes             i4  -     nodes (virtual ones count)
    n_replicas          i4  -     replicas
    n_devices           i4  -     devices that train
    n_generators        i4  -     generator ranks
    n_trials            i4  -     rows of /trials
    n_epochs            i8  -     rows of /epochs
    opcount_method      str -     version of the operation count
    energy_joules       f8  J     energy of the core time over all hosts (NaN: not measured)
    energy_level        str -     what was measured of it and how, or why it was not measured
    ops_per_watt        f8  op/J  credited operations over that energy (NaN unless valid and measured)
    config_sha256       str -     hash of the configuration
    journal_complete    u1  -     0 if the journal could not be written to the end
    content_sha256      str -     hash of all other content of the file
""")

#: Attributes in which another plausible value passes every check of a trial run, and why.
UNCHECKED_ATTRIBUTES = {
    "aiperf_mpi_version": "a name",
    "run_id": "a name; its form is checked (I03)",
    "end_cause": "text",
    "error_final": "bound in official runs (V03); evaluating the checkpoint again shows it",
    "dataset_sha256": "a hash of data that are not in the file; of a packed set it must be that of its manifest "
    "(I21), and its form is checked in official runs (V15)",
    "journal_complete": "describes the journal, which is not in the file",
}
