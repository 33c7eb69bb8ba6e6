# SPDX-License-Identifier: Apache-2.0
"""Hyperparameters: the chosen cells, and that a chosen kernel is in the network and in its count."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import time
from collections import Counter

import numpy as np
import pytest

from aiperf_mpi.network.architecture import Architecture, Base, Morph
from aiperf_mpi.network.morphism import Limits
from aiperf_mpi.opcount.analytical import operations
from aiperf_mpi.search import hpo as hpo_module
from aiperf_mpi.search.cells import Choice
from aiperf_mpi.search.effects import observe
from aiperf_mpi.search.features import features
from aiperf_mpi.search.hpo import OPTIMISERS, Hpo, Space, make_hpo, recommend, tune
from aiperf_mpi.search.knowledge import Memory, learn_from
from aiperf_mpi.search.nas import Proposal
from aiperf_mpi.streams import HPO, stream
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.record import DONE, FAILED, STOPPED
from aiperf_mpi.trials.view import START, HistoryView
from tests.helpers.search.cell_landscape import CellLandscape, Study
from tests.helpers.trials.twins import ArrayHistory

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
    drawn = Counter(hpo.suggest(empty(), proposal(Morph("deeper", 5, 0, 3)), rng).choice for _ in range(600))
    # 100 are expected for each of the 6 cells, standard deviation 9.
    assert set(drawn) == {Choice(k, b) for k in KERNELS for b in BATCHES}
    assert min(drawn.values()) > 60
    assert all(type(c.kernel_size) is int and type(c.batch_per_device) is int for c in drawn)


@pytest.mark.parametrize("method", OPTIMISERS)
def test_the_same_stream_gives_the_same_cell(method: str) -> None:
    hpo = make_hpo(method, kernels=KERNELS, batches=BATCHES)
    child = proposal(Morph("deeper", 5, 0, 3))
    first, second = (hpo.suggest(empty(), child, np.random.default_rng(4)) for _ in range(2))
    assert first == second


def test_the_grid_is_filled_evenly_and_ignores_the_warm_up() -> None:
    log = ArrayHistory(64)
    hpo = make_hpo("grid", kernels=KERNELS, batches=BATCHES, from_round=4)

    def record(choice: Choice, round: int, unit: int) -> None:
        own = (Morph("deeper", unit, 0, 3),)
        architecture, kernel = tune(proposal(*own), choice)
        log.append(
            Candidate.new(
                architecture,
                architecture.morphs,
                parent_id=0,
                replica=0,
                generator=0,
                round=round,
                batch_per_device=choice.batch_per_device,
                devices=1,
                seed=0,
                kernel_size=kernel,
            ).to_record(0.0)
        )
        log.refresh()

    for unit in range(6):
        record(Choice(3, 16), 1, unit)
    chosen = []
    for unit in range(12):
        chosen.append(
            hpo.suggest(
                HistoryView.of(log, INITIAL), proposal(Morph("deeper", 5, 0, 3)), np.random.default_rng(unit)
            ).choice
        )
        record(chosen[-1], 4, unit)
    assert set(Counter(chosen).values()) == {2} and len(set(chosen)) == 6
    assert len(set(chosen[:6])) == 6


def test_the_grid_counts_only_trials_that_could_take_a_kernel() -> None:
    # 9 trials of batch 16 have no `deeper`; kernel 3 in their records was not chosen. The table with kernels
    # therefore counts no trial, the row of batches counts batch 16 nine times.
    log, hpo = ArrayHistory(64), make_hpo("grid", kernels=KERNELS, batches=BATCHES, from_round=4)
    for unit in range(9):
        own = (Morph("wider", unit),)
        log.append(
            Candidate.new(
                INITIAL.apply(*own),
                own,
                parent_id=0,
                replica=0,
                generator=0,
                round=4,
                batch_per_device=16,
                devices=1,
                seed=0,
            ).to_record(0.0)
        )
    log.refresh()
    view, deeper = HistoryView.of(log, INITIAL), proposal(Morph("deeper", 5, 0, 3))
    drawn = {hpo.suggest(view, deeper, np.random.default_rng(seed)).choice for seed in range(60)}
    assert drawn == {Choice(k, b) for k in KERNELS for b in BATCHES}
    chosen = hpo.suggest(view, proposal(Morph("wider", 20)), np.random.default_rng(0))
    assert chosen.choice == Choice(3, 32)


def test_the_kernel_is_in_network_hash_and_count() -> None:
    own = (Morph("deeper", 5, 0, 3), Morph("wider", 8), Morph("deeper", 20, 0, 3))
    plain = proposal(*own)
    tuned, kernel = tune(plain, Choice(5, 16))
    assert kernel == 5
    assert {u.id: u.kernel for u in tuned.units if u.id >= 49} == {49: 5, 50: 5}
    assert tuned.hash != plain.architecture.hash and tuned.group(3) == plain.architecture.group(3)
    # Two 3x3 convolutions became 5x5: 16 more taps for each input, output and position. Each tap is 2
    # operations forward, 2 * 2 backward (input and weight gradient), and 2 for the update of each weight.
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


def test_a_kernel_beyond_the_limits_is_not_used() -> None:
    plain = proposal(Morph("deeper", 40, 0, 3))
    limits = Limits(parameters=plain.architecture.parameters + 1000)
    assert tune(plain, Choice(7, 16), limits) == (plain.architecture, 3)
    assert tune(plain, Choice(7, 16))[1] == 7


def test_an_impossible_optimiser_is_refused() -> None:
    with pytest.raises(ValueError, match="none of bayesian, tpe, grid, random"):
        make_hpo("TPE")
    with pytest.raises(ValueError, match="must not be empty"):
        make_hpo("random", batches=())
    assert dataclasses.asdict(Choice(3, 16)) == {"kernel_size": 3, "batch_per_device": 16}


def test_the_design_is_three_cells_and_the_optimiser_follows() -> None:
    study, cells = studied("bayesian", 3, 0.4, 0), set()
    assert study.hpo is not None
    for number in range(3):
        suggestion = study.hpo.suggest(study.view(), study.proposal(), np.random.default_rng(number))
        assert (suggestion.tuned_by, suggestion.expected) == ("design", None)
        trained = study.train(4)
        cells.add((trained.kernel_size, trained.batch_per_device))
    assert len(cells) == 3
    suggestion = study.hpo.suggest(study.view(), study.proposal(), np.random.default_rng(0))
    assert suggestion.tuned_by == "optimiser" and suggestion.expected is not None


@pytest.mark.parametrize("seed", [1, 3])
def test_what_is_expected_comes(seed: int) -> None:
    # After 20 trials: 40 others have errors with a spread of 1.4 standard deviations of the cells (cells and
    # architectures 1 each, and noise 0.2), 0.028. The surrogate alone knows nothing of the cells. If the
    # expected deviations are right, 95 % of the errors lie within two of them.
    study, memory = studied("random", seed, 0.2, 20, 1.0), Memory()
    view, apart, alone, inside = study.view(), [], [], 0
    known = learn_from(view, START, memory)
    for trial in range(40):
        child, rng = study.proposal(), np.random.default_rng((seed, trial))
        cells = Space().cells(child)
        cell, observed = int(rng.integers(15)), observe(view, known, cells, 4)
        expected = hpo_module._expect(cells, observed, child, cell)
        tuned, _ = tune(child, cells.choice(cell))
        surrogate = known.process.expect(features(tuned))
        assert expected is not None and surrogate is not None
        error = study.measured(child, cells.choice(cell), rng)
        apart.append(error - expected.error)
        alone.append(error - surrogate.error)
        inside += abs(apart[-1]) <= 2 * expected.deviation
    assert inside >= 32, inside
    assert np.square(apart).sum() < 0.5 * np.square(alone).sum(), (apart, alone)


# -- learning --------------------------------------------------------------------------------------


def studied(method: str, seed: int, noise: float, trials: int = 30, architectures: float = 0.0) -> Study:
    """Return a study of `trials` optimised trials after a warm-up."""
    study = Study(CellLandscape(seed, noise, architectures), make_hpo(method), seed)
    for _ in range(trials):
        study.train(4)
    return study


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.2, 0.4])
@pytest.mark.parametrize("method", ["bayesian", "tpe"])
def test_the_best_cell_is_recommended(method: str, noise: float) -> None:
    # A sample of the full set below. Chance finds 1 of 15 cells, so 3 of 4 with probability 4 * 15**-3 = 0.1
    # %.
    assert sum(studied(method, seed, noise).found() for seed in range(4)) >= 3


@pytest.mark.full
@pytest.mark.parametrize("noise", [0.2, 0.4])
@pytest.mark.parametrize("method", ["bayesian", "tpe"])
def test_the_best_cell_is_recommended_in_20_seeds(method: str, noise: float) -> None:
    assert sum(studied(method, seed, noise).found() for seed in range(20)) >= 16


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bayesian", "tpe"])
def test_a_suggestion_at_500_observations_is_cheap(method: str) -> None:
    study = studied("random", 3, 0.4, 500)
    seconds = []
    for seed in range(5):
        # A first suggestion imports the libraries and fits the surrogate; the second is timed.
        hpo = make_hpo(method)
        hpo.suggest(study.view(), study.proposal(), np.random.default_rng(seed))
        before = time.process_time()
        hpo.suggest(study.view(), study.proposal(), np.random.default_rng(seed))
        seconds.append(time.process_time() - before)
    assert sorted(seconds)[2] <= 0.2, seconds


@pytest.mark.parametrize("method", ["bayesian", "tpe"])
def test_suggestions_do_not_depend_on_what_is_kept(method: str) -> None:
    study = studied(method, 4, 0.4, 12)
    view, child = study.view(), study.proposal()
    fresh = make_hpo(method).suggest(view, child, np.random.default_rng(9))
    assert study.hpo is not None
    assert study.hpo.suggest(view, child, np.random.default_rng(9)) == fresh
    assert all(type(number) is int for number in dataclasses.astuple(fresh.choice))
    best = recommend(view, Space().cells(child))
    assert best is not None and all(type(number) is int for number in dataclasses.astuple(best.choice))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bayesian", "tpe"])
def test_generators_with_one_snapshot_get_several_cells(method: str) -> None:
    for trials in (15, 30):
        study = studied(method, 5, 0.4, trials)
        view, child, hpo = study.view(), study.proposal(), study.hpo
        assert hpo is not None
        drawn = Counter(
            hpo.suggest(view, child, stream(HPO, 5, generator, 0, view.length)).choice
            for generator in range(32)
        )
        assert len(drawn) >= 2 and max(drawn.values()) <= 30, drawn


def test_a_pending_trial_lowers_uncertainty_and_changes_no_expectation() -> None:
    # A grid of 15 trials has observed all 15 cells, so that the process's hyperparameters are fitted.
    study = studied("grid", 5, 0.4, 15)
    cells, view = Space().cells(study.proposal()), study.view()
    observed = observe(view, learn_from(view, START, Memory()), cells, 4)

    def posterior(pending: int) -> tuple[np.ndarray, np.ndarray]:
        some = dataclasses.replace(observed, pending=np.full(15, pending) * (np.arange(15) == 7))
        fitted, values, weights = hpo_module._imagined(cells, some)
        process = hpo_module._process(cells, 1.0 / weights, fitted.kernel_)
        positions = hpo_module._positions(cells)
        means, covariance = process.fit(positions, values).predict(positions, return_cov=True)
        return means, covariance

    # One pending trial of cell 7 counts as its mean with the noise N of one trial. With the covariance C of
    # the cells, the variance of cell i falls by C[i, 7]^2 / (C[7, 7] + N).
    (means, covariance), (imagined, after) = posterior(0), posterior(1)
    assert (observed.weights > 0).all() and np.allclose(imagined, means, atol=1e-6)
    expected = np.diag(covariance) - covariance[:, 7] ** 2 / (covariance[7, 7] + observed.noise)
    assert np.allclose(np.diag(after), expected, rtol=1e-6)


@pytest.mark.parametrize("method", ["bayesian", "tpe"])
def test_generators_that_see_each_others_pending_trials_spread(method: str) -> None:
    study = studied(method, 5, 0.4, 15)
    pending = [study.train(4, end=False) for _ in range(32)]
    # A process that is certain about its best cell stays with it; cells around it are tried too.
    assert len({(c.kernel_size, c.batch_per_device) for c in pending}) > 1


@pytest.mark.parametrize("method", ["bayesian", "tpe"])
def test_only_finite_errors_are_passed_to_the_optimiser(method: str) -> None:
    study = studied(method, 6, 0.4, 6)
    for status, error in ((FAILED, math.nan), (DONE, math.nan), (STOPPED, math.inf), (DONE, math.inf)):
        study.log.append(study.train(4, end=False).outcome(status, 1.0, best_error=error))
    for _ in range(4):
        study.train(4)
    assert recommend(study.view(), Space().cells(study.proposal())) is not None


def test_a_cell_with_failing_trials_is_left() -> None:
    """Like a batch that is too large for the memory: all its trials fail, so the search must leave it."""
    study = studied("bayesian", 7, 0.2, 10)
    failed = 0
    for _ in range(25):
        candidate = study.train(4, end=False)
        broken = candidate.batch_per_device == 512
        failed += broken
        error = study.landscape.measure(candidate, study.space, study.noise)
        study.log.append(
            candidate.outcome(FAILED if broken else DONE, 1.0, best_error=math.nan if broken else error)
        )
    # A random choice among the 15 cells, 3 of them broken, would lose 25 * 3 / 15 = 5 trials on average.
    best = recommend(study.view(), Space().cells(study.proposal()))
    assert best is not None and best.choice.batch_per_device != 512
    assert failed <= 8


def test_only_trials_with_a_tuned_kernel_inform_about_kernels() -> None:
    view = studied("random", 8, 0.2, 12).view()
    hpo: Hpo = make_hpo("bayesian")
    wider = proposal(Morph("wider", 3))
    chosen = hpo.suggest(view, wider, np.random.default_rng(0))
    assert chosen.choice.kernel_size == 3
    best = recommend(view, Space().cells(wider))
    assert best is not None and best.choice.kernel_size == 3


def test_tpe_without_optuna_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'aiperf_mpi\[tpe\]'"):
        make_hpo("tpe")
