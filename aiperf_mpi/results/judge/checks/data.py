# SPDX-License-Identifier: Apache-2.0
"""Checks of the data set: the manifest of a packed set is that of the run, and its pictures were read."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from aiperf_mpi.config.datasets import DATASETS
from aiperf_mpi.data.manifest import RAW, TRAIN, VAL, LabelFacts, Manifest
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.segments import Part, parts, within
from aiperf_mpi.results.judge.checks.registry import check, rows_where, short
from aiperf_mpi.results.judge.checks.timing import CLOCK_SLACK

#: Channels of a packed picture.
_CHANNELS = 3

#: Bytes that every JPEG file has: its two ends, a table of quantisation (69), frame and scan headers (23).
_LEAST_JPEG = 96


@check(
    "I21",
    "manifest of a packed set: its hash is dataset_sha256; counts, classes and side of the configuration",
    why="The pictures that are declared must be those of the run.",
)
def manifest(e: Evidence) -> Iterator[str]:
    """A packed data set has its manifest, and that is the manifest of the run's images."""
    name, packed = e.config.data.name, e.packed
    if packed is None:
        yield "= not packed"
        if DATASETS[name].packed:
            yield f"the data set {name!r} is packed, but /data/manifest_json is empty"
        return
    found = packed.manifest
    yield f"= {found.encoding}, side {found.side}, {found.images(TRAIN)} + {found.images(VAL)} pictures"
    if not DATASETS[name].packed:
        yield f"the data set {name!r} is not packed, but /data/manifest_json has a manifest"
    if (digest := e.attribute("dataset_sha256")) != found.sha256:
        yield f"attribute dataset_sha256 is {short(digest)!r}, but the manifest gives {found.sha256}"
    yield from _sizes(e, found)
    if name == "imagenet":
        counts, reference = (found.images(TRAIN), found.images(VAL)), e.rules.reference
        if counts != reference.images or len(found.classes) != reference.classes:
            yield f"ImageNet has other counts than {counts} pictures of {len(found.classes)} classes"
    if packed.labels is not None:
        yield from _labels(e, packed.labels, len(found.classes))


def _labels(e: Evidence, labels: LabelFacts, classes: int) -> Iterator[str]:
    """Check that the labels are those of as many pictures and classes as the run has."""
    for attribute, its in (("train_images", labels.train), ("val_images", labels.val)):
        if len(its) != classes:
            yield f"the labels are of {len(its)} classes, but the manifest has {classes}"
        if sum(its) != (used := e.attribute(attribute)):
            yield f"attribute {attribute} is {used}, but {sum(its)} pictures have labels"


def _sizes(e: Evidence, found: Manifest) -> Iterator[str]:
    """Check counts, classes and side of a manifest against the run's."""
    data = e.config.data
    for key, value, own in (
        ("classes", data.classes, len(found.classes)),
        ("side", data.stored_side, found.side),
        ("channels", data.channels, _CHANNELS),
    ):
        if value != own:
            yield f"the manifest has {key} {own}, but the configuration {value}"
    for attribute, split in (("train_images", TRAIN), ("val_images", VAL)):
        if (used := e.attribute(attribute)) > (count := found.images(split)):
            yield f"attribute {attribute} is {used}, but the manifest has {count} pictures"


@check(
    "I22",
    f"trainers alone read, at least the bytes of all images used (JPEG: {_LEAST_JPEG} each); copies of the "
    "set itself",
    why="Images that were not read were not trained.",
)
def read(e: Evidence) -> Iterator[str]:
    """The trainers read the images that they used, and what was copied to the nodes is the data set."""
    rows, packed = e.table("ranks"), e.packed
    yield f"= {int(rows['bytes_read'].sum())} bytes"
    yield from rows_where("ranks", rows["bytes_read"] < 0, "bytes_read is negative")
    idle = (rows["bytes_read"] > 0) & ((rows["role"] != "trainer") | (packed is None))
    yield from rows_where("ranks", idle, "it reads no pictures, but has bytes_read")
    staged = e.attribute("staged_bytes")
    most = packed.manifest.bytes * e.attribute("n_nodes") if packed else 0
    if not 0 <= staged <= most:
        yield f"attribute staged_bytes is {staged}, but the data set has {most} bytes on all nodes"
    for name in ("staging_seconds", "hash_seconds"):
        seconds = e.attribute(name)
        longest = e.attribute("total_seconds") + CLOCK_SLACK if packed else 0.0
        # The whole time of a run that was killed is not known.
        if not (math.isfinite(seconds) and seconds >= 0) or seconds > longest:
            yield f"attribute {name} is {seconds}"
    if packed is not None:
        raw = packed.manifest.encoding == RAW
        yield from _used(e, packed.manifest.side**2 * _CHANNELS if raw else _LEAST_JPEG)


def _used(e: Evidence, size: int) -> Iterator[str]:
    """Check that the trainers of each replica read its images, of at least `size` bytes each."""
    for part in parts(e):
        # The ranks of a segment that was killed have not said what they read.
        if part.proven:
            yield from _used_in(e, part, size)


def _used_in(e: Evidence, part: Part, size: int) -> Iterator[str]:
    """Check the same of one segment, of the epochs in it."""
    rows, trials = part.evidence.table("ranks"), e.table("trials")
    trains = rows["role"] == "trainer"
    there = within(part, e.column("epochs", "t_start"), e.column("epochs", "t_end"))
    for replica in np.unique(rows["replica"][trains]).tolist():
        got = sum(rows["bytes_read"][trains & (rows["replica"] == replica)].tolist())
        own = np.isin(e.of_trial, np.flatnonzero(trials["replica"] == replica)) & there
        names = ("train_samples", "val_samples")
        images = sum(sum(e.column("epochs", name)[own].tolist()) for name in names)
        if got < images * size:
            yield f"replica {replica} read {got} bytes, but its {images} images have {images * size} or more"
