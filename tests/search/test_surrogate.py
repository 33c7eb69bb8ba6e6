# SPDX-License-Identifier: Apache-2.0
"""The Gaussian process: distances by matrix products, a positive definite kernel, fitted hyperparameters,
appended rows, fantasies, and degenerate data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from aiperf_mpi.network.architecture import Architecture, Base
from aiperf_mpi.network.morphism import random_chain
from aiperf_mpi.search import kernel, surrogate
from aiperf_mpi.search.distances import differences, tabulate
from aiperf_mpi.search.features import LEVELS, Features, features, plan_of, resolutions
from aiperf_mpi.search.kernel import LEAST_NOISE, Hyper, fit, stable_factor
from aiperf_mpi.search.surrogate import PREDICTED_NOISE, Observations, Units, learn, merge
from tests.helpers.search.landscape import SMALL, Landscape, error_of, population

PLAN = plan_of(SMALL)
INITIAL = Architecture(SMALL)


def some_rows(count: int, longest: int = 12, seed: int = 0, base: Base = SMALL) -> tuple[Features, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        features(random_chain(Architecture(base), rng, int(rng.integers(1, longest + 1)))[0])
        for _ in range(count)
    )


def observed(
    rows: tuple[Features, ...], values: np.ndarray, predicted: np.ndarray | None = None
) -> Observations:
    return Observations(
        rows, np.asarray(values, float), np.zeros(len(rows), bool) if predicted is None else predicted
    )


def made_up(rows: tuple[Features, ...], seed: int = 0, noise: float = 0.0) -> np.ndarray:
    """Return errors that depend on size and on the morphs of the network's first half; standard deviation
    about 0.02."""
    rng, origin = np.random.default_rng(seed), np.log2(features(INITIAL).macs)
    return np.array(
        [
            0.4
            + 0.1 * np.tanh((np.log2(row.macs) - origin) / 4)
            - 0.005 * row.slots[:, :25].sum()
            + noise * rng.normal()
            for row in rows
        ]
    )


# -- distances and kernel --------------------------------------------------------------------------


@pytest.mark.parametrize("base", [SMALL, Base(image_size=16, channels=2, classes=3, width=2, blocks=(2, 1))])
def test_distances_by_matrix_products_are_the_l1_distances(base: Base) -> None:
    plan, few, many = plan_of(base), some_rows(15, 6, 1, base), some_rows(40, 20, 2, base)
    # Rows of the second table are far outside of the box of the first, and vice versa.
    for first, second in ((few, many), (many, few)):
        table = tabulate(second, plan)
        distances = differences(tabulate(first, plan, table), table)
        left, right = resolutions(first, plan), resolutions(second, plan)
        for level, name in enumerate(LEVELS):
            expected = cdist(left[name].astype(float), right[name].astype(float), "cityblock")
            tolerance = 1e-9 if name == "size" else 0.0
            assert np.abs(distances[level] - expected).max() <= tolerance


@pytest.mark.parametrize("sharpness", [0.003, 0.05, 1.0])
def test_the_kernel_is_positive_definite(sharpness: float) -> None:
    # Without any noise: the least eigenvalue is that of a matrix of 150 different architectures.
    _, rows, _, _ = merge(some_rows(150, 30), np.zeros(150), np.ones(150))
    table = tabulate(rows, PLAN)
    hyper = Hyper(sharpness * np.array([1.0, 0.7, 0.5, 0.3, 2.0]), 1.0, LEAST_NOISE)
    assert np.linalg.eigvalsh(hyper.kernel(differences(table, table)))[0] > 1e-6


def test_the_squared_distance_gives_an_indefinite_kernel() -> None:
    # Show that the test above can fail: exp(-d^2) of the same distances, as in the authors' code, is
    # indefinite.
    _, rows, _, _ = merge(some_rows(150, 30), np.zeros(150), np.ones(150))
    table = tabulate(rows, PLAN)
    total = 0.005 * differences(table, table).sum(axis=0)
    assert np.linalg.eigvalsh(np.exp(-(total**2)))[0] < -0.1


# -- hyperparameters -------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    caught = {}

    def catch(loss, start, **options):  # type: ignore[no-untyped-def]
        caught["loss"], caught["start"] = loss, start
        return real(loss, start, **options)

    real = kernel.minimize
    monkeypatch.setattr(kernel, "minimize", catch)
    rows = some_rows(40)
    table = tabulate(rows, PLAN)
    values = Units.of(made_up(rows, noise=0.01)).standardise(made_up(rows, noise=0.01))
    fit(differences(table, table), values, np.linspace(1.0, 4.0, 40))
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = caught["start"] + rng.normal(0.0, 0.7, len(caught["start"]))
        numeric = approx_fprime(x, lambda x: caught["loss"](x)[0], 1e-6)
        assert np.allclose(caught["loss"](x)[1], numeric, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("noise", [0.02, 0.06])
def test_noise_is_separated_from_signal(noise: float) -> None:
    rows = some_rows(200, seed=3)
    clean, noisy = (made_up(rows, noise=n) for n in (0.0, noise))
    fitted = [learn(observed(rows, values), PLAN).hyper.noise for values in (clean, noisy)]
    # The noise's share of the variance is 0 and noise^2 / var; the finest level may take some of it as
    # signal.
    share = noise**2 / noisy.var()
    assert fitted[0] < 0.01 and share / 2 < fitted[1] < share * 1.5


def test_at_most_200_rows_are_fitted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = surrogate.fit
    monkeypatch.setattr(surrogate, "fit", lambda d, v, n: sizes.append(d.shape) or real(d, v, n))
    rows = some_rows(260)
    learn(observed(rows, made_up(rows)), PLAN)
    assert sizes == [(len(LEVELS), 200, 200)]


# -- the process -----------------------------------------------------------------------------------


def test_predictions_are_those_of_the_textbook() -> None:
    # Rasmussen and Williams (2006), equations 2.25, 2.26, with a constant mean by generalised least squares.
    rows, others = some_rows(60, seed=4), some_rows(20, seed=5)
    values = made_up(rows, noise=0.01)
    process = learn(observed(rows, values), PLAN)
    hyper, table, asked = process.hyper, tabulate(rows + others, PLAN), slice(60, 80)
    covariance = hyper.kernel(differences(table, table))
    known = covariance[:60, :60] + hyper.noise * np.eye(60)
    standard = process.units.standardise(values)
    inverse, ones = np.linalg.inv(known), np.ones(60)
    mean = ones @ inverse @ standard / (ones @ inverse @ ones)
    expected = mean + covariance[asked, :60] @ inverse @ (standard - mean)
    variance = hyper.signal - np.einsum(
        "ij,jk,ik->i", covariance[asked, :60], inverse, covariance[asked, :60]
    )
    mean_error, deviation = process.predict(others)
    assert np.allclose(mean_error, process.units.centre + process.units.scale * expected, atol=1e-9)
    assert np.allclose(deviation, process.units.scale * np.sqrt(variance), atol=1e-9)


def test_appended_rows_are_a_fresh_factorisation() -> None:
    rows = some_rows(90, seed=6)
    values, predicted = made_up(rows, noise=0.01), np.arange(90) % 3 == 0
    first = learn(Observations(rows[:60], values[:60], predicted[:60]), PLAN)
    grown = first.append(Observations(rows[60:75], values[60:75], predicted[60:75]))
    grown = grown.append(Observations(rows[75:], values[75:], predicted[75:]))
    table = tabulate(rows, PLAN)
    noise = np.where(predicted, PREDICTED_NOISE, 1.0)
    covariance = grown.hyper.kernel(differences(table, table)) + grown.hyper.noise * np.diag(noise)
    assert np.allclose(grown.lower, np.linalg.cholesky(covariance), atol=1e-10)
    assert np.allclose(covariance @ grown.weights, grown.values - grown.mean, atol=1e-9)
    assert grown.hyper is first.hyper and len(grown) == 90


def test_fantasies_leave_the_mean_and_lower_the_uncertainty_around() -> None:
    rows, pending, others = some_rows(50, seed=7), some_rows(6, seed=8), some_rows(30, seed=9)
    process = learn(observed(rows, made_up(rows, noise=0.01)), PLAN)
    imagined = process.imagine(pending)
    before, after = process.predict(others + pending), imagined.predict(others + pending)
    assert np.allclose(before[0], after[0], atol=1e-12)
    assert (after[1] <= before[1] + 1e-12).all()
    assert (after[1][30:] < 0.8 * before[1][30:]).all()
    # Kriging believer: equal to observing the expected values, as the mean shows.
    believed = process.append(observed(pending, process.predict(pending)[0])).predict(others)
    assert np.allclose(believed[0], after[0][:30], atol=1e-9) and np.allclose(
        believed[1], after[1][:30], atol=1e-9
    )
    with pytest.raises(ValueError, match="cannot follow fantasies"):
        imagined.append(observed(pending, np.zeros(6)))
    assert process.imagine([]) is process and process.append(observed((), np.zeros(0))) is process


def test_merged_duplicates_count_as_often_as_they_were_seen() -> None:
    rows = some_rows(30, seed=10)
    values = made_up(rows, noise=0.01)
    # Row 0 three more times, once predicted: precision 1 + 1 + 1 + 1/4.
    more = (rows[0],) * 3
    given = rows + more, np.append(values, [0.1, 0.2, 0.4]), np.append(np.ones(32), 4.0)
    places, unique, averaged, noise = merge(*given)
    assert unique == rows and places.tolist() == [*range(30), 0, 0, 0]
    assert noise[0] == pytest.approx(1 / 3.25) and (noise[1:] == 1.0).all()
    assert averaged[0] == pytest.approx((values[0] + 0.1 + 0.2 + 0.4 / 4) / 3.25)
    assert np.array_equal(averaged[1:], values[1:])

    # Merging and appending one by one give the same process.
    process = learn(observed(rows, values), PLAN)
    again = process.append(observed(more, np.array([0.1, 0.2, 0.3])))
    table = process.table
    noise = np.append(1 / 4, np.ones(29))
    known = process.hyper.kernel(differences(table, table)) + process.hyper.noise * np.diag(noise)
    merged = process.units.standardise(np.append(np.mean([values[0], 0.1, 0.2, 0.3]), values[1:]))
    inverse, ones = np.linalg.inv(known), np.ones(30)
    mean = ones @ inverse @ merged / (ones @ inverse @ ones)
    assert again.mean == pytest.approx(mean)
    cross = process.hyper.kernel(differences(table, table))
    expected = mean + cross @ inverse @ (merged - mean)
    assert np.allclose(
        again.predict(rows)[0], process.units.centre + process.units.scale * expected, atol=1e-9
    )


def test_expected_errors_of_observed_rows_need_no_distances() -> None:
    # There are duplicates among the learnt rows and the appended rows, and predicted values among both.
    rows = some_rows(50, seed=16)
    rows, more = rows + rows[:5], some_rows(8, seed=17) + rows[:2]
    process = learn(Observations(rows, made_up(rows, noise=0.02), np.arange(55) % 4 == 0), PLAN)
    assert len(process) == 50 and np.allclose(process.expected(), process.predict(rows)[0], atol=1e-9)
    grown = process.append(Observations(more, made_up(more, noise=0.02), np.arange(10) % 3 == 0))
    assert np.allclose(grown.expected(), grown.predict(rows + more)[0], atol=1e-9)
    assert np.array_equal(grown.imagine(some_rows(3, seed=18)).expected(), grown.expected())


def test_a_predicted_value_moves_the_surrogate_less() -> None:
    rows = some_rows(40, seed=11)
    values = made_up(rows, noise=0.01)
    base = learn(observed(rows[:39], values[:39]), PLAN)
    before = base.predict(rows[39:])[0][0]
    moved = [
        abs(
            base.append(observed(rows[39:], np.array([before + 0.1]), np.array([p]))).predict(rows[39:])[0][0]
            - before
        )
        for p in (False, True)
    ]
    assert 0 < moved[1] < 0.8 * moved[0]


@pytest.mark.parametrize(
    "values",
    [[0.4], [0.4] * 12, [0.4] * 11 + [0.9], [0.9] * 8 + [0.1, 0.2, 0.3, 0.3], [1e-12] * 6 + [0.0] * 6],
)
def test_degenerate_data_give_finite_predictions(values: list[float]) -> None:
    # Rows are one architecture repeated, as in a run's first round, and others with equal values.
    for rows in ((features(INITIAL),) * len(values), some_rows(len(values), 2)):
        process = learn(observed(rows, np.array(values)), PLAN)
        process = process.append(observed(rows, np.array(values))).imagine(rows)
        mean, deviation = process.predict(rows + some_rows(5))
        assert np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation >= 0).all()


def test_missing_or_infinite_values_are_refused() -> None:
    with pytest.raises(ValueError, match="0 observations"):
        learn(observed((), np.zeros(0)), PLAN)
    with pytest.raises(ValueError, match="1 have a finite value"):
        learn(observed(some_rows(2), np.array([0.1, np.nan])), PLAN)
    with pytest.raises(ValueError, match="not finite"):
        stable_factor(np.array([[np.nan]]))


def test_a_singular_matrix_gets_as_little_as_it_needs() -> None:
    lower, jitter = stable_factor(np.ones((20, 20)))
    assert 0 < jitter < 1e-6 and np.allclose(lower @ lower.T, 1.0, atol=1e-5)
    assert stable_factor(np.eye(3))[1] == 0.0


def test_a_diverged_trial_does_not_stretch_the_scale() -> None:
    values = np.append(np.linspace(0.2, 0.3, 40), [0.9, 0.9])
    units = Units.of(values)
    assert units.worst < 0.5 and units.scale < 0.06
    assert units.standardise(values)[-1] == units.standardise(np.array([0.5]))[0]
    # Good values are never clipped.
    assert np.ptp(units.standardise(np.array([0.0, 0.1]))) == pytest.approx(0.1 / units.scale)


def test_the_same_data_give_the_same_numbers() -> None:
    rows, others = some_rows(80, seed=12), some_rows(10, seed=13)
    values = made_up(rows, noise=0.02)
    first, second = (learn(observed(rows, values), PLAN).predict(others) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
    order = np.random.default_rng(0).permutation(80)
    shuffled = learn(observed(tuple(rows[i] for i in order), values[order]), PLAN).predict(others)
    assert np.allclose(first[0], shuffled[0], atol=1e-4)


def test_held_out_architectures_are_ranked() -> None:
    # A sample of the study in benchmarks/search_learning.py, which requires a median above 0.6 over 20 seeds.
    correlations, everything = [], population(SMALL)
    for seed in range(4):
        landscape, rng = Landscape(seed), np.random.default_rng((seed, 5))
        drawn = [everything[i] for i in rng.choice(len(everything), 360, replace=False)]
        rows = tuple(map(features, drawn))
        values = np.array([landscape.measure(architecture, rng) for architecture in drawn[:60]])
        process = learn(observed(rows[:60], values), PLAN)
        truth = [error_of(landscape.score(architecture)) for architecture in drawn[60:]]
        correlations.append(float(spearmanr(process.predict(rows[60:])[0], truth).statistic))
    assert np.median(correlations) > 0.6, correlations


def test_removing_an_observation_changes_what_is_expected() -> None:
    rows, others = some_rows(40, seed=14), some_rows(10, seed=15)
    values = made_up(rows, noise=0.01)
    whole = learn(observed(rows, values), PLAN).predict(others)[0]
    less = learn(observed(rows[:-1], values[:-1]), PLAN).predict(others)[0]
    assert not np.allclose(whole, less, atol=1e-6)


def test_same_observations_need_the_same_rows_and_values() -> None:
    rows, values = some_rows(5), np.arange(5.0)
    seen = observed(rows, values)
    assert seen.same(observed(rows, values.copy()))
    assert not seen.same(observed(some_rows(5), values))
    assert not seen.same(observed(rows, values + 1e-9)) and not seen.same(observed(rows[:4], values[:4]))
    assert not seen.same(dataclasses.replace(seen, predicted=~seen.predicted))
