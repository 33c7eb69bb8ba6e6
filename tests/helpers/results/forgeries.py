# SPDX-License-Identifier: Apache-2.0
"""Forged results, each of which agrees with itself: which check finds each, and why a file cannot prove the
rest.

As a program it prints the table:

    python -m tests.helpers.results.forgeries
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import h5py

from aiperf_mpi import hdf5
from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.output import process
from tests.helpers.results import forging
from tests.helpers.results.example_run import example_run
from tests.helpers.results.forging import BYTES, FILE, VERDICT, Edit, Forgery, every, forge, set_attributes

# -- edits -----------------------------------------------------------------------------------------


def setting(old: str, new: str) -> Edit:
    """Return an edit of the stored configuration."""

    def edit(file: h5py.File) -> None:
        text = file["config/resolved_toml"].asstr()[()]
        assert old in text, text
        file["config/resolved_toml"][()] = text.replace(old, new)

    return edit


def credited_failure(file: h5py.File) -> None:
    """A failed trial keeps its credit."""
    file["trials/status"][0] = "failed"


def more_operations(file: h5py.File) -> None:
    """Operations per image of a trial are higher than those of its network, with every sum of them."""
    file["trials/train_ops_per_image"][0] += 10**6


def long_rank_0(file: h5py.File) -> None:
    """Rank 0's row is of a longer time than the whole run."""
    for name in ("wall_seconds", "seconds_idle"):
        file["ranks"][name][0] += 1000.0


def swapped_networks(file: h5py.File) -> None:
    for name in ("arch_json", "arch_hash", "group", "morphs", "parent_id", "kernel_size"):
        values = file["trials"][name][...]
        values[[1, 2]] = values[[2, 1]]
        file["trials"][name][...] = values


def twice(file: h5py.File) -> None:
    """A candidate is trained again."""
    for name in ("arch_hash", "batch_global"):
        file["trials"][name][2] = file["trials"][name][1]


def peak_of_the_file(file: h5py.File) -> None:
    """The inventory states a peak, and the verdict takes it."""
    file["system/inventory_json"][()] = json.dumps({"nodes": [{"nodes": "0-1", "peak_ops": 1e30}]})
    resultfile.set_attributes(file, {"peak_ops": 1e30, "mfu": 1e-20, "peak_source": "the inventory"})


def total_as(form: str) -> Edit:
    """Return an edit of the total's text."""
    return lambda file: file.attrs.create("total_ops", form.format(file.attrs["total_ops"]))


def no_departures(file: h5py.File) -> None:
    file["config/departures_json"][()] = "[]"


def hidden_attribute(file: h5py.File) -> None:
    file.attrs["score"] = 1e15


def after_the_file(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x" * 99)


def before_the_file(path: Path) -> None:
    """HDF5 finds its content after 512 bytes, too."""
    path.write_bytes(b"x" * 512 + path.read_bytes())


def series_of_another_run(file: h5py.File) -> None:
    file["score_series/rate"][...] = file["score_series/rate"][...] * 2


def score_of_a_trial(file: h5py.File) -> None:
    resultfile.set_attributes(file, {"score_ops": 1e15, "class": "official"})


FORGERIES = (
    # Rate: time.
    Forgery("trainers idle, with epochs", lambda e: forging.idle(e, 1.0), "V13", "epochs of no one"),
    Forgery("a quarter of the epochs invented", lambda e: forging.idle(e, 0.25), "V13", "credit for idling"),
    Forgery("core start after the first compilation", forging.long_compilation(0), "V12", "73 %"),
    Forgery("epochs in the compilation of a later trial", forging.long_compilation(4), "V12", "28 %"),
    Forgery("an epoch that ends after the run", forging.late_epoch, "V12", "time without an end"),
    Forgery("rank 0 stays after the run", long_rank_0, "V02", "time without an end", FILE),
    Forgery(
        "a run that ends late", forging.long_rank_0, "",
        "nothing after core stop counts; the batch system's accounting has the end of the job",
    ),
    Forgery("a whole run of a year", set_attributes(total_seconds=3e7), "V02", "time without an end", FILE),
    Forgery("a shorter core time", set_attributes(core_seconds=8.0), "V02", "a higher rate", FILE),
    Forgery("a longer core time", set_attributes(core_seconds=9.5), "V02", "more credit", FILE),
    Forgery("epochs before core start", forging.shifted_before_core_start, "V12", "work outside of the time"),
    Forgery("two trials of a replica at once", forging.two_trials_at_once, "V12", "work twice"),
    Forgery("an epoch in two ticks", forging.shifted_over_a_tick, "V12", "credit sooner"),
    Forgery("work after core stop", forging.late_work_in_time, "V02", "more credit"),
    Forgery("a rate above the peak", forging.above_the_peak, "V10", "more than the devices can do"),
    Forgery(
        "every time halved", lambda e: forging.scale_time(e, 0.5), "",
        "scaled time: no clock of the file is another's; the batch system's accounting is",
    ),
    Forgery(
        "a drain called the time limit", forging.drained_as_planned, "",
        "scaled time: the limit is what the file states; the job's command line says another one",
    ),
    # Rate: work.
    Forgery("steps moved to another epoch", forging.samples_moved, "I09", "work that no batch makes up"),
    Forgery("more images than steps", forging.more_samples, "I09", "images that no step had"),
    Forgery("an epoch cut in the middle of a trial", forging.epoch_cut_in_the_middle, "I18", "quick epochs"),
    Forgery("a failed trial called unfinished", forging.failed_as_unfinished, "I18", "credit for a failure"),
    Forgery("a failed trial with credit", credited_failure, "V05", "credit for a failure", FILE),
    Forgery("a trial stopped too early", forging.stopped_without_patience, "I18", "quick trials"),
    Forgery("a trial that patience had ended", forging.beyond_patience, "I13", "more epochs"),
    Forgery("a cut epoch of an unreported trial", forging.unreported, "I18", "credit without counts"),
    Forgery("a round left out", forging.round_left_out, "I14", "longer budgets sooner"),
    Forgery("a trial left out", forging.trial_hidden, "I14", "failures that no one sees"),
    Forgery("more operations per image", more_operations, "I07", "a higher count", FILE),
    Forgery("other products by the jaxpr", forging.other_products, "V06", "a step that did not run"),
    Forgery("both estimates 1", forging.estimates(0, 0), "V06", "a step that did not run"),
    Forgery("both estimates ten times as high", forging.estimates(10, 10), "V06", "a step that did not run"),
    Forgery("one estimate higher", forging.estimates(1, 1.01), "V06", "a step that did not run"),
    Forgery("no estimates", every("trials", xla_ops=0, xla_model_ops=0), "V06", "no third count", FILE),
    Forgery("a total with a sign", set_attributes(total_ops="+1"), "V05", "a reader's own number", FILE),
    Forgery(
        "a total with blanks", total_as(" {} "), "V05",
        "int() takes it, other readers do not", FILE,
    ),
    Forgery(
        "a total with an underscore", total_as("0_{}"), "V05",
        "int() takes it, other readers do not", FILE,
    ),
    Forgery("a series of another run", series_of_another_run, "I08", "a better plot", FILE),
    Forgery("a candidate trained again", twice, "I06", "no compilation", FILE),
    Forgery("networks swapped", swapped_networks, "I05", "a count of another network", FILE),
    Forgery(
        "networks that were not run", forging.larger_networks, "",
        "a network that was not run: rows say how long, not what; training the candidate again says it",
    ),
    # Error.
    Forgery("an error of half an image", forging.half_an_image, "I09", "a lower error"),
    Forgery("the best error of a failed trial", forging.error_of_a_failed_trial, "I08", "a lower error"),
    Forgery("a best error of no trial", set_attributes(best_error=0.01), "I08", "a lower error", FILE),
    Forgery(
        "errors of some images less", forging.better_error, "",
        "errors other than the checkpoint's: `verify --reevaluate` measures it on the same images",
    ),
    Forgery("lower losses", forging.lower_losses, "", "losses enter no rate; training again shows them"),
    # Class, division, settings, end.
    Forgery("a trial called official", set_attributes(**{"class": "official"}), "V01", "a score", VERDICT),
    Forgery("an open run called closed", set_attributes(division="closed"), "V01", "a division", VERDICT),
    Forgery("no departures", no_departures, "V01", "a class", FILE),
    Forgery("another configuration", setting("lr = 0.1", "lr = 0.2"), "V01", "another run's settings", FILE),
    Forgery("another learning rate", forging.another_rate, "I13", "other training"),
    Forgery("another seed", set_attributes(seed=8), "V01", "a second run of one", FILE),
    Forgery("other seeds of trials", every("trials", seed=5), "V16", "a second run of one", FILE),
    Forgery("a verdict of its own", score_of_a_trial, "I12", "a score for readers", VERDICT),
    Forgery("a killed run completed", set_attributes(end="killed"), "V21", "an end that was none", FILE),
    Forgery("a running run completed", set_attributes(end="running"), "V21", "an end that was none", FILE),
    Forgery("bytes after the file", after_the_file, "I01", "unseen", BYTES),
    Forgery("bytes before the file", before_the_file, "I01", "unseen", BYTES),
    Forgery("a hidden attribute", hidden_attribute, "I01", "a score for readers", FILE),
    # Devices, energy.
    Forgery("a peak of the file's own", peak_of_the_file, "I12", "an MFU", VERDICT),
    Forgery("a device with two trainers", forging.shared_device, "V11", "a device twice"),
    Forgery("fewer UUIDs than devices", forging.no_uuids, "V11", "devices without names"),
    Forgery("more devices by attribute", set_attributes(n_devices=8), "V11", "a larger machine", FILE),
    Forgery("another precision", every("trials", precision="float64"), "V10", "a lower peak", FILE),
    Forgery("energy of another time", forging.power_of_another_time, "I17", "less energy"),
    Forgery("samples of half of the time", forging.samples_left_out, "I17", "less energy"),
    Forgery("half of the power", forging.less_power, "", "power: the site's meter measures another one"),
    Forgery(
        "a replica that was not there", forging.more_devices, "",
        "replicas and devices that were not there: the batch system's list of nodes says it",
    ),
    Forgery(
        "devices by another name", forging.faster_devices, "",
        "devices that were not there: their UUIDs are asked of the site; a faster name only raises the peak",
    ),
    Forgery("another host and use", forging.another_start, "", "places: no rate is computed from them"),
)  # fmt: skip


def main() -> int:
    """Print the table of forgeries; return how many were not found as they should be."""
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        honest = folder / "honest.h5"
        hdf5.write(honest, process.final_image(example_run().run()))
        for forgery in FORGERIES:
            verdict = forge(forgery, folder, honest)
            found = verdict.reason_ids
            right = forgery.finds in found if forgery.finds else verdict.valid
            wrong += not right
            words = ", ".join(found) or "none: a file cannot prove it"
            print(f"{'ok ' if right else 'NOT'} {forgery.name} | {words} | {forgery.why}", flush=True)
            if not right:
                print(verdict.reasons)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
