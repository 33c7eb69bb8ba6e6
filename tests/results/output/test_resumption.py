# SPDX-License-Identifier: Apache-2.0
"""What the next segment takes over: every state that a kill can leave a candidate in."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.config import Config, ConfigError, from_toml
from aiperf_mpi.planning.folder import claim
from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.file.restored import NEW, Restored
from aiperf_mpi.results.file.rows import DONE, FAILED, REJECTED
from aiperf_mpi.results.output import journal as journal_module
from aiperf_mpi.results.output.journal import replay
from aiperf_mpi.results.output.package import JOURNAL, RESULT
from aiperf_mpi.results.output.resumption import finished, read_past, restored, stored_config
from aiperf_mpi.trials.record import DROPPED, KEPT, OUTCOME, PROPOSED, check
from tests.helpers.results.resumed_run import KILLED, Entry, Resumed, resumed_run, run_of, write_segment


@pytest.fixture(scope="module")
def killed() -> Resumed:
    """A run of two replicas with trials 0, 1 (done), 2, 3 (running) and 4, 5 (waiting), by their order."""
    return resumed_run()


def config_of(run: Run) -> Config:
    assert run.header is not None
    return from_toml(run.header.config_toml)


def trials_of(run: Run) -> list[int]:
    """The trial ids in the order of their proposal: replicas 0 and 1 take turns, rounds 1, 1, 2, 2, 3, 3."""
    return run.slots[run.records["kind"] == PROPOSED].tolist()


def take_over(entries: list[Entry], folder: Path, n_replicas: int = 2) -> tuple[Run, Restored]:
    run = run_of(entries)
    return run, restored(run, folder, config_of(run), n_replicas)


def without(entries: list[Entry], kind: str, trial: int) -> list[Entry]:
    """The entries without the rows, or the outcome, of a trial."""

    def is_its(entry: Entry) -> bool:
        name, _, data = entry
        if name != kind:
            return False
        if kind == "record":
            return data["kind"][0] == OUTCOME and data["trial"][0] == trial
        return data["trial_id"][0] == trial

    return [entry for entry in entries if not is_its(entry)]


def test_ended_trials_stay_running_ones_begin_again_and_others_wait(killed: Resumed, tmp_path: Path) -> None:
    run, past = take_over(killed.first, tmp_path)
    one, other, *rest = trials_of(run)
    assert past.segments == 1 and past.taken.core_seconds == KILLED and past.taken.reopened == ()
    # The history is as it was, slot by slot, and the search learns from the same rows.
    assert past.slots == int(run.slots.max()) + 1
    assert sorted(past.records) == sorted(run.slots.tolist()) and past.added == ()
    assert past.taken.again == {rest[0]: 0, rest[1]: 0}
    # Each replica has used up round 1, and its queue begins with the running trial of round 2.
    assert past.tickets == {0: 2, 1: 2}
    assert past.waiting == {0: (rest[0], rest[2]), 1: (rest[1], rest[3])}
    assert len(past.keys) == 6
    # The best error is that of an ended trial: the running ones lose theirs.
    errors = {int(row["trial_id"]): float(row["best_error"]) for row in run.trials if row["status"] == DONE}
    assert past.best == (min(errors, key=errors.__getitem__), min(errors.values()))
    assert past.best[0] in (one, other)


def test_a_candidate_beyond_the_queue_is_dropped(killed: Resumed, tmp_path: Path) -> None:
    """With one slot the queue has round 2, and round 3 follows it there; for round 4 there is no place."""
    run = run_of(killed.first)
    trials, slot = trials_of(run), int(run.slots.max()) + 1
    fourth = next(r for s, r in zip(run.slots, run.records, strict=True) if s == trials[4]).copy()
    fourth["round"] = 4
    _, past = take_over([*killed.first, ("record", slot, np.array([fourth]))], tmp_path)
    assert past.waiting[0] == (trials[2], trials[4])
    assert [(int(r["trial"]), int(r["status"])) for r in past.added] == [(slot, DROPPED)]


def test_what_all_ranks_need_survives_its_way(killed: Resumed, tmp_path: Path) -> None:
    _, past = take_over(killed.first, tmp_path)
    there = Restored.from_json(past.to_json())
    assert there == replace(past, records={}, added=(), keys=())
    assert Restored.from_json(NEW.to_json()) == NEW


def test_a_trial_whose_last_row_is_lost_begins_again(killed: Resumed, tmp_path: Path) -> None:
    """The outcome came to the journal before the trial's last rows: it leaves the history."""
    trial = trials_of(run_of(killed.first))[1]
    run, past = take_over(without(killed.first, "trial", trial), tmp_path)
    assert past.taken.again.keys() >= {trial} and past.tickets == {0: 2, 1: 1}
    (slot,) = past.taken.reopened
    assert slot not in past.records and slot < past.slots
    assert past.waiting[1][0] == trial
    # Its rows leave the run, so that it is trained once.
    again = run_of([*without(killed.first, "trial", trial), ("resume", -1, past.taken.to_dict())])
    assert trial not in again.epochs["trial_id"] and slot not in again.slots


def test_an_outcome_that_was_not_journaled_follows_from_the_row(killed: Resumed, tmp_path: Path) -> None:
    trial = trials_of(run_of(killed.first))[0]
    run, past = take_over(without(killed.first, "record", trial), tmp_path)
    (outcome,) = past.added
    row = next(row for row in run.trials if row["trial_id"] == trial)
    assert check(outcome) and (outcome["kind"], outcome["status"], outcome["trial"]) == (OUTCOME, DONE, trial)
    assert outcome["best_error"] == row["best_error"] and outcome["t"] == row["t_end"]
    assert not outcome["flags"] & KEPT and past.taken.again.keys().isdisjoint({trial})


def test_rows_without_their_proposal_leave(killed: Resumed, tmp_path: Path) -> None:
    """A slot before the proposal was still open, so that it was not read: another candidate gets its slot."""
    trial = trials_of(run_of(killed.first))[3]
    entries = [e for e in killed.first if not (e[0] == "record" and e[1] >= trial)]
    run, past = take_over(entries, tmp_path)
    assert past.slots <= trial and past.taken.again[trial] == 0
    assert trial not in {slot for slots in past.waiting.values() for slot in slots}
    after = run_of([*entries, ("resume", -1, past.taken.to_dict())])
    assert trial not in after.epochs["trial_id"] and trial not in after.trials["trial_id"]


@pytest.mark.parametrize(("status", "ticket"), [(FAILED, 2), (REJECTED, 1)])
def test_a_failed_trial_uses_up_its_round_and_a_rejected_one_does_not(
    killed: Resumed, tmp_path: Path, status: int, ticket: int
) -> None:
    trial = trials_of(run_of(killed.first))[1]

    def changed(entry: Entry) -> Entry:
        name, slot, data = entry
        if name == "trial" and data["trial_id"][0] == trial:
            data = data.copy()
            data["status"] = status
        return name, slot, data

    entries = [*map(changed, without(killed.first, "record", trial))]
    if status == REJECTED:
        entries = without(entries, "epoch", trial)
    _, past = take_over(entries, tmp_path)
    assert past.tickets[1] == ticket
    assert int(past.added[0]["status"]) == status and int(past.added[0]["trial"]) == trial


def test_a_replica_that_is_gone_leaves_its_trial_and_drops_its_candidates(
    killed: Resumed, tmp_path: Path
) -> None:
    run, past = take_over(killed.first, tmp_path, n_replicas=1)
    trials = trials_of(run)
    assert past.taken.again == {trials[2]: 0} and past.tickets == {0: 2}
    (dropped,) = past.added
    assert (int(dropped["trial"]), int(dropped["status"])) == (trials[5], DROPPED)
    # Its key may be claimed again, that of the unfinished trial may not.
    assert set(past.keys) == set(run.records["key"][run.slots != trials[5]].tolist())
    # The best model may be that of the unfinished trial: no other one is validated in its place.
    errors = run.epochs[run.epochs["trial_id"] != trials[2]]
    best = errors[np.nanargmin(errors["val_error"])]
    assert past.best == (int(best["trial_id"]), float(best["val_error"]))


def test_a_new_replica_begins_with_its_first_round(killed: Resumed, tmp_path: Path) -> None:
    _, past = take_over(killed.first, tmp_path, n_replicas=3)
    assert past.tickets == {0: 2, 1: 2, 2: 1} and 2 not in past.waiting


def test_of_two_candidates_for_a_round_the_first_one_waits(killed: Resumed, tmp_path: Path) -> None:
    """One of them was to replace the other, which had become stale."""
    run = run_of(killed.first)
    trials, slot = trials_of(run), int(run.slots.max()) + 1
    twin = next(r for s, r in zip(run.slots, run.records, strict=True) if s == trials[4]).copy()
    entries = [*killed.first, ("record", slot, np.array([twin]))]
    _, past = take_over(entries, tmp_path)
    assert past.waiting[0] == (trials[2], trials[4]) and past.slots == slot + 1
    assert [int(record["trial"]) for record in past.added] == [slot]


def test_weights_that_are_kept_are_those_of_files_that_exist(killed: Resumed, tmp_path: Path) -> None:
    trials = trials_of(run_of(killed.first))
    (tmp_path / "checkpoints").mkdir()
    for trial in trials[:3]:
        (tmp_path / "checkpoints" / f"{trial}.h5").touch()
    run, past = take_over(killed.first, tmp_path)
    errors = {int(row["trial_id"]): float(row["best_error"]) for row in run.trials}
    assert past.weights == {0: ((trials[0], errors[trials[0]]),), 1: ((trials[1], errors[trials[1]]),)}


def test_epochs_of_a_checkpoint_are_kept(killed: Resumed, tmp_path: Path) -> None:
    run = run_of(killed.first)
    running = trials_of(run)[2:4]
    asked = dict[int, int]()

    def kept(trial: int, most: int) -> int:
        asked[trial] = most
        return most if trial == running[0] else 0

    past = restored(run, tmp_path, config_of(run), 2, kept)
    # Each has one whole epoch in the journal: a newer state on the disk is of no use.
    assert asked == {running[0]: 1, running[1]: 1}
    assert past.taken.again == {running[0]: 1, running[1]: 0}


# -- the folder ------------------------------------------------------------------------------------


@pytest.fixture
def folder(killed: Resumed, tmp_path: Path) -> Path:
    """The folder of a run that was killed."""
    place = tmp_path / "out"
    claim(place, killed.example.header.run_id)
    write_segment(place / JOURNAL, killed.first)
    return place


def test_a_killed_run_can_be_read_and_goes_on_in_its_journal(killed: Resumed, folder: Path) -> None:
    before = (folder / JOURNAL).read_bytes()
    run = read_past(folder)
    assert run.core_seconds == KILLED and stored_config(folder) == config_of(run)
    with open(folder / JOURNAL, "ab") as file:
        file.write(b'{"kind":"epoch","row":[1,2')
    assert read_past(folder).core_seconds == KILLED

    # The torn line is cut off, and all whole ones stay.
    write_segment(folder / JOURNAL, killed.second, goes_on=True)
    assert (folder / JOURNAL).read_bytes().startswith(before + b'{"kind":"header"')
    whole = replay(folder / JOURNAL)
    assert whole.problems == () and whole.journal_complete
    assert [segment.end for segment in whole.segments] == ["killed", "time_limit"]
    assert whole.epochs.tobytes() == run_of(killed.entries).epochs.tobytes()


def test_a_journal_of_one_torn_line_goes_on_from_its_beginning(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b"x" * (3 * journal_module._BLOCK))
    book = journal_module.Journal(tmp_path / JOURNAL, goes_on=True)
    book.close()
    assert (tmp_path / JOURNAL).read_bytes().startswith(b'{"kind":"header"')


REFUSED = {
    "no folder": (lambda f: f.rename(f.with_name("other")), "no journal of a run can be read there"),
    "no journal": (lambda f: (f / JOURNAL).unlink(), "no journal of a run can be read there"),
    "an altered row": (
        lambda f: _replace(f / JOURNAL, b'"epoch","row":[', b'"epoch","row":[1'),
        "its journal is damaged, line",
    ),
    "an older version": (
        lambda f: (f / JOURNAL).write_bytes(_first_line(f, {"schema": "1.1"}) + _rest(f)),
        "its run has schema 1.1, but this program writes 1.2",
    ),
    "a run that had not begun": (
        lambda f: (f / JOURNAL).write_bytes((f / JOURNAL).read_bytes().split(b"\n")[0] + b"\n"),
        "its run ended before it had begun",
    ),
    "another run's folder": (
        lambda f: (f / "owner.json").write_text((f / "owner.json").read_text().replace("example", "other")),
        "it belongs to another run now",
    ),
}


def _replace(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new, 1))


def _first_line(folder: Path, changes: dict[str, str]) -> bytes:
    first = (folder / JOURNAL).read_bytes().split(b"\n")[0]
    return journal_module.encode(journal_module.decode(first) | changes)


def _rest(folder: Path) -> bytes:
    return (folder / JOURNAL).read_bytes().split(b"\n", 1)[1]


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_go_on_is_refused(folder: Path, why: str) -> None:
    change, words = REFUSED[why]
    change(folder)
    with pytest.raises(ConfigError) as refused:
        read_past(folder)
    assert str(refused.value).startswith(f"--resume {folder}") and words in str(refused.value)


def test_a_finished_run_says_so(killed: Resumed, folder: Path) -> None:
    write_segment(folder / JOURNAL, killed.second, goes_on=True)
    run = read_past(folder)
    limit = run.core_seconds
    assert "verify --repair" in finished(run, limit, folder)
    (folder / RESULT).touch()
    assert "has finished: it reached its time limit" in finished(run, limit, folder)
    assert finished(run, limit + 1, folder) == ""
    assert finished(run_of(killed.first), limit, folder) == ""
    assert not math.isnan(limit)
