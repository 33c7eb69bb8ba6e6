# SPDX-License-Identifier: Apache-2.0
"""Random streams: repeatable, and different wherever one of their coordinates differs."""

from __future__ import annotations

import numpy as np
import pytest

from aiperf_mpi import streams


def draw(*place: int) -> tuple[float, ...]:
    return tuple(streams.stream(*place).random(4))


def test_a_stream_repeats() -> None:
    assert draw(streams.SEARCH, 2021, 3, 1, 40) == draw(streams.SEARCH, 2021, 3, 1, 40)
    # numpy guarantees that SeedSequence and PCG64 never change, so a seed gives the same numbers in each
    # version.
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence((2021, 1, 3, 1, 40)))).random(4)
    assert draw(streams.SEARCH, 2021, 3, 1, 40) == tuple(expected)


def test_each_coordinate_gives_another_stream() -> None:
    place = (streams.SEARCH, 2021, 3, 1, 40)
    others = [(streams.HPO, *place[1:])] + [(*place[:i], place[i] + 1, *place[i + 1 :]) for i in range(1, 5)]
    assert len({draw(*other) for other in [place, *others]}) == 6


def test_the_numbers_of_purposes_never_change() -> None:
    assert streams.PURPOSES == {"SEARCH": 1, "INIT": 2, "DATA": 3, "AUGMENT": 4, "HPO": 5}


def test_impossible_places_are_refused() -> None:
    with pytest.raises(ValueError, match="purpose 9"):
        streams.stream(9, 1)
    with pytest.raises(ValueError, match="negative"):
        streams.stream(streams.INIT, -1)


def test_trial_seeds_fill_64_bits_without_repeats() -> None:
    seeds = {streams.trial_seed(seed, key) for seed in range(20) for key in range(1, 201)}
    assert len(seeds) == 20 * 200
    assert max(seeds) >= 1 << 63 and all(0 <= seed < 1 << 64 for seed in seeds)
    assert draw(streams.INIT, max(seeds)) != draw(streams.INIT, min(seeds))
