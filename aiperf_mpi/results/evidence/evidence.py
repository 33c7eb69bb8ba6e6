# SPDX-License-Identifier: Apache-2.0
"""Values recomputed from the rows of a result, which the judge compares with the stored ones.

Each value is computed on first use and kept. If damaged rows prevent that, an exception is raised, and the
check that needs the value fails with that reason.
"""

from __future__ import annotations

import json
import math
from functools import cached_property
from typing import Any

import numpy as np

from aiperf_mpi.config import Config, from_toml
from aiperf_mpi.config.classes import RULES, OfficialRules
from aiperf_mpi.network.architecture import Architecture, Morph
from aiperf_mpi.opcount.forms import FORM_SETS, STEMS
from aiperf_mpi.results.evidence.ceiling import Ceiling, ceiling
from aiperf_mpi.results.evidence.reading import PackedSet, packed_set
from aiperf_mpi.results.evidence.steps import StepCount, count_steps
from aiperf_mpi.results.file import score
from aiperf_mpi.results.file.attributes import best_validation, energy_of
from aiperf_mpi.results.file.resultfile import Result
from aiperf_mpi.results.file.rows import STATUS
from aiperf_mpi.results.file.schema import TABLES, Columns
from aiperf_mpi.results.file.tables import counting

#: Most blocks of an initial architecture that is replayed: a damaged file must not keep the judge busy for
#: ever.
_MAX_BLOCKS = 1000

#: Most characters of a stored configuration; one of this version has about 3,000.
_MOST_CONFIG = 1 << 15


class MissingError(KeyError):
    """A column or attribute is not in the file in the schema's form."""

    def __str__(self) -> str:
        return f"{self.args[0]} is missing"


class Evidence:
    """The rows of a result, the rules by which they are judged, and the values that follow from them."""

    def __init__(self, result: Result, rules: OfficialRules = RULES) -> None:
        self.result, self.rules = result, rules

    # -- as stored ---------------------------------------------------------------------------------

    def column(self, table: str, name: str) -> np.ndarray:
        """Return a column. Raises MissingError without it."""
        try:
            return self.result.tables[table][name]
        except KeyError:
            raise MissingError(f"/{table}/{name}") from None

    def attribute(self, name: str) -> Any:
        """Return a root attribute. Raises MissingError without it."""
        try:
            return self.result.attributes[name]
        except KeyError:
            raise MissingError(f"attribute {name}") from None

    def table(self, name: str) -> Columns:
        """Return all columns of a table. Raises MissingError if it lacks one."""
        return {column: self.column(name, column) for column in TABLES[name].names}

    def lineage(self, trial: int) -> list[int]:
        """Return a trial and its ancestors, oldest first, while parents have lower ids than children."""
        parents = self.column("trials", "parent_id")
        line: list[int] = []
        while trial in self.index and (not line or trial < line[-1]):
            line.append(trial)
            trial = int(parents[self.index[trial]])
        return line[::-1]

    # -- recomputed --------------------------------------------------------------------------------

    @cached_property
    def config(self) -> Config:
        """The configuration that was run."""
        return _config(self.result.documents["config/resolved_toml"])

    @cached_property
    def packed(self) -> PackedSet | None:
        """The packed data set of the run; None if its data set is not packed."""
        return packed_set(self.result.documents["data/manifest_json"])

    @cached_property
    def status(self) -> np.ndarray:
        """i8 [trials]: codes of the status names, len(STATUS) for a name that is unknown."""
        codes = {name: code for code, name in enumerate(STATUS)}
        names = self.column("trials", "status").tolist()
        return np.array([codes.get(name, len(STATUS)) for name in names], np.int64)

    @cached_property
    def index(self) -> dict[int, int]:
        """Row in /trials by trial id."""
        return {trial: row for row, trial in enumerate(self.column("trials", "trial_id").tolist())}

    @cached_property
    def of_trial(self) -> np.ndarray:
        """i8 [epochs]: row in /trials of each epoch, -1 for an unknown trial."""
        return np.array(
            [self.index.get(trial, -1) for trial in self.column("epochs", "trial_id").tolist()], np.int64
        )

    @cached_property
    def own_epochs(self) -> list[np.ndarray]:
        """[trials]: list of the rows of /epochs for each trial, in file order (int64)."""
        order = np.argsort(self.of_trial, kind="stable")
        rows = np.arange(len(self.status))
        starts = np.searchsorted(self.of_trial[order], rows, side="left")
        stops = np.searchsorted(self.of_trial[order], rows, side="right")
        return [order[start:stop] for start, stop in zip(starts, stops, strict=True)]

    @cached_property
    def trained(self) -> np.ndarray:
        """bool [trials]: whether anything was trained or validated."""
        return np.array([len(rows) > 0 for rows in self.own_epochs], bool)

    @cached_property
    def morphs(self) -> list[tuple[Morph, ...] | str]:
        """[trials]: the morphs of each trial's parent, or why they cannot be read."""
        return [_morphs(text) for text in self.column("trials", "morphs").tolist()]

    @cached_property
    def root(self) -> Architecture:
        """The initial architecture."""
        return _root(self.attribute("base_json"))

    @cached_property
    def architectures(self) -> list[Architecture | str]:
        """[trials]: each architecture, replayed from the initial one along its parents, or why it cannot
        be."""
        replayed: list[Architecture | str] = []
        for row, parent in enumerate(self.column("trials", "parent_id").tolist()):
            replayed.append(self._replay(row, parent, replayed))
        return replayed

    def _replay(self, row: int, parent: int, replayed: list[Architecture | str]) -> Architecture | str:
        """Return the architecture of a trial from those of the trials before it, or why it cannot be."""
        morphs = self.morphs[row]
        if isinstance(morphs, str):
            return morphs
        place = self.index.get(parent, len(replayed))
        before = replayed[place] if place < len(replayed) else f"parent {parent} is not before it"
        start = self.root if parent == -1 else before
        if isinstance(start, str):
            return start if parent == -1 or place >= len(replayed) else f"parent {parent}: {start}"
        try:
            return start.apply(*morphs)
        except ValueError as error:
            return f"not a child of trial {parent}: {error}"

    @cached_property
    def counts(self) -> list[tuple[int, int]]:
        """[trials]: operations per image for training and validation; (0, 0) where the replay fails."""
        return [(count.train, count.val) for count in self.steps]

    @cached_property
    def products(self) -> list[int]:
        """[trials]: products that a training step on a device executes; 0 where the replay fails."""
        sizes = (self.column("trials", name).tolist() for name in ("batch_per_device", "accumulation"))
        return [count.executed(*of_step) for count, *of_step in zip(self.steps, *sizes, strict=True)]

    @cached_property
    def steps(self) -> list[StepCount]:
        """[trials]: operations of each network's step."""
        train = self.config.train
        return count_steps(self.architectures, (*STEMS[train.stem], *FORM_SETS.get(train.forms, ())))

    @cached_property
    def epoch_ops(self) -> list[int]:
        """[epochs]: operations, exact."""
        train, val = (self.column("epochs", name).tolist() for name in ("train_samples", "val_samples"))
        counts: list[tuple[int, int]] = [*self.counts, (0, 0)]
        return [
            score.operations(counts[row][0], counts[row][1], t, v)
            for row, t, v in zip(self.of_trial.tolist(), train, val, strict=True)
        ]

    @cached_property
    def epoch_credited(self) -> list[int]:
        """[epochs]: credited operations, exact."""
        core_seconds = self.attribute("core_seconds")
        status = [*self.status.tolist(), len(STATUS)]
        ends = self.column("epochs", "t_end").tolist()
        return [
            ops if score.is_credited(status[row], t_end, core_seconds) else 0
            for ops, row, t_end in zip(self.epoch_ops, self.of_trial.tolist(), ends, strict=True)
        ]

    @cached_property
    def counts_for_error(self) -> np.ndarray:
        """bool [epochs]: whether the epoch's trial did not fail."""
        return counting(self.status, self.of_trial)

    @cached_property
    def best(self) -> tuple[float, int]:
        """Lowest validation error and its trial id, see `best_validation`; (NaN, -1) without one."""
        return best_validation(self.table("epochs"), self.counts_for_error, self.attribute("core_seconds"))

    @cached_property
    def total_ops(self) -> int:
        """Credited operations of the run, exact."""
        return sum(self.epoch_credited)

    @cached_property
    def series(self) -> list[score.Sample]:
        """The samples that /score_series must hold. Raises ValueError unless it has their number of rows."""
        times = _times(
            self.attribute("core_seconds"), self.attribute("tick"), len(self.column("score_series", "t"))
        )
        return self._samples(times)

    @cached_property
    def final(self) -> score.Sample | None:
        """The sample at core stop, or None for a run without core time."""
        core_seconds = self.attribute("core_seconds")
        return self._samples([core_seconds])[0] if 0 < core_seconds < math.inf else None

    def _samples(self, times: list[float]) -> list[score.Sample]:
        """Return the samples at these times in s."""
        ends, errors, images = (self.column("epochs", name) for name in ("t_end", "val_error", "val_samples"))
        return score.score_series(times, ends, self.epoch_credited, errors, images, self.counts_for_error)

    @cached_property
    def energy(self) -> tuple[float, str]:
        """Energy of the core time in J, NaN if it is unknown, and its level in words."""
        seconds, inventory = self.attribute("core_seconds"), self.result.documents["system/inventory_json"]
        segments = len(self.column("segments", "segment"))
        return energy_of(self.table("samples"), self.table("ranks"), seconds, inventory, segments)

    @cached_property
    def ceiling(self) -> Ceiling:
        """Peak rates of the devices of each replica at the run's precision, and their source."""
        inventory, declared = json.loads(self.result.documents["system/inventory_json"]), self.config.declared
        ranks, segments = self.table("ranks"), self.table("segments")
        return ceiling(ranks, segments, inventory, self.attribute("precision"), declared)


def _config(text: str) -> Config:
    """Return the configuration of a document. Raises ConfigError, and ValueError for a text that is too long.

    A text in bad faith, such as a key of 100,000 parts, would keep the parser busy for minutes.
    """
    if len(text) > _MOST_CONFIG:
        raise ValueError(f"/config/resolved_toml has {len(text)} characters, more than {_MOST_CONFIG}")
    return from_toml(text, "/config/resolved_toml")


def _times(core_seconds: float, tick: float, rows: int) -> list[float]:
    """Return the times of the samples in s. Raises ValueError unless their number is that of the rows.

    The number is compared first: a short tick would make millions of samples next to a few rows.
    """
    if rows != (expected := score.tick_count(core_seconds, tick)):
        raise ValueError(
            f"/score_series has {rows} rows, but a core time of {core_seconds} s with a tick of {tick} s has "
            f"{expected} samples"
        )
    return score.tick_times(core_seconds, tick)


def _morphs(text: str) -> tuple[Morph, ...] | str:
    """Return the morphs of a JSON text, or why they cannot be read."""
    try:
        return tuple(Morph.from_dict(entry) for entry in json.loads(text))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        return f"morphs {text[:80]!r} cannot be read: {error}"


def _root(text: str) -> Architecture:
    """Return the initial architecture of a JSON text. Raises ValueError if it has too many blocks."""
    data = json.loads(text)
    blocks = data.get("base", {}).get("blocks", []) if isinstance(data, dict) else []
    if not all(isinstance(n, int) for n in blocks) or sum(blocks) > _MAX_BLOCKS:
        raise ValueError(f"initial architecture: blocks {blocks} are more than {_MAX_BLOCKS} or no integers")
    return Architecture.from_dict(data)
