# SPDX-License-Identifier: Apache-2.0
"""Checks of credited work: operations per image, samples, exact sums, the series of the score."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from aiperf_mpi.opcount import TRIAL_METHODS, XLA_BAND, XLA_RANDOM_IMAGE, XLA_RANDOM_STEP
from aiperf_mpi.opcount.analytical import METHOD_VERSION
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.file.rows import CREDITED, DROPPED, FAILED, REJECTED, STATUS
from aiperf_mpi.results.judge.checks.registry import check, column_differs, rows_where, short

#: Relative difference allowed after a logarithm: its last digit depends on the library.
LOG_SLACK = 1e-9


@check(
    "I07",
    "operations per image recomputed from the architecture, by the same method",
    why="A count that a rank reports is not evidence; the architecture is.",
)
def counts_per_image(e: Evidence) -> Iterator[str]:
    """Operations per image are those of the architecture by the paper's tables."""
    if (method := e.attribute("opcount_method")) != METHOD_VERSION:
        yield f"attribute opcount_method is {short(method)!r}, but this program counts by {METHOD_VERSION!r}"
    methods = e.column("trials", "opcount_methods").tolist()
    yield from column_differs("trials", "opcount_methods", methods, [TRIAL_METHODS] * len(methods))
    for place, name in enumerate(("train_ops_per_image", "val_ops_per_image")):
        yield from column_differs(
            "trials", name, e.column("trials", name).tolist(), [pair[place] for pair in e.counts]
        )


@check(
    "V06",
    "products of the trained step by its jaxpr = those of the tables; XLA's estimate, where there is one, "
    f"within {XLA_BAND:.1%} of the model of its rules, and both within the bounds that the network gives",
    why="A count by one method alone may be that of a step that did not run.",
)
def three_methods(e: Evidence) -> Iterator[str]:
    """The trained step executes the operations of the tables, by two other methods of counting."""
    jaxpr, xla, model = (e.column("trials", name) for name in ("jaxpr_ops", "xla_ops", "xla_model_ops"))
    batch = e.column("trials", "batch_per_device")
    expected = np.array(e.products, np.uint64)

    # A candidate that was rejected or never compiled has no step, and a trial on a killed replica did not
    # report its counts.
    counted = (e.column("trials", "train_samples") > 0) & np.isfinite(e.column("trials", "lr"))
    counted |= ((jaxpr > 0) | (xla > 0) | (model > 0)) & ~np.isin(e.status, (REJECTED, DROPPED))
    yield from rows_where("trials", counted & (jaxpr != expected), "jaxpr_ops is not what the tables count")
    estimated, apart = xla > 0, np.abs(model.astype(float) - xla.astype(float))
    augmented = e.config.data.augmentation_form != "none"
    random = XLA_RANDOM_IMAGE * batch.astype(float) + XLA_RANDOM_STEP if augmented else 0.0
    yield from rows_where(
        "trials", estimated & (apart > XLA_BAND * xla + random), "xla_ops and xla_model_ops differ"
    )
    yield from _possible(e, counted, jaxpr > 0)
    largest = f", at most {(apart / xla.clip(1))[estimated].max():.4%} apart" if estimated.any() else ""
    yield f"= {int(counted.sum())} steps counted, {int(estimated.sum())} with an estimate{largest}"


def _possible(e: Evidence, counted: np.ndarray, traced: np.ndarray) -> Iterator[str]:
    """Check that the numbers by XLA's rules are possible for the networks of the counted steps. The model
    gives one for every traced step, XLA for each or for none."""
    data, images = e.config.data, e.column("trials", "micro_batch").tolist()
    pixels = max(data.stored_side, data.image_size) ** 2 * data.channels
    bounds = [step.xla_bounds(count, pixels) for step, count in zip(e.steps, images, strict=True)]
    least, most = np.array(bounds, np.float64).reshape(-1, 2).T
    estimated = counted & (e.column("trials", "xla_ops") > 0)
    for name, needed in (("xla_model_ops", counted & traced), ("xla_ops", estimated)):
        values = e.column("trials", name).astype(np.float64)
        odd = needed & ~((values >= least) & (values <= most))
        yield from rows_where("trials", odd, f"{name} is not possible for the step of its network")


@check(
    "I15",
    "at least one training step is credited, however the run ended",
    why="A machine that trained nothing has no rate.",
)
def work(e: Evidence) -> Iterator[str]:
    """The run has trained something."""
    credited = zip(e.epoch_credited, e.column("epochs", "train_samples").tolist(), strict=True)
    if not any(ops and samples for ops, samples in credited):
        yield (
            "nothing was trained: no training step is credited; let the run last longer than its first "
            "compilation, with a higher --time-limit or a later drain"
        )


@check(
    "I20",
    "no image validated in an epoch without a training step",
    why="Validations of a network that is not trained are not the workload.",
)
def trained_before(e: Evidence) -> Iterator[str]:
    """Validations follow training: a batch that is larger than the training set leaves an epoch no step."""
    epochs = e.table("epochs")
    alone = (epochs["steps"] == 0) & (epochs["val_samples"] > 0)
    images = e.attribute("train_images")
    yield from rows_where(
        "epochs",
        alone,
        f"images validated, but none trained: the batch on all devices is more than the {images} "
        "training images",
    )


@check(
    "V05",
    "sum over epochs = sum over trials = last sample = total, as integers",
    why="Sums wrap and round; integers do not.",
)
def sums(e: Evidence) -> Iterator[str]:
    """Operations are exact: counts x samples in every row, and equal sums everywhere."""
    trials, epochs = e.table("trials"), e.table("epochs")
    yield f"= {e.total_ops} operations"
    yield from column_differs("epochs", "ops", epochs["ops"].tolist(), e.epoch_ops)
    yield from column_differs("epochs", "ops_credited", epochs["ops_credited"].tolist(), e.epoch_credited)

    # A trial is the sum of its epochs.
    for name in ("train_samples", "val_samples"):
        values = epochs[name].tolist()
        expected = [sum(values[row] for row in rows) for rows in e.own_epochs]
        yield from column_differs("trials", name, trials[name].tolist(), expected)
    for name, values in (("ops", e.epoch_ops), ("ops_credited", e.epoch_credited)):
        exact = [sum(values[row] for row in rows) for rows in e.own_epochs]
        yield from column_differs("trials", name, trials[name].tolist(), [str(value) for value in exact])
        twin = f"{name}_f64"
        yield from column_differs("trials", twin, trials[twin].tolist(), [float(value) for value in exact])

    # The same sum in three more places, as the file has it.
    series = e.column("score_series", "cumulative_ops").tolist()
    totals = {
        "/epochs": sum(epochs["ops_credited"].tolist()),
        "/trials": sum(int(text) for text in trials["ops_credited"]),
        "/score_series": int(series[-1]) if series else 0,
    }
    # As a reader of another program would take it: digits alone, and no sign, blank or leading zero.
    if (stored := e.attribute("total_ops")) != str(e.total_ops):
        yield f"attribute total_ops is {short(stored)!r}, but the rows sum to {e.total_ops}"

    for place, total in totals.items():
        if total != e.total_ops:
            yield f"{place} sums to {total} instead of {e.total_ops}"


@check("I08", "every sample recomputed from the rows", why="The plot of the score must follow from the rows.")
def series(e: Evidence) -> Iterator[str]:
    """The series of the score follows from the rows."""
    stored, samples = e.table("score_series"), e.series
    yield f"= {len(samples)} samples"
    yield from column_differs("score_series", "t", stored["t"].tolist(), [s.t for s in samples])
    for name, values in (
        ("cumulative_ops", [str(s.ops) for s in samples]),
        ("cumulative_ops_f64", [float(s.ops) for s in samples]),
        ("rate", [s.rate for s in samples]),
        ("best_error", [s.best_error for s in samples]),
    ):
        yield from column_differs("score_series", name, stored[name].tolist(), values)
    regulated = np.array([s.regulated for s in samples], float)
    if len(regulated) == len(stored["regulated"]):
        same = np.isclose(stored["regulated"], regulated, rtol=LOG_SLACK, atol=0, equal_nan=True)
        yield from rows_where("score_series", ~same, "regulated is not -ln(best_error) x rate")

    # The best error of the run, and the same model's after it was loaded again.
    error, trial = e.best
    for name, value in (("best_error", error), ("best_trial", trial)):
        if e.attribute(name) != value and not (math.isnan(value) and math.isnan(e.attribute(name))):
            yield f"attribute {name} is {e.attribute(name)} instead of {value}"
    final, final_trial = e.attribute("error_final"), e.attribute("error_final_trial")
    if final_trial == -1:
        if not math.isnan(final):
            yield "attribute error_final has no trial"
    elif final_trial not in e.index or e.column("trials", "best_error")[e.index[final_trial]] != error:
        # Of trials with equal errors any may have been loaded again.
        yield f"attribute error_final is of trial {final_trial}, which does not have the best error, {error}"
    elif not 0 <= final <= 1:
        yield f"attribute error_final is {final}"


@check(
    "I09",
    "samples = steps x global batch; whole validations see the whole set once, errors count whole images",
    why="Only images that were really used are credited, not a nominal epoch.",
)
def samples_possible(e: Evidence) -> Iterator[str]:
    """The samples of each epoch are possible with its batch and its data set."""
    epochs = e.table("epochs")
    known = e.of_trial >= 0
    batch = (
        np.where(known, e.column("trials", "batch_global").astype(np.int64)[e.of_trial], 0)
        if len(known)
        else known
    )
    steps, train, val = epochs["steps"].astype(np.int64), epochs["train_samples"], epochs["val_samples"]
    images, val_images = e.attribute("train_images"), e.attribute("val_images")
    whole_steps = images // np.maximum(batch, 1)
    failed = np.isin(e.status, [FAILED])[e.of_trial] & known if len(known) else known
    given = (steps * batch).astype(np.uint64)
    yield from rows_where("epochs", train != given, "train_samples is not steps x batch_global")

    # The micro-batches of a step make up its whole batch; a trial that never came to a step may have zeros.
    micro, parts = (e.column("trials", name).astype(np.int64) for name in ("micro_batch", "accumulation"))
    unsaid = (micro == 0) & (parts == 0) & (e.column("trials", "train_samples") == 0)
    unsaid |= np.isnan(e.column("trials", "lr"))
    odd = micro * parts != e.column("trials", "batch_per_device").astype(np.int64)
    yield from rows_where("trials", odd & ~unsaid, "micro_batch x accumulation is not batch_per_device")
    yield from rows_where("epochs", steps > whole_steps, "more steps than the training set has batches")
    yield from rows_where("epochs", val > val_images, "more images validated than the set has")
    whole = epochs["partial"] == 0
    yield from rows_where("epochs", whole & (steps != whole_steps), "a whole epoch does not use every batch")
    idle = ~whole & ~failed & (steps < whole_steps) & (val > 0)
    yield from rows_where("epochs", idle, "images validated, but its training was cut short")
    measured = ~np.isnan(epochs["val_error"])
    yield from rows_where("epochs", whole & ~failed & ~measured, "a whole epoch has no validation error")
    yield from rows_where(
        "epochs", ~whole & ~failed & measured, "an epoch that was cut short has a validation error"
    )
    yield from rows_where(
        "epochs", measured & (val != val_images), "an error of a validation that is not whole"
    )

    # Errors are fractions of whole images, up to the rounding of a 32-bit float.
    misses = epochs["val_error"] * val_images
    odd = measured & (np.abs(misses - np.round(misses)) > max(0.01, 2e-7 * val_images))
    yield from rows_where("epochs", odd, "val_error is not a whole number of images")


@check(
    "I10",
    "epochs, times, best error of a trial follow from its epochs",
    why="The error of a trial is measured in its epochs.",
)
def trials_follow(e: Evidence) -> Iterator[str]:
    """Each trial's row agrees with its epochs."""
    trials, epochs = e.table("trials"), e.table("epochs")
    for row, rows in enumerate(e.own_epochs):
        name = f"trial {trials['trial_id'][row]}"
        errors = epochs["val_error"][rows]
        errors = errors[~np.isnan(errors)]
        best = trials["best_error"][row]
        expected = errors.min() if len(errors) else math.nan
        if best != expected and not (math.isnan(best) and math.isnan(expected)):
            yield f"{name}: best_error is {best}, but its epochs' lowest is {expected}"
        if e.status[row] in (REJECTED, DROPPED) and len(rows):
            yield f"{name}: {STATUS[e.status[row]]}, but has epochs"
        if e.status[row] not in CREDITED:
            continue
        if trials["epochs"][row] != len(rows):
            yield f"{name}: epochs is {trials['epochs'][row]}, but it has {len(rows)}"
