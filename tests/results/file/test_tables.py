# SPDX-License-Identifier: Apache-2.0
"""From a run's rows to the columns of its result."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.opcount.analytical import operations
from aiperf_mpi.results.file import replay
from aiperf_mpi.results.file.collector import RunCollector
from aiperf_mpi.results.file.replay import Network
from aiperf_mpi.results.file.rows import FAILED, REJECTED, TRIAL_ROW, new_row
from aiperf_mpi.results.file.tables import Tables, build
from aiperf_mpi.trials.record import DROPPED, seal
from tests.helpers.results.example_run import STEPS, VAL_IMAGES, Example, example_run


def credited(content: Tables) -> tuple[int, int, int]:
    """The sums of credited operations over epochs and trials, and the last sample of the series."""
    t = content.tables
    return (
        sum(t["epochs"]["ops_credited"].tolist()),
        sum(map(int, t["trials"]["ops_credited"])),
        int(t["score_series"]["cumulative_ops"][-1]),
    )


def test_operations_are_counts_times_samples() -> None:
    example = example_run(replicas=1, trials_each=2, epochs_each=2)
    content = build(example.run())
    # Three whole epochs and half of one, on 22 steps of 64 images: 1408 + 1408, then 1408 + 704 to train, 360
    # each to validate; the cut epoch has no validation.
    (train0, val0), (train1, val1) = (operations(c.architecture) for c in example.candidates)
    expected = [
        train0 * 1408 + val0 * 360,
        train0 * 1408 + val0 * 360,
        train1 * 1408 + val1 * 360,
        train1 * 704,
    ]
    assert STEPS == 22 and VAL_IMAGES == 360
    assert content.tables["epochs"]["ops"].tolist() == expected
    assert content.tables["trials"]["ops"].tolist() == [str(sum(expected[:2])), str(sum(expected[2:]))]
    assert credited(content) == (sum(expected),) * 3
    assert content.attributes["total_ops"] == str(sum(expected))


def test_the_series_cumulates_what_ended_by_each_tick() -> None:
    # One replica: epochs end at 1, 2, 3 and 3.5 s; ticks at 2 s and core stop, 3.5 s.
    content = build(example_run(replicas=1, trials_each=2, epochs_each=2).run())
    ops = content.tables["epochs"]["ops"].tolist()
    series = content.tables["score_series"]
    assert series["t"].tolist() == [2.0, 3.5]
    assert series["cumulative_ops"].tolist() == [str(ops[0] + ops[1]), str(sum(ops))]
    assert series["rate"].tolist() == [(ops[0] + ops[1]) / 2.0, sum(ops) / 3.5]
    # Errors: 200/360 and 100/360 in trial 0, then 199/360 in trial 1.
    assert series["best_error"].tolist() == [100 / 360, 100 / 360]
    assert series["regulated"][1] == pytest.approx(math.log(3.6) * series["rate"][1])


def test_trials_that_fail_lose_their_credit_in_every_tick() -> None:
    example = example_run()
    before = build(example.run())
    for trial in (0, 6):
        example.trials["status"][example.trial(trial)] = FAILED
    after = build(example.run())

    epochs = before.tables["epochs"]
    lost = np.isin(epochs["trial_id"], (0, 6))
    for tick, t in enumerate(before.tables["score_series"]["t"]):
        gone = sum(epochs["ops"][lost & (epochs["t_end"] <= t)].tolist())
        had, has = (
            int(content.tables["score_series"]["cumulative_ops"][tick]) for content in (before, after)
        )
        assert has == had - gone and (gone > 0 or t < 1)
    # Its operations stay in its rows, what they earned does not; trial 6 had the best error, 0.175.
    trials = after.tables["trials"]
    rows = [list(trials["trial_id"]).index(trial) for trial in (0, 6)]
    assert all(trials["ops"][row] == before.tables["trials"]["ops"][row] != "0" for row in rows)
    assert all(trials["ops_credited"][row] == "0" and trials["ops_credited_f64"][row] == 0.0 for row in rows)
    assert (
        not after.tables["epochs"]["ops_credited"][lost].any() and after.tables["epochs"]["ops"][lost].all()
    )
    assert before.attributes["best_trial"] == 6 and after.attributes["best_trial"] == 4
    assert len(set(credited(after))) == 1


def test_an_epoch_that_ended_after_core_stop_earns_nothing() -> None:
    example = example_run()
    before = build(example.run())
    last = int(np.argmax(example.epochs["t_end"]))
    example.epochs["t_end"][last] = example.core_seconds + 1e-6
    after = build(example.run())
    ops = before.tables["epochs"]["ops"].tolist()[last]
    assert credited(after) == (credited(before)[0] - ops,) * 3
    assert after.tables["epochs"]["ops"].tolist()[last] == ops


def test_sums_beyond_64_bits_are_exact_decimals() -> None:
    # ImageNet's epochs at 1.8e19 operations each: the run's total needs more than 64 bits.
    example = example_run()
    networks: dict[int, Network] = {}
    build(example.run(), networks)
    huge = 2**53 + 1  # operations per image that no float holds
    for trial, network in networks.items():
        networks[trial] = Network(
            network.architecture, network.arch_json, network.group, network.morphs, huge, 0
        )
    content = build(example.run(), networks)
    images = int(example.epochs["train_samples"].sum())
    assert credited(content) == (huge * images,) * 3 and huge * images > 2**64
    total = content.tables["score_series"]["cumulative_ops"][-1]
    assert total == str(huge * images) and content.tables["score_series"]["cumulative_ops_f64"][-1] == float(
        total
    )


def test_a_count_beyond_64_bits_is_cut_not_wrapped() -> None:
    example = example_run(replicas=1, trials_each=1, epochs_each=2)
    networks: dict[int, Network] = {}
    build(example.run(), networks)
    networks[0] = Network(networks[0].architecture, "", "", "", 2**60, 0)
    content = build(example.run(), networks)
    # 2^60 x 1408 images is more than 2^64 - 1.
    assert content.tables["epochs"]["ops"][0] == 2**64 - 1


def test_architectures_are_replayed_along_the_tree() -> None:
    example = example_run()
    trials = build(example.run()).tables["trials"]
    for row, candidate in enumerate(example.candidates):
        assert Architecture.from_json(trials["arch_json"][row]) == candidate.architecture
        assert trials["arch_hash"][row] == candidate.architecture.hash
        assert trials["group"][row] == candidate.group
        assert json.loads(trials["morphs"][row]) == [morph.to_dict() for morph in candidate.own_morphs]
        assert trials["parent_id"][row] == candidate.parent_id


def test_a_record_that_does_not_replay_earns_nothing() -> None:
    example = example_run()
    record = example.records[0].copy()
    record["arch_hash"][3] ^= 1
    example.records[0] = seal(record)
    content = build(example.run())
    # Trial 0 is the ancestor of all trials: without it no architecture is known.
    assert content.tables["trials"]["arch_json"].tolist() == [""] * 6
    assert credited(content) == (0, 0, 0)


def test_rejected_and_dropped_candidates_are_trials_without_epochs() -> None:
    example = example_run()
    extra = [c for c in example.candidates if c.trial_id in (8, 9)]
    example.epochs = example.epochs[~np.isin(example.epochs["trial_id"], (8, 9))]
    example.trials = example.trials[~np.isin(example.trials["trial_id"], (8, 9))]
    # One rejection with a row of its own, as generators send it, and one candidate dropped by a record alone.
    row = new_row(TRIAL_ROW, trial_id=8, status=REJECTED, t_end=7.0, cause="count differs")
    example.trials = np.concatenate([example.trials, row])
    example.slots.append(20)
    example.records.append(extra[1].outcome(DROPPED, 8.0, cause="the run ended"))
    trials = build(example.run()).tables["trials"]
    assert trials["status"].tolist() == ["done"] * 4 + ["rejected", "dropped"]
    assert trials["cause"].tolist()[4:] == ["count differs", "the run ended"]
    assert trials["ops"].tolist()[4:] == ["0", "0"]
    assert np.isnan(trials["t_start"][4:]).all() and np.isnan(trials["best_error"][4:]).all()


def test_rows_of_unknown_trials_earn_nothing() -> None:
    example = example_run()
    before = credited(build(example.run()))
    example.epochs["trial_id"][0] = 999
    content = build(example.run())
    row = content.tables["epochs"]["trial_id"].tolist().index(999)
    assert content.tables["epochs"]["ops"][row] == 0 and credited(content)[0] < before[0]


def test_rebuilding_reuses_networks_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    example, networks = example_run(), dict[int, Network]()
    first = build(example.run(), networks)
    counted: list[Architecture] = []
    monkeypatch.setattr(replay, "operations", lambda architecture: counted.append(architecture))
    second = build(example.run(), networks)
    assert not counted
    for name, columns in first.tables.items():
        for column, values in columns.items():
            assert np.array_equal(values, second.tables[name][column], equal_nan=values.dtype.kind == "f"), (
                column
            )


def test_messages_have_a_row_for_each_kind_that_was_used() -> None:
    example = example_run()
    example.ranks["messages_received"][0, 0] = 7
    messages = build(example.run()).tables["messages"]
    # Four ranks with six kinds of row and stop messages, and rank 0's received epochs.
    assert len(messages["rank"]) == 4 * 6 + 1
    assert (messages["kind"][0], messages["sent"][0], messages["received"][0]) == ("epoch", 0, 7)
    assert set(messages["channel"]) == {"point-to-point"}


def test_text_of_rows_is_cleaned_for_hdf5() -> None:
    example = example_run()
    example.trials["cause"][0] = b"x\0y caf\xc3\xa9 \xff"
    assert build(example.run()).tables["trials"]["cause"][0] == "xy café �"


def test_a_run_without_anything_is_refused() -> None:
    with pytest.raises(ValueError, match="no header"):
        build(RunCollector().snapshot())


def test_a_run_that_just_began_has_empty_tables() -> None:
    example: Example = example_run()
    collector = RunCollector()
    collector.event("open", example.header.to_dict())
    content = build(collector.snapshot())
    assert all(len(values) == 0 for columns in content.tables.values() for values in columns.values())
    assert content.attributes["end"] == "running" and math.isnan(content.attributes["best_error"])
