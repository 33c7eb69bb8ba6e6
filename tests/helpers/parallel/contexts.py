# SPDX-License-Identifier: Apache-2.0
"""Stand-ins of a rank's Context for tests: the real dataclasses, with any of their fields given by name."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

import numpy as np

from aiperf_mpi.config import load
from aiperf_mpi.parallel.launch.placement import TRAINER
from aiperf_mpi.parallel.launch.ranks import Ranks
from aiperf_mpi.parallel.shared.clock import CoreClock
from aiperf_mpi.parallel.shared.context import Context, Windows
from aiperf_mpi.parallel.shared.messages import Kind, Messages, Stop
from aiperf_mpi.phases import PhaseTimer


class FakeMessages(Messages):
    """Messages that stay on this rank: `rows` holds what was sent, with its kind; no stop ever arrives."""

    def __init__(self) -> None:
        self.rows: list[tuple[Kind, bytes | np.void]] = []

    def send(self, kind: Kind, row: bytes | np.void) -> None:
        self.rows.append((kind, row))

    def stop_requested(self) -> Stop | None:
        return None


def fake_context(**overrides: Any) -> Context:
    """Return the context of the only trainer of one replica, without MPI.

    `overrides` are fields of Context, Windows or Ranks by name; an unknown name raises TypeError. A window
    that is not given is None; the messages are then a FakeMessages.
    """
    windows: dict[str, Any] = {"history": None, "claims": None, "queues": (), "messages": FakeMessages()}
    context: dict[str, Any] = {
        "config": None if "config" in overrides else load(),
        "ranks": None,
        "windows": None,
        "timer": PhaseTimer(),
        "started": 0.0,
        "clock": CoreClock(time.monotonic, time.monotonic()),
        "n_devices": 1,
    }
    ranks = _one_trainer()
    for name, value in overrides.items():
        part = next((part for part in (context, windows, ranks) if name in part), None)
        if part is None:
            raise TypeError(f"neither Context, Windows nor Ranks has a field {name!r}")
        part[name] = value
    context["ranks"] = context["ranks"] or Ranks(**ranks)
    context["windows"] = context["windows"] or Windows(**windows)
    return Context(**context)


def _one_trainer() -> dict[str, Any]:
    """Return the fields of Ranks on rank 1 of a coordinator and one trainer, without communicators."""
    values: dict[str, Any] = {field.name: None for field in fields(Ranks)}
    return values | {
        "rank": 1,
        "size": 2,
        "host": "here",
        "role": TRAINER,
        "shared": False,
        "node_index": 0,
        "node_rank": 0,
        "n_nodes": 1,
        "replica": 0,
        "node_trainers": 1,
        "queue_group_shared": False,
        "queue_group_replicas": (0,),
        "queue_group_generators": 0,
        "queue_group_generator": -1,
        "replica_rank": 0,
        "n_replicas": 1,
        "n_generators": 0,
        "nodes_on_host": 1,
        "with_coordinator": True,
        "places": (),
    }
