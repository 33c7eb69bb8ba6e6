# SPDX-License-Identifier: Apache-2.0
"""Random streams: each random draw of a run comes from one seed, a named purpose and a place in the run.

A stream depends on the replica, the generator and the length of the history that it has read, never on an MPI
rank. The same seed and history therefore give the same proposals on any number of ranks.
"""

from __future__ import annotations

import hashlib

import numpy as np

# Purposes. A seed's meaning depends on their numbers: never renumber one, only add.
SEARCH = 1  # parents and morphs
INIT = 2  # initial parameters of a trial
DATA = 3  # order of the training samples
AUGMENT = 4  # distortions of the training samples
HPO = 5  # hyperparameters

PURPOSES = {"SEARCH": SEARCH, "INIT": INIT, "DATA": DATA, "AUGMENT": AUGMENT, "HPO": HPO}


def stream(
    purpose: int, seed: int, replica: int = 0, generator: int = 0, length: int = 0
) -> np.random.Generator:
    """Return the random generator of one purpose at one place of a run.

    Arguments:
        purpose: one of the purposes above; no two purposes share a stream.
        seed: the run's seed, or a trial's own (`Candidate.seed`) for draws that belong to a trial.
        replica, generator: indices of the replica and of its generator, from 0.
        length: rows of the history that the draw is based on, or another counter of draws (an epoch, for
            example).

    Raises ValueError for an unknown purpose or a negative number.
    """
    if purpose not in PURPOSES.values():
        raise ValueError(f"random stream: purpose {purpose} is not one of {PURPOSES}")
    if min(seed, replica, generator, length) < 0:
        raise ValueError(
            f"random stream: seed {seed}, replica {replica}, generator {generator} and length {length} "
            "must not be negative"
        )
    entropy = (int(seed), int(purpose), int(replica), int(generator), int(length))
    return np.random.default_rng(np.random.SeedSequence(entropy))


def trial_seed(seed: int, key: int) -> int:
    """Return the 64-bit seed of a trial, a hash of the run's seed and the candidate's key.

    A candidate therefore has one initialisation in a run.
    """
    text = f"{int(seed)}:{int(key)}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"trial seed").digest(), "little")
