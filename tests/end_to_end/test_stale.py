# SPDX-License-Identifier: Apache-2.0
"""A whole run in which candidates grow stale while they wait: they are dropped, and their keys claimed
again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from aiperf_mpi.planning.estimate.estimate import records
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.file.collector import Run
from aiperf_mpi.results.judge.judge import judge_file
from aiperf_mpi.results.output import journal
from aiperf_mpi.trials.record import DROPPED, OUTCOME, PROPOSED, STATUS_NAMES
from tests.helpers.end_to_end import runs

#: Four units, and few networks within the limit: a search comes back to what was dropped. Five candidates
#: wait, so that one made when fewer than 4 trials have finished still waits when the 4th has: 4 > 1.01 x 3.
FEW_NETWORKS = (
    "data.image_size=8",
    "data.train_images=64",
    "data.val_images=20",
    "model.blocks=[1]",
    "model.width=2",
    "train.epochs=1",
    "train.round_epochs=[1]",
    "search.morphs=['wider','kernel']",
    "search.max_morphs=1",
    "search.max_parameters=1500",
    "search.queue_depth=5",
    "search.stale_after=1.01",
    "hpo.enabled=false",
)


#: Trials that last a few seconds, so that what becomes stale when one of them ends is replaced while the next
#: trains.
LONG_TRIALS = (
    "parallel.compile_ahead='on'",
    "data.image_size=8",
    "data.train_images=65536",
    "model.blocks=[1]",
    "model.width=2",
    "train.epochs=1",
    "train.round_epochs=[1]",
    "search.max_morphs=1",
    "search.queue_depth=3",
    "search.stale_after=1.01",
    "hpo.enabled=false",
)


def dropped_as_stale(run: Run) -> list[tuple[int, int, int]]:
    """Slot of the OUTCOME, trial and key of each candidate that was replaced because it was stale."""
    return [
        (int(slot), int(record["trial"]), int(record["key"]))
        for slot, record in zip(run.slots, run.records, strict=True)
        if record["kind"] == OUTCOME and record["status"] == DROPPED and record["cause"].startswith(b"stale")
    ]


def proposed_again(run: Run) -> set[int]:
    """Trials whose keys were free again, as a candidate with the same one had been dropped before."""
    proposed = [
        (int(s), int(r["key"])) for s, r in zip(run.slots, run.records, strict=True) if r["kind"] == PROPOSED
    ]
    return {
        trial
        for slot, _, key in dropped_as_stale(run)
        for trial, other in proposed
        if other == key and trial > slot
    }


@pytest.mark.mpi
@pytest.mark.full
@pytest.mark.timeout(2000)
def test_a_stale_candidate_is_dropped_and_its_key_claimed_again(tmp_path: Path) -> None:
    ended = runs.run_until(
        lambda run: bool(proposed_again(run)),
        4,
        tmp_path / "run",
        FEW_NETWORKS,
        env=runs.QUICK_COMPILER,
        timeout=1800,
    )
    assert ended.code == 4, ended.text()
    run = journal.replay(ended.folder / "journal.jsonl")
    dropped, again = dropped_as_stale(run), proposed_again(run)
    assert dropped and again, ended.text()

    # Nothing that was dropped has been trained, and each has that one end; its replacement has a trial of its
    # own.
    ends = Counter(int(record["trial"]) for record in run.records if record["kind"] == OUTCOME)
    epochs = set(run.epochs["trial_id"].tolist())
    for _, trial, _ in dropped:
        assert ends[trial] == 1 and trial not in epochs
    causes = [
        record["cause"].decode()
        for record in run.records
        if record["kind"] == OUTCOME and record["cause"].startswith(b"stale")
    ]
    replacements = [int(cause.removeprefix("stale: replaced by ")) for cause in causes]
    proposed = {int(slot) for slot, r in zip(run.slots, run.records, strict=True) if r["kind"] == PROPOSED}
    assert len(set(replacements)) == len(replacements) and set(replacements) <= proposed

    # At any time one candidate at most has a key, from its PROPOSED on, until its OUTCOME if it was dropped.
    held: set[int] = set()
    for record in run.records[np.argsort(run.slots)]:
        key = int(record["key"])
        if record["kind"] == PROPOSED:
            assert key not in held
            held.add(key)
        elif record["kind"] == OUTCOME and record["status"] == DROPPED:
            held.remove(key)

    # The result file says the same, and the judge has nothing against either.
    trials = ended.table("trials")
    status = dict(zip(trials["trial_id"].tolist(), trials["status"].tolist(), strict=True))
    assert all(status[trial] in (DROPPED, STATUS_NAMES[DROPPED]) for _, trial, _ in dropped)
    by_trial = dict(zip(trials["trial_id"].tolist(), trials["train_samples"].tolist(), strict=True))
    assert all(by_trial[trial] == 0 for _, trial, _ in dropped)
    assert ended.lines["status"] == "VALID", ended.text()

    # So many records were to be expected of the trials that came to an end.
    whole = int(np.isin(trials["status"], ("done", "stopped", "failed")).sum())
    needed, replaced = records(Evidence(judge_file(ended.result)[0]).config, 1, whole + 1)
    print(
        f"{len(run.records)} records of {whole} trials, {needed} estimated; {replaced} replacements estimated"
    )
    assert len(dropped) <= replaced and len(run.records) <= needed
    print(
        f"\n{len(dropped)} of {len(trials['trial_id'])} candidates dropped as stale, {len(again)} keys "
        f"claimed again"
    )


@pytest.mark.mpi
@pytest.mark.full
@pytest.mark.timeout(1200)
def test_no_candidate_prepared_ahead_is_dropped_as_stale(tmp_path: Path) -> None:
    ended = runs.run_until(
        lambda run: len(runs.ended(run)) >= 4 and len(dropped_as_stale(run)) >= 3,
        4,
        tmp_path / "run",
        LONG_TRIALS,
        timeout=1000,
    )
    assert ended.code == 4 and ended.lines["status"] == "VALID", ended.text()
    run, trials = journal.replay(ended.folder / "journal.jsonl"), ended.table("trials")
    begun = {int(r): float(t) for r, t in zip(trials["round"], trials["t_first_step"], strict=True) if t == t}
    ends = [
        (int(record["round"]), float(record["t"]))
        for record in run.records
        if record["cause"].startswith(b"stale")
    ]

    # Its trainer takes the next ticket ahead between two steps, at the latest the second one on a loaded
    # machine; a generator looks for stale candidates once a second, and then still has to think of another.
    # Without the taking, candidates are dropped all through the trial before theirs.
    assert len(ends) >= 3
    late = [
        (round_, at - begun[round_ - 1]) for round_, at in ends if at - begun.get(round_ - 1, np.inf) > 2.0
    ]
    assert not late, (late, ended.text())
