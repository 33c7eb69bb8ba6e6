# SPDX-License-Identifier: Apache-2.0
"""Replay networks from the records of the history, and count their operations."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.opcount.analytical import operations
from aiperf_mpi.results.file.rows import RunHeader
from aiperf_mpi.trials.candidate import Candidate


@dataclass(frozen=True, slots=True)
class Network:
    """The replayed network of one PROPOSED record; without one, `problem` gives the reason."""

    architecture: Architecture | None
    arch_json: str = ""
    group: str = ""
    morphs: str = ""
    train_ops: int = 0
    val_ops: int = 0
    problem: str = ""


def replay(header: RunHeader, slots: np.ndarray, records: np.ndarray, networks: dict[int, Network]) -> None:
    """Add the networks of new records to `networks`, by slot.

    A record that does not replay is added with its problem, and so are its children.
    """
    root: Architecture | None = None
    for slot, record in zip(slots.tolist(), records, strict=True):
        if slot in networks:
            continue
        parent_id = int(record["parent"])
        if parent_id < 0:
            root = root or Architecture.from_json(header.base)
            parent: Architecture | None = root
        else:
            parent = networks[parent_id].architecture if parent_id in networks else None
        if parent is None:
            networks[slot] = Network(
                None, problem=f"trial {slot}: its parent {parent_id} has no architecture"
            )
            continue
        try:
            networks[slot] = _network(Candidate.from_record(record, parent, slot))
        except ValueError as error:
            networks[slot] = Network(None, problem=f"trial {slot}: {error}")


def _network(candidate: Candidate) -> Network:
    """Return a candidate's network with its operations."""
    # Counted on a copy, so that its list of layers is not kept: ten thousand of them fill 600 MB.
    train_ops, val_ops = operations(candidate.architecture.apply())
    morphs = json.dumps([morph.to_dict() for morph in candidate.own_morphs], separators=(",", ":"))
    text = candidate.architecture.to_json()
    return Network(candidate.architecture, text, candidate.group, morphs, train_ops, val_ops)
