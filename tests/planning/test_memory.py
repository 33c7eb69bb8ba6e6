# SPDX-License-Identifier: Apache-2.0
"""The judgement of memory: refused is what cannot fit, at the limit that is too low, with its ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aiperf_mpi.config import Config, load
from aiperf_mpi.machine.limits import HOST, Level
from aiperf_mpi.planning.memory import image_bytes, judge, need_of
from aiperf_mpi.planning.rank_resources import RankResources

GIB = 2**30
GROUP = "/sys/fs/cgroup/job_7"


def config(images: int = 2**28) -> Config:
    """Make a run on made-up images: the labels of 2^28 are 1 GiB; no validation image to speak of."""
    size = ["data.image_size=32", "data.channels=1", "data.val_images=1", "data.name=synthetic"]
    return load("demo", (), [*size, f"data.train_images={images - 1}"])


def rank(number: int, *levels: Level, role: str = "trainer", host: str = "n1") -> RankResources:
    return RankResources(number, host, role, memory=(Level(HOST, 64 * GIB, 64 * GIB), *levels))


def test_images_are_counted_for_each_trainer() -> None:
    assert image_bytes(config()) == GIB
    assert image_bytes(load("imagenet", (), ["data.path=/x"])) == 0


@pytest.mark.parametrize(("free", "level"), [(4.0, "ok"), (2.5, "warn"), (2.1, "fail"), (0.0, "fail")])
def test_two_trainers_share_a_group(free: float, level: str) -> None:
    """2 x 1 GiB of images and 2 x 0.1 GB are the least: 2.19 GiB; with 2 x 0.5 GB about 2.93 GiB are needed,
    which is over 0.8 x 2.5 and under 0.8 x 4."""
    group = Level(GROUP, 8 * GIB, int(free * GIB))
    (found,) = judge([rank(1, group), rank(2, group)], config(), {})
    assert found.level == level
    if level != "ok":
        assert found.text.startswith("ranks 1-2 on n1") and GROUP in found.text and "--mem=0" in found.remedy


def test_windows_count_where_they_are() -> None:
    group = Level(GROUP, 8 * GIB, 2 * GIB)
    assert judge([rank(1, group)], config(), {"n2": GIB})[0].level == "ok"
    (found,) = judge([rank(1, group)], config(), {"n1": GIB})
    assert found.level == "fail" and "1.0 GiB windows" in found.text


def test_each_group_has_its_own_ranks() -> None:
    """Tasks in groups of their own do not share; the host above them does."""
    tasks = [rank(number, Level(f"{GROUP}/task_{number}", 2 * GIB, 2 * GIB)) for number in (1, 2)]
    assert [one.level for one in judge(tasks, config(), {})] == ["ok"]
    small = [replace(one, memory=(Level(HOST, 2 * GIB, 2 * GIB), *one.memory[1:])) for one in tasks]
    (found,) = judge(small, config(), {})
    assert found.level == "fail" and "the host leaves" in found.text and "fewer ranks" in found.remedy


def test_the_coordinator_takes_nothing() -> None:
    low = Level(GROUP, 2**20, 2**20)
    assert judge([rank(0, low, role="coordinator")], config(), {})[0].level == "ok"
    assert judge([rank(3, low, role="generator")], config(), {})[0].level == "fail"


@pytest.mark.parametrize(
    ("kib", "level"), [(1_000_000, "fail"), (2_000_000, "fail"), (4_000_000, "warn"), (16_000_000, "ok")]
)
def test_the_address_space_of_a_process(kib: int, level: str) -> None:
    """JAX reserves 1.25 GB, the images take 1.07 GB: 2.33 GB at least, and 5.07 GB without a warning."""
    own = Level("ulimit -v", kib * 1024, kib * 1024, shared=False)
    (found,) = judge([replace(rank(1, own), on_cpu=True)], config(), {})
    assert found.level == level and (level == "ok" or "ulimit -v unlimited" in found.remedy)


def test_an_accelerator_needs_addresses_without_limit() -> None:
    own = Level("ulimit -v", 16 * GIB, 16 * GIB, shared=False)
    assert judge([rank(1, own)], config(), {})[0].level == "warn"


def test_a_network_on_cpus_counts() -> None:
    least = need_of(config(), rank(1)).least
    assert need_of(config(), replace(rank(1), on_cpu=True)).least > least


def test_memory_that_is_not_known_is_a_warning_in_words() -> None:
    (found,) = judge([replace(rank(1), memory=())], config(), {})
    assert found.level == "warn" and "/proc/meminfo cannot be read" in found.text and "mount" in found.remedy
