# SPDX-License-Identifier: Apache-2.0
"""The data set of a run: its manifest if it is packed, the class that follows from it, and what was read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aiperf_mpi.config import Config, Departure, classify
from aiperf_mpi.config.setting import FIXED, Rule
from aiperf_mpi.data.manifest import Manifest, from_record

if TYPE_CHECKING:
    from aiperf_mpi.results.evidence.evidence import Evidence

#: A stand-in for another data set has its counts and made-up pictures.
_NOT_A_STANDIN = Rule(FIXED, False, "docs/rules.md")


@dataclass(frozen=True, slots=True)
class PackedSet:
    """The packed data set of a run: its manifest, and how many pictures of the source are not in it."""

    manifest: Manifest
    rejected: int


def packed_set(text: str) -> PackedSet | None:
    """Return the packed set of a result's document, None for `{}`: the data set is not packed.

    Raises ValueError, KeyError, TypeError, AttributeError, OverflowError or RecursionError for another text.
    """
    if json.loads(text) == {}:
        return None
    return PackedSet(*from_record(text))


def classified(
    config: Config, packed: PackedSet | None, stored: str = ""
) -> tuple[str, str, tuple[Departure, ...]]:
    """Return class, division and departures of a run, as `classify`; a run on a stand-in is always a trial.

    `stored` is the text of the configuration if it comes from a result.
    """
    cls, division, departures = classify(config, stored)
    if packed is None or not packed.manifest.standin:
        return cls, division, departures
    return "trial", division, (*departures, Departure("standin", True, _NOT_A_STANDIN))


def classified_of(e: Evidence) -> tuple[str, str, tuple[Departure, ...]]:
    """Return class, division and departures of a result. Raises what damaged documents cause."""
    return classified(e.config, e.packed, e.result.documents["config/resolved_toml"])


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
