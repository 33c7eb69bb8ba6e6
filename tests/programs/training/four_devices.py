# SPDX-License-Identifier: Apache-2.0
"""Measure trainings on four host devices, and print the results as one line of JSON.

The tests in test_four_devices.py run this program.
"""

from __future__ import annotations

import json

import jax
import numpy as np
import optax

from aiperf_mpi.network.architecture import resnet50
from aiperf_mpi.phases import PhaseTimer
from aiperf_mpi.training.checkpoint import digest
from aiperf_mpi.training.faults import TrainingFault
from aiperf_mpi.training.fit import FitSettings, Training
from aiperf_mpi.training.model.resnet import network
from aiperf_mpi.training.steps.compile import Compiled, compile_steps
from aiperf_mpi.training.steps.digest import Disagreement
from aiperf_mpi.training.steps.dispatch import SHARD_MAP
from aiperf_mpi.training.steps.step import StepSettings, TrainState
from tests.helpers.training.cases import TINY, batches, random_batch, started

DEVICES, BATCH, STEPS, RATE = 4, 8, 3, 0.05


def one_device_with_micro_batches(compiled: Compiled) -> tuple[dict, list[dict], list[float], list[int]]:
    """Run the training that four devices must equal, written out.

    Returns parameters, each micro-batch's statistics, and losses and correct answers of each step.
    """
    model, variables = network(resnet50(TINY)), compiled.variables(started(compiled))
    settings = compiled.settings

    @jax.jit
    def micro(params, statistics, images, labels):
        def loss_of(params):
            inputs = (images / np.float32(255) - settings.mean[0]) / settings.deviation[0]
            logits, changed = model.apply(
                {"params": params, "batch_stats": statistics}, inputs, train=True, mutable=["batch_stats"]
            )
            targets = optax.smooth_labels(jax.nn.one_hot(labels, TINY.classes), settings.label_smoothing)
            loss = optax.softmax_cross_entropy(logits, targets).mean()
            return loss, (changed["batch_stats"], (logits.argmax(-1) == labels).sum())

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    params, statistics = variables["params"], [variables["batch_stats"]] * DEVICES
    momenta = jax.tree.map(np.zeros_like, params)
    losses, correct = [], []
    for step in range(STEPS):
        images, labels = random_batch(TINY, DEVICES, BATCH, seed=step)
        results = [micro(params, statistics[d], images[d], labels[d]) for d in range(DEVICES)]
        statistics = [aux[0] for (_, aux), _ in results]
        losses.append(sum(float(loss) for (loss, _), _ in results) * BATCH)
        correct.append(sum(int(aux[1]) for (_, aux), _ in results))
        mean = jax.tree.map(lambda *g: sum(np.asarray(x) for x in g) / DEVICES, *(g for _, g in results))
        momenta = jax.tree.map(lambda m, g: settings.momentum * m + g, momenta, mean)
        params = jax.tree.map(lambda p, m: p - RATE * m, params, momenta)
    return params, statistics, losses, correct


def trained(compiled: Compiled) -> tuple[TrainState, dict]:
    """Run the same steps with the images of a step spread over the devices of `compiled`.

    Returns the state with averaged statistics, and the measurements.
    """
    state, results = started(compiled), []
    for step in range(STEPS):
        images, labels = random_batch(TINY, DEVICES, BATCH, seed=step)
        state, metrics = compiled.train(*spread(compiled, state, images, labels), compiled.scalar(RATE))
        results.append(jax.device_get(metrics))
    local = jax.device_get(state.batch_stats)
    state = state._replace(batch_stats=compiled.average(state.batch_stats))
    return state, {
        "loss": [float(metrics.loss) for metrics in results],
        "correct": [int(metrics.correct) for metrics in results],
        "images": [int(metrics.images) for metrics in results],
        "local_statistics": local,
        "statistics_differ": max(float(np.abs(x - x[:1]).max()) for x in jax.tree.leaves(local)),
    }


def spread(compiled: Compiled, state: TrainState, *arrays: np.ndarray) -> tuple:
    """Return the state and arrays [devices, batch, ...], the arrays cut for the devices of `compiled`."""
    devices = len(compiled.devices)
    return state, *(x.reshape(devices, -1, *x.shape[2:]) for x in arrays)


def evaluated(compiled: Compiled, state: TrainState) -> list:
    """Return correct answers, images and loss of an evaluation with two images that are not valid."""
    images, labels = random_batch(TINY, DEVICES, BATCH, seed=99)
    valid = np.arange(DEVICES * BATCH).reshape(DEVICES, BATCH) < DEVICES * BATCH - 2
    _, *batch = spread(compiled, state, images, labels, valid)
    metrics = compiled.evaluate(state.params, state.batch_stats, *batch)
    return [int(metrics.correct), int(metrics.images), float(metrics.loss)]


def compared(compiled: Compiled, other: Compiled) -> dict:
    """Run the same training in two forms: return the results of each, and the distance of their models."""
    (state, results), (other_state, other_results) = trained(compiled), trained(other)
    keys = ("loss", "correct", "images", "statistics_differ")
    return {
        **{key: [results[key], other_results[key]] for key in keys},
        "distance": distance(compiled.variables(state), other.variables(other_state)),
        "evaluated": [evaluated(compiled, state), evaluated(other, other_state)],
    }


def distance(tree: object, other: object) -> float:
    """Return the largest difference between two trees of arrays."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def disturbed(compiled: Compiled, at: tuple[int, int] | None) -> tuple[list[list], str]:
    """Train for two epochs of three steps, and disturb the last device after the step `at`.

    Returns [epoch, steps, partial] of each reported epoch, and the error that ends the training.
    """
    images, labels = (x.reshape(-1, *x.shape[2:]) for x in random_batch(TINY, DEVICES, STEPS * BATCH))
    run = Training(
        compiled,
        started(compiled),
        lambda epoch: batches(images, labels, DEVICES, BATCH),
        lambda: batches(images, labels, DEVICES, BATCH),
        FitSettings(2, 10, lambda epoch: RATE),
        timer=PhaseTimer(),
        poll=lambda: False,
        fault=TrainingFault(disturb_at=at),
    )
    rows: list[list] = []
    try:
        rows.extend([row.epoch, row.steps, row.partial] for row in run)
    except Disagreement as error:
        return rows, str(error)
    return rows, ""


def main() -> None:
    devices = jax.devices()
    compiled = compile_steps(resnet50(TINY), StepSettings(BATCH), devices)
    params, statistics, losses, correct = one_device_with_micro_batches(compiled)

    # The same steps on four devices, and many evaluations in flight.
    state, results = trained(compiled)
    held, local = jax.device_get((state.params, state.batch_stats)), results["local_statistics"]
    images, labels = random_batch(TINY, DEVICES, BATCH, seed=99)
    valid = np.arange(DEVICES * BATCH).reshape(DEVICES, BATCH) < DEVICES * BATCH - 2
    four = [compiled.evaluate(state.params, state.batch_stats, images, labels, valid) for _ in range(40)]

    # The same on the last one of them: all images of a step as one batch, and as four micro-batches.
    whole, accumulated, synchronised, cropped, cropped_alone = (
        compile_steps(resnet50(TINY), settings, chosen)
        for settings, chosen in (
            (StepSettings(DEVICES * BATCH), devices[3:]),
            (StepSettings(DEVICES * BATCH, accumulate=DEVICES), devices[3:]),
            (StepSettings(BATCH, synchronised=True), devices),
            (StepSettings(BATCH, augmentation="resized_crop"), devices),
            (StepSettings(DEVICES * BATCH, accumulate=DEVICES, augmentation="resized_crop"), devices[3:]),
        )
    )
    sharded = compile_steps(resnet50(TINY), StepSettings(BATCH), devices, SHARD_MAP)
    placed = whole.start(compiled.variables(state), np.random.default_rng(0))

    print(
        json.dumps(
            {
                "devices": len(devices),
                "loss": results["loss"],
                "expected_loss": losses,
                "correct": results["correct"],
                "expected_correct": correct,
                "images": results["images"],
                "parameter_distance": distance(jax.tree.map(lambda x: x[0], held[0]), params),
                "local_statistics_distance": max(
                    distance(jax.tree.map(lambda x, d=d: x[d], local), statistics[d]) for d in range(DEVICES)
                ),
                "local_statistics_differ": results["statistics_differ"],
                "average_distance": distance(
                    jax.tree.map(lambda x: x[0], held[1]), jax.tree.map(lambda x: x.mean(0), local)
                ),
                "digests": [
                    digest(jax.tree.map(lambda x, d=d: x[d], {"p": held[0], "s": held[1]})) for d in range(4)
                ],
                "four": [[int(m.correct), int(m.images), float(m.loss)] for m in four],
                "one": evaluated(whole, placed),
                "accumulated": compared(compiled, accumulated),
                "synchronised": compared(synchronised, whole),
                "augmented": compared(cropped, cropped_alone),
                "shard_map": compared(sharded, compiled),
                "forms": [sharded.form, compiled.form],
                "disturbed": [disturbed(compiled, at) for at in (None, (0, 0), (1, 1))],
                "one_device": str(next(iter(placed.step.devices())).id),
            }
        )
    )


if __name__ == "__main__":
    main()
