# SPDX-License-Identifier: Apache-2.0
"""The settings of section `fault`: what goes wrong on purpose, for tests of the program itself."""

from __future__ import annotations

from dataclasses import dataclass

from aiperf_mpi.config.setting import FIXED, setting


@dataclass(frozen=True, slots=True)
class Fault:
    """Faults injected on purpose, to show their effect; the result records them like every setting."""

    raise_in_round: int = setting(
        0, "a trial of this round raises; 0: none", low=0, rule=FIXED, source="no injected fault"
    )
    raise_replica: int = setting(0, "replica of the trial that raises", low=0)
    raise_trainer: int = setting(0, "trainer of the replica that raises", low=0)
    disturb_in_round: int = setting(
        0,
        "one bit is changed on a device in a trial of this round; 0: none",
        low=0,
        rule=FIXED,
        source="no injected fault",
    )
    disturb_replica: int = setting(0, "replica of the trial whose bit is changed", low=0)
    nan_in_round: int = setting(
        0, "a trial of this round becomes NaN; 0: none", low=0, rule=FIXED, source="no injected fault"
    )
    nan_replica: int = setting(0, "replica of the trial that becomes NaN", low=0)
    hang_in_round: int = setting(
        0,
        "a step of a trial of this round never ends; 0: none",
        low=0,
        rule=FIXED,
        source="no injected fault",
    )
    hang_replica: int = setting(0, "replica of the trial that hangs", low=0)
    tamper_in_round: int = setting(
        0, "a record of this round is altered; 0: none", low=0, rule=FIXED, source="no injected fault"
    )
    tamper_replica: int = setting(0, "replica whose record is altered", low=0)
    untimed_sleep_seconds: float = setting(
        0.0, "sleep outside of every phase", low=0, high=3600, rule=FIXED, source="no injected fault"
    )
    untimed_sleep_rank: int = setting(0, "rank that sleeps", low=0)
