# SPDX-License-Identifier: Apache-2.0
"""What a run that is resumed takes over from the segments before it: a pure function of their journal.

Every PROPOSED record becomes one of these: a trial that has ended, which stays; a trial that was running,
which begins again under its own id; a candidate that waits for its turn; or, where its replica is gone, a
trial that stays unfinished or a candidate that is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from aiperf_mpi.config import Config, ConfigError, from_toml
from aiperf_mpi.config.paths import message
from aiperf_mpi.files import FileError
from aiperf_mpi.planning.folder import CHECKPOINTS, lost
from aiperf_mpi.printable import named
from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.file.restored import Restored
from aiperf_mpi.results.file.rows import CREDITED, DONE, FAILED, REJECTED, STOPPED
from aiperf_mpi.results.file.schema import SCHEMA_VERSION
from aiperf_mpi.results.file.segments import Continuation
from aiperf_mpi.results.output.journal import FORMAT, JournalError, collect, read_headers
from aiperf_mpi.results.output.package import JOURNAL, RESULT
from aiperf_mpi.trials.record import (
    CAUSE_BYTES,
    DROPPED,
    KEPT,
    OUTCOME,
    PREDICTED,
    PROPOSED,
    WITHDRAWN,
    rejection,
    seal,
)

_OPTION, _ANEW = "--resume", "start a new run, without --resume"

#: A run that ends this many seconds before its time limit has reached it.
_SLACK = 0.01


# -- reading the folder ----------------------------------------------------------------------------


def read_past(folder: Path) -> Run:
    """Return the run of a folder as its journal tells it.

    Raises ConfigError where it cannot go on: there is no journal, it is damaged or of another version, or it
    is that of another run.
    """
    path = folder / JOURNAL
    try:
        collected, problems, header = collect(path)
    except FileError as error:
        raise _without_journal(folder, error) from None
    except JournalError as error:
        raise ConfigError(f"{_OPTION} {error}; {_ANEW}") from None
    run = collected.snapshot(end="killed")
    if run.header is None:
        raise ConfigError(message(_OPTION, folder, "its run ended before it had begun", _ANEW))
    if (version := header.get("schema", "1.1 or older")) != SCHEMA_VERSION or header["format"] != FORMAT:
        reason = f"its run has schema {version}, but this program writes {SCHEMA_VERSION}"
        raise ConfigError(message(_OPTION, folder, reason, f"resume it with its own version, or {_ANEW}"))

    # The last line may be torn by the kill, as nothing had proven it yet.
    damaged = [problem for problem in problems if not problem.endswith(" is torn")]
    if damaged:
        reason = f"its journal is damaged, {damaged[0].removeprefix(f'{named(path)}: ')}"
        raise ConfigError(
            message(
                _OPTION, folder, reason, f"{_ANEW}, or judge it as it is: verify --repair {named(folder)}"
            )
        )
    if problem := lost(folder, run.header.run_id):
        raise ConfigError(problem.replace("--output", _OPTION, 1))
    return run


def stored_config(folder: Path) -> Config:
    """Return the configuration with which the run of a folder was started last, from its journal.

    Raises ConfigError where the folder has no journal, or the configuration cannot be read.
    """
    text = ""
    try:
        for header in read_headers(folder / JOURNAL):
            text = str(header.get("config_toml", ""))
    except FileError as error:
        raise _without_journal(folder, error) from None
    if not text:
        raise ConfigError(message(_OPTION, folder, "its run ended before it had begun", _ANEW))
    return from_toml(text, f"{_OPTION}: the configuration of the run")


def _without_journal(folder: Path, error: FileError) -> ConfigError:
    reason = f"no journal of a run can be read there ({error.reason})"
    return ConfigError(message(_OPTION, folder, reason, "name the output folder of a run"))


def finished(run: Run, time_limit: float, folder: Path) -> str:
    """Return that a run has reached a time limit, and where its result is; "" if it has not."""
    if run.core_seconds < time_limit - _SLACK or not run.segments or run.segments[-1].end != "time_limit":
        return ""
    if (folder / RESULT).is_file():
        return (
            f"the run in {named(folder)} has finished: it reached its time limit of {time_limit:g} s, and "
            f"its result is {named(folder / RESULT)}; a longer --time-limit extends it"
        )
    return (
        f"the run in {named(folder)} has finished: it reached its time limit of {time_limit:g} s, but has no "
        f"{RESULT}; make it with `python -m aiperf_mpi verify --repair {named(folder)}`"
    )


# -- planning --------------------------------------------------------------------------------------


def restored(
    run: Run,
    folder: Path,
    config: Config,
    n_replicas: int,
    kept_epochs: Callable[[int, int], int] = lambda trial, most: 0,
) -> Restored:
    """Return what the next segment of a run begins with, on `n_replicas` replicas.

    `kept_epochs(trial, most)` returns the epochs of the trial's newest state on the disk that has at most
    `most` of them, 0 without one; `most` are those that the journal has whole.
    """
    past = _Past(run, folder, config, n_replicas)
    again = {trial: kept_epochs(trial, past.whole(trial)) for trial in past.running if past.stays(trial)}
    tickets = past.first_tickets()
    waiting, dropped = past.queues(tickets, list(again))
    # Rows whose proposal was not written to the journal leave, too: another candidate gets that slot.
    orphans = dict.fromkeys(past.orphans, 0)
    taken = Continuation(run.core_seconds, again | orphans, tuple(sorted(past.reopened)))
    records = {slot: record for slot, record in past.records.items() if slot not in past.reopened}
    outcomes = [past.outcome(trial) for trial in past.without_outcome]
    drops = [
        rejection(past.proposed[trial], trial, run.core_seconds, "resume: no trainer will get it", DROPPED)
        for trial in dropped
    ]
    free = {trial for trial, record in past.outcomes.items() if record["status"] == DROPPED} | set(dropped)
    return Restored(
        segments=len(run.segments),
        taken=taken,
        slots=max(past.records, default=-1) + 1,
        records=records,
        added=(*outcomes, *drops),
        keys=tuple(
            {int(record["key"]): None for trial, record in past.proposed.items() if trial not in free}
        ),
        tickets=tickets,
        waiting=waiting,
        weights=past.weights(),
        best=past.best({*again, *orphans}),
    )


class _Past:
    """The candidates of a run's segments by how far they had come.

    Attributes:
        proposed, outcomes: PROPOSED and OUTCOME records by trial.
        ended: rows of trials that have ended.
        reopened: slots of outcomes of trials whose last row was lost.
        running: trials that had begun and not ended, ascending.
        orphans: trials of rows without a proposal.
    """

    def __init__(self, run: Run, folder: Path, config: Config, n_replicas: int) -> None:
        self._run, self._folder, self._config, self._n_replicas = run, folder, config, n_replicas
        self.records = dict(zip(run.slots.tolist(), run.records, strict=True))
        self.proposed = {slot: record for slot, record in self.records.items() if record["kind"] == PROPOSED}
        self.ended = {
            int(row["trial_id"]): row
            for row in run.trials
            if math.isfinite(row["t_end"]) and row["status"] in (DONE, STOPPED, FAILED, REJECTED)
        }
        self.outcomes: dict[int, np.void] = {}
        self.reopened: set[int] = set()
        for slot, record in self.records.items():
            trial = int(record["trial"])
            if record["kind"] != OUTCOME or trial in self.outcomes:
                continue
            # The record may come before the last rows: a trial has ended when its own row says so.
            if record["status"] in (DONE, STOPPED, FAILED) and trial not in self.ended:
                self.reopened.add(slot)
            else:
                self.outcomes[trial] = record
        begun = {*run.trials["trial_id"].tolist(), *run.epochs["trial_id"].tolist()}
        self.orphans = sorted(begun - set(self.proposed))
        begun |= {int(self.records[slot]["trial"]) for slot in self.reopened}
        whole = run.epochs[run.epochs["partial"] == 0]
        order = np.argsort(whole["trial_id"], kind="stable")
        self._whole_trials, self._whole_numbers = whole["trial_id"][order], whole["epoch"][order]
        open_trials = [trial for trial in sorted(self.proposed) if not self._over(trial)]
        self.running = [trial for trial in open_trials if trial in begun]
        self._waiting = [trial for trial in open_trials if trial not in begun]

    def _over(self, trial: int) -> bool:
        return trial in self.outcomes or trial in self.ended

    def replica(self, trial: int) -> int:
        """Return the replica of a trial."""
        return int(self.proposed[trial]["replica"])

    def stays(self, trial: int) -> bool:
        """Return whether the replica of a trial goes on."""
        return self.replica(trial) < self._n_replicas

    def whole(self, trial: int) -> int:
        """Return the whole epochs of a trial, from its first one on without a gap."""
        first, last = np.searchsorted(self._whole_trials, [trial, trial + 1])
        numbers = np.unique(self._whole_numbers[first:last])
        return int(np.sum(numbers == np.arange(len(numbers))))

    @property
    def without_outcome(self) -> list[int]:
        """The trials that have ended, but whose outcome was not written to the journal yet."""
        return [trial for trial in self.ended if trial in self.proposed and trial not in self.outcomes]

    def outcome(self, trial: int) -> np.void:
        """Return the OUTCOME record of a trial by its row."""
        row, record = self.ended[trial], self.proposed[trial].copy()
        cause = row["cause"].decode(errors="replace").encode("ascii", "replace")[:CAUSE_BYTES]
        if row["status"] == REJECTED:
            return rejection(record, trial, float(row["t_end"]), cause.decode())
        record["kind"], record["status"], record["trial"] = OUTCOME, row["status"], trial
        record["t"], record["cause"] = row["t_end"], cause
        for name in ("epochs", "best_error", "predicted_error"):
            record[name] = row[name]
        kept = self._config.model.inherits and row["status"] != FAILED and self._file(trial).is_file()
        record["flags"] |= PREDICTED * bool(np.isfinite(row["predicted_error"])) | KEPT * kept
        return seal(record)

    def first_tickets(self) -> dict[int, int]:
        """Return the first round of each replica that no trial has used up."""
        tickets = dict.fromkeys(range(self._n_replicas), 1)
        for trial, row in self.ended.items():
            # The ticket of a rejected candidate is filled again, except the initial architecture's.
            if trial in self.proposed and self.stays(trial) and (row["status"] != REJECTED or trial == 0):
                replica = self.replica(trial)
                tickets[replica] = max(tickets[replica], int(self.proposed[trial]["round"]) + 1)
        return tickets

    def queues(
        self, tickets: Mapping[int, int], again: list[int]
    ) -> tuple[dict[int, tuple[int, ...]], list[int]]:
        """Return the trials that each replica's queue begins with, one for a ticket, and those that are
        dropped: of two for a ticket the later one, and those without a place in the queue."""
        places: dict[tuple[int, int], int] = {}
        dropped = []
        for trial in (*again, *self._waiting):
            replica, ticket = self.replica(trial), int(self.proposed[trial]["round"])
            first = tickets.get(replica, math.inf)
            # A slot of the queue takes its next ticket when the trial of the one before it begins.
            fits = self.stays(trial) and first <= ticket < first + 2 * self._config.search.queue_depth
            if not fits or (replica, ticket) in places:
                dropped.append(trial)
            else:
                places[replica, ticket] = trial
        waiting: dict[int, tuple[int, ...]] = {}
        for (replica, _), trial in sorted(places.items()):
            waiting[replica] = (*waiting.get(replica, ()), trial)
        return waiting, dropped

    def _file(self, trial: int) -> Path:
        return self._folder / CHECKPOINTS / f"{trial}.h5"

    def weights(self) -> dict[int, tuple[tuple[int, float], ...]]:
        """Return the trials of each replica whose weights are kept, with their errors, best first."""
        withdrawn = {int(record["trial"]) for record in self.records.values() if record["kind"] == WITHDRAWN}
        kept = sorted(
            (float(row["best_error"]), trial)
            for trial, row in self.ended.items()
            if trial in self.proposed
            and row["status"] in (DONE, STOPPED)
            and math.isfinite(row["best_error"])
            and trial not in withdrawn
            and self._file(trial).is_file()
        )
        weights: dict[int, tuple[tuple[int, float], ...]] = {}
        for error, trial in kept:
            weights[self.replica(trial)] = (*weights.get(self.replica(trial), ()), (trial, error))
        return weights

    def best(self, again: set[int]) -> tuple[int, float]:
        """Return the trial with the lowest error of those that do not begin again, and its error."""
        epochs = self._run.epochs
        failed = {trial for trial, row in self.ended.items() if row["status"] not in CREDITED}
        errors = zip(epochs["val_error"].tolist(), epochs["trial_id"].tolist(), strict=True)
        known = (pair for pair in errors if pair[0] >= 0 and pair[1] not in again and pair[1] not in failed)
        error, trial = min(known, default=(math.inf, -1))
        return trial, error
