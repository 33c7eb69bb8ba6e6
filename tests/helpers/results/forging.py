# SPDX-License-Identifier: Apache-2.0
"""Forge results: what ranks report is changed, and the writer makes every sum, series, hash and attribute of
the verdict fit; or the finished file is changed, and this module does (the table is in forgeries.py)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aiperf_mpi import hdf5
from aiperf_mpi.config import classify, from_toml
from aiperf_mpi.config.declared import Declared
from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.file.rows import FAILED, PHASES, UNFINISHED
from aiperf_mpi.results.judge.judge import Verdict, judge, judge_content
from aiperf_mpi.results.output import process
from aiperf_mpi.trials.budget import budget
from aiperf_mpi.trials.record import OUTCOME
from tests.helpers.results.example_run import VAL_IMAGES, Example, example_run

#: What is forged: what the ranks report, the finished file with its verdict made to fit, the same with a
#: verdict of the forger's, or the bytes of the finished file.
REPORT, FILE, VERDICT, BYTES = "report", "file", "verdict", "bytes"

Report = Callable[[Example], object]
Edit = Callable[[h5py.File], object]


@dataclass(frozen=True)
class Forgery:
    """A forged result.

    Attributes:
        change: changes an Example (REPORT), an open file (FILE, VERDICT), or the file at a path (BYTES).
        finds: the check that makes the result invalid; "" if a file cannot prove the opposite.
        why: what the forger gains, or why no file proves the opposite.
    """

    name: str
    change: Callable[[Any], object]
    finds: str
    why: str
    stage: str = REPORT


def reseal(path: Path, *, verdict: bool = True) -> None:
    """Make hash and, with `verdict`, the attributes of the verdict fit the content of a file."""
    with h5py.File(path, "r+") as file:
        if verdict:
            resultfile.set_attributes(file, judge_content(resultfile.load(file)).attributes())
        resultfile.set_attributes(file, {"content_sha256": resultfile.content_hash(file)})


def forge(forgery: Forgery, folder: Path, honest: Path) -> Verdict:
    """Return the verdict on a forged result, made in `folder`; `honest` is the file of the example."""
    path = folder / "forged.h5"
    if forgery.stage == REPORT:
        example = example_run()
        forgery.change(example)
        hdf5.write(path, process.final_image(example.run()))
        return judge(path)
    shutil.copy(honest, path)
    if forgery.stage == BYTES:
        forgery.change(path)
        return judge(path)
    with h5py.File(path, "r+") as file:
        forgery.change(file)
    reseal(path, verdict=forgery.stage == FILE)
    return judge(path)


# -- parts of changes ------------------------------------------------------------------------------


def rows_of(example: Example, trial: int) -> np.ndarray:
    """Return the rows of a trial's epochs."""
    return np.flatnonzero(example.epochs["trial_id"] == trial)


def first_trainer(example: Example) -> int:
    """Return the row of replica 0's trainer."""
    return int(np.flatnonzero(example.ranks["role"] == b"trainer")[0])


def idle(example: Example, share: float) -> None:
    """Move a share of the time in which trainers train to phase idle."""
    for row in np.flatnonzero(example.ranks["role"] == b"trainer"):
        seconds = example.ranks["phase_seconds"][row]
        for phase in ("train", "validate"):
            moved = share * seconds[PHASES.index(phase)]
            seconds[PHASES.index(phase)] -= moved
            seconds[PHASES.index("idle")] += moved


def scale_time(example: Example, factor: float) -> None:
    """Multiply every time of a run, so that its rate is that many times lower."""
    for name in ("t_start", "t_end"):
        example.epochs[name] *= factor
    for name in ("t_start", "t_end", "t_first_step", "trace_seconds", "compile_seconds"):
        example.trials[name] *= factor
    for name in ("wall_seconds", "phase_seconds"):
        example.ranks[name] *= factor
    example.samples["t"] *= factor
    example.samples["energy_joules"] = example.samples["power_watts"] * example.samples["t"]
    example.core_seconds *= factor
    with_run(example, time_limit=example.core_seconds, tick=example.header.tick * factor)


def with_run(example: Example, **run: Any) -> None:
    """Change settings of section run, which the header has too."""
    config = from_toml(example.header.config_toml, "config")
    with_settings(example, run=replace(config.run, **run))
    example.header = replace(example.header, **run)


def with_settings(example: Example, **sections: Any) -> None:
    """Change sections of the configuration, and what follows from them."""
    config = replace(from_toml(example.header.config_toml, "config"), **sections)
    cls, division, departures = classify(config)
    example.header = replace(
        example.header,
        cls=cls,
        division=division,
        departures=tuple(map(str, departures)),
        config_toml=config.to_toml(),
        config_sha256=config.sha256,
    )


def set_columns(file: h5py.File, table: str, row: int, **values: object) -> None:
    """Set values of a row."""
    for name, value in values.items():
        file[table][name][row] = value


def set_attributes(**values: object) -> Edit:
    """Return an edit of root attributes."""
    return lambda file: resultfile.set_attributes(file, values)


def every(table: str, **values: object) -> Edit:
    """Return an edit of all rows of some columns."""

    def edit(file: h5py.File) -> None:
        for name, value in values.items():
            file[table][name][...] = value

    return edit


# -- reports ---------------------------------------------------------------------------------------


def long_compilation(trial: int) -> Report:
    """Return a report in which a trial's first step comes before its compilation can have ended."""

    def change(example: Example) -> None:
        example.trials["compile_seconds"][example.trial(trial)] = 2.0

    return change


def round_left_out(example: Example) -> None:
    """A replica's second candidate claims the third round, which has more epochs under other settings."""
    own = [i for i, c in enumerate(example.candidates) if c.replica == 0][1:]
    for index in own:
        candidate = example.candidates[index]
        record = next(i for i, s in enumerate(example.slots) if s == candidate.trial_id)
        example.records[record]["round"] += 1
        row, limits = example.trial(candidate.trial_id), budget_of(example, candidate.round + 1)
        example.trials["epochs_max"][row], example.trials["patience"][row] = limits


def budget_of(example: Example, number: int) -> tuple[int, int]:
    """Return epochs and patience of a round."""
    limits = budget(number, from_toml(example.header.config_toml, "config").train)
    return limits.epochs_max, limits.patience


def late_epoch(example: Example) -> None:
    """The last epoch ends after the whole run."""
    row = rows_of(example, 9)[-1]
    example.epochs["t_end"][row] = example.trials["t_end"][example.trial(9)] = 1e4


def long_rank_0(example: Example) -> None:
    """Rank 0 and the whole run end 1,000 s later."""
    example.ranks["wall_seconds"][0] += 1000
    example.ranks["phase_seconds"][0][PHASES.index("idle")] += 1000


def samples_moved(example: Example) -> None:
    first, second = rows_of(example, 0)[:2]
    for name, unit in (("steps", 1), ("train_samples", 64)):
        example.epochs[name][first] += 2 * unit
        example.epochs[name][second] -= 2 * unit
    example.epochs["partial"][[first, second]] = 1


def more_samples(example: Example) -> None:
    """An epoch has images that its steps do not have."""
    row = rows_of(example, 0)[0]
    example.epochs["train_samples"][row] += 10**6
    example.trials["train_samples"][example.trial(0)] += 10**6


def epoch_cut_in_the_middle(example: Example) -> None:
    row = rows_of(example, 0)[1]
    example.epochs["steps"][row], example.epochs["train_samples"][row] = 11, 704
    example.epochs["val_samples"][row], example.epochs["partial"][row] = 0, 1
    example.epochs["val_error"][row] = example.epochs["val_loss"][row] = np.nan
    trial = example.trial(0)
    example.trials["train_samples"][trial] -= 704
    example.trials["val_samples"][trial] -= VAL_IMAGES


def without_outcome(example: Example, trial: int) -> None:
    """Remove the record of how a trial ended."""
    place = next(i for i, r in enumerate(example.records) if r["kind"] == OUTCOME and r["trial"] == trial)
    del example.slots[place], example.records[place]


def failed_as_unfinished(example: Example) -> None:
    example.trials["status"][example.trial(0)] = UNFINISHED
    without_outcome(example, 0)


def unreported(example: Example) -> None:
    """The last trial of replica 0 does not report its end: no learning rate, counts or first step."""
    keep = np.ones(len(example.trials), bool)
    keep[example.trial(last_trial(example))] = False
    example.trials = example.trials[keep]


def last_trial(example: Example) -> int:
    """Return the last trial of replica 0."""
    return max(candidate.trial_id for candidate in example.candidates if candidate.replica == 0)


def trial_hidden(example: Example) -> None:
    """The first trial of replica 1, which is not a parent, is left out, with its epochs and records."""
    parents = {candidate.parent_id for candidate in example.candidates}
    hidden = next(c.trial_id for c in example.candidates if c.round == 2 and c.trial_id not in parents)
    example.epochs = example.epochs[example.epochs["trial_id"] != hidden]
    example.trials = example.trials[example.trials["trial_id"] != hidden]
    left = [
        i
        for i, (s, r) in enumerate(zip(example.slots, example.records, strict=True))
        if s != hidden and not (r["kind"] == OUTCOME and r["trial"] == hidden)
    ]
    example.slots, example.records = [example.slots[i] for i in left], [example.records[i] for i in left]
    best = int(np.nanargmin(example.epochs["val_error"]))
    example.final = int(example.epochs["trial_id"][best]), float(example.epochs["val_error"][best])


def shifted_before_core_start(example: Example) -> None:
    own = rows_of(example, 0)
    example.epochs["t_start"][own] -= 0.2
    example.epochs["t_end"][own] -= 0.2
    example.trials["t_start"][example.trial(0)] -= 0.2


def two_trials_at_once(example: Example) -> None:
    for table, rows in ((example.epochs, rows_of(example, 4)), (example.trials, example.trial(4))):
        for name in ("t_start", "t_end"):
            table[name][rows] -= 3


def beyond_patience(example: Example) -> None:
    """Losses that do not move end a trial after patience + 1 epochs."""
    example.epochs["val_loss"][rows_of(example, 0)] = 1.0
    example.trials["patience"][:] = 1


def shifted_over_a_tick(example: Example) -> None:
    """The second epoch claims to have begun before the first ended."""
    example.epochs["t_start"][rows_of(example, 0)[1]] = 0.5


def late_work_in_time(example: Example) -> None:
    """The epoch that core stop cut short ends after it, in a longer core time."""
    row = rows_of(example, 9)[-1]
    example.epochs["t_end"][row] += 0.6
    example.trials["t_end"][example.trial(9)] += 0.6
    example.core_seconds += 0.7


def stopped_without_patience(example: Example) -> None:
    example.trials["status"][example.trial(0)] = 2


def above_the_peak(example: Example) -> None:
    """A rate above the peak that the configuration declares."""
    declared = Declared("cpu", 1e6, "module", "the maker's document", "a person")
    with_settings(example, declared=declared)


def shared_device(example: Example) -> None:
    trainers = np.flatnonzero(example.ranks["role"] == b"trainer")
    for row in trainers:
        example.ranks["device"][row], example.ranks["hostname"][row] = b"2 x NVIDIA H200", b"node0"
        example.ranks["device_uuid"][row] = b"GPU-1,GPU-2"


def better_error(example: Example) -> None:
    """An error of some images less, in every place, with the reload of the checkpoint."""
    best = int(np.nanargmin(example.epochs["val_error"]))
    trial = int(example.epochs["trial_id"][best])
    example.epochs["val_error"][best] = example.trials["best_error"][example.trial(trial)] = 5 / VAL_IMAGES
    example.final = (trial, 5 / VAL_IMAGES)


def half_an_image(example: Example) -> None:
    row = rows_of(example, 0)[2]
    example.epochs["val_error"][row] = example.trials["best_error"][example.trial(0)] = 10.5 / VAL_IMAGES
    example.final = (0, 10.5 / VAL_IMAGES)


def error_of_a_failed_trial(example: Example) -> None:
    example.trials["status"][example.trial(example.final[0] if example.final else 0)] = FAILED


def another_rate(example: Example) -> None:
    example.trials["lr"] *= 2
    example.epochs["lr"] *= 2


def estimates(xla: float, model: float) -> Report:
    """Return a report with XLA's estimates and the model's times these factors; 0 for 1 operation."""

    def change(example: Example) -> None:
        for name, factor in (("xla_ops", xla), ("xla_model_ops", model)):
            example.trials[name] = np.maximum(example.trials[name] * factor, 1).astype(np.uint64)

    return change


def other_products(example: Example) -> None:
    example.trials["jaxpr_ops"] += 2


def less_power(example: Example) -> None:
    for name in ("power_watts", "device_watts", "energy_joules"):
        example.samples[name] *= 0.5


def power_of_another_time(example: Example) -> None:
    example.samples["energy_joules"] *= 0.5


def samples_left_out(example: Example) -> None:
    example.samples = example.samples[example.samples["t"] < example.core_seconds / 2]


def lower_losses(example: Example) -> None:
    for name in ("train_loss", "val_loss"):
        example.epochs[name] *= 0.5


def another_start(example: Example) -> None:
    """The machine's day and host names are another's."""
    example.ranks["hostname"] = [b"other" + name for name in example.ranks["hostname"].tolist()]
    example.samples["cpu_percent"] = 99.0


def drained_as_planned(example: Example) -> None:
    """A run that was drained at its best moment states that moment as its time limit."""
    example.core_seconds -= 0.2
    cut = example.epochs["t_end"] > example.core_seconds
    example.epochs["t_end"][cut] -= 0.2
    late = example.trials["t_end"] > example.core_seconds
    example.trials["t_end"][late] -= 0.2
    with_run(example, time_limit=example.core_seconds)


def more_devices(example: Example) -> None:
    """A third replica that was not there: its rows are those of a real one."""
    example.__dict__.update(example_run(replicas=3).__dict__)


def larger_networks(example: Example) -> None:
    """The rows of networks that were trained, with the names and counts of others that cost more."""
    example.__dict__.update(example_run(seed=11).__dict__)


def faster_devices(example: Example) -> None:
    for row in np.flatnonzero(example.ranks["role"] == b"trainer"):
        example.ranks["device"][row] = b"2 x NVIDIA H200"
        example.ranks["device_uuid"][row] = f"GPU-{row}0,GPU-{row}1".encode()


def no_uuids(example: Example) -> None:
    faster_devices(example)
    example.ranks["device_uuid"][first_trainer(example)] = b"GPU-1"
