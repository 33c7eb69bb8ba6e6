# SPDX-License-Identifier: Apache-2.0
"""Hyperparameters: which cells are chosen, and that a chosen kernel really is in the network and in its count."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from aiperf_mpi.opcount.analytical import operations
from aiperf_mpi.search.architecture import Architecture, Base, Morph
from aiperf_mpi.search.history import ArrayHistory, HistoryView
from aiperf_mpi.search.hpo import OPTIMISERS, Choice, make_hpo, tune
from aiperf_mpi.search.morphism import Limits
from aiperf_mpi.search.nas import Proposal
from aiperf_mpi.search.record import Candidate

INITIAL = Architecture(Base(image_size=32, channels=1, classes=10, width=4))
KERNELS, BATCHES = (3, 5, 7), (16, 32)


def proposal(*own: Morph) -> Proposal:
    return Proposal(0, own, INITIAL.apply(*own))


def empty() -> HistoryView:
    return HistoryView.of(ArrayHistory(2), INITIAL)


@pytest.mark.parametrize("method", OPTIMISERS)
def test_every_cell_is_reached_and_nothing_else(method: str) -> None:
    hpo = make_hpo(method, kernels=KERNELS, batches=BATCHES)
    rng = np.random.default_rng(0)
    drawn = Counter(hpo.suggest(empty(), proposal(Morph("wider", 3)), rng) for _ in range(600))
    # 100 for each of the 6 cells, standard deviation 9.
    assert set(drawn) == {Choice(k, b) for k in KERNELS for b in BATCHES}
    assert min(drawn.values()) > 60
    assert all(type(c.kernel_size) is int and type(c.batch_per_device) is int for c in drawn)


@pytest.mark.parametrize("method", OPTIMISERS)
def test_the_same_stream_gives_the_same_cell(method: str) -> None:
    hpo = make_hpo(method, kernels=KERNELS, batches=BATCHES)
    first, second = (hpo.suggest(empty(), proposal(Morph("wider", 3)), np.random.default_rng(4)) for _ in range(2))
    assert first == second


def test_the_grid_is_filled_evenly_and_ignores_the_warm_up() -> None:
    log = ArrayHistory(64)
    hpo = make_hpo("grid", kernels=KERNELS, batches=BATCHES, from_round=4)

    def record(choice: Choice, round: int, unit: int) -> None:
        own = (Morph("deeper", unit, 0, 3),)
        architecture, kernel = tune(proposal(*own), choice)
        log.append(Candidate.new(architecture, architecture.morphs, parent_id=0, replica=0, generator=0, round=round,
                                 batch_per_device=choice.batch_per_device, devices=1, seed=0,
                                 kernel_size=kernel).to_record(0.0))
        log.refresh()

    for unit in range(6):
        record(Choice(3, 16), 1, unit)
    chosen = []
    for unit in range(12):
        chosen.append(hpo.suggest(HistoryView.of(log, INITIAL), proposal(Morph("wider", 3)),
                                  np.random.default_rng(unit)))
        record(chosen[-1], 4, unit)
    assert set(Counter(chosen).values()) == {2} and len(set(chosen)) == 6
    assert len(set(chosen[:6])) == 6


def test_the_kernel_is_in_the_network_its_hash_and_its_count() -> None:
    own = (Morph("deeper", 5, 0, 3), Morph("wider", 8), Morph("deeper", 20, 0, 3))
    plain = proposal(*own)
    tuned, kernel = tune(plain, Choice(5, 16))
    assert kernel == 5
    assert {u.id: u.kernel for u in tuned.units if u.id >= 49} == {49: 5, 50: 5}
    assert tuned.hash != plain.architecture.hash and tuned.group(3) == plain.architecture.group(3)
    # Two 3x3 convolutions became 5x5: 16 more taps for each input, output and place, 2 operations a MAC forward and
    # 2 * 2 backward (input and weight gradient), and 2 for the update of each weight.
    shapes = {layer.name: layer for layer in tuned.layers()}
    more = 0
    for name in ("unit049.conv", "unit050.conv"):
        height, width, channels = shapes[name].out_shape
        more += 16 * shapes[name].in_shape[2] * channels * ((2 + 4) * height * width + 2)
    assert operations(tuned)[0] - operations(plain.architecture)[0] == more


def test_without_an_own_deeper_the_default_stays() -> None:
    plain = proposal(Morph("wider", 8), Morph("kernel", 4, 0, 3))
    assert tune(plain, Choice(7, 16)) == (plain.architecture, 3)
    grown = proposal(Morph("deeper", 5, 0, 3), Morph("kernel", 49, 0, 5))
    assert tune(grown, Choice(7, 16)) == (grown.architecture, 3)


def test_a_kernel_beyond_the_limits_is_not_taken() -> None:
    plain = proposal(Morph("deeper", 40, 0, 3))
    limits = Limits(parameters=plain.architecture.parameters + 1000)
    assert tune(plain, Choice(7, 16), limits) == (plain.architecture, 3)
    assert tune(plain, Choice(7, 16))[1] == 7


def test_an_impossible_optimiser_is_refused() -> None:
    with pytest.raises(ValueError, match="none of random, grid"):
        make_hpo("tpe")
    with pytest.raises(ValueError, match="must not be empty"):
        make_hpo("random", batches=())
    assert dataclasses.asdict(Choice(3, 16)) == {"kernel_size": 3, "batch_per_device": 16}
