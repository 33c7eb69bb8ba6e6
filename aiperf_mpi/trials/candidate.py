# SPDX-License-Identifier: Apache-2.0
"""A candidate: all that a trainer needs, and how records store it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from aiperf_mpi.network.architecture import DEFAULT_KERNEL, Architecture, Morph
from aiperf_mpi.opcount.analytical import operations
from aiperf_mpi.streams import trial_seed
from aiperf_mpi.trials.origin import UNKNOWN, Origin, fill, origin_of
from aiperf_mpi.trials.record import (
    CAUSE_BYTES,
    DONE,
    DROPPED,
    FAILED,
    FROM_CHECKPOINT,
    KEPT,
    MAX_OWN_MORPHS,
    NONE,
    OUTCOME,
    PREDICTED,
    PROPOSED,
    REJECTED,
    STOPPED,
    TAKES_KERNEL,
    RecordError,
    check,
    new_record,
    seal,
)

#: The fields of a record that a candidate has under the same name.
_COPIED = (
    *("replica", "generator", "round", "batch_per_device", "batch_global", "kernel_size"),
    *("key", "seed", "train_ops", "val_ops"),
)


def own_morphs(record: np.void, trial_id: int) -> tuple[Morph, ...]:
    """Return the morphs that lead from the parent of a record's trial to it.

    Raises RecordError if the record is torn.
    """
    if not check(record):
        raise RecordError(
            f"record of trial {trial_id}: checksum, version or kind is wrong, so the record is torn or of "
            "another format"
        )
    return tuple(map(Morph.unpack, record["morphs"][: record["n_morphs"]].tolist()))


def candidate_key(arch_hash: str, batch_global: int) -> int:
    """Return the 64-bit key by which a candidate is claimed: a hash of its network and global batch, never 0.

    Arguments:
        arch_hash: `Architecture.hash`, 32 hexadecimal digits; it covers the kernel sizes.
        batch_global: samples of one training step over all devices of the replica.
    """
    text = bytes.fromhex(arch_hash) + int(batch_global).to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") or 1


@dataclass(frozen=True)
class Candidate:
    """An architecture with its hyperparameters: all that a trainer needs.

    It is final before any trainer may take it.

    Attributes:
        trial_id: slot of its PROPOSED record, -1 before that is written.
        parent_id: trial id of the parent, -1 for the initial architecture.
        own_morphs: the morphs that lead from the parent's architecture to its own.
        train_ops, val_ops: operations per image by the paper's tables.
        from_checkpoint: whether training starts from the parent's kept weights instead of initial ones.
        origin: what chose it.
    """

    trial_id: int
    parent_id: int
    replica: int
    generator: int
    round: int
    architecture: Architecture
    own_morphs: tuple[Morph, ...]
    batch_per_device: int
    batch_global: int
    kernel_size: int
    seed: int
    key: int
    train_ops: int
    val_ops: int
    from_checkpoint: bool = False
    origin: Origin = UNKNOWN

    @property
    def group(self) -> str:
        """Hash that trials share if they differ in hyperparameters only."""
        return self.architecture.group(len(self.own_morphs))

    def to_record(self, t: float) -> np.void:
        """Return the sealed PROPOSED record; `t` is in seconds since core start."""
        return seal(self._fill(PROPOSED, NONE, t))

    def outcome(
        self,
        status: int,
        t: float,
        *,
        epochs: int = 0,
        best_error: float = math.nan,
        predicted_error: float = math.nan,
        kept: bool = False,
        cause: str = "",
    ) -> np.void:
        """Return the sealed OUTCOME record.

        Arguments:
            status: DONE, STOPPED, FAILED, REJECTED or DROPPED.
            t: seconds since core start.
            epochs: epochs trained.
            best_error: best validation error, NaN if none was measured.
            predicted_error: the error that the search uses instead (warm-up), NaN for none.
            kept: whether its best weights are kept, so that children may inherit them.
            cause: why it failed; cut to 64 ASCII characters.

        Raises ValueError for another status, or while the candidate has no trial id.
        """
        if status not in (DONE, STOPPED, FAILED, REJECTED, DROPPED):
            raise ValueError(f"outcome of trial {self.trial_id}: status {status} does not end a candidate")
        if self.trial_id < 0:
            raise ValueError("outcome of a candidate whose PROPOSED record was never written (trial id -1)")
        record = self._fill(OUTCOME, status, t)
        record["trial"] = self.trial_id
        record["epochs"] = epochs
        record["best_error"], record["predicted_error"] = best_error, predicted_error
        record["flags"] |= (PREDICTED if math.isfinite(predicted_error) else 0) | (KEPT if kept else 0)
        record["cause"] = cause.encode("ascii", "replace")[:CAUSE_BYTES]
        return seal(record)

    def _fill(self, kind: int, status: int, t: float) -> np.void:
        if len(self.own_morphs) > MAX_OWN_MORPHS:
            raise ValueError(
                f"candidate of trial {self.parent_id}: {len(self.own_morphs)} morphs, but a record "
                f"holds {MAX_OWN_MORPHS}"
            )
        record = new_record()
        record["kind"], record["status"], record["t"] = kind, status, t
        for name in _COPIED:
            record[name] = getattr(self, name)
        record["parent"] = self.parent_id
        takes_kernel = bool(self.architecture.own_kernel_morphs(len(self.own_morphs)))
        record["flags"] = FROM_CHECKPOINT * self.from_checkpoint | TAKES_KERNEL * takes_kernel
        record["n_morphs"] = len(self.own_morphs)
        record["morphs"][: len(self.own_morphs)] = [morph.pack() for morph in self.own_morphs]
        record["arch_hash"] = np.frombuffer(bytes.fromhex(self.architecture.hash), np.uint8)
        record["group"] = np.frombuffer(bytes.fromhex(self.group), np.uint8)
        fill(record, self.origin)
        return record

    @staticmethod
    def new(
        architecture: Architecture,
        own_morphs: tuple[Morph, ...],
        *,
        parent_id: int,
        replica: int,
        generator: int,
        round: int,
        batch_per_device: int,
        devices: int,
        seed: int,
        kernel_size: int = DEFAULT_KERNEL,
        from_checkpoint: bool = False,
        origin: Origin = UNKNOWN,
    ) -> Candidate:
        """Return a candidate with key, seed and operation counts derived, and trial id -1.

        Arguments:
            architecture: the network, `kernel_size` already applied to its own `deeper` morphs.
            own_morphs: the last morphs of `architecture`, those that its parent does not have.
            parent_id: trial id of the parent, -1 for the initial architecture.
            devices: devices of the replica; the global batch is `devices` times `batch_per_device`.
            seed: the run's seed.
            from_checkpoint: whether training starts from the parent's kept weights.
            origin: what chose it.

        Raises ValueError if `own_morphs` are not the last morphs of `architecture`.
        """
        if own_morphs and architecture.morphs[-len(own_morphs) :] != own_morphs:
            raise ValueError(
                f"candidate of trial {parent_id}: own morphs {[str(m) for m in own_morphs]} are not the "
                "last ones of its architecture"
            )
        key = candidate_key(architecture.hash, batch_per_device * devices)
        train_ops, val_ops = operations(architecture)
        return Candidate(
            -1,
            parent_id,
            replica,
            generator,
            round,
            architecture,
            own_morphs,
            batch_per_device,
            batch_per_device * devices,
            kernel_size,
            trial_seed(seed, key),
            key,
            train_ops,
            val_ops,
            from_checkpoint,
            origin,
        )

    @staticmethod
    def from_record(record: np.void, parent: Architecture, trial_id: int) -> Candidate:
        """Return the candidate of a record, its architecture replayed from its parent's.

        Arguments:
            record: a sealed PROPOSED or OUTCOME record.
            parent: the parent's architecture (for trial 0, which has no morphs, the initial one).
            trial_id: slot of the PROPOSED record.

        Raises RecordError if the record is torn, or if the replayed architecture has another hash or key.
        """
        where, own = f"record of trial {trial_id}", own_morphs(record, trial_id)
        architecture = parent.apply(*own)
        stored = record["arch_hash"].tobytes().hex()
        if architecture.hash != stored:
            raise RecordError(
                f"{where}: replay from its parent {int(record['parent'])} gives network "
                f"{architecture.hash}, but the record says {stored}; is that the right parent?"
            )
        key = int(record["key"])
        if key != candidate_key(stored, int(record["batch_global"])):
            raise RecordError(f"{where}: key {key:#x} does not belong to its network and batch")
        return Candidate(
            trial_id,
            int(record["parent"]),
            int(record["replica"]),
            int(record["generator"]),
            int(record["round"]),
            architecture,
            own,
            int(record["batch_per_device"]),
            int(record["batch_global"]),
            int(record["kernel_size"]),
            int(record["seed"]),
            key,
            int(record["train_ops"]),
            int(record["val_ops"]),
            bool(record["flags"] & FROM_CHECKPOINT),
            origin_of(record),
        )
