# SPDX-License-Identifier: Apache-2.0
"""Run by test_devices.py in a process with four host devices: prints what it measures as one line of JSON."""

from __future__ import annotations

import json

import jax
import numpy as np
import optax

from aiperf_mpi.search.architecture import resnet50
from aiperf_mpi.system.phases import PhaseTimer
from aiperf_mpi.training.checkpoint import digest
from aiperf_mpi.training.compile import Compiled, compile_steps
from aiperf_mpi.training.digest import Disagreement
from aiperf_mpi.training.fit import Fault, FitSettings, Training
from aiperf_mpi.training.resnet import network
from aiperf_mpi.training.step import StepSettings
from tests.training.cases import TINY, batches, random_batch, started

DEVICES, BATCH, STEPS, RATE = 4, 8, 3, 0.05


def one_device_with_micro_batches(compiled: Compiled) -> tuple[dict, list[dict], list[float], list[int]]:
    """The training that four devices must equal, written out: parameters, each micro-batch's statistics, losses and
    correct answers of each step."""
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


def distance(tree: object, other: object) -> float:
    """Largest difference between two trees of arrays."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def disturbed(compiled: Compiled, at: tuple[int, int] | None) -> tuple[list[list], str]:
    """A training of two epochs of three steps whose last device loses its way after this step: for each epoch reported
    [epoch, steps, partial], and the error that ends it."""
    images, labels = (x.reshape(-1, *x.shape[2:]) for x in random_batch(TINY, DEVICES, STEPS * BATCH))
    run = Training(
        compiled, started(compiled), lambda epoch: batches(images, labels, DEVICES, BATCH),
        lambda: batches(images, labels, DEVICES, BATCH), FitSettings(2, 10, lambda epoch: RATE), timer=PhaseTimer(),
        poll=lambda: False, fault=Fault(disturb_at=at),
    )  # fmt: skip
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

    # The same steps on four devices.
    state, found = started(compiled), []
    for step in range(STEPS):
        images, labels = random_batch(TINY, DEVICES, BATCH, seed=step)
        state, metrics = compiled.train(state, images, labels, compiled.scalar(RATE))
        found.append(jax.device_get(metrics))
    local = jax.device_get(state.batch_stats)
    state = state._replace(batch_stats=compiled.average(state.batch_stats))
    held = jax.device_get((state.params, state.batch_stats))

    # The same evaluation on four devices and on one, with two images that are not valid; many of them in flight.
    images, labels = random_batch(TINY, DEVICES, BATCH, seed=99)
    valid = np.arange(DEVICES * BATCH).reshape(DEVICES, BATCH) < DEVICES * BATCH - 2
    four = [compiled.evaluate(state.params, state.batch_stats, images, labels, valid) for _ in range(40)]
    alone = compile_steps(resnet50(TINY), StepSettings(DEVICES * BATCH), devices[3:])
    placed = alone.start(compiled.variables(state), np.random.default_rng(0))
    one = alone.evaluate(
        placed.params, placed.batch_stats, images.reshape(1, -1, 8, 8, 1), labels.reshape(1, -1), valid.reshape(1, -1)
    )

    print(
        json.dumps({
            "devices": len(devices),
            "loss": [float(m.loss) for m in found],
            "expected_loss": losses,
            "correct": [int(m.correct) for m in found],
            "expected_correct": correct,
            "images": [int(m.images) for m in found],
            "parameter_distance": distance(jax.tree.map(lambda x: x[0], held[0]), params),
            "local_statistics_distance": max(
                distance(jax.tree.map(lambda x, d=d: x[d], local), statistics[d]) for d in range(DEVICES)
            ),
            "local_statistics_differ": distance(
                jax.tree.map(lambda x: x[0], local), jax.tree.map(lambda x: x[1], local)
            ),
            "average_distance": distance(
                jax.tree.map(lambda x: x[0], held[1]), jax.tree.map(lambda x: x.mean(0), local)
            ),
            "digests": [digest(jax.tree.map(lambda x, d=d: x[d], {"p": held[0], "s": held[1]})) for d in range(4)],
            "four": [[int(m.correct), int(m.images), float(m.loss)] for m in four],
            "one": [int(one.correct), int(one.images), float(one.loss)],
            "disturbed": [disturbed(compiled, at) for at in (None, (0, 0), (1, 1))],
            "one_device": str(next(iter(placed.step.devices())).id),
        })
    )


if __name__ == "__main__":
    main()
