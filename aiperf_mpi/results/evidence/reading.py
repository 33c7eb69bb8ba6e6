# SPDX-License-Identifier: Apache-2.0
"""The data set of a run: its manifest if it is packed, the class that follows from it, and what was read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aiperf_mpi.config import Departure, classify
from aiperf_mpi.config.datasets import DATASETS, Form
from aiperf_mpi.data.manifest import LabelFacts, Manifest, from_record, labels_from_record

if TYPE_CHECKING:
    from aiperf_mpi.results.evidence.evidence import Evidence


@dataclass(frozen=True, slots=True)
class PackedSet:
    """The packed data set of a run: its manifest, how many pictures of the source are not in it, and the
    labels of the pictures that were used (None where no reference is known, or in older results)."""

    manifest: Manifest
    rejected: int
    labels: LabelFacts | None = None


def packed_set(text: str) -> PackedSet | None:
    """Return the packed set of a result's document, None for `{}`: the data set is not packed.

    Raises ValueError, KeyError, TypeError, AttributeError, OverflowError or RecursionError for another text.
    """
    if json.loads(text) == {}:
        return None
    return PackedSet(*from_record(text), labels_from_record(text))


def segments_of(e: Evidence) -> int:
    """Return how often the run of a result was started on its folder: more than once if it was resumed."""
    return len(e.column("segments", "segment"))


def classified_of(e: Evidence) -> tuple[str, str, tuple[Departure, ...]]:
    """Return class, division and departures of a result. Raises what damaged documents cause."""
    stored, manifest = e.result.documents["config/resolved_toml"], e.packed.manifest if e.packed else None
    return classify(e.config, manifest, segments_of(e), stored=stored, rules=e.rules)


def other_content(e: Evidence, digest: str) -> Iterator[str]:
    """Yield a problem if the data set of a result is a known one, but has another hash."""
    data = e.config.data
    form = Form(e.attribute("train_images"), e.attribute("val_images"), data.image_size, data.channels)
    known = DATASETS[data.name].hashes.get(form)
    if known is not None and digest != known:
        yield f"dataset_sha256 is {digest[:16]}..., but that of {data.name!r} is {known[:16]}..."


@dataclass(frozen=True, slots=True)
class Reading:
    """What the trainers read from the files of the data set until core stop, and how long they waited.

    Attributes:
        nodes: numbers of the nodes that train, i8 [nodes].
        rates: bytes per second of the core time that each of them read, f8 [nodes].
        bytes: bytes of all nodes.
        data_share: share of phase `data` in the wall time of all trainers (NaN without a trainer).
    """

    nodes: np.ndarray
    rates: np.ndarray
    bytes: int
    data_share: float


def reading(e: Evidence) -> Reading:
    """Return what the trainers of a result read. Raises MissingError without the rows of its ranks."""
    rows, core_seconds = e.table("ranks"), e.attribute("core_seconds")
    trains = rows["role"] == "trainer"
    nodes, own = np.unique(rows["node"][trains], return_inverse=True)
    # Sums of integers: the bytes of a long run on many nodes are beyond the integers of a float.
    read = np.zeros(len(nodes), np.int64)
    np.add.at(read, own, rows["bytes_read"][trains])
    wall = float(rows["wall_seconds"][trains].sum())
    share = float(rows["seconds_data"][trains].sum()) / wall if wall > 0 else np.nan
    rates = read / core_seconds if core_seconds > 0 else np.full(len(nodes), np.nan)
    return Reading(nodes, rates, int(read.sum()), share)
