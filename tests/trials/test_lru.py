# SPDX-License-Identifier: Apache-2.0
"""The bounded dictionary: which entry leaves, and what counts as a use."""

from __future__ import annotations

from aiperf_mpi.trials.lru import LruCache


def test_the_least_recently_used_entry_is_dropped() -> None:
    cache: LruCache[int, str] = LruCache(2)
    cache.put(1, "one")
    cache.put(2, "two")
    assert cache.get(1) == "one"
    cache.put(3, "three")
    assert [cache.get(key) for key in (1, 2, 3)] == ["one", None, "three"]
    assert len(cache) == 2


def test_a_value_put_again_is_used_and_replaced() -> None:
    cache: LruCache[int, str] = LruCache(2)
    for key, value in ((1, "old"), (2, "two"), (1, "new"), (3, "three")):
        cache.put(key, value)
    assert [cache.get(key) for key in (1, 2, 3)] == ["new", None, "three"]
