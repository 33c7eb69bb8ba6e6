# SPDX-License-Identifier: Apache-2.0
"""Several generators: no duplicates, the same proposal with any number of ranks, a long history read fast."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiperf_mpi.trials.record import RECORD_DTYPE
from tests.helpers.parallel.mpi import Reports

#: One thread for each rank's linear algebra: the ranks share the cores.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("generators", "proposals"),
    [(4, 50), *(pytest.param(*case, marks=pytest.mark.full) for case in ((4, 100), (32, 2000)))],
)
def test_no_duplicates(
    generators: int, proposals: int, mpich: str, run_program: Callable[..., Reports]
) -> None:
    reports = run_program(
        mpich, generators + 1, "generator/many_generators", proposals, 40, env=ONE_THREAD, timeout=1200
    )
    keys, log = [key for report in reports for key in report["keys"]], reports[0]

    # Every proposal is a claim's winner and a record, and none is there twice.
    assert len(keys) >= proposals and len(set(keys)) == len(keys)
    assert sorted(keys) == sorted(log["logged"]) and log["kinds"] == [log["proposed"]]

    # Each generator worked, without JAX, and counted in what others had proposed.
    assert all(report["keys"] and not report["jax"] for report in reports[1:])
    assert max(report["pending"] for report in reports[1:]) > proposals // 2

    seconds = max(report["seconds"] for report in reports)
    refused = sum(report["refused"] for report in reports)
    print(
        f"\n{generators} generators: {len(keys)} proposals in {seconds:.1f} s, {len(keys) / seconds:.1f} a "
        f"second; "
        f"claims refused {refused} duplicates"
    )


@pytest.mark.mpi
@pytest.mark.parametrize("numbers", [(2, 3), pytest.param((2, 3, 4, 7), marks=pytest.mark.full)], ids=str)
def test_the_same_proposal_among_any_number_of_ranks(
    numbers: tuple[int, ...], mpich: str, run_program: Callable[..., Reports]
) -> None:
    found = [
        run_program(mpich, ranks, "generator/same_proposal", 40, env=ONE_THREAD)[-1] for ranks in numbers
    ]
    assert all(one == found[0] for one in found)

    # With or without memory it is the same; further attempts and shorter histories give others.
    assert found[0]["kept"] == found[0]["fresh"] and len({*found[0]["kept"], *found[0]["early"]}) == 5

    # Through the thread, too, except the checksum, which includes the time and the trial's number.
    assert found[0]["whole"] == found[0]["fresh"][0][:-8]
    assert len(found[0]["whole"]) == 2 * RECORD_DTYPE.itemsize - 8


@pytest.mark.mpi
@pytest.mark.full
def test_a_fresh_generator_reads_ten_thousand_trials(mpich: str, run_program: Callable[..., Reports]) -> None:
    report = run_program(mpich, 2, "generator/fresh_generator", 10_000, 500, env=ONE_THREAD)[1]
    assert report["trials"] == 10_000 and report["whole"] and report["alike"]

    # 10,000 records in answers of 256: 40 polls. One by one each costs a poll of 2 ms at least.
    assert report["answers"] == 40
    together, singly = report["together"] / 10_000, report["singly"] / 500
    assert together < singly / 10
    assert report["asked_again"] == 0
    print(
        f"\na record costs {1e6 * together:.0f} us together, {1e6 * singly:.0f} us one by one; all 10,000 "
        f"together "
        f"{report['together']:.2f} s; the first thought, of {report['needed']} records, "
        f"{report['thought']:.1f} s"
    )
