# SPDX-License-Identifier: Apache-2.0
"""A run as its ranks would report it: real architectures, records and rows, but nothing was trained.

Replicas take turns on a tree of random morphs of the demo's network. Every epoch takes a second; the last
trial of each replica is cut short by core stop. Tests change single fields and see what the result and the
judge make of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from aiperf_mpi.config import classify, load
from aiperf_mpi.network.architecture import resnet50
from aiperf_mpi.network.morphism import Limits, random_chain
from aiperf_mpi.opcount.analytical import matrix_operations
from aiperf_mpi.opcount.taps import valid_products
from aiperf_mpi.results.file.collector import Run, RunCollector
from aiperf_mpi.results.file.rows import (
    DONE,
    EPOCH_ROW,
    MESSAGE_KINDS,
    PHASES,
    RANK_ROW,
    ROW_MESSAGES,
    SAMPLE_ROW,
    TRIAL_ROW,
    UNFINISHED,
    RunHeader,
    new_row,
)
from aiperf_mpi.results.output.client import WriterClient
from aiperf_mpi.trials.budget import budget, learning_rate
from aiperf_mpi.trials.candidate import Candidate

#: Of the demo's data set, the digits.
TRAIN_IMAGES, VAL_IMAGES = 1437, 360
BATCH, DEVICES, PARTS = 32, 2, 2
STEPS = TRAIN_IMAGES // (BATCH * DEVICES)


@dataclass(frozen=True)
class Shape:
    """What an example runs on: preset and settings, images, batch of a device, devices of a replica, seconds
    of an epoch and of a tick, and wrong answers of an epoch by its number and that of its trial."""

    preset: str = "demo"
    sets: tuple[str, ...] = ("train.precision=float32",)
    images: tuple[int, int] = (TRAIN_IMAGES, VAL_IMAGES)
    batch: int = BATCH
    devices: int = DEVICES
    device: str = "cpu"
    epoch_seconds: float = 1.0
    tick: float = 2.0
    wrong: Callable[[int, int], int] = lambda epoch, number: max(200 // (epoch + 1) - number, 1)

    @property
    def steps(self) -> int:
        """Steps of a whole epoch."""
        return self.images[0] // (self.batch * self.devices)


#: The demo's.
SHAPE = Shape()


@dataclass
class Example:
    """What a run reports. `slots[i]` is the slot of `records[i]`; row arrays may be changed in place by a
    test."""

    header: RunHeader
    candidates: list[Candidate]
    slots: list[int]
    records: list[np.void]
    epochs: np.ndarray
    trials: np.ndarray
    ranks: np.ndarray
    samples: np.ndarray
    core_seconds: float
    final: tuple[int, float] | None
    end: str = "time_limit"

    def run(self, stopped: bool = True) -> Run:
        """The run as the writer would hold it at its end, or in the middle."""
        collector = RunCollector()
        collector.event("open", self.header.to_dict())
        collector.event("start", {"core_start_utc": "2026-01-02T03:04:05+00:00"})
        for slot, record in zip(self.slots, self.records, strict=True):
            collector.record(slot, np.array([record]))
        collector.rows("epoch", self.epochs)
        collector.rows("trial", self.trials)
        collector.rows("rank", self.ranks)
        collector.rows("sample", self.samples)
        if self.final:
            collector.event("final", {"trial_id": self.final[0], "error": self.final[1]})
        if stopped:
            collector.event("stop", self.stop())
        return collector.snapshot()

    def stop(self) -> dict[str, Any]:
        """The data of the stop event."""
        # The run ends half a second after rank 0.
        walls = self.ranks["wall_seconds"][self.ranks["rank"] == 0]
        total = float(walls[0]) + 0.5 if len(walls) else self.core_seconds + 2.0
        return {"core_seconds": self.core_seconds, "total_seconds": total, "end": self.end, "cause": ""}

    def send(self, client: WriterClient) -> None:
        """Send everything but `stop` through a writer's client, as the coordinator does."""
        for slot, record in zip(self.slots, self.records, strict=True):
            client.send_record(slot, record.tobytes())
        for row in self.epochs:
            client.send_epoch(row.tobytes())
            client.pump()
        client.send_trial(self.trials.tobytes())
        client.send_rank(self.ranks.tobytes())
        client.send_sample(self.samples.tobytes())
        if self.final:
            client.send_error_final(*self.final)

    def trial(self, trial_id: int) -> int:
        """Index of a trial's row in `trials`."""
        return int(np.flatnonzero(self.trials["trial_id"] == trial_id)[0])


def example_run(
    replicas: int = 2,
    trials_each: int = 3,
    epochs_each: int = 3,
    seed: int = 7,
    sets: tuple[str, ...] = (),
    shape: Shape = SHAPE,
) -> Example:
    """An example of `replicas` x `trials_each` trials; each replica's last one is cut in the middle of an
    epoch.

    `sets` are settings as on the command line, over those of the shape.
    """
    unit, val_images = shape.epoch_seconds, shape.images[1]
    core_seconds = (trials_each * epochs_each - 0.5) * unit
    own = (
        f"run.time_limit={core_seconds}",
        f"run.tick={shape.tick}",
        f"train.batch_per_device={shape.batch}",
        *([f"train.round_epochs=[{epochs_each}]"] if shape is SHAPE else []),
    )
    config = load(shape.preset, sets=(*own, *shape.sets, *sets), seed=seed)
    cls, division, departures = classify(config)
    header = RunHeader(
        run_id="example",
        seed=seed,
        time_limit=core_seconds,
        tick=shape.tick,
        base=resnet50(config.base).to_json(),
        train_images=shape.images[0],
        val_images=val_images,
        n_ranks=2 * replicas + 1,
        n_nodes=replicas,
        n_replicas=replicas,
        n_devices=replicas * shape.devices,
        n_generators=replicas,
        cls=cls,
        division=division,
        departures=tuple(map(str, departures)),
        precision=config.train.precision,
        dataset=config.data.name,
        config_toml=config.to_toml(),
        config_sha256=config.sha256,
        argv=("aiperf_mpi", "--preset", "demo"),
        environment={"JAX_PLATFORMS": "cpu"},
        inventory={"nodes": [{"power": "NVML (2 devices)"}]},
        packages={"jax": "0.10.2"},
    )
    rng = np.random.default_rng(seed)
    made: dict[int, Candidate] = {}
    slots: list[int] = []
    records: list[np.void] = []
    epochs, trials = [], []
    keys: set[int] = set()
    for number in range(replicas * trials_each):
        # The first candidate is the initial network, the others are children of a trial before them.
        replica, turn = number % replicas, number // replicas
        candidate = None
        while candidate is None or candidate.key in keys:
            parent_id = int(rng.choice(list(made))) if made else -1
            parent = made[parent_id].architecture if made else resnet50(config.base)
            length = int(rng.integers(1, 4)) if made else 0
            child, morphs = random_chain(parent, rng, length, limits=Limits(300, 1 << 60))
            candidate = Candidate.new(
                child,
                morphs,
                parent_id=parent_id,
                replica=replica,
                generator=0,
                round=turn + 1,
                batch_per_device=shape.batch,
                devices=shape.devices,
                seed=seed,
            )
        keys.add(candidate.key)
        slot = len(slots)
        slots.append(slot)
        records.append(candidate.to_record(t=0.1 * number))
        candidate = Candidate(**{**candidate.__dict__, "trial_id": slot})
        made[slot] = candidate

        # A step's products, and an estimate of the whole step that its model misses by one operation. XLA
        # counts the loop over the micro-batches once, without taps in the padding.
        layers = candidate.architecture.layers()
        products = shape.batch * sum(matrix_operations(layers).values())
        estimate = shape.batch // PARTS * valid_products(layers) + 1000

        # Each epoch takes a second; wrong answers fall with epochs and with the trial's number.
        last = turn == trials_each - 1
        start = float(turn * epochs_each * unit)
        rows = []
        for epoch in range(epochs_each):
            cut = last and epoch == epochs_each - 1
            wrong = shape.wrong(epoch, number)
            steps = shape.steps // 2 if cut else shape.steps
            t = start + epoch * unit
            rows.append(
                new_row(
                    EPOCH_ROW,
                    trial_id=slot,
                    epoch=epoch,
                    steps=steps,
                    t_start=t,
                    t_end=t + (0.5 if cut else 1.0) * unit,
                    train_samples=steps * shape.batch * shape.devices,
                    val_samples=0 if cut else val_images,
                    train_loss=2.0 / (epoch + 1) + 1e-6 * seed,
                    lr=learning_rate(config.train.lr, epoch, config.train.epochs),
                    val_loss=np.nan if cut else 2.5 / (epoch + 1) + 1e-6 * seed,
                    val_error=np.nan if cut else wrong / val_images,
                    partial=int(cut),
                )
            )
        own_epochs = np.concatenate(rows)
        epochs.append(own_epochs)
        status, limits = UNFINISHED if last else DONE, budget(turn + 1, config.train)
        trials.append(
            new_row(
                TRIAL_ROW,
                trial_id=slot,
                status=status,
                epochs=epochs_each,
                epochs_max=limits.epochs_max,
                patience=limits.patience,
                lr=config.train.lr,
                t_start=start,
                t_first_step=start + 0.5 * unit,
                micro_batch=shape.batch // PARTS,
                accumulation=PARTS,
                jaxpr_ops=products,
                xla_ops=estimate,
                xla_model_ops=estimate + 1,
                t_end=float(own_epochs["t_end"].max()),
                trace_seconds=0.2,
                compile_seconds=0.1,
                best_error=float(np.nanmin(own_epochs["val_error"])),
                predicted_error=np.nan,
                train_samples=own_epochs["train_samples"].sum(),
                val_samples=own_epochs["val_samples"].sum(),
                precision=config.train.precision,
                cause="core stop" if last else "",
            )
        )
        if not last:
            slots.append(len(slots))
            records.append(candidate.outcome(DONE, start + epochs_each * unit, epochs=epochs_each))
    rows_of_epochs = np.concatenate(epochs)
    best = int(np.nanargmin(rows_of_epochs["val_error"]))
    return Example(
        header,
        list(made.values()),
        slots,
        records,
        rows_of_epochs,
        np.concatenate(trials),
        example_ranks(replicas, core_seconds, shape),
        example_samples(replicas, core_seconds),
        core_seconds,
        (int(rows_of_epochs["trial_id"][best]), float(rows_of_epochs["val_error"][best])),
    )


def example_ranks(replicas: int, core_seconds: float, shape: Shape = SHAPE) -> np.ndarray:
    """Return rows of a coordinator, and of a trainer and a generator for each replica.

    The phases of a rank sum to its wall time. A trainer trains or validates in the whole core time.
    """
    wall = core_seconds + 1.5
    rows = []
    for rank in range(2 * replicas + 1):
        role = "coordinator" if rank == 0 else ("trainer", "generator")[(rank + 1) % 2]
        index = (rank - 1) // 2 if rank else -1
        phases = np.zeros(len(PHASES))
        busy = core_seconds if role == "trainer" else 0.0
        phases[PHASES.index("train")], phases[PHASES.index("validate")] = 0.75 * busy, 0.25 * busy
        phases[PHASES.index("init")], phases[PHASES.index("idle")] = 1.0, wall - 1.0 - busy
        sent = [int(kind in ROW_MESSAGES and rank > 0) * 3 for kind in MESSAGE_KINDS]
        rows.append(
            new_row(
                RANK_ROW,
                rank=rank,
                node=index,
                replica=index,
                local_rank=(rank - 1) % 2 if rank else 0,
                role=role,
                hostname=f"node{max(index, 0)}",
                device=f"{shape.devices} x {shape.device}" if role == "trainer" else "",
                device_uuid=f"none: {'this node has no accelerator' if role == 'trainer' else 'no trainer'}",
                cpus="0-3",
                numa="0",
                clock_offset=1e-3 * rank,
                clock_uncertainty=1e-5,
                wall_seconds=wall,
                phase_seconds=phases,
                messages_sent=sent,
                message_bytes=np.array(sent) * 88,
            )
        )
    return np.concatenate(rows)


def example_samples(nodes: int, core_seconds: float) -> np.ndarray:
    """Return a sample of each node every 2 s, and one half a second after core stop.

    Node k takes 200 + 10 k W, with 150 W for its two devices.
    """
    times = [*np.arange(2.0, core_seconds, 2.0).tolist(), core_seconds + 0.5]
    rows = [
        new_row(
            SAMPLE_ROW,
            t=t,
            node=node,
            window=window,
            count=1,
            devices=2,
            cpu_percent=50.0,
            process_percent=120.0,
            memory_bytes=4e9,
            process_bytes=1e9,
            device_percent=70.0,
            device_memory_bytes=6e9,
            device_mhz=1400.0,
            device_celsius=60.0,
            device_watts=150.0,
            power_watts=200.0 + 10 * node,
            energy_joules=(200.0 + 10 * node) * t,
            read_bytes=1e6 * t,
            write_bytes=1e5 * t,
            net_bytes=1e4 * t,
            sample_seconds=1e-3,
        )
        for node in range(nodes)
        for window, t in enumerate(times)
    ]
    return np.concatenate(rows)
