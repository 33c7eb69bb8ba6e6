# SPDX-License-Identifier: Apache-2.0
"""Our loop and pmap add almost nothing to a bare loop and jit of the same step; the benchmark's
statistics."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.training_loop import Spent, bare, compiled_as, images_of, measure, ours, paired, ratio, table


def test_the_bounds_of_a_ratio_hold_its_median() -> None:
    # Every pair 10 % dearer: no spread. With one pair of ten twice as dear, the median stays and the bound as
    # well.
    exact = [(Spent(1.1, 2.2), Spent(1.0, 2.0))] * 9
    assert ratio(exact, "wall") == pytest.approx({"median": 1.1, "low": 1.1, "high": 1.1})
    assert ratio([*exact, (Spent(2.0, 1.0), Spent(1.0, 1.0))], "wall")["median"] == pytest.approx(1.1)

    # Half of the pairs at 1.0, half at 1.2: the median of a sample is anything between.
    mixed = [(Spent(x, x), Spent(1.0, 1.0)) for x in (1.0, 1.2)] * 10
    interval = ratio(mixed, "cpu")
    assert (
        interval["median"] == pytest.approx(1.1)
        and interval["low"] == 1.0
        and interval["high"] == pytest.approx(1.2)
    )


def test_pairs_take_turns() -> None:
    order: list[str] = []

    def one(name: str) -> Spent:
        order.append(name)
        return Spent(1.0, 1.0)

    assert len(paired(lambda: one("a"), lambda: one("b"), 3)) == 3
    # A first time that does not count, then a b, b a, a b.
    assert "".join(order) == "ababbaab"


@pytest.mark.full
@pytest.mark.timeout(900)
def test_loop_and_pmap_cost_at_most_a_twentieth() -> None:
    """At steps of at least 40 ms on two cores, in processor seconds, which other work hardly changes."""
    rows = measure(pairs=12, steps=10)
    assert all(row["step_cpu_ms"] >= 40 for row in rows), table(rows)
    assert all(row["cpu"]["high"] <= 1.05 for row in rows), table(rows)


@pytest.mark.full
def test_both_loops_take_the_same_steps() -> None:
    compiled, batches = compiled_as("pmap"), images_of(3)
    for spent in (bare(compiled, batches), ours(compiled, batches)):
        assert spent.wall > 0 and np.isfinite(spent.cpu)
